"""Two bridges and four workers share the work on real servers; a bridge that goes hands over, none is left out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from demo.supervisor import LocalSystem
from tests.bounds import once_within
from tests.cluster.conftest import BRIDGES, owned
from tests.cluster.load import EACH, PEOPLE, Load
from tests.faults.conftest import Harbour
from tests.town import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

WORKERS = ("worker-core", "worker-core-2", "worker-whatsapp", "worker-whatsapp-2")
ALL = {
    (topic, str(partition))
    for topic in ("inbound", "messages", "status-updates", "whatsapp-outbound", "instagram-outbound")
    for partition in range(3)
}
SESSION_S = 6.0  # how long a member of the group may be silent
SLACK_S = 12.0  # two cores run everything


@pytest.fixture(autouse=True)
def shared_again(cluster_system: LocalSystem) -> Iterator[None]:
    """Before and after each test both bridges run and each has a share."""
    eventually(lambda: is_shared(cluster_system), within_s=30)
    yield
    for name in BRIDGES:
        if not cluster_system.is_running(name):
            cluster_system.restart(name)


def is_shared(system: LocalSystem) -> bool:
    first, second = (owned(system, name) for name in BRIDGES)
    return bool(first and second) and first.isdisjoint(second) and first | second == ALL


@contextmanager
def under_load(harbour: Harbour) -> Iterator[None]:
    """Inside, clients write and have half of it accepted; afterwards all of it arrived, once and in order."""
    load = Load.of(harbour)
    with (
        harbour.town.switches(latency_ms=15, latency_jitter_ms=15),
        harbour.alice.socket() as socket,
        ThreadPoolExecutor(4) as clients,
    ):
        writing = [clients.submit(load.write, to, range(EACH)) for to in load.people]
        eventually(lambda: load.arrived() > PEOPLE, within_s=40)
        yield
        for each in writing:
            each.result(timeout=90)
        load.assert_kept(socket)


def seconds_until_alone(system: LocalSystem) -> float:
    """How long until the first bridge has everything, now that the second one is gone."""
    started_s = time.monotonic()
    eventually(lambda: owned(system, BRIDGES[0]) == ALL, within_s=SESSION_S + 3 * SLACK_S)
    return time.monotonic() - started_s


def batches(system: LocalSystem, worker: str) -> float:
    shown = httpx.get(system.ready_url(worker).replace("/ready", "/metrics"), timeout=5).text
    return sum(map(float, re.findall(r"^chat4all_batch_seconds_count\{.*\} (\S+)$", shown, re.MULTILINE)))


def test_two_bridges_and_four_workers_share_the_work(harbour: Harbour) -> None:
    before = {name: batches(harbour.system, name) for name in WORKERS}
    with under_load(harbour):
        pass
    eventually(lambda: is_shared(harbour.system))
    assert [name for name in WORKERS if batches(harbour.system, name) == before[name]] == []


def test_a_killed_bridge_hands_over_and_shares_again_when_it_is_back(harbour: Harbour) -> None:
    with under_load(harbour):
        harbour.system.kill(BRIDGES[1])
        assert seconds_until_alone(harbour.system) < SESSION_S + SLACK_S
    with under_load(harbour):
        harbour.system.restart(BRIDGES[1])
        eventually(lambda: is_shared(harbour.system))


def test_a_bridge_that_stops_politely_is_not_waited_for(harbour: Harbour) -> None:
    """It drains what is in flight and says goodbye: once it is gone nobody waits for its session to lapse."""

    def ended_s() -> float:
        with under_load(harbour):
            if not harbour.system.is_running(BRIDGES[1]):
                harbour.system.restart(BRIDGES[1])
                eventually(lambda: is_shared(harbour.system))
            harbour.system.end(BRIDGES[1])
            return seconds_until_alone(harbour.system)

    once_within(SESSION_S - 1.5, ended_s)  # unsaid, it is missed a session after its last heartbeat
