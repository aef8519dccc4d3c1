"""What every user of Django's connections may need, whatever database is behind them."""

from __future__ import annotations

from django.db import connections


def release_pooled() -> None:
    """Give this thread's connections back to their pools, before a long wait for something else (a body, a storage).

    The next query takes one again. Within a transaction, and where nothing is pooled, this does nothing.
    """
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["OPTIONS"].get("pool") and not connection.in_atomic_block:
            connection.close()
