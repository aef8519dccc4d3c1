"""The message store on Django's ORM: SQLite (WAL, IMMEDIATE) in the local profile, PostgreSQL just as well.

Each method writes in one transaction, with a number of statements that does not grow with the batch (SQLite splits an
insert of many rows; last activities are one statement, run for each conversation). Rows are locked where what is
written depends on what is read: by IMMEDIATE on SQLite, by row locks in one order on PostgreSQL.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import Any, Final, TypeVar
from uuid import UUID

from django.db import (
    DataError,
    Error,
    IntegrityError,
    NotSupportedError,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Max, Model, Q, QuerySet, UUIDField

from core.clock import SYSTEM_CLOCK, Clock
from core.forks import unforked
from messaging import topics
from messaging.domain import (
    Contact,
    Conversation,
    ExternalRef,
    Message,
    RecipientStatus,
    StatusChange,
    history_of,
    once_stored,
)
from messaging.errors import StoreUnavailable
from messaging.models import ContactThread, DeliveryClaim, ExternalId, IdempotencyKey, Membership, MessageStatus
from messaging.models import Conversation as ConversationRow
from messaging.models import Message as MessageRow
from messaging.models import ParkedRecord as ParkedRow
from messaging.models import ParkedScope as ScopeRow
from messaging.models import StatusTransition as TransitionRow
from messaging.ports import (
    ConversationListing,
    DeliveryKey,
    DeliveryOutcome,
    DeliveryState,
    KeyClaim,
    KeyState,
    ListCursor,
    ParkedRecord,
    ParkScope,
    Saved,
    TopicPartition,
    Transition,
)
from messaging.ports import DeliveryClaim as ClaimAnswer
from messaging.stores import rows
from messaging.stores.router import STORE_ALIAS

PING_TIMEOUT_S: Final = 2.0
KEY_LIFETIME: Final = timedelta(hours=24)
CLAIM_LIFETIME: Final = topics.CLAIM_LIFETIME
CHUNK: Final = 500  # keys in one statement: SQLite takes at most 32,766 variables
HOLD: Final = "SELECT pg_advisory_xact_lock_shared(key) FROM unnest(%s::bigint[]) AS key"
HOLD_ALONE: Final = "SELECT pg_advisory_xact_lock(key) FROM unnest(%s::bigint[]) AS key"
STATUS_FIELDS: Final = ("rank", "status", "at_ms", "reason")
CLAIM_FIELDS: Final = ("stage", "owner", "since_ms", "lease_until_ms", "external_id", "reason", "touched_at_ms")

Row = TypeVar("Row", bound=Model)
Thing = TypeVar("Thing")
Stage = DeliveryClaim.Stage
StatusKey = tuple[UUID, str]

# A poisonous value, or our fault: the call would fail again. All else is the database's (ProgrammingError, for one, is
# what PostgreSQL says when a table is not migrated yet) and must not make anybody give a record up.
_LASTING = (IntegrityError, DataError, NotSupportedError)
_used_by: dict[str, int] = {}  # alias -> process
_inherited: list[object] = []


class OrmStore:
    """A `MessageStore` in the database with that alias. Connections are Django's: one a thread, opened on use."""

    def __init__(self, using: str = STORE_ALIAS, clock: Clock = SYSTEM_CLOCK) -> None:
        self._using = using
        self._clock = clock

    # conversations
    def create_conversation(self, conversation: Conversation) -> tuple[Conversation, bool]:
        if stored := self.conversation(conversation.conversation_id):
            return stored, False
        with self._transaction():
            self._hold([conversation.conversation_id], alone=True)
            row, is_new = self._rows(ConversationRow).get_or_create(
                conversation_id=conversation.conversation_id,
                defaults={
                    "workspace_id": conversation.workspace_id,
                    "public_id": conversation.public_id,
                    "title": conversation.title,
                    "created_by": conversation.created_by,
                    "created_at_ms": conversation.created_at_ms,
                    "last_activity_ms": self._last_activity(conversation),
                },
            )
            if is_new:
                joined_at_ms = conversation.created_at_ms
                members = [rows.membership(row, each, joined_at_ms=joined_at_ms) for each in conversation.members]
                self._insert(Membership, members)
            return rows.conversation(row, self._members([row.pk]).get(row.pk, ())), is_new

    def _last_activity(self, conversation: Conversation) -> int:
        """Messages may be there first, when the log is read anew into an empty store."""
        found = self._rows(MessageRow).filter(conversation_id=conversation.conversation_id)
        newest: int | None = found.aggregate(newest=Max("accepted_at_ms"))["newest"]
        return max(conversation.created_at_ms, newest or 0)

    def conversation(self, conversation_id: UUID) -> Conversation | None:
        with self._session():
            row = self._rows(ConversationRow).filter(pk=conversation_id).first()
            return rows.conversation(row, self._members([row.pk]).get(row.pk, ())) if row else None

    def conversations(self, conversation_ids: Collection[UUID]) -> dict[UUID, Conversation]:
        with self._session():
            found = [
                row
                for some in _chunks(sorted(conversation_ids))
                for row in self._rows(ConversationRow).filter(pk__in=some)
            ]
            members = self._members([row.pk for row in found])
            return {row.pk: rows.conversation(row, members.get(row.pk, ())) for row in found}

    def members(self, conversation_ids: Collection[UUID]) -> dict[UUID, Collection[str]]:
        with self._session():
            there = self._rows(ConversationRow).filter(pk__in=conversation_ids).values_list("pk", flat=True)
            members = self._members(conversation_ids)
            return {conversation_id: members.get(conversation_id, ()) for conversation_id in there}

    def last_activity_ms(self, conversation_id: UUID) -> int:
        with self._session():
            known: int = self._rows(ConversationRow).values_list("last_activity_ms", flat=True).get(pk=conversation_id)
            return known

    def add_member(self, conversation_id: UUID, party: str, *, at_ms: int) -> None:
        with self._transaction():
            # Locked, so that no message moves the last activity between reading and repeating it.
            row = self._rows(ConversationRow).select_for_update().get(pk=conversation_id)
            self._insert(Membership, [rows.membership(row, party, joined_at_ms=at_ms)])

    def remove_member(self, conversation_id: UUID, party: str) -> None:
        with self._session():
            self._rows(Membership).filter(conversation_id=conversation_id, party=party).delete()

    def conversations_of(
        self, party: str, *, workspace_id: UUID, after: ListCursor | None, limit: int
    ) -> list[ConversationListing]:
        with self._session():
            mine = self._rows(Membership).filter(party=party, workspace_id=workspace_id)
            if after:
                # The first condition is a range of the index, the second one tells equal times apart.
                mine = mine.filter(last_activity_ms__lte=after.last_activity_ms).filter(
                    Q(last_activity_ms__lt=after.last_activity_ms) | Q(conversation_id__lt=after.conversation_id)
                )
            page = list(mine.order_by("-last_activity_ms", "-conversation_id")[:limit])
            ids = [each.conversation_id for each in page]
            found = self._rows(ConversationRow).in_bulk(ids)
            members = self._members(ids)
        return [
            ConversationListing(
                rows.conversation(found[each.conversation_id], members.get(each.conversation_id, ())),
                each.last_activity_ms,
            )
            for each in page
        ]

    def _members(self, ids: Collection[UUID]) -> Mapping[UUID, list[str]]:
        members: dict[UUID, list[str]] = {}
        found = self._rows(Membership).filter(conversation_id__in=ids).order_by("pk")
        for conversation_id, party in found.values_list("conversation_id", "party"):
            members.setdefault(conversation_id, []).append(party)
        return members

    # messages
    def save_messages(self, messages: Sequence[Message]) -> Saved:
        if not messages:
            return Saved(frozenset(), {})
        first = {message.message_id: message for message in reversed(messages)}  # of one id the first counts
        with self._transaction():
            known = frozenset[UUID]().union(*[self._save(some) for some in _chunks(list(first.values()))])
        new = [each for message_id, each in first.items() if message_id not in known]
        # Read once they are there for everybody: who tells a status writes it first and looks for the message then, so
        # that one of the two sees the other's write, and somebody shows it.
        found = self._told(new)
        return Saved(known, {each.message_id: once_stored(each, found) for each in new})

    def _save(self, messages: Sequence[Message]) -> frozenset[UUID]:
        """Those that were there before."""
        ids = [message.message_id for message in messages]
        known = frozenset(self._rows(MessageRow).filter(pk__in=ids).values_list("pk", flat=True))
        self._insert(MessageRow, map(rows.message_row, messages))
        self._touch(messages)
        return known

    def _touch(self, messages: Sequence[Message]) -> None:
        """Move last activities forward. Lanes keep a conversation's batches apart, so that the locks meet no others."""
        latest: dict[UUID, int] = {}
        for message in messages:
            known = latest.get(message.conversation_id, 0)
            latest[message.conversation_id] = max(known, message.accepted_at_ms)
        self._hold(latest)
        moves = [(ms, each, ms) for each, ms in latest.items()]
        for model in (ConversationRow, Membership):
            self._run_each(
                model, "SET last_activity_ms = %s WHERE conversation_id = %s AND last_activity_ms < %s", moves
            )

    def message(self, message_id: UUID) -> Message | None:
        with self._session():
            row = self._rows(MessageRow).filter(pk=message_id).first()
        return rows.message(row) if row else None

    def messages(self, message_ids: Collection[UUID]) -> dict[UUID, Message]:
        with self._session():
            return {
                row.message_id: rows.message(row)
                for some in _chunks(sorted(message_ids))
                for row in self._rows(MessageRow).filter(pk__in=some)
            }

    def history(
        self, conversation_id: UUID, *, before: UUID | None = None, after: UUID | None = None, limit: int
    ) -> list[Message]:
        found = self._rows(MessageRow).filter(conversation_id=conversation_id)
        if after:
            page = found.filter(message_id__gt=after).order_by("message_id")
        else:
            page = (found.filter(message_id__lt=before) if before else found).order_by("-message_id")
        with self._session():
            return [rows.message(row) for row in page[:limit]]

    # statuses
    def apply_statuses(self, changes: Sequence[StatusChange]) -> list[RecipientStatus]:
        if not changes:
            return []
        with self._transaction():
            return [standing for chunk in _chunks(changes) for standing in self._apply(chunk)]

    def _apply(self, changes: Sequence[StatusChange]) -> list[RecipientStatus]:
        self._insert(TransitionRow, map(rows.transition_row, changes))
        return self._raise(changes)

    def _raise(self, changes: Sequence[StatusChange]) -> list[RecipientStatus]:
        """What stands after each change, one after another; only what moved is written, once."""
        standing = self._standing(changes)
        moved: dict[int, MessageStatus] = {}
        answers = []
        for change in changes:
            row = standing[change.message_id, change.recipient]
            if change.rank > row.rank:
                rows.move(row, change)
                moved[row.pk] = row
            answers.append(rows.recipient_status(row))
        if moved:
            self._write(MessageStatus, moved.values(), STATUS_FIELDS)
        return answers

    def _standing(self, changes: Sequence[StatusChange]) -> dict[StatusKey, MessageStatus]:
        """The locked row of each change. Those that are not there yet are made before any is locked, in the same order:
        who waits for a row of somebody else's must not hold one that the other will want."""
        wanted = {(change.message_id, change.recipient): change for change in changes}
        self._insert(MessageStatus, [rows.sent_row(wanted[key]) for key in sorted(wanted)])
        return self._locked_statuses(wanted)

    def _locked_statuses(self, keys: Collection[StatusKey]) -> dict[StatusKey, MessageStatus]:
        messages, recipients = {key[0] for key in keys}, {key[1] for key in keys}
        found = self._rows(MessageStatus).filter(message_id__in=messages, recipient__in=recipients)
        locked = found.select_for_update().order_by("message_id", "recipient")
        return {(row.message_id, row.recipient): row for row in locked}

    def statuses(self, messages: Sequence[Message]) -> dict[UUID, list[RecipientStatus]]:
        found = self._told(messages)
        return {message.message_id: once_stored(message, found) for message in messages}

    def _told(self, messages: Sequence[Message]) -> dict[StatusKey, RecipientStatus]:
        with self._session():
            return {
                (row.message_id, row.recipient): rows.recipient_status(row)
                for chunk in _chunks(messages)
                for row in self._rows(MessageStatus).filter(message_id__in=[each.message_id for each in chunk])
            }

    def transitions(self, message: Message) -> list[Transition]:
        with self._session():
            told = [rows.change(row) for row in self._rows(TransitionRow).filter(message_id=message.message_id)]
        return [Transition(each.recipient, each) for each in history_of(message, told)]

    # what platforms call our messages
    def claim_externals(self, refs: Sequence[ExternalRef]) -> list[ExternalRef]:
        by_account: dict[tuple[str, str], set[str]] = {}
        for ref in refs:
            by_account.setdefault((ref.channel, ref.account_id), set()).add(ref.external_id)
        with self._transaction():
            self._insert(ExternalId, [rows.external_row(ref) for ref in sorted(refs, key=rows.external_key)])
            found = {each: self.externals(*each, external_ids) for each, external_ids in by_account.items()}
        return [found[ref.channel, ref.account_id][ref.external_id] for ref in refs]

    def note_externals(self, refs: Sequence[ExternalRef]) -> None:
        with self._transaction():
            self._insert(ExternalId, [rows.external_row(ref) for ref in sorted(refs, key=rows.external_key)])

    def externals(self, channel: str, account_id: str, external_ids: Collection[str]) -> dict[str, ExternalRef]:
        with self._session():
            ours = self._rows(ExternalId).filter(channel=channel, account_id=account_id)
            return {
                row.external_id: rows.external_ref(row)
                for some in _chunks(sorted(external_ids))
                for row in ours.filter(external_id__in=some)
            }

    # contacts
    def bind_contacts(self, contacts: Sequence[Contact]) -> None:
        with self._transaction():
            contacts = sorted(contacts, key=rows.contact_key)  # everybody locks in one order; a person's keep theirs
            self._insert(ContactThread, map(rows.contact_row, contacts))
            self._run_each(
                ContactThread,
                "SET last_message_id = %s, conversation_id = %s WHERE workspace_id = %s AND channel = %s"
                " AND account_id = %s AND address = %s AND last_message_id < %s",
                [
                    (each.last_message_id, each.conversation_id, *rows.contact_key(each), each.last_message_id)
                    for each in contacts
                ],
            )
            for contact in contacts:
                if said := {name: value for name in ("name", "handle") if (value := getattr(contact, name))}:
                    self._known(contact).exclude(**said).update(**said)

    def _known(self, contact: Contact) -> QuerySet[ContactThread]:
        return self._rows(ContactThread).filter(
            workspace_id=contact.workspace_id,
            channel=contact.channel,
            account_id=contact.account_id,
            address=contact.address,
        )

    def contact(self, *, workspace_id: UUID, channel: str, account_id: str, address: str) -> Contact | None:
        return self._contact(workspace_id=workspace_id, channel=channel, account_id=account_id, address=address)

    def contacts(
        self, *, workspace_id: UUID, channel: str, account_id: str, addresses: Collection[str]
    ) -> dict[str, Contact]:
        found: dict[str, Contact] = {}
        with self._session():
            ours = self._rows(ContactThread).filter(workspace_id=workspace_id, channel=channel, account_id=account_id)
            for some in _chunks(sorted(addresses)):
                found.update((row.address, rows.contact(row)) for row in ours.filter(address__in=some))
        return found

    def contact_by_handle(self, *, workspace_id: UUID, channel: str, account_id: str, handle: str) -> Contact | None:
        if not handle:
            return None  # what those without one have in common names nobody
        return self._contact(workspace_id=workspace_id, channel=channel, account_id=account_id, handle=handle)

    def _contact(self, **known: object) -> Contact | None:
        """The one heard last: a handle may have passed from one person to another."""
        with self._session():
            row = self._rows(ContactThread).filter(**known).order_by("-last_message_id").first()
        return rows.contact(row) if row else None

    # Idempotency-Key
    def claim_key(
        self,
        *,
        workspace_id: UUID,
        sender_id: str,
        key: str,
        body_hash: str,
        message_id: UUID,
        now_ms: int,
        lease_ms: int,
    ) -> KeyClaim:
        first = {
            "body_hash": body_hash,
            "message_id": message_id,
            "accepted_at_ms": now_ms,
            "lease_until_ms": now_ms + lease_ms,
            "is_settled": False,
        }
        with self._transaction():
            row, is_new = (
                self._rows(IdempotencyKey)
                .select_for_update()
                .get_or_create(workspace_id=workspace_id, sender_id=sender_id, key=key, defaults=first)
            )
            if not is_new and _age_ms(row, now_ms) >= _ms(KEY_LIFETIME):
                for name, value in first.items():
                    setattr(row, name, value)
                row.save(using=self._using)
                is_new = True
            state = KeyState.NEW if is_new else _key_state(row, body_hash=body_hash, now_ms=now_ms)
            if state is KeyState.NEW and not is_new:
                row.lease_until_ms = now_ms + lease_ms
                row.save(using=self._using, update_fields=("lease_until_ms",))
            return KeyClaim(state, row.message_id, row.accepted_at_ms)

    def answered_key(self, *, workspace_id: UUID, sender_id: str, key: str, body_hash: str, now_ms: int) -> UUID | None:
        with self._session():
            row = (
                self._rows(IdempotencyKey)
                .filter(workspace_id=workspace_id, sender_id=sender_id, key=key, body_hash=body_hash, is_settled=True)
                .first()
            )
        return row.message_id if row and _age_ms(row, now_ms) < _ms(KEY_LIFETIME) else None

    def settle_key(self, *, workspace_id: UUID, sender_id: str, key: str) -> None:
        with self._session():
            found = self._rows(IdempotencyKey).filter(workspace_id=workspace_id, sender_id=sender_id, key=key)
            found.update(is_settled=True)

    def release_key(self, *, workspace_id: UUID, sender_id: str, key: str) -> None:
        with self._session():
            found = self._rows(IdempotencyKey).filter(workspace_id=workspace_id, sender_id=sender_id, key=key)
            found.update(lease_until_ms=0)

    # sending once
    def claim_deliveries(
        self,
        keys: Sequence[DeliveryKey],
        *,
        owner: str,
        now_ms: int,
        lease_ms: int,
        superseded: Callable[[str], bool] | None = None,
    ) -> list[ClaimAnswer]:
        if not keys:
            return []
        lease = _Lease(owner, now_ms, now_ms + lease_ms, superseded)
        with self._transaction():
            self._insert(DeliveryClaim, [lease.new_row(key) for key in sorted(set(keys))])
            found = self._locked_claims(keys)
            changed: dict[int, DeliveryClaim] = {}
            answers = {key: lease.claim(found[key], changed) for key in dict.fromkeys(keys)}
            if changed:
                self._write(DeliveryClaim, changed.values(), CLAIM_FIELDS)
        return [answers[key] for key in keys]

    def settle_deliveries(self, outcomes: Sequence[DeliveryOutcome], *, owner: str) -> None:
        if not outcomes:
            return
        now_ms = self._clock.now_ms()
        with self._transaction():
            found = self._locked_claims([outcome.key for outcome in outcomes])
            changed: dict[int, DeliveryClaim] = {}
            for outcome in outcomes:
                row = found.get(outcome.key)
                if row and _settle(row, outcome, owner=owner):
                    row.touched_at_ms = now_ms
                    changed[row.pk] = row
            if changed:
                self._write(DeliveryClaim, changed.values(), CLAIM_FIELDS)

    def settled_deliveries(self, keys: Collection[DeliveryKey]) -> Set[DeliveryKey]:
        ended = self._rows(DeliveryClaim).filter(stage__in=(Stage.SENT, Stage.FAILED))
        with self._session():
            found = {
                rows.delivery_key(row)
                for some in _chunks(sorted({key.message_id for key in keys}))
                for row in ended.filter(message_id__in=some)
            }
        return found.intersection(keys)

    def _locked_claims(self, keys: Sequence[DeliveryKey]) -> dict[DeliveryKey, DeliveryClaim]:
        found = self._rows(DeliveryClaim).filter(
            message_id__in={key.message_id for key in keys}, recipient__in={key.recipient for key in keys}
        )
        locked = found.select_for_update().order_by("message_id", "recipient", "attempt")
        return {rows.delivery_key(row): row for row in locked}

    # held back conversations
    def park(self, scope: ParkScope, records: Sequence[ParkedRecord], *, due_at_ms: int) -> None:
        if not records:
            return
        row = ScopeRow(topic=scope.topic, conversation_id=scope.conversation_id, due_at_ms=due_at_ms)
        with self._transaction():
            # An update that changes nothing locks the scope: `unpark` deletes none that is being added to.
            self._rows(ScopeRow).bulk_create(
                [row],
                update_conflicts=True,
                unique_fields=["topic", "conversation_id"],
                update_fields=["conversation_id"],
            )
            self._insert(ParkedRow, [rows.parked_row(scope, record) for record in records])

    def parked_scopes(self, scopes: Sequence[ParkScope]) -> Set[ParkScope]:
        with self._session():
            found = self._rows(ScopeRow).filter(
                topic__in={each.topic for each in scopes}, conversation_id__in={each.conversation_id for each in scopes}
            )
            held = {ParkScope(row.topic, row.conversation_id) for row in found}
        return held.intersection(scopes)

    def due_scopes(self, *, topic: str, now_ms: int, limit: int) -> list[ParkScope]:
        with self._session():
            due = self._due(topic, now_ms)[:limit]
            return [ParkScope(row.topic, row.conversation_id) for row in due]

    def take_due_scopes(self, *, topic: str, now_ms: int, again_at_ms: int, limit: int) -> list[ParkScope]:
        if not self.due_scopes(topic=topic, now_ms=now_ms, limit=1):
            return []  # asked each second: mostly there is nothing worth a transaction
        with self._transaction():
            taken = list(self._due(topic, now_ms).select_for_update()[:limit])
            self._rows(ScopeRow).filter(pk__in=[row.pk for row in taken]).update(due_at_ms=again_at_ms)
        return [ParkScope(row.topic, row.conversation_id) for row in taken]

    def due_at_ms(self, scope: ParkScope) -> int | None:
        with self._session():
            row = self._rows(ScopeRow).filter(topic=scope.topic, conversation_id=scope.conversation_id).first()
        return row.due_at_ms if row else None

    def _due(self, topic: str, now_ms: int) -> QuerySet[ScopeRow]:
        return self._rows(ScopeRow).filter(topic=topic, due_at_ms__lte=now_ms).order_by("due_at_ms", "pk")

    def parked(self, scope: ParkScope, *, limit: int) -> list[ParkedRecord]:
        with self._session():
            held = self._held(scope).order_by("source_topic", "partition", "offset")
            return [rows.parked_record(row) for row in held[:limit]]

    def unpark(self, scope: ParkScope, offsets: Sequence[tuple[TopicPartition, int]], *, next_due_ms: int) -> bool:
        with self._transaction():
            found = self._rows(ScopeRow).filter(topic=scope.topic, conversation_id=scope.conversation_id)
            row = found.select_for_update().first()
            if row is None:
                return True
            for source, done in _by_source(offsets).items():
                here = self._held(scope).filter(source_topic=source.topic, partition=source.partition)
                here.filter(offset__in=done).delete()
            if self._held(scope).exists():
                found.update(due_at_ms=next_due_ms)
                return False
            row.delete(using=self._using)
            return True

    def _held(self, scope: ParkScope) -> QuerySet[ParkedRow]:
        return self._rows(ParkedRow).filter(topic=scope.topic, conversation_id=scope.conversation_id)

    # upkeep
    def prune(self, *, limit: int) -> int:
        now_ms = self._clock.now_ms()
        keys = self._rows(IdempotencyKey).filter(accepted_at_ms__lte=now_ms - _ms(KEY_LIFETIME))
        claims = self._rows(DeliveryClaim).filter(touched_at_ms__lte=now_ms - _ms(CLAIM_LIFETIME))
        with self._session():
            return self._delete(keys.order_by("accepted_at_ms"), limit) + self._delete(
                claims.order_by("touched_at_ms"), limit
            )

    def _delete(self, found: QuerySet[Row], limit: int) -> int:
        condemned = list(found.values_list("pk", flat=True)[:limit])
        return sum(self._rows(found.model).filter(pk__in=chunk).delete()[0] for chunk in _chunks(condemned))

    def thin_replication(self) -> list[str]:
        return []

    def ping(self) -> None:
        answer: Future[None] = Future()
        Thread(target=self._probe, args=(answer,), name="store-ping", daemon=True).start()
        try:
            answer.result(PING_TIMEOUT_S)
        except (Error, TimeoutError) as error:
            raise StoreUnavailable(
                f"The message store (database {self._using!r}) does not answer: {type(error).__name__}. Check that "
                f"MESSAGES_DATABASE_URL is right and up, and run: manage.py migrate --database {self._using}"
            ) from error

    def _probe(self, answer: Future[None]) -> None:
        """On a thread of its own, since a driver may wait for a dead host far longer than a ping may take."""
        with unforked(joins=True):
            try:
                self._rows(ScopeRow).exists()
            except BaseException as error:  # raised where the answer is awaited
                answer.set_exception(error)
            else:
                answer.set_result(None)
            finally:
                connections[self._using].close()

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        self._disown_inherited()
        connections[self._using].close()

    # the database
    def _rows(self, model: type[Row]) -> QuerySet[Row]:
        return model._default_manager.using(self._using)

    def _insert(self, model: type[Row], new: Iterable[Row]) -> None:
        """Those that are not there yet."""
        self._rows(model).bulk_create(list(new), ignore_conflicts=True)

    def _write(self, model: type[Row], changed: Iterable[Row], names: Sequence[str]) -> None:
        """These columns of rows that are there."""
        assignments = ", ".join(f"{name} = %s" for name in names)
        values = [(*(getattr(row, name) for name in names), row.pk) for row in changed]
        self._run_each(model, f"SET {assignments} WHERE id = %s", values)

    def _run_each(self, model: type[Model], update: str, values: Iterable[Sequence[Any]]) -> None:
        """One UPDATE, prepared once and run for each: Django takes longer to build a CASE over a batch (`bulk_update`)
        than this takes to run."""
        connection = connections[self._using]
        table = connection.ops.quote_name(model._meta.db_table)
        with connection.cursor() as cursor:
            cursor.executemany(
                f"UPDATE {table} {update}", [tuple(_plain(each, connection) for each in row) for row in values]
            )

    def _hold(self, conversation_ids: Iterable[UUID], *, alone: bool = False) -> None:
        """Until this transaction ends, who creates one of these (``alone``) and who saves messages of it take turns.

        Else neither sees what the other is about to commit, and the messages count for no last activity. There is no
        row to lock before the creation; SQLite lets one transaction write at a time anyway.
        """
        connection = connections[self._using]
        if connection.vendor == "postgresql":
            keys = sorted(int.from_bytes(each.bytes[:8], "big", signed=True) for each in conversation_ids)
            with connection.cursor() as cursor:
                cursor.execute(HOLD_ALONE if alone else HOLD, [keys])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._session(), transaction.atomic(using=self._using):
            yield

    @contextmanager
    def _session(self) -> Iterator[None]:
        """A usable connection; a database that does not answer (locked, gone, full) is StoreUnavailable."""
        try:
            self._refresh_connection()
            yield
        except _LASTING:
            raise
        except Error as error:
            raise StoreUnavailable(f"The database {self._using!r} failed: {type(error).__name__}") from error

    def _refresh_connection(self) -> None:
        """What Django does around each request: workers have none, and their connections grow old."""
        self._disown_inherited()
        if not connections[self._using].in_atomic_block:  # else it would be closed under the caller's transaction
            connections[self._using].close_if_unusable_or_obsolete()

    def _disown_inherited(self) -> None:
        """After a fork: the parent's connection would break in the parent if it were used here, or even closed."""
        if _used_by.setdefault(self._using, os.getpid()) != os.getpid():
            _inherited.append(connections[self._using])
            del connections[self._using]
            _used_by[self._using] = os.getpid()


@dataclass(frozen=True, slots=True)
class _Lease:
    """Who claims deliveries, when and for how long."""

    owner: str
    now_ms: int
    until_ms: int
    superseded: Callable[[str], bool] | None

    def new_row(self, key: DeliveryKey) -> DeliveryClaim:
        row = DeliveryClaim(message_id=key.message_id, recipient=key.recipient, attempt=key.attempt)
        self._take(row)
        return row

    def claim(self, row: DeliveryClaim, changed: dict[int, DeliveryClaim]) -> ClaimAnswer:
        """Take the row if it may be taken, and say how it stood."""
        key, began_ms = rows.delivery_key(row), row.since_ms
        if row.stage in (Stage.SENT, Stage.FAILED):
            return ClaimAnswer(key, DeliveryState(row.stage), row.external_id, row.reason)
        if row.stage == Stage.SENDING and row.owner == self.owner:
            self._renew(row, changed)
            return ClaimAnswer(key, DeliveryState.CLAIMED)
        if row.stage == Stage.SENDING and row.lease_until_ms > self.now_ms:
            if self.superseded is None or not self.superseded(row.owner):
                return ClaimAnswer(key, DeliveryState.BUSY)
            began_ms = self.now_ms
        was_sending = row.stage == Stage.SENDING
        self._take(row)
        changed[row.pk] = row
        if was_sending:
            row.since_ms = began_ms  # whoever comes to look is no sender: the time to wait goes on
            return ClaimAnswer(key, DeliveryState.ABANDONED, since_ms=began_ms)
        return ClaimAnswer(key, DeliveryState.CLAIMED)

    def _take(self, row: DeliveryClaim) -> None:
        row.stage, row.owner = Stage.SENDING, self.owner
        row.since_ms = row.touched_at_ms = self.now_ms
        row.lease_until_ms = self.until_ms

    def _renew(self, row: DeliveryClaim, changed: dict[int, DeliveryClaim]) -> None:
        if row.lease_until_ms < self.until_ms:
            row.lease_until_ms, row.touched_at_ms = self.until_ms, self.now_ms
            changed[row.pk] = row


def _settle(row: DeliveryClaim, outcome: DeliveryOutcome, *, owner: str) -> bool:
    """Put the outcome down; False when it changes nothing."""
    if row.stage == Stage.SENT:
        return False
    if outcome.external_id is not None:  # evidence counts whoever brings it
        row.stage, row.external_id, row.reason = Stage.SENT, outcome.external_id, None
        return True
    if row.stage != Stage.SENDING or row.owner != owner:
        return False
    if outcome.failed_reason is not None:
        row.stage, row.reason = Stage.FAILED, outcome.failed_reason
    elif outcome.uncertain:
        row.owner, row.lease_until_ms = "", 0  # nobody's, so that its own sender finds it ABANDONED too
    else:
        row.stage = Stage.FREE
    return True


def _key_state(row: IdempotencyKey, *, body_hash: str, now_ms: int) -> KeyState:
    if row.body_hash != body_hash:
        return KeyState.MISMATCH
    if row.is_settled:
        return KeyState.DONE
    return KeyState.RUNNING if row.lease_until_ms > now_ms else KeyState.NEW


def _age_ms(row: IdempotencyKey, now_ms: int) -> int:
    return now_ms - row.accepted_at_ms


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


def _by_source(offsets: Sequence[tuple[TopicPartition, int]]) -> dict[TopicPartition, list[int]]:
    grouped: dict[TopicPartition, list[int]] = {}
    for source, offset in offsets:
        grouped.setdefault(source, []).append(offset)
    return grouped


def _plain(value: Any, connection: BaseDatabaseWrapper) -> Any:
    """As a driver takes it: SQLite's has no UUID, and an enumeration's text is all that is meant."""
    if isinstance(value, UUID):
        return UUIDField().get_db_prep_value(value, connection)
    return str(value) if isinstance(value, str) else value


def _chunks(things: Sequence[Thing]) -> Iterator[Sequence[Thing]]:
    return (things[start : start + CHUNK] for start in range(0, len(things), CHUNK))
