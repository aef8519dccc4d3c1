"""Behind `messages`: store, push to users live, hand on to the channels. In this order, repeatable from any point."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from functools import partial
from typing import Final
from uuid import UUID

from core.clock import SYSTEM_CLOCK, Clock
from core.failpoints import failpoint
from messaging import codec, metrics, topics, tracing
from messaging.domain import Message, Outbound, Party, RecipientStatus
from messaging.errors import LogUnavailable
from messaging.ports import EventLog, MessageStore, NewRecord, Notify, Push
from messaging.services.batches import AWAY, Item, Lease, Outcomes, all_of, decoded
from messaging.services.recent import RecentMessages
from messaging.services.render import message_json
from messaging.work import DONE

logger = logging.getLogger(__name__)

Value = tuple[Item, Message]
Values = Sequence[Value]
LATE_MS: Final = 5_000
"""After its acceptance a message that was held up, or replayed, is shown to whoever of its audience is still there."""
PORTION_BYTES: Final = 4 * 1024 * 1024
"""Of one append: a batch to large groups becomes 65 MiB, which no log acknowledges within the time-out of one."""


def persist(
    items: Sequence[Item],
    *,
    store: MessageStore,
    log: EventLog,
    notify: Notify,
    lease: Lease,
    recent: RecentMessages,
    clock: Clock = SYSTEM_CLOCK,
    deadline_s: float = math.inf,
) -> Outcomes:
    """After ``deadline_s`` (monotonic) what goes to channels is left to the next batch, but for the first message's.

    Raises Unavailable (nothing is done then, all may be repeated) and LeaseLost.
    """
    values, outcomes = decoded(partial(codec.decode, Message), items)
    messages = [message for _, message in values]
    if not messages:
        return outcomes
    lease.check()
    saved = store.save_messages(messages)
    values = _as_stored(values, saved.known, store)
    messages = [message for _, message in values]
    recent.remember(messages)
    failpoint("persist.stored")
    statuses = {**saved.statuses, **_standing(messages, saved.known, store)}
    seen_by = _audiences(messages, store, clock.now_ms())
    lease.check()
    notify([push for each in messages for push in _pushes(each, statuses[each.message_id], seen_by[each.message_id])])
    done, left = _handed_on(values, log=log, lease=lease, clock=clock, deadline_s=deadline_s)
    _count(messages[: len(done)], clock.now_ms())
    return outcomes | done | left


def _handed_on(
    values: Values, *, log: EventLog, lease: Lease, clock: Clock, deadline_s: float
) -> tuple[Outcomes, Outcomes]:
    """Outcomes of the messages that the channels' topics have, and of those behind them: the next try must not begin
    with what this one got done, or a batch that is too much for one try would never be. Raises LogUnavailable when
    none is, and LeaseLost.
    """
    done = 0
    for through, records in _portions(values, clock.now_ms()):
        if done and clock.monotonic_s() >= deadline_s:
            return all_of(values[:done], DONE), {}
        lease.check()
        try:
            log.append(records, onward=True)
        except LogUnavailable as error:
            if not done:
                raise
            logger.warning("the log is away, a part of a batch waits", extra={"error": error.detail})
            return all_of(values[:done], DONE), all_of(values[done:], AWAY)
        done = through
    return all_of(values, DONE), {}


def _portions(values: Values, now_ms: int) -> Iterator[tuple[int, list[NewRecord]]]:
    """What goes on to the channels, in order and some at a time, and how many messages are through with it."""
    portion: list[NewRecord] = []
    size = 0
    for number, (item, message) in enumerate(values):
        for record in _outbound(item, message, now_ms):
            if size >= PORTION_BYTES:
                yield number, portion
                portion, size = [], 0
            portion.append(record)
            size += len(record.value)
    if portion:
        yield len(values), portion


def _as_stored(values: Values, known: Set[UUID], store: MessageStore) -> list[Value]:
    """Of records with one id the first counts: a retry of a request may name people who joined meanwhile."""
    first = {message.message_id: message for _, message in reversed(values)}
    if known:
        first |= store.messages(known)
    return [(item, first[message.message_id]) for item, message in values]


def _standing(messages: Sequence[Message], known: Set[UUID], store: MessageStore) -> dict[UUID, list[RecipientStatus]]:
    """Where those stand by now that were stored before."""
    stored = [message for message in messages if message.message_id in known]
    return store.statuses(stored) if stored else {}


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
