"""What every user of Django's connections may need, whatever database is behind them."""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper


def release_pooled() -> None:
    """Give this thread's connections back to their pools, before a long wait for something else (a body, a storage).

    The next query takes one again. Within a transaction, and where nothing is pooled, this does nothing.
    """
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["OPTIONS"].get("pool") and not connection.in_atomic_block:
            connection.close()


def unpooled(alias: str) -> BaseDatabaseWrapper:
    """A connection outside of the pool, for the caller to close: a pool that has none to give hides why."""
    connection: Any = connections.create_connection(alias)
    options = {name: value for name, value in connection.settings_dict["OPTIONS"].items() if name != "pool"}
    connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
    return connection  # type: ignore[no-any-return]


REMEDIES = (
    ("authentication failed", "refuses our user or password: correct them"),
    ("no password supplied", "wants a password: give it"),
    ("no pg_hba.conf entry", "lets this machine or user not in: see its pg_hba.conf, and the user"),
    ("does not exist", "has no such database or role: create it, or correct the name"),
    ("too many", "has no connection left: raise its max_connections or lower DATABASE_POOL_SIZE, and look"),
    ("starting up", "is starting: wait, or look"),
)
"""What PostgreSQL says (there is no SQLSTATE yet while one connects) and what to do. Its texts hold no password."""


def remedy(name: str, error: Exception, variable: str) -> str:
    """For a person: what keeps the database from us, by what its driver said."""
    said = str(error)
    for phrase, cure in REMEDIES:
        if phrase in said:
            return f"{name} {cure} in {variable}."
    return f"{name} does not answer ({type(error).__name__}): see that its server runs and that {variable} is right."
