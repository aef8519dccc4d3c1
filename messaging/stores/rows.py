"""Values to rows of the ORM store and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from uuid import UUID

from messaging import domain, models, ports
from messaging.domain import Status


def conversation(row: models.Conversation, members: Iterable[str]) -> domain.Conversation:
    return domain.Conversation(
        conversation_id=row.conversation_id,
        workspace_id=row.workspace_id,
        public_id=row.public_id,
        title=row.title,
        members=tuple(members),
        created_by=row.created_by,
        created_at_ms=row.created_at_ms,
    )


def membership(conversation: models.Conversation, party: str, *, joined_at_ms: int) -> models.Membership:
    return models.Membership(
        conversation_id=conversation.conversation_id,
        workspace_id=conversation.workspace_id,
        party=party,
        joined_at_ms=joined_at_ms,
        last_activity_ms=conversation.last_activity_ms,
    )


_MESSAGE_FIELDS = tuple(field.name for field in fields(domain.Message))


def message_row(message: domain.Message) -> models.Message:
    return models.Message(**{name: getattr(message, name) for name in _MESSAGE_FIELDS})


def message(row: models.Message) -> domain.Message:
    values = {name: getattr(row, name) for name in _MESSAGE_FIELDS}
    return domain.Message(
        **{**values, "recipients": tuple(values["recipients"]), "audience": tuple(values["audience"])}
    )


def sent_row(change: domain.StatusChange) -> models.MessageStatus:
    """A row to lock, for whom nothing was told yet that is above SENT."""
    return models.MessageStatus(message_id=change.message_id, **asdict(domain.as_sent(change)))


def move(row: models.MessageStatus, change: domain.StatusChange) -> None:
    row.rank = change.rank
    row.status = change.status
    row.at_ms = change.at_ms
    row.reason = change.reason


def recipient_status(row: models.MessageStatus) -> domain.RecipientStatus:
    return domain.RecipientStatus(row.recipient, Status(row.status), row.rank, row.at_ms, row.reason)


_CHANGE_FIELDS = tuple(field.name for field in fields(domain.StatusChange))


def transition_row(change: domain.StatusChange) -> models.StatusTransition:
    return models.StatusTransition(
        rank=change.rank, note=change.note, **{name: getattr(change, name) for name in _CHANGE_FIELDS}
    )


def change(row: models.StatusTransition) -> domain.StatusChange:
    values = {name: getattr(row, name) for name in _CHANGE_FIELDS}
    return domain.StatusChange(**{**values, "status": Status(row.status)})


def external_row(ref: domain.ExternalRef) -> models.ExternalId:
    return models.ExternalId(**asdict(ref))


def external_key(ref: domain.ExternalRef) -> tuple[str, str, str]:
    return ref.channel, ref.account_id, ref.external_id


def external_ref(row: models.ExternalId) -> domain.ExternalRef:
    return domain.ExternalRef(**{field.name: getattr(row, field.name) for field in fields(domain.ExternalRef)})


def contact_row(contact: domain.Contact) -> models.ContactThread:
    return models.ContactThread(**asdict(contact))


def contact_key(contact: domain.Contact) -> tuple[UUID, str, str, str]:
    """What the table holds once."""
    return contact.workspace_id, contact.channel, contact.account_id, contact.address


def contact(row: models.ContactThread) -> domain.Contact:
    return domain.Contact(**{field.name: getattr(row, field.name) for field in fields(domain.Contact)})


def delivery_key(row: models.DeliveryClaim) -> ports.DeliveryKey:
    return ports.DeliveryKey(row.message_id, row.recipient, row.attempt)


def parked_row(scope: ports.ParkScope, record: ports.ParkedRecord) -> models.ParkedRecord:
    return models.ParkedRecord(
        topic=scope.topic,
        conversation_id=scope.conversation_id,
        source_topic=record.source.topic,
        partition=record.source.partition,
        offset=record.offset,
        value=record.value,
        parked_at_ms=record.parked_at_ms,
        attempts=record.attempts,
        request_id=record.request_id,
    )


def parked_record(row: models.ParkedRecord) -> ports.ParkedRecord:
    source = ports.TopicPartition(row.source_topic, row.partition)
    return ports.ParkedRecord(source, row.offset, bytes(row.value), row.parked_at_ms, row.attempts, row.request_id)
