"""A clean store on SQLite and what the services need around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import DjangoDbBlocker

from core.clock import ManualClock
from tests.contracts.message_stores import orm_on_sqlite
from tests.messaging.workbench import Workbench


@pytest.fixture
def bench(tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[Workbench]:
    clock = ManualClock()
    with django_db_blocker.unblock(), orm_on_sqlite(tmp_path, clock) as store:
        yield Workbench(store, clock)
