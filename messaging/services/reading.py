"""Reading back: pages of history, one message with its status history, and telling that something was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from core.clock import SYSTEM_CLOCK, Clock
from messaging import tracing
from messaging.domain import Conversation, Message, RecipientStatus, Status, StatusChange
from messaging.errors import MessageNotFound, NotARecipient
from messaging.ports import EventLog, MessageStore, Transition
from messaging.services.accept import Hints
from messaging.services.deliver import status_record


@dataclass(frozen=True, slots=True)
class Page:
    """Messages newest first with their statuses. ``older`` and ``newer``: the ids to go on from, None at the end."""

    messages: list[Message]
    statuses: dict[UUID, list[RecipientStatus]]
    older: UUID | None
    newer: UUID | None


@dataclass(frozen=True, slots=True)
class Story:
    """One message. ``statuses`` None: accepted and not stored yet."""

    message: Message
    statuses: list[RecipientStatus] | None
    transitions: list[Transition]


def history(
    conversation: Conversation,
    *,
    store: MessageStore,
    before: UUID | None = None,
    after: UUID | None = None,
    limit: int,
) -> Page:
    """A page of a conversation, either way from a message id, or the newest messages."""
    id_ = conversation.conversation_id
    if after is not None:
        found = store.history(id_, after=after, limit=limit + 1)
        page, more = found[:limit][::-1], len(found) > limit
        older = page[-1].message_id if page else None
        newer = page[0].message_id if more else None
    else:
        found = store.history(id_, before=before, limit=limit + 1)
        page, more = found[:limit], len(found) > limit
        older = page[-1].message_id if more else None
        newer = page[0].message_id if page and before is not None else None
    return Page(page, store.statuses(page) if page else {}, older, newer)


def story(message_id: UUID, *, user_id: str, workspace_id: UUID, store: MessageStore, hints: Hints) -> Story:
    """One message with its history, for members of its conversation. Raises MessageNotFound."""
    message = store.message(message_id)
    if message is None:
        hint = hints.get(message_id)
        if hint is None or hint.workspace_id != workspace_id or user_id not in hint.audience:
            raise MessageNotFound
        return Story(hint, None, [])
    _check_visible(message, user_id=user_id, workspace_id=workspace_id, store=store)
    return Story(message, store.statuses([message])[message_id], store.transitions(message))


def mark_read(
    message_id: UUID,
    *,
    user_id: str,
    workspace_id: UUID,
    store: MessageStore,
    hints: Hints,
    log: EventLog,
    clock: Clock = SYSTEM_CLOCK,
) -> StatusChange:
    """Report that this user read a message that was sent to them: on the log when this returns.

    Raises MessageNotFound, and NotARecipient when it was sent to others.
    """
    message = store.message(message_id)
    if message is not None:
        _check_visible(message, user_id=user_id, workspace_id=workspace_id, store=store)
    else:
        message = hints.get(message_id)
        if message is None or message.workspace_id != workspace_id or user_id not in message.audience:
            raise MessageNotFound
    if user_id not in message.recipients:
        raise NotARecipient
    change = StatusChange(
        message_id=message_id,
        conversation_id=message.conversation_id,
        recipient=user_id,
        status=Status.READ,
        at_ms=clock.now_ms(),
    )
    log.append([status_record(change, tracing.of_request())])
    return change


def acknowledge(
    user_id: str, messages: Sequence[tuple[UUID, UUID]], *, log: EventLog, clock: Clock = SYSTEM_CLOCK
) -> None:
    """A device of this user acknowledged these (conversation id, message id), which the gateway had pushed to it."""
    now_ms, headers = clock.now_ms(), tracing.of_request()
    log.append(
        [
            status_record(
                StatusChange(
                    message_id=message_id,
                    conversation_id=conversation_id,
                    recipient=user_id,
                    status=Status.DELIVERED,
                    at_ms=now_ms,
                ),
                headers,
            )
            for conversation_id, message_id in messages
        ]
    )


def _check_visible(message: Message, *, user_id: str, workspace_id: UUID, store: MessageStore) -> None:
    conversation = store.conversation(message.conversation_id)
    if message.workspace_id != workspace_id or conversation is None or user_id not in conversation.members:
        raise MessageNotFound
