"""Alice and Bob in the default workspace, Mallory in one of her own; a Redis for the counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import pytest
import redis
from django.db import OperationalError, connection
from django.test import Client
from pytest_django import Settings

from accounts import directory, guard
from accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from accounts.tokens import access_token
from demo.redis_server import RedisServer

PASSWORD = "correct horse battery"

Post = Callable[..., Any]


@pytest.fixture(autouse=True)
def bus(bus_redis: RedisServer, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """The Redis that attempts are counted in, empty; waited for on a busy machine, where others would go uncounted."""
    settings.BUS_URL = bus_redis.url
    directory.cache.clear()
    monkeypatch.setattr(guard, "_TIMEOUT_S", 20.0)
    guard._guard_at.cache_clear()
    with redis.Redis.from_url(bus_redis.url) as client:
        client.flushall()
        yield client
    guard._guard_at.cache_clear()


@pytest.fixture
def default_workspace(db: None) -> Workspace:
    return Workspace.objects.get(id=DEFAULT_WORKSPACE_ID)


@pytest.fixture
def alice(default_workspace: Workspace) -> User:
    return User.objects.create_user("alice", PASSWORD, display_name="Alice Souza")


@pytest.fixture
def bob(default_workspace: Workspace) -> User:
    return User.objects.create_user("bob", PASSWORD)


@pytest.fixture
def acme(db: None) -> Workspace:
    """A workspace that takes no registrations."""
    return Workspace.objects.create(slug="acme", name="Acme")


@pytest.fixture
def mallory(acme: Workspace) -> User:
    return User.objects.create_user("mallory", PASSWORD, workspace=acme)


@pytest.fixture
def post(client: Client) -> Post:
    """POST JSON."""

    def send(path: str, body: object, **headers: Any) -> Any:
        return client.post(path, body, content_type="application/json", headers=headers)

    return send


@pytest.fixture
def get(client: Client) -> Callable[..., Any]:
    """GET as a user, or with a token as it is."""

    def send(path: str, who: User | str | None = None, **query: str) -> Any:
        token = access_token(who) if isinstance(who, User) else who
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return client.get(path, query, headers=headers)

    return send


def database_away() -> AbstractContextManager[None]:
    """The accounts' database refuses whatever this thread asks it."""

    def refuse(*_: object) -> NoReturn:
        raise OperationalError("the server closed the connection")

    return connection.execute_wrapper(refuse)


def assert_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """The answer is this problem, in its whole shape."""
    body: dict[str, Any] = response.json()
    assert (response.status_code, body.get("code")) == (status, code), body
    assert response["Content-Type"] == "application/problem+json"
    assert body["status"] == status
    assert body["type"] == f"urn:chat4all:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response["X-Request-ID"]
    return body
