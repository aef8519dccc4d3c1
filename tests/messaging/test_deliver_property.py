"""Whatever platform and workers do: each message arrives, in order, and twice only where that is marked; a message that
nobody can tell of after two tries is a dead letter."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import DjangoDbBlocker

from connectors.errors import AmbiguousDeliveryError, TransientDeliveryError
from core.clock import ManualClock
from core.errors import Unavailable
from messaging import codec, topics
from messaging.bridge import BridgeCore, BridgeLimits
from messaging.dispatch import WorkItem
from messaging.domain import Outbound, StatusChange
from messaging.errors import LeaseLost
from messaging.ports import TopicPartition
from messaging.services.batches import AWAY
from messaging.services.deliver import deliver, resume_parked
from messaging.work import Batch, BatchState, Completion
from tests.contracts.message_stores import orm_on_sqlite
from tests.messaging.workbench import FreeLease, Fuse, Killed, Workbench

OUTBOUND = topics.outbound("whatsapp")
SOURCE = TopicPartition(OUTBOUND, 0)
LIMITS = BridgeLimits(platform_lanes=3, batch_records=4)


class Street:
    """A bridge and workers by hand, each step's luck drawn from one seed; after ``bad_steps`` everything works."""

    def __init__(self, bench: Workbench, luck: random.Random, *, conversations: int, each: int, bad_steps: int) -> None:
        self.bench = bench
        self.luck = luck
        self.bad_steps = bad_steps
        self.workers = self.bridges = 0
        self.committed = 0
        for number in range(conversations):
            bench.outbound(bench.conversation(), *[f"{number}:{place}" for place in range(each)])
        self.expected = {str(number): [str(place) for place in range(each)] for number in range(conversations)}
        self.core = self._new_bridge()

    def _new_bridge(self) -> BridgeCore:
        """It reads again what was not committed."""
        core = BridgeCore(limits=LIMITS, clock=self.bench.clock)
        self.bridges += 1
        core.assigned({SOURCE: self.bridges})
        core.records(self.bench.log.read(SOURCE, start=self.committed, limit=1000))
        return core

    def run(self) -> None:
        for step in range(2_000):
            self.bad = step < self.bad_steps
            if self.bad and self.luck.random() < 0.05:
                self.core = self._new_bridge()
            for batch in self.core.next_batches():
                self._work_on(batch)
            if self.core.take_dead():  # workers died with it three times, by luck and not by its own fault
                self.core = self._new_bridge()  # it was not committed, and is read anew
            self._resume()
            offsets = self.core.to_commit()
            self.core.committed(offsets)
            self.committed = offsets.get(SOURCE, self.committed)
            if self._is_done():
                return
            self.bench.clock.advance(self.luck.choice([0.5, 3, 12]))
        raise AssertionError("it never ended")

    def _is_done(self) -> bool:
        far_ms = self.bench.clock.now_ms() + 10**9
        return not self.core.outstanding()[SOURCE] and not self.bench.store.due_scopes(
            topic=OUTBOUND, now_ms=far_ms, limit=1
        )

    def _fuse(self) -> Fuse:
        """Mostly nothing happens; else the worker dies, or a part or its lease goes, at some step."""
        if not self.bad or self.luck.random() < 0.6:
            return Fuse(0)
        error = self.luck.choice([Killed, Unavailable, LeaseLost])
        return Fuse(self.luck.randint(1, 20), error())

    def _luck_of_sends(self) -> None:
        for fates in self.bench.platform._fates.values():
            fates.clear()
        if not self.bad:
            return
        for conversation, places in self.expected.items():
            for place in places:
                kind = self.luck.random()
                if kind < 0.15:
                    error = TransientDeliveryError("refused", outage=self.luck.random() < 0.5)
                    self.bench.platform.will(f"{conversation}:{place}", error)
                elif kind < 0.25:
                    self.bench.platform.will(f"{conversation}:{place}", AmbiguousDeliveryError("read_timeout"))
                elif kind < 0.3:
                    self.bench.platform.will(f"{conversation}:{place}", Killed())

    def _lease(self) -> FreeLease:
        return FreeLease(self.luck.randint(0, 6) if self.bad and self.luck.random() < 0.1 else None)

    def _work_on(self, batch: Batch) -> None:
        self.workers += 1
        self._luck_of_sends()
        works = [WorkItem(each.record, each.attempts, each.first_failed_ms, each.record.offset) for each in batch.works]
        try:
            outcomes = deliver(
                works,
                self.bench.delivery(self._fuse()),
                owner=f"worker-{self.workers}",
                lease=self._lease(),
                deadline_s=self.bench.clock.monotonic_s() + 5,
            )
        except Unavailable:
            outcomes = {work.record.offset: AWAY for work in works}
        except LeaseLost:
            self.core.observed(batch, BatchState.LAPSED)
            return
        except Killed:
            if self.luck.random() < 0.5:
                self.core.observed(batch, BatchState.GONE)
            else:
                self.core.completed(Completion(batch.lane, batch.epoch, lost=True))
            return
        self.core.completed(Completion(batch.lane, batch.epoch, outcomes))

    def _resume(self) -> None:
        for scope in self.bench.store.due_scopes(topic=OUTBOUND, now_ms=self.bench.clock.now_ms(), limit=10):
            self.workers += 1
            self._luck_of_sends()
            try:
                resume_parked(
                    scope,
                    self.bench.delivery(self._fuse()),
                    again_at_ms=self.bench.clock.now_ms(),
                    owner=f"resumer-{self.workers}",
                    lease=self._lease(),
                    deadline_s=self.bench.clock.monotonic_s() + 5,
                )
            except (Unavailable, LeaseLost, Killed):
                continue


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32), conversations=st.integers(1, 4), each=st.integers(1, 5), bad_steps=st.integers(0, 25)
)
def test_each_message_arrives_in_order_and_twice_only_where_it_says_so(
    tmp_path: Path,
    django_db_blocker: DjangoDbBlocker,
    seed: int,
    conversations: int,
    each: int,
    bad_steps: int,
) -> None:
    clock = ManualClock()
    with django_db_blocker.unblock(), orm_on_sqlite(tmp_path, clock) as store:
        bench = Workbench(store, clock)
        street = Street(bench, random.Random(seed), conversations=conversations, each=each, bad_steps=bad_steps)
        street.run()
    first: dict[str, list[str]] = defaultdict(list)
    times: dict[UUID, int] = defaultdict(int)
    for arrived in bench.platform.arrived:
        conversation, place = arrived.text.split(":")
        if place not in first[conversation]:
            first[conversation].append(place)
        else:
            assert place == first[conversation][-1], "an earlier message came again after a later one"
        times[UUID(arrived.correlation_id)] += 1
    changes = bench.on_log(topics.STATUS_UPDATES, StatusChange)
    marked = {change.message_id for change in changes if change.reason == "maybe_duplicate"}
    unknown = {change.message_id for change in changes if change.reason == "unknown_delivery"}
    assert {message for message, count in times.items() if count > 1} <= marked
    assert {change.reason for change in changes} <= {"maybe_duplicate", "unknown_delivery"}
    assert max(times.values()) <= 2
    assert unknown == {letter.message.message_id for letter in letters(bench)}
    texts = {each.message.message_id: each.message.content for each in bench.on_log(OUTBOUND, Outbound)}
    never = {texts[message_id] for message_id in unknown - times.keys()}
    assert first == {
        conversation: left
        for conversation, places in street.expected.items()
        if (left := [place for place in places if f"{conversation}:{place}" not in never])
    }


def letters(bench: Workbench) -> list[Outbound]:
    source = TopicPartition(topics.dead_letters(OUTBOUND), 0)
    return [codec.decode(Outbound, record.value) for record in bench.log.read(source, start=0, limit=1000)]
