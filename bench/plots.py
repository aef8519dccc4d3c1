"""Curves, bars and flames as small SVGs, written by hand: no library is worth its wheels for three kinds of picture."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Final

from bench import figures
from bench.figures import Curve, Flame, Line, Plot, Stages

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 60, 45
COLOURS: Final = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#bf8700", "#57606a", "#0a7ea4", "#a475f9", "#cf7a4b")
BAR: Final = 26
WIDE, ROW, DEEPEST, LEAST = 1200, 16, 60, 1 / 400  # of flames


def write(plot: Plot) -> None:
    """Into docs/img."""
    figures.IMAGES.mkdir(parents=True, exist_ok=True)
    (figures.IMAGES / plot.file).write_text(svg(plot))


def svg(plot: Plot) -> str:
    match plot:
        case Curve():
            lines = _curve(plot)
        case Stages():
            lines = _stages(plot)
        case Flame():
            lines = _flame(plot)
    return "\n".join(lines) + "\n"


def ticks(highest: float, about: int = 5) -> list[float]:
    """From 0 to at least ``highest`` in round steps."""
    rough = max(highest, 1e-9) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _curve(curve: Curve) -> Iterator[str]:
    across = ticks(max(x for line in curve.lines for x, _ in line.points))
    up = ticks(max(y for line in curve.lines for _, y in line.points))

    def place(x: float, y: float) -> tuple[float, float]:
        wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + wide * x / across[-1], HEIGHT - BOTTOM - high * y / up[-1]

    yield from _head(WIDTH, HEIGHT, curve.title)
    for value in across:
        x, y = place(value, 0)
        yield _text(x, y + 16, f"{value:g}", "middle")
    for value in up:
        x, y = place(0, value)
        yield f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#d0d7de"/>'
        yield _text(x - 6, y + 4, f"{value:g}", "end")
    yield _text(WIDTH / 2, HEIGHT - 8, curve.x, "middle")
    yield _text(8, TOP - 12, curve.y)
    for line, colour in zip(curve.lines, COLOURS, strict=False):
        yield from _line(line, colour, [place(*point) for point in line.points])
    yield from _legend((line.label for line in curve.lines), 36)
    yield "</svg>"


def _line(line: Line, colour: str, points: list[tuple[float, float]]) -> Iterator[str]:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for (x, y), (across, up) in zip(points, line.points, strict=True):
        told = escape(f"{line.label}: {across:,.0f}, {up:,.2f}")
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{told}</title></circle>'


def _stages(stages: Stages) -> Iterator[str]:
    names = list(dict.fromkeys(name for _, parts in stages.bars for name, _ in parts))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    longest = max(sum(ms for _, ms in parts) for _, parts in stages.bars)
    height = TOP + len(stages.bars) * (BAR + 30) + 10
    yield from _head(WIDTH, height, stages.title)
    yield from _legend(names, 36)
    for number, (label, parts) in enumerate(stages.bars):
        y, x = TOP + 20 + number * (BAR + 30), 10.0
        yield _text(10, y - 6, f"{label}: {sum(ms for _, ms in parts):.2f} ms")
        for name, ms in parts:
            wide = (WIDTH - 20) * ms / longest
            told = f"<title>{escape(name)}: {ms:.2f} ms</title>"
            place = f'x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{BAR}"'
            yield f'<rect {place} fill="{colours[name]}">{told}</rect>'
            x += wide
    yield "</svg>"


def _flame(flame: Flame) -> Iterator[str]:
    """The outermost at the top; what takes less than a 400th of all is left out."""
    total = sum(flame.stacks.values())
    deepest = max((len(stack) for stack, ms in flame.stacks.items() if ms >= total * LEAST), default=0)
    height = TOP + min(deepest, DEEPEST) * ROW + 10
    yield from _head(WIDE, height, f"{flame.title} ({total:.1f})")
    yield from _layer(flame.stacks, 0, 10.0, (WIDE - 20) / max(total, 1e-9), total * LEAST)
    yield "</svg>"


def _layer(stacks: Mapping[tuple[str, ...], float], depth: int, x: float, scale: float, least: float) -> Iterator[str]:
    """The parts at a depth of stacks that are the same up to there, from ``x`` on; ``scale``: pixels a millisecond."""
    parts: dict[str, dict[tuple[str, ...], float]] = {}
    for stack, ms in stacks.items():
        if len(stack) > depth:
            parts.setdefault(stack[depth], {})[stack] = ms
    for name, inside in sorted(parts.items(), key=lambda part: -sum(part[1].values())):
        ms = sum(inside.values())
        if ms < least or depth >= DEEPEST:
            continue
        wide, y = ms * scale, TOP - 20 + depth * ROW
        colour = COLOURS[zlib.crc32(name.partition(":")[0].encode()) % len(COLOURS)]
        place = f'x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{ROW - 1}"'
        yield f'<g><title>{escape(name)}: {ms:.2f} ms</title><rect {place} fill="{colour}" fill-opacity="0.35"/>'
        if shown := name[: int(wide / 6)]:
            yield _text(x + 2, y + ROW - 5, shown)
        yield "</g>"
        yield from _layer(inside, depth + 1, x, scale, least)
        x += wide


def _legend(labels: Iterable[str], y: float) -> Iterator[str]:
    x = float(LEFT)
    for number, label in enumerate(labels):
        yield f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>'
        yield _text(x + 14, y, label)
        x += 24 + 6.2 * len(label)


def _head(width: int, height: int, title: str) -> Iterator[str]:
    size = f'viewBox="0 0 {width} {height}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    yield f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    yield _text(10, 18, title, size=14)


def _text(x: float, y: float, text: str, anchor: str = "start", *, size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#24292f">{escape(text)}</text>'
    )
