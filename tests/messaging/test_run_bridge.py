"""The timers beside the bridge, on a real bus."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from pytest_django import DjangoDbBlocker

from chat4all_project.celery import app
from core.errors import Unavailable
from demo.redis_server import BUS_RULES, RedisServer
from messaging import wiring
from messaging.bridge import BridgeLimits
from messaging.dispatch import bus
from messaging.management.commands import run_bridge
from messaging.management.commands.run_bridge import (
    MAX_WAITING,
    PRUNES,
    RESUMES_AT_ONCE,
    resume_parked,
    until_none_is_left,
)
from messaging.ports import MessageStore, ParkedRecord, ParkScope, TopicPartition
from messaging.tasks import RESUMED_TOGETHER
from tests.contracts.message_stores import orm_on_sqlite

TOPICS = ("messages", "whatsapp-outbound")


@pytest.mark.parametrize(("lanes", "gather_ms"), [(1, 0), (3, 40)])
def test_a_bridge_has_the_lanes_that_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, lanes: int, gather_ms: int
) -> None:
    told: list[BridgeLimits] = []

    def bridge(*_: object, limits: BridgeLimits, **__: object) -> None:
        told.append(limits)
        raise Unavailable("enough was seen")

    monkeypatch.setattr(settings, "LANES", lanes)
    monkeypatch.setattr(settings, "GATHER_MS", gather_ms)
    monkeypatch.setattr(run_bridge, "Bridge", bridge)
    monkeypatch.setattr(wiring, "event_log", lambda: None)
    with pytest.raises(Unavailable, match="enough"):
        run_bridge.Command().handle(topics=["messages"], member="b1", health_port=0)
    assert [each.lanes_of("messages") for each in told] == [lanes]
    assert [each.gathers_s("messages") for each in told] == [gather_ms / 1000]


@pytest.fixture
def store(
    tmp_path: Path, django_db_blocker: DjangoDbBlocker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MessageStore]:
    with django_db_blocker.unblock(), orm_on_sqlite(tmp_path) as opened:
        monkeypatch.setattr(wiring, "message_store", lambda: opened)
        yield opened


@pytest.fixture
def waiting(bus_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A bus whose WhatsApp queue nobody empties."""
    monkeypatch.setattr(settings, "BUS_URL", bus_redis.url)
    monkeypatch.setattr(app.conf, "broker_url", bus_redis.url)
    client = bus(bus_redis.url)
    client.flushall()
    yield client
    client.close()


def park(store: MessageStore, *, due_at_ms: int = 0) -> ParkScope:
    scope = ParkScope("whatsapp-outbound", uuid4())
    source = TopicPartition(scope.topic, 0)
    store.park(scope, [ParkedRecord(source, 1, b"{}", 0, 1)], due_at_ms=due_at_ms)
    return scope


def test_what_is_due_is_handed_to_the_channel_s_workers(store: MessageStore, waiting: redis.Redis) -> None:
    scope = park(store)
    park(store, due_at_ms=10**15)
    resume_parked(TOPICS, waiting)
    [task] = waiting.lrange("whatsapp", 0, -1)
    assert str(scope.conversation_id) in _body(task)
    assert str(store.due_at_ms(scope)) in _body(task)


def test_what_was_handed_out_is_not_handed_out_again_each_second(store: MessageStore, waiting: redis.Redis) -> None:
    scopes = [park(store) for _ in range(2 * RESUMES_AT_ONCE + 1)]
    for _ in range(5):
        resume_parked(TOPICS, waiting)
    tasks = [_body(task) for task in waiting.lrange("whatsapp", 0, -1)]
    assert len(tasks) == 2 * RESUMES_AT_ONCE // RESUMED_TOGETHER + 1
    handed_out = sorted(scope for scope in scopes for task in tasks if str(scope.conversation_id) in task)
    assert handed_out == sorted(scopes)


def test_a_queue_that_nobody_empties_stops_growing(store: MessageStore, waiting: redis.Redis) -> None:
    waiting.lpush("whatsapp", *[b"a batch"] * (MAX_WAITING - 3))
    for _ in range(5 * RESUMED_TOGETHER):
        park(store)
    for _ in range(4):
        resume_parked(TOPICS, waiting)
    assert waiting.llen("whatsapp") == MAX_WAITING


def test_a_bus_that_is_away_is_told_as_such(store: MessageStore, tmp_path: Path) -> None:
    park(store)
    with bus(RedisServer(tmp_path, rules=BUS_RULES).url) as away, pytest.raises(Unavailable):
        resume_parked(TOPICS, away)


# --- pruning ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_everything_that_expires_is_pruned(store: MessageStore) -> None:
    session = SessionStore()
    session.set_expiry(-1)
    session.create()
    for prune in PRUNES:
        until_none_is_left(prune)
    assert not Session.objects.exists()


def test_pruning_goes_on_until_nothing_is_left() -> None:
    rounds = iter([1_000, 1_000, 3, 0])
    until_none_is_left(lambda: next(rounds))
    assert list(rounds) == []


def _body(task: bytes | str) -> str:
    return base64.b64decode(json.loads(task)["body"]).decode()
