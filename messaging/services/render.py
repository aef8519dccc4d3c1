"""How our values look to clients: the same in REST answers and in frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.clock import iso_utc
from messaging.domain import Conversation, Message, Party, RecipientStatus, Status, overall
from messaging.ports import Transition

Json = dict[str, Any]


def message_json(message: Message, statuses: Sequence[RecipientStatus] | None) -> Json:
    """A message; ``statuses`` None: not stored yet, every recipient is ACCEPTED."""
    accepted_at = iso_utc(message.accepted_at_ms)
    if statuses is None:
        statuses = [
            RecipientStatus(recipient, Status.ACCEPTED, -1, message.accepted_at_ms) for recipient in message.recipients
        ]
        status = Status.ACCEPTED
    else:
        status = overall(statuses)
    return {
        "message_id": str(message.message_id),
        "conversation_id": message.conversation,
        "sender_id": message.sender_id,
        "recipient_id": message.recipient_id,
        "content": message.content,
        "file_id": message.file_id,
        "reply_to": str(message.reply_to) if message.reply_to else None,
        "status": status.value,
        "statuses": [status_json(each) for each in statuses],
        "accepted_at": accepted_at,
    }


def status_json(status: RecipientStatus) -> Json:
    return {
        "recipient_id": status.recipient,
        "status": status.status.value,
        "at": iso_utc(status.at_ms),
        "reason": status.reason,
    }


def history_json(message: Message, transitions: Sequence[Transition]) -> list[Json]:
    """A message's status history, ACCEPTED first."""
    accepted: Json = {
        "recipient_id": None,
        "status": Status.ACCEPTED.value,
        "at": iso_utc(message.accepted_at_ms),
        "reason": None,
    }
    return [
        accepted,
        *(
            {
                "recipient_id": each.recipient,
                "status": each.change.status.value,
                "at": iso_utc(each.change.at_ms),
                "reason": each.change.reason,
            }
            for each in transitions
        ),
    ]


def conversation_json(
    conversation: Conversation, *, names: dict[str, str] | None = None, last_activity_ms: int | None = None
) -> Json:
    """A conversation; ``names`` shows members by name where one is known. In frames it has no ``last_activity_at``."""
    shown: Json = {
        "conversation_id": conversation.public_id,
        "title": conversation.title,
        "members": [member_json(member, (names or {}).get(member, "")) for member in conversation.members],
        "created_by": conversation.created_by,
        "created_at": iso_utc(conversation.created_at_ms),
    }
    return shown if last_activity_ms is None else {**shown, "last_activity_at": iso_utc(last_activity_ms)}


def member_json(member: str, name: str) -> Json:
    party = Party.parse(member)
    return {
        "id": member,
        "kind": "user" if party.is_user else "contact",
        "channel": party.channel,
        "name": name or party.address,
    }
