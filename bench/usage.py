"""CPU time and memory of the parts of a running system, of its servers, and of everybody else.

Rates mean little without the CPU, and a cluster's without that of Kafka, Cassandra and PostgreSQL, which share the
machine: their processes are found by the ports that they listen on, where /proc tells us (same user, or root).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench.figures import Figure
from bench.profiles import SERVERS
from demo.supervisor import LocalSystem

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
LISTENS: Final = "0A"  # as /proc/net/tcp writes the state


@dataclass(frozen=True, slots=True)
class Spent:
    """What a measurement took."""

    cpu_s: Mapping[str, float]  # by part
    others: float  # how many cores were busy with neither the system, its servers nor this process

    @property
    def shared(self) -> str:
        return f"others used {self.others:.1f} cores"

    def each(self, messages: int) -> list[tuple[str, float]]:
        """CPU milliseconds of a message by part, the largest first; what is below 0.02 ms is left out."""
        costs = {name: 1000 * seconds / max(1, messages) for name, seconds in self.cpu_s.items()}
        return sorted(((name, ms) for name, ms in costs.items() if ms > 0.02), key=lambda part: -part[1])

    def figure(self, what: str, messages: int) -> Figure:
        parts = self.each(messages)
        total = sum(ms for _, ms in parts)
        listed = ", ".join(f"{name} {ms:.2f}" for name, ms in parts)
        return Figure(f"{what}: CPU a message", f"{total:.2f} ms", listed)


class Usage:
    """From when it is made on."""

    def __init__(self, system: LocalSystem) -> None:
        self._system = system
        self._servers = servers_of(system)
        self._started_s = time.monotonic()
        self._before = {name: cpu_s(pid) for name, pid in self._pids()}
        self._mine_before_s = time.process_time()
        self._busy_before_s = _busy_s()

    def spent(self) -> Spent:
        cpu = {name: max(0.0, cpu_s(pid) - self._before.get(name, 0.0)) for name, pid in self._pids()}
        used_s = sum(cpu.values()) + time.process_time() - self._mine_before_s
        busy_s = _busy_s() - self._busy_before_s
        return Spent(cpu, max(0.0, (busy_s - used_s) / (time.monotonic() - self._started_s)))

    def _pids(self) -> Iterator[tuple[str, int]]:
        for name in self._system.processes:
            if self._system.is_running(name):
                yield name, self._system.pid(name)
        yield from self._servers.items()


def servers_of(system: LocalSystem) -> dict[str, int]:
    """The servers' processes by name; those of them that can be found."""
    if system.env["EVENT_LOG_URL"].startswith("redis"):
        return {}
    places = {name: urlsplit(os.environ.get(variable, "")).port for name, variable in SERVERS.items()}
    found = {name: listener(port) for name, port in places.items() if port}
    return {name: pid for name, pid in found.items() if pid}


def listener(port: int) -> int | None:
    """The oldest process that listens there; None where nobody does or we may not know."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    return min((pid for pid in _all_pids() if sockets & _open_files(pid)), default=None)


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _open_files(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(os.readlink(each))
    return found


def family(pid: int) -> list[int]:
    """A process and all below it; some of them may be gone by now."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for listed in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, listed.read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """Of a process, those below it, and those of its children that have ended."""
    return sum(map(_own_cpu_s, family(pid)))


def _own_cpu_s(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS_PER_S
    return 0.0


def rss_mb(pids: Iterable[int]) -> float:
    """Of all these together; memory that they share counts for each."""
    total_kb = 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return total_kb / 1024


def _all_pids() -> list[int]:
    return [int(each.name) for each in Path("/proc").glob("[0-9]*")]


def _busy_s() -> float:
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S
