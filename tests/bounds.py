"""Bounds of time that a busy machine does not break, and that still tell who waits for what he should not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import pytest

TRIES: Final = 5
BUSY_S: Final = 10.0  # the most that a busy machine adds


def once_within(within_s: float, took_s: Callable[[], float]) -> None:
    """One of a few tries takes less, and none much more: on a busy machine anybody may be slow, whoever waits is never
    quick."""
    seen: list[float] = []
    while not seen or seen[-1] >= within_s:
        assert len(seen) < TRIES, f"never within {within_s:g} s: {seen}"
        seen.append(took_s())
        assert seen[-1] < within_s + BUSY_S, f"not within {within_s:g} s: {seen}"


def refused_s(call: Callable[[], object], error: type[Exception], match: str | None = None) -> float:
    """How long it took to raise that."""
    began_s = time.monotonic()
    with pytest.raises(error, match=match):
        call()
    return time.monotonic() - began_s
