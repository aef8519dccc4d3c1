"""Each kind of fault once, under load, on both profiles: what was promised holds, and the report says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import kinds, rounds, summary
from tests.faults.rounds import Fault
from tests.faults.world import SHORT, Profile, World, cluster_world, local_world
from tests.stack.servers import needed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
SEED = 20260


@pytest.fixture(scope="module")
def on_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with local_world(tmp_path_factory.mktemp("faults")) as world:
        yield world


@pytest.fixture(scope="module")
def on_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    for name in ("kafka", "cassandra", "postgres", "s3"):
        needed(name)  # whoever has none of them runs none of this
    with cluster_world(tmp_path_factory.mktemp("cluster-faults")) as world:
        yield world


def of(profile: Profile) -> list[object]:
    return [pytest.param(each, id=each.name) for each in kinds.ALL if profile in each.short]


@pytest.mark.parametrize("fault", of("local"))
def test_on_the_local_profile_nothing_is_lost_when(on_local: World, fault: Fault) -> None:
    summary.note(rounds.run(fault, on_local, SHORT, seed=SEED))


@pytest.mark.cluster
@pytest.mark.parametrize("fault", of("cluster"))
def test_on_the_cluster_profile_nothing_is_lost_when(on_cluster: World, fault: Fault) -> None:
    summary.note(rounds.run(fault, on_cluster, SHORT, seed=SEED))
