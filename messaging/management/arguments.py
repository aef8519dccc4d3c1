"""What commands that walk the log have in common: times as people write them, progress, a clean stop."""

from __future__ import annotations

import re
import signal
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from core.clock import SYSTEM_CLOCK

_AGE: Final = re.compile(r"(\d{1,9})([smhd])")
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
TIMES: Final = "ISO 8601 (UTC unless it says otherwise), or how long ago: 90s, 30m, 2h, 7d"


def moment_ms(text: str) -> int:
    """For argparse: ``2026-01-31T12:00``, ``2026-01-31``, or ``2h`` ago."""
    if match := _AGE.fullmatch(text):
        return max(0, SYSTEM_CLOCK.now_ms() - int(match[1]) * _UNIT_MS[match[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no time: {TIMES}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, int(moment.timestamp() * 1000))


class Stopped(Exception):
    """SIGTERM or SIGINT came."""


class Stop:
    """Whether somebody asked to stop; a command looks between two steps, each of which is whole."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def check(self) -> None:
        """Raises Stopped."""
        if self._asked:
            raise Stopped


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    stop = Stop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.ask()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
