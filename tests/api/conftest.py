"""The API in this process over real Redis servers. Alice and Bob share a conversation, Mallory is outside of it, Eve is
in another workspace, where a conversation of hers may have the same name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from accounts.tokens import access_token
from demo.redis_server import LOG_RULES, RedisServer
from messaging import channels, topics, wiring
from messaging.ports import Record, TopicPartition
from messaging.services import persist, statuses
from messaging.work import Verdict
from tests.hub import hub

APP_SECRET, VERIFY_TOKEN = "app-secret-of-tests", "verify-token-of-tests"
SECRETS: Final = {"access_token": "token-of-tests", "app_secret": APP_SECRET, "verify_token": VERIFY_TOKEN}


@pytest.fixture(autouse=True)
def servers(db: None, settings: Settings, log_redis: RedisServer, bus_redis: RedisServer) -> Iterator[None]:
    with hub(settings, log_url=log_redis.url, bus_url=bus_redis.url):
        yield


@pytest.fixture
def own_log(servers: None, settings: Settings, bus_redis: RedisServer, tmp_path: Any) -> Iterator[RedisServer]:
    """A log that may be killed; a request gives it a second."""
    server = RedisServer(tmp_path / "log", rules=LOG_RULES).start()
    with hub(settings, log_url=server.url, bus_url=bus_redis.url, append_timeout_s=1.0):
        yield server
    server.stop()


class Person:
    """A user with a client that is signed in."""

    def __init__(self, user: User) -> None:
        self.id = user.public_id
        self.user = user
        self.workspace_id = user.workspace_id
        self.token = access_token(user)
        self._client = Client(headers={"Authorization": f"Bearer {self.token}"})

    def get(self, path: str, **query: Any) -> Any:
        return self._client.get(path, query)

    def post(self, path: str, body: object = None, **headers: str) -> Any:
        return self._client.post(
            path,
            body,
            content_type="application/json",
            headers={name.replace("_", "-"): v for name, v in headers.items()},
        )

    def delete(self, path: str) -> Any:
        return self._client.delete(path)

    def call(self, method: str, path: str, **options: Any) -> Any:
        return self._client.generic(method, path, **options)

    def send(self, conversation: str = "c1", content: str = "hello", **fields: object) -> dict[str, Any]:
        """Post a message that must be taken."""
        answer = self.post("/v1/messages", {"conversation_id": conversation, "content": content, **fields})
        assert answer.status_code == 202, answer.content
        body: dict[str, Any] = answer.json()
        return body


def person(name: str, workspace: Workspace | None = None) -> Person:
    user = User(username=name)
    user.workspace_id = workspace.id if workspace else DEFAULT_WORKSPACE_ID
    user.set_unusable_password()
    user.save()
    return Person(user)


@pytest.fixture
def alice(db: None) -> Person:
    return person("alice")


@pytest.fixture
def bob(db: None) -> Person:
    return person("bob")


@pytest.fixture
def mallory(db: None) -> Person:
    return person("mallory")


@pytest.fixture
def elsewhere(db: None) -> Workspace:
    return Workspace.objects.create(slug="elsewhere", name="Elsewhere")


@pytest.fixture
def eve(elsewhere: Workspace) -> Person:
    return person("eve", elsewhere)


@pytest.fixture
def chat(alice: Person, bob: Person) -> str:
    """The conversation of Alice and Bob."""
    assert alice.post("/v1/conversations", {"conversation_id": "c1", "members": [bob.id]}).status_code == 201
    return "c1"


@pytest.fixture
def accounts(db: None) -> None:
    """The default workspace has an account on each channel."""
    workspace = Workspace.objects.get(id=DEFAULT_WORKSPACE_ID)
    for channel, account_id in (("whatsapp", "1055"), ("instagram", "1784")):
        channels.register(workspace=workspace, channel=channel, account_id=account_id, credentials=SECRETS)


# --- the log ----------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """What was appended since this was made, and doing the work behind it as the workers do."""

    marks: dict[TopicPartition, int] = field(default_factory=dict)

    def mark(self) -> None:
        for topic in wiring.all_topics():
            for number in range(topic.partitions):
                source = TopicPartition(topic.name, number)
                self.marks[source] = wiring.event_log().end_offset(source)

    def new(self, topic: str) -> list[Record]:
        found = []
        for source, start in self.marks.items():
            if source.topic == topic:
                found += wiring.event_log().read(source, start=start, limit=1000)
        return found

    def work_off(self) -> None:
        """Store what was accepted and apply what was reported."""
        store, log, notify = wiring.message_store(), wiring.event_log(), wiring.notify()
        recent = wiring.recent_messages()
        messages = [_Item(each) for each in self.new(topics.MESSAGES)]
        done = persist.persist(messages, store=store, log=log, notify=notify, lease=_Lease(), recent=recent)
        news = [_Item(each) for each in self.new(topics.STATUS_UPDATES)]
        done |= statuses.apply_statuses(news, store=store, notify=notify, lease=_Lease(), recent=recent)
        assert {outcome.verdict for outcome in done.values()} <= {Verdict.DONE}
        self.mark()


@dataclass(frozen=True)
class _Item:
    record: Record
    attempts: int = 0
    first_failed_ms: int = 0

    @property
    def number(self) -> int:
        return self.record.offset


class _Lease:
    def check(self) -> None:
        """Nobody else works here."""


@pytest.fixture
def log(servers: None) -> Log:
    since = Log()
    since.mark()
    return since


# --- what is expected of an answer ----------------------------------------------------------------------------------

Fault = tuple[str, str]  # a field and its code


def problem(answer: Any, status: int, code: str, *faults: Fault) -> dict[str, Any]:
    """The answer is this problem, with exactly these fields at fault, in its whole shape."""
    assert answer["Content-Type"] == "application/problem+json", answer.content[:300]
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert [(each["field"], each["code"]) for each in body.get("errors", [])] == list(faults), body
    assert body["type"] == f"urn:chat4all:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer["X-Request-ID"]
    return body


def missing_id() -> str:
    """A message id that nobody has; always the same, as the names of tests must be equal in every process."""
    return "0192f0c1-a7b3-7c11-a8e2-c5d9f3b4a6e7"


Answer = Callable[..., Any]
