"""Dead letters: which there are, and putting them back on the topic that they came from.

Append first, then mark: a replay that dies in between repeats some records, which changes nothing (guarantee 5), and
never forgets one. A send that failed is replayed as a new attempt, which the status machine ranks above the failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Protocol
from uuid import UUID

from messaging import codec, topics, tracing
from messaging.domain import (
    MAX_ATTEMPT,
    InboundEvent,
    InboundReceipts,
    Message,
    Outbound,
    RecipientStatus,
    Status,
    StatusChange,
    rank,
)
from messaging.errors import UndecodableRecord
from messaging.ports import EventLog, MessageStore, NewRecord, Record, TopicPartition
from messaging.services.deliver import UNKNOWN, status_record
from messaging.topics import Topic
from messaging.work import EXPIRED

PARTITIONS: Final = 1 << 31  # more than that no log can number
PAGE: Final = 20  # records read, appended and marked at a time: at most 20 MiB
HEADER_PREFIX: Final = "dl-"
CUT: Final = "dl-cut"  # see `bridge.dead_letters`
REPLAY_OF: Final = "replay-of"
GIVEN_UP: Final = frozenset({EXPIRED, UNKNOWN})  # FAILED with its letter, whatever its status, which may lag, says


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A dead letter's place, written ``messages:0:17``: the topic that it came from, then where it lies now."""

    topic: str
    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> Place:
        """Raises ValueError."""
        match text.rsplit(":", 2):
            case [topic, partition, offset] if topic and _is_number(partition) and _is_number(offset):
                if int(partition) < PARTITIONS:
                    return cls(topic, int(partition), int(offset))
        raise ValueError(f"{text!r} is no dead letter's id")

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. ``value`` is None when it can't be read."""

    place: Place
    record: Record
    value: codec.AnyValue | None

    @property
    def error(self) -> str:
        return self.record.headers.get("dl-error", "")

    @property
    def message_id(self) -> UUID | None:
        match self.value:
            case Message() | StatusChange():
                return self.value.message_id
            case Outbound():
                return self.value.message.message_id
        return None

    @property
    def attempts(self) -> int:
        return self._number("dl-attempts", 0)

    @property
    def first_failed_ms(self) -> int:
        return self._number("dl-first-ms", self.record.appended_at_ms)

    def _number(self, header: str, default: int) -> int:
        text = self.record.headers.get(header, "")
        return int(text) if _is_number(text) else default


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters. Everything that is given must hold; the times are of when they became dead letters."""

    topics: Sequence[Topic]  # that they came from
    since_ms: int = 0
    until_ms: int = 1 << 53
    error: str | None = None
    workspace_id: UUID | None = None  # None: of all, and also those of which nobody can tell


@dataclass(frozen=True, slots=True)
class Page:
    """Chosen letters, how many were looked at to find them, and where to go on; None: those were all."""

    letters: Sequence[Letter]
    looked_at: int
    next: Place | None


@dataclass(frozen=True, slots=True)
class Mark:
    """Says that a letter was replayed. The time tells it from one at the same place of a log that began anew."""

    place: Place
    appended_at_ms: int

    @classmethod
    def of(cls, letter: Letter) -> Mark:
        return cls(letter.place, letter.record.appended_at_ms)


@dataclass(frozen=True, slots=True)
class Replayed:
    by: str
    at_ms: int


class Marks(Protocol):
    """Remembers durably what was replayed."""

    def known(self, marks: Collection[Mark]) -> Mapping[Mark, Replayed]:
        """Those of these that were set."""

    def add(self, marks: Collection[Mark], replayed: Replayed) -> None:
        """Set these; one that is set already stays as it is."""

    def forget(self, *, before: Place) -> None:
        """Drop the marks of its topic and partition at lower offsets."""


class Fate(StrEnum):
    """What a replay does with a letter."""

    REPLAYED = "replayed"
    ALREADY = "already replayed"
    DELIVERED = "delivered meanwhile"
    SPENT = "out of attempts"
    CUT = "cut"  # it was too large to be kept whole: what would go back is not what came


@dataclass(frozen=True, slots=True)
class Verdict:
    letter: Letter
    fate: Fate
    records: Sequence[NewRecord] = ()


# --- looking -------------------------------------------------------------------------------------------------------


def pages(log: EventLog, wanted: Wanted, *, store: MessageStore, start: Place | None = None) -> Iterator[Page]:
    """Topic by topic, oldest first. The end is where it is now: a letter that comes back dead is not met again."""
    sources = [TopicPartition(topics.dead_letters(each.name), 0) for each in wanted.topics]
    ends = {source: log.end_offset(source) for source in sources}
    if start is not None:
        names = [each.name for each in wanted.topics]
        sources = sources[names.index(start.topic) :] if start.topic in names else []
    for number, source in enumerate(sources):
        after = sources[number + 1] if number + 1 < len(sources) else None
        begin = start.offset if start is not None and number == 0 else log.offset_since(source, wanted.since_ms)
        yield from _pages_of(source, begin, ends[source], after, log=log, store=store, wanted=wanted)


def _pages_of(
    source: TopicPartition,
    begin: int,
    end: int,
    after: TopicPartition | None,
    *,
    log: EventLog,
    store: MessageStore,
    wanted: Wanted,
) -> Iterator[Page]:
    following = None if after is None else Place(_origin(after.topic), after.partition, 0)
    while begin < end:
        records = [each for each in log.read(source, start=begin, limit=PAGE) if each.offset < end]
        late = not records or records[-1].appended_at_ms >= wanted.until_ms
        begin = records[-1].offset + 1 if records else end
        is_last = late or begin >= end
        here = Place(_origin(source.topic), source.partition, begin)
        letters = _chosen([letter(each) for each in records], wanted, store)
        yield Page(letters, len(records), following if is_last else here)
        if is_last:
            return


def first_page(
    log: EventLog, wanted: Wanted, *, store: MessageStore, start: Place | None, limit: int, look_at: int
) -> Page:
    """Up to ``limit`` letters; looks at about ``look_at`` records, so that fewer, or none, need not be the end."""
    found: list[Letter] = []
    looked_at = 0
    for page in pages(log, wanted, store=store, start=start):
        looked_at += page.looked_at
        found += page.letters
        if len(found) > limit:
            return Page(found[:limit], looked_at, found[limit].place)
        if len(found) == limit or looked_at >= look_at:
            return Page(found, looked_at, page.next)
    return Page(found, looked_at, None)


def at(log: EventLog, place: Place) -> Letter | None:
    """The letter there, None when there is none (any more)."""
    source = TopicPartition(topics.dead_letters(place.topic), place.partition)
    record = next(iter(log.read(source, start=place.offset, limit=1)), None)
    return letter(record) if record is not None and record.offset == place.offset else None


def letter(record: Record) -> Letter:
    return Letter(Place(_origin(record.source.topic), record.source.partition, record.offset), record, _value(record))


def workspaces(letters: Sequence[Letter], store: MessageStore) -> dict[Place, UUID]:
    """Whose each is, as far as it can be told: a status names only its message, which must be stored."""
    statuses = {each.place: each.value.message_id for each in letters if isinstance(each.value, StatusChange)}
    messages = store.messages(set(statuses.values())) if statuses else {}
    found = {place: messages[id_].workspace_id for place, id_ in statuses.items() if id_ in messages}
    for each in letters:
        match each.value:
            case Message() | InboundEvent() | InboundReceipts():
                found[each.place] = each.value.workspace_id
            case Outbound():
                found[each.place] = each.value.message.workspace_id
    return found


def _chosen(letters: Sequence[Letter], wanted: Wanted, store: MessageStore) -> list[Letter]:
    chosen = [
        each
        for each in letters
        if wanted.since_ms <= each.record.appended_at_ms < wanted.until_ms and wanted.error in (None, each.error)
    ]
    if wanted.workspace_id is None:
        return chosen
    owners = workspaces(chosen, store)
    return [each for each in chosen if owners.get(each.place) == wanted.workspace_id]


def _value(record: Record) -> codec.AnyValue | None:
    with suppress(UndecodableRecord):
        return codec.decode_any(record.value)
    return None


def _origin(topic: str) -> str:
    return topic.removesuffix(topics.DEAD_LETTER_SUFFIX)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


# --- replaying -----------------------------------------------------------------------------------------------------


def judge(letters: Sequence[Letter], *, store: MessageStore, marks: Marks, now_ms: int) -> list[Verdict]:
    """What a replay would do with each; changes nothing."""
    known = marks.known({Mark.of(each) for each in letters})
    standing = _standing(letters, store)
    return [
        Verdict(each, Fate.ALREADY) if Mark.of(each) in known else _judged(each, standing.get(each.place), now_ms)
        for each in letters
    ]


def carry_out(verdicts: Sequence[Verdict], *, log: EventLog, marks: Marks, replayed: Replayed) -> None:
    """Append what is to be replayed, then mark it. Raises LogUnavailable: then run it again, it goes on."""
    records = [record for each in verdicts for record in each.records]
    if records:
        log.append(records)
        marks.add({Mark.of(each.letter) for each in verdicts if each.fate is Fate.REPLAYED}, replayed)


def places(verdicts: Iterable[Verdict]) -> list[Place]:
    """Of what `carry_out` would put back."""
    return [each.letter.place for each in verdicts if each.fate is Fate.REPLAYED]


def forget_gone(log: EventLog, origins: Sequence[Topic], *, marks: Marks) -> None:
    """Drop the marks of letters that the log has not kept either."""
    for each in origins:
        source = TopicPartition(topics.dead_letters(each.name), 0)
        first = next(iter(log.read(source, start=0, limit=1)), None)
        start = first.offset if first is not None else log.end_offset(source)
        marks.forget(before=Place(each.name, source.partition, start))


def tally(verdicts: Iterable[Verdict]) -> Counter[Fate]:
    return Counter(each.fate for each in verdicts)


def _standing(letters: Sequence[Letter], store: MessageStore) -> dict[Place, RecipientStatus]:
    """Where each send that is among them stands, if its message is stored."""
    sends = {each.place: each.value for each in letters if isinstance(each.value, Outbound)}
    messages = store.messages({each.message.message_id for each in sends.values()}) if sends else {}
    statuses = store.statuses(list(messages.values())) if messages else {}
    return {
        place: status
        for place, send in sends.items()
        for status in statuses.get(send.message.message_id, ())
        if status.recipient == send.recipient
    }


def _judged(each: Letter, standing: RecipientStatus | None, now_ms: int) -> Verdict:
    if CUT in each.record.headers:
        return Verdict(each, Fate.CUT)
    if not isinstance(each.value, Outbound) or standing is None:
        return Verdict(each, Fate.REPLAYED, [_again(each, each.record.value)])
    outbound = each.value
    if standing.status in (Status.DELIVERED, Status.READ):
        return Verdict(each, Fate.DELIVERED)
    if standing.rank < rank(Status.FAILED, outbound.attempt) and each.error not in GIVEN_UP:
        # It did not fail, its worker died: the same attempt again, so that a claim left behind is looked into first.
        return Verdict(each, Fate.REPLAYED, [_again(each, each.record.value)])
    if outbound.attempt >= MAX_ATTEMPT:
        return Verdict(each, Fate.SPENT)
    return Verdict(each, Fate.REPLAYED, _new_attempt(each, outbound, now_ms))


def _new_attempt(each: Letter, outbound: Outbound, now_ms: int) -> list[NewRecord]:
    """The number follows from the letter, so that the same letter twice is one attempt."""
    again = replace(outbound, attempt=outbound.attempt + 1, routed_at_ms=now_ms)
    message = outbound.message
    opened = StatusChange(
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        recipient=outbound.recipient,
        status=Status.SENT,
        at_ms=now_ms,
        attempt=again.attempt,
    )
    return [status_record(opened, tracing.onward(each.record)), _again(each, codec.encode(again))]


def _again(each: Letter, value: bytes) -> NewRecord:
    headers = {name: text for name, text in each.record.headers.items() if not name.startswith(HEADER_PREFIX)}
    return NewRecord(each.place.topic, each.record.key, value, {**headers, REPLAY_OF: str(each.place)})
