"""From POST to the recipient's frame, between users: latency at a steady rate, what is sustained, what is the most.

python -m bench.live
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.figures import Figure, Spread
from bench.people import Talk, talks
from bench.traffic import Traffic, Watched, pushed, stored_ids
from bench.usage import Usage
from demo.supervisor import LocalSystem

PAIRS: Final = 50
WINDOW: Final = 200


def latency(system: LocalSystem, people: Sequence[Talk], *, per_s: float, seconds: float) -> list[Figure]:
    traffic = _traffic(system, people)
    traffic.open_loop(people, per_s=5, seconds=2)  # warm up: connections, caches
    traffic.watched.due_s.clear()
    usage = Usage(system)
    traffic.open_loop(people, per_s=per_s, seconds=seconds)
    traffic.close()
    what = f"POST to recipient's frame, {per_s:.0f}/s for {seconds:.0f} s"
    beside = f"target: p50 15, p99 60 ms; {shared(usage)}"
    return [Figure(what, f"{Spread.of(traffic.watched.latencies_s())}", beside)]


def sustained(system: LocalSystem, people: Sequence[Talk], *, per_s: float, seconds: float) -> list[Figure]:
    """Everything accepted must be stored and pushed once, and the lag must not grow."""
    traffic, usage = _traffic(system, people), Usage(system)
    lags = traffic.open_loop(people, per_s=per_s, seconds=seconds)
    seen, half = traffic.watched, len(lags) // 2
    traffic.close()
    what = f"{per_s:.0f}/s for {seconds:.0f} s"
    growth = f"largest lag {max(lags[:half])} records in the first half, {max(lags[half:])} in the second"
    return [
        Figure(f"{what}: POST to frame", f"{Spread.of(seen.latencies_s())}", f"{growth}; {shared(usage)}"),
        kept(what, system, seen),
        cpu_figure(what, usage, len(seen.due_s)),
    ]


def most(
    system: LocalSystem, people: Sequence[Talk], *, window: int, seconds: float, acknowledge: bool = False
) -> list[Figure]:
    """The next message goes out when an earlier one arrived."""
    traffic, usage = _traffic(system, people, acknowledge=acknowledge), Usage(system)
    per_s = traffic.closed_window(people, window=window, seconds=seconds)
    seen = traffic.watched
    traffic.close()
    what = f"{window} under way{', each acknowledged' if acknowledge else ''}"
    return [
        Figure(f"{what}: POST to frame", f"{per_s:,.0f}/s, {Spread.of(seen.latencies_s())}", shared(usage)),
        kept(what, system, seen),
        cpu_figure(what, usage, len(seen.due_s)),
    ]


def kept(what: str, system: LocalSystem, seen: Watched) -> Figure:
    """By comparing ids: what was answered 202, what came as frames, what the store holds."""
    unstored = len(seen.due_s.keys() - stored_ids(system.state_dir))
    value = f"{seen.lost()} lost, {unstored} not stored, {seen.twice} twice"
    return Figure(f"{what}: ids", value, f"{len(seen.due_s)} accepted, {seen.refused} refused")


def shared(usage: Usage) -> str:
    return f"others used {usage.others():.1f} cores"


def cpu_figure(what: str, usage: Usage, count: int) -> Figure:
    each = {name: 1000 * seconds / count for name, seconds in usage.parts_s().items() if seconds * 1000 > 0.02 * count}
    parts = sorted(each.items(), key=lambda item: -item[1])
    return Figure(
        f"{what}: CPU a message", f"{sum(each.values()):.2f} ms", ", ".join(f"{name} {ms:.2f}" for name, ms in parts)
    )


def _traffic(system: LocalSystem, people: Sequence[Talk], *, acknowledge: bool = False) -> Traffic:
    return Traffic(system, [talk.recipient for talk in people if talk.recipient], pushed, acknowledge=acknowledge)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", choices=("latency", "sustained", "most"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as name, LocalSystem(Path(name)) as system:
        people = talks(system.api_url, PAIRS, prefix="live")
        figures: list[Figure] = []
        if options.only in (None, "latency"):
            figures += latency(system, people, per_s=50, seconds=options.seconds)
        if options.only in (None, "sustained"):
            figures += sustained(system, people, per_s=200, seconds=options.seconds)
        if options.only in (None, "most"):
            figures += most(system, people, window=WINDOW, seconds=options.seconds)
            figures += most(system, people, window=WINDOW, seconds=options.seconds, acknowledge=True)
        for figure in figures:
            print(figure)


if __name__ == "__main__":
    main()
