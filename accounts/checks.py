"""Is what accounts stand on there?"""

from __future__ import annotations

from django.db import DatabaseError, connection

from core.errors import Unavailable


def database_answers() -> None:
    """Raise Unavailable, naming the remedy, unless the accounts' database answers. Leaves no connection behind:
    each check runs in a thread of its own."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        raise Unavailable("The accounts' database does not answer: check DATABASE_URL and its server.") from error
    finally:
        connection.close()
