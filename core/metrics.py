"""One page of metrics for all processes of a service, whichever of them is asked.

Processes share a folder, given by PROMETHEUS_MULTIPROC_DIR. prometheus_client keeps a few files there for each process
id, for ever; here each living process has a *slot*, the lowest number that is free, and files by slot. A process that
takes a dead one's slot goes on counting where that stopped, so counters stay whole, nothing has to be merged or cleaned
up, and the folder is as large as the most processes that ever lived at once. Gauges begin anew, and are shown only
while their process lives.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import prometheus_client.values
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.values import MultiProcessValue

from core.clock import SYSTEM_CLOCK, Clock

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""Of `page`."""

TRIES: Final = 10
FIRST_PAUSE_S: Final = 0.001  # between two tries, and twice as long each time: half a second over all of them
_SLOT_BYTES: Final = 16  # in the file of slots: its owner's process id


class Slots:
    """Numbers for the processes that share a folder. A slot is held by a POSIX lock: the kernel frees it, however its
    owner ends, and a forked child does not inherit it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = os.open(folder / "slots", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._pid = -1
        self._slot = -1
        self._lock = threading.Lock()

    def mine(self) -> int:
        """This process's slot. Called at each increment, so cheap but for the first time."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._take()
        return self._slot

    def living(self) -> dict[int, int]:
        """Process ids by slot."""
        self.mine()
        slots = range(os.fstat(self._file).st_size // _SLOT_BYTES)
        return {slot: pid for slot in slots if self._is_held(slot) and (pid := self._owner(slot))}

    def _take(self) -> None:
        slot, inherited = 0, self._slot  # after a fork the parent's: with that number nobody would notice the fork
        while slot == inherited or not self._lock_slot(slot, fcntl.LOCK_EX):
            slot += 1
        for stale in self._folder.glob(f"gauge_*_{slot}.db"):
            stale.unlink(missing_ok=True)
        os.pwrite(self._file, f"{os.getpid():<{_SLOT_BYTES}}".encode(), slot * _SLOT_BYTES)
        self._slot, self._pid = slot, os.getpid()

    def _is_held(self, slot: int) -> bool:
        if slot == self._slot:
            return True  # asking would turn our own lock into a shared one
        if not self._lock_slot(slot, fcntl.LOCK_SH):
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, slot)
        return False

    def _owner(self, slot: int) -> int:
        text = os.pread(self._file, _SLOT_BYTES, slot * _SLOT_BYTES).strip(b" \0")
        return int(text) if text.isdigit() else 0

    def _lock_slot(self, slot: int, how: int) -> bool:
        with suppress(BlockingIOError, PermissionError):
            fcntl.lockf(self._file, how | fcntl.LOCK_NB, 1, slot)
            return True
        return False


@dataclass(frozen=True, slots=True)
class _Shared(Collector):
    """What all processes of the service counted, and what each living one takes of the machine."""

    folder: Path
    slots: Slots

    def collect(self) -> Iterator[Metric]:
        living = self.slots.living()
        yield from self._merged(living)
        yield from _of_processes(living)

    def _merged(self, living: Mapping[int, int]) -> list[Metric]:
        """A file that its process replaces while we read has nothing in it for an instant: look again."""
        for tries in range(1, TRIES + 1):
            files = [str(file) for file in self.folder.glob("*.db") if _counts(file, living)]
            try:
                return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
            except (struct.error, FileNotFoundError):
                if tries == TRIES:
                    raise
                time.sleep(FIRST_PAUSE_S * 2 ** (tries - 1))
        raise AssertionError("not reached")


def _counts(file: Path, living: Mapping[int, int]) -> bool:
    kind, _, slot = file.stem.rpartition("_")
    if kind.startswith("gauge") and int(slot) not in living:
        return False
    with suppress(FileNotFoundError):
        return file.stat().st_size > 0  # one that was made this instant has no content yet
    return False


def _of_processes(living: Mapping[int, int]) -> Iterable[Metric]:
    """``process_*`` as prometheus_client shows it for one process, with the slot as a label: bounded, unlike ids."""
    families: dict[str, Metric] = {}
    for slot, pid in living.items():
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            ours = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            ours.samples += [
                Sample(sample.name, {**sample.labels, "process": str(slot)}, sample.value) for sample in family.samples
            ]
    return families.values()


class Sampled(Collector):
    """A gauge of something that is nobody's own (a lag, a breaker), measured by whoever sets it.

    Values vanish after ``fresh_s``: an old number would look like a healthy one. Shown by the process that set them.
    """

    declared: Final[list[Sampled]] = []

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], *, fresh_s: float = 30, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._family = name, documentation, tuple(labels)
        self._fresh_s = fresh_s
        self._clock = clock
        self._values: tuple[float, dict[tuple[str, ...], float]] = float("-inf"), {}
        self.declared.append(self)
        REGISTRY.register(self)

    def set_all(self, values: Mapping[tuple[str, ...], float]) -> None:
        """These, by the values of the labels, and no others."""
        self._values = self._clock.monotonic_s(), dict(values)

    def describe(self) -> Iterable[Metric]:
        name, documentation, labels = self._family
        return [GaugeMetricFamily(name, documentation, labels=labels)]

    def collect(self) -> Iterable[Metric]:
        name, documentation, labels = self._family
        family = GaugeMetricFamily(name, documentation, labels=labels)
        set_s, values = self._values
        if self._clock.monotonic_s() - set_s <= self._fresh_s:
            for each, value in values.items():
                family.add_metric(each, value)
        return [family]


_shared: _Shared | None = None


def share(folder: Path) -> None:
    """From here on this process counts together with all that share ``folder``. Call it before any metric is made."""
    global _shared  # noqa: PLW0603 - prometheus_client's own state is global, too
    slots = Slots(folder)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # where prometheus_client looks
    prometheus_client.values.ValueClass = MultiProcessValue(slots.mine)  # type: ignore[no-untyped-call]
    _shared = _Shared(folder, slots)


def page() -> bytes:
    """What Prometheus reads: this process's metrics, or those of all that share a folder with it."""
    if _shared is None:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    registry.register(_shared)
    for each in Sampled.declared:
        registry.register(each)
    return generate_latest(registry)
