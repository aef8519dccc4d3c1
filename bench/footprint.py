"""What the system takes to be there: memory and CPU of each process idle and at work, start-up times, sizes.

python -m bench.footprint [--profile cluster]
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench.figures import ROOT, Figure
from bench.live import PAIRS, listeners_of
from bench.people import talks
from bench.profiles import Profile, alone, running
from bench.traffic import Traffic, pushed
from bench.usage import Usage, family, rss_mb, servers_of
from demo.ports import Ports
from demo.redis_server import BUS_RULES, RedisServer
from demo.supervisor import LocalSystem

PER_S: Final = 100
DEMO_TARGET_S: Final = 15
DEMO_READY: Final = "Signing in"  # what the demo prints once all of the system is up
UP: Final = "from its start until it is ready"


def processes(system: LocalSystem, *, seconds: float) -> Iterator[Figure]:
    """Of a system on which only users talk: nothing comes in, or goes out to a platform."""
    people = talks(system.api_url, PAIRS, prefix="footprint")
    traffic = Traffic(system, listeners_of(people), pushed)
    traffic.open_loop(people, per_s=PER_S, seconds=3)  # what opens on first use is open
    idle = _look(system, lambda: traffic.rest(seconds))
    busy = _look(system, lambda: traffic.open_loop(people, per_s=PER_S, seconds=seconds))
    traffic.close()
    at_work = f"at {PER_S}/s between users; the channels' workers and inbound have nothing to do"
    yield Figure("each process with its children", "idle, right after 3 s of such work", at_work)
    for name, (idle_mb, idle_cores) in idle.items():
        busy_mb, busy_cores = busy[name]
        yield Figure(name, f"{idle_mb:.0f} MB, {idle_cores:.3f} cores", f"{busy_mb:.0f} MB, {busy_cores:.3f} cores")
    ours = [idle[name][0] for name in system.processes]
    yield Figure("all processes of the system", f"{sum(ours):.0f} MB idle", "pages that they share count for each")


def starts(system: LocalSystem, directory: Path) -> Iterator[Figure]:
    """Of each process, one after the other; the bus is another with its rules, as all of them stand on theirs."""
    started_s = time.perf_counter()
    system.manage("setup_topics")
    yield Figure("setup_topics where they all exist", f"{time.perf_counter() - started_s:.1f} s")
    bus = RedisServer(directory, rules=BUS_RULES)
    started_s = time.perf_counter()
    bus.start()
    yield Figure(f"redis-bus: {UP}", f"{time.perf_counter() - started_s:.2f} s")
    bus.stop()
    for name in (each for each in system.processes if not each.startswith("redis")):
        if name == "bridge":
            system.end(name)  # one that is killed is waited for by those of its group
        else:
            system.kill(name)
        started_s = time.perf_counter()
        system.restart(name, timeout_s=120)
        yield Figure(f"{name}: {UP}", f"{time.perf_counter() - started_s:.1f} s")


def _look(system: LocalSystem, work: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Memory after some work, and cores busy during it, of each process and server."""
    usage, started_s = Usage(system), time.perf_counter()
    work()
    cpu_s, took_s = usage.spent().cpu_s, time.perf_counter() - started_s
    pids = {**{name: system.pid(name) for name in system.processes}, **servers_of(system)}
    return {name: (rss_mb(family(pid)), cpu_s.get(name, 0.0) / took_s) for name, pid in pids.items()}


def demo(directory: Path) -> Iterator[Figure]:
    """`make demo` once everything is installed: until the system is ready, and until the dialogues are over."""
    env = {**os.environ, **Ports.free().environment(), "STATE_DIR": str(directory), "PROFILE": "local", "DEMO": "once"}
    started_s, ready_s, last = time.perf_counter(), 0.0, ""
    command = [sys.executable, "-u", "-m", "demo"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip() or last
            if not ready_s and line.strip().startswith(DEMO_READY):
                ready_s = time.perf_counter() - started_s
    if process.returncode or not ready_s:
        raise RuntimeError(f"the demo ended with exit code {process.returncode}: {last}")
    yield Figure("the demo: everything is ready", f"{ready_s:.1f} s", f"target {DEMO_TARGET_S} s after installation")
    yield Figure("the demo: the dialogues are over", f"{time.perf_counter() - started_s:.1f} s")


def installed() -> Figure:
    """An image cannot be built where there are no containers: what goes into one instead."""
    text = (ROOT / "requirements" / "prod.txt").read_text()
    sizes = {name: _size(name) for name in pinned(text)}
    total = sum(sizes.values())
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    return Figure(
        f"what requirements/prod.txt installs ({len(sizes)} packages)",
        f"{total / 1e6:.0f} MB",
        "no image is built here, which has their .pyc as well; largest: "
        + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in largest),
    )


def pinned(requirements: str) -> list[str]:
    """The names in a compiled requirements file."""
    return re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==", requirements, re.MULTILINE)


def _size(name: str) -> int:
    """Bytes on disk without what Python compiles; 0 for what this platform does not take."""
    try:
        files = importlib.metadata.files(name) or ()
    except importlib.metadata.PackageNotFoundError:
        return 0
    places = (Path(str(each.locate())) for each in files)
    return sum(place.stat().st_size for place in places if place.exists() and place.suffix != ".pyc")


def of(system: LocalSystem, directory: Path, *, scale: float) -> Iterator[Figure]:
    """``directory`` takes a bus of its own."""
    yield from processes(system, seconds=20 * scale)
    yield from starts(system, directory)
    yield installed()


def everything(profile: Profile, directory: Path, *, scale: float) -> Iterator[Figure]:
    yield from demo(directory / "demo")
    with running(profile, directory / "system") as system:
        yield from of(system, directory / "bus", scale=scale)


if __name__ == "__main__":
    alone(__doc__, everything)
