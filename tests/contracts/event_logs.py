"""Every adapter of the EventLog port, for the contract suite: an adapter is added with one entry."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo.redis_server import LOG_RULES, RedisServer
from messaging.eventlog.kafka import KafkaLog
from messaging.eventlog.memory import MemoryLog
from messaging.eventlog.redis_streams import RedisStreamsLog
from messaging.ports import EventLog
from tests.conftest import redis_executables
from tests.stack.kafka import Kafka
from tests.stack.servers import needed

LEASE_TTL_S = 0.9
APPEND_TIMEOUT_S = 4.0  # a busy machine's disk may take a second to sync
KAFKA_SESSION_S = 1.0
KAFKA_MAX_POLL_S = 3.0
KAFKA_APPEND_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class LogUnderTest:
    """A fresh, empty log."""

    new_handle: Callable[[], EventLog]
    stop: Callable[[], None]  # it answers nobody
    start: Callable[[], None]  # and again, with what it held
    lease_ttl_s: float = LEASE_TTL_S
    append_timeout_s: float = APPEND_TIMEOUT_S
    _handles: list[EventLog] = field(default_factory=list, init=False)

    def open(self) -> EventLog:
        """A handle on it as one more process would hold it."""
        self._handles.append(self.new_handle())
        return self._handles[-1]

    def close(self) -> None:
        """All handles: hundreds that look for a server which a test took away would slow its return."""
        while self._handles:
            self._handles.pop().close()


@contextmanager
def memory(_directory: Path) -> Iterator[Callable[[], LogUnderTest]]:
    def fresh() -> LogUnderTest:
        log = MemoryLog(lease_ttl_s=LEASE_TTL_S)
        return LogUnderTest(lambda: log, lambda: log.set_available(False), lambda: log.set_available(True))

    yield fresh


@contextmanager
def redis(directory: Path, executable: str) -> Iterator[Callable[[], LogUnderTest]]:
    server = RedisServer(directory, rules=LOG_RULES, executable=executable).start()

    def fresh() -> LogUnderTest:
        namespace = uuid.uuid4().hex

        def open_log() -> RedisStreamsLog:
            return RedisStreamsLog(
                server.url, append_timeout_s=APPEND_TIMEOUT_S, lease_ttl_s=LEASE_TTL_S, namespace=namespace
            )

        def start() -> None:
            if server.process is None:
                server.start()

        return LogUnderTest(open_log, server.kill, start)

    try:
        yield fresh
    finally:
        server.stop()


class QuickKafka(Kafka):
    """Allows members' sessions as short as tests want them, and forgets its own past life soon after a kill."""

    def prepare(self) -> None:
        super().prepare()
        with self._config.open("a") as config:
            config.write("group.min.session.timeout.ms=500\n")
            config.write("broker.session.timeout.ms=2000\nbroker.heartbeat.interval.ms=300\n")


@functools.cache
def _kafka_server() -> Kafka:
    directory = tempfile.mkdtemp(prefix="chat4all-kafka-")
    server = QuickKafka(Path(directory))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(server.close)
    return server.start()


def kafka_server() -> Kafka:
    """One for all tests of this process, for them to kill and start: it ends with us. Its first start takes seconds."""
    needed("kafka")
    return _kafka_server()


@contextmanager
def kafka(_directory: Path) -> Iterator[Callable[[], LogUnderTest]]:
    server = kafka_server()

    def fresh() -> LogUnderTest:
        url = f"{server.url}/{uuid.uuid4().hex}?session_timeout_s={KAFKA_SESSION_S}"

        def open_log() -> KafkaLog:
            return KafkaLog(url, append_timeout_s=KAFKA_APPEND_TIMEOUT_S, max_poll_s=KAFKA_MAX_POLL_S)

        def start() -> None:
            if not server.family():
                server.start()

        return LogUnderTest(open_log, server.kill, start, KAFKA_SESSION_S, KAFKA_APPEND_TIMEOUT_S)

    yield fresh


Adapter = Callable[[Path], AbstractContextManager[Callable[[], LogUnderTest]]]
"""Runs what the adapter needs, in a directory of its own, for a whole module; each call inside makes a fresh log."""


def _redis(executable: str) -> Adapter:
    return lambda directory: redis(directory, executable)


EVENT_LOGS: dict[str, Adapter] = {
    "memory": memory,
    **{name: _redis(executable) for name, executable in redis_executables().items()},
    "kafka": kafka,
}
EVENT_LOG_PARAMS: list[Any] = [
    pytest.param(name, marks=pytest.mark.cluster) if name == "kafka" else name for name in EVENT_LOGS
]
"""Their names, for parametrised fixtures: some need servers that not every machine has."""
