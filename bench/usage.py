"""CPU time of the parts of a running system, and of everybody else: rates mean little without the second."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from demo.supervisor import LocalSystem

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Usage:
    """From when it is made on."""

    def __init__(self, system: LocalSystem) -> None:
        self._system = system
        self._started_s = time.monotonic()
        self._before = _by_group()
        self._busy_before_s = _busy_s()

    def parts_s(self) -> dict[str, float]:
        """Seconds of CPU that each part and its children took."""
        now = _by_group()
        leaders = {name: self._system.pid(name) for name in self._system.processes}
        return {name: now.get(pid, 0.0) - self._before.get(pid, 0.0) for name, pid in leaders.items()}

    def others(self) -> float:
        """How many cores were busy with neither the system nor this process."""
        ours = {self._system.pid(name) for name in self._system.processes} | {os.getpgrp()}
        now = _by_group()
        used_s = sum(now.get(group, 0.0) - self._before.get(group, 0.0) for group in ours)
        busy_s = _busy_s() - self._busy_before_s
        return max(0.0, (busy_s - used_s) / (time.monotonic() - self._started_s))


def _busy_s() -> float:
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def _by_group() -> dict[int, float]:
    """By process group: the parts are leaders of theirs."""
    found: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        group = int(fields[2])
        found[group] = found.get(group, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return found
