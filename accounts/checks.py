"""Is what accounts stand on there?"""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from typing import Final

from django.db import DEFAULT_DB_ALIAS, DatabaseError

from core.database import remedy, unpooled
from core.errors import Unavailable
from core.forks import unforked

TIMEOUT_S: Final = 2.0


def database_answers() -> None:
    """Raise Unavailable within 2 s, naming the remedy, unless the accounts' database answers."""
    answer: Future[None] = Future()
    Thread(target=_probe, args=(answer,), name="accounts-ping", daemon=True).start()
    try:
        answer.result(TIMEOUT_S)
    except (DatabaseError, TimeoutError) as error:
        raise Unavailable(remedy("The accounts' database", error, "DATABASE_URL")) from error


def _probe(answer: Future[None]) -> None:
    """On a thread of its own, since a driver may wait for a dead host far longer than a check may take."""
    with unforked(joins=True):
        connection = unpooled(DEFAULT_DB_ALIAS)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except BaseException as error:  # raised where the answer is awaited
            answer.set_exception(error)
        else:
            answer.set_result(None)
        finally:
            connection.close()
