"""Batches over a real bus: what is lost there is found out, what comes late changes nothing."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from core.clock import ManualClock
from core.errors import Unavailable
from demo.redis_server import BUS_RULES, RedisServer
from messaging import dispatch
from messaging.dispatch import (
    FORSAKEN_S,
    HANGS_S,
    LEASE_VALID_S,
    LONGEST_QUEUE,
    MOST_TOGETHER,
    AllOf,
    BusDispatcher,
    BusWorker,
    Lease,
)
from messaging.errors import LeaseLost
from messaging.ports import Record, TopicPartition
from messaging.work import DONE, Batch, BatchState, LaneId, Outcome, Verdict, Work

SOURCE = TopicPartition("messages", 1)


@dataclass
class Bus:
    """A bridge and a worker on one Redis; the queue is a real list, as Celery's is."""

    server: RedisServer
    queue: str = field(default_factory=lambda: f"queue-{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        self.lane = LaneId(TopicPartition(f"messages-{secrets.token_hex(4)}", 1), 3)
        self.client = redis.Redis.from_url(self.server.url)
        self.bridge = secrets.token_hex(4)
        self.dispatcher = BusDispatcher(
            self.server.url, bridge=self.bridge, task=_as_json, queue_of=lambda topic: self.queue
        )
        self.worker = BusWorker(self.server.url)

    @property
    def sent(self) -> list[tuple[LaneId, str, str]]:
        """What waits in the queue, the first one first: where, epoch, whom to tell."""
        waiting: Any = self.client.lrange(self.queue, 0, -1)
        return [(self.lane, *json.loads(task)[:2]) for task in reversed(waiting)]

    def batch(self, epoch: str, *offsets: int) -> Batch:
        works = [
            Work(Record(self.lane.source, offset, "alice", b"\xff\x00 any bytes", {"trace": "t"}, 17), attempts=2)
            for offset in offsets or (7,)
        ]
        return Batch(self.lane, epoch, tuple(works))

    def waits(self, partition: int, *offsets: int, size: int = 10, epoch: str = "a-1", shareable: bool = True) -> Batch:
        """A batch of another lane of the topic that was dispatched, and that nobody took out of the queue yet."""
        source = TopicPartition(self.lane.source.topic, partition)
        works = tuple(Work(Record(source, offset, "bob", b"x" * size, {}, 17)) for offset in offsets or (7,))
        batch = Batch(LaneId(source, 0), epoch, works, shareable)
        self.dispatcher.dispatch(batch)
        return batch

    def take(self) -> None:
        """A worker takes the task out of the queue."""
        self.client.rpop(self.queue)

    def begun(self, epoch: str, worker: BusWorker | None = None) -> AbstractContextManager[Lease]:
        """A worker at work on a batch."""
        worker = worker or self.worker
        started = worker.start(self.lane, epoch)
        assert started is not None
        return worker.lease(self.lane, epoch, asked_s=started.asked_s)

    def wait_for_renewal(self) -> None:
        """Returns once a worker's keeper came by again, and once more: what it did the first time is done."""
        for _ in range(2):
            self.client.delete(f"chat4all:lane:{self.lane}:lease")
            _until(lambda: self.client.exists(f"chat4all:lane:{self.lane}:lease"))

    def state(self, batch: Batch) -> BatchState:
        return self.dispatcher.inspect([batch])[0]


def _as_json(lane: LaneId, epoch: str, reply_to: str) -> bytes:
    return json.dumps([epoch, reply_to, str(lane)]).encode()


@pytest.fixture
def bus(bus_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Bus:
    """Leases lapse when a test deletes them, not while a busy machine keeps it waiting."""
    monkeypatch.setattr(dispatch, "LEASE_MS", 60_000)
    monkeypatch.setattr(dispatch, "RENEW_EVERY_S", 0.1)
    return Bus(bus_redis)


def test_a_batch_arrives_as_it_was_and_its_outcomes_come_back(bus: Bus) -> None:
    bus.dispatcher.dispatch(bus.batch("a-1", 7, 9))
    [(lane, epoch, reply_to)] = bus.sent
    started = bus.worker.start(lane, epoch)
    assert started is not None
    assert [(item.record.offset, item.attempts) for item in started.items] == [(7, 2), (9, 2)]
    assert started.items[0].record == Record(bus.lane.source, 7, "alice", b"\xff\x00 any bytes", {"trace": "t"}, 17)
    outcomes = {7: DONE, 9: Outcome(Verdict.RETRY, after_s=1.5, reason="throttled")}
    bus.worker.finish(lane, epoch, reply_to=reply_to, outcomes=outcomes)
    [completion] = bus.dispatcher.completions(5)
    assert (completion.lane, completion.epoch, completion.outcomes, completion.lost) == (lane, epoch, outcomes, False)


def test_an_idle_bridge_gets_no_completions(bus: Bus) -> None:
    assert bus.dispatcher.completions(0.05) == []


def test_only_the_latest_dispatch_of_a_lane_starts_and_only_once(bus: Bus) -> None:
    bus.dispatcher.dispatch(bus.batch("a-1"))
    bus.dispatcher.dispatch(bus.batch("a-2"))
    assert bus.worker.start(bus.lane, "a-1") is None
    assert bus.worker.start(bus.lane, "a-2") is not None
    assert bus.worker.start(bus.lane, "a-2") is None


def test_a_bridge_that_woke_up_late_cannot_take_a_lane_back(bus: Bus) -> None:
    bus.dispatcher.dispatch(bus.batch("b-1"))
    with pytest.raises(Unavailable):
        bus.dispatcher.dispatch(bus.batch("a-9"))
    assert [epoch for _, epoch, _ in bus.sent] == ["b-1"]
    assert bus.worker.start(bus.lane, "b-1") is not None


def test_what_becomes_of_a_batch_is_seen(bus: Bus) -> None:
    batch = bus.batch("a-1")
    bus.dispatcher.dispatch(batch)
    assert bus.state(batch) is BatchState.QUEUED
    bus.take()
    assert bus.state(batch) is BatchState.LOST_IN_QUEUE
    bus.worker.start(bus.lane, "a-1")
    assert bus.state(batch) is BatchState.RUNNING
    bus.client.delete(f"chat4all:lane:{bus.lane}:lease")  # as when nobody renewed it
    assert bus.state(batch) is BatchState.LAPSED


def test_a_finished_batch_whose_answer_is_on_its_way_does_not_look_lapsed(bus: Bus) -> None:
    batch = bus.batch("a-1")
    bus.dispatcher.dispatch(batch)
    bus.worker.start(bus.lane, "a-1")
    bus.worker.finish(bus.lane, "a-1", reply_to="somebody", outcomes={7: DONE})
    assert bus.state(batch) is BatchState.RUNNING


def test_a_flushed_bus_shows_everything_as_gone_and_stops_the_worker(bus: Bus) -> None:
    batch = bus.batch("a-1")
    bus.dispatcher.dispatch(batch)
    with bus.begun("a-1") as lease:
        bus.client.flushall()
        assert bus.state(batch) is BatchState.GONE
        _wait_until_lost(lease)


def test_a_worker_keeps_its_lease_batch_after_batch(bus: Bus) -> None:
    key = f"chat4all:lane:{bus.lane}:lease"
    for epoch in ("a-1", "a-2"):
        bus.dispatcher.dispatch(bus.batch(epoch))
        with bus.begun(epoch) as lease:
            bus.client.delete(key)  # as when it ran out: only a renewal brings it back
            _until(lambda: bus.client.exists(key))
            lease.check()
        bus.worker.finish(bus.lane, epoch, reply_to="somebody", outcomes={7: DONE})


def test_the_log_has_once_where_a_batch_hangs(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    worker = BusWorker(bus.server.url, clock=clock)

    def told() -> list[Any]:
        return [each for each in caplog.records if each.message.startswith("a batch hangs")]

    bus.dispatcher.dispatch(bus.batch("a-1"))
    with bus.begun("a-1", worker):
        clock.advance(HANGS_S)
        bus.wait_for_renewal()
        assert told() == []
        clock.advance(1)
        _until(told)
        bus.wait_for_renewal()
    [line] = told()
    assert line.lane == str(bus.lane)
    assert any(each.endswith(" test_the_log_has_once_where_a_batch_hangs") for each in line.at["MainThread"])


def test_a_batch_that_hangs_where_nobody_ends_its_worker_lets_its_lane_go(bus: Bus) -> None:
    clock, other = ManualClock(), Bus(bus.server)
    worker, batch = BusWorker(bus.server.url, clock=clock), bus.batch("a-1")
    bus.dispatcher.dispatch(batch)
    with bus.begun("a-1", worker) as lease:
        clock.advance(FORSAKEN_S)
        bus.wait_for_renewal()
        clock.advance(1)
        _wait_until_lost(lease)
        other.dispatcher.dispatch(other.batch("b-1"))
        with other.begun("b-1", worker):
            bus.client.delete(f"chat4all:lane:{bus.lane}:lease")  # as when it ran out
            other.wait_for_renewal()
    assert bus.state(batch) is BatchState.LAPSED


def test_a_superseded_worker_loses_its_lease(bus: Bus) -> None:
    bus.dispatcher.dispatch(bus.batch("a-1"))
    with bus.begun("a-1") as lease:
        lease.check()
        bus.dispatcher.dispatch(bus.batch("a-2"))
        _wait_until_lost(lease)


def test_a_process_that_slept_through_its_lease_knows_by_its_own_clock() -> None:
    clock = ManualClock()
    lease = Lease(clock, asked_s=clock.monotonic_s())
    clock.advance(LEASE_VALID_S)
    lease.check()
    clock.advance(0.01)
    with pytest.raises(LeaseLost):
        lease.check()


def test_the_right_to_several_batches_is_lost_with_that_to_one_of_them() -> None:
    clock, later = ManualClock(), ManualClock()
    several = AllOf([Lease(clock, asked_s=clock.monotonic_s()), last := Lease(later, asked_s=later.monotonic_s())])
    several.check()
    last.lose()
    with pytest.raises(LeaseLost):
        several.check()


def test_a_worker_that_slept_before_it_heard_that_it_may_start_has_no_lease(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "RENEW_EVERY_S", 60)
    clock = ManualClock()
    worker = BusWorker(bus.server.url, clock=clock)
    monkeypatch.setattr(worker, "_start", _then_asleep(worker._start, clock))
    bus.dispatcher.dispatch(bus.batch("a-1"))
    with bus.begun("a-1", worker) as lease, pytest.raises(LeaseLost):
        lease.check()


def test_nor_has_one_at_work_on_what_nobody_dispatched(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "RENEW_EVERY_S", 60)
    clock = ManualClock()
    worker = BusWorker(bus.server.url, clock=clock)
    monkeypatch.setattr(worker._client, "set", _then_asleep(worker._client.set, clock))
    with worker.solo_lease(bus.lane) as lease:
        assert lease is not None
        with pytest.raises(LeaseLost):
            lease.check()


def test_a_dead_worker_is_reported(bus: Bus) -> None:
    bus.dispatcher.dispatch(bus.batch("a-1"))
    [(lane, epoch, reply_to)] = bus.sent
    bus.worker.start(lane, epoch)
    BusWorker(bus.server.url).report_death(lane, epoch, reply_to=reply_to)
    [completion] = bus.dispatcher.completions(5)
    assert (completion.lost, completion.shared, completion.outcomes) == (True, False, {})


def test_a_worker_takes_along_what_waits_of_its_topic(bus: Bus) -> None:
    first, second, third = bus.waits(1, 7, 9), bus.waits(2, 7), bus.waits(3, 8)
    bus.take()
    started = bus.worker.start(first.lane, first.epoch, reply_to=bus.bridge)
    assert started is not None
    assert [(each.lane, [item.record.offset for item in each.items]) for each in (started, *started.along)] == [
        (first.lane, [7, 9]),
        (second.lane, [7]),
        (third.lane, [8]),
    ]
    assert [bus.state(each) for each in (first, second, third)] == [BatchState.RUNNING] * 3
    assert bus.client.llen(bus.queue) == 0
    assert bus.worker.start(second.lane, second.epoch) is None
    bus.worker.finish_all([(each, {each.items[0].record.offset: DONE}) for each in (started, *started.along)])
    told = {each.lane: each.outcomes for each in bus.dispatcher.completions(5)}
    assert told == {first.lane: {7: DONE}, second.lane: {7: DONE}, third.lane: {8: DONE}}


def test_it_leaves_what_another_worker_took_out_of_the_queue(bus: Bus) -> None:
    theirs, ours = bus.waits(1), bus.waits(2)
    bus.take()
    bus.take()
    started = bus.worker.start(ours.lane, ours.epoch)
    assert started is not None
    assert started.along == ()
    assert bus.worker.start(theirs.lane, theirs.epoch) is not None


def test_what_goes_alone_is_taken_along_by_nobody_and_takes_nobody(bus: Bus) -> None:
    alone, first, second = bus.waits(1, shareable=False), bus.waits(2), bus.waits(3)
    bus.take()
    started = bus.worker.start(alone.lane, alone.epoch)
    assert started is not None
    assert started.along == ()
    again = bus.waits(1, epoch="a-2", shareable=False)
    bus.take()
    started = bus.worker.start(first.lane, first.epoch)
    assert started is not None
    assert [each.lane for each in started.along] == [second.lane]
    assert bus.worker.start(again.lane, again.epoch) is not None


def test_it_takes_no_batch_of_another_topic(bus: Bus) -> None:
    other = Bus(bus.server, queue=bus.queue)
    ours, theirs = bus.waits(1), other.waits(1)
    bus.take()
    started = bus.worker.start(ours.lane, ours.epoch)
    assert started is not None
    assert started.along == ()
    assert other.worker.start(theirs.lane, theirs.epoch) is not None


@pytest.mark.parametrize(
    ("offsets", "size", "taken"), [(range(45), 10, 1), (range(4), 30_000, 1), (range(50), 10, 1), (range(51), 10, 0)]
)
def test_together_they_are_no_more_than_one_task_does(bus: Bus, offsets: range, size: int, taken: int) -> None:
    """In records or in bytes; what is left behind is the next one's."""
    first, *others = [bus.waits(partition, *offsets, size=size) for partition in range(3)]
    bus.take()
    started = bus.worker.start(first.lane, first.epoch)
    assert started is not None
    assert [each.lane for each in started.along] == [each.lane for each in others[:taken]]
    left = others[taken]
    bus.take()
    started = bus.worker.start(left.lane, left.epoch)
    assert started is not None
    assert [each.lane for each in started.along] == [each.lane for each in others[taken + 1 :]][:taken]


def test_nor_of_more_lanes_than_there_may_be(bus: Bus) -> None:
    first, *others = [bus.waits(partition) for partition in range(MOST_TOGETHER + 2)]
    bus.take()
    started = bus.worker.start(first.lane, first.epoch)
    assert started is not None
    assert [each.lane for each in started.along] == [each.lane for each in others[: MOST_TOGETHER - 1]]


def test_of_a_lane_that_was_dispatched_again_the_latest_is_taken_along_once(bus: Bus) -> None:
    first, _, newer = bus.waits(1), bus.waits(2, 7), bus.waits(2, 7, 8, epoch="a-2")
    bus.take()
    started = bus.worker.start(first.lane, first.epoch)
    assert started is not None
    assert [(each.epoch, len(each.items)) for each in started.along] == [(newer.epoch, 2)]


def test_a_batch_that_a_bridge_of_the_release_before_dispatched_goes_alone(bus: Bus) -> None:
    """It says nothing of whom to tell and how many there are, and leaves what was said of an earlier one."""
    old, new, other = bus.waits(1), bus.waits(2), bus.waits(3)
    bus.client.hset(f"chat4all:lane:{old.lane}", mapping={"epoch": "b-1", "started": "0"})
    started = bus.worker.start(old.lane, "b-1")
    assert started is not None
    assert started.along == ()
    bus.client.hset(f"chat4all:lane:{old.lane}", mapping={"epoch": "b-2", "started": "0"})
    started = bus.worker.start(new.lane, new.epoch)
    assert started is not None
    assert [each.lane for each in started.along] == [other.lane]
    assert bus.worker.start(old.lane, "b-2") is not None


def test_what_was_answered_before_anybody_started_it_is_neither_started_nor_taken_along(bus: Bus) -> None:
    """Its worker died as it took the task: the parent says so."""
    dead, ours = bus.waits(1), bus.waits(2)
    bus.worker.report_death(dead.lane, dead.epoch, reply_to=bus.bridge)
    started = bus.worker.start(ours.lane, ours.epoch)
    assert started is not None
    assert started.along == ()
    assert bus.worker.start(dead.lane, dead.epoch) is None


def test_of_a_dead_worker_all_that_it_had_are_reported(bus: Bus) -> None:
    first, second = bus.waits(1), bus.waits(2)
    bus.take()
    bus.worker.start(first.lane, first.epoch, reply_to=bus.bridge)
    BusWorker(bus.server.url).report_death(first.lane, first.epoch, reply_to=bus.bridge)
    told = {(each.lane, each.epoch, each.lost, each.shared) for each in bus.dispatcher.completions(5)}
    assert told == {(each.lane, each.epoch, True, True) for each in (first, second)}


def test_only_one_worker_works_on_what_nobody_dispatched(bus: Bus) -> None:
    with bus.worker.solo_lease(bus.lane) as first, BusWorker(bus.server.url).solo_lease(bus.lane) as second:
        assert first is not None
        assert second is None
    with bus.worker.solo_lease(bus.lane) as again:
        assert again is not None


def test_a_worker_that_outlived_its_lease_leaves_its_successors_alone(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "RENEW_EVERY_S", 60)  # else the late one may have it back before its successor asks
    with bus.worker.solo_lease(bus.lane) as late:
        assert late is not None
        bus.client.delete(f"chat4all:lane:{bus.lane}:lease")  # as when it lapsed
        successor = BusWorker(bus.server.url).solo_lease(bus.lane)
        assert successor.__enter__() is not None
    with bus.worker.solo_lease(bus.lane) as third:
        assert third is None
    successor.__exit__(None, None, None)


def test_a_task_that_is_sent_again_starts_the_same_dispatch_once(bus: Bus) -> None:
    batch = bus.batch("a-1")
    bus.dispatcher.dispatch(batch)
    bus.dispatcher.send_again(batch)
    assert [epoch for _, epoch, _ in bus.sent] == ["a-1", "a-1"]
    starts = [bus.worker.start(lane, epoch) for lane, epoch, _ in bus.sent]
    assert [start is not None for start in starts] == [True, False]


def test_a_queue_that_nobody_empties_does_not_grow_by_tasks_that_are_sent_again(bus: Bus) -> None:
    batch = bus.batch("a-1")
    bus.dispatcher.dispatch(batch)
    for _ in range(LONGEST_QUEUE + 5):
        bus.dispatcher.send_again(batch)
    assert len(bus.sent) == LONGEST_QUEUE


def test_a_dispatch_that_was_answered_too_late_and_asked_again_starts_nobody_else(bus: Bus) -> None:
    """The client asks twice when no answer came; by then a worker may be at work."""
    batch = bus.batch("a-1")
    bus.dispatcher.dispatch(batch)
    assert bus.worker.start(bus.lane, "a-1") is not None
    bus.dispatcher.dispatch(batch)
    assert len(bus.sent) == 1
    assert bus.worker.start(bus.lane, "a-1") is None
    assert bus.state(batch) is BatchState.RUNNING


def test_a_bus_that_is_away_is_said_so_in_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = RedisServer(tmp_path_factory.mktemp("gone"), rules=BUS_RULES)
    dispatcher = BusDispatcher(server.url, bridge="b", task=_as_json, queue_of=lambda topic: "q")
    batch = Batch(LaneId(SOURCE, 0), "a-1", ())
    for attempt in (
        lambda: dispatcher.dispatch(batch),
        lambda: dispatcher.send_again(batch),
        lambda: dispatcher.completions(0.1),
        lambda: dispatcher.inspect([batch]),
        lambda: BusWorker(server.url).start(batch.lane, "a-1"),
    ):
        with pytest.raises(Unavailable, match="BUS_URL"):
            attempt()


def _then_asleep(call: Callable[..., Any], clock: ManualClock) -> Callable[..., Any]:
    """The bus does it, and the process sleeps for as long as a lease lasts before it reads the answer."""

    def asleep(*arguments: Any, **named: Any) -> Any:
        answer = call(*arguments, **named)
        clock.advance(3)
        return answer

    return asleep


def _until(true: Callable[[], object], timeout_s: float = 10) -> None:
    deadline_s, pause = time.monotonic() + timeout_s, threading.Event()
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen"
        pause.wait(0.01)


def _wait_until_lost(lease: Lease) -> None:
    assert lease._lost.wait(10), "the lease was not lost"
    with pytest.raises(LeaseLost):
        lease.check()
