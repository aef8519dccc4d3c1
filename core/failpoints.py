"""Named places where a fault test ends or stops a process. Nothing happens unless FAILPOINTS names a folder.

A file in that folder arms the point of its name for whoever comes by next; its content says what happens:

* ``kill``: SIGKILL to this process,
* ``kill-group``: to its whole process group, say a worker's parent and all its children,
* ``stop``: SIGSTOP to this process; whoever armed it sends SIGCONT.

The file is renamed to ``<name>.struck`` and holds the process id then, so that each arming strikes once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(os.environ["FAILPOINTS"]) if os.environ.get("FAILPOINTS") else None


def failpoint(name: str) -> None:
    """A place that matters: what was done before it is not known yet to whoever comes after it."""
    if _FOLDER is not None:
        _pass(_FOLDER, name)


def _pass(folder: Path, name: str) -> None:
    armed, mine = folder / name, folder / f"{name}.{os.getpid()}"
    try:
        armed.rename(mine)  # of several that come by, one gets it
    except FileNotFoundError:
        return
    action = mine.read_text()
    mine.write_text(str(os.getpid()))
    mine.rename(folder / f"{name}.struck")
    _ACTIONS[action]()


_ACTIONS: Final[dict[str, Callable[[], None]]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill-group": lambda: os.killpg(os.getpgrp(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}
