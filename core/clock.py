"""Time as an argument: what depends on it takes a `Clock`, tests pass one that they move by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

from core import failpoints


class Clock(Protocol):
    """Wall time for records, monotonic time for durations."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch; may jump when the machine's clock is set."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back, so use it for every time-out and lease."""


def wall_ns() -> int:
    """Nanoseconds since the Unix epoch; may jump when the machine's clock is set, or a fault test's."""
    return time.time_ns() + failpoints.clock_error_ns()


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return wall_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic_s = 1000.0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        self._now_ms += int(seconds * 1000)
        self._monotonic_s += seconds


SYSTEM_CLOCK = SystemClock()


def iso_utc(ms: int) -> str:
    """RFC 3339 in UTC with milliseconds, as the API shows every time: 2026-01-31T23:59:59.123Z."""
    moment = datetime.fromtimestamp(ms / 1000, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
