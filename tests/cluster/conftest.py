"""Systems that are about to lose a part: a business with one WhatsApp number on each."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from demo.supervisor import LocalSystem
from tests.faults.conftest import Harbour
from tests.town import Town

BRIDGES = ("bridge", "bridge-2")


@pytest.fixture(scope="session")
def harbour(cluster_system: LocalSystem) -> Iterator[Harbour]:
    with Town(cluster_system) as town:
        alice = town.resident("alice")
        yield Harbour(town, alice, town.account("whatsapp", alice))


def owned(system: LocalSystem, bridge: str) -> set[tuple[str, str]]:
    """The partitions that a bridge says it reads, by topic and number; none when it is down."""
    try:
        shown = httpx.get(system.ready_url(bridge).replace("/ready", "/metrics"), timeout=5).text
    except httpx.TransportError:
        return set()
    lines = re.findall(r"^chat4all_partition_owned\{(.*)\} 1\.0$", shown, re.MULTILINE)
    labels = [dict(re.findall(r'(\w+)="([^"]*)"', line)) for line in lines]
    return {(each["topic"], each["partition"]) for each in labels}
