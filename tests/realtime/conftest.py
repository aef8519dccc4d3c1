"""A real gateway process on a free port, with a Redis and an accounts database of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from demo.redis_server import BUS_RULES, RedisServer
from tests.realtime.process import Accounts, GatewayProcess, make_accounts, start_gateway

CROWD = 60


@pytest.fixture(scope="module")
def realtime_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this module's own: its tests flush it and cut its connections."""
    server = RedisServer(tmp_path_factory.mktemp("bus"), rules=BUS_RULES).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def live_accounts(tmp_path_factory: pytest.TempPathFactory) -> Accounts:
    """Alice, Bob who talks with her, Mallory outside, and a crowd."""
    names = ["alice", "bob", "mallory", *(f"user{n}" for n in range(CROWD))]
    return make_accounts(tmp_path_factory.mktemp("gateway-state"), names)


@pytest.fixture(scope="module")
def gateway(
    live_accounts: Accounts, realtime_bus: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    running = start_gateway(live_accounts, realtime_bus, tmp_path_factory.mktemp("gateway"), "--check-s", "0.5")
    yield running
    running.process.send_signal(signal.SIGTERM)
    try:
        assert running.process.wait(15) == 0
    finally:
        running.process.kill()
    log = running.log.read_text()
    # the layer tells at length that its connection was cut, which some tests do
    assert not [line for line in log.splitlines() if "Traceback" in line and "channels_redis.pubsub" not in line]
    assert "eyJ" not in log  # how every token begins


@pytest.fixture(autouse=True)
def _clean_bus(request: pytest.FixtureRequest) -> None:
    """Each test begins with streams that nobody was pushed to."""
    if "gateway" in request.fixturenames:
        running: GatewayProcess = request.getfixturevalue("gateway")
        with running.client() as bus:
            for key in bus.keys("*"):
                bus.delete(key)
