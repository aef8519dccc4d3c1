"""A log that is full refuses what comes from outside, and what stands behind it makes room again."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
import redis
from django.db import connections
from pytest_django import DjangoDbBlocker

from connectors.errors import PermanentDeliveryError
from core.clock import ManualClock
from core.errors import Unavailable
from demo.redis_server import LOG_RULES, RedisServer
from messaging import topics
from messaging.bridge import Bridge
from messaging.domain import Message, Status
from messaging.errors import LogUnavailable
from messaging.eventlog import subscription
from messaging.eventlog.memory import MemoryLog
from messaging.eventlog.redis_streams import RedisStreamsLog
from messaging.ports import NewRecord, TopicPartition
from messaging.services.batches import AWAY, Outcomes
from messaging.services.deliver import MAX_AGE_MS, deliver
from messaging.services.inbound import resolve
from messaging.services.persist import persist
from messaging.services.reading import acknowledge
from messaging.services.recent import RecentMessages
from messaging.services.statuses import apply_statuses
from messaging.wiring import ManagedLog
from messaging.work import DONE, EXPIRED, Batch, BatchState, Completion, LaneId, Work
from tests.conftest import redis_executables
from tests.contracts.message_stores import ALICE, BOB, orm_on_sqlite
from tests.messaging.test_accept import Counter
from tests.messaging.test_inbound import Desk, reports, says
from tests.messaging.workbench import CHANNELS, FreeLease, Fuse, ShiftedClock, Workbench, items
from tests.town import eventually

GROUP = "bridge"
SOURCES = [TopicPartition(topic, 0) for topic in topics.work_topics(CHANNELS)]


class Workers:
    """A dispatcher that does the work itself, as `messaging.tasks` does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._replies: queue.SimpleQueue[Completion] = queue.SimpleQueue()

    def dispatch(self, batch: Batch) -> None:
        try:
            outcomes = self._outcomes(batch)
        except Unavailable:
            outcomes = {work.record.offset: AWAY for work in batch.works}
        self._replies.put(Completion(batch.lane, batch.epoch, outcomes))

    def send_again(self, batch: Batch) -> None: ...

    def completions(self, timeout_s: float) -> list[Completion]:
        with suppress(queue.Empty):
            return [self._replies.get(timeout=min(timeout_s, 0.05))]
        return []

    def inspect(self, batches: list[Batch]) -> list[BatchState]:
        return [BatchState.RUNNING for _ in batches]

    def _outcomes(self, batch: Batch) -> Outcomes:
        bench, lease, recent = self._desk.bench, FreeLease(), RecentMessages()
        work = items([each.record for each in batch.works])
        deadline_s = bench.clock.monotonic_s() + 5
        match batch.lane.source.topic:
            case topics.MESSAGES:
                return persist(work, store=bench.store, log=bench.log, notify=bench.sockets, lease=lease, recent=recent)
            case topics.STATUS_UPDATES:
                return apply_statuses(work, store=bench.store, notify=bench.sockets, lease=lease, recent=recent)
            case topics.INBOUND:
                return resolve(work, self._desk.inbound(Fuse(0)), lease=lease, deadline_s=deadline_s)
            case _:
                return deliver(work, bench.delivery(), owner=batch.epoch, lease=lease, deadline_s=deadline_s)


class FullLog(MemoryLog):
    """Takes what follows from its records and nothing else, from when on it is told."""

    is_full = False

    def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:
        if self.is_full and not onward:
            raise LogUnavailable("full")
        return super().append(records, onward=onward)


@pytest.fixture(params=list(redis_executables().values()), ids=list(redis_executables()))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "log", rules=LOG_RULES, executable=request.param).start()
    yield server
    server.stop()


@pytest.fixture
def bench(server: RedisServer, tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[Workbench]:
    clock, log = ShiftedClock(), RedisStreamsLog(server.url)
    with django_db_blocker.unblock(), orm_on_sqlite(tmp_path, clock) as store:
        yield Workbench(store, clock, log=log)
    log.close()


def backlog(bench: Workbench) -> list[Message]:
    """Some megabytes to Carla, in ten conversations."""
    conversations = [bench.conversation() for _ in range(10)]
    messages = [bench.message(conversations[number % 10], f"{number} {'x' * 50_000}") for number in range(120)]
    bench.append(topics.MESSAGES, messages)
    return messages


def is_taken(bench: Workbench, message: Message) -> bool:
    """Whether the log takes it from outside."""
    with suppress(LogUnavailable):
        bench.append(topics.MESSAGES, [message])
        return True
    return False


def lags(bench: Workbench) -> dict[str, int]:
    found = {each.topic: bench.log.end_offset(each) - bench.log.committed(GROUP, each) for each in SOURCES}
    return {topic: lag for topic, lag in found.items() if lag}


@contextmanager
def running(bridge: Bridge) -> Iterator[None]:
    def run() -> None:
        try:
            bridge.run()
        finally:
            connections.close_all()  # those of this thread

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run)
        try:
            yield
        finally:
            bridge.stop()
            ended.result(20)


def test_a_full_log_is_emptied_by_who_works_behind_it_and_takes_entries_again(
    server: RedisServer, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers were away for long: nearly each of their steps appends, and nothing else makes room."""
    monkeypatch.setattr(subscription, "TRIM_EVERY_S", 0.2)
    desk = Desk(bench)
    desk.arrives(says("oi"))
    bench.log.append([NewRecord(topics.MESSAGES, "k", b"not ours")])
    messages = backlog(bench)
    refused = messages[-10:]
    for message in refused:
        bench.platform.will_not_come_to(message.content, PermanentDeliveryError("refused"))
    new = bench.message(bench.conversation(), "new")
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", int(admin.info("memory")["used_memory"]) - 1024 * 1024)
    assert not is_taken(bench, new)

    bridge = Bridge(bench.log, Workers(desk), topics=topics.work_topics(CHANNELS), group=GROUP, member="bridge")
    with running(bridge):
        eventually(lambda: not lags(bench), within_s=60)
        eventually(lambda: is_taken(bench, new), within_s=60)
        eventually(lambda: "new" in bench.platform.texts, within_s=60)

    for conversation_id in {message.conversation_id for message in messages}:
        ours = [each.content for each in messages if each.conversation_id == conversation_id]
        sent = [text for text in bench.platform.texts if text in ours]
        assert sent == [each for each in ours if each not in [message.content for message in refused]]
    standing = bench.store.statuses(refused)
    assert {status.status for each in refused for status in standing[each.message_id]} == {Status.FAILED}
    assert "oi" in [frame["message"]["content"] for frame in bench.sockets.of(ALICE, "message")]
    letters = TopicPartition(topics.dead_letters(topics.MESSAGES), 0)
    assert [each.value for each in bench.log.read(letters, start=0, limit=9)] == [b"not ours"]


def test_every_step_behind_a_full_log_goes_on_and_every_entry_is_refused(
    tmp_path: Path, django_db_blocker: DjangoDbBlocker
) -> None:
    clock = ManualClock()
    log = FullLog(clock=clock)
    with django_db_blocker.unblock(), orm_on_sqlite(tmp_path, clock) as store:
        bench = Workbench(store, clock, log=cast(ManagedLog, log))
        desk, conversation = Desk(bench), bench.conversation()
        desk.arrives(says("oi"), reports("DELIVERED", "wamid.unknown"))
        bench.append(topics.MESSAGES, [bench.message(conversation)])
        bench.outbound(conversation, "too old")
        clock.advance(MAX_AGE_MS / 1000 + 1)
        bench.outbound(bench.conversation(), "refused")
        bench.platform.will_not_come_to("refused", PermanentDeliveryError("refused"))
        log.is_full = True

        workers = Workers(desk)
        for topic in (topics.INBOUND, topics.MESSAGES, topics.outbound("whatsapp")):
            source = TopicPartition(topic, 0)
            works = tuple(Work(record) for record in log.read(source, start=0, limit=9))
            workers.dispatch(Batch(LaneId(source, 0), "epoch", works))
            [done] = workers.completions(0)
            assert set(done.outcomes.values()) == {DONE}, topic
        assert {reason for _, reason in bench.reported()} == {EXPIRED, "refused"}

        for enter in (
            lambda: Counter(bench).post("lunch", recipient_id=BOB),
            lambda: acknowledge(ALICE, [(conversation.conversation_id, uuid4())], log=log),
        ):
            with pytest.raises(LogUnavailable):
                enter()
