"""A clean store on SQLite and what the services need around it; for tests marked EVERYWHERE also on real servers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import DjangoDbBlocker

from core.clock import ManualClock
from messaging.eventlog.kafka import KafkaLog
from tests.contracts.message_stores import on_cassandra, orm_on_sqlite
from tests.messaging.workbench import ShiftedClock, Workbench
from tests.stack.servers import needed


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[Workbench]:
    if getattr(request, "param", "local") == "local":
        clock = ManualClock()
        with django_db_blocker.unblock(), orm_on_sqlite(tmp_path, clock) as store:
            yield Workbench(store, clock)
        return
    shifted = ShiftedClock()
    log = KafkaLog(f"{needed('kafka')}/{uuid.uuid4().hex}", append_timeout_s=20.0)  # a busy machine's disk
    with django_db_blocker.unblock(), on_cassandra(tmp_path, shifted) as store:
        yield Workbench(store, shifted, log=log)
    log.close()
