"""How a redis-server is set up, and what of it our two uses do not bear."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.errors import Unavailable

TIMEOUT_S: Final = 0.9  # connecting, and again for an answer


@dataclass(frozen=True, slots=True)
class Rules:
    """What it says of itself; None where it does not tell us (managed servers refuse CONFIG)."""

    appends: bool
    fsync: str | None
    eviction: str
    max_bytes: int
    ahead_s: float  # its clock against ours
    run_id: str  # of the process: equal for two URLs of one server


@dataclass(frozen=True, slots=True)
class Fault:
    what: str
    remedy: str
    loses_data: bool


def ping(url: str, *, part: str, variable: str) -> None:
    """Raise Unavailable within 2 s, naming the remedy, unless the server answers; leaves no connection behind."""
    with _asked(url, part, variable) as client:
        client.ping()


def read(url: str, *, part: str, variable: str) -> Rules:
    """Ask the server. Raises Unavailable."""
    with _asked(url, part, variable) as client:
        info = client.info()
        seconds, micros = client.time()
        return Rules(
            appends=bool(info.get("aof_enabled")),
            fsync=_fsync(client),
            eviction=str(info.get("maxmemory_policy", "")),
            max_bytes=int(info.get("maxmemory", 0)),
            ahead_s=seconds + micros / 1e6 - time.time(),
            run_id=str(info.get("run_id", "")),
        )


@contextmanager
def _asked(url: str, part: str, variable: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(
        url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )
    where = client.connection_pool.connection_kwargs
    address = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
    try:
        with client:
            yield client
    except redis.AuthenticationError as error:
        raise Unavailable(f"{part} (redis-server at {address}) refuses our password: correct {variable}.") from error
    except (redis.RedisError, OSError) as error:
        raise Unavailable(
            f"{part} (redis-server at {address}) does not answer ({type(error).__name__}): see that it runs and that "
            f"{variable} is right."
        ) from error


def _fsync(client: redis.Redis) -> str | None:
    try:
        return str(client.config_get("appendfsync").get("appendfsync"))
    except redis.ResponseError:
        return None


def log_faults(rules: Rules) -> Iterator[Fault]:
    """The event log's: nothing that it acknowledged may be lost."""
    if not rules.appends:
        yield Fault("keeps nothing on disk", "set appendonly yes", loses_data=True)
    elif rules.fsync not in {"always", None}:
        yield Fault(f"flushes {rules.fsync}, so that a crash loses what it took last", "set appendfsync always", True)
    yield from _evicts(rules)
    if not rules.max_bytes:
        yield Fault("may take all memory of its machine", "set maxmemory to what it has for the log", False)


def bus_faults(rules: Rules) -> Iterator[Fault]:
    """The bus may be flushed, but not lose a key here and there: a task without its lease is run twice."""
    yield from _evicts(rules)


def _evicts(rules: Rules) -> Iterator[Fault]:
    if rules.eviction not in {"noeviction", ""}:
        yield Fault(f"evicts ({rules.eviction})", "set maxmemory-policy noeviction", loses_data=True)


def is_redis(url: str) -> bool:
    return urlsplit(url).scheme in {"redis", "rediss", "unix"}
