"""What can break together: several strikes at once, or one after the other, in one round."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.faults.collect import CHANNELS
from tests.faults.kinds.onlookers import EVERYBODY, all_arrive
from tests.faults.world import Pace, World

Strike = Callable[[World, Pace], None]


def together(*strikes: Strike) -> Strike:
    """Each on a thread of its own; all have ended when it returns. Raises what the first of them raised."""

    def strike(world: World, pace: Pace) -> None:
        with ThreadPoolExecutor(len(strikes)) as threads:
            under_way = [threads.submit(each, world, pace) for each in strikes]
        for each in under_way:
            each.result()

    return strike


def one_by_one(*strikes: Strike) -> Strike:
    """Each when everybody has recovered from the one before it, with the load going on: `make test` spares itself a
    round for each."""

    def strike(world: World, pace: Pace) -> None:
        for number, each in enumerate(strikes):
            if number:
                _nobody_waits(world, number)
            world.begins()
            each(world, pace)

    return strike


def _nobody_waits(world: World, number: int) -> None:
    """All that was said has arrived, and what is said next on a platform does not wait behind a send that is in doubt:
    that one may have arrived long before its time is over."""
    for line in [each for each in world.load.lines if each.kind in CHANNELS]:
        world.load.write(line.conversation, [f"{line.conversation} goes on {number}"], line.to, kind=line.kind)
    all_arrive(world, world.load.texts(*EVERYBODY))
