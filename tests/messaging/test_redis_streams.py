"""What the Redis Streams log does beyond the port's contract: full, stalled and restarted servers, and retention."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import redis

from core.clock import ManualClock
from demo.redis_server import LOG_RULES, RedisServer
from messaging.errors import LeaseLost, LogUnavailable
from messaging.eventlog.memory import MemoryLog
from messaging.eventlog.redis_streams import RedisStreamsLog
from messaging.ports import NewRecord, Record, TopicPartition
from messaging.topics import Topic, all_topics
from tests.bounds import once_within, refused_s
from tests.conftest import redis_executables

TTL_S = 0.9
ONE = TopicPartition("messages", 0)
FAR_FUTURE_MS = 4_000_000_000_000


class Listener:
    def __init__(self) -> None:
        self.told: list[str] = []

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        self.told.append("assigned")

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append("revoked")

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append("lost")


@pytest.fixture(scope="module", params=list(redis_executables().values()), ids=list(redis_executables()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("log"), rules=LOG_RULES, executable=request.param).start()
    yield server
    server.stop()


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def log(server: RedisServer) -> Iterator[RedisStreamsLog]:
    log = open_log(server)
    log.ensure_topics([Topic("messages", partitions=1)])
    yield log
    log.close()


def open_log(server: RedisServer, **options: object) -> RedisStreamsLog:
    defaults: dict[str, object] = {"lease_ttl_s": TTL_S, "namespace": uuid.uuid4().hex}
    return RedisStreamsLog(server.url, **{**defaults, **options})  # type: ignore[arg-type]


def record(value: bytes = b"x", topic: str = "messages") -> NewRecord:
    return NewRecord(topic, "key", value)


def collect(poll: Callable[[float], list[Record]], count: int) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + 15
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count}"
        found += poll(0.2)
    return found


def read_and_commit(log: RedisStreamsLog, *, count: int, upto: int, group: str = "bridge") -> None:
    subscription = log.subscribe(["messages"], group=group, member="a", listener=Listener())
    collect(subscription.poll, count)
    subscription.commit({ONE: upto})
    subscription.close()


def append_until_refused(log: RedisStreamsLog) -> str:
    """What the refusal says."""
    for _ in range(100):
        try:
            log.append([record(b"x" * 500_000)])
        except LogUnavailable as refused:
            return refused.detail
    raise AssertionError("never refused")


# --- servers in trouble ------------------------------------------------------------------------------------------


def test_a_full_server_refuses_records_and_heals_by_being_read(
    server: RedisServer, admin: redis.Redis, log: RedisStreamsLog
) -> None:
    """Leases, commits and what follows from what is read must go through while entries are refused, or a full log could
    never be emptied again. Records are young, and fit their partition: they go because the server is full."""
    subscription = log.subscribe(["messages"], group="bridge", member="a", listener=Listener())
    admin.config_set("maxmemory", int(admin.info("memory")["used_memory"]) + 4 * 1024 * 1024)
    try:
        assert "OOM" in append_until_refused(log)
        count = log.end_offset(ONE)
        assert count == len(log.read(ONE, start=0, limit=100)) > 0  # what was refused left no trace
        admin.config_set("maxmemory", int(admin.info("memory")["used_memory"]) - 1024 * 1024)  # and no byte less
        assert log.append([record(b"y" * 500_000)], onward=True) == [(ONE, count)]
        found = collect(subscription.poll, count + 1)
        subscription.commit({ONE: found[-1].offset})
        assert log.committed("bridge", ONE) == count
        assert 0 < log.trim(int(time.time() * 1000)) <= count
        assert log.append([record()]) == [(ONE, count + 1)]
    finally:
        admin.config_set("maxmemory", 0)
    assert [each.offset for each in collect(subscription.poll, 1)] == [count + 1]


def test_a_full_server_keeps_what_nobody_has_done_with(
    server: RedisServer, admin: redis.Redis, log: RedisStreamsLog
) -> None:
    letters = TopicPartition("messages-dead-letters", 0)
    log.ensure_topics(all_topics((), 1))
    log.append([record(b"x" * 500_000, topic=topic) for topic in ("messages", letters.topic) for _ in range(3)])
    read_and_commit(log, count=3, upto=2)
    admin.config_set("maxmemory", 1)
    try:
        assert log.trim(int(time.time() * 1000)) == 2
    finally:
        admin.config_set("maxmemory", 0)
    assert [len(log.read(source, start=0, limit=9)) for source in (ONE, letters)] == [1, 3]


def test_a_server_that_does_not_tell_how_full_it_is_is_trimmed_all_the_same(
    admin: redis.Redis, log: RedisStreamsLog
) -> None:
    log.append([record() for _ in range(20)])
    read_and_commit(log, count=20, upto=20)
    admin.acl_setuser("default", enabled=True, nopass=True, commands=["-info"])
    try:
        assert (log.trim(int(time.time() * 1000)), log.trim(FAR_FUTURE_MS)) == (0, 20)
    finally:
        admin.acl_setuser("default", enabled=True, nopass=True, commands=["+info"])


def test_topics_are_made_and_retuned_on_a_full_server(admin: redis.Redis, log: RedisStreamsLog) -> None:
    """Or a system that stopped with its log full would not start again."""
    topics = [Topic("messages", 1, retention=timedelta(days=1)), Topic("new", 1)]
    admin.config_set("maxmemory", 1)
    try:
        log.ensure_topics(topics)
    finally:
        admin.config_set("maxmemory", 0)
    assert log.drift(topics) == []


def test_a_read_only_server_is_unavailable(server: RedisServer, admin: redis.Redis, log: RedisStreamsLog) -> None:
    admin.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(LogUnavailable, match="NOREPLICAS"):
            log.append([record()])
    finally:
        admin.config_set("min-replicas-to-write", 0)
    admin.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(LogUnavailable):
            log.append([record()])
    finally:
        admin.replicaof("NO", "ONE")
    assert log.append([record()]) == [(ONE, 0)]


def test_a_stalled_server_is_given_up_in_time_on_old_and_new_connections(
    server: RedisServer,
) -> None:
    namespace = uuid.uuid4().hex
    log, stranger = (open_log(server, append_timeout_s=1.0, namespace=namespace) for _ in range(2))
    log.ensure_topics([Topic("messages", partitions=1)])
    log.append([record()])
    server.signal(signal.SIGSTOP)
    try:
        for call in (
            lambda: log.append([record()]),
            lambda: log.append([record(b"x" * 1_000_000) for _ in range(20)]),  # more than the socket takes
            lambda: stranger.append([record()]),
            stranger.ping,
        ):
            once_within(2.5, partial(refused_s, call, LogUnavailable))
    finally:
        server.signal(signal.SIGCONT)
    deadline_s, places = time.monotonic() + 20, list[tuple[TopicPartition, int]]()
    while not places:
        assert time.monotonic() < deadline_s
        with suppress(LogUnavailable):  # it wakes up on a busy machine
            places = log.append([record(b"after")])
    [late] = places
    assert log.read(ONE, start=late[1], limit=1)[0].value == b"after"  # no late answer was mistaken for this one's


def test_an_unreachable_server_is_given_up_within_the_time_out() -> None:
    log = RedisStreamsLog("redis://user:hunter2hunter2@127.0.0.1:1/0", append_timeout_s=1.0)
    with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:1") as caught:
        log.append([record()])
    assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)


def test_a_wrong_password_is_unavailable_not_a_bug(server: RedisServer) -> None:
    log = open_log(server)
    wrong = RedisStreamsLog(server.url.replace("127.0.0.1", "nobody:wrong@127.0.0.1"))
    with pytest.raises(LogUnavailable):
        wrong.ping()
    log.ping()


def test_scripts_are_taught_again_to_a_server_that_forgot_them(admin: redis.Redis, log: RedisStreamsLog) -> None:
    subscription = log.subscribe(["messages"], group="bridge", member="a", listener=Listener())
    for offset in range(3):
        admin.script_flush()
        assert log.append([record()]) == [(ONE, offset)]
        admin.script_flush()
        found = collect(subscription.poll, 1)
        admin.script_flush()
        subscription.commit({ONE: found[0].offset + 1})
    assert log.committed("bridge", ONE) == 3


def test_an_idle_connection_that_the_server_closed_costs_no_error(admin: redis.Redis, log: RedisStreamsLog) -> None:
    log.append([record()])
    admin.client_kill_filter(_type="normal", skipme=True)
    assert log.append([record()]) == [(ONE, 1)]


# --- bounds ---


def test_a_paused_partition_is_not_even_fetched(admin: redis.Redis, log: RedisStreamsLog) -> None:
    """Fetching it ahead would fill this process's memory for as long as the pause lasts."""
    subscription = log.subscribe(["messages"], group="bridge", member="a", listener=Listener())
    subscription.poll(0)
    subscription.pause([ONE])
    log.append([record(b"x" * 100_000) for _ in range(10)])
    before = admin.info("stats")["total_net_output_bytes"]
    assert subscription.poll(0) == []
    assert admin.info("stats")["total_net_output_bytes"] - before < 100_000
    subscription.resume([ONE])
    assert len(collect(subscription.poll, 10)) == 10


def test_a_poll_of_more_partitions_than_records_is_bounded_too(log: RedisStreamsLog) -> None:
    log.ensure_topics([Topic("wide", partitions=1200)])
    reached: set[TopicPartition] = set()
    for first in range(0, 12_000, 500):  # each append has its own deadline
        reached |= {source for source, _ in log.append([NewRecord("wide", f"{first + n}", b"x") for n in range(500)])}
    assert len(reached) > 1000
    subscription = log.subscribe(["wide"], group="bridge", member="a", listener=Listener())
    assert len(subscription.poll(0)) == 1000


# --- leases ------------------------------------------------------------------------------------------------------


def _poll_until_lost(url: str, namespace: str, say: Connection) -> None:
    """A member in a process of its own: reports what it is told and what it reads, tries to commit when it lost."""
    log = RedisStreamsLog(url, lease_ttl_s=TTL_S, namespace=namespace)
    listener = Listener()
    subscription = log.subscribe(["messages"], group="bridge", member="stopped", listener=listener)
    subscription.poll(0)
    say.send(listener.told)
    found: list[Record] = []
    while "lost" not in listener.told:
        found += subscription.poll(0.2)
    try:
        subscription.commit({ONE: 1000})
        say.send((len(found), "committed"))
    except LeaseLost:
        say.send((len(found), "refused"))


def test_a_stopped_process_returns_and_commits_nothing_of_what_it_lost(server: RedisServer) -> None:
    """Stopped in the middle of a blocking read whose answer came while it slept."""
    namespace = uuid.uuid4().hex
    log = open_log(server, namespace=namespace)
    log.ensure_topics([Topic("messages", partitions=1)])
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    child = spawn.Process(target=_poll_until_lost, args=(server.url, namespace, theirs))
    child.start()
    try:
        assert child.pid is not None
        assert mine.poll(30)
        assert mine.recv() == ["assigned"]
        _stop(child.pid)
        log.append([record(), record()])
        heir = log.subscribe(["messages"], group="bridge", member="heir", listener=Listener())
        found = collect(heir.poll, 2)
        heir.commit({ONE: found[-1].offset + 1})
        _signal(child.pid, signal.SIGCONT)
        while not mine.poll(0.05):
            assert heir.poll(0) == []
            assert child.is_alive()
        assert mine.recv() == (0, "refused")
        assert log.committed("bridge", ONE) == 2
    finally:
        child.kill()
        child.join()


def _signal(pid: int, number: signal.Signals) -> None:
    import os

    os.kill(pid, number)


def _stop(pid: int) -> None:
    """SIGSTOP, and wait until the kernel says that it holds."""
    _signal(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < deadline


def test_every_new_owner_has_a_higher_epoch_also_on_a_server_that_began_anew(
    admin: redis.Redis, server: RedisServer
) -> None:
    """Workers know the epochs of before, and refuse what is older."""
    namespace = uuid.uuid4().hex
    leases = "{" + namespace + "}:leases:bridge"
    log = open_log(server, namespace=namespace)
    log.ensure_topics([Topic("messages", partitions=1)])
    epochs = []
    for begins_anew in (False, False, True):
        if begins_anew:
            admin.delete(leases)
        log.subscribe(["messages"], group="bridge", member="a", listener=Listener()).poll(0)
        epochs.append(json.loads(admin.hget(leases, "messages/0") or "")["epoch"])
    assert epochs == sorted(set(epochs))


def test_a_newcomer_has_its_share_long_before_the_next_heartbeat(server: RedisServer) -> None:
    """Members wait on the group's bell: with a lease of a minute nobody would notice for twenty seconds otherwise."""
    log = open_log(server, lease_ttl_s=60.0)
    log.ensure_topics([Topic("messages", partitions=2)])
    settled = Listener()
    first = log.subscribe(["messages"], group="bridge", member="a", listener=settled)
    first.poll(0)
    waiting = threading.Thread(target=first.poll, args=(30,))
    waiting.start()
    newcomer = Listener()
    second = log.subscribe(["messages"], group="bridge", member="b", listener=newcomer)
    started = time.monotonic()
    while "assigned" not in newcomer.told:
        assert time.monotonic() - started < 15
        second.poll(1)
    assert settled.told == ["assigned", "revoked"]
    log.append([NewRecord("messages", f"{n}", b"x") for n in range(20)])  # lets the first one's poll end
    waiting.join()


# --- retention ---------------------------------------------------------------------------------------------------


def test_old_records_go_when_every_group_has_done_with_them_and_never_before(log: RedisStreamsLog) -> None:
    log.append([record() for _ in range(20)])
    read_and_commit(log, count=20, upto=12)
    read_and_commit(log, count=20, upto=5, group="audit")
    assert log.trim(FAR_FUTURE_MS) == 5
    assert [each.offset for each in log.read(ONE, start=0, limit=100)] == list(range(5, 20))
    assert log.trim(FAR_FUTURE_MS) == 0
    read_and_commit(log, count=15, upto=20, group="audit")
    assert log.trim(FAR_FUTURE_MS) == 7
    assert log.append([record()]) == [(ONE, 20)]


def test_a_group_that_never_committed_holds_everything(log: RedisStreamsLog) -> None:
    log.append([record() for _ in range(20)])
    read_and_commit(log, count=20, upto=20)
    log.subscribe(["messages"], group="slow", member="a", listener=Listener()).poll(0)
    assert log.trim(FAR_FUTURE_MS) == 0


def test_young_records_stay_while_they_fit(log: RedisStreamsLog) -> None:
    log.append([record() for _ in range(20)])
    read_and_commit(log, count=20, upto=20)
    assert log.trim(int(time.time() * 1000)) == 0


def test_a_partition_above_its_size_drops_the_oldest_down_to_it(log: RedisStreamsLog) -> None:
    log.ensure_topics([Topic("messages", partitions=1, max_bytes=50_000)])
    log.append([record(b"x" * 997) for _ in range(1200)])  # 1,000 bytes with the key
    read_and_commit(log, count=1200, upto=1180)
    assert log.trim(int(time.time() * 1000)) == 1150
    read_and_commit(log, count=20, upto=1200)
    assert log.trim(int(time.time() * 1000)) == 0
    log.append([record(b"x" * 997)])
    read_and_commit(log, count=1, upto=1201)
    assert log.trim(int(time.time() * 1000)) == 1


def test_dead_letters_go_by_age_alone(log: RedisStreamsLog) -> None:
    """Nobody has done with them, and what expires with an outage may be more than a partition keeps."""
    declared = all_topics(("whatsapp",), 1, max_bytes=10_000)
    model = MemoryLog()
    for each in (log, model):
        each.ensure_topics(declared)
        each.append([record(b"x" * 1000, topic="whatsapp-outbound-dead-letters") for _ in range(100)])
        assert (each.trim(int(time.time() * 1000)), each.trim(FAR_FUTURE_MS)) == (0, 100)


def test_the_bound_that_dead_letters_had_is_told_and_taken_away(log: RedisStreamsLog) -> None:
    declared = all_topics(("whatsapp",), 1, max_bytes=10_000)
    log.ensure_topics([replace(topic, max_bytes=10_000) for topic in declared])
    drift = log.drift(declared)
    assert {(each.topic, each.what, each.declared, each.found) for each in drift} == {
        (topic.name, "bytes", "unlimited", "10000") for topic in declared if topic.name.endswith("-dead-letters")
    }
    assert not any(each.is_shortage for each in drift)
    log.ensure_topics(declared)
    assert log.drift(declared) == []


def test_a_group_that_comes_after_trimming_begins_at_the_logs_start(log: RedisStreamsLog) -> None:
    log.append([record() for _ in range(20)])
    read_and_commit(log, count=20, upto=15)
    log.trim(FAR_FUTURE_MS)
    assert log.committed("newcomer", ONE) == 15
    newcomer = log.subscribe(["messages"], group="newcomer", member="a", listener=Listener())
    assert [each.offset for each in collect(newcomer.poll, 5)] == list(range(15, 20))


def test_subscriptions_trim_what_they_own_and_what_nobody_reads(server: RedisServer) -> None:
    clock = ManualClock()
    log = open_log(server, clock=clock, lease_ttl_s=60.0)
    log.ensure_topics([Topic("messages", 1), Topic("messages-dead-letters", 1), Topic("elsewhere", 1)])
    dead, elsewhere = TopicPartition("messages-dead-letters", 0), TopicPartition("elsewhere", 0)
    topics = ("messages", dead.topic, elsewhere.topic)
    log.append([record(topic=topic) for topic in topics for _ in range(1000)])
    log.subscribe([elsewhere.topic], group="other", member="x", listener=Listener()).poll(0)
    subscription = log.subscribe(["messages"], group="bridge", member="a", listener=Listener())
    collect(subscription.poll, 1000)
    subscription.commit({ONE: 1000})
    clock.advance(10 * 365 * 86400)  # everything is old, and the next round of trimming due
    deadline = time.monotonic() + 15
    while log.read(ONE, start=0, limit=1) or log.read(dead, start=0, limit=1):
        assert time.monotonic() < deadline
        subscription.poll(0)
        clock.advance(30)  # the next beat
    assert len(log.read(elsewhere, start=0, limit=1000)) == 1000
