"""Each kind of fault once, under load, on both profiles: what was promised holds, and the report says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager

import pytest

from tests.faults import kinds, rounds, summary
from tests.faults.rounds import Fault
from tests.faults.world import SHORT, Profile, World, world_of
from tests.stack.servers import needed
from tests.system import LOCAL_FAULTS

# More than the waits of any round that passes add up to: what hangs is told by its own wait, not by this.
pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
SEED = 20260


class Berth:
    """Where the rounds of a profile find their world: one for all of them, but a round that fails costs it, and so does
    the other profile's first one: a world that waits takes its part of the machine, too."""

    def __init__(self, opened: Callable[[Profile], AbstractContextManager[World]]) -> None:
        self._opened = opened
        self._world: World | None = None
        self._open = ExitStack()

    @contextmanager
    def world(self, profile: Profile) -> Iterator[World]:
        if self._world is not None and self._world.profile != profile:
            self.close()
        if self._world is None:
            self._world = self._open.enter_context(self._opened(profile))
        try:
            yield self._world
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._world = None
        self._open.close()


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Berth]:
    with closing(Berth(lambda profile: world_of(profile, tmp_path_factory.mktemp("faults"), SHORT))) as berth:
        yield berth


@pytest.fixture(scope="module")
def servers() -> None:
    for name in ("kafka", "cassandra", "postgres", "s3"):
        needed(name)  # whoever has none of them runs none of this


def of(profile: Profile) -> list[object]:
    return [pytest.param(each, id=each.name) for each in kinds.ALL if profile in each.short]


@pytest.mark.xdist_group(LOCAL_FAULTS)  # beside the other's: both wait more than they work
@pytest.mark.parametrize("fault", of("local"))
def test_on_the_local_profile_nothing_is_lost_when(berth: Berth, fault: Fault) -> None:
    with berth.world("local") as world:
        outcome = rounds.run(fault, world, SHORT, seed=SEED)
    summary.note(outcome)
    assert outcome.missed(SHORT.slack) == []


@pytest.mark.cluster
@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("fault", of("cluster"))
def test_on_the_cluster_profile_nothing_is_lost_when(berth: Berth, fault: Fault) -> None:
    with berth.world("cluster") as world:
        outcome = rounds.run(fault, world, SHORT, seed=SEED)
    summary.note(outcome)
    assert outcome.missed(SHORT.slack) == []
