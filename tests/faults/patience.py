"""How long a fault's test waits for what must come: a machine that is busy with everything else is slow, not wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from tests import town

STARTS_S: Final = 90.0  # a process of ours
COMES_S: Final = 60.0  # whatever takes seconds on a machine that has nothing else to do

T = TypeVar("T")


def eventually(look: Callable[[], T | None], *, within_s: float = COMES_S, every_s: float = 0.03) -> T:
    """`tests.town.eventually`, patient. ``every_s``: what is not cheap to look at is looked at rarely."""
    return town.eventually(look, within_s=within_s, every_s=every_s)
