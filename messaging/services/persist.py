"""Behind `messages`: store, push to users live, hand on to the channels. In this order, repeatable from any point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import Final
from uuid import UUID

from core.clock import SYSTEM_CLOCK, Clock
from core.failpoints import failpoint
from messaging import codec, metrics, topics, tracing
from messaging.domain import Message, Outbound, Party, RecipientStatus, Status, rank
from messaging.ports import EventLog, MessageStore, NewRecord, Notify, Push
from messaging.services.batches import Item, Lease, Outcomes, all_of, decoded
from messaging.services.recent import RecentMessages
from messaging.services.render import message_json
from messaging.work import DONE

Value = tuple[Item, Message]
LATE_MS: Final = 5_000
"""After its acceptance a message that was held up, or replayed, is shown to whoever of its audience is still there."""


def persist(
    items: Sequence[Item],
    *,
    store: MessageStore,
    log: EventLog,
    notify: Notify,
    lease: Lease,
    recent: RecentMessages,
    clock: Clock = SYSTEM_CLOCK,
) -> Outcomes:
    """Raises Unavailable (nothing is done then, all may be repeated) and LeaseLost."""
    values, outcomes = decoded(Message, items)
    messages = [message for _, message in values]
    if not messages:
        return outcomes
    lease.check()
    before = store.save_messages(messages)
    values = _as_stored(values, before, store)
    messages = [message for _, message in values]
    recent.remember(messages)
    failpoint("persist.stored")
    statuses = _standing(messages, before, store)
    seen_by = _audiences(messages, store, clock.now_ms())
    lease.check()
    notify([push for each in messages for push in _pushes(each, statuses[each.message_id], seen_by[each.message_id])])
    outbound = [record for item, message in values for record in _outbound(item, message, clock.now_ms())]
    if outbound:
        lease.check()
        log.append(outbound, onward=True)
    _count(messages, clock.now_ms())
    return outcomes | all_of(values, DONE)


def _as_stored(values: Sequence[Value], before: Set[UUID], store: MessageStore) -> list[Value]:
    """Of records with one id the first counts: a retry of a request may name people who joined meanwhile."""
    first = {message.message_id: message for _, message in reversed(values)}
    if before:
        first |= store.messages(before)
    return [(item, first[message.message_id]) for item, message in values]


def _standing(
    messages: Sequence[Message], before: Set[UUID], store: MessageStore
) -> dict[UUID, Sequence[RecipientStatus]]:
    """Where each stands for its recipients. A user may have read one that was not stored yet; whoever is on a platform
    gets it when it was, so that what is new need not be looked up."""
    found: dict[UUID, Sequence[RecipientStatus]] = {}
    looked_up = []
    for message in messages:
        if message.message_id in before or any(Party.parse(each).is_user for each in message.recipients):
            looked_up.append(message)
        else:
            found[message.message_id] = [
                RecipientStatus(each, Status.SENT, rank(Status.SENT), message.accepted_at_ms)
                for each in message.recipients
            ]
    return found | store.statuses(looked_up) if looked_up else found


def _count(messages: Sequence[Message], now_ms: int) -> None:
    channels = Counter(Party.parse(each).channel for message in messages for each in message.recipients)
    for channel, count in channels.items():
        metrics.STORED.labels(channel or metrics.USERS).inc(count)
    for message in messages:
        metrics.STORED_SECONDS.observe(max(0, now_ms - message.accepted_at_ms) / 1000)


def _audiences(messages: Sequence[Message], store: MessageStore, now_ms: int) -> dict[UUID, Sequence[str]]:
    """Who is shown each: who was in the conversation when it was accepted, without those who left before it came here
    late."""
    late = {each.conversation_id for each in messages if now_ms - each.accepted_at_ms > LATE_MS}
    members = store.members(late) if late else {}
    return {
        each.message_id: [user for user in each.audience if user in members.get(each.conversation_id, each.audience)]
        for each in messages
    }


def _pushes(message: Message, statuses: Sequence[RecipientStatus], audience: Sequence[str]) -> list[Push]:
    body = {"type": "message", "message": message_json(message, statuses)}
    return [Push(user, f"message:{message.message_id}", body) for user in audience]


def _outbound(item: Item, message: Message, now_ms: int) -> list[NewRecord]:
    """One record for each external recipient, on its channel's topic."""
    records = []
    for recipient in message.recipients:
        channel = Party.parse(recipient).channel
        if channel is not None:
            value = codec.encode(Outbound(message=message, recipient=recipient, channel=channel, routed_at_ms=now_ms))
            key, headers = str(message.conversation_id), tracing.onward(item.record)
            records.append(NewRecord(topics.outbound(channel), key, value, headers))
    return records
