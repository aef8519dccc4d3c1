"""Measure everything on free ports, and print it.

    python -m bench [--full] [--write] [--only api,loop]

The cluster profile runs on the servers in TEST_…_URL: `make bench` starts them. The short form takes about 14 minutes
and leaves out the local profile, ``--full`` less than two hours. ``--write`` puts each part into docs/performance.md as
it ends, where what was not measured again stays, and its pictures into docs/img. The numbers go to
test-results/bench.json in any case, where `python -m bench.gate` finds them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import api, figures, floor, footprint, growth, kafka_log, live, loop, plots, profile, store
from bench.figures import Figure, Measured, Section
from bench.people import WHATSAPP_SECRETS
from bench.profiles import SERVERS, running
from bench.scale import FULL, SHORT, Scale
from demo.supervisor import LocalSystem

WARM_UP_S: Final = 60.0  # for what the servers compile; it is a minute of every message's way
LARGEST: Final = 1_000_000  # messages of one conversation, which are one partition: minutes to load

Benchmark = Callable[["Hall"], Iterator[Measured]]


class Hall:
    """Where benchmarks find what they need: a folder each, and a system of the cluster profile that several of them
    meet one after the other. It is opened for the first of them; one that breaks off costs it."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.scale = scale
        self._folder = folder
        self._numbers = itertools.count(1)
        self._open = ExitStack()
        self._system: LocalSystem | None = None

    def folder(self) -> Path:
        """A new one."""
        made = self._folder / str(next(self._numbers))
        made.mkdir(parents=True)
        return made

    def system(self) -> LocalSystem:
        if self._system is None:
            self._system = self._open.enter_context(running("cluster", self.folder(), env=WHATSAPP_SECRETS))
        return self._system

    def close(self) -> None:
        """What comes next finds a new one, or none beside it. An end that fails is told, and costs nothing else."""
        self._system = None
        try:
            self._open.close()
        except Exception:
            traceback.print_exc()


def _api(hall: Hall) -> Iterator[Measured]:
    hall.close()
    yield from api.everything("cluster", hall.folder(), scale=hall.scale.time, reference_s=hall.scale.reference_s)


def _footprint(hall: Hall) -> Iterator[Measured]:
    hall.close()  # the demo has the machine for itself, and a system that is new did nothing yet
    yield from footprint.demo(hall.folder())
    yield from footprint.of(hall.system(), hall.folder(), scale=hall.scale.time)


def _loop(hall: Hall) -> Iterator[Measured]:
    """By itself, as its floor is."""
    hall.close()
    yield from loop.everything("cluster", hall.folder(), scale=hall.scale.time, steady_s=hall.scale.steady_s)


def _growth(hall: Hall) -> Iterator[Measured]:
    yield from growth.of(hall.system(), "cluster", hall.scale)
    hall.close()
    yield from growth.workers("cluster", hall.folder(), hall.scale)


def _servers(hall: Hall) -> Iterator[Measured]:
    hall.close()
    yield from kafka_log.everything(os.environ[SERVERS["kafka"]], seconds=hall.scale.time)
    cassandra, largest = os.environ[SERVERS["cassandra"]], min(hall.scale.stored, LARGEST)
    yield from store.everything(cassandra, largest=largest, seconds=10 * hall.scale.time)


def _local(hall: Hall) -> Iterator[Measured]:
    hall.close()
    time_ = hall.scale.time / 2
    yield from api.everything("local", hall.folder(), scale=time_, reference_s=hall.scale.reference_s / 2)
    yield from live.everything("local", hall.folder(), scale=time_)
    yield from loop.everything("local", hall.folder(), scale=time_)
    rate, cpu_ms = floor.per_s(hall.folder(), seconds=5 * hall.scale.time)
    value = f"{rate:,.0f}/s, {cpu_ms:.3f} ms of CPU a message"
    yield Figure("floor: the same statements and pushes in one loop", value)


BENCHMARKS: Final[dict[str, tuple[str, Benchmark]]] = {
    "api": ("API, cluster profile", _api),
    "footprint": ("Footprint, cluster profile", _footprint),
    "live": (
        "POST to frame, cluster profile",
        lambda hall: live.of(hall.system(), "cluster", scale=hall.scale.time),
    ),
    "profile": (
        "Where the time goes, cluster profile",
        lambda hall: profile.of(hall.system(), "cluster", hall.folder(), scale=hall.scale.time),
    ),
    "loop": ("The whole loop, cluster profile", _loop),
    "servers": ("Kafka and Cassandra alone", _servers),
    "local": ("Local profile", _local),
    "growth": ("Growth, cluster profile", _growth),  # last: the servers are full then
}
SHORT_FORM: Final = ",".join(each for each in BENCHMARKS if each != "local")


def warm_up(hall: Hall) -> None:
    """What servers in Java do often they compile, and once more after thousands of times: that takes from what is
    measured meanwhile. One that fails is told, and costs nothing else."""
    print(f"--- warming the servers up for {WARM_UP_S:.0f} s", flush=True)
    try:
        system = hall.system()
        loop.most(system, *loop.people_on_whatsapp(system), seconds=WARM_UP_S)
    except Exception:
        traceback.print_exc()
    hall.close()


def measure(names: Sequence[str], hall: Hall, *, write: bool) -> list[Section]:
    """One after the other; each is kept as it ends, so that hours of them which somebody breaks off are not lost."""
    sections: list[Section] = []
    for name in names:
        sections.append(measured(name, hall))
        figures.keep(sections)
        if write:
            for plot in sections[-1].plots:
                plots.write(plot)
            figures.write(sections[-1:], [title for title, _ in BENCHMARKS.values()])
    return sections


def measured(name: str, hall: Hall) -> Section:
    """A benchmark that breaks off says so, and the others go on."""
    title, benchmark = BENCHMARKS[name]
    section, started_s = Section(title), time.monotonic()
    print(f"--- {title}", flush=True)
    try:
        for each in benchmark(hall):
            section.add(each)
            if isinstance(each, Figure):
                print(f"{time.monotonic() - started_s:5.0f} s  {each}", flush=True)
    except Exception as error:  # whatever it was, what was measured before is kept
        traceback.print_exc()
        section.failure = f"{type(error).__name__}: {error}".splitlines()[0]
        hall.close()
    section.about = about(hall.scale, time.monotonic() - started_s)
    print(f"    {section.about}", flush=True)
    return section


def about(scale: Scale, took_s: float) -> str:
    """Where and how."""
    machine = f"{os.cpu_count()} cores of a {platform.machine()}, Python {platform.python_version()}"
    when = f"{datetime.now(UTC):%Y-%m-%d}; took {took_s:.0f} s"
    return f"The {scale.name} form on {machine}, {when}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the long form of each")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md, docs/img and test-results")
    everything = ",".join(BENCHMARKS)
    told = f"some of {everything} (default: all; of the short form all but local)"
    parser.add_argument("--only", default="", metavar="NAMES", help=told)
    options = parser.parse_args()
    names = (options.only or (everything if options.full else SHORT_FORM)).split(",")
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as folder:
        hall = Hall(Path(folder), FULL if options.full else SHORT)
        try:
            if set(names) - {"local"}:
                warm_up(hall)
            sections = measure(names, hall, write=options.write)
        finally:
            hall.close()
    return 1 if any(section.failure for section in sections) else 0


if __name__ == "__main__":
    sys.exit(main())
