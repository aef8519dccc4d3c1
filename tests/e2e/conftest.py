"""One town for all end-to-end tests: users, and accounts on both platforms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from demo.supervisor import LocalSystem
from tests.town import Resident, Town


@dataclass
class Shop:
    """A business in the town: its accounts, and who works there."""

    town: Town
    alice: Resident
    bob: Resident
    whatsapp: str
    instagram: str


@pytest.fixture(scope="session", params=["local", pytest.param("cluster", marks=pytest.mark.cluster)])
def system(request: pytest.FixtureRequest) -> LocalSystem:
    """Every test here holds on both profiles."""
    found: LocalSystem = request.getfixturevalue(f"{request.param}_system")
    return found


@pytest.fixture(scope="session")
def shop(system: LocalSystem) -> Iterator[Shop]:
    with Town(system) as town:
        alice, bob = town.resident("alice"), town.resident("bob")
        yield Shop(town, alice, bob, town.account("whatsapp", alice, bob), town.account("instagram", alice))
