"""Bridges come and go, die while they hand over, or sleep through the loss of what they had."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from messaging.ports import TopicPartition
from tests.cluster.conftest import owned
from tests.faults.collect import GROUP, all_sources
from tests.faults.kinds.aftermath import of_all, of_soak
from tests.faults.kinds.combined import one_by_one
from tests.faults.kinds.machine import clocks_differ, clocks_jump
from tests.faults.kinds.onlookers import EVERYBODY, Log, all_arrive
from tests.faults.kinds.processes import names_of
from tests.faults.patience import eventually
from tests.faults.world import CLUSTER, KILLED_S, LOCAL, Pace, World

STAYS_S: Final = 2.0  # a bridge, at most, before it goes again
TAKEN_OVER_WITHIN_S: Final = 90.0  # the group misses a member after 6 s; the rest is for a busy machine
JOINED_S: Final = 10.0  # the last that came back makes them share anew
NAPS: Final = 4  # until one comes right before a commit that moves something
GOINGS: Final = 2  # of each bridge at least, however long it takes to start one


def storm(world: World, pace: Pace) -> None:
    """Each bridge for itself is killed, or ended politely, and started again every few seconds, twice at least."""
    names = bridges(world)
    until_s = time.monotonic() + pace.spell_s

    def come_and_go(number: int, name: str) -> None:
        chance = random.Random(number)
        leaves = itertools.cycle((world.system.kill, world.system.end))
        for gone, leave in enumerate(itertools.islice(leaves, number, None)):
            threading.Event().wait(chance.uniform(0, STAYS_S))
            if gone >= GOINGS and time.monotonic() > until_s:
                return
            leave(name)
            world.restart(name)

    try:
        with ThreadPoolExecutor(len(names)) as each:
            list(each.map(come_and_go, range(len(names)), names))
    finally:
        _all_back(world)
        world.mended("bridges came and went", target_s=JOINED_S)


def killed_in_revoke(world: World, _pace: Pace) -> None:
    """kill -9 of a bridge that drains what it gives up: to one that comes back, or as it ends where it is alone."""
    first, *others = bridges(world)
    try:
        for other in others:
            world.system.kill(other)
        if others:
            eventually(lambda: owned(world.system, first) == everything(world), within_s=TAKEN_OVER_WITHIN_S)
        world.arm("bridge.revoking")
        for other in others:
            world.restart(other)
        if not others:
            world.system.end(first)
        at_s = world.struck("bridge.revoking").at_s
        eventually(lambda: not world.system.is_running(first))
        if others:
            all_arrive(world, world.load.texts(*EVERYBODY))
            world.taken_over("a bridge is killed while it hands over", at_s, target_s=KILLED_S)
    finally:
        _all_back(world)
    if not others:
        world.mended("a bridge that was killed as it ended is back", target_s=KILLED_S)


def zombie(world: World, _pace: Pace) -> None:
    """A bridge stops right before a commit, sleeps until others have all that it had and went on, and wakes up: the
    commit that it had begun is refused, and it takes part again."""
    assert any(_naps(world) for _ in range(NAPS)), "no late commit was refused"


def _naps(world: World) -> bool:
    """Whether its commit was refused; one that had nothing to tell the group asks it nothing."""
    world.arm("bridge.uncommitted", "stop")
    pid, at_s = world.struck("bridge.uncommitted")
    try:
        asleep = next(name for name in bridges(world) if world.system.pid(name) == pid)
        log, standing = Log.of(world.system, asleep), committed(world)
        others = [name for name in bridges(world) if name != asleep]
        eventually(
            lambda: set().union(*(owned(world.system, name) for name in others)) == everything(world),
            within_s=TAKEN_OVER_WITHIN_S,
        )
        eventually(lambda: any(offset > standing[source] for source, offset in committed(world).items()))
        went_on = committed(world)
        all_arrive(world, world.load.texts(*EVERYBODY))
        world.taken_over("a bridge sleeps", at_s, target_s=KILLED_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: log.says("commit refused", "partitions lost"))
    eventually(lambda: owned(world.system, asleep), within_s=TAKEN_OVER_WITHIN_S)
    now = committed(world)
    assert {source: (offset, now[source]) for source, offset in went_on.items() if now[source] < offset} == {}
    return log.says("commit refused")


def bridges(world: World) -> list[str]:
    return names_of(world, ["bridge"])


def everything(world: World) -> set[tuple[str, str]]:
    """All partitions that bridges share, by topic and number."""
    return {(each.topic, str(each.partition)) for each in _sources(world)}


def committed(world: World) -> dict[TopicPartition, int]:
    return {source: world.town.log.committed(GROUP, source) or 0 for source in _sources(world)}


def _sources(world: World) -> list[TopicPartition]:
    return list(all_sources(world.town))


def _all_back(world: World) -> None:
    for name in bridges(world):
        if not world.system.is_running(name):
            world.restart(name)


MEMBERSHIP: Final = (
    of_all(
        "bridges come and go, die as they hand over, and sleep, then clocks are wrong",
        one_by_one(storm, killed_in_revoke, zombie, clocks_differ, clocks_jump),
        profiles=CLUSTER,
        apart=False,
    ),
    of_soak(
        "bridges come and go, and die as they end, then clocks are wrong",  # one alone cannot sleep while others go on
        one_by_one(storm, killed_in_revoke, clocks_differ, clocks_jump),
        profiles=LOCAL,
        apart=False,
    ),
    of_soak("bridges come and go", storm),
    of_soak("a bridge is killed while it hands over", killed_in_revoke),
    of_soak("a bridge sleeps through the loss of its partitions", zombie, profiles=CLUSTER),
)
