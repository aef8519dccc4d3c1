"""The event log in this process's memory, for tests and as the model that the durable adapters are compared with."""

from __future__ import annotations

import threading
import uuid
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.clock import SYSTEM_CLOCK, Clock
from messaging.errors import LogUnavailable
from messaging.eventlog.ledger import Beat, Claim, Fetched
from messaging.eventlog.records import check_sizes, key_hash, weight
from messaging.eventlog.subscription import LEASE_TTL_S, LeasedSubscription
from messaging.ports import NewRecord, RebalanceListener, Record, TopicPartition
from messaging.topics import Topic


@dataclass(slots=True)
class _Lease:
    epoch: int = 0
    until_s: float = float("-inf")
    member: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class _Seat:
    instance: str
    until_s: float
    topics: tuple[str, ...]


@dataclass(slots=True)
class _Group:
    generation: int = 0
    seats: dict[str, _Seat] = field(default_factory=dict)
    leases: dict[TopicPartition, _Lease] = field(default_factory=dict)
    committed: dict[TopicPartition, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Partition:
    records: list[Record] = field(default_factory=list)
    start: int = 0  # offset of the first record kept
    bytes: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.records)

    def slice(self, start: int, limit: int) -> list[Record]:
        first = max(0, start - self.start)
        return self.records[first : first + limit]


class _State:
    """What members and appenders share, behind one lock; ``changed`` wakes those who wait for records or the group."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.changed = threading.Condition()
        self.away = False
        self.topics: dict[str, Topic] = {}
        self.partitions: dict[TopicPartition, _Partition] = {}
        self.groups: dict[str, _Group] = {}
        self.readers: dict[str, set[str]] = {}  # topic -> groups

    def check(self) -> None:
        if self.away:
            raise LogUnavailable("The event log (in memory) is away: set_available(True) brings it back")

    def group(self, name: str) -> _Group:
        return self.groups.setdefault(name, _Group())

    def partition(self, source: TopicPartition) -> _Partition:
        return self.partitions.get(source, _Partition())


class MemoryLog:
    """`messaging.ports.EventLog` without a server: nothing outlives the process, nor crosses a fork."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK, lease_ttl_s: float = LEASE_TTL_S) -> None:
        self._state = _State(clock)
        self._clock = clock
        self._lease_ttl_s = lease_ttl_s

    def set_available(self, available: bool) -> None:
        """While False every call raises LogUnavailable, as when a server is away."""
        with self._state.changed:
            self._state.away = not available
            self._state.changed.notify_all()

    def ensure_topics(self, topics: Sequence[Topic]) -> None:
        with self._state.changed:
            self._state.check()
            for topic in topics:
                known = self._state.topics.get(topic.name)
                partitions = known.partitions if known else topic.partitions
                self._state.topics[topic.name] = Topic(topic.name, partitions, topic.retention, topic.max_bytes)
                for each in range(partitions):
                    self._state.partitions.setdefault(TopicPartition(topic.name, each), _Partition())

    def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:  # noqa: ARG002 - never full
        check_sizes(records)
        with self._state.changed:
            self._state.check()
            for record in records:
                if record.topic not in self._state.topics:
                    raise LogUnavailable(f"The event log has no topic {record.topic}: run `manage.py setup_topics`")
            places = [self._append_one(record) for record in records]
            self._state.changed.notify_all()
        return places

    def subscribe(
        self, topics: Sequence[str], *, group: str, member: str, listener: RebalanceListener
    ) -> LeasedSubscription:
        ledger = _MemoryLedger(self._state, topics=topics, group=group, member=member, ttl_s=self._lease_ttl_s)
        return LeasedSubscription(
            ledger, member=member, listener=listener, clock=self._clock, lease_ttl_s=self._lease_ttl_s
        )

    def committed(self, group: str, source: TopicPartition) -> int:
        with self._state.changed:
            self._state.check()
            return self._state.group(group).committed.get(source, self._state.partition(source).start)

    def end_offset(self, source: TopicPartition) -> int:
        with self._state.changed:
            self._state.check()
            return self._state.partition(source).end

    def offset_since(self, source: TopicPartition, since_ms: int) -> int:
        with self._state.changed:
            self._state.check()
            partition = self._state.partition(source)
            return partition.start + bisect_left(partition.records, since_ms, key=lambda each: each.appended_at_ms)

    def read(self, source: TopicPartition, *, start: int, limit: int) -> list[Record]:
        with self._state.changed:
            self._state.check()
            return self._state.partition(source).slice(start, limit)

    def trim(self, now_ms: int) -> int:
        """Apply every topic's retention now; how many records went."""
        with self._state.changed:
            self._state.check()
            return sum(_trim(self._state, now_ms, source) for source in self._state.partitions)

    def ping(self) -> None:
        with self._state.changed:
            self._state.check()

    def warm(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def _append_one(self, new: NewRecord) -> tuple[TopicPartition, int]:
        source = TopicPartition(new.topic, key_hash(new.key) % self._state.topics[new.topic].partitions)
        partition = self._state.partitions[source]
        record = Record(source, partition.end, new.key, new.value, dict(new.headers), self._clock.now_ms())
        partition.records.append(record)
        partition.bytes += weight(record)
        return source, record.offset


class _MemoryLedger:
    """`messaging.eventlog.ledger.Ledger` in memory: the same steps as the Lua scripts', under the one lock."""

    def __init__(self, state: _State, *, topics: Sequence[str], group: str, member: str, ttl_s: float) -> None:
        self._state = state
        self._topics = tuple(sorted(set(topics)))
        self._group = group
        self._member = member
        self._instance = uuid.uuid4().hex
        self._ttl_s = ttl_s
        self._joined = False
        self._generation = 0

    def beat(self, held: Mapping[TopicPartition, int]) -> Beat:
        with self._state.changed:
            self._state.check()
            group = self._state.group(self._group)
            seated = self._sit(group)
            lost = [source for source, epoch in held.items() if not self._renew(group, source, epoch, seated)]
            self._joined = True
            self._generation = group.generation
            partitions = {name: topic.partitions for name, topic in self._state.topics.items()}
            return Beat(seated, {name: seat.topics for name, seat in group.seats.items()}, partitions, lost)

    def acquire(self, sources: Sequence[TopicPartition]) -> dict[TopicPartition, Claim]:
        with self._state.changed:
            self._state.check()
            group = self._state.group(self._group)
            seat = group.seats.get(self._member)
            if seat is None or seat.instance != self._instance:
                return {}
            return {source: self._take(group, source) for source in sources if self._free(group, source)}

    def release(self, held: Mapping[TopicPartition, int]) -> None:
        with self._state.changed:
            self._state.check()
            group = self._state.group(self._group)
            for source, epoch in held.items():
                self._renew(group, source, epoch, seated=False)
            self._stir(group)

    def leave(self) -> None:
        with self._state.changed:
            self._state.check()
            group = self._state.group(self._group)
            seat = group.seats.get(self._member)
            if seat and seat.instance == self._instance:
                del group.seats[self._member]
            self._stir(group)

    def commit(self, offsets: Mapping[TopicPartition, tuple[int, int]]) -> list[TopicPartition]:
        with self._state.changed:
            self._state.check()
            group = self._state.group(self._group)
            refused = []
            for source, (epoch, offset) in offsets.items():
                if self._ours(group, source, epoch):
                    group.committed[source] = max(
                        offset, group.committed.get(source, self._state.partition(source).start)
                    )
                else:
                    refused.append(source)
            return refused

    def fetch(self, positions: Mapping[TopicPartition, int], *, wait_s: float, per_source: int) -> Fetched:
        def arrived() -> bool:
            self._state.check()
            news = any(self._state.partition(source).end > position for source, position in positions.items())
            return news or group.generation > self._generation

        with self._state.changed:
            self._state.check()
            group = self._state.group(self._group)
            self._state.changed.wait_for(arrived, wait_s)
            slices = {
                source: self._state.partition(source).slice(position, per_source)
                for source, position in positions.items()
            }
            records = {source: found for source, found in slices.items() if found}
            return Fetched(records, stirred=group.generation > self._generation)

    def trim(self, now_ms: int, source: TopicPartition) -> bool:
        with self._state.changed:
            self._state.check()
            _trim(self._state, now_ms, source)
            return False

    def unread_sources(self) -> list[TopicPartition]:
        with self._state.changed:
            self._state.check()
            return [source for source in self._state.partitions if not self._state.readers.get(source.topic)]

    def _sit(self, group: _Group) -> bool:
        """Keep or take this member's seat, bury the dead; whether the seat is ours."""
        now_s = self._state.clock.monotonic_s()
        dead = [name for name, seat in group.seats.items() if seat.until_s <= now_s]
        for name in dead:
            del group.seats[name]
        seat = group.seats.get(self._member)
        seated = not self._joined or seat is None or seat.instance == self._instance
        if seated:
            group.seats[self._member] = _Seat(self._instance, now_s + self._ttl_s, self._topics)
            for topic in self._topics:
                self._state.readers.setdefault(topic, set()).add(self._group)
        if dead or (seated and (seat is None or seat.instance != self._instance)):
            self._stir(group)
        return seated

    def _ours(self, group: _Group, source: TopicPartition, epoch: int) -> bool:
        lease = group.leases.get(source)
        return lease is not None and lease.instance == self._instance and lease.epoch == epoch

    def _renew(self, group: _Group, source: TopicPartition, epoch: int, seated: bool) -> bool:
        """Renew a lease of ours, or end it when we have no seat; whether it is ours from now on."""
        if not self._ours(group, source, epoch):
            return False
        ends_s = self._state.clock.monotonic_s() + self._ttl_s if seated else float("-inf")
        group.leases[source].until_s = ends_s
        return seated

    def _free(self, group: _Group, source: TopicPartition) -> bool:
        lease = group.leases.setdefault(source, _Lease())
        return lease.until_s <= self._state.clock.monotonic_s() or lease.member == self._member

    def _take(self, group: _Group, source: TopicPartition) -> Claim:
        until_s = self._state.clock.monotonic_s() + self._ttl_s
        epoch = group.leases[source].epoch + 1
        group.leases[source] = _Lease(epoch, until_s, self._member, self._instance)
        return Claim(epoch, group.committed.get(source, self._state.partition(source).start))

    def _stir(self, group: _Group) -> None:
        group.generation += 1
        self._state.changed.notify_all()


def _trim(state: _State, now_ms: int, source: TopicPartition) -> int:
    """Drop the oldest records that are too old, or too many bytes, and that every group has done with."""
    topic, partition = state.topics[source.topic], state.partitions[source]
    readers = state.readers.get(source.topic, set())
    watermark = min((state.group(name).committed.get(source, 0) for name in readers), default=partition.end)
    oldest_kept_ms = now_ms - int(topic.retention.total_seconds() * 1000)
    dropped = 0
    for record in partition.records:
        fits = topic.max_bytes is None or partition.bytes <= topic.max_bytes
        if record.offset >= watermark or (fits and record.appended_at_ms >= oldest_kept_ms):
            break
        partition.bytes -= weight(record)
        dropped += 1
    del partition.records[:dropped]
    partition.start += dropped
    return dropped
