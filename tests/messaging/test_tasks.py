"""What a worker's task does with its batch, and with those that it took along."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from uuid import uuid4

import pytest
import redis

from core.errors import Unavailable
from demo.redis_server import RedisServer
from messaging import tasks
from messaging.dispatch import BusDispatcher, BusWorker, WorkItem
from messaging.errors import LeaseLost
from messaging.ports import ParkScope, Record, TopicPartition
from messaging.services import batches, deliver
from messaging.tasks import run_batch
from messaging.work import DONE, Batch, Completion, LaneId, Outcome, Verdict, Work

Process = Callable[[str, list[WorkItem], batches.Lease], dict[int, Outcome]]


class Town:
    """A bridge that dispatches to a worker of this process, whose tasks are run by hand."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.topic, self.bridge, queue = (f"{name}-{secrets.token_hex(4)}" for name in ("messages", "bridge", "queue"))
        self.client = redis.Redis.from_url(url)
        self.queue = queue
        self.dispatcher = BusDispatcher(
            url, bridge=self.bridge, task=tasks.batch_task, queue_of=lambda topic: self.queue
        )
        self.runs: list[list[str]] = []  # the keys of each that was processed at once
        worker = BusWorker(url)
        monkeypatch.setattr(tasks, "worker", lambda: worker)
        self._monkeypatch = monkeypatch

    def processes(self, process: Process) -> None:
        """What is done with records."""

        def seen(topic: str, items: list[WorkItem], *, owner: str, lease: batches.Lease) -> dict[int, Outcome]:
            assert topic == self.topic
            self.runs.append([item.record.key for item in items])
            return process(owner, items, lease)

        self._monkeypatch.setattr(tasks, "_process", seen)

    def dispatch(self, partition: int, *keys: str, epoch: str = "a-1") -> Batch:
        """All partitions have the same offsets."""
        source = TopicPartition(self.topic, partition)
        works = tuple(Work(Record(source, offset, key, b"", {}, 0)) for offset, key in enumerate(keys))
        batch = Batch(LaneId(source, 0), epoch, works, shareable=True)
        self.dispatcher.dispatch(batch)
        return batch

    def run(self, batch: Batch) -> list[tuple[int, Completion]]:
        """Its task is taken out of the queue and run; what the bridge is told, each with its partition."""
        self.client.rpop(self.queue)
        source = batch.lane.source
        run_batch(source.topic, source.partition, batch.lane.number, batch.epoch, self.bridge)
        told: Sequence[Completion] = self.dispatcher.completions(0.1)
        return [(each.lane.source.partition, each) for each in told]


@pytest.fixture
def town(bus_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Town:
    return Town(bus_redis.url, monkeypatch)


def all_done(_owner: str, items: list[WorkItem], _lease: batches.Lease) -> dict[int, Outcome]:
    return {item.number: DONE for item in items}


def test_what_waits_is_processed_as_one_and_each_lane_hears_of_its_own(town: Town) -> None:
    poison = Outcome(Verdict.POISON, reason="undecodable")

    def process(_owner: str, items: list[WorkItem], _lease: batches.Lease) -> dict[int, Outcome]:
        found = {"ann": DONE, "bob": poison}
        return {item.number: found[item.record.key] for item in items if item.record.key in found}

    town.processes(process)
    first = town.dispatch(0, "ann", "bob")
    town.dispatch(1, "bob", "carl", "ann")
    told = town.run(first)
    assert town.runs == [["ann", "bob", "bob", "carl", "ann"]]
    assert [(partition, each.outcomes) for partition, each in told] == [
        (0, {0: DONE, 1: poison}),
        (1, {0: poison, 2: DONE}),  # of carl nothing is known: he was not started
    ]


def test_where_batches_break_together_each_is_processed_by_itself(town: Town) -> None:
    def process(_owner: str, items: list[WorkItem], _lease: batches.Lease) -> dict[int, Outcome]:
        if any(item.record.key == "bob" for item in items):
            raise ValueError
        return {item.number: DONE for item in items}

    town.processes(process)
    first = town.dispatch(0, "carl", "bob")
    town.dispatch(1, "bob")
    town.dispatch(2, "ann")
    told = town.run(first)
    assert town.runs == [["carl", "bob", "bob", "ann"], ["carl", "bob"], ["bob"], ["ann"]]
    assert [(partition, each.lost, each.shared) for partition, each in told] == [
        (0, True, False),  # of several: the bridge finds out which
        (1, False, False),
        (2, False, False),
    ]
    assert told[1][1].outcomes == {0: Outcome(Verdict.RETRY, after_s=1.0, reason="ValueError")}
    assert told[2][1].outcomes == {0: DONE}


def test_where_one_went_into_other_hands_the_others_go_on(town: Town) -> None:
    def process(_owner: str, items: list[WorkItem], lease: batches.Lease) -> dict[int, Outcome]:
        if any(item.record.key == "bob" for item in items):
            raise LeaseLost("as after a newer dispatch")
        lease.check()
        return {item.number: DONE for item in items}

    town.processes(process)
    first = town.dispatch(0, "ann")
    town.dispatch(1, "bob")
    told = town.run(first)
    assert [(partition, each.outcomes) for partition, each in told] == [(0, {0: DONE})]


def test_what_there_is_no_time_for_was_not_started(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "EACH_BY_ITSELF_S", -1.0)

    def process(_owner: str, items: list[WorkItem], _lease: batches.Lease) -> dict[int, Outcome]:
        raise ValueError

    town.processes(process)
    first = town.dispatch(0, "ann")
    town.dispatch(1, "bob")
    told = town.run(first)
    assert town.runs == [["ann", "bob"]]
    assert [(partition, each.lost, each.outcomes) for partition, each in told] == [(0, False, {}), (1, False, {})]


def test_a_lease_ends_with_its_batch(town: Town) -> None:
    """One that was given up while others are at work has to lapse."""
    held: list[set[str]] = []

    def process(_owner: str, items: list[WorkItem], _lease: batches.Lease) -> dict[int, Outcome]:
        held.append({str(each.lane.source.partition) for each in tasks.worker()._held.values()})
        raise LeaseLost("as after a newer dispatch")

    town.processes(process)
    first = town.dispatch(0, "ann")
    town.dispatch(1, "bob")
    assert town.run(first) == []
    assert held == [{"0", "1"}, {"0", "1"}, {"1"}]
    assert tasks.worker()._held == {}


def test_while_a_part_is_away_all_of_them_wait(town: Town) -> None:
    def process(_owner: str, items: list[WorkItem], _lease: batches.Lease) -> dict[int, Outcome]:
        raise Unavailable("the store is away")

    town.processes(process)
    first = town.dispatch(0, "ann")
    town.dispatch(1, "bob")
    told = town.run(first)
    assert town.runs == [["ann", "bob"]]
    assert [(partition, each.outcomes) for partition, each in told] == [(0, {0: batches.AWAY}), (1, {0: batches.AWAY})]


def test_one_alone_has_an_owner_of_its_own(town: Town) -> None:
    """What is sent is claimed by it: a predecessor that died while sending must look abandoned."""
    owners: list[str] = []

    def process(owner: str, items: list[WorkItem], _lease: batches.Lease) -> dict[int, Outcome]:
        owners.append(owner)
        return {item.number: DONE for item in items}

    town.processes(process)
    for epoch in ("a-1", "a-2"):
        town.run(town.dispatch(0, "ann", epoch=epoch))
    assert owners == [f"{town.topic}:0:0@a-1", f"{town.topic}:0:0@a-2"]


def test_a_task_that_comes_late_does_nothing_and_says_nothing(town: Town) -> None:
    town.processes(all_done)
    late = town.dispatch(0, "ann")
    newer = town.dispatch(0, "ann", epoch="a-2")
    assert town.run(late) == []
    assert town.runs == []
    assert [(partition, each.outcomes) for partition, each in town.run(newer)] == [(0, {0: DONE})]


def test_parked_conversations_of_a_task_are_tried_at_once(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage parks thousands, and a platform takes its time for each send."""
    together, tried = threading.Barrier(3), []

    def tries(scope: ParkScope, *_: object, **__: object) -> None:
        together.wait(10)
        tried.append(scope)
        if scope == scopes[1]:
            raise RuntimeError("of one of them")

    monkeypatch.setattr(deliver, "resume_parked", tries)
    scopes = [ParkScope("whatsapp-outbound", uuid4()) for _ in range(3)]
    first, *others = (str(each.conversation_id) for each in scopes)
    with pytest.raises(RuntimeError, match="of one of them"):
        tasks.resume_parked(scopes[0].topic, first, 1, others)
    assert sorted(tried) == sorted(scopes)
