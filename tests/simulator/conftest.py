"""One simulator process and one webhook receiver for the package; each test starts from a reset."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.simulator.harness import INSTAGRAM, WHATSAPP, Receiver, Simulator, account

ACCOUNTS = [account("whatsapp", WHATSAPP), account("instagram", INSTAGRAM)]
QUICK = {"status_delay_ms": {"sent": 0, "delivered": 20, "read": 40}, "webhook_linger_ms": 0, "redeliver_base_ms": 20}


@pytest.fixture(scope="session")
def _receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def _simulator(_receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(
        "--webhook-url",
        _receiver.url,
        log_path=tmp_path_factory.mktemp("simulator") / "log",
        env={"SIMULATOR_ACCOUNTS": json.dumps(ACCOUNTS)},
    )
    yield simulator
    simulator.close()


@pytest.fixture
def receiver(_receiver: Receiver) -> Receiver:
    return _receiver


@pytest.fixture
def simulator(_simulator: Simulator, receiver: Receiver) -> Iterator[Simulator]:
    receiver.begin_era()
    _simulator.control("PUT", "accounts", [each | {"webhook_url": receiver.url} for each in ACCOUNTS])
    _simulator.control("POST", "reset")
    _simulator.turn(**QUICK)
    yield _simulator
    assert "bug" not in _simulator.log()
