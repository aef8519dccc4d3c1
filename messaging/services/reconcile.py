"""A stretch of the log and the store side by side: what was taken and is not there, is there otherwise or not sent on,
and what is there and was never taken.

Only what the group has committed is judged: the rest is still on its way. The store is never read by time alone, so
that this works on every adapter: rows are looked at in the conversations that the stretch has records of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

from messaging import codec, topics
from messaging.domain import Message, RecipientStatus, StatusChange
from messaging.errors import UndecodableRecord
from messaging.ports import EventLog, MessageStore, NewRecord, Record, TopicPartition
from messaging.services import log_walk
from messaging.services.deliver import MAX_AGE_MS
from messaging.services.unexplained import Rows
from messaging.services.unsent import Unsent
from messaging.topics import Topic

PAGE: Final = 100
TOPICS: Final = (topics.MESSAGES, topics.STATUS_UPDATES)
Offset = tuple[int, int]  # partition, offset

Value = TypeVar("Value", Message, StatusChange)


class Fault(StrEnum):
    MISSING = "not stored"
    DIFFERENT = "stored otherwise"  # a repeat would not change it: a person has to look
    UNSENT = "stored, and nobody sends it"
    UNEXPLAINED = "stored, and no record tells of it"
    NOT_APPLIED = "status not applied"
    UNREADABLE = "unreadable and no dead letter"


REPAIRABLE: Final = frozenset({Fault.MISSING, Fault.UNSENT, Fault.NOT_APPLIED})


@dataclass(frozen=True, slots=True)
class Difference:
    fault: Fault
    record: Record | None = None  # None: there is none
    message_id: UUID | None = None

    def __str__(self) -> str:
        what = f"message {self.message_id}" if self.message_id else "?"
        return f"{_place(self.record)}\t{what}\t{self.fault.value}"


@dataclass(slots=True)
class Counts:
    """What a walk saw so far."""

    records: int = 0
    rows: int = 0
    pending: int = 0  # not committed yet: on their way
    sending: int = 0  # messages whose sends wait on their channel's topic, or are parked
    dead: int = 0  # missing, and rightly: a dead letter
    waiting: int = 0  # statuses whose message is not stored: they wait for it
    faults: Counter[Fault] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Span:
    """Records that were appended from ``since_ms`` on and before ``until_ms``."""

    since_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Places:
    """What is compared."""

    log: EventLog
    store: MessageStore
    group: str


def compare(topic: Topic, span: Span, places: Places, counts: Counts) -> Iterator[list[Difference]]:
    """Page by page, also those without a difference, so that whoever prints progress or wants to stop can."""
    dead = _DeadLetters(topic.name, span.since_ms, places.log)
    for number in range(topic.partitions):
        source = TopicPartition(topic.name, number)
        if topic.name == topics.MESSAGES:
            stretch = _messages(topic, source, span, places, counts)
        else:
            stretch = _statuses(source, span, places, counts)
        for page in stretch:
            found = [each for each in page if not _is_dead(each, dead)]
            counts.dead += len(page) - len(found)
            counts.faults.update(each.fault for each in found)
            yield found


def repair(differences: Sequence[Difference], log: EventLog) -> list[Difference]:
    """Append what is missing again, in its order: the bridge does the work, and repeats change nothing. Those that this
    can't repair are answered. Raises LogUnavailable."""
    again = [each.record for each in differences if each.record and each.fault in REPAIRABLE]
    if again:
        log.append([NewRecord(each.source.topic, each.key, each.value, each.headers) for each in again])
    return [each for each in differences if each.fault not in REPAIRABLE]


class _DeadLetters:
    """Which records of a topic are dead letters; read when the first one is missing. Bounded by the bridge's rate."""

    def __init__(self, topic: str, since_ms: int, log: EventLog) -> None:
        self._source = TopicPartition(topics.dead_letters(topic), 0)
        self._since_ms = since_ms
        self._log = log
        self._places: set[Offset] = set()
        self._next: int | None = None

    def has(self, record: Record) -> bool:
        place = record.source.partition, record.offset
        if place not in self._places:
            self._read_on()
        return place in self._places

    def _read_on(self) -> None:
        if self._next is None:
            self._next = self._log.offset_since(self._source, self._since_ms)
        for page in log_walk.pages(self._source, self._log, start=self._next, until_ms=1 << 53, limit=PAGE):
            for letter in page:
                partition, offset = letter.headers.get("dl-partition", ""), letter.headers.get("dl-offset", "")
                if partition.isdigit() and offset.isdigit():
                    self._places.add((int(partition), int(offset)))
            self._next = page[-1].offset + 1


def _is_dead(difference: Difference, dead: _DeadLetters) -> bool:
    """Rightly not done: a dead letter tells of it."""
    record = difference.record
    return record is not None and difference.fault is not Fault.DIFFERENT and dead.has(record)


def _place(record: Record | None) -> str:
    if record is None:
        return "-"
    return f"{record.source.topic}/{record.source.partition}@{record.offset}"


def _done(source: TopicPartition, span: Span, places: Places, counts: Counts) -> Iterator[list[Record]]:
    """The records that are done, page by page; nothing of a page that is on its way."""
    start = places.log.offset_since(source, span.since_ms)
    # What is committed is read before the store is: whatever lies below was done by then.
    committed = places.log.committed(places.group, source)
    for page in log_walk.pages(source, places.log, start=start, until_ms=span.until_ms, limit=PAGE):
        done = [record for record in page if record.offset < committed]
        counts.records += len(page)
        counts.pending += len(page) - len(done)
        yield done


def _messages(
    topic: Topic, source: TopicPartition, span: Span, places: Places, counts: Counts
) -> Iterator[list[Difference]]:
    rows = Rows(topic, source, since_ms=span.since_ms, log=places.log, store=places.store)
    unsent = Unsent(log=places.log, store=places.store, group=places.group, partitions=topic.partitions)
    for done in _done(source, span, places, counts):
        values, unreadable = _decoded(Message, done)
        rows.meet(message for _, message in values)
        found = [*_unreadable(unreadable), *_judged(values, places.store, unsent)]
        counts.sending += len(unsent.on_their_way)
        yield found
        if rows.is_full:
            yield from _unexplained(rows, done[-1].appended_at_ms, counts)
    yield from _unexplained(rows, span.until_ms, counts)


def _unexplained(rows: Rows, until_ms: int, counts: Counts) -> Iterator[list[Difference]]:
    for looked_at, ids in rows.unexplained(until_ms):
        counts.rows += looked_at
        yield [Difference(Fault.UNEXPLAINED, message_id=each) for each in ids]


def _judged(values: Sequence[tuple[Record, Message]], store: MessageStore, unsent: Unsent) -> Iterator[Difference]:
    stored = store.messages({message.message_id for _, message in values}) if values else {}
    sent_on: dict[UUID, Record] = {}
    for record, message in values:
        found = stored.get(message.message_id)
        if found is None:
            yield Difference(Fault.MISSING, record, message.message_id)
        elif _fixed(found) != _fixed(message):
            yield Difference(Fault.DIFFERENT, record, message.message_id)
        elif record.appended_at_ms - message.accepted_at_ms < MAX_AGE_MS:
            # Of what was appended again much later claims may be gone, while its record is still there.
            sent_on.setdefault(message.message_id, record)
    lost = unsent.lost([stored[message_id] for message_id in sent_on])
    for message_id, record in sent_on.items():
        if message_id in lost:
            yield Difference(Fault.UNSENT, record, message_id)


def _fixed(message: Message) -> Message:
    """Without who was in the conversation: a retry under one Idempotency-Key may have seen others, the first counts."""
    return replace(message, recipients=(), audience=())


def _statuses(source: TopicPartition, span: Span, places: Places, counts: Counts) -> Iterator[list[Difference]]:
    for done in _done(source, span, places, counts):
        values, unreadable = _decoded(StatusChange, done)
        yield [*_unreadable(unreadable), *_unapplied(values, places.store, counts)]


def _unapplied(
    values: Sequence[tuple[Record, StatusChange]], store: MessageStore, counts: Counts
) -> Iterator[Difference]:
    messages = store.messages({change.message_id for _, change in values}) if values else {}
    statuses = store.statuses(list(messages.values())) if messages else {}
    for record, change in values:
        message = messages.get(change.message_id)
        if message is None:
            counts.waiting += 1
        elif not _is_applied(change, statuses[change.message_id], _history(message, store)):
            yield Difference(Fault.NOT_APPLIED, record, change.message_id)


def _history(message: Message, store: MessageStore) -> Callable[[], set[str]]:
    """The news that the store has of a message; asked only when its standing status does not tell."""
    return lambda: {each.change.event_id for each in store.transitions(message)}


def _is_applied(change: StatusChange, standing: Sequence[RecipientStatus], history: Callable[[], set[str]]) -> bool:
    """By what stands; of somebody who is no recipient (the sender's own devices) only the history tells."""
    stands = next((each.rank for each in standing if each.recipient == change.recipient), None)
    return change.event_id in history() if stands is None else stands >= change.rank


def _decoded(kind: type[Value], records: Sequence[Record]) -> tuple[list[tuple[Record, Value]], list[Record]]:
    values: list[tuple[Record, Value]] = []
    unreadable = []
    for record in records:
        try:
            values.append((record, codec.decode(kind, record.value)))
        except UndecodableRecord:
            unreadable.append(record)
    return values, unreadable


def _unreadable(records: Sequence[Record]) -> list[Difference]:
    return [Difference(Fault.UNREADABLE, record) for record in records]
