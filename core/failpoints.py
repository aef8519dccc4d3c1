"""Named places where a fault test ends or stops a process. Nothing happens unless FAILPOINTS names a folder.

A file in that folder arms the point of its name for whoever comes by next, ``<name>.<SERVICE>`` for that service alone;
its content says what happens:

* ``kill``: SIGKILL to this process,
* ``kill-group``: to its whole process group, say a worker's parent and all its children,
* ``stop``: SIGSTOP to this process; whoever armed it sends SIGCONT.

The file gets a name that ends in ``.struck`` and holds the process id then, so that each arming strikes once.

A file ``clock``, ``clock.<SERVICE>`` or ``clock.<process id>`` holds the seconds by which wall clocks are wrong: of all
processes, of a service's, of one. The nearest counts, and may change at any time.

A file ``waits`` holds the share of their long waits that processes keep which start from now on: 0.5 halves them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

FOLDER: Final = Path(os.environ["FAILPOINTS"]) if os.environ.get("FAILPOINTS") else None


def _waits(folder: Path | None) -> float:
    if folder is not None:
        with suppress(FileNotFoundError):
            return float((folder / "waits").read_text())
    return 1.0


WAITS: Final = _waits(FOLDER)
"""Of what takes half a minute by design: until a breaker lets a probe through, until what failed is parked and tried
again, until no evidence of a send is expected any more."""


def failpoint(name: str) -> None:
    """A place that matters: what was done before it is not known yet to whoever comes after it."""
    if FOLDER is not None:
        _pass(FOLDER, name)


def clock_error_ns() -> int:
    """How far this process's wall clock is to be ahead; 0 unless a test says so."""
    return 0 if FOLDER is None else _clock_error_ns(FOLDER)


def _clock_error_ns(folder: Path) -> int:
    for name in (f"clock.{os.getpid()}", f"clock.{os.environ.get('SERVICE', '')}", "clock"):
        with suppress(FileNotFoundError):
            return int(float((folder / name).read_text()) * 1e9)
    return 0


def _pass(folder: Path, name: str) -> None:
    for point in (name, f"{name}.{os.environ.get('SERVICE', '')}"):
        armed, mine = folder / point, folder / f"{point}.{os.getpid()}"
        try:
            armed.rename(mine)  # of several that come by, one gets it
        except FileNotFoundError:
            continue
        action = mine.read_text()
        mine.write_text(str(os.getpid()))
        mine.rename(folder / f"{point}.struck")
        _ACTIONS[action]()


_ACTIONS: Final[dict[str, Callable[[], None]]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill-group": lambda: os.killpg(os.getpgrp(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}
