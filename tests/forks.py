"""What a forked child can do, on a machine whose C library may leave it a lock that nobody holds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Final

CHILDREN: Final = 3
WITHIN_S: Final = 30.0


def a_child_can(work: Callable[[], object]) -> None:
    """A child of this process does it, and returns without an error.

    Whoever forks beside threads that resolve addresses leaves one child of hundreds a lock of glibc's that nobody
    holds: it hangs, and the next one does not. What is wrong in the code under test hangs each of them.
    """
    for _ in range(CHILDREN):
        if (code := _exit_code(work)) is not None:
            assert code == 0, f"the child ended with exit code {code}"
            return
    raise AssertionError(f"{CHILDREN} children hung for {WITHIN_S:g} s")


def _exit_code(work: Callable[[], object]) -> int | None:
    """Of a child that does it; None when it had to be ended."""
    if (pid := os.fork()) == 0:  # pragma: no cover - it tells by its exit code only
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.02)  # a poll of another process
