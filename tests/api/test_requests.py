"""What every endpoint does with requests that are wrong as a whole: no token, another method, broken JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, resolve

from accounts import directory
from accounts.tokens import access_token, open_session
from messaging import topics
from tests.api.conftest import Log, Person, missing_id, problem
from tests.lines import Lines

pytestmark = pytest.mark.django_db(databases=["default", "messages"])

MESSAGE = f"/v1/messages/{missing_id()}"
FILE = "/v1/files/file_1"
ENDPOINTS = [
    ("POST", "/v1/messages"),
    ("GET", MESSAGE),
    ("POST", f"{MESSAGE}/read"),
    ("GET", "/v1/conversations"),
    ("POST", "/v1/conversations"),
    ("GET", "/v1/conversations/c1"),
    ("GET", "/v1/conversations/c1/messages"),
    ("POST", "/v1/conversations/c1/members"),
    ("DELETE", "/v1/conversations/c1/members/user_1"),
    ("POST", "/v1/messages/batch"),
    ("GET", "/v1/users"),
    ("GET", "/v1/users/me"),
    ("POST", "/v1/files"),
    ("GET", FILE),
    ("GET", f"{FILE}/download"),
    ("GET", "/v1/operator/dead-letters"),
    ("POST", "/v1/operator/dead-letters/replay"),
]
WITH_BODY = [
    "/v1/messages",
    "/v1/messages/batch",
    "/v1/conversations",
    "/v1/conversations/c1/members",
    "/v1/operator/dead-letters/replay",
]
every_endpoint = pytest.mark.parametrize(("method", "path"), ENDPOINTS)


def call(
    method: str, path: str, token: str | None = None, body: bytes = b"", content_type: str = "application/json"
) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return Client().generic(method, path, body, content_type=content_type, headers=headers)


@pytest.fixture
def operator(alice: Person) -> Person:
    """Alice, whom no endpoint refuses for who she is."""
    alice.user.is_staff = True
    alice.user.save()
    return alice


def routes(resolver: URLResolver) -> set[str]:
    found = set()
    for each in resolver.url_patterns:
        found |= {str(each.pattern)} if isinstance(each, URLPattern) else routes(each)
    return found


def test_every_endpoint_is_in_the_table() -> None:
    assert {resolve(path).route for _, path in ENDPOINTS} == {
        route for route in routes(get_resolver()) if route.startswith("v1/")
    }


@every_endpoint
def test_asks_who_is_there_first(method: str, path: str) -> None:
    answer = call(method, path, body=b"{broken")
    problem(answer, 401, "not_authenticated")
    assert answer["WWW-Authenticate"].startswith("Bearer")


@every_endpoint
def test_refuses_tokens_that_are_not_ours_or_ended(alice: Person, method: str, path: str) -> None:
    expired = access_token(alice.user, now=datetime.now(UTC) - timedelta(hours=2))
    refresh = open_session(alice.user).refresh
    for token, code in (
        ("rubbish", "invalid_token"), ("", "invalid_token"), (alice.token[:-4] + "AAAA", "invalid_token"),
        (refresh, "invalid_token"), (expired, "token_expired"),
    ):  # fmt: skip
        problem(call(method, path, token), 401, code)


@every_endpoint
def test_refuses_a_user_who_was_switched_off(alice: Person, method: str, path: str) -> None:
    alice.user.is_active = False
    alice.user.save()
    directory.cache.clear()
    problem(call(method, path, alice.token), 401, "invalid_token")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/messages", {"POST"}),
        (MESSAGE, {"GET", "HEAD"}),
        (f"{MESSAGE}/read", {"POST"}),
        ("/v1/conversations", {"GET", "HEAD", "POST"}),
        ("/v1/conversations/c1", {"GET", "HEAD"}),
        ("/v1/conversations/c1/messages", {"GET", "HEAD"}),
        ("/v1/conversations/c1/members", {"POST"}),
        ("/v1/conversations/c1/members/user_1", {"DELETE"}),
        ("/v1/messages/batch", {"POST"}),
        ("/v1/users", {"GET", "HEAD"}),
        ("/v1/users/me", {"GET", "HEAD"}),
        ("/v1/files", {"POST"}),
        (FILE, {"GET", "HEAD"}),
        (f"{FILE}/download", {"GET", "HEAD"}),
        ("/v1/operator/dead-letters", {"GET", "HEAD"}),
        ("/v1/operator/dead-letters/replay", {"POST"}),
    ],
)
def test_says_which_methods_there_are(alice: Person, path: str, allowed: set[str]) -> None:
    every = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
    for method in every - allowed:
        answer = call(method, path, alice.token)
        assert answer.status_code == 405
        assert set(answer["Allow"].split(", ")) == {*allowed, "OPTIONS"}
        if method != "HEAD":
            problem(answer, 405, "method_not_allowed")
    options = call("OPTIONS", path, alice.token)
    assert (options.status_code, set(options["Allow"].split(", "))) == (200, {*allowed, "OPTIONS"})
    assert call("TRACE", path, alice.token).status_code == 405


@pytest.mark.parametrize("path", ["/v1/conversations", "/v1/conversations/c1", "/v1/conversations/c1/messages"])
def test_head_is_get_without_a_body(alice: Person, chat: str, path: str) -> None:
    head, get = call("HEAD", path, alice.token), call("GET", path, alice.token)
    assert (head.status_code, head.content) == (200, b"")
    assert head["Content-Length"] == get["Content-Length"]


BROKEN = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"{", id="half"),
    pytest.param(b'{"content": "a",}', id="comma"),
    pytest.param(b"{'content': 'a'}", id="single quotes"),
    pytest.param(b'{"content": "\xff"}', id="not UTF-8"),
    pytest.param(b'{"content": NaN}', id="NaN"),
    pytest.param(b'{"content": 1e999}', id="infinite"),
    pytest.param(b'{"content": "\\ud800"}', id="half a surrogate pair"),
    pytest.param(b'{"content": "a", "content": "b"}', id="a name twice"),
    pytest.param(b"[" * 100_000, id="deep"),
    pytest.param(b'{"content": "a"} x', id="something behind"),
    pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
    pytest.param(b"\x1f\x8b\x08\x00", id="gzip"),
]


@pytest.mark.parametrize("body", BROKEN)
def test_refuses_broken_json(operator: Person, chat: str, log: Log, body: bytes) -> None:
    for path in WITH_BODY:
        answer = call("POST", path, operator.token, body)
        if body:
            problem(answer, 400, "malformed_json")
        else:
            assert answer.status_code in {400, 422}
            assert answer.json()["code"] in {"malformed_json", "invalid_request"}
    assert log.new(topics.MESSAGES) == []


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"5", b"true", b'[{"content": "a"}]'])
def test_refuses_what_is_no_object(operator: Person, chat: str, body: bytes) -> None:
    fault = ("", "null" if body == b"null" else "invalid")
    for path in WITH_BODY:
        problem(call("POST", path, operator.token, body), 422, "invalid_request", fault)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "rubbish",
    ],
)
def test_reads_json_only(operator: Person, chat: str, content_type: str) -> None:
    for path in WITH_BODY:
        problem(call("POST", path, operator.token, b"{}", content_type), 415, "unsupported_media_type")


def test_reads_utf_8_only(alice: Person, chat: str) -> None:
    problem(
        call("POST", "/v1/messages", alice.token, b"{}", "application/json; charset=utf-16"),
        415,
        "unsupported_media_type",
    )


def test_refuses_bodies_beyond_a_mebibyte(operator: Person, chat: str) -> None:
    body = b'{"content": "' + b"a" * 1024 * 1024 + b'"}'
    for path in WITH_BODY:
        problem(call("POST", path, operator.token, body), 413, "payload_too_large")


def test_the_body_of_read_is_none_of_our_business_but_must_not_break_it(
    alice: Person, bob: Person, chat: str, log: Log
) -> None:
    message_id = alice.send(chat)["message_id"]
    log.work_off()
    for body in (b"", b"{}", b"rubbish", b"\xff"):
        assert call("POST", f"/v1/messages/{message_id}/read", bob.token, body).status_code in {202, 400}


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/nothing", "/v1/messages/", "/v1/conversations/c1/", "/v2/messages", "/v1/messages/a/b/c"]
)
def test_other_addresses_are_not_found(alice: Person, path: str) -> None:
    problem(call("GET", path, alice.token), 404, "not_found")


@pytest.mark.parametrize("path", ["/v1/files/%00", "/webhooks/whatsapp/%00", "/console/%00", "/%00"])
def test_there_is_nothing_at_an_address_with_nul(alice: Person, path: str) -> None:
    problem(call("GET", path, alice.token), 404, "not_found")


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/*"])
def test_answers_in_json_only(alice: Person, accept: str) -> None:
    answer = Client().get("/v1/conversations", headers={"Authorization": f"Bearer {alice.token}", "Accept": accept})
    problem(answer, 406, "not_acceptable")


def test_a_messages_id_and_its_requests_stand_in_one_line(
    alice: Person, bob: Person, chat: str, log: Log, lines: Lines
) -> None:
    sent = alice.post("/v1/messages", {"conversation_id": chat, "content": "hi"}, X_Request_ID="sent-1")
    [record] = log.new(topics.MESSAGES)
    assert record.headers == {"request-id": "sent-1"}
    log.work_off()
    bob.post(f"/v1/messages/{sent.json()['message_id']}/read", X_Request_ID="read-1")
    told = [(line["request_id"], line["message_id"]) for line in lines() if "message_id" in line]
    assert told == [(each, sent.json()["message_id"]) for each in ("sent-1", "read-1")]


def test_gives_back_the_request_id(alice: Person) -> None:
    headers = {"Authorization": f"Bearer {alice.token}", "X-Request-ID": "mine-1"}
    assert Client().get("/v1/conversations/none", headers=headers).json()["request_id"] == "mine-1"
