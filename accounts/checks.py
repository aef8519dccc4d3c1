"""Is what accounts stand on there?"""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from core.errors import Unavailable

TIMEOUT_S: Final = 2.0


def database_answers() -> None:
    """Raise Unavailable within 2 s, naming the remedy, unless the accounts' database answers."""
    answer: Future[None] = Future()
    Thread(target=_probe, args=(answer,), name="accounts-ping", daemon=True).start()
    try:
        answer.result(TIMEOUT_S)
    except (DatabaseError, TimeoutError) as error:
        raise Unavailable(_remedy(error)) from error


def _probe(answer: Future[None]) -> None:
    """On a thread of its own, since a driver may wait for a dead host far longer than a check may take."""
    connection = _unpooled()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except BaseException as error:  # raised where the answer is awaited
        answer.set_exception(error)
    else:
        answer.set_result(None)
    finally:
        connection.close()


def _unpooled() -> BaseDatabaseWrapper:
    """A connection of our own: a pool hides why it has none to give."""
    connection: Any = connections.create_connection(DEFAULT_DB_ALIAS)
    connection.settings_dict = {
        **connection.settings_dict,
        "OPTIONS": {name: value for name, value in connection.settings_dict["OPTIONS"].items() if name != "pool"},
    }
    return connection  # type: ignore[no-any-return]


# What PostgreSQL says (SQLSTATE is missing while one connects) -> what to do. The texts hold no password.
_REMEDIES: Final = (
    ("authentication failed", "refuses our user or password: correct them in DATABASE_URL"),
    ("no password supplied", "wants a password: give it in DATABASE_URL"),
    ("no pg_hba.conf entry", "lets this machine or user not in: see its pg_hba.conf"),
    ("does not exist", "has no such database or role: create it, or correct DATABASE_URL"),
    ("too many", "has no connection left: raise its max_connections or lower DATABASE_POOL_SIZE"),
    ("starting up", "is starting: wait"),
)


def _remedy(error: Exception) -> str:
    said = str(error)
    for phrase, remedy in _REMEDIES:
        if phrase in said:
            return f"The accounts' database {remedy}."
    return (
        f"The accounts' database does not answer ({type(error).__name__}): see that its server runs and that "
        "DATABASE_URL is right."
    )
