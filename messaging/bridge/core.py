"""The decisions of a bridge, without threads or a clock of their own: lanes, window, watermark."""

from __future__ import annotations

import logging
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from core.clock import Clock
from messaging import metrics
from messaging.ports import Record, TopicPartition
from messaging.topics import INBOUND, MESSAGES, STATUS_UPDATES, channel_of
from messaging.work import (
    MOST_BYTES,
    MOST_RECORDS,
    NOT_STARTED,
    Batch,
    BatchState,
    Completion,
    LaneId,
    Outcome,
    Verdict,
    Work,
)

logger = logging.getLogger(__name__)

LONGER: Final = 5  # times, for what platforms tell: it was under way for longer, and a tick may come a moment later
TOGETHER: Final = frozenset({MESSAGES, STATUS_UPDATES})  # whose batches wait for our own parts alone
MAX_CRASHES: Final = 3  # a record that killed this many workers alone is dead


@dataclass(frozen=True, slots=True)
class BridgeLimits:
    """Everything that bounds a bridge; sizes per partition."""

    lanes: int = 1  # few: what waits behind the batch in flight goes together next, which is where the speed is
    platform_lanes: int = 2  # of topics whose batches wait for platforms: while one does another may be at work
    batch_records: int = MOST_RECORDS
    batch_bytes: int = MOST_BYTES
    window_records: int = 2_000
    window_bytes: int = 16 * 1024 * 1024
    span: int = 5  # times the window: finished records behind an unfinished one, which a restart repeats
    resume_at: float = 0.8  # of the window
    commit_every_s: float = 1.0
    inspect_every_s: float = 0.5
    lost_after_s: float = 3.0  # neither in the queue nor started: perhaps just being taken out of it
    queued_for_s: float = 30.0  # not started after this long: dispatch again whatever the queue says
    gather_s: float = 0.01  # after a batch, while the next one grows; what comes later than that goes at once
    drain_s: float = 4.5  # on revoke; the port allows 5
    dead_letters_per_minute: int = 60  # over that the record waits instead: a broken release must not drain a topic

    def lanes_of(self, topic: str) -> int:
        """Of each partition."""
        waits = channel_of(topic) or topic == INBOUND  # for an answer; for a file
        return self.platform_lanes if waits else self.lanes

    def gathers_s(self, topic: str) -> float:
        """How long a lane of it gathers after a batch, unless a full one is there before."""
        return LONGER * self.gather_s if topic in (INBOUND, STATUS_UPDATES) else self.gather_s


class Watermark:
    """The lowest unfinished offset of a partition, whatever order the records behind it end in."""

    def __init__(self) -> None:
        self._open: deque[int] = deque()  # offsets in order
        self._done: set[int] = set()
        self._next: int | None = None

    def __len__(self) -> int:
        """Unfinished records."""
        return len(self._open) - len(self._done)

    @property
    def span(self) -> int:
        """Records from the first unfinished one on, finished or not: what a restart would repeat."""
        return len(self._open)

    def opened(self, offset: int) -> None:
        """A record was read; offsets come in growing order."""
        self._open.append(offset)
        self._next = offset + 1

    def finished(self, offset: int) -> None:
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            self._done.remove(self._open.popleft())

    @property
    def offset(self) -> int | None:
        """Where the group reads next after a restart; None while nothing was read."""
        return self._open[0] if self._open else self._next


@dataclass(frozen=True, slots=True)
class Dead:
    """A record on its way to the dead letters, and the stable code that says why."""

    work: Work
    reason: str


@dataclass(slots=True)
class _Lane:
    """Records in order, one batch in flight; a key that failed waits apart with all of its later records."""

    ready: deque[Work] = field(default_factory=deque)
    held: dict[str, deque[Work]] = field(default_factory=dict)
    due_s: dict[str, float] = field(default_factory=dict)  # by held key, monotonic
    in_flight: Batch | None = None
    dispatched_s: float = 0.0
    gathers_until_s: float = 0.0  # monotonic
    max_records: int | None = None  # set while bisecting a batch that killed its worker
    has_more: bool = False  # than one task does, as its last batch showed
    lapsed: dict[str, tuple[Work, ...]] = field(default_factory=dict)  # by epoch: its worker's death may be told late

    def add(self, work: Work) -> None:
        self.held.get(work.record.key, self.ready).append(work)

    def hold(self, works: Sequence[Work], *, due_s: float) -> None:
        """Set works of one key aside, first those given, then the key's later ones; they come back at ``due_s``."""
        key = works[0].record.key
        behind = self.held.pop(key, None) or [work for work in self.ready if work.record.key == key]
        self.ready = deque(work for work in self.ready if work.record.key != key)
        self.held[key] = deque([*works, *behind])
        self.due_s[key] = due_s

    def release_due(self, now_s: float) -> None:
        for key in [key for key, due_s in self.due_s.items() if due_s <= now_s]:
            del self.due_s[key]
            self.ready.extendleft(reversed(self.held.pop(key)))

    def is_gathering(self, now_s: float, limits: BridgeLimits) -> bool:
        return now_s < self.gathers_until_s and not self._has_full_batch(limits)

    def _has_full_batch(self, limits: BridgeLimits) -> bool:
        return (
            len(self.ready) >= self._most(limits)
            or sum(len(work.record.value) for work in self.ready) >= limits.batch_bytes
        )

    def _most(self, limits: BridgeLimits) -> int:
        return min(limits.batch_records, self.max_records or limits.batch_records)

    def first_due_s(self) -> float | None:
        """When something that waits for a time may go (monotonic); None: nothing does."""
        gathering = [self.gathers_until_s] if self.ready else []
        return min([*self.due_s.values(), *gathering], default=None)

    def may_share(self, works: Sequence[Work], source: TopicPartition) -> bool:
        """Whether a worker may do these together with other lanes'. What failed, may have killed one, or is more than a
        task does, goes alone."""
        is_well = self.max_records is None and not any(work.attempts or work.crashes for work in works)
        return source.topic in TOGETHER and is_well and not self.has_more

    def halve(self, batch: Batch) -> None:
        """Until the record that kills workers is alone."""
        self.max_records = max(1, len(batch.works) // 2)

    def take_killers(self) -> list[Dead]:
        """Records at the front that killed too many workers."""
        killers = []
        while self.ready and self.ready[0].crashes >= MAX_CRASHES:
            killers.append(Dead(self.ready.popleft(), "worker_lost"))
        return killers

    def take(self, limits: BridgeLimits) -> tuple[Work, ...]:
        """The next batch's works, in order."""
        taken: list[Work] = []
        size = 0
        most = self._most(limits)
        while self.ready and len(taken) < most:
            size += len(self.ready[0].record.value)
            if taken and size > limits.batch_bytes:
                break
            taken.append(self.ready.popleft())
        return tuple(taken)


class _Partition:
    """One owned partition."""

    def __init__(self, source: TopicPartition, *, epoch: int, lanes: int) -> None:
        self.source = source
        self.lanes = [_Lane() for _ in range(lanes)]
        self.watermark = Watermark()
        self.burying: dict[int, Work] = {}  # by offset
        self.bytes = 0
        self.paused = False
        self.stopping = False
        self.committed: int | None = None
        self._epoch = epoch
        self._dispatches = 0

    def next_epoch(self) -> str:
        """Sorts as text: later dispatches, and later owners of the partition, are greater."""
        self._dispatches += 1
        return f"{self._epoch:016x}-{self._dispatches:010x}"

    def full(self, limits: BridgeLimits, share: float = 1.0) -> bool:
        return (
            len(self.watermark) >= limits.window_records * share
            or self.watermark.span >= limits.window_records * limits.span * share
            or self.bytes >= limits.window_bytes * share
        )

    @property
    def idle(self) -> bool:
        return all(lane.in_flight is None for lane in self.lanes)


class BridgeCore:
    """Decides what to dispatch, what to bury and what to commit. Not thread-safe; everything happens in calls."""

    def __init__(self, *, limits: BridgeLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._dead: deque[Dead] = deque()
        self._partitions: dict[TopicPartition, _Partition] = {}

    # what happens
    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        """These are ours, each under an epoch of the log's that is greater than every owner's before."""
        for source, epoch in partitions.items():
            self._partitions[source] = _Partition(source, epoch=epoch, lanes=self._limits.lanes_of(source.topic))
            metrics.PARTITION_OWNED.labels(source.topic, str(source.partition)).set(1)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """These are no longer ours; late completions of theirs mean nothing."""
        for source in partitions:
            if self._partitions.pop(source, None):
                metrics.PARTITION_OWNED.labels(source.topic, str(source.partition)).set(0)
        self._dead = deque(dead for dead in self._dead if dead.work.record.source in self._partitions)

    def stop(self, partitions: Iterable[TopicPartition]) -> None:
        """Dispatch nothing more of these; what is in flight may end."""
        for source in partitions:
            if partition := self._partitions.get(source):
                partition.stopping = True

    def idle(self, partitions: Iterable[TopicPartition]) -> bool:
        """Nothing of these is in flight."""
        return all(self._partitions[source].idle for source in partitions if source in self._partitions)

    def records(self, records: Iterable[Record]) -> None:
        for record in records:
            partition = self._partitions.get(record.source)
            if partition is None:
                continue  # read just before the partition went away
            partition.watermark.opened(record.offset)
            partition.bytes += len(record.value)
            self._lane(partition, record.key).add(Work(record))

    def completed(self, completion: Completion) -> None:
        """A batch ended. One that is not the lane's latest dispatch is ignored: its records are in newer hands."""
        lane = self._lane_of(completion.lane)
        if lane is None:
            return
        if completion.lost and (works := lane.lapsed.pop(completion.epoch, None)) and not completion.shared:
            _count_crash(works)
        if lane.in_flight is None or lane.in_flight.epoch != completion.epoch:
            return
        batch, lane.in_flight = lane.in_flight, None
        if completion.lost:
            self._take_back(lane, batch, "worker_lost")
            lane.halve(batch)
            if not completion.shared:
                _count_crash(batch.works)
            return
        if lane.max_records is not None:
            lane.max_records = lane.max_records * 2 if lane.max_records < self._limits.batch_records else None
        self._settle(self._partitions[completion.lane.source], lane, batch, completion.outcomes)

    def observed(self, batch: Batch, state: BatchState) -> bool:
        """What an inspection found. A batch that nobody works on any more is taken back; True: its task may be lost
        while it waits, send another for the same dispatch (it keeps its place: a new one would go to the end of the
        queue again and again)."""
        lane = self._lane_of(batch.lane)
        if lane is None or lane.in_flight is not batch:
            return False
        if state in (BatchState.LAPSED, BatchState.GONE):
            self._take_back(lane, batch, state.value)
            if state is BatchState.LAPSED:  # it was at work, perhaps with a record that kills workers
                lane.halve(batch)
                lane.lapsed = {**dict(list(lane.lapsed.items())[-3:]), batch.epoch: batch.works}
            return False
        limits, waited_s = self._limits, self._clock.monotonic_s() - lane.dispatched_s
        patience_s = {BatchState.LOST_IN_QUEUE: limits.lost_after_s, BatchState.QUEUED: limits.queued_for_s}
        overdue = waited_s >= patience_s.get(state, float("inf"))
        if overdue:
            metrics.REDISPATCHES.labels(batch.lane.source.topic, state.value).inc()
            lane.dispatched_s = self._clock.monotonic_s()
        return overdue

    def buried(self, dead: Dead) -> None:
        """A record is durably among the dead letters."""
        if partition := self._taken_from(dead):
            self._finish(partition, dead.work)

    def not_buried(self, dead: Dead) -> None:
        """It could not go there now: it waits, and the watermark with it."""
        if self._taken_from(dead):
            self._dead.append(dead)

    def _taken_from(self, dead: Dead) -> _Partition | None:
        """None when its partition went away meanwhile, even if it came back: then the record is read anew."""
        partition = self._partitions.get(dead.work.record.source)
        return partition if partition and partition.burying.pop(dead.work.record.offset, None) is dead.work else None

    # what to do
    def next_batches(self) -> list[Batch]:
        """Batches to dispatch now, one for each idle lane with work; they count as in flight from here on."""
        now_s = self._clock.monotonic_s()
        batches = []
        for partition in self._partitions.values():
            if partition.stopping:
                continue
            for number, lane in enumerate(partition.lanes):
                if lane.in_flight is not None:
                    continue
                lane.release_due(now_s)
                self._dead.extend(lane.take_killers())
                if lane.is_gathering(now_s, self._limits):
                    continue
                if works := lane.take(self._limits):
                    where = LaneId(partition.source, number)
                    lane.in_flight = Batch(where, partition.next_epoch(), works, lane.may_share(works, where.source))
                    lane.dispatched_s = now_s
                    batches.append(lane.in_flight)
        return batches

    def take_dead(self) -> list[Dead]:
        """Records to take to the dead letters; tell of each by `buried` or `not_buried`."""
        dead = list(self._dead)
        self._dead.clear()
        for each in dead:
            self._partitions[each.work.record.source].burying[each.work.record.offset] = each.work
        return dead

    def in_flight(self) -> list[Batch]:
        return [lane.in_flight for partition in self._partitions.values() for lane in partition.lanes if lane.in_flight]

    def to_inspect(self) -> list[Batch]:
        """Those in flight that were not dispatched just now: most are over before anybody need ask for them."""
        since_s = self._clock.monotonic_s() - self._limits.inspect_every_s
        lanes = [lane for partition in self._partitions.values() for lane in partition.lanes]
        return [lane.in_flight for lane in lanes if lane.in_flight and lane.dispatched_s <= since_s]

    def to_pause(self) -> list[TopicPartition]:
        """Partitions whose window is full, each named once."""
        full = [each for each in self._partitions.values() if not each.paused and each.full(self._limits)]
        for partition in full:
            partition.paused = True
        return [partition.source for partition in full]

    def to_resume(self) -> list[TopicPartition]:
        """Paused partitions that have room again."""
        free = [
            each
            for each in self._partitions.values()
            if each.paused and not each.full(self._limits, self._limits.resume_at)
        ]
        for partition in free:
            partition.paused = False
        return [partition.source for partition in free]

    def to_commit(self, only: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, int]:
        """Watermarks that moved since `committed` was told."""
        wanted = self._partitions if only is None else [source for source in only if source in self._partitions]
        moved = {}
        for source in wanted:
            partition = self._partitions[source]
            offset = partition.watermark.offset
            if offset is not None and offset != partition.committed:
                moved[source] = offset
        return moved

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        for source, offset in offsets.items():
            if partition := self._partitions.get(source):
                partition.committed = offset

    def next_due_s(self) -> float | None:
        """When the first held key comes back, or the first lane has gathered (monotonic); None when nothing waits."""
        return min(
            (
                due_s
                for partition in self._partitions.values()
                if not partition.stopping
                for lane in partition.lanes
                if lane.in_flight is None and (due_s := lane.first_due_s()) is not None
            ),
            default=None,
        )

    def outstanding(self) -> dict[TopicPartition, int]:
        """Records read and not finished, by partition."""
        return {source: len(partition.watermark) for source, partition in self._partitions.items()}

    # how it is done
    def _lane(self, partition: _Partition, key: str) -> _Lane:
        # The high bits: on Redis the whole hash modulo the partitions chose this one, so that modulo two lanes it would
        # be the same for all keys of a partition wherever their number is even.
        return partition.lanes[(zlib.crc32(key.encode()) >> 16) % len(partition.lanes)]

    def _lane_of(self, lane: LaneId) -> _Lane | None:
        partition = self._partitions.get(lane.source)
        return partition.lanes[lane.number] if partition else None

    def _settle(self, partition: _Partition, lane: _Lane, batch: Batch, outcomes: Mapping[int, Outcome]) -> None:
        """Finish what is done, hold back what failed with all that follows it in its conversation."""
        later: dict[str, tuple[float, list[Work]]] = {}  # by key: after how long, what
        unstarted: list[Work] = []
        verdicts: Counter[Verdict] = Counter()
        for work in batch.works:
            outcome = outcomes.get(work.record.offset, NOT_STARTED)
            key = work.record.key
            verdicts[Verdict.NOT_STARTED if key in later else outcome.verdict] += 1
            if key in later:
                # Whatever the worker said of it, it goes after the one before it; repeating it is harmless.
                later[key][1].append(work)
            elif outcome.verdict is Verdict.DONE:
                self._finish(partition, work)
            elif outcome.verdict is Verdict.POISON:
                self._dead.append(Dead(work, outcome.reason))
            elif outcome.verdict is Verdict.NOT_STARTED:
                unstarted.append(work)
            else:
                work.attempts += outcome.verdict is Verdict.RETRY
                work.first_failed_ms = work.first_failed_ms or self._clock.now_ms()
                later[key] = (outcome.after_s, [work])
        for verdict, count in verdicts.items():
            metrics.PROCESSED.labels(partition.source.topic, verdict.value).inc(count)
        lane.ready.extendleft(reversed(unstarted))
        now_s = self._clock.monotonic_s()
        lane.has_more = bool(unstarted)
        if not lane.has_more:  # else there is enough
            lane.gathers_until_s = now_s + self._limits.gathers_s(partition.source.topic)
        for after_s, works in later.values():
            lane.hold(works, due_s=now_s + after_s)

    def _finish(self, partition: _Partition, work: Work) -> None:
        partition.watermark.finished(work.record.offset)
        partition.bytes -= len(work.record.value)

    def _take_back(self, lane: _Lane, batch: Batch, why: str) -> None:
        logger.warning("batch taken back", extra={"lane": str(batch.lane), "state": why})
        metrics.REDISPATCHES.labels(batch.lane.source.topic, why).inc()
        lane.in_flight = None
        lane.ready.extendleft(reversed(batch.works))


def _count_crash(works: Sequence[Work]) -> None:
    """A worker died with these; it says something about a record only when that was alone."""
    if len(works) == 1:
        works[0].crashes += 1
