"""The metrics of real services with several processes, some of which are killed."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import httpx
import pytest

from demo.supervisor import LocalSystem
from tests.town import Town, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("system"), pytest.mark.timeout(240)]


def page(system: LocalSystem, name: str) -> str:
    """Over a connection of its own, so that any of the processes may answer."""
    return httpx.get(system.ready_url(name).replace("/ready", "/metrics")).text


def scraped(system: LocalSystem, name: str, series: str) -> float:
    """The sum of the series that look so."""
    return sum(float(value) for value in re.findall(rf"^{series} (\S+)$", page(system, name), re.MULTILINE))


def processes(system: LocalSystem, name: str) -> int:
    """How many count; 0 when it was a dying one that took the question."""
    try:
        shown = page(system, name)
    except httpx.TransportError:
        return 0
    return len(re.findall(r"^process_start_time_seconds\{", shown, re.MULTILINE))


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[1]) == parent and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return sorted(found)


KEYS = r'django_http_responses_total_by_status_view_method_total\{.*view="jwks".*\}'


def test_requests_to_two_api_processes_add_up_in_any_scrape(local_system: LocalSystem) -> None:
    before = scraped(local_system, "api", KEYS)
    for _ in range(40):
        assert httpx.get(f"{local_system.api_url}/.well-known/jwks.json").status_code == 200
    assert [scraped(local_system, "api", KEYS) - before for _ in range(10)] == [40] * 10


def test_what_a_killed_api_process_counted_stays_and_its_successor_goes_on(local_system: LocalSystem) -> None:
    api = local_system.pid("api")
    living = processes(local_system, "api")
    for _ in range(20):
        httpx.get(f"{local_system.api_url}/.well-known/jwks.json")
    counted = scraped(local_system, "api", KEYS)
    folder = local_system.state_dir / "metrics" / "api"
    files = {file.name for file in folder.iterdir()}
    victim = next(pid for pid in children(api) if str(pid) in (folder / "slots").read_text().split())
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in children(api) and processes(local_system, "api") == living, within_s=60)
    assert scraped(local_system, "api", KEYS) == counted
    for _ in range(10):
        httpx.get(f"{local_system.api_url}/.well-known/jwks.json")
    assert scraped(local_system, "api", KEYS) == counted + 10
    eventually(lambda: {file.name for file in folder.iterdir()} == files)  # the successor may still be starting


def test_workers_that_are_killed_leave_their_counts(local_system: LocalSystem) -> None:
    stored = r'chat4all_messages_stored_total\{channel="users"\}'
    with Town(local_system) as town:
        alice, bob = town.resident("alice"), town.resident("bob")

        def post(number: int) -> None:
            for _ in range(number):
                alice.post("workers", "counted", bob.user_id)

        before = scraped(local_system, "worker-core", stored)
        post(5)
        eventually(lambda: scraped(local_system, "worker-core", stored) == before + 5)
        for victim in children(local_system.pid("worker-core")):
            os.kill(victim, signal.SIGKILL)
        post(5)
        eventually(lambda: scraped(local_system, "worker-core", stored) >= before + 10, within_s=60)
        assert processes(local_system, "worker-core") <= 4  # the parent, two children, perhaps their tracker
