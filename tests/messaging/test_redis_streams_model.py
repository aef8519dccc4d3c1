"""The Redis Streams log does exactly what the in-memory one does, whatever members do in whatever order."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from demo.redis_server import RedisServer
from messaging.errors import LeaseLost
from messaging.eventlog.memory import MemoryLog
from messaging.eventlog.redis_streams import RedisStreamsLog
from messaging.ports import EventLog, NewRecord, Record, Subscription, TopicPartition
from messaging.topics import Topic

LEASE_TTL_S = 3600.0  # nothing lapses by itself here
SOURCES = [TopicPartition("messages", each) for each in range(3)]
NAMES = st.sampled_from(["a", "b", "c"])
PARTITIONS = st.sampled_from(SOURCES)


class Follower:
    """One member on one log, checking what needs no model: no hole, nothing twice, nothing paused or foreign."""

    def __init__(self, log: EventLog, name: str) -> None:
        self._log = log
        self.told: list[tuple[str, list[TopicPartition]]] = []
        self.expected: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self.subscription: Subscription = log.subscribe(["messages"], group="bridge", member=name, listener=self)

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        self.told.append(("assigned", list(partitions)))
        self.expected |= {source: self._log.committed("bridge", source) for source in partitions}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._let_go("revoked", partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._let_go("lost", partitions)

    def _let_go(self, how: str, partitions: Sequence[TopicPartition]) -> None:
        self.told.append((how, list(partitions)))
        for source in partitions:
            del self.expected[source]
            self.paused.discard(source)

    def poll(self) -> list[Record]:
        found = self.subscription.poll(0)
        for record in found:
            assert record.source not in self.paused
            assert record.offset == self.expected[record.source]
            self.expected[record.source] += 1
        return found

    def commit(self, source: TopicPartition, offset: int) -> bool:
        try:
            self.subscription.commit({source: offset})
        except LeaseLost:
            return False
        return True


class TwoLogs(RuleBasedStateMachine):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.logs: tuple[MemoryLog, RedisStreamsLog] = (
            MemoryLog(lease_ttl_s=LEASE_TTL_S),
            RedisStreamsLog(url, lease_ttl_s=LEASE_TTL_S, namespace=uuid.uuid4().hex),
        )
        for log in self.logs:
            log.ensure_topics([Topic("messages", partitions=3, max_bytes=400)])
        self.members: dict[str, list[Follower]] = {}

    @rule(keys=st.lists(st.integers(0, 20), max_size=40), size=st.integers(0, 100))
    def append(self, keys: list[int], size: int) -> None:
        batch = [NewRecord("messages", f"key-{key}", bytes([n]) * size) for n, key in enumerate(keys)]
        expected, found = (log.append(batch) for log in self.logs)
        assert found == expected

    @rule(name=NAMES)
    def join_or_restart(self, name: str) -> None:
        self.members[name] = [Follower(log, name) for log in self.logs]

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def poll(self, data: st.DataObject) -> None:
        expected, found = self._pick(data)
        assert [_bare(record) for record in found.poll()] == [_bare(record) for record in expected.poll()]
        assert found.told == expected.told

    @precondition(lambda self: self.members)
    @rule(data=st.data(), source=PARTITIONS, pause=st.booleans())
    def pause_or_resume(self, data: st.DataObject, source: TopicPartition, pause: bool) -> None:
        for member in self._pick(data):
            (member.subscription.pause if pause else member.subscription.resume)([source])
            if source in member.expected:
                (member.paused.add if pause else member.paused.discard)(source)

    @precondition(lambda self: self.members)
    @rule(data=st.data(), source=PARTITIONS, back=st.integers(0, 3))
    def commit(self, data: st.DataObject, source: TopicPartition, back: int) -> None:
        expected, found = self._pick(data)
        offset = max(0, expected.expected.get(source, 1) - back)
        assert found.commit(source, offset) == expected.commit(source, offset)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.members)))
        for member in self.members.pop(name):
            member.subscription.close()

    @rule(everything_is_old=st.booleans())
    def trim(self, everything_is_old: bool) -> None:
        now_ms = 4_000_000_000_000 if everything_is_old else int(time.time() * 1000)
        expected, found = (log.trim(now_ms) for log in self.logs)
        assert found == expected

    @invariant()
    def both_logs_hold_the_same(self) -> None:
        for source in SOURCES:
            expected, found = (log.read(source, start=0, limit=10_000) for log in self.logs)
            assert [_bare(record) for record in found] == [_bare(record) for record in expected]
            assert self.logs[1].end_offset(source) == self.logs[0].end_offset(source)
            committed = self.logs[1].committed("bridge", source)
            assert committed == self.logs[0].committed("bridge", source)
            assert not found or found[0].offset <= max(committed, 0)  # never trimmed past the watermark

    def _pick(self, data: st.DataObject) -> list[Follower]:
        return self.members[data.draw(st.sampled_from(sorted(self.members)))]

    def teardown(self) -> None:
        for log in self.logs:
            log.close()


def _bare(record: Record) -> tuple[TopicPartition, int, str, bytes]:
    return record.source, record.offset, record.key, record.value


def test_it_behaves_like_its_model(log_redis: RedisServer) -> None:
    run_state_machine_as_test(
        lambda: TwoLogs(log_redis.url),  # type: ignore[arg-type]  # a factory will do
        settings=settings(
            max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
