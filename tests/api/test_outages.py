"""When a part is away: 503 with Retry-After for what needs it, the rest goes on, and nothing is left half-done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from pytest_django import DjangoDbBlocker, Settings

from demo.redis_server import BUS_RULES, RedisServer
from messaging import topics
from messaging.models import IdempotencyKey
from tests.api.conftest import Log, Person, problem
from tests.api.test_webhooks import post as post_webhook
from tests.api.test_webhooks import text, webhook
from tests.hub import forget, hub

pytestmark = pytest.mark.django_db(databases=["default", "messages"])

SEND = "/v1/messages"


def unavailable(answer: Any, code: str) -> None:
    problem(answer, 503, code)
    assert int(answer["Retry-After"]) >= 1


# --- the event log -----------------------------------------------------------------------------------------------


def test_refuses_what_it_cannot_append_and_takes_it_once_the_log_is_back(
    alice: Person, bob: Person, chat: str, own_log: RedisServer, log: Log
) -> None:
    body = {"conversation_id": chat, "content": "once"}
    own_log.kill()
    unavailable(alice.post(SEND, body), "log_unavailable")
    unavailable(alice.post(SEND, body, Idempotency_Key="k"), "log_unavailable")
    own_log.start()
    answer = alice.post(SEND, body, Idempotency_Key="k")
    assert (answer.status_code, answer.get("Idempotency-Replay")) == (202, None)
    log.work_off()
    assert len(bob.get(f"/v1/conversations/{chat}/messages").json()["items"]) == 1


def test_a_try_that_failed_with_the_key_keeps_its_message_id(
    alice: Person, chat: str, own_log: RedisServer, settings: Settings
) -> None:
    """What was not acknowledged may still be on the log: the same id again makes no second message."""
    own_log.kill()
    body = {"conversation_id": chat, "content": "once"}
    unavailable(alice.post(SEND, body, Idempotency_Key="k"), "log_unavailable")
    claimed = IdempotencyKey.objects.get(key="k").message_id
    own_log.start()
    assert alice.post(SEND, body, Idempotency_Key="k").json()["message_id"] == str(claimed)


def test_a_read_report_and_a_webhook_are_refused_whole(
    alice: Person, bob: Person, chat: str, own_log: RedisServer, log: Log, accounts: None
) -> None:
    message_id = alice.send(chat)["message_id"]
    log.work_off()
    own_log.kill()
    unavailable(bob.post(f"{SEND}/{message_id}/read"), "log_unavailable")
    unavailable(post_webhook(webhook(text(1), text(2))), "log_unavailable")
    own_log.start()
    assert (log.new(topics.STATUS_UPDATES), log.new(topics.INBOUND)) == ([], [])
    assert post_webhook(webhook(text(1), text(2))).json() == {"received": 2}


def test_history_and_conversations_go_on_without_the_log(
    alice: Person, bob: Person, chat: str, own_log: RedisServer, log: Log
) -> None:
    message_id = alice.send(chat)["message_id"]
    log.work_off()
    own_log.kill()
    assert alice.get(f"{SEND}/{message_id}").status_code == 200
    assert alice.get(f"/v1/conversations/{chat}/messages").status_code == 200
    assert alice.post("/v1/conversations", {"members": [bob.id]}).status_code == 201
    own_log.start()


def test_what_is_wrong_is_refused_before_the_log_is_asked(alice: Person, chat: str, own_log: RedisServer) -> None:
    own_log.kill()
    problem(alice.post(SEND, {"conversation_id": chat}), 422, "invalid_request", ("content", "required"))
    own_log.start()


# --- the message store -------------------------------------------------------------------------------------------


StoreAway = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def store_away(settings: Settings, tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> StoreAway:
    """While in it the store's database cannot be opened."""
    return lambda: _store_away(settings, tmp_path / "gone", django_db_blocker)


@contextmanager
def _store_away(settings: Settings, folder: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    folder.mkdir()
    messages = connections.settings["messages"]
    connections.settings["store_gone"] = {**messages, "NAME": str(folder / "x.sqlite3")}
    shutil.rmtree(folder)
    url, settings.MESSAGE_STORE_URL = settings.MESSAGE_STORE_URL, "orm://store_gone"
    forget()
    try:
        with django_db_blocker.unblock():  # tests may only open the databases of their mark
            yield
    finally:
        settings.MESSAGE_STORE_URL = url
        del connections.settings["store_gone"]
        forget()


def test_answers_503_for_what_needs_the_store(
    alice: Person, bob: Person, chat: str, store_away: StoreAway, log: Log
) -> None:
    message_id = alice.send(chat)["message_id"]
    log.work_off()
    with store_away():
        for answer in (
            alice.get(f"{SEND}/{message_id}"),
            bob.post(f"{SEND}/{message_id}/read"),
            alice.post(SEND, {"conversation_id": chat, "content": "x"}),
            alice.post(SEND, {"conversation_id": chat, "content": "x"}, Idempotency_Key="k"),
            alice.get("/v1/conversations"),
            alice.post("/v1/conversations", {"members": [bob.id]}),
            alice.get(f"/v1/conversations/{chat}"),
            alice.get(f"/v1/conversations/{chat}/messages"),
            alice.post(f"/v1/conversations/{chat}/members", {"member_id": bob.id}),
            alice.delete(f"/v1/conversations/{chat}/members/{bob.id}"),
        ):
            unavailable(answer, "store_unavailable")
        assert log.new(topics.MESSAGES) == []
    assert alice.post(SEND, {"conversation_id": chat, "content": "x"}, Idempotency_Key="k").status_code == 202


def test_webhooks_go_on_without_the_store(accounts: None, store_away: StoreAway, log: Log) -> None:
    with store_away():
        assert post_webhook(webhook(text(1))).status_code == 200
    assert len(log.new(topics.INBOUND)) == 1


# --- the bus -----------------------------------------------------------------------------------------------------


def test_messages_are_taken_without_the_bus(alice: Person, bob: Person, settings: Settings, tmp_path: Path) -> None:
    """Pushes and hints are best effort: the log alone decides."""
    bus = RedisServer(tmp_path / "bus", rules=BUS_RULES).start()
    with hub(settings, log_url=settings.EVENT_LOG_URL, bus_url=bus.url):
        bus.kill()
        assert alice.post("/v1/conversations", {"conversation_id": "c2", "members": [bob.id]}).status_code == 201
        message_id = alice.send("c2")["message_id"]
        problem(alice.get(f"{SEND}/{message_id}"), 404, "message_not_found")
        assert Client().get("/health").status_code == 200
