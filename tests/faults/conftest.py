"""A system of its own for the faults, so that nothing else meets what they leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from demo.supervisor import LocalSystem
from tests.faults import summary
from tests.town import Resident, Town


@dataclass
class Harbour:
    """A business with one number, on a system that is about to break."""

    town: Town
    alice: Resident
    whatsapp: str

    @property
    def system(self) -> LocalSystem:
        return self.town.system


@pytest.fixture(scope="session")
def harbour(system: LocalSystem) -> Iterator[Harbour]:
    with Town(system) as town:
        alice = town.resident("alice")
        yield Harbour(town, alice, town.account("whatsapp", alice))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the faults came to, for the report."""
    if summary.OUTCOMES:
        terminalreporter.section("faults")
        terminalreporter.write_line(summary.table(summary.OUTCOMES))
