"""Equal requests at the same time, against the running system: one message, whoever is first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import uuid4

import httpx
import pytest

from demo.supervisor import LocalSystem

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("system"), pytest.mark.timeout(240)]

PASSWORD = "correct horse battery"
CLIENTS = 16


@pytest.fixture
def http(system: LocalSystem) -> Any:
    with httpx.Client(base_url=system.api_url, timeout=20) as client:
        yield client


def signed_in(http: httpx.Client) -> tuple[str, dict[str, str]]:
    credentials = {"username": f"user-{uuid4().hex[:12]}", "password": PASSWORD}
    assert http.post("/auth/register", json=credentials).status_code == 201
    tokens = http.post("/auth/token", json=credentials).json()
    return tokens["user_id"], {"Authorization": f"Bearer {tokens['access_token']}"}


def at_once(request: Any) -> list[httpx.Response]:
    """The answers of as many clients that all start at the same moment."""
    barrier = Barrier(CLIENTS)

    def one(number: int) -> httpx.Response:
        barrier.wait()
        answer: httpx.Response = request(number)
        return answer

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, range(CLIENTS)))


def until_stored(http: httpx.Client, message_id: str, headers: dict[str, str]) -> None:
    """Asks until the pipeline has stored it; the test's time-out is the limit."""
    while http.get(f"/v1/messages/{message_id}", headers=headers).json()["status"] == "ACCEPTED":
        pass


def test_one_key_makes_one_message(http: httpx.Client) -> None:
    _, alice = signed_in(http)
    bob_id, bob = signed_in(http)
    conversation, key = f"c-{uuid4().hex}", uuid4().hex
    body = {"conversation_id": conversation, "recipient_id": bob_id, "content": "once"}
    answers = at_once(lambda _: http.post("/v1/messages", json=body, headers={**alice, "Idempotency-Key": key}))
    assert {answer.status_code for answer in answers} <= {202, 409}
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len({answer.json()["message_id"] for answer in accepted}) == 1
    assert [answer.headers.get("Idempotency-Replay") for answer in accepted].count(None) == 1
    assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 409)
    until_stored(http, accepted[0].json()["message_id"], bob)
    last = http.post("/v1/messages", json={"conversation_id": conversation, "content": "last"}, headers=alice).json()
    until_stored(http, last["message_id"], bob)
    history = http.get(f"/v1/conversations/{conversation}/messages", headers=bob).json()
    assert [each["content"] for each in history["items"]] == ["last", "once"]


def test_one_id_makes_one_conversation(http: httpx.Client) -> None:
    _, alice = signed_in(http)
    others = [signed_in(http)[0] for _ in range(3)]
    conversation = f"c-{uuid4().hex}"

    def opened(number: int) -> httpx.Response:
        members = [others[number % len(others)]]
        body = {"conversation_id": conversation, "members": members}
        return http.post("/v1/conversations", json=body, headers=alice)

    answers = at_once(opened)
    assert sorted(answer.status_code for answer in answers) == [200] * (CLIENTS - 1) + [201]
    assert len({answer.text for answer in answers}) == 1


def test_whoever_was_just_added_is_written_to_whichever_process_takes_the_message(system: LocalSystem) -> None:
    """Each request on a connection of its own, so that any of the API's processes may have it."""
    alone = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=system.api_url, timeout=20, limits=alone) as http:
        _, alice = signed_in(http)
        bob_id, _ = signed_in(http)
        conversation = f"c-{uuid4().hex}"
        body = {"conversation_id": conversation, "content": "hello"}
        http.post("/v1/messages", json={**body, "recipient_id": bob_id}, headers=alice).raise_for_status()
        for number in range(5):
            for _ in range(4):  # all of them know the conversation as it was
                http.post("/v1/messages", json=body, headers=alice).raise_for_status()
            new_id, new = signed_in(http)
            members = f"/v1/conversations/{conversation}/members"
            http.post(members, json={"member_id": new_id}, headers=alice).raise_for_status()
            accepted = http.post("/v1/messages", json=body, headers=alice).raise_for_status().json()
            until_stored(http, accepted["message_id"], alice)
            shown = http.get(f"/v1/messages/{accepted['message_id']}", headers=new)
            assert shown.status_code == 200, number
            assert new_id in {each["recipient_id"] for each in shown.json()["statuses"]}
