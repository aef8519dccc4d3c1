"""What happens between a POST and its 202: who may do this, a claim where a key is given, and the append.

After the 202 nothing can lose the message; before it, whatever fails may simply be tried again. Many messages of one
request are checked one by one and appended at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, Self
from uuid import UUID

from core.clock import SYSTEM_CLOCK, Clock, iso_utc
from core.errors import Chat4AllError, FieldError, InvalidRequest, NotFound
from core.failpoints import failpoint
from core.ids import batch_id, derived_id, uuid7, uuid7_ms
from messaging import codec, metrics, topics, tracing
from messaging.domain import Conversation, Message, Party, Status
from messaging.errors import (
    ConversationNotFound,
    IdempotencyInProgress,
    IdempotencyMismatch,
    RecipientNotFound,
    SenderMismatch,
    StoreUnavailable,
)
from messaging.ports import EventLog, KeyClaim, KeyState, MessageStore, NewRecord, Notify
from messaging.services.conversations import ConversationCache, Parties, announce, check_new_id

KEY_LEASE_MS: Final = 6_000  # longer than an append may take
MAX_BATCH: Final = 500

Find = Callable[[UUID], Message | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A message as a client posts it; the shape is checked, the sense is not."""

    workspace_id: UUID
    user_id: str
    conversation: str
    sender_id: str | None = None
    recipient_id: str | None = None
    content: str = ""
    file_id: str | None = None
    reply_to: UUID | None = None
    idempotency_key: str | None = None

    @property
    def body_hash(self) -> str:
        """Equal for equal requests."""
        parts = (self.conversation, self.recipient_id, self.content, self.file_id, str(self.reply_to))
        return _hash_of(parts)


def _hash_of(parts: Sequence[str | None]) -> str:
    return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class NoDraft:
    """What a client posted as a message and is none, and why."""

    body: object  # as its JSON was read
    error: Chat4AllError

    @property
    def body_hash(self) -> str:
        """As that of a draft."""
        return _hash_of([json.dumps(self.body, sort_keys=True)])


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer of a 202. ``replay``: the same answer as to an earlier request with this Idempotency-Key."""

    message_id: UUID
    conversation: str
    accepted_at_ms: int
    replay: bool = False

    def as_json(self) -> dict[str, object]:
        return {
            "message_id": str(self.message_id),
            "conversation_id": self.conversation,
            "status": Status.ACCEPTED.value,
            "accepted_at": iso_utc(self.accepted_at_ms),
        }


class Hints(Protocol):
    """Accepted messages that may not be stored yet, kept for a minute so that GET can answer ACCEPTED. Best effort."""

    def put(self, messages: Mapping[UUID, bytes]) -> None:
        """By id, as the log has them. Never raises."""

    def get(self, message_id: UUID) -> Message | None:
        """None when unknown or when the hints are away. What is unknown takes a moment: it may be on its way."""

    def accepted(self, message_ids: Collection[UUID]) -> list[Message]:
        """Those of these that are known, at once."""

    def end_try(self, workspace_id: UUID, sender_id: str, key: str, *, keep_ms: int) -> None:
        """A request with this Idempotency-Key ended, and could not say so in the store. Never raises."""

    def has_ended(self, workspace_id: UUID, sender_id: str, key: str) -> bool:
        """Whether that was said of it within ``keep_ms``; False when the hints are away."""


class Files(Protocol):
    """Files that messages carry."""

    def size(self, file_id: str, *, workspace_id: UUID, user_id: str) -> int:
        """In bytes. Raises FileNotFound unless this user may see the file."""

    def attach(self, file_id: str, *, conversation_id: UUID) -> None:
        """The conversation's members may see the file from now on."""


class Channels(Protocol):
    """What channels can take."""

    def check_content(self, channel: str, *, content: str, media_bytes: int | None) -> None:
        """Raises InvalidRequest at the field that the channel would refuse."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything that accepting needs."""

    log: EventLog
    store: MessageStore
    parties: Parties
    channels: Channels
    files: Files
    hints: Hints
    notify: Notify
    cache: ConversationCache
    clock: Clock = SYSTEM_CLOCK


def accept(draft: Draft, desk: Desk) -> Accepted:
    """Take a message: it is on the log when this returns.

    Raises SenderMismatch, ConversationNotFound, RecipientNotFound, InvalidRequest and the errors of
    Idempotency-Keys for what the client did; LogUnavailable and StoreUnavailable for what we could not.
    """
    _check_sender(draft)
    if draft.idempotency_key is None:
        message, planned = _checked(draft, uuid7(), desk)
        _append([_prepared(draft, message, planned, desk)], desk)
        return _answer(message)
    return _accept_once(draft, Try.of(draft, draft.idempotency_key), desk)


def accept_many(
    drafts: Sequence[Draft | NoDraft], desk: Desk, *, key: str | None = None
) -> list[Accepted | Chat4AllError]:
    """Take up to MAX_BATCH messages of one user: those that are accepted are on the log when this returns, in their
    order; the others come with the reason.

    Under a ``key`` the same request again appends nothing twice: it answers what was accepted as a replay, and looks
    again at what was refused. Raises what `accept` raises for the key, and for what we could not: then a part of
    them may be on the log.
    """
    good = [draft for draft in drafts if isinstance(draft, Draft)]
    base = uuid7()
    if key is None or not good:
        return _accept_all(drafts, base, set(), desk)
    # All of them, in their order: ids go by place, and what is no draft moves those behind it.
    once = Try(good[0].workspace_id, good[0].user_id, key, _hash_of([draft.body_hash for draft in drafts]))
    claim = _claimed(once, batch_id(base, 0), desk)
    before = _taken_before(claim.message_id, len(drafts), desk) if claim.state is KeyState.DONE else set()
    try:
        answers = _accept_all(drafts, claim.message_id, before, desk)
    except Exception:
        if claim.state is KeyState.NEW:
            _end_try(desk.store.release_key, once, desk)
        raise
    if claim.state is KeyState.NEW:
        _end_try(desk.store.settle_key, once, desk)
    return answers


def _accept_all(
    drafts: Sequence[Draft | NoDraft], base: UUID, before: Set[UUID], desk: Desk
) -> list[Accepted | Chat4AllError]:
    answers: list[Accepted | Chat4AllError] = []
    messages = []
    good = [draft for draft in drafts if isinstance(draft, Draft)]
    answered = _known_messages({each.reply_to for each in good if each.reply_to}, desk)
    desk.cache.prepare({derived_id(each.workspace_id, each.conversation) for each in good}, desk.store.conversations)
    for number, draft in enumerate(drafts):
        message_id = batch_id(base, number)
        if isinstance(draft, NoDraft):
            answers.append(draft.error)
        elif message_id in before:
            answers.append(Accepted(message_id, draft.conversation, uuid7_ms(message_id), replay=True))
        else:
            try:
                _check_sender(draft)
                message, planned = _checked(draft, message_id, desk, answered.get)
                messages.append(_prepared(draft, message, planned, desk))
                answers.append(_answer(message))
            except Chat4AllError as error:
                if error.http_status >= 500:
                    raise
                answers.append(error)
    if messages:
        _append(messages, desk)
    return answers


def _taken_before(base: UUID, count: int, desk: Desk) -> set[UUID]:
    """What an earlier request with the same key had accepted. What neither store nor hints have yet is appended again
    under the same id, which changes nothing."""
    ids = [batch_id(base, number) for number in range(count)]
    return set(_known_messages(ids, desk))


def _known_messages(ids: Collection[UUID], desk: Desk) -> dict[UUID, Message]:
    """Those of these that are stored, or accepted and not stored yet."""
    stored = desk.store.messages(ids) if ids else {}
    missing = [each for each in ids if each not in stored]
    return stored | {each.message_id: each for each in (desk.hints.accepted(missing) if missing else ())}


def _answer(message: Message) -> Accepted:
    return Accepted(message.message_id, message.conversation, message.accepted_at_ms)


def _check_sender(draft: Draft) -> None:
    if draft.sender_id is not None and draft.sender_id != draft.user_id:
        raise SenderMismatch(
            fields=[FieldError("sender_id", "sender_mismatch", "must be your own user id, or left out")]
        )


def _checked(
    draft: Draft, message_id: UUID, desk: Desk, find: Find | None = None
) -> tuple[Message, Conversation | None]:
    """The message, and the conversation that it opens: everything is checked before anything is changed."""
    known = _known(draft, desk)
    conversation = known or _planned(draft, desk)
    message = _message(draft, message_id, conversation, desk, find or partial(_found, desk=desk))
    return message, None if known else conversation


def _found(message_id: UUID, *, desk: Desk) -> Message | None:
    return desk.store.message(message_id) or desk.hints.get(message_id)  # perhaps not stored yet


@dataclass(frozen=True, slots=True)
class Try:
    """A request under an Idempotency-Key."""

    workspace_id: UUID
    sender_id: str
    key: str
    body_hash: str

    @classmethod
    def of(cls, draft: Draft, key: str) -> Self:
        return cls(draft.workspace_id, draft.user_id, key, draft.body_hash)


def _accept_once(draft: Draft, once: Try, desk: Desk) -> Accepted:
    try:
        message, planned = _checked(draft, uuid7(), desk)
    except StoreUnavailable:
        raise  # to ask it anything more would only take as long again
    except Chat4AllError:
        # What was answered once stays the answer, even if today the same request would be refused.
        answered = desk.store.answered_key(
            workspace_id=once.workspace_id,
            sender_id=once.sender_id,
            key=once.key,
            body_hash=once.body_hash,
            now_ms=desk.clock.now_ms(),
        )
        if answered is None:
            raise
        return Accepted(answered, draft.conversation, uuid7_ms(answered), replay=True)
    claim = _claimed(once, message.message_id, desk)
    answer = Accepted(claim.message_id, message.conversation, uuid7_ms(claim.message_id))
    if claim.state is KeyState.DONE:
        return replace(answer, replay=True)
    try:
        _append([_prepared(draft, _with_id(message, claim.message_id), planned, desk)], desk)
    except Exception:
        _end_try(desk.store.release_key, once, desk)
        raise
    _end_try(desk.store.settle_key, once, desk)
    return answer


def _end_try(end: Callable[..., None], once: Try, desk: Desk) -> None:
    """Nobody need wait for the lease any more. Without the store it stays open what came of the request: what its
    client is told is settled all the same, and a retry appends the same id again."""
    try:
        end(workspace_id=once.workspace_id, sender_id=once.sender_id, key=once.key)
    except StoreUnavailable:
        desk.hints.end_try(once.workspace_id, once.sender_id, once.key, keep_ms=KEY_LEASE_MS)


def _claimed(once: Try, message_id: UUID, desk: Desk) -> KeyClaim:
    """The key's claim, NEW or DONE. Raises IdempotencyMismatch and IdempotencyInProgress."""
    try:
        claim = desk.store.claim_key(
            workspace_id=once.workspace_id,
            sender_id=once.sender_id,
            key=once.key,
            body_hash=once.body_hash,
            message_id=message_id,
            now_ms=desk.clock.now_ms(),
            lease_ms=KEY_LEASE_MS,
        )
    except StoreUnavailable:  # its answer may be lost, and the claim be there
        desk.hints.end_try(once.workspace_id, once.sender_id, once.key, keep_ms=KEY_LEASE_MS)
        raise
    if claim.state is KeyState.MISMATCH:
        raise IdempotencyMismatch
    if claim.state is KeyState.RUNNING:
        # Should another request hold it after all, the log has the same id twice, which changes nothing.
        if not desk.hints.has_ended(once.workspace_id, once.sender_id, once.key):
            raise IdempotencyInProgress(retry_after_s=1)
        return replace(claim, state=KeyState.NEW)
    return claim


def _prepared(draft: Draft, message: Message, planned: Conversation | None, desk: Desk) -> Message:
    """Make the changes that a message brings, but for its record: the conversation that it opens, who may see its
    file. The message as it goes on the log."""
    if planned is not None:
        message = _in_stored(draft, message, _created(draft, planned, desk), desk)
    if message.file_id is not None:
        desk.files.attach(message.file_id, conversation_id=message.conversation_id)
    return message


def _append(messages: Sequence[Message], desk: Desk) -> None:
    headers = tracing.of_request()
    encoded = {each.message_id: codec.encode(each) for each in messages}
    records = [
        NewRecord(topics.MESSAGES, str(each.conversation_id), encoded[each.message_id], headers) for each in messages
    ]
    with metrics.APPEND_SECONDS.time():
        desk.log.append(records)
    failpoint("accept.appended")
    metrics.ACCEPTED.inc(len(messages))
    desk.hints.put(encoded)


def _known(draft: Draft, desk: Desk) -> Conversation | None:
    """The conversation, if there is one. Raises ConversationNotFound when the sender is not in it."""
    conversation_id = derived_id(draft.workspace_id, draft.conversation)
    conversation = desk.cache.get(conversation_id, desk.store.conversation)
    if conversation is not None and not _has_both(conversation, draft, desk):
        desk.cache.forget(conversation_id)  # whoever was just added through another process is in by now
        conversation = desk.cache.get(conversation_id, desk.store.conversation)
    if conversation is not None and draft.user_id not in conversation.members:
        raise ConversationNotFound
    return conversation


def _has_both(conversation: Conversation, draft: Draft, desk: Desk) -> bool:
    """The sender, and the recipient that was named."""
    if draft.user_id not in conversation.members:
        return False
    named = draft.recipient_id
    return named is None or named in conversation.members or _recipient(draft, named, desk) in conversation.members


def _planned(draft: Draft, desk: Desk) -> Conversation:
    """The conversation that a first message opens with its recipient; nothing is stored yet."""
    if draft.recipient_id is None:
        raise ConversationNotFound
    check_new_id(draft.conversation)
    recipient = _recipient(draft, draft.recipient_id, desk)
    if recipient == draft.user_id:
        raise RecipientNotFound.at("recipient_id", "a new conversation needs somebody else", code="recipient_is_sender")
    return Conversation(
        conversation_id=derived_id(draft.workspace_id, draft.conversation),
        workspace_id=draft.workspace_id,
        public_id=draft.conversation,
        title="",
        members=(draft.user_id, recipient),
        created_by=draft.user_id,
        created_at_ms=desk.clock.now_ms(),
    )


def _created(draft: Draft, planned: Conversation, desk: Desk) -> Conversation:
    """The conversation as it is stored. Raises ConversationNotFound when somebody else was first with that id."""
    conversation, new = desk.store.create_conversation(planned)
    if draft.user_id not in conversation.members:
        raise ConversationNotFound
    if new:
        announce(conversation, parties=desk.parties, notify=desk.notify, event="created")
    return conversation


def _in_stored(draft: Draft, message: Message, stored: Conversation, desk: Desk) -> Message:
    """The message as the stored conversation has it: a member of ours may have opened it with others meanwhile."""
    return replace(message, recipients=_recipients(draft, stored, desk), audience=_audience(stored))


def _message(draft: Draft, message_id: UUID, conversation: Conversation, desk: Desk, find: Find) -> Message:
    """The message with everything fixed that later steps need; ``find`` knows the one that it answers."""
    recipients = _recipients(draft, conversation, desk)
    media_bytes = _file_bytes(draft, draft.file_id, desk) if draft.file_id is not None else None
    for channel in {Party.parse(recipient).channel for recipient in recipients} - {None}:
        desk.channels.check_content(str(channel), content=draft.content, media_bytes=media_bytes)
    if draft.reply_to is not None:
        answered = find(draft.reply_to)
        if answered is None or answered.conversation_id != conversation.conversation_id:
            raise InvalidRequest.at("reply_to", "no such message in this conversation", code="message_not_found")
    return Message(
        message_id=message_id,
        workspace_id=draft.workspace_id,
        conversation_id=conversation.conversation_id,
        conversation=conversation.public_id,
        sender_id=draft.user_id,
        recipient_id=draft.recipient_id,
        recipients=recipients,
        audience=_audience(conversation),
        content=draft.content,
        file_id=draft.file_id,
        reply_to=draft.reply_to,
        accepted_at_ms=uuid7_ms(message_id),
    )


def _recipients(draft: Draft, conversation: Conversation, desk: Desk) -> tuple[str, ...]:
    """The one asked for, or all other members."""
    if draft.recipient_id is None:
        return tuple(member for member in conversation.members if member != draft.user_id)
    recipient = draft.recipient_id
    if recipient not in conversation.members:
        recipient = _recipient(draft, recipient, desk)
    if recipient not in conversation.members:
        raise RecipientNotFound.at("recipient_id", "not a member of this conversation", code="recipient_not_a_member")
    return (recipient,)


def _audience(conversation: Conversation) -> tuple[str, ...]:
    return tuple(member for member in conversation.members if Party.parse(member).is_user)


def _file_bytes(draft: Draft, file_id: str, desk: Desk) -> int:
    try:
        return desk.files.size(file_id, workspace_id=draft.workspace_id, user_id=draft.user_id)
    except NotFound as error:
        error.fields = (FieldError("file_id", error.code, error.detail),)
        raise


def _recipient(draft: Draft, recipient_id: str, desk: Desk) -> str:
    try:
        return desk.parties.normalize(draft.workspace_id, recipient_id)
    except InvalidRequest as error:
        error.fields = (FieldError("recipient_id", error.code, error.detail),)
        raise


def _with_id(message: Message, message_id: UUID) -> Message:
    """The same message under the id that the first request with its key claimed."""
    return replace(message, message_id=message_id, accepted_at_ms=uuid7_ms(message_id))
