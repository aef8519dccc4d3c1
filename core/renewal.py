"""A thread that asks again for what requests ask for all the time, before it is too old: nobody waits for it then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from django.db import close_old_connections

logger = logging.getLogger(__name__)

EVERY_S: Final = 1.0  # what is kept for 5 s is renewed with at least one left


def keep_renewing(*renewals: Callable[[], None]) -> threading.Event:
    """Run each of these again and again, until the event is set, on a daemon thread of this process, which must not
    fork afterwards."""
    enough = threading.Event()
    threading.Thread(target=_renew, args=(renewals, enough), name="renewal", daemon=True).start()
    return enough


def _renew(renewals: tuple[Callable[[], None], ...], enough: threading.Event) -> None:
    while not enough.wait(EVERY_S):
        for step in (*renewals, close_old_connections):  # as after a request: none that broke is used again
            try:
                step()
            except Exception:
                logger.exception("not renewed: the next request asks for itself")
