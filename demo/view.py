"""What a person sees: live with colours on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from demo.journal import ACCEPTED, DELIVERED, FAILED, READ, SENT, STEPS, Journal, Life
from demo.summary import INTERNAL, PERCENTILES, Row, Summary, channel_of, in_words, percentile

TITLES: Final = {INTERNAL: "Chat4All", "whatsapp": "WhatsApp", "instagram": "Instagram"}
STYLES: Final = {INTERNAL: "cyan", "whatsapp": "green", "instagram": "magenta"}
TICKS: Final = {ACCEPTED: ("✓", "dim"), SENT: ("✓", ""), DELIVERED: ("✓✓", ""), READ: ("✓✓", "bright_blue")}
COLUMNS: Final = ("Accepted", "Stored", "At platform", "Delivered", "Read", "Replies in", "Files")
MAX_IN_FLIGHT: Final = 12
REFRESH_PER_S: Final = 12
WIDE: Final = 104  # columns of a terminal from which on there is room for everything
NOTHING: Final = "-"
_PLAIN_TEXT_CHARS: Final = 48


class View(Protocol):
    """Where the demo tells what happens."""

    def step(self, text: str) -> None:
        """Something that takes a while begins."""

    def playing(self, journal: Journal, names: Mapping[str, str]) -> contextlib.AbstractContextManager[None]:
        """Show every message of the journal while inside; ``names`` are people by party."""

    def summary(self, summary: Summary, *, limit_s: float) -> None: ...


def view_for(console: Console) -> View:
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView()


class PlainView:
    """One line for each thing that happened: for logs and for machines."""

    def step(self, text: str) -> None:
        print(text, flush=True)

    @contextlib.contextmanager
    def playing(self, journal: Journal, names: Mapping[str, str]) -> Iterator[None]:
        started_s = time.monotonic()

        def show(life: Life, status: str) -> None:
            elapsed = life.elapsed_ms(status) or 0
            reason = f" ({life.reason})" if status == FAILED and life.reason else ""
            print(
                f"{time.monotonic() - started_s:7.2f} s  {TITLES[_channel(life)]:<9}  {_who(life, names):<14}  "
                f"{status + reason:<9}  {elapsed:6.0f} ms  {_shortened(_text(life), _PLAIN_TEXT_CHARS)}",
                flush=True,
            )

        journal.watchers.append(show)
        yield

    def summary(self, summary: Summary, *, limit_s: float) -> None:
        print("\nSummary")
        for row in summary.rows:
            shown = zip(COLUMNS, _numbers(row), strict=True)
            print(f"  {TITLES[row.channel]:<9}  {', '.join(f'{name.lower()} {number}' for name, number in shown)}")
        print(f"  frames received: {summary.frames}")
        for what, values in summary.latencies_ms.items():
            print(f"  {what}: {', '.join(f'p{percent} {_ms(percentile(values, percent))}' for percent in PERCENTILES)}")
        for line in (*in_words(summary.reckoning), *summary.broken_off):
            print(f"  ! {line}")
        print(verdict(summary, limit_s=limit_s), flush=True)


class LiveView:
    """Finished messages scroll away above those that are under way."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, text: str) -> None:
        self._console.print(Text.assemble(("● ", "cyan"), text))

    @contextlib.contextmanager
    def playing(self, journal: Journal, names: Mapping[str, str]) -> Iterator[None]:
        started_s = time.monotonic()
        under_way: dict[str, Life] = {}
        spinner = Spinner("dots", style="cyan")

        def frame() -> RenderableType:
            lives = list(under_way.values())[-MAX_IN_FLIGHT:]
            counts = Text(_counts(journal), style="dim")
            return Group(*(self._line(life, names, started_s, spinner) for life in lives), Text(), counts)

        def show(life: Life, _status: str) -> None:
            under_way[life.message_id] = life
            if life.is_finished:
                del under_way[life.message_id]
                live.refresh()  # else it would be seen twice for a moment
                live.console.print(self._line(life, names, started_s, None))

        self._console.print()
        self._console.print(self._header())
        with Live(
            get_renderable=frame, console=self._console, refresh_per_second=REFRESH_PER_S, transient=True
        ) as live:
            journal.watchers.append(show)
            yield
            journal.watchers.remove(show)

    def summary(self, summary: Summary, *, limit_s: float) -> None:
        self._console.print(Panel.fit(Group(_counted(summary), Text(), _timed(summary)), title="Summary"))
        for line in (*in_words(summary.reckoning), *summary.broken_off):
            self._console.print(Text(f"  ! {line}", style="bold red"))
        style = "bold green" if summary.flawless else "bold red"
        self._console.print(Text(verdict(summary, limit_s=limit_s), style=style))

    def _header(self) -> Table:
        titles = ("who", "message", *STEPS) if self._is_narrow else ("s", "where", "who", "message", *STEPS)
        table = self._grid()
        table.add_row(*(Text(title, style="bold dim") for title in titles))
        return table

    def _line(self, life: Life, names: Mapping[str, str], started_s: float, spinner: Spinner | None) -> Table:
        style = STYLES[_channel(life)]
        who, ticks = _who(life, names), self._ticks(life, spinner)
        table = self._grid()
        if self._is_narrow:
            table.add_row(Text(who, style=style), _red_if_failed(life), *ticks)
        else:
            at = Text(f"{time.monotonic() - started_s:.1f}", style="dim")
            table.add_row(at, Text(TITLES[_channel(life)], style=style), Text(who), _red_if_failed(life), *ticks)
        return table

    def _ticks(self, life: Life, spinner: Spinner | None) -> Iterator[RenderableType]:
        waiting = spinner
        for status in STEPS:
            elapsed = life.elapsed_ms(status)
            tick, style = TICKS[status]
            if elapsed is not None:
                yield Text(f"{tick} {elapsed:.0f}{'' if self._is_narrow else ' ms'}", style=style)
            elif FAILED in life.reached and status == READ:
                yield Text("✗ FAILED", style="bold red")
            elif waiting is not None:
                yield waiting
                waiting = None
            else:
                yield Text("·", style="dim")

    @property
    def _is_narrow(self) -> bool:
        return self._console.width < WIDE

    def _grid(self) -> Table:
        """The same columns for every line, so that lines printed one by one stand below each other."""
        table = Table.grid(padding=(0, 1 if self._is_narrow else 2), expand=True)
        for width in (14,) if self._is_narrow else (5, 9, 14):
            table.add_column(width=width, no_wrap=True, overflow="ellipsis")
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for _ in STEPS:
            table.add_column(width=9 if self._is_narrow else 10, no_wrap=True, overflow="ellipsis", justify="right")
        return table


def verdict(summary: Summary, *, limit_s: float) -> str:
    reckoning = summary.reckoning
    return (
        f"lost: {reckoning.lost}   late (over {limit_s:g} s): {len(reckoning.late)}   "
        f"twice: {reckoning.twice}   scenes broken off: {len(summary.broken_off)}"
    )


def _counted(summary: Summary) -> Table:
    table = Table(box=None, header_style="bold dim")
    table.add_column("")
    for title in COLUMNS:
        table.add_column(title, justify="right")
    for row in summary.rows:
        table.add_row(Text(TITLES[row.channel], style=STYLES[row.channel]), *_numbers(row))
    table.add_row(Text("Frames", style="dim"), str(summary.frames))
    return table


def _timed(summary: Summary) -> Table:
    table = Table(box=None, header_style="bold dim")
    table.add_column("")
    for percent in PERCENTILES:
        table.add_column(f"p{percent}", justify="right")
    for what, values in summary.latencies_ms.items():
        table.add_row(what, *(_ms(percentile(values, percent)) for percent in PERCENTILES))
    return table


def _numbers(row: Row) -> list[str]:
    numbers = (row.accepted, row.stored, row.at_platform, row.delivered, row.read, row.replies_in, row.files)
    return [NOTHING if number is None else str(number) for number in numbers]


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f} ms"


def _counts(journal: Journal) -> str:
    lives = journal.lives.values()
    reached = (f"{sum(status in life.reached for life in lives)} {status.lower()}" for status in STEPS)
    return f"{' · '.join(reached)} · {sum(':' in life.sender for life in lives)} replies in"


def _channel(life: Life) -> str:
    """That of whichever end is outside."""
    return channel_of(life.sender if ":" in life.sender else life.recipient)


def _who(life: Life, names: Mapping[str, str]) -> str:
    return f"{names.get(life.sender, '?')} → {names.get(life.recipient, '?')}"


def _text(life: Life) -> str:
    return f"[file] {life.content}".rstrip() if life.has_file else life.content


def _red_if_failed(life: Life) -> Text:
    return Text.assemble((f"{life.reason} ", "red") if FAILED in life.reached and life.reason else "", _text(life))


def _shortened(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[: chars - 1]}…"
