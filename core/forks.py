"""Threads and `os.fork`: a lock that some thread holds at that moment stays locked in the child, for ever.

Python mends its own locks (imports, logging, threading); nobody mends those of SQLite, of prometheus_client, of drivers
and of our adapters. So whatever runs on background threads of a process that forks (a Celery worker's parent) does so
`unforked`: the fork waits until none of it is under way, and what would begin meanwhile waits for the fork.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 5.0  # longer than a readiness check and what it waits for


class Gate:
    """Work goes through it; a fork closes it, and waits until nobody is inside, for at most ``patience_s``.

    Then it forks all the same: something hangs, and a worker without children would do no work at all.
    """

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._forget()

    def _forget(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_closing = False

    @contextmanager
    def work(self, *, joins: bool = False) -> Iterator[None]:
        """``joins``: on behalf of somebody who is inside and waits for it, so it must not wait for the fork."""
        with self._changed:
            self._changed.wait_for(lambda: joins or not self._is_closing)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Before a fork. The gate's own lock stays ours until `open`: nobody else may hold it at the fork either."""
        self._changed.acquire()
        self._is_closing = True
        if not self._changed.wait_for(lambda: self._inside == 0, self._patience_s):
            logger.warning("forked although background work hangs", extra={"count": self._inside})

    def open(self) -> None:
        """After it, in the parent."""
        self._is_closing = False
        self._changed.notify_all()
        self._changed.release()

    def watch(self) -> None:
        """From here on for each fork of this process; a child has no threads, so its gate begins anew."""
        os.register_at_fork(before=self.close, after_in_parent=self.open, after_in_child=self._forget)


_gate: Final = Gate()
_gate.watch()
unforked = _gate.work
"""Around what a background thread does: no fork happens meanwhile."""
