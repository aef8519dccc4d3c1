"""Operators see dead letters and put them back; what they say is nobody's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from accounts.models import AuditEvent, Workspace
from core.clock import SYSTEM_CLOCK
from core.ids import uuid7, uuid7_ms
from demo.redis_server import RedisServer
from messaging import codec, topics, wiring
from messaging.bridge import DeadLetters
from messaging.domain import Message
from messaging.ports import NewRecord, TopicPartition
from messaging.work import Work
from tests.api.conftest import Log, Person, person, problem

pytestmark = pytest.mark.django_db(databases=["default", "messages"])
LIST, REPLAY = "/v1/operator/dead-letters", "/v1/operator/dead-letters/replay"


@pytest.fixture
def operator(elsewhere: Workspace) -> Person:
    """Of a workspace that no other test has ever had dead letters in."""
    return staff(person("operator", elsewhere))


def staff(who: Person, **rights: bool) -> Person:
    for right in ("is_staff", *rights):
        setattr(who.user, right, True)
    who.user.save()
    return who


def bury(workspace: Workspace, text: str = "a secret", error: str = "KeyError") -> str:
    """The id of the letter of a message of that workspace."""
    message_id, conversation_id = uuid7(), uuid4()
    message = Message(
        message_id=message_id,
        workspace_id=workspace.id,
        conversation_id=conversation_id,
        conversation="c1",
        sender_id="user_1",
        recipient_id=None,
        recipients=("user_2",),
        audience=("user_1", "user_2"),
        content=text,
        accepted_at_ms=uuid7_ms(message_id),
    )
    return bury_bytes(codec.encode(message), error=error)


def bury_bytes(value: bytes, error: str = "undecodable") -> str:
    log, letters = wiring.event_log(), TopicPartition(topics.dead_letters(topics.MESSAGES), 0)
    [(source, offset)] = log.append([NewRecord(topics.MESSAGES, str(uuid4()), value)])
    [record] = log.read(source, start=offset, limit=1)
    place = log.end_offset(letters)
    assert DeadLetters(log, per_minute=1_000, clock=SYSTEM_CLOCK).bury(Work(record, attempts=3), error)
    return f"messages:0:{place}"


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.content
    return [each["id"] for each in answer.json()["items"]]


@pytest.mark.parametrize("call", [lambda who: who.get(LIST), lambda who: who.post(REPLAY, {"filter": {}})])
def test_is_for_operators(alice: Person, call: Callable[[Person], Any]) -> None:
    problem(call(alice), 403, "permission_denied")


def test_rights_that_are_taken_away_end_at_once(operator: Person) -> None:
    assert operator.get(LIST).status_code == 200
    operator.user.is_staff = False
    operator.user.save()
    problem(operator.get(LIST), 403, "permission_denied")


def test_shows_what_died_and_never_what_it_says(operator: Person, elsewhere: Workspace) -> None:
    letter = bury(elsewhere, "a secret", error="KeyError")
    answer = operator.get(LIST)
    assert b"secret" not in answer.content
    [item] = answer.json()["items"]
    assert (item["id"], item["topic"], item["error"], item["attempts"]) == (letter, "messages", "KeyError", 3)
    assert item["message_id"]
    assert item["replayed_at"] is None


def test_an_operator_sees_their_own_workspace_a_superuser_everything(
    operator: Person, alice: Person, elsewhere: Workspace
) -> None:
    ours, broken = bury(elsewhere), bury_bytes(b"\x00not ours")
    since = operator.get(LIST).json()["items"][0]["died_at"]
    assert ids(operator.get(LIST)) == [ours]
    staff(alice)
    assert ours not in ids(alice.get(LIST, since=since))
    staff(alice, is_superuser=True)
    assert ids(alice.get(LIST, since=since)) == [ours, broken]


def test_filters_and_pages(operator: Person, elsewhere: Workspace) -> None:
    letters = [bury(elsewhere, error=error) for error in ("KeyError", "worker_lost", "KeyError")]
    assert ids(operator.get(LIST, error="KeyError", topic="messages")) == [letters[0], letters[2]]
    assert ids(operator.get(LIST, topic="inbound")) == []
    assert ids(operator.get(LIST, since="2999-01-01T00:00:00Z")) == []
    assert ids(operator.get(LIST, until="2001-01-01T00:00:00Z")) == []
    found, query = [], {"limit": 2}
    while True:
        answer = operator.get(LIST, **query)
        found += ids(answer)
        if answer.json()["next_cursor"] is None:
            break
        query = {**query, "cursor": answer.json()["next_cursor"]}
    assert found == letters


def test_replays_by_id_once_and_says_who(operator: Person, elsewhere: Workspace, log: Log) -> None:
    letter = bury(elsewhere)
    log.mark()
    assert counted(operator.post(REPLAY, {"ids": [letter]})) == {"replayed": 1}
    assert [record.headers["replay-of"] for record in log.new(topics.MESSAGES)] == [letter]
    assert counted(operator.post(REPLAY, {"ids": [letter, letter]})) == {"already_replayed": 1}
    [event] = AuditEvent.objects.all()
    assert (event.action, event.actor, event.workspace) == ("dead_letters.replayed", operator.id, elsewhere.slug)
    assert (event.target, event.details, event.address) == ("dead letters", letter, "127.0.0.0/24")
    [item] = operator.get(LIST).json()["items"]
    assert item["replayed_by"] == operator.id
    assert item["replayed_at"]


def counted(answer: Any) -> dict[str, int]:
    assert answer.status_code == 202, answer.content
    return {name: count for name, count in answer.json().items() if count and name not in ("dry_run", "next_cursor")}


def test_what_is_replayed_is_stored(operator: Person, elsewhere: Workspace, log: Log) -> None:
    letter = bury(elsewhere)
    log.mark()
    operator.post(REPLAY, {"ids": [letter]})
    [record] = log.new(topics.MESSAGES)
    log.work_off()
    message = codec.decode(Message, record.value)
    assert wiring.message_store().message(message.message_id) == message


def test_replays_by_filter_in_steps(operator: Person, elsewhere: Workspace, log: Log) -> None:
    for error in ("KeyError", "worker_lost", "KeyError", "KeyError"):
        bury(elsewhere, error=error)
    body: dict[str, Any] = {"filter": {"error": "KeyError"}, "limit": 2}
    assert counted(operator.post(REPLAY, {**body, "dry_run": True})) == {"replayed": 2}
    assert not AuditEvent.objects.exists()
    log.mark()
    first = operator.post(REPLAY, body)
    assert counted(first) == {"replayed": 2}
    total = 2
    cursor = first.json()["next_cursor"]
    while cursor:
        answer = operator.post(REPLAY, {**body, "cursor": cursor})
        total += counted(answer).get("replayed", 0)
        cursor = answer.json()["next_cursor"]
    assert total == len(log.new(topics.MESSAGES)) == 3


def test_letters_of_others_are_as_unknown_as_those_that_never_were(
    operator: Person, alice: Person, elsewhere: Workspace, log: Log
) -> None:
    letter = bury(elsewhere)
    log.mark()
    gone = ["messages:0:999999", "nothing:0:1", "messages:7:0"]
    assert counted(staff(alice).post(REPLAY, {"ids": [letter, *gone]})) == {"unknown": 4}
    assert log.new(topics.MESSAGES) == []


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "ids", "required"),
        ({"ids": ["messages:0:1"], "filter": {}}, "ids", "required"),
        ({"ids": []}, "ids", "min_length"),
        ({"ids": ["nonsense"]}, "ids.0", "invalid_dead_letter_id"),
        ({"ids": ["messages:2147483648:0"]}, "ids.0", "invalid_dead_letter_id"),
        ({"filter": {"topic": "nonsense"}}, "topic", "unknown_topic"),
        ({"filter": {"colour": "red"}}, "filter.colour", "unknown_field"),
        ({"filter": {}, "limit": 201}, "limit", "max_value"),
        ({"filter": {}, "cursor": "nonsense"}, "cursor", "invalid_cursor"),
    ],
)
def test_refuses_what_it_does_not_understand(operator: Person, body: object, field: str, code: str) -> None:
    problem(operator.post(REPLAY, body), 422, "invalid_request", (field, code))


def test_a_log_that_is_away_is_told(operator: Person, own_log: RedisServer) -> None:
    own_log.kill()
    problem(operator.get(LIST), 503, "log_unavailable")
    problem(operator.post(REPLAY, {"filter": {}}), 503, "log_unavailable")
    assert not AuditEvent.objects.exists()
