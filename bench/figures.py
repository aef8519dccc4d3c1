"""What was measured, as lines of a table: percentiles, rates, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: what, how much, beside what (a target, a floor)."""

    what: str
    value: str
    beside: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.value}" + (f"  ({self.beside})" if self.beside else "")


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles in milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        cuts = statistics.quantiles(seconds, n=100)
        return cls(cuts[49] * 1000, cuts[94] * 1000, cuts[98] * 1000)

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} · p95 {self.p95:.1f} · p99 {self.p99:.1f} ms"


def table(figures: Iterable[Figure]) -> str:
    lines = ["| what | measured | beside |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {each.what} | {each.value} | {each.beside} |" for each in figures)])


def write(text: str) -> None:
    """Put ``text`` between the markers of docs/performance.md."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{PAGE} has no {BEGIN} … {END}")
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
