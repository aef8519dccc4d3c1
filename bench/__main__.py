"""Measure everything on free ports, and print it.

    python -m bench [--full] [--write] [--only api,loop]

The cluster profile runs on the servers in TEST_…_URL: `make bench` starts them. The short form takes a quarter of an
hour, ``--full`` hours. ``--write`` puts it all into docs/performance.md and its pictures into docs/img. The numbers go
to test-results/bench.json in any case, where `python -m bench.gate` finds them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench import api, figures, floor, footprint, growth, kafka_log, live, loop, plots, profile, store
from bench.figures import Figure, Measured, Section
from bench.profiles import SERVERS
from bench.scale import FULL, SHORT, Scale

LARGEST: Final = 1_000_000  # messages of one conversation, which are one partition: minutes to load

Benchmark = Callable[[Path, Scale], Iterator[Measured]]


def _local(directory: Path, scale: Scale) -> Iterator[Measured]:
    yield from api.everything("local", directory / "api", scale=scale.time / 2, reference_s=scale.reference_s / 2)
    yield from live.everything("local", directory / "live", scale=scale.time / 2)
    yield from loop.everything("local", directory / "loop", scale=scale.time / 2)
    rate, cpu_ms = floor.per_s(directory, seconds=5 * scale.time)
    value = f"{rate:,.0f}/s, {cpu_ms:.3f} ms of CPU a message"
    yield Figure("floor: the same statements and pushes in one loop", value)


def _servers(_directory: Path, scale: Scale) -> Iterator[Measured]:
    yield from kafka_log.everything(os.environ[SERVERS["kafka"]], seconds=scale.time)
    cassandra, largest = os.environ[SERVERS["cassandra"]], min(scale.stored, LARGEST)
    yield from store.everything(cassandra, largest=largest, seconds=10 * scale.time)


BENCHMARKS: Final[dict[str, tuple[str, Benchmark]]] = {
    "api": (
        "API, cluster profile",
        lambda folder, scale: api.everything("cluster", folder, scale=scale.time, reference_s=scale.reference_s),
    ),
    "live": (
        "POST to frame, cluster profile",
        lambda folder, scale: live.everything("cluster", folder, scale=scale.time),
    ),
    "loop": (
        "The whole loop, cluster profile",
        lambda folder, scale: loop.everything("cluster", folder, scale=scale.time, steady_s=scale.steady_s),
    ),
    "profile": (
        "Where the time goes, cluster profile",
        lambda folder, scale: profile.everything("cluster", folder, scale=scale.time),
    ),
    "growth": ("Growth, cluster profile", lambda folder, scale: growth.everything("cluster", folder, scale)),
    "footprint": (
        "Footprint, cluster profile",
        lambda folder, scale: footprint.everything("cluster", folder, scale=scale.time),
    ),
    "servers": ("Kafka and Cassandra alone", _servers),
    "local": ("Local profile", _local),
}


def measured(name: str, scale: Scale) -> Section:
    """A benchmark that breaks off says so, and the others go on."""
    title, benchmark = BENCHMARKS[name]
    section, started_s = Section(title), time.monotonic()
    print(f"--- {title}", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as folder:
            for each in benchmark(Path(folder), scale):
                section.add(each)
                if isinstance(each, Figure):
                    print(each, flush=True)
    except Exception as error:  # whatever it was, what was measured before is kept
        traceback.print_exc()
        section.failure = f"{type(error).__name__}: {error}".splitlines()[0]
    print(f"    took {time.monotonic() - started_s:.0f} s", flush=True)
    return section


def about(scale: Scale, names: list[str]) -> str:
    """Where and how; a machine that is busy with other things makes every time a lie."""
    load = os.getloadavg()[0]
    return (
        f"The {scale.name} form ({', '.join(names)}) on {os.cpu_count()} cores of a {platform.machine()}, Python "
        f"{platform.python_version()}; load average before it {load:.1f}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the long form of each")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md, docs/img and test-results")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="some of %(default)s")
    options = parser.parse_args()
    names, scale = options.only.split(","), FULL if options.full else SHORT
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    header = about(scale, names)
    sections = [measured(name, scale) for name in names]
    figures.keep(sections)
    if options.write:
        for section in sections:
            for plot in section.plots:
                plots.write(plot)
        figures.write(figures.page(sections, about=header))
    return 1 if any(section.failure for section in sections) else 0


if __name__ == "__main__":
    sys.exit(main())
