"""The agenda runs callbacks in order of time, and of asking where times are equal."""

from __future__ import annotations

import asyncio
from functools import partial

from simulator.agenda import Agenda


async def test_equal_times_keep_the_order_of_asking_and_earlier_ones_go_first() -> None:
    agenda, ran, done = Agenda(), list[int](), asyncio.Event()
    soon = asyncio.get_running_loop().time() + 0.02
    agenda.at(soon + 0.001, done.set)
    for n in range(1, 50):
        agenda.at(soon, partial(ran.append, n))
    agenda.at(soon - 0.01, partial(ran.append, 0))
    assert len(agenda) == 51
    await asyncio.wait_for(done.wait(), 5)
    assert ran == list(range(50))
    assert len(agenda) == 0
