"""A log folder is opened only by a redis-server that can read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from demo.processes import StartFailed
from demo.redis_server import RedisServer, RedisTooOld, redis_version
from demo.supervisor import START_FAILURES
from tests.conftest import redis_executables

SERVERS = redis_executables()
MANIFEST = "file appendonly.aof.1.incr.aof seq 1 type i\n"


@pytest.fixture(params=list(SERVERS.values()), ids=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "log", executable=request.param)
    yield server
    server.stop()


def written_by_redis_7(folder: Path) -> Path:
    """A log that holds one key, as Redis 7 lays it out."""
    parts = folder / "appendonlydir"
    parts.mkdir(parents=True)
    (parts / "appendonly.aof.manifest").write_text(MANIFEST)
    (parts / "appendonly.aof.1.incr.aof").write_bytes(b"*3\r\n$3\r\nSET\r\n$4\r\nkept\r\n$3\r\nyes\r\n")
    return parts


def test_what_redis_7_wrote_is_read_whole_or_not_opened_at_all(server: RedisServer) -> None:
    parts = written_by_redis_7(server.directory)
    if redis_version(server.executable) < (7, 0):
        with pytest.raises(RedisTooOld, match=r"written by Redis 7 .* is 6\.\d+\.\d+: .* STATE_DIR=…"):
            server.start()
        assert not server.answers()
        assert (parts / "appendonly.aof.manifest").read_text() == MANIFEST
        return
    server.start()
    with redis.Redis(port=server.port) as client:
        assert client.get("kept") == b"yes"


def test_every_server_goes_on_with_its_own_log(server: RedisServer) -> None:
    server.start()
    with redis.Redis(port=server.port) as client:
        client.set("kept", "yes")
    server.kill()
    server.start()
    with redis.Redis(port=server.port) as client:
        assert client.get("kept") == b"yes"


def test_a_person_is_told_in_words() -> None:
    assert issubclass(RedisTooOld, START_FAILURES)
    assert issubclass(StartFailed, START_FAILURES)
