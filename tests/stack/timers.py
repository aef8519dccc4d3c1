"""Become a program whose timers may be late: ``python timers.py MICROSECONDS PROGRAM …``, on Linux."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PR_SET_TIMERSLACK: Final = 29  # linux/prctl.h; in ns, kept over an exec and by all threads that come from this one


def late_by(microseconds: int, command: Sequence[str]) -> tuple[str, ...]:
    """The command with such timers; itself where there is no such thing."""
    if sys.platform != "linux":
        return tuple(command)
    return (sys.executable, str(Path(__file__)), str(microseconds), *command)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(int(sys.argv[1]) * 1000), 0, 0, 0)
    os.execvp(sys.argv[2], sys.argv[2:])
