"""Every adapter of the EventLog port, for the contract suite: an adapter is added with one entry."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.redis_server import LOG_RULES, RedisServer
from messaging.eventlog.memory import MemoryLog
from messaging.eventlog.redis_streams import RedisStreamsLog
from messaging.ports import EventLog
from tests.conftest import redis_executables

LEASE_TTL_S = 0.9
APPEND_TIMEOUT_S = 4.0  # a busy machine's disk may take a second to sync


@dataclass(frozen=True)
class LogUnderTest:
    """A fresh, empty log. ``open`` gives a handle on it as one more process would hold it."""

    open: Callable[[], EventLog]
    stop: Callable[[], None]  # it answers nobody
    start: Callable[[], None]  # and again, with what it held
    lease_ttl_s: float = LEASE_TTL_S
    append_timeout_s: float = APPEND_TIMEOUT_S


@contextmanager
def memory(_directory: Path) -> Iterator[Callable[[], LogUnderTest]]:
    def fresh() -> LogUnderTest:
        log = MemoryLog(lease_ttl_s=LEASE_TTL_S)
        return LogUnderTest(lambda: log, lambda: log.set_available(False), lambda: log.set_available(True))

    yield fresh


@contextmanager
def redis(directory: Path, executable: str) -> Iterator[Callable[[], LogUnderTest]]:
    server = RedisServer(directory, rules=LOG_RULES, executable=executable).start()
    opened: list[RedisStreamsLog] = []

    def fresh() -> LogUnderTest:
        namespace = uuid.uuid4().hex

        def open_log() -> RedisStreamsLog:
            log = RedisStreamsLog(
                server.url, append_timeout_s=APPEND_TIMEOUT_S, lease_ttl_s=LEASE_TTL_S, namespace=namespace
            )
            opened.append(log)
            return log

        def start() -> None:
            if server.process is None:
                server.start()

        return LogUnderTest(open_log, server.kill, start)

    try:
        yield fresh
    finally:
        for log in opened:
            log.close()
        server.stop()


Adapter = Callable[[Path], AbstractContextManager[Callable[[], LogUnderTest]]]
"""Runs what the adapter needs, in a directory of its own, for a whole module; each call inside makes a fresh log."""


def _redis(executable: str) -> Adapter:
    return lambda directory: redis(directory, executable)


EVENT_LOGS: dict[str, Adapter] = {
    "memory": memory,
    **{name: _redis(executable) for name, executable in redis_executables().items()},
}
