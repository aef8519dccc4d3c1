"""Metrics of several processes on one page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.clock import ManualClock
from core.metrics import Sampled, Slots

# A service's process: it counts what it is told to, line by line, and shows the page.
SERVICE = """
import sys
import threading
from pathlib import Path
from core import metrics
metrics.share(Path(sys.argv[1]))
from prometheus_client import Counter, Gauge, Histogram
sold = Counter("sold", "Things sold.", ["what"])
took = Histogram("took_seconds", "How long.", buckets=(1, 2))
inside = Gauge("inside", "People.", multiprocess_mode="livesum")
for line in sys.stdin:
    match line.split():
        case ["sell", what, number]: sold.labels(what).inc(int(number))
        case ["take", seconds]: took.observe(float(seconds))
        case ["enter", number]: inside.inc(int(number))
        case ["show"]: print(metrics.page().decode())
    print("ok", flush=True)
"""


class Process:
    """One process of a service that shares ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def does(self, command: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(command + "\n")
        stdin.flush()
        said = []
        while (line := stdout.readline()) != "ok\n":
            assert line, "the process ended"
            said.append(line)
        return "".join(said)

    def shows(self, series: str) -> float | None:
        """The value of one series, None when it is not there."""
        found = re.search(f"^{re.escape(series)} (.*)$", self.does("show"), re.MULTILINE)
        return float(found[1]) if found else None

    def dies(self) -> None:
        self._process.kill()
        with self._process:
            pass


class Service:
    """Processes that share one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Process] = []

    def starts(self) -> Process:
        self._started.append(Process(self.folder))
        self._started[-1].does("nothing")
        return self._started[-1]

    def ends(self) -> None:
        for process in self._started:
            process.dies()

    def files(self) -> set[str]:
        return {file.name for file in self.folder.iterdir()}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "metrics")
    yield service
    service.ends()


def test_any_process_shows_what_all_of_them_counted(service: Service) -> None:
    one, other = service.starts(), service.starts()
    one.does("sell tea 2")
    other.does("sell tea 3")
    other.does("take 1.5")
    one.does("enter 1")
    other.does("enter 4")
    for process in (one, other):
        assert process.shows('sold_total{what="tea"}') == 5
        assert process.shows('took_seconds_bucket{le="2.0"}') == 1
        assert process.shows("inside") == 5


def test_what_a_killed_process_counted_stays_and_its_gauges_go(service: Service) -> None:
    survivor, victim = service.starts(), service.starts()
    victim.does("sell tea 3")
    victim.does("take 0.5")
    victim.does("enter 4")
    survivor.does("enter 1")
    victim.dies()
    assert survivor.shows("inside") == 1
    assert survivor.shows('sold_total{what="tea"}') == 3
    successor = service.starts()
    successor.does("sell tea 10")
    for process in (survivor, successor):
        assert process.shows("inside") == 1
        assert process.shows('sold_total{what="tea"}') == 13
        assert process.shows("took_seconds_count") == 1


def test_a_service_that_is_killed_as_a_whole_goes_on_counting(service: Service) -> None:
    first = service.starts()
    first.does("sell tea 3")
    first.does("enter 3")
    first.dies()
    second = service.starts()
    assert second.shows('sold_total{what="tea"}') == 3
    assert second.shows("inside") == 0


def test_shows_what_each_living_process_takes_of_the_machine(service: Service) -> None:
    one, other = service.starts(), service.starts()
    assert (one.shows('process_resident_memory_bytes{process="1"}') or 0) > 1_000_000
    other.dies()
    assert one.shows('process_resident_memory_bytes{process="1"}') is None
    assert (one.shows('process_cpu_seconds_total{process="0"}') or 0) > 0


FORKING = """
import os, sys
from pathlib import Path
from core import metrics
metrics.share(Path(sys.argv[1]))
from prometheus_client import Counter, Gauge
sold = Counter("sold", "Things sold.")
inside = Gauge("inside", "People.", multiprocess_mode="livesum")
sold.inc()
inside.inc()
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        sold.inc()
        inside.inc()
        os.kill(os.getpid(), 9)
    os.wait()
    sold.inc()
sys.stdout.write(metrics.page().decode())
"""


def test_a_thousand_children_that_die_leave_their_counts_and_no_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKING, str(tmp_path), "1000"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "sold_total 2001.0" in shown
    assert "\ninside 1.0" in shown
    assert {file.name for file in tmp_path.iterdir()} == {
        "slots",
        *(f"counter_{slot}.db" for slot in (0, 1)),
        *(f"gauge_livesum_{slot}.db" for slot in (0, 1)),
    }


ORPHANED = """
import os, sys
from pathlib import Path
from core import metrics
metrics.share(Path(sys.argv[1]))
from prometheus_client import Counter
sold = Counter("sold", "Things sold.")
forked, parent_is_gone = os.pipe(), os.pipe()
if os.fork() == 0:
    os.read(forked[0], 1)
    os.close(parent_is_gone[1])
    os.read(parent_is_gone[0], 1)
    sold.inc(10)
    sys.stdout.write(metrics.page().decode())
    sys.stdout.flush()
    os._exit(0)
sold.inc()
os.write(forked[1], b".")
os._exit(0)
"""


def test_a_child_that_outlives_its_parent_takes_nothing_back(tmp_path: Path) -> None:
    """The parent's slot is free by then; what it counted since the fork is only in its file."""
    done = subprocess.run([sys.executable, "-c", ORPHANED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "sold_total 11.0" in done.stdout


def test_gives_each_process_the_lowest_free_slot(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    assert slots.mine() == 0
    assert slots.living() == {0: os.getpid()}


def test_a_measured_gauge_vanishes_when_nobody_measures_it_any_more() -> None:
    clock = ManualClock()
    lag = Sampled("test_lag", "Behind.", ["topic"], fresh_s=30, clock=clock)

    def shown() -> list[tuple[str, float]]:
        return [(sample.labels["topic"], sample.value) for family in lag.collect() for sample in family.samples]

    assert shown() == []
    lag.set_all({("messages",): 3, ("inbound",): 0})
    assert shown() == [("messages", 3), ("inbound", 0)]
    lag.set_all({("messages",): 2})
    clock.advance(30)
    assert shown() == [("messages", 2)]
    clock.advance(1)
    assert shown() == []


def test_a_page_is_whole_while_a_process_makes_its_file(service: Service) -> None:
    process = service.starts()
    process.does("sell tea 3")
    [counts] = [path for path in service.folder.iterdir() if path.name.startswith("counter_")]
    content, enough = counts.read_bytes(), threading.Event()

    def begin_again() -> None:
        """As a process does that takes a dead one's slot: there, with nothing in it, and then with everything."""
        other = counts.with_name("counter_7.db")
        while not enough.is_set():
            other.unlink(missing_ok=True)
            with other.open("wb", buffering=0) as file:
                file.truncate(1)
                file.truncate(0)
                file.write(content)

    writer = threading.Thread(target=begin_again)
    writer.start()
    try:
        for _ in range(300):
            assert process.shows('sold_total{what="tea"}') in (3, 6)
    finally:
        enough.set()
        writer.join()
