"""A core worker in which one message, named by KILLER_TEXT, kills whichever child gets it; never imported by a test."""

from __future__ import annotations

import os
import signal
from typing import Any

from chat4all_project.celery import app
from messaging.services import persist

_killer = os.environ["KILLER_TEXT"].encode()
_persist = persist.persist


def persist_or_die(items: Any, **parts: Any) -> Any:
    if any(_killer in item.record.value for item in items):
        os.kill(os.getpid(), signal.SIGKILL)
    return _persist(items, **parts)


persist.persist = persist_or_die
__all__ = ["app"]
