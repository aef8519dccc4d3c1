"""Timers go on, whatever broke under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import connections
from pytest_django import DjangoDbBlocker

from messaging import sampling
from tests.contracts.message_stores import sqlite_alias


def test_a_timer_whose_connection_broke_has_another_one_the_next_time(
    tmp_path: Path, django_db_blocker: DjangoDbBlocker
) -> None:
    """As when PostgreSQL is restarted; CONN_MAX_AGE is 0 as for that."""
    answers: list[object] = []

    def ask() -> None:
        connection: Any = connections[alias]
        with connection.cursor() as cursor:
            answers.append(cursor.execute("SELECT 1").fetchone())
        connection.connection.close()  # behind Django's back

    with django_db_blocker.unblock(), sqlite_alias(tmp_path) as alias:
        connections.settings[alias]["CONN_MAX_AGE"] = 0
        sampling.attempt(ask)
        sampling.attempt(ask)
    assert answers == [(1,), (1,)]
