"""How long and how large: the short form takes about 14 minutes, the full one measures what the targets name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scale:
    name: str
    time: float  # of what each measurement takes by itself
    reference_s: float  # of k6's load
    steady_s: float  # of the whole loop at a steady rate
    conversations: tuple[int, ...]
    stored: int  # messages
    connected: tuple[int, ...]
    backlog: int  # records
    workers: tuple[int, ...]


SHORT: Final = Scale(
    "short",
    time=0.28,
    reference_s=12,
    steady_s=12,
    conversations=(1, 1_000),
    stored=10_000,
    connected=(1, 200),
    backlog=10_000,
    workers=(1, 8),
)
FULL: Final = Scale(
    "full",
    time=1.0,
    reference_s=300,
    steady_s=600,
    conversations=(1, 100, 1_000, 10_000),
    stored=10_000_000,
    connected=(1, 10, 100, 1_000),
    backlog=1_000_000,
    workers=(1, 2, 4, 8),
)
