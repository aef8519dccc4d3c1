"""The bridge's decisions, without threads: in whatever order things end, none is lost, overtaken or committed early."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from uuid import NAMESPACE_URL, uuid5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.clock import ManualClock
from messaging.bridge import BridgeCore, BridgeLimits, Watermark
from messaging.eventlog.records import key_hash
from messaging.ports import Record, TopicPartition
from messaging.work import DONE, Batch, BatchState, Completion, Outcome, Verdict

SOURCE = TopicPartition("messages", 0)
LIMITS = BridgeLimits(lanes=4, batch_records=5, window_records=40, window_bytes=10_000, gather_s=0)
GATHERING = replace(LIMITS, gather_s=0.02)


def record(offset: int, key: str = "alice", size: int = 10, *, source: TopicPartition = SOURCE) -> Record:
    return Record(source, offset, key, b"x" * size, {}, 0)


def core_of(
    limits: BridgeLimits = LIMITS, *, epoch: int = 1, source: TopicPartition = SOURCE
) -> tuple[BridgeCore, ManualClock]:
    clock = ManualClock()
    core = BridgeCore(limits=limits, clock=clock)
    core.assigned({source: epoch})
    return core, clock


def bury(core: BridgeCore) -> list[int]:
    """Take all that is dead to the dead letters; their offsets."""
    dead = core.take_dead()
    for each in dead:
        core.buried(each)
    return [each.work.record.offset for each in dead]


def finish(core: BridgeCore, batch: Batch, outcome: Outcome = DONE) -> None:
    core.completed(Completion(batch.lane, batch.epoch, {work.record.offset: outcome for work in batch.works}))


@given(st.permutations(range(30)))
def test_the_watermark_is_the_lowest_unfinished_offset(order: list[int]) -> None:
    watermark = Watermark()
    for offset in range(0, 60, 2):  # with gaps, as some logs have
        watermark.opened(offset)
    left = set(range(0, 60, 2))
    for each in order:
        watermark.finished(each * 2)
        left.discard(each * 2)
        assert watermark.offset == min(left, default=59)
        assert len(watermark) == len(left)


def test_a_lane_has_one_batch_in_flight() -> None:
    core, _ = core_of(replace(LIMITS, lanes=1))
    core.records([record(offset) for offset in range(12)])
    [first] = core.next_batches()
    assert [work.record.offset for work in first.works] == [0, 1, 2, 3, 4]
    assert core.next_batches() == []
    finish(core, first)
    [second] = core.next_batches()
    assert [work.record.offset for work in second.works] == [5, 6, 7, 8, 9]
    assert second.epoch > first.epoch


@pytest.mark.parametrize("lanes", [2, 3, 4])
@pytest.mark.parametrize("partitions", range(2, 13))
def test_the_keys_of_each_partition_are_shared_out_among_all_lanes(partitions: int, lanes: int) -> None:
    keys = [str(uuid5(NAMESPACE_URL, f"{number}")) for number in range(100 * partitions)]
    for partition in range(partitions):
        core, _ = core_of(BridgeLimits(lanes=lanes))
        here = [key for key in keys if key_hash(key) % partitions == partition]
        core.records(record(offset, key) for offset, key in enumerate(here))
        shares = [len(batch.works) / len(here) for batch in core.next_batches()]
        assert len(shares) == lanes
        assert min(shares) > 0.5 / lanes


@pytest.mark.parametrize(
    ("topic", "at_once"), [("messages", 2), ("status-updates", 2), ("inbound", 3), ("whatsapp-outbound", 3)]
)
def test_what_goes_to_platforms_has_lanes_of_its_own_number(topic: str, at_once: int) -> None:
    core = BridgeCore(limits=BridgeLimits(lanes=2, platform_lanes=3), clock=ManualClock())
    source = TopicPartition(topic, 0)
    core.assigned({source: 1})
    core.records(replace(record(offset, f"{offset}"), source=source) for offset in range(40))
    assert len(core.next_batches()) == at_once


@pytest.mark.parametrize(
    ("topic", "gathers_s"),
    [("messages", 0.01), ("whatsapp-outbound", 0.01), ("inbound", 0.05), ("status-updates", 0.05)],
)
def test_a_lane_gathers_after_a_batch_and_what_comes_later_goes_at_once(topic: str, gathers_s: float) -> None:
    source = TopicPartition(topic, 0)
    core, clock = core_of(BridgeLimits(platform_lanes=1), source=source)
    core.records([record(0, source=source)])
    [first] = core.next_batches()
    core.records([record(1, source=source)])
    finish(core, first)
    core.records([record(2, source=source)])
    assert core.next_batches() == []
    assert core.next_due_s() == pytest.approx(clock.monotonic_s() + gathers_s)
    clock.advance(gathers_s)
    [second] = core.next_batches()
    assert [work.record.offset for work in second.works] == [1, 2]
    assert core.next_due_s() is None
    finish(core, second)
    assert core.next_due_s() is None  # nothing waits
    clock.advance(gathers_s)
    core.records([record(3, source=source)])
    assert len(core.next_batches()) == 1


@pytest.mark.parametrize(("size", "fills"), [(10, 5), (400, 3)], ids=["by records", "by bytes"])
def test_a_batch_that_is_full_is_not_gathered_for(size: int, fills: int) -> None:
    core, _ = core_of(replace(GATHERING, lanes=1, batch_bytes=1_000))
    core.records([record(0)])
    [first] = core.next_batches()
    finish(core, first)
    for offset in range(1, fills):
        core.records([record(offset, size=size)])
        assert core.next_batches() == []
    core.records([record(fills, size=size)])
    assert len(core.next_batches()) == 1


def test_a_lane_whose_batch_was_more_than_a_task_does_goes_on_at_once_and_alone() -> None:
    core, clock = core_of(replace(GATHERING, lanes=1))
    core.records([record(0), record(1, "bob")])
    [batch] = core.next_batches()
    core.completed(Completion(batch.lane, batch.epoch, {0: DONE}))
    [rest] = core.next_batches()
    assert [work.record.offset for work in rest.works] == [1]
    assert (batch.shareable, rest.shareable) == (True, False)  # others would have had no time beside it
    finish(core, rest)
    core.records([record(2)])
    clock.advance(1)
    [fresh] = core.next_batches()
    assert fresh.shareable


def test_what_is_due_again_joins_what_a_lane_gathers() -> None:
    core, clock = core_of(replace(GATHERING, lanes=1))
    core.records([record(0), record(1, "bob")])
    [batch] = core.next_batches()
    core.completed(Completion(batch.lane, batch.epoch, {0: Outcome(Verdict.PAUSED, after_s=0.01), 1: DONE}))
    core.records([record(2), record(3, "bob")])
    clock.advance(0.015)
    assert core.next_batches() == []
    clock.advance(0.005)
    [batch] = core.next_batches()
    assert [work.record.offset for work in batch.works] == [0, 2, 3]


def test_what_was_dispatched_just_now_is_not_asked_for() -> None:
    core, clock = core_of(replace(LIMITS, lanes=1))
    core.records([record(0)])
    [batch] = core.next_batches()
    assert core.to_inspect() == []
    clock.advance(LIMITS.inspect_every_s)
    assert core.to_inspect() == [batch]
    finish(core, batch)
    assert core.to_inspect() == []


def test_a_batch_is_bounded_by_bytes_but_never_empty() -> None:
    core, _ = core_of(replace(LIMITS, lanes=1, batch_bytes=100))
    core.records([record(0, size=500), record(1, size=60), record(2, size=60)])
    sizes = []
    while batches := core.next_batches():
        sizes.append(len(batches[0].works))
        finish(core, batches[0])
    assert sizes == [1, 1, 1]


def test_a_retry_holds_back_its_conversation_and_nobody_else() -> None:
    core, clock = core_of(replace(LIMITS, lanes=1))
    core.records([record(0, "alice"), record(1, "bob"), record(2, "alice"), record(3, "alice")])
    [batch] = core.next_batches()
    core.completed(
        Completion(batch.lane, batch.epoch, {0: Outcome(Verdict.RETRY, after_s=2.0, reason="throttled"), 1: DONE})
    )
    core.records([record(4, "alice"), record(5, "bob")])
    [batch] = core.next_batches()
    assert [work.record.offset for work in batch.works] == [5]
    finish(core, batch)
    assert core.to_commit() == {SOURCE: 0}
    assert core.next_batches() == []
    clock.advance(2.0)
    [batch] = core.next_batches()
    assert [(work.record.offset, work.attempts) for work in batch.works] == [(0, 1), (2, 0), (3, 0), (4, 0)]
    finish(core, batch)
    assert core.to_commit() == {SOURCE: 6}


def test_a_pause_burns_no_attempt() -> None:
    core, clock = core_of()
    core.records([record(0)])
    for _ in range(5):
        [batch] = core.next_batches()
        finish(core, batch, Outcome(Verdict.PAUSED, after_s=1.0))
        clock.advance(1.0)
    [batch] = core.next_batches()
    assert batch.works[0].attempts == 0


def test_poison_is_buried_and_its_neighbours_go_on() -> None:
    core, _ = core_of()
    core.records([record(0), record(1), record(2)])
    [batch] = core.next_batches()
    core.completed(
        Completion(batch.lane, batch.epoch, {0: DONE, 1: Outcome(Verdict.POISON, reason="undecodable"), 2: DONE})
    )
    assert core.to_commit() == {SOURCE: 1}
    assert bury(core) == [1]
    assert core.to_commit() == {SOURCE: 3}


def test_poison_that_may_not_be_buried_now_waits_and_keeps_the_watermark() -> None:
    core, _ = core_of()
    core.records([record(0), record(1)])
    [batch] = core.next_batches()
    core.completed(Completion(batch.lane, batch.epoch, {0: Outcome(Verdict.POISON, reason="undecodable"), 1: DONE}))
    for dead in core.take_dead():
        core.not_buried(dead)
    assert core.to_commit() == {SOURCE: 0}
    assert bury(core) == [0]
    assert core.to_commit() == {SOURCE: 2}


@pytest.mark.parametrize("is_buried", [True, False])
def test_a_partition_that_came_back_meanwhile_reads_its_dead_anew(is_buried: bool) -> None:
    core, _ = core_of()
    core.records([record(0, size=10)])
    [batch] = core.next_batches()
    finish(core, batch, Outcome(Verdict.POISON, reason="undecodable"))
    [dead] = core.take_dead()
    core.forget([SOURCE])
    core.assigned({SOURCE: 2})
    core.records([record(0, size=10)])
    (core.buried if is_buried else core.not_buried)(dead)
    assert core.take_dead() == []
    assert core.outstanding() == {SOURCE: 1}
    [again] = core.next_batches()
    finish(core, again, Outcome(Verdict.POISON, reason="undecodable"))
    assert bury(core) == [0]
    assert core.to_commit() == {SOURCE: 1}


@pytest.mark.parametrize("late", [False, True], ids=["told at once", "told after its lease lapsed"])
def test_a_batch_that_kills_its_worker_is_halved_down_to_the_record_that_does_it(late: bool) -> None:
    core, clock = core_of(replace(LIMITS, lanes=1, batch_records=8))
    core.records([record(offset, f"key{offset}") for offset in range(8)])
    buried: list[int] = []
    deaths: list[int] = []
    while (batches := core.next_batches()) and len(deaths) < 20:
        [batch] = batches
        if any(work.record.offset == 5 for work in batch.works):
            deaths.append(len(batch.works))
            if late:
                core.observed(batch, BatchState.LAPSED)
            core.completed(Completion(batch.lane, batch.epoch, lost=True))
        else:
            finish(core, batch)
        clock.advance(1)
    buried += bury(core)
    assert buried == [5]
    assert deaths[-3:] == [1, 1, 1]
    assert len(deaths) <= 8
    assert core.to_commit() == {SOURCE: 8}


@pytest.mark.parametrize(
    ("topic", "may"),
    [("messages", True), ("status-updates", True), ("inbound", False), ("whatsapp-outbound", False)],
)
def test_what_waits_for_platforms_is_done_by_itself(topic: str, may: bool) -> None:
    source = TopicPartition(topic, 0)
    core, _ = core_of(BridgeLimits(platform_lanes=1), source=source)
    core.records([record(0, source=source)])
    [batch] = core.next_batches()
    assert batch.shareable is may


def test_what_has_to_be_tried_again_goes_alone() -> None:
    core, clock = core_of(replace(LIMITS, lanes=1))
    core.records([record(0)])
    [batch] = core.next_batches()
    finish(core, batch, Outcome(Verdict.RETRY, after_s=1.0))
    clock.advance(1)
    core.records([record(1, "bob")])
    [again] = core.next_batches()
    assert (len(again.works), again.shareable) == (2, False)
    finish(core, again)
    core.records([record(2)])
    [fresh] = core.next_batches()
    assert fresh.shareable


@pytest.mark.parametrize("late", [False, True], ids=["told at once", "told after its lease lapsed"])
def test_a_worker_that_died_over_several_batches_condemns_none_and_each_goes_alone(late: bool) -> None:
    core, _ = core_of(replace(LIMITS, lanes=1))
    core.records([record(0)])
    for _ in range(10):
        [batch] = core.next_batches()
        if late:
            core.observed(batch, BatchState.LAPSED)
        core.completed(Completion(batch.lane, batch.epoch, lost=True, shared=True))
    [batch] = core.next_batches()
    assert core.take_dead() == []
    assert not batch.shareable


def test_a_lease_that_lapses_without_a_death_condemns_no_record() -> None:
    core, _ = core_of()
    core.records([record(0)])
    for _ in range(10):
        [batch] = core.next_batches()
        core.observed(batch, BatchState.LAPSED)
    assert len(core.next_batches()) == 1
    assert core.take_dead() == []


@pytest.mark.parametrize("state", [BatchState.LAPSED, BatchState.GONE])
def test_a_batch_nobody_works_on_is_dispatched_again_and_its_late_answer_ignored(state: BatchState) -> None:
    core, _ = core_of()
    core.records([record(0)])
    [first] = core.next_batches()
    core.observed(first, state)
    [second] = core.next_batches()
    assert second.epoch > first.epoch
    finish(core, first)
    assert core.to_commit() == {SOURCE: 0}
    finish(core, second)
    assert core.to_commit() == {SOURCE: 1}


def test_a_batch_that_waits_in_the_queue_keeps_its_place() -> None:
    """A new dispatch would go to the end of the queue: under load it would never be served."""
    core, clock = core_of()
    core.records([record(0)])
    [first] = core.next_batches()
    assert not core.observed(first, BatchState.LOST_IN_QUEUE)  # perhaps just taken out of the queue
    assert not core.observed(first, BatchState.QUEUED)
    assert not core.observed(first, BatchState.RUNNING)
    clock.advance(LIMITS.lost_after_s)
    assert not core.observed(first, BatchState.QUEUED)
    assert core.observed(first, BatchState.LOST_IN_QUEUE)
    assert not core.observed(first, BatchState.LOST_IN_QUEUE), "sent again a moment ago"
    clock.advance(LIMITS.queued_for_s)
    assert core.observed(first, BatchState.QUEUED)
    assert core.next_batches() == []
    finish(core, first)
    assert core.to_commit() == {SOURCE: 1}


def test_one_record_that_is_held_for_ever_bounds_what_is_read_behind_it() -> None:
    core, _ = core_of()
    core.records([record(0, "stuck")])
    [batch] = core.next_batches()
    finish(core, batch, Outcome(Verdict.PAUSED, after_s=1e6))
    offset = 1
    while not core.to_pause():
        assert offset <= LIMITS.window_records * LIMITS.span, "the window never filled"
        core.records([record(offset, f"key{offset}")])
        [batch] = core.next_batches()
        finish(core, batch)
        offset += 1
    assert core.to_commit() == {SOURCE: 0}


def test_a_full_window_pauses_and_resumes_with_room() -> None:
    core, _ = core_of()
    core.records([record(offset, f"key{offset}") for offset in range(LIMITS.window_records)])
    assert core.to_pause() == [SOURCE]
    assert core.to_pause() == []
    while core.outstanding()[SOURCE] >= LIMITS.window_records * LIMITS.resume_at:
        assert core.to_resume() == []
        finish(core, core.next_batches()[0]) if not core.in_flight() else finish(core, core.in_flight()[0])
    assert core.to_resume() == [SOURCE]


def test_what_was_revoked_is_neither_dispatched_nor_committed() -> None:
    core, _ = core_of()
    core.records([record(offset) for offset in range(8)])
    [batch] = core.next_batches()
    core.stop([SOURCE])
    assert not core.idle([SOURCE])
    finish(core, batch)
    assert core.idle([SOURCE])
    assert core.next_batches() == []
    assert core.to_commit([SOURCE]) == {SOURCE: 5}
    core.forget([SOURCE])
    core.records([record(8)])
    assert core.next_batches() == []
    assert core.to_commit() == {}


def test_a_later_owner_of_a_partition_has_greater_epochs_whatever_the_clocks_say() -> None:
    epochs = []
    for owner in (9, 10, 11):
        core, _ = core_of(epoch=owner)
        for offset in range(3):
            core.records([record(offset)])
            [batch] = core.next_batches()
            epochs.append(batch.epoch)
            finish(core, batch)
    assert epochs == sorted(set(epochs))


class AnyOrder(RuleBasedStateMachine):
    """Records of several conversations, workers that answer, stall, die and get superseded, in any order."""

    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.core, self.clock = core_of(self.limits)
        self.offset = 0
        self.keys: dict[int, str] = {}
        self.effects: dict[str, list[int]] = defaultdict(list)  # by key: offsets in the order of their effect
        self.flying: list[Batch] = []
        self.finished: set[int] = set()
        self.committed = 0

    @rule(keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=10))
    def read(self, keys: list[str]) -> None:
        fresh = []
        for key in keys:
            self.keys[self.offset] = key
            fresh.append(record(self.offset, key))
            self.offset += 1
        self.core.records(fresh)

    @rule()
    def dispatch(self) -> None:
        self.flying.extend(self.core.next_batches())
        due_s = self.core.next_due_s()
        assert due_s is None or due_s > self.clock.monotonic_s()  # else the bridge would look again and again

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """A worker works through a batch as real ones do: in order, stopping a conversation at its first failure."""
        batch = data.draw(st.sampled_from(self.flying))
        self.flying.remove(batch)
        stale = batch not in self.core.in_flight()
        outcomes: dict[int, Outcome] = {}
        failed: set[str] = set()
        for work in batch.works:
            if work.record.key in failed or stale:
                continue
            verdict = data.draw(st.sampled_from(list(Verdict)))
            if verdict is Verdict.NOT_STARTED:
                break
            outcomes[work.record.offset] = Outcome(verdict, after_s=data.draw(st.sampled_from([0.5, 3.0])))
            if verdict in (Verdict.DONE, Verdict.POISON):
                self.effects[work.record.key].append(work.record.offset)
                if verdict is Verdict.DONE:
                    self.finished.add(work.record.offset)
            else:
                failed.add(work.record.key)
        self.core.completed(Completion(batch.lane, batch.epoch, outcomes))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), shared=st.booleans())
    def die(self, data: st.DataObject, shared: bool) -> None:
        batch = data.draw(st.sampled_from(self.flying))
        self.flying.remove(batch)
        self.core.completed(Completion(batch.lane, batch.epoch, lost=True, shared=shared))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), state=st.sampled_from(list(BatchState)))
    def inspect(self, data: st.DataObject, state: BatchState) -> None:
        self.core.observed(data.draw(st.sampled_from(self.flying)), state)

    @rule(seconds=st.one_of(st.floats(0.01, 0.1), st.floats(0.1, 5)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(may=st.booleans())
    def bury(self, may: bool) -> None:
        for dead in self.core.take_dead():
            if may:
                self.core.buried(dead)
                self.finished.add(dead.work.record.offset)
            else:
                self.core.not_buried(dead)

    @rule()
    def commit(self) -> None:
        offsets = self.core.to_commit()
        self.core.committed(offsets)
        self.committed = offsets.get(SOURCE, self.committed)

    @invariant()
    def commits_cover_finished_work_only(self) -> None:
        assert set(range(self.committed)) <= self.finished

    @invariant()
    def conversations_keep_their_order(self) -> None:
        for offsets in self.effects.values():
            assert offsets == sorted(offsets)

    def teardown(self) -> None:
        """Once workers behave, everything ends, each record once, by the times at which the core wants to be asked."""
        for _ in range(1_000):
            for batch in self.core.in_flight():
                self.core.observed(batch, BatchState.GONE)
            batches = self.core.next_batches()
            self.bury(may=True)
            due_s = self.core.next_due_s()
            if not batches and due_s is None:
                break
            if not batches and due_s is not None:
                self.clock.advance(due_s - self.clock.monotonic_s() + 0.001)
            for batch in batches:
                for work in batch.works:
                    self.effects[work.record.key].append(work.record.offset)
                    self.finished.add(work.record.offset)
                finish(self.core, batch)
        assert self.finished == set(range(self.offset))
        assert self.core.outstanding()[SOURCE] == 0
        for offsets in self.effects.values():
            assert offsets == sorted(offsets)


class AnyOrderGathering(AnyOrder):
    limits = GATHERING


TestAnyOrder, TestAnyOrderGathering = AnyOrder.TestCase, AnyOrderGathering.TestCase
TestAnyOrder.settings = TestAnyOrderGathering.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
