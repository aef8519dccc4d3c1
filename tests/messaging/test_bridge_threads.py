"""The running bridge with its threads, on real logs: whatever workers do, all is done, in order, and then committed."""

from __future__ import annotations

import queue
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from core.clock import ManualClock
from core.errors import Unavailable
from messaging.bridge import Bridge, BridgeLimits, runner
from messaging.bridge.dead_letters import DeadLetters
from messaging.eventlog.memory import MemoryLog
from messaging.ports import EventLog, NewRecord, TopicPartition
from messaging.topics import Topic, dead_letters
from messaging.work import DONE, Batch, BatchState, Completion, LaneId, Outcome, Verdict, Work
from tests.contracts.event_logs import EVENT_LOG_PARAMS, EVENT_LOGS
from tests.town import eventually

TOPIC, GROUP, PARTITIONS = "work", "bridge", 2
SOURCES = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
LIMITS = BridgeLimits(
    lanes=3,
    batch_records=5,
    window_records=60,
    commit_every_s=0.05,
    inspect_every_s=0.05,
    lost_after_s=0.2,
    queued_for_s=0.5,
    drain_s=2,
    dead_letters_per_minute=1000,
)


class Hall:
    """Workers that every bridge may use, and what they got done: the latest dispatch of a lane alone has effects."""

    def __init__(self, *, unruly: bool = True, seed: int = 1) -> None:
        self.done: dict[str, list[str]] = defaultdict(list)  # by key, in the order of effect
        self.done_offsets: dict[TopicPartition, set[int]] = defaultdict(set)
        self.gate = threading.Event()  # workers wait here before they begin
        self.gate.set()
        self.poison = b"poison"
        self.unruly = unruly
        self._luck = random.Random(seed)
        self._lock = threading.RLock()
        self._latest: dict[LaneId, str] = {}
        self._states: dict[tuple[LaneId, str], BatchState] = {}
        self._pool = ThreadPoolExecutor(4)
        self.pause = threading.Event()  # never set: a wait that lasts

    def close(self) -> None:
        self.unruly = False
        self.gate.set()
        self._pool.shutdown()

    def take(self, batch: Batch, replies: queue.SimpleQueue[Completion]) -> None:
        with self._lock:
            if self._latest.get(batch.lane, "") > batch.epoch:
                raise Unavailable("another bridge dispatches this lane")
            self._latest[batch.lane] = batch.epoch
            self._states[batch.lane, batch.epoch] = BatchState.QUEUED
        if not self._happens(0.03):  # else the queue lost it
            self._pool.submit(self._work, batch, replies)

    def again(self, batch: Batch, replies: queue.SimpleQueue[Completion]) -> None:
        self._pool.submit(self._work, batch, replies)

    def state(self, batch: Batch) -> BatchState:
        with self._lock:
            state = self._states.get((batch.lane, batch.epoch), BatchState.GONE)
            return BatchState.LOST_IN_QUEUE if state is BatchState.QUEUED and self.gate.is_set() else state

    def forget_everything(self) -> None:
        """As a flushed bus does."""
        with self._lock:
            self._latest.clear()
            self._states.clear()

    def _happens(self, rate: float) -> bool:
        with self._lock:
            return self.unruly and self._luck.random() < rate

    def _work(self, batch: Batch, replies: queue.SimpleQueue[Completion]) -> None:
        self.gate.wait(20)
        with self._lock:
            if self._states.get((batch.lane, batch.epoch)) is not BatchState.QUEUED:
                return
            self._states[batch.lane, batch.epoch] = BatchState.RUNNING
        outcomes: dict[int, Outcome] = {}
        held: set[str] = set()
        for work in batch.works:
            record = work.record
            if record.key in held:
                continue
            if self._happens(0.2):
                self.pause.wait(0.005)
            if self._happens(0.02):
                replies.put(Completion(batch.lane, batch.epoch, lost=True))
                return
            if self._happens(0.01):  # vanishes without a word
                with self._lock:
                    self._states[batch.lane, batch.epoch] = BatchState.LAPSED
                return
            if record.value == self.poison:
                outcomes[record.offset] = Outcome(Verdict.POISON, reason="undecodable")
            elif self._happens(0.05):
                outcomes[record.offset] = Outcome(self._verdict(), after_s=0.02, reason="luck")
                held.add(record.key)
            elif not self._effect(batch, record.key, record.value.decode(), record.offset):
                return
            else:
                outcomes[record.offset] = DONE
        replies.put(Completion(batch.lane, batch.epoch, outcomes))

    def _verdict(self) -> Verdict:
        with self._lock:
            return self._luck.choice([Verdict.RETRY, Verdict.PAUSED])

    def _effect(self, batch: Batch, key: str, value: str, offset: int) -> bool:
        with self._lock:
            if self._latest.get(batch.lane) != batch.epoch:
                return False
            self.done[key].append(value)
            self.done_offsets[batch.lane.source].add(offset)
            return True


class Door:
    """One bridge's dispatcher to the hall."""

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._replies: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self.away = False

    def dispatch(self, batch: Batch) -> None:
        self._check()
        self._hall.take(batch, self._replies)

    def send_again(self, batch: Batch) -> None:
        self._check()
        self._hall.again(batch, self._replies)

    def completions(self, timeout_s: float) -> list[Completion]:
        self._check()
        try:
            return [self._replies.get(timeout=min(timeout_s, 0.05))]
        except queue.Empty:
            return []

    def inspect(self, batches: list[Batch]) -> list[BatchState]:
        self._check()
        return [self._hall.state(batch) for batch in batches]

    def _check(self) -> None:
        if self.away:
            raise Unavailable("the bus is away")


@pytest.fixture
def hall() -> Iterator[Hall]:
    hall = Hall()
    yield hall
    hall.close()


@pytest.fixture(params=EVENT_LOG_PARAMS)
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], EventLog]]:
    """Opens a fresh log as each process would."""
    with EVENT_LOGS[request.param](tmp_path) as fresh, closing(fresh()) as log:
        log.open().ensure_topics([Topic(TOPIC, PARTITIONS), Topic(dead_letters(TOPIC), 1)])
        yield log.open


@contextmanager
def running(log: EventLog, door: Door, limits: BridgeLimits = LIMITS) -> Iterator[Bridge]:
    bridge = Bridge(log, door, topics=[TOPIC], group=GROUP, member=f"bridge-{uuid4().hex[:6]}", limits=limits)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            bridge.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield bridge
    finally:
        bridge.stop()
        thread.join(15)
    assert not thread.is_alive()
    assert failures == []


def outstanding(bridge: Bridge) -> dict[TopicPartition, int]:
    with bridge._lock:
        return bridge._core.outstanding()


def in_flight(bridge: Bridge) -> list[Batch]:
    with bridge._lock:
        return bridge._core.in_flight()


def append(log: EventLog, *, keys: int, each: int, start: int = 0) -> dict[str, list[str]]:
    """Numbered records for each key, interleaved; what each key has then."""
    for number in range(start, start + each):
        log.append([NewRecord(TOPIC, f"key{key}", str(number).encode()) for key in range(keys)])
    return {f"key{key}": [str(number) for number in range(start, start + each)] for key in range(keys)}


def committed(log: EventLog) -> list[int]:
    return [log.committed(GROUP, source) for source in SOURCES]


def ends(log: EventLog) -> list[int]:
    return [log.end_offset(source) for source in SOURCES]


def assert_whole(hall: Hall, expected: dict[str, list[str]]) -> None:
    """Everything was done, each key's first effects in order, and a repeat never goes behind the latest step."""
    for key, values in expected.items():
        assert list(dict.fromkeys(hall.done[key])) == values


def test_everything_is_done_in_order_whatever_workers_do(open_log: Callable[[], EventLog], hall: Hall) -> None:
    log = open_log()
    expected = append(log, keys=12, each=15)
    with running(log, Door(hall)):
        append(log, keys=12, each=15, start=15)
        eventually(lambda: committed(log) == ends(log), within_s=40)
    expected = {key: [*values, *(str(n) for n in range(15, 30))] for key, values in expected.items()}
    assert_whole(hall, expected)


def test_what_is_committed_was_done(open_log: Callable[[], EventLog], hall: Hall) -> None:
    log, watcher = open_log(), open_log()
    append(log, keys=6, each=30)
    early: list[tuple[TopicPartition, int]] = []

    def all_done() -> bool:
        for source in SOURCES:
            offset = watcher.committed(GROUP, source)
            read = watcher.read(source, start=0, limit=1000)
            early.extend(
                (source, record.offset)
                for record in read
                if record.offset < offset and record.offset not in hall.done_offsets[source]
            )
        return committed(watcher) == ends(watcher)

    with running(log, Door(hall)):
        eventually(all_done, within_s=40)
    assert early == []


def test_poison_goes_to_the_dead_letters_and_its_neighbours_go_on(open_log: Callable[[], EventLog], hall: Hall) -> None:
    log = open_log()
    append(log, keys=1, each=3)
    log.append([NewRecord(TOPIC, "key0", hall.poison, {"trace": "t1"})])
    append(log, keys=1, each=3, start=3)
    with running(log, Door(hall)):
        eventually(lambda: committed(log) == ends(log))
    assert_whole(hall, {"key0": [str(number) for number in range(6)]})
    [letter] = log.read(TopicPartition(dead_letters(TOPIC), 0), start=0, limit=10)
    assert (letter.key, letter.value, letter.headers["dl-error"]) == ("key0", hall.poison, "undecodable")
    assert (letter.headers["dl-topic"], letter.headers["trace"]) == (TOPIC, "t1")


def test_dead_letters_beyond_their_rate_are_not_asked_for_at_each_wake(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, asked = MemoryLog(), []
    log.ensure_topics([Topic(TOPIC, PARTITIONS), Topic(dead_letters(TOPIC), 1)])
    bury = DeadLetters.bury

    def counted(graves: DeadLetters, work: Work, reason: str) -> bool:
        is_buried = bury(graves, work, reason)
        asked.append(is_buried)
        return is_buried

    monkeypatch.setattr(DeadLetters, "bury", counted)
    monkeypatch.setattr(runner, "GRAVES_REST_S", 60.0)
    log.append([NewRecord(TOPIC, f"key{number}", hall.poison) for number in range(4)])
    with running(log, Door(hall), replace(LIMITS, dead_letters_per_minute=1)) as bridge:
        eventually(lambda: False in asked)
        for _ in range(50):
            bridge._wake.put(None)
            eventually(bridge._wake.empty)
    assert asked.count(True) == 1
    assert len(asked) <= 4, "one was written, and the others were asked for once at most"


def test_who_stops_lets_the_work_in_flight_end_and_commits_it(open_log: Callable[[], EventLog]) -> None:
    hall, log = Hall(unruly=False), open_log()
    hall.gate.clear()
    append(log, keys=1, each=4)
    with running(log, Door(hall)) as bridge:
        eventually(lambda: in_flight(bridge))
        bridge.stop()
        hall.gate.set()
    assert hall.done["key0"] == ["0", "1", "2", "3"]
    assert committed(log) == ends(log)
    hall.close()


def test_a_second_bridge_shares_the_work_and_takes_over(open_log: Callable[[], EventLog], hall: Hall) -> None:
    first, second = open_log(), open_log()
    append(first, keys=8, each=10)
    with running(second, Door(hall)) as staying:
        with running(first, Door(hall)) as leaving:
            eventually(lambda: len(outstanding(leaving)) == len(outstanding(staying)) == 1, within_s=15)
            append(first, keys=8, each=10, start=10)
        append(second, keys=8, each=10, start=20)
        eventually(lambda: committed(second) == ends(second), within_s=40)
        assert len(outstanding(staying)) == PARTITIONS
    assert_whole(hall, {f"key{key}": [str(number) for number in range(30)] for key in range(8)})


def test_a_flushed_bus_costs_only_repeats(open_log: Callable[[], EventLog], hall: Hall) -> None:
    log = open_log()
    append(log, keys=8, each=20)
    with running(log, Door(hall)):
        for least in (20, 60, 100):
            eventually(lambda least=least: sum(map(len, list(hall.done.values()))) >= least)  # type: ignore[misc]
            hall.forget_everything()
        eventually(lambda: committed(log) == ends(log), within_s=40)
    assert_whole(hall, {f"key{key}": [str(number) for number in range(20)] for key in range(8)})


def test_a_bus_that_is_away_is_waited_for(hall: Hall) -> None:
    log, door = MemoryLog(), Door(hall)
    log.ensure_topics([Topic(TOPIC, PARTITIONS), Topic(dead_letters(TOPIC), 1)])
    append(log, keys=4, each=5)
    door.away = True
    with running(log, door) as bridge:
        eventually(lambda: in_flight(bridge))
        assert not hall.done
        door.away = False
        eventually(lambda: committed(log) == ends(log), within_s=30)
    assert_whole(hall, {f"key{key}": [str(number) for number in range(5)] for key in range(4)})


def test_a_log_that_is_away_is_waited_for(hall: Hall) -> None:
    log = MemoryLog()
    log.ensure_topics([Topic(TOPIC, PARTITIONS), Topic(dead_letters(TOPIC), 1)])
    append(log, keys=4, each=5)
    with running(log, Door(hall)):
        eventually(lambda: hall.done)
        log.set_available(False)
        log.set_available(True)
        append(log, keys=4, each=5, start=5)
        eventually(lambda: committed(log) == ends(log), within_s=30)
    assert_whole(hall, {f"key{key}": [str(number) for number in range(10)] for key in range(4)})


def test_it_holds_no_more_than_its_window(hall: Hall) -> None:
    log = MemoryLog()
    log.ensure_topics([Topic(TOPIC, PARTITIONS), Topic(dead_letters(TOPIC), 1)])
    hall.gate.clear()
    append(log, keys=20, each=300)
    with running(log, Door(hall), replace(LIMITS, window_records=50)) as bridge:
        eventually(lambda: sum(outstanding(bridge).values()) >= 100)
        most = max(outstanding(bridge).values())
        hall.gate.set()
        eventually(lambda: committed(log) == ends(log), within_s=60)
    assert most <= 50 + 1000  # what one more poll may bring


def test_readiness_tells_of_a_log_that_is_not_read(hall: Hall) -> None:
    clock = ManualClock()
    bridge = Bridge(MemoryLog(), Door(hall), topics=[TOPIC], group=GROUP, member="m", limits=LIMITS, clock=clock)
    bridge.check()
    clock.advance(10.1)
    with pytest.raises(Unavailable):
        bridge.check()
