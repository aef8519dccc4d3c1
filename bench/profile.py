"""Where a message's CPU goes: py-spy looks at every Python process of the whole loop while it is at work.

python -m bench.profile [--profile cluster]

What holds the interpreter's lock is seen, so that who waits costs nothing, and shares out the CPU that its process
took; the servers are not looked into. To look takes some of the CPU that it finds. py-spy has to be root's, or the
kernel has to allow it (kernel.yama.ptrace_scope=0).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from bench.figures import Figure, Flame, Measured, Stages
from bench.loop import most, people_on_whatsapp
from bench.people import WHATSAPP_SECRETS
from bench.profiles import Profile, alone, running
from bench.usage import family
from demo.supervisor import LocalSystem

RATE: Final = 100  # looks a second
LARGEST: Final = 5
ENOUGH: Final = 100  # looks that found the process at work: shares of fewer say little
WARM_UP_S: Final = 4.0
SPY_START_S: Final = 3.0  # what a dozen of py-spy need to begin
COPY: Final = re.compile(r"-\d+$")
FRAME: Final = re.compile(r"(?P<function>.*) \((?P<path>[^:()]*)(?::\d+)?\)")
Stack = tuple[str, ...]  # package and function of each frame, the outermost first


class Spy(NamedTuple):
    """A py-spy at work, and where it writes what it saw."""

    looked_at: str
    process: subprocess.Popen[bytes]
    out: Path


@dataclass(slots=True)
class Profiles:
    """How often each stack was seen, by process, whose copies are one; ``cost_ms``: CPU of a message in each."""

    seen: dict[str, Counter[Stack]] = field(default_factory=dict)
    cost_ms: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def took(self, process: str, ms: float) -> None:
        self.cost_ms[COPY.sub("", process)] += ms

    def add(self, process: str, raw: str) -> None:
        """``raw``: a line for each stack, ``outermost;…;innermost count``."""
        counts = self.seen.setdefault(COPY.sub("", process), Counter())
        for line in raw.splitlines():
            frames, _, count = line.rpartition(" ")
            if count.isdigit():
                counts[tuple(map(place, frames.split(";")))] += int(count)

    def figures(self) -> Iterator[Figure]:
        """Of each process the packages in which it was most."""
        for process, stacks in sorted(self.seen.items(), key=lambda each: -self.cost_ms[each[0]]):
            packages: Counter[str] = Counter()
            for stack, count in stacks.items():
                packages[stack[-1].partition(":")[0]] += count
            yield Figure(process, f"{self.cost_ms[process]:.2f} ms a message", told(packages))

    def flame(self, file: str, title: str) -> Flame:
        return Flame(
            file,
            title,
            {
                (process, *stack): self.cost_ms[process] * count / stacks.total()
                for process, stacks in self.seen.items()
                for stack, count in stacks.items()
            },
        )


def told(packages: Counter[str]) -> str:
    """The shares of the largest, or which it was most often in where it was seen too rarely."""
    looks = packages.total()
    if looks < ENOUGH:
        return ", ".join([f"{looks} looks, too few for shares", *(name for name, _ in packages.most_common(1))])
    shares = [f"{name} {count / looks:.0%}" for name, count in packages.most_common(LARGEST)]
    return f"{looks:,} looks: {', '.join(shares)}"


def place(frame: str) -> str:
    """``messaging.services:persist`` for a frame as py-spy writes it; of packages of others their name alone."""
    match = FRAME.fullmatch(frame)
    if match is None:
        return f"?:{frame}"
    parts = Path(match["path"]).with_suffix("").parts
    if "site-packages" in parts:
        package = parts[parts.index("site-packages") + 1 :][0]
    elif any(each.startswith("python3") for each in parts) or match["path"].startswith("<"):
        package = "python"
    else:
        package = ".".join(parts[-3:-1] or parts)
    return f"{package}:{match['function']}"


def looking(system: LocalSystem, folder: Path, *, seconds: float) -> Iterator[Spy]:
    """py-spy at each Python process."""
    spy = Path(sys.executable).with_name("py-spy")
    for name in system.processes:
        for pid in family(system.pid(name)) if not name.startswith("redis") else ():
            out = folder / f"{name}.{pid}"
            command = [str(spy), "record", "--pid", str(pid), "--duration", f"{seconds:.0f}", "--rate", str(RATE)]
            command += ["--gil", "--nonblocking", "--format", "raw", "--output", str(out)]
            yield Spy(name, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), out)


def of(system: LocalSystem, profile: Profile, directory: Path, *, scale: float) -> Iterator[Measured]:
    """``directory`` takes what py-spy writes. Raises RuntimeError where it may look at nothing."""
    seconds = max(10.0, 20 * scale)
    senders, talks = people_on_whatsapp(system)
    most(system, senders, talks, seconds=WARM_UP_S)
    directory.mkdir(parents=True, exist_ok=True)
    spies: list[Spy] = []

    def look() -> None:
        spies.extend(looking(system, directory, seconds=seconds))

    window_s = SPY_START_S + seconds
    per_s, measured = most(system, senders, talks, seconds=window_s, plot="costs", when_full=look)
    found = _read(spies)
    if not found.seen:
        raise RuntimeError("py-spy may look at no process: run it as root, or set kernel.yama.ptrace_scope=0")
    for costs in (each for each in measured if isinstance(each, Stages)):
        for name, ms in costs.bars[0][1]:
            found.took(name, ms)
    yield Figure(
        "the whole loop while it is looked at", f"{per_s:,.0f}/s", f"{RATE} looks a second for {seconds:.0f} s"
    )
    yield from found.figures()
    yield found.flame(f"flame-{profile}.svg", f"CPU of a message to READ in Python, {profile} profile, ms")


def everything(profile: Profile, directory: Path, *, scale: float) -> Iterator[Measured]:
    with running(profile, directory / "system", env=WHATSAPP_SECRETS) as system:
        yield from of(system, profile, directory, scale=scale)


def _read(spies: Iterable[Spy]) -> Profiles:
    found = Profiles()
    for each in spies:
        each.process.wait(120)
        if each.out.exists():
            found.add(each.looked_at, each.out.read_text())
    return found


if __name__ == "__main__":
    alone(__doc__, everything)
