"""What was measured: lines of tables, curves, and the page and the file that hold them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "performance.md"
IMAGES: Final = ROOT / "docs" / "img"
RESULTS: Final = ROOT / "test-results" / "bench.json"
HEADING: Final = "### "
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: what, how much, beside what (a target, a floor).

    ``ratio`` is ours to the floor of the same run (1: as good as the floor); the gate knows it by ``name``.
    """

    what: str
    value: str
    beside: str = ""
    name: str = ""
    ratio: float | None = None

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
        """None is above what was measured. Raises ValueError when nothing was."""
        if not seconds:
            raise ValueError("nothing came in time to be measured")
        cuts = statistics.quantiles(seconds if len(seconds) > 1 else [*seconds, *seconds], n=100, method="inclusive")
        return cls(cuts[49] * 1000, cuts[94] * 1000, cuts[98] * 1000)

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} · p95 {self.p95:.1f} · p99 {self.p99:.1f} ms"


@dataclass(frozen=True, slots=True)
class Line:
    """Points of a curve, in the order in which they are joined."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """A plot; ``file`` is its name in docs/img."""

    file: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Stages:
    """What a message costs in each part: CPU milliseconds by name, one bar under another."""

    file: str
    title: str
    bars: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]


@dataclass(frozen=True, slots=True)
class Flame:
    """Stacks, the outermost part first, and what each takes by itself: milliseconds."""

    file: str
    title: str
    stacks: Mapping[tuple[str, ...], float]

    def __str__(self) -> str:
        return self.file


Plot = Curve | Stages | Flame
Measured = Figure | Plot


@dataclass(slots=True)
class Section:
    """What one benchmark found; ``about``: where, when, in which form."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    failure: str = ""
    about: str = ""

    def add(self, measured: Measured) -> None:
        if isinstance(measured, Figure):
            self.figures.append(measured)
        else:
            self.plots.append(measured)


def table(figures: Iterable[Figure]) -> str:
    lines = ["| what | measured | beside |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {each.what} | {each.value} | {each.beside} |" for each in figures)])


def shown(section: Section) -> str:
    parts = [f"{HEADING}{section.title}", section.about]
    if section.failure:
        parts.append(f"It broke off: {section.failure}")
    if section.figures:
        parts.append(table(section.figures))
    parts += [f"![{plot.title}](img/{plot.file})" for plot in section.plots]
    return "\n\n".join(filter(None, parts))


def put_between_markers(text: str, sections: Iterable[Section], order: Sequence[str]) -> str:
    """``text`` with these sections between the markers, and with those that it had and that were not measured again;
    ``order``: titles. Raises ValueError without the markers."""
    before, _, rest = text.partition(BEGIN)
    between, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    old = {each.partition("\n")[0]: f"{HEADING}{each.strip()}" for each in f"\n{between}".split(f"\n{HEADING}")[1:]}
    all_ = old | {each.title: shown(each) for each in sections}
    content = "\n\n".join(all_[title] for title in order if title in all_)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def write(sections: Iterable[Section], order: Sequence[str]) -> None:
    """Into docs/performance.md."""
    PAGE.write_text(put_between_markers(PAGE.read_text(), sections, order))


def keep(sections: Iterable[Section], path: Path | None = None) -> None:
    """For the gate, and for whoever wants the numbers; in test-results/bench.json unless told where."""
    path = path or RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [
        {"title": each.title, "failure": each.failure, "figures": list(map(asdict, each.figures))} for each in sections
    ]
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def ratios(path: Path = RESULTS) -> dict[str, float]:
    """By name, of a run that was kept."""
    kept = [each for section in json.loads(path.read_text()) for each in section["figures"]]
    return {each["name"]: each["ratio"] for each in kept if each["name"] and each["ratio"] is not None}
