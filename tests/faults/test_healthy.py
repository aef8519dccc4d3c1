"""A small load on a system where nothing breaks keeps every promise, as seen from outside: the checker's own check."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from messaging import topics
from messaging.domain import Status, rank
from tests.faults.checker import Rule, check, report
from tests.faults.collect import CHANNELS, FROM_THE_START, Device, Watcher, Writer, collect, devices
from tests.faults.conftest import Harbour
from tests.faults.history import History
from tests.faults.parking import Parking
from tests.faults.patience import eventually
from tests.town import phone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(150)]
PEOPLE, EACH = 10, 6
READ = rank(Status.READ)
BOUNDS = {"rss_mb": 600.0, "bus_mb": 64.0, "queue": 50.0, "log_share": 1.0}


def test_a_healthy_run_keeps_every_promise_and_a_stranger_s_message_is_noticed(harbour: Harbour) -> None:
    town, writer = harbour.town, Writer(harbour.alice)
    people = [phone() for _ in range(PEOPLE)]
    parking = Parking(town.system, CHANNELS)
    watcher = Watcher(town, harbour.alice, parking, accounts=[harbour.whatsapp], since=FROM_THE_START, bounds=BOUNDS)

    def write(to: str) -> None:
        for number in range(EACH):
            assert writer.write(f"healthy-{to}", [f"{to} {number}"], f"whatsapp:+{to}")

    def seen(opened: list[Device]) -> History:
        return collect(town, writers=[writer], accounts=[harbour.whatsapp], sockets=opened, watcher=watcher)

    def kept(opened: list[Device]) -> History | None:
        """Once all was read: until then statuses move between two looks."""
        history = seen(opened)
        is_read = all(
            standing >= READ for rows in history.stored.values() for row in rows for standing in row.ranks.values()
        )
        return history if is_read and not check(history) else None

    with devices(harbour.alice) as opened, watcher.watching(), ThreadPoolExecutor(4) as clients, closing(parking):
        began_s = time.monotonic()
        list(clients.map(write, people))
        eventually(lambda: not watcher.unseen_since(began_s))
        history = eventually(lambda: kept(opened), within_s=60)
        healthy = report(history)
        assert (healthy.acknowledged, healthy.lost, healthy.duplicated) == (PEOPLE * EACH, 0, 0)
        assert len(history.sent) == PEOPLE * EACH
        assert {each.receipt for each in history.sent} == {rank(Status.READ)}
        assert {frame.rank for frame in history.clients[0].frames} >= {None, READ}
        assert {level.name.partition(" ")[0] for level in history.levels} == BOUNDS.keys()
        assert {commit.source[0] for commit in history.commits} == set(topics.work_topics(CHANNELS))
        assert {commit.source[0] for commit in history.commits if commit.committed} >= {"messages", "whatsapp-outbound"}
        harbour.alice.post(f"healthy-{people[0]}", "nobody wrote this down", f"whatsapp:+{people[0]}")
        eventually(lambda: {each.rule for each in check(seen(opened))} == {Rule.PHANTOM})
