"""Callbacks at their time, in one heap with one timer."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count


class Agenda:
    """Runs callbacks when due; equal times in the order in which they were asked for (asyncio promises no order)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when_s: float, callback: Callable[[], None]) -> None:
        """``when_s`` is on the clock of the loop (`loop.time`)."""
        heapq.heappush(self._heap, (when_s, next(self._order), callback))
        if self._heap[0][0] == when_s:
            self._arm()

    def clear(self) -> None:
        self._heap.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._run_due)

    def _run_due(self) -> None:
        now = asyncio.get_running_loop().time()
        try:
            while self._heap and self._heap[0][0] <= now:
                _, _, callback = heapq.heappop(self._heap)
                callback()
        finally:
            self._arm()
