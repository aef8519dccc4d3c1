"""A pytest plugin: running systems as fixtures, their logs when a test fails, and which tests share a process."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from demo.supervisor import LocalSystem

TESTS = Path(__file__).parent
ONE_AT_A_TIME = ("e2e", "browser", "faults", "cluster", "stack")  # they share a running system, or kill and measure
LOCAL_FAULTS = "faults of the local profile"
LONGEST = ("@system", f"@{LOCAL_FAULTS}")
SHARED = {"local_system", "cluster_system", "watched"}  # the last asks for one of them by name
TAIL_LINES = 15
SEVERAL = {"bridge": 2, "worker-core": 2, "worker-whatsapp": 2}


@pytest.fixture(scope="session")
def local_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """The whole local profile on free ports with a folder of its own: one for all tests of a session that only use it.

    A test that kills parts of it puts them back, or makes its own `LocalSystem`.
    """
    with LocalSystem(tmp_path_factory.mktemp("system")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """The same on Kafka, Cassandra, PostgreSQL and S3, with two bridges and two workers where it counts."""
    from tests.rooms import room, shared_servers  # the drivers take a second to import

    with room(shared_servers()) as env:
        folder = tmp_path_factory.mktemp("cluster-system")
        with LocalSystem(folder, env=env, instances=SEVERAL) as running:
            yield running


@pytest.fixture(scope="session")
def system(local_system: LocalSystem) -> LocalSystem:
    """Where nothing else is said, the local profile."""
    return local_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, LocalSystem):
                report.sections.extend(_log_tails(value))
    return report


def _log_tails(system: LocalSystem) -> list[tuple[str, str]]:
    tails = ((name, system.log_tail(name, TAIL_LINES)) for name in system.processes)
    return [(f"end of the log of {name}", tail) for name, tail in tails if tail]


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """For `--dist loadgroup`: a file stays in one process, and so do all that share a running system. The longest
    chains come first (xdist's own order is by number of tests), so that neither process is left with one in the end; in
    them those with a system of their own, before one runs that the others share and that takes its part of the machine.

    Whether xdist took notice is looked at: with versions of pytest that it does not know it silently does not, and
    then both processes have every system there is (pytest-dev/pytest-xdist#1386).
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item.path)))
    yield
    if not config.getoption("loadgroup", default=False):
        return
    if not all("@" in item.nodeid for item in items):
        raise pytest.UsageError("xdist does not group tests: its version and pytest's do not fit (requirements/dev.in)")
    items.sort(key=lambda item: (not item.nodeid.endswith(LONGEST), _shares_a_system(item)))


def _shares_a_system(item: pytest.Item) -> bool:
    """What a fixture asks for by name is not among a test's fixtures: so do those of e2e."""
    return item.path.is_relative_to(TESTS / "e2e") or not SHARED.isdisjoint(getattr(item, "fixturenames", ()))


def _group(path: Path) -> str:
    folder = path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else ""
    return "system" if folder in ONE_AT_A_TIME else str(path)
