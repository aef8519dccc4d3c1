"""`manage.py setup_topics`, run as an operator runs it, on each kind of event log."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from django.core.management import CommandError, call_command
from django.test import override_settings
from pytest_django import DjangoDbBlocker

from demo.ports import free_ports
from demo.redis_server import LOG_RULES, RedisServer
from messaging import topics, wiring
from messaging.errors import LogUnavailable
from messaging.eventlog.kafka_link import KafkaUrl
from messaging.eventlog.kafka_producer import MAX_MESSAGE_BYTES, OVERHEAD_BYTES
from messaging.ports import MessageStore, NewRecord, ParkedRecord, ParkScope, TopicPartition
from messaging.topics import MESSAGES, Topic
from messaging.wiring import GROUP, ManagedLog
from tests.contracts.message_stores import orm_on_sqlite
from tests.hub import log_at
from tests.stack.servers import needed

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE_S: Final = 20.0


class Nobody:
    """A listener with nothing to do."""

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None: ...
    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


@pytest.fixture(params=["redis", pytest.param("kafka", marks=pytest.mark.cluster)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty event log."""
    if request.param == "kafka":
        yield f"{needed('kafka')}/{uuid.uuid4().hex}"
        return
    server = RedisServer(tmp_path / "redis", rules=LOG_RULES).start()
    yield server.url
    server.stop()


@pytest.fixture
def log(url: str) -> Iterator[ManagedLog]:
    log: Any = log_at(url)
    yield log
    log.close()


@pytest.fixture(autouse=True)
def store(
    tmp_path: Path, django_db_blocker: DjangoDbBlocker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MessageStore]:
    """That of the commands too."""
    with django_db_blocker.unblock(), orm_on_sqlite(tmp_path) as store:
        monkeypatch.setenv("MESSAGES_DATABASE_URL", f"sqlite:///{tmp_path}/store.sqlite3")
        yield store


@pytest.fixture
def setup(log: ManagedLog, store: MessageStore) -> Callable[..., subprocess.CompletedProcess[str]]:
    return partial(run_here, log, store)


def run_here(
    log: ManagedLog, store: MessageStore, *arguments: str, partitions: int = 3
) -> subprocess.CompletedProcess[str]:
    """The command in this process, told as if it had had one of its own: most of what that takes is its start."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with override_settings(PARTITIONS=partitions), pytest.MonkeyPatch.context() as patched:
        patched.setattr(wiring, "event_log", lambda: log)
        patched.setattr(wiring, "message_store", lambda: store)
        try:
            call_command("setup_topics", *arguments, stdout=output, stderr=errors)
        except CommandError as error:
            status = error.returncode
            errors.write(str(error))
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "manage.py", "setup_topics", *arguments]


def popen_at(url: str, partitions: int = 3) -> dict[str, Any]:
    env = {**os.environ, "EVENT_LOG_URL": url, "PARTITIONS": str(partitions)}
    return {"cwd": ROOT, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def at(url: str, partitions: int = 3) -> dict[str, Any]:
    return {**popen_at(url, partitions), "timeout": 60}


def widths(log: ManagedLog) -> dict[str, int]:
    """How many partitions each topic has; those without are not there."""
    declared = [Topic(each.name, 10_000) for each in wiring.all_topics()]
    return {each.topic: int(each.found) for each in log.drift(declared) if each.what == "partitions"}


def test_it_creates_every_topic_as_declared_and_finds_nothing_to_do_the_second_time(
    setup: Callable[..., subprocess.CompletedProcess[str]], log: ManagedLog
) -> None:
    for _ in range(2):
        done = setup()
        assert (done.returncode, done.stderr) == (0, "")
        assert "messages: 3 partitions, kept 7 days" in done.stdout
    assert widths(log) == {each.name: each.partitions for each in wiring.all_topics()}
    assert log.drift(wiring.all_topics()) == []


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(
    setup: Callable[..., subprocess.CompletedProcess[str]], log: ManagedLog
) -> None:
    done = setup("--dry-run")
    assert done.returncode == 0
    assert "would create messages\n" in done.stdout
    assert widths(log) == {}
    log.ensure_topics(wiring.all_topics())
    done = setup("--dry-run", "--drained", partitions=5)
    assert done.returncode == 0
    assert "would grow messages from 3 to 5 partitions" in done.stdout
    assert widths(log)[MESSAGES] == 3


def test_fewer_partitions_than_declared_are_a_drift_that_is_told_and_not_mended(
    setup: Callable[..., subprocess.CompletedProcess[str]], log: ManagedLog
) -> None:
    setup(partitions=3)
    done = setup(partitions=5)
    assert done.returncode == 1
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("messages ")] == [
        ["messages", "partitions", "5", "3"]
    ]
    assert "--drained" in done.stderr
    assert widths(log)[MESSAGES] == 3


def test_it_never_shrinks(setup: Callable[..., subprocess.CompletedProcess[str]], log: ManagedLog) -> None:
    setup(partitions=5)
    done = setup("--drained", partitions=3)
    assert done.returncode == 0
    assert "works so. Hint: PARTITIONS must be what is there" in done.stderr
    assert widths(log)[MESSAGES] == 5


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("changed", "status", "told"),
    [
        ({"retention.ms": "-1", "retention.bytes": "1000000", "max.message.bytes": "9000000"}, 0, "works so. Hint"),
        ({"cleanup.policy": "compact,delete"}, 1, "change cleanup.policy with Kafka's own tools"),
        ({"max.message.bytes": "1000"}, 1, "change max.message.bytes with Kafka's own tools"),
        ({"min.insync.replicas": "2"}, 1, "change min.insync.replicas with Kafka's own tools"),
    ],
)
def test_only_a_setting_that_breaks_a_promise_fails(changed: dict[str, str], status: int, told: str) -> None:
    """Others may be what an operator wanted: they are told and hold no start back."""
    url = f"{needed('kafka')}/{uuid.uuid4().hex}"
    where = KafkaUrl.parse(url)
    admin = AdminClient({"bootstrap.servers": where.servers})
    config = {"max.message.bytes": str(MAX_MESSAGE_BYTES + OVERHEAD_BYTES), "segment.ms": "86400000", **changed}
    [made] = admin.create_topics([NewTopic(f"{where.prefix}{MESSAGES}", 3, 1, config=config)]).values()
    made.result(PATIENCE_S)
    done = subprocess.run(command(), **at(url), check=False)
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("messages ")]
    assert {row[1] for row in rows} == {setting.replace("retention.ms", "retention") for setting in changed}


def test_records_are_kept_as_long_as_the_environment_says(
    url: str, log: ManagedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETENTION_DAYS", "2")
    done = subprocess.run(command(), **at(url), check=True)
    assert "messages: 3 partitions, kept 2 days" in done.stdout
    assert {each.declared for each in log.drift(wiring.all_topics())} == {"7 days, 0:00:00"}
    monkeypatch.setenv("RETENTION_DAYS", "13")
    assert "RETENTION_DAYS is 1 to 12" in subprocess.run(command(), **at(url), check=False).stderr


def test_drained_topics_grow_and_take_records_on_their_new_partitions(
    setup: Callable[..., subprocess.CompletedProcess[str]], log: ManagedLog, url: str
) -> None:
    setup()
    finish(log, log.append([NewRecord(MESSAGES, f"key-{n}", b"1") for n in range(30)]))
    done = setup("--drained", partitions=6)
    assert (done.returncode, done.stderr) == (0, "")
    assert widths(log) == {each.name: 6 if each.name in wiring.work_topics() else 1 for each in wiring.all_topics()}
    fresh = log_at(url)  # nothing that appended before the change may go on
    places = fresh.append([NewRecord(MESSAGES, f"key-{n}", b"1") for n in range(60)])
    assert {source.partition for source, _ in places} == set(range(6))
    fresh.close()


def test_it_does_not_grow_while_records_wait_and_says_which(
    setup: Callable[..., subprocess.CompletedProcess[str]], log: ManagedLog
) -> None:
    setup()
    [(source, _)] = log.append([NewRecord(MESSAGES, "key", b"1")])
    done = setup("--drained", partitions=6)
    assert done.returncode == 1
    assert f"messages/{source.partition} has a lag of 1" in done.stderr
    assert set(widths(log).values()) == {1, 3}  # nor do the topics that nothing waits on


def test_it_does_not_grow_while_a_conversation_is_held_back_and_says_where(
    setup: Callable[..., subprocess.CompletedProcess[str]], log: ManagedLog, store: MessageStore
) -> None:
    """What is set aside counts as done, and is tried again by partition: what a lower one gets would go before it."""
    setup()
    scope, source = ParkScope("whatsapp-outbound", uuid.uuid4()), TopicPartition("whatsapp-outbound", 2)
    store.park(scope, [ParkedRecord(source, 0, b"{}", 0, 1)], due_at_ms=10**15)
    assert "in the way: conversations are held back" in setup("--dry-run", "--drained", partitions=6).stdout
    done = setup("--drained", partitions=6)
    assert done.returncode == 1
    assert "conversations are held back on whatsapp-outbound" in done.stderr
    assert set(widths(log).values()) == {1, 3}
    store.unpark(scope, [(source, 0)], next_due_ms=0)
    assert setup("--drained", partitions=6).returncode == 0


def test_it_does_not_grow_while_a_bridge_lives_and_says_which(
    setup: Callable[..., subprocess.CompletedProcess[str]], log: ManagedLog, url: str
) -> None:
    setup()
    member = log.subscribe([MESSAGES], group=GROUP, member="bridge-7", listener=Nobody())
    deadline_s = time.monotonic() + PATIENCE_S
    while not log.members(GROUP):
        assert time.monotonic() < deadline_s
        member.poll(0.1)
    running = subprocess.Popen(command("--drained"), **popen_at(url, partitions=6))
    while running.poll() is None:
        member.poll(0.1)
    _, errors = running.communicate()
    assert running.returncode == 1
    assert "the group has members (" in errors
    assert widths(log)[MESSAGES] == 3
    member.close()


def test_a_log_that_is_away_is_named_with_the_remedy() -> None:
    for scheme in ("redis", "kafka"):
        done = subprocess.run(command("--timeout=1"), **at(f"{scheme}://127.0.0.1:{free_ports(1)[0]}"), check=False)
        assert done.returncode == 3
        assert "EVENT_LOG_URL" in done.stderr
        assert "Traceback" not in done.stderr


def test_it_waits_for_a_server_that_is_starting_and_says_so(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "late", rules=LOG_RULES)
    running = subprocess.Popen(command(), **popen_at(server.url))
    assert running.stderr
    assert re.match(r"waiting, \d+ s left: The event log \(", running.stderr.readline())
    server.start()
    try:
        output, _ = running.communicate(timeout=PATIENCE_S)
        assert running.returncode == 0
        assert "messages: 3 partitions" in output
    finally:
        running.send_signal(signal.SIGKILL)
        server.stop()


def test_help_names_the_exit_codes() -> None:
    done = subprocess.run(command("--help"), **at("redis://127.0.0.1:1/0"), check=True)
    assert "Exit code 0" in done.stdout
    assert "--drained" in done.stdout


def finish(log: ManagedLog, places: Sequence[tuple[TopicPartition, int]]) -> None:
    """The group reads and commits all of them, and goes."""
    member = log.subscribe([topics.MESSAGES], group=GROUP, member="a", listener=Nobody())
    found = 0
    deadline_s = time.monotonic() + PATIENCE_S
    while found < len(places):
        assert time.monotonic() < deadline_s
        found += len(member.poll(0.2))
    member.commit({source: log.end_offset(source) for source, _ in places})
    member.close()


class Restarting:
    """A log that is away for a moment at one of the things that are asked of it."""

    def __init__(self, log: ManagedLog, moment: str) -> None:
        self._log, self._moment = log, moment

    def __getattr__(self, name: str) -> Any:
        if name != self._moment:
            return getattr(self._log, name)
        self._moment = ""
        raise LogUnavailable("The event log restarts.")


@pytest.mark.parametrize("moment", ["ensure_topics", "lacking", "members", "grow"])
def test_it_waits_also_for_a_server_that_restarts_meanwhile(log: ManagedLog, store: MessageStore, moment: str) -> None:
    log.ensure_topics(wiring.all_topics())
    restarting: Any = Restarting(log, moment)
    done = run_here(restarting, store, "--drained", "--timeout=20", partitions=4)
    assert done.returncode == 0
    assert re.fullmatch(r"waiting, \d+ s left: The event log restarts\.\n", done.stderr)
    assert widths(log)[MESSAGES] == 4
