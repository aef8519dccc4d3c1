"""Whoever finds a part away says so, and for a while nobody else waits to find out, too."""

from __future__ import annotations

from core.clock import SYSTEM_CLOCK, Clock


class Rest:
    """Of ``for_s`` seconds from when it was begun last. Safe to use from threads."""

    def __init__(self, for_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._for_s = for_s
        self._clock = clock
        self._until_s = float("-inf")  # monotonic

    @property
    def is_on(self) -> bool:
        return self._clock.monotonic_s() < self._until_s

    def begin(self) -> None:
        self._until_s = self._clock.monotonic_s() + self._for_s

    def end(self) -> None:
        self._until_s = float("-inf")
