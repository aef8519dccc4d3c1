"""What can break together: several strikes at once, in one round."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.faults.checker import Report
from tests.faults.history import History
from tests.faults.world import Pace, World

Strike = Callable[[World, Pace], None]
Afterwards = Callable[[World, History, Report], None]


def together(*strikes: Strike) -> Strike:
    """Each on a thread of its own; all have ended when it returns. Raises what the first of them raised."""

    def strike(world: World, pace: Pace) -> None:
        with ThreadPoolExecutor(len(strikes)) as threads:
            under_way = [threads.submit(each, world, pace) for each in strikes]
        for each in under_way:
            each.result()

    return strike


def both(*checks: Afterwards) -> Afterwards:
    def check(world: World, history: History, report: Report) -> None:
        for each in checks:
            each(world, history, report)

    return check
