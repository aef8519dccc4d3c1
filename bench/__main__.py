"""Measure the whole local profile on free ports and print a table; takes about six minutes.

    python -m bench [--quick] [--write]

``--write`` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import api, figures, floor, live, loop
from bench.figures import Figure
from bench.people import WHATSAPP_SECRETS, talks
from demo.supervisor import LocalSystem


def everything(directory: Path, *, scale: float) -> Iterator[Figure]:
    """One figure after another, as they are measured; ``scale`` shortens all of it."""
    yield from api.against_bare(directory / "api", seconds=8 * scale)
    with LocalSystem(directory / "system", env=WHATSAPP_SECRETS) as system:
        people = talks(system.api_url, live.PAIRS, prefix="live")
        yield from live.latency(system, people, per_s=50, seconds=30 * scale)
        yield from live.sustained(system, people, per_s=200, seconds=60 * scale)
        pushed = live.most(system, people, window=live.WINDOW, seconds=20 * scale)
        yield from pushed
        yield from live.most(system, people, window=live.WINDOW, seconds=15 * scale, acknowledge=True)
        senders, conversations = loop.people_on_whatsapp(system)
        loop.most(system, senders, conversations, seconds=3 * scale)  # warm up
        yield from loop.most(system, senders, conversations, seconds=20 * scale)
    rate, cpu_ms = floor.per_s(directory, seconds=5 * scale)
    yield Figure(
        "floor: the same statements and pushes in one loop", f"{rate:,.0f}/s, {cpu_ms:.3f} ms of CPU a message"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the time: to see that it works")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as name:
        for figure in everything(Path(name), scale=0.25 if options.quick else 1.0):
            measured.append(figure)
            print(figure, flush=True)
    if options.write:
        figures.write(figures.table(measured))


if __name__ == "__main__":
    main()
