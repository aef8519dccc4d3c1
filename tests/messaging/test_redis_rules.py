"""What we make of what a redis-server says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from demo.redis_server import RedisServer, redis_version
from messaging import redis_rules
from messaging.redis_rules import Fault, Rules


@pytest.fixture
def told(bus_redis: RedisServer) -> Rules:
    return redis_rules.read(bus_redis.url, part="The bus", variable="BUS_URL")


def test_a_server_tells_its_version(told: Rules, bus_redis: RedisServer) -> None:
    assert told.version == redis_version(bus_redis.executable)


@pytest.mark.parametrize("faults", [redis_rules.log_faults, redis_rules.bus_faults])
@pytest.mark.parametrize(
    ("version", "is_refused"),
    [
        pytest.param((5, 0, 14), True, id="5.0.14"),
        pytest.param((6, 0, 16), True, id="6.0.16"),
        pytest.param((6, 2), False, id="6.2"),
        pytest.param((7, 2, 4), False, id="7.2.4"),
        pytest.param((), False, id="it does not tell"),
    ],
)
def test_a_server_that_is_too_old_is_refused(
    told: Rules, faults: Callable[[Rules], Iterator[Fault]], version: tuple[int, ...], is_refused: bool
) -> None:
    refusals = [fault for fault in faults(replace(told, version=version)) if "6.2 or newer" in fault.remedy]
    what = f"is {'.'.join(map(str, version))}"
    assert refusals == ([Fault(what, "Use 6.2 or newer.", is_error=True)] if is_refused else [])
