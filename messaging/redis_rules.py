"""How a redis-server is set up, and what of it our two uses do not bear."""

from __future__ import annotations

import re
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
OLDEST: Final = (6, 2)  # the first that trims a stream by its ids


@dataclass(frozen=True, slots=True)
class Rules:
    """What it says of itself; None where it does not tell us (managed servers refuse CONFIG)."""

    appends: bool
    fsync: str | None
    eviction: str
    max_bytes: int
    ahead_s: float  # its clock against ours
    run_id: str  # of the process: equal for two URLs of one server
    version: tuple[int, ...]  # of Redis, or of the Redis that it is like; () where it does not tell


@dataclass(frozen=True, slots=True)
class Fault:
    what: str
    remedy: str
    is_error: bool  # messages would be lost, or it does not work at all


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
            version=tuple(map(int, re.findall(r"\d+", str(info.get("redis_version", ""))))),
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
    yield from _is_old(rules)
    if not rules.appends:
        yield Fault("keeps nothing on disk", _conf("appendonly yes"), is_error=True)
    elif rules.fsync not in {"always", None}:
        what = f"flushes {rules.fsync}, so that a crash loses what it took last"
        yield Fault(what, _conf("appendfsync always"), is_error=True)
    yield from _evicts(rules)
    if not rules.max_bytes:
        remedy = _conf("maxmemory to what it has for the log")
        yield Fault("may take all memory of its machine", remedy, is_error=False)


def bus_faults(rules: Rules) -> Iterator[Fault]:
    """The bus may be flushed, but not lose a key here and there: a task without its lease is run twice."""
    yield from _is_old(rules)
    yield from _evicts(rules)
    if not rules.max_bytes:  # `hints.SHARE`
        remedy = _conf(
            "maxmemory to what it has for the bus: what only saves time is left out while half of it is taken"
        )
        yield Fault("may take all memory of its machine", remedy, is_error=False)


def _is_old(rules: Rules) -> Iterator[Fault]:
    if rules.version and rules.version < OLDEST:
        yield Fault(f"is {'.'.join(map(str, rules.version))}", "Use 6.2 or newer.", is_error=True)


def _evicts(rules: Rules) -> Iterator[Fault]:
    if rules.eviction not in {"noeviction", ""}:
        yield Fault(f"evicts ({rules.eviction})", _conf("maxmemory-policy noeviction"), is_error=True)


def _conf(setting: str) -> str:
    return f"In its redis.conf: set {setting}."


def is_redis(url: str) -> bool:
    return urlsplit(url).scheme in {"redis", "rediss", "unix"}
