"""Each kind of fault once, under load, on both profiles: what was promised holds, and the report says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager

import pytest

from tests.faults import kinds, rounds, summary
from tests.faults.rounds import Fault
from tests.faults.world import SHORT, Profile, World, cluster_world, local_world
from tests.stack.servers import needed

# More than the waits of any round that passes add up to: what hangs is told by its own wait, not by this.
pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
SEED = 20260


class Berth:
    """Where the rounds of a profile find their world: one for all of them, but a round that fails costs it."""

    def __init__(self, opened: Callable[[], AbstractContextManager[World]]) -> None:
        self._opened = opened
        self._world: World | None = None
        self._open = ExitStack()

    @contextmanager
    def world(self) -> Iterator[World]:
        if self._world is None:
            self._world = self._open.enter_context(self._opened())
        try:
            yield self._world
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._world = None
        self._open.close()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Berth]:
    with closing(Berth(lambda: local_world(tmp_path_factory.mktemp("faults"), SHORT))) as berth:
        yield berth


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Berth]:
    for name in ("kafka", "cassandra", "postgres", "s3"):
        needed(name)  # whoever has none of them runs none of this
    with closing(Berth(lambda: cluster_world(tmp_path_factory.mktemp("cluster-faults"), SHORT))) as berth:
        yield berth


def of(profile: Profile) -> list[object]:
    return [pytest.param(each, id=each.name) for each in kinds.ALL if profile in each.short]


@pytest.mark.parametrize("fault", of("local"))
def test_on_the_local_profile_nothing_is_lost_when(local: Berth, fault: Fault) -> None:
    with local.world() as world:
        outcome = rounds.run(fault, world, SHORT, seed=SEED)
    summary.note(outcome)
    assert outcome.missed(SHORT.slack) == []


@pytest.mark.cluster
@pytest.mark.parametrize("fault", of("cluster"))
def test_on_the_cluster_profile_nothing_is_lost_when(cluster: Berth, fault: Fault) -> None:
    with cluster.world() as world:
        outcome = rounds.run(fault, world, SHORT, seed=SEED)
    summary.note(outcome)
    assert outcome.missed(SHORT.slack) == []
