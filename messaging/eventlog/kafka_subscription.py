"""A member of a Kafka consumer group as `messaging.ports.Subscription`. Why it is as it is: ADR 0013."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as Place

from core.clock import SYSTEM_CLOCK
from messaging.errors import LeaseLost, LogUnavailable
from messaging.eventlog.kafka_link import KafkaLink, Silence, answers_anew, closed, opened
from messaging.eventlog.kafka_producer import MAX_MESSAGE_BYTES
from messaging.eventlog.records import weight
from messaging.ports import RebalanceListener, Record, TopicPartition

logger = logging.getLogger(__name__)

POLL_RECORDS: Final = 1000
POLL_BYTES: Final = 4 * 1024 * 1024
CONSUME_RECORDS: Final = 200  # taken over from librdkafka at once
QUEUE_KBYTES: Final = 16 * 1024  # what librdkafka fetches ahead, all partitions together
GROUP_TIMEOUT_S: Final = 2.0
PROBE_EVERY_S: Final = 2.0  # of silence: a server that hangs keeps its connections
SEAT_EVERY_S: Final = 1.0
REBALANCE_PATIENCE_S: Final = 2.0
LEAVES_WITHIN_S: Final = 10.0

_REFUSED: Final = frozenset(  # the group goes on without us
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._FENCED,
        KafkaError._FATAL,
        KafkaError._STATE,
    }
)
# While members agree on a new plan a commit names the generation before it (issue 4059): what we own stays ours.
_REBALANCING: Final = frozenset({KafkaError.REBALANCE_IN_PROGRESS, KafkaError.ILLEGAL_GENERATION})


@dataclass(slots=True)
class _Owned:
    """A partition of ours, and what came of it that was not returned yet."""

    epoch: int
    committed: int
    next: int  # the offset that is expected; nothing of ours leaves holes (no compaction, no transactions)
    fetched: deque[Record] = field(default_factory=deque)
    paused: bool = False


class KafkaSubscription:
    """Used by one thread. Its consumer is opened by the first poll and replaced whenever the group refuses it.

    The epoch of a partition is kept in the metadata of its committed offset: a new owner reads it, adds one and commits
    it before it reads any record. The group refuses that commit to whoever is not the owner.
    """

    def __init__(
        self,
        link: KafkaLink,
        topics: Sequence[str],
        *,
        group: str,
        member: str,
        listener: RebalanceListener,
        max_poll_s: float,
        is_seat_taken: Callable[[], bool],
    ) -> None:
        self._link = link
        self._topics = [link.named(topic) for topic in topics]
        self._group = link.named(group)
        self._member = member
        self._listener = listener
        self._max_poll_s = max_poll_s
        self._is_seat_taken = is_seat_taken
        self._consumer: Consumer | None = None
        self._openings = 0
        self._owned: dict[TopicPartition, _Owned] = {}
        self._refused: str | None = None  # why this consumer is of no use any more
        self._is_ousted = False  # a newer run has our static name
        self._awake_s = self._probe_s = time.monotonic()  # awake until then, or waiting on purpose
        self._silence = Silence()
        self._in_doubt = False  # whether what we own is still ours
        self._seat_s = 0.0  # when to ask again whether it is free
        self._turn = 0
        self._closed = False

    def poll(self, timeout_s: float) -> list[Record]:
        try:
            return self._poll(timeout_s)
        except LogUnavailable:
            self._silence.goes_on()
            self._refuse_if_mute()
            raise

    def _poll(self, timeout_s: float) -> list[Record]:
        deadline_s = time.monotonic() + timeout_s
        self._notice_a_nap()
        while True:
            self._ask_if_in_doubt()
            self._start_over_if_refused()
            if self._may_join():
                self._fetch(0 if self._has_records() else max(0.0, deadline_s - time.monotonic()))
            else:
                threading.Event().wait(max(0.0, deadline_s - time.monotonic()))
            self._ask_if_in_doubt()
            if self._refused is None and (records := self._take()):
                return records
            if time.monotonic() >= deadline_s:
                self._start_over_if_refused()
                self._probe()
                return []

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._set_paused([each for each in partitions if each in self._owned and not self._owned[each].paused], True)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Only what was paused: librdkafka would fetch the others twice (issue 2593)."""
        self._set_paused([each for each in partitions if each in self._owned and self._owned[each].paused], False)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        ahead = {
            source: offset
            for source, offset in offsets.items()
            if source in self._owned and offset > self._owned[source].committed
        }
        gone = sorted(offsets.keys() - self._owned.keys())
        if ahead:
            self._commit({source: (self._owned[source].epoch, offset) for source, offset in ahead.items()})
            for source, offset in ahead.items():
                self._owned[source].committed = offset
        if gone:
            raise _not_ours(gone)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        consumer = self._consumer
        if consumer is None:
            return
        with suppress(LogUnavailable):  # what cannot be committed is repeated by the next owner
            self._revoked(sorted(self._owned))
        self._consumer = None
        leaving = _leave(consumer)
        leaving.join(LEAVES_WITHIN_S)
        if leaving.is_alive():
            # A rebalance that comes as the group's own thread ends: the callback asks that thread something, and waits
            # for ever (rd_kafka_rebalance_protocol). The handle stays, the group misses us after a session.
            logger.warning("a consumer does not end: what it had is taken over once the group misses it")

    # --- the consumer ---

    def _may_join(self) -> bool:
        """Whether there is a consumer; a run that was ousted waits until its name is free."""
        if self._consumer is not None:
            return True
        if self._is_ousted:
            if time.monotonic() < self._seat_s:
                return False
            self._seat_s = time.monotonic() + SEAT_EVERY_S
            if self._is_seat_taken():
                return False
            self._is_ousted = False
        self._consumer = self._opened()
        return True

    def _opened(self) -> Consumer:
        session_ms = int(self._link.url.session_timeout_s * 1000)

        self._openings += 1
        mine = self._openings

        def heard(error: KafkaError) -> None:
            if mine == self._openings and self._consumer:  # one that leaves may hear that another has its place
                self._heard(error)

        self._silence = Silence()
        consumer = Consumer(
            {
                **self._link.config(heard),
                "group.id": self._group,
                **({"group.instance.id": self._member} if self._link.url.static else {}),
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": min(session_ms // 3, 500),  # how soon members hear of a change
                "max.poll.interval.ms": max(int(self._max_poll_s * 1000), session_ms),
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "allow.auto.create.topics": False,
                "topic.metadata.refresh.interval.ms": 3000,  # how soon a topic made later is found
                "queued.max.messages.kbytes": QUEUE_KBYTES,
                "message.max.bytes": MAX_MESSAGE_BYTES,
                "fetch.max.bytes": 8 * 1024 * 1024,
                "max.partition.fetch.bytes": 2 * 1024 * 1024,
                "fetch.wait.max.ms": 100,  # a partition that is new or resumed waits for the request under way
                "fetch.error.backoff.ms": 100,
            }
        )
        opened(consumer)
        consumer.subscribe(self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        return consumer

    def _start_over_if_refused(self) -> None:
        """A consumer that the group refused may believe anything of its assignment: a new one knows nothing."""
        if self._refused is None:
            return
        consumer, self._consumer, self._refused = self._consumer, None, None
        lost = sorted(self._owned)
        self._owned.clear()
        if consumer is not None:
            _leave(consumer)
        if lost:
            self._listener.lost(lost)

    def _notice_a_nap(self) -> None:
        """After a pause of most of a session the group may have gone on without us: ask before anything is returned.

        A session counts from the last heartbeat, a third of it before the pause at most.
        """
        now_s = time.monotonic()
        napped_s, self._awake_s = now_s - self._awake_s, now_s
        self._in_doubt |= napped_s >= self._link.url.session_timeout_s / 2

    def _ask_if_in_doubt(self) -> None:
        """Raises LogUnavailable while nobody answers: until then nothing is returned, and nothing that came is lost."""
        if self._in_doubt and self._owned and self._refused is None:
            try:
                self._commit({source: (owned.epoch, owned.committed) for source, owned in self._owned.items()})
            except LeaseLost:
                pass
            except LogUnavailable:
                self._fetch(0)  # the group agrees on nothing without us
                raise
        self._in_doubt = False

    def _probe(self) -> None:
        """Raise LogUnavailable when nothing was heard for a while and nobody answers now."""
        if self._consumer is None or time.monotonic() < self._probe_s:
            return
        with self._link.explained():
            self._consumer.list_topics(topic=self._topics[0], timeout=GROUP_TIMEOUT_S)
        self._silence.broken()
        self._probe_s = time.monotonic() + PROBE_EVERY_S

    def _refuse_if_mute(self) -> None:
        """A consumer that hears nothing is replaced where another client is answered. While none is, another could join
        nothing either."""
        if self._consumer is None or not self._silence.is_long:
            return
        self._silence.broken()  # asked again after as long
        with suppress(KafkaException):
            self._consumer.list_topics(topic=self._topics[0], timeout=GROUP_TIMEOUT_S)
            return  # it is answered: what failed was something else
        if answers_anew(self._link, timeout_s=GROUP_TIMEOUT_S):
            logger.warning("a consumer hears nothing from servers that answer others: another takes its place")
            self._refused = self._refused or "mute"

    def _heard(self, error: KafkaError) -> None:
        if error.fatal():
            self._refuse(error)
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._probe_s = 0.0

    def _refuse(self, error: KafkaError) -> None:
        self._refused = error.name()
        if "FENCED" in error.str().upper() or error.code() in (KafkaError.FENCED_INSTANCE_ID, KafkaError._FENCED):
            self._is_ousted = self._link.url.static

    # --- ownership; called by librdkafka within poll, or within close ---

    def _on_assign(self, consumer: Consumer, places: list[Place]) -> None:
        if consumer is not self._consumer:
            return
        try:
            claims = self._claim(places) if places else {}
        except (LogUnavailable, LeaseLost):
            self._refused = "no claim"  # without an epoch nothing may be read: join again
            consumer.incremental_assign([])
            return
        consumer.incremental_assign(
            [Place(self._link.named(source.topic), source.partition, each.committed) for source, each in claims.items()]
        )
        self._owned |= claims
        if claims:
            self._listener.assigned({source: claims[source].epoch for source in sorted(claims)})

    def _on_revoke(self, consumer: Consumer, places: list[Place]) -> None:
        if consumer is not self._consumer:
            return
        try:
            self._revoked(self._mine(places))
        finally:
            consumer.incremental_unassign(places)

    def _on_lost(self, consumer: Consumer, places: list[Place]) -> None:
        if consumer is not self._consumer:
            return
        lost = self._mine(places)
        self._let_go(lost)
        consumer.incremental_unassign(places)
        if lost:
            self._listener.lost(lost)

    def _mine(self, places: list[Place]) -> list[TopicPartition]:
        return sorted(source for place in places if (source := self._source(place)) in self._owned)

    def _revoked(self, sources: list[TopicPartition]) -> None:
        if not sources:
            return
        try:
            self._listener.revoked(sources)
        finally:
            self._awake_s = time.monotonic()  # draining is no nap: the session goes on meanwhile
            self._let_go(sources)

    def _let_go(self, sources: Sequence[TopicPartition]) -> None:
        """librdkafka keeps a partition paused over rebalances (issue 1849): one that comes back would never be read."""
        try:
            self.resume(sources)
        except LogUnavailable:
            self._refused = "paused for ever"
        for source in sources:
            self._owned.pop(source, None)

    def _claim(self, places: list[Place]) -> dict[TopicPartition, _Owned]:
        """Take these under a new epoch. It follows the clock too: whoever resets a group's offsets by hand takes the
        metadata away."""
        assert self._consumer is not None  # noqa: S101
        claims = {}
        with self._link.explained():
            committed = self._consumer.committed(places, timeout=GROUP_TIMEOUT_S)
            until_s = time.monotonic() + GROUP_TIMEOUT_S
            for place in committed:
                if place.error:
                    raise KafkaException(place.error)
                offset = self._start(place) if place.offset < 0 else self._checked(place, until_s)
                epoch = max(_epoch_of(place) + 1, SYSTEM_CLOCK.now_ms())
                claims[self._source(place)] = _Owned(epoch, offset, offset)
        self._commit({source: (claim.epoch, claim.committed) for source, claim in claims.items()})
        return claims

    def _start(self, place: Place) -> int:
        """Where the log begins, for a group that never committed."""
        assert self._consumer is not None  # noqa: S101
        return self._consumer.get_watermark_offsets(Place(place.topic, place.partition), timeout=GROUP_TIMEOUT_S)[0]

    def _checked(self, place: Place, until_s: float) -> int:
        """The committed offset, or where the log begins if it ends before: whatever came to be there was never read.

        A partition that has no leader now is not waited for: the others are ours meanwhile.
        """
        assert self._consumer is not None  # noqa: S101
        left_s = max(0.01, until_s - time.monotonic())
        try:
            first, end = self._consumer.get_watermark_offsets(Place(place.topic, place.partition), timeout=left_s)
        except KafkaException:
            return place.offset
        if place.offset <= end:
            return place.offset
        logger.error(
            "the log ends before what the group committed: its end was lost, or the topic was made again; "
            "all of it is read again",
            extra={
                "topic": self._source(place).topic,
                "partition": place.partition,
                "committed": place.offset,
                "offset": first,
                "end": end,
            },
        )
        return first

    def _commit(self, offsets: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """Commit partition -> (epoch, offset) for all of them. Raises LeaseLost when the group refuses us."""
        deadline_s = time.monotonic() + REBALANCE_PATIENCE_S
        while (error := self._commit_once(offsets)) is not None:
            is_late = time.monotonic() >= deadline_s
            if error.code() in _REFUSED or (error.code() == KafkaError.ILLEGAL_GENERATION and is_late):
                self._refuse(error)
                raise _not_ours(sorted(offsets))
            if error.code() not in _REBALANCING or is_late:
                raise self._link.unavailable(f"took no commit: {error.name()}")
            threading.Event().wait(0.02)  # the plan comes as soon as its leader made it
        self._link.presence.answered()
        self._silence.broken()

    def _commit_once(self, offsets: Mapping[TopicPartition, tuple[int, int]]) -> KafkaError | None:
        assert self._consumer is not None  # noqa: S101 - only what is owned is committed
        places = [
            Place(self._link.named(source.topic), source.partition, offset, metadata=str(epoch))
            for source, (epoch, offset) in offsets.items()
        ]
        try:
            results = self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            return error.args[0]  # type: ignore[no-any-return]
        return next((each.error for each in results if each.error), None)

    # --- records ---

    def _set_paused(self, sources: Sequence[TopicPartition], paused: bool) -> None:
        if not sources or self._consumer is None:
            return
        places = [Place(self._link.named(source.topic), source.partition) for source in sources]
        with self._link.explained():
            (self._consumer.pause if paused else self._consumer.resume)(places)
        for source in sources:
            self._owned[source].paused = paused

    def _has_records(self) -> bool:
        return any(owned.fetched and not owned.paused for owned in self._owned.values())

    def _fetch(self, timeout_s: float) -> None:
        """Run the group's business and take over what arrived, as much as one poll may return."""
        assert self._consumer is not None  # noqa: S101
        had_some = self._has_records()
        self._awake_s = time.monotonic() + timeout_s
        message = self._consumer.poll(timeout_s)
        self._notice_a_nap()
        if message is None:
            return
        room = POLL_RECORDS - self._heard_of([message])
        if had_some:
            return
        size = 0
        while room > 0 and size < POLL_BYTES and self._refused is None:
            messages = self._consumer.consume(min(room, CONSUME_RECORDS), 0)
            if not messages:
                return
            size += sum(len(each) for each in messages)
            room -= self._heard_of(messages)

    def _heard_of(self, messages: Sequence[Message]) -> int:
        """Keep what is ours; how many messages there were."""
        for message in messages:
            if error := message.error():
                self._heard(error)
                continue
            record = self._record(message)
            if owned := self._owned.get(record.source):
                self._check_for_a_gap(owned, record)
                owned.fetched.append(record)
                self._silence.broken()
                self._probe_s = self._awake_s + PROBE_EVERY_S
        return len(messages)

    def _check_for_a_gap(self, owned: _Owned, record: Record) -> None:
        """librdkafka goes on in silence where the log begins, when retention took what was not read yet."""
        if record.offset > owned.next:
            logger.error(
                "records are gone that were never read: retention is shorter than the lag",
                extra={
                    "topic": record.source.topic,
                    "partition": record.source.partition,
                    "offset": owned.next,
                    "count": record.offset - owned.next,
                },
            )
        owned.next = record.offset + 1

    def _take(self) -> list[Record]:
        """What may be returned, within the bounds of one poll."""
        taken: list[Record] = []
        size = 0
        for owned in self._in_turn():
            while owned.fetched and not owned.paused:
                size += weight(owned.fetched[0])
                if taken and (len(taken) == POLL_RECORDS or size > POLL_BYTES):
                    return taken
                taken.append(owned.fetched.popleft())
        self._turn += 1
        return taken

    def _in_turn(self) -> list[_Owned]:
        """Our partitions, beginning with another one each time: a busy one does not starve the others."""
        owned = [self._owned[source] for source in sorted(self._owned)]
        start = self._turn % len(owned) if owned else 0
        return owned[start:] + owned[:start]

    def _record(self, message: Message) -> Record:
        return record_of(message, self._link)

    def _source(self, place: Place) -> TopicPartition:
        return TopicPartition(self._link.ours(place.topic), place.partition)


def record_of(message: Message, link: KafkaLink) -> Record:
    """What others may have left out is empty: key, value, headers."""
    headers: Any = message.headers() or ()
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None  # noqa: PT018, S101 - it has no error
    return Record(
        source=TopicPartition(link.ours(topic), partition),
        offset=offset,
        key=(message.key() or b"").decode(errors="replace"),
        value=message.value() or b"",
        headers={name: (value or b"").decode(errors="replace") for name, value in headers},
        appended_at_ms=message.timestamp()[1],
    )


def _leave(consumer: Consumer) -> threading.Thread:
    """On a thread: leaving waits for the servers, and whoever polls does not."""

    def leave() -> None:
        consumer.close()
        closed(consumer)

    leaving = threading.Thread(target=leave, name="kafka-leaves", daemon=True)
    leaving.start()
    return leaving


def _epoch_of(place: Place) -> int:
    return int(place.metadata) if place.metadata and place.metadata.isdigit() else 0


def _not_ours(sources: Sequence[TopicPartition]) -> LeaseLost:
    return LeaseLost("not ours any more: " + ", ".join(f"{each.topic}/{each.partition}" for each in sources))
