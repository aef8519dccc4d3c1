"""What can break together: several strikes at once, or one after the other, in one round."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.faults.collect import CHANNELS
from tests.faults.kinds.onlookers import EVERYBODY, all_arrive
from tests.faults.world import Pace, World

Strike = Callable[[World, Pace], None]


@dataclass(frozen=True, slots=True)
class Combined:
    """A strike with all of these; ``how`` says in which way."""

    how: Callable[[Sequence[Strike], World, Pace], None]
    strikes: Sequence[Strike]

    def __call__(self, world: World, pace: Pace) -> None:
        self.how(self.strikes, world, pace)


def together(*strikes: Strike) -> Strike:
    """Each on a thread of its own; all have ended when it returns. Raises what the first of them raised."""
    return Combined(_together, strikes)


def one_by_one(*strikes: Strike) -> Strike:
    """Each when everybody has recovered from the one before it, with the load going on: `make test` spares itself a
    round for each."""
    return Combined(_one_by_one, strikes)


def parts(strike: Strike) -> frozenset[Strike]:
    """What breaks something by itself in a strike: the strike itself, unless it only combines others or looks on."""
    inner = inspect.unwrap(strike)
    if isinstance(inner, Combined):
        return frozenset().union(*map(parts, inner.strikes))
    return frozenset({inner})


def _together(strikes: Sequence[Strike], world: World, pace: Pace) -> None:
    with ThreadPoolExecutor(len(strikes)) as threads:
        under_way = [threads.submit(each, world, pace) for each in strikes]
    for each in under_way:
        each.result()


def _one_by_one(strikes: Sequence[Strike], world: World, pace: Pace) -> None:
    for number, each in enumerate(strikes):
        if number:
            _nobody_waits(world, number)
        world.begins()
        each(world, pace)


def _nobody_waits(world: World, number: int) -> None:
    """All that was said has arrived, and what is said next on a platform does not wait behind a send that is in doubt:
    that one may have arrived long before its time is over."""
    for line in [each for each in world.load.lines if each.kind in CHANNELS]:
        world.load.write(line.conversation, [f"{line.conversation} goes on {number}"], line.to, kind=line.kind)
    all_arrive(world, world.load.texts(*EVERYBODY))
