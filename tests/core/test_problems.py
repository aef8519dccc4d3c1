"""Every failure is problem JSON, and none tells what it should not."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from django.test import Client

pytestmark = [pytest.mark.urls("tests.core.urls"), pytest.mark.django_db]


@pytest.fixture
def client() -> Client:
    return Client(raise_request_exception=False)


CASES = [
    ("not-found", 404, "not_found", {}),
    ("conflict", 409, "conflict", {}),
    ("unavailable", 503, "unavailable", {"Retry-After": "1"}),
    ("throttling", 429, "slow_down", {"Retry-After": "3", "X-Extra": "1"}),
    ("drf-throttled", 429, "rate_limited", {"Retry-After": "8"}),
    ("drf-denied", 403, "permission_denied", {}),
    ("drf-not-found", 404, "not_found", {}),
    ("drf-not-acceptable", 406, "not_acceptable", {}),
    ("drf-parse", 400, "malformed_body", {}),
    ("http404", 404, "not_found", {}),
    ("denied", 403, "permission_denied", {}),
    ("too-big", 413, "payload_too_large", {}),
    ("suspicious", 400, "bad_request", {}),
    ("database", 503, "unavailable", {"Retry-After": "1"}),
    ("bug", 500, "internal", {}),
]


@pytest.mark.parametrize(("name", "status", "code", "headers"), CASES)
def test_explains_failures_of_rest_views(
    client: Client, name: str, status: int, code: str, headers: dict[str, str]
) -> None:
    response = client.get(f"/rest/{name}")
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code)
    assert response["Content-Type"] == "application/problem+json"
    assert set(body) == {"type", "title", "status", "code", "detail", "request_id"}
    assert body["request_id"] == response["X-Request-ID"]
    assert headers.items() <= response.headers.items()
    assert "secret" not in response.content.decode()
    assert "hunter2" not in response.content.decode()


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("http404", 404, "not_found"),
        ("denied", 403, "permission_denied"),
        ("too-big", 413, "payload_too_large"),
        ("suspicious", 400, "bad_request"),
        ("bug", 500, "internal"),
    ],
)
def test_explains_failures_of_plain_views_alike(client: Client, name: str, status: int, code: str) -> None:
    response = client.get(f"/plain/{name}")
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response["Content-Type"] == "application/problem+json"
    assert "secret" not in response.content.decode()


@pytest.mark.parametrize("path", ["/no/such/page", "/rest", "/%00", "/%ff", "/\N{SNOWMAN}"])
def test_explains_unknown_addresses(client: Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_lists_every_field_at_fault(client: Client) -> None:
    assert client.get("/rest/invalid").json()["errors"] == [
        {"field": "a", "code": "x", "message": "A."},
        {"field": "b.0", "code": "y", "message": "B."},
    ]


@pytest.mark.parametrize("prefix", ["rest", "plain"])
def test_logs_a_bug_once_with_its_request_id_and_no_address_parameters(
    client: Client, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    response = client.get(f"/{prefix}/bug?token=abcdef", headers={"X-Request-ID": "seen-by-the-client"})
    assert response["X-Request-ID"] == "seen-by-the-client"
    errors = [
        record for record in caplog.records if record.levelno >= logging.ERROR and record.name != "django.request"
    ]
    assert [record.name for record in errors] == ["core.problems"]
    assert errors[0].exc_info
    assert "abcdef" not in caplog.text


def test_does_not_answer_methods_that_nobody_knows(client: Client) -> None:
    response = client.generic("EVIL", "/echo")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "no-such-charset"])
def test_reads_only_utf8(client: Client, charset: str) -> None:
    response = client.generic("GET", "/echo?q=%41", b"x", content_type=f"application/json; charset={charset}")
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


# --- serializers, as the wire sees them ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        pytest.param({}, [("name", "required")], id="missing"),
        pytest.param({"name": 5}, [("name", "invalid")], id="number"),
        pytest.param({"name": False}, [("name", "invalid")], id="boolean"),
        pytest.param({"name": "toolong"}, [("name", "max_length")], id="too long"),
        pytest.param({"name": "a\x00"}, [("name", "null_characters_not_allowed")], id="NUL"),
        pytest.param({"name": "a", "x": 1}, [("x", "unknown_field")], id="unknown"),
        pytest.param({"x": 1}, [("name", "required"), ("x", "unknown_field")], id="missing and unknown"),
        pytest.param({"name": "a", "members": [{"id": "b"}, {}]}, [("members.1.id", "required")], id="nested"),
        pytest.param(
            {"name": "a", "members": [{"id": "b", "admin": True}]},
            [("members.0.admin", "unknown_field")],
            id="unknown, nested",
        ),
        pytest.param({"name": "a", "members": "b"}, [("members", "not_a_list")], id="no list"),
        pytest.param({"name": "a", "members": ["b"]}, [("members.0", "invalid")], id="no object in a list"),
        pytest.param({"name": "a", "tags": ["ok", "long!"]}, [("tags.1", "max_length")], id="in a list"),
        pytest.param(
            {"name": "a", "extra": {"deep": ["b\x00"]}}, [("extra", "null_characters_not_allowed")], id="NUL inside"
        ),
        pytest.param(
            {"name": "a", "extra": {"\x00": 1}}, [("extra", "null_characters_not_allowed")], id="NUL in a name"
        ),
        pytest.param([1], [("", "invalid")], id="a list"),
    ],
)
def test_names_the_fields_that_are_wrong(client: Client, body: Any, errors: list[tuple[str, str]]) -> None:
    response = client.post("/takes", body, content_type="application/json")
    answer = response.json()
    assert (response.status_code, answer["code"]) == (422, "invalid_request")
    assert sorted((each["field"], each["code"]) for each in answer["errors"]) == sorted(errors)
    assert all(each["message"] for each in answer["errors"])


def test_takes_what_is_right(client: Client) -> None:
    body = {"name": "a", "members": [{"id": "b"}], "tags": ["c"], "extra": {"d": [1, None]}}
    response = client.post("/takes", body, content_type="application/json")
    assert (response.status_code, response.json()) == (200, body)


def test_explains_only_so_many_of_thousands_of_faults(client: Client) -> None:
    response = client.post("/takes", {"name": "a", "tags": ["long!"] * 10_000}, content_type="application/json")
    assert response.status_code == 422
    assert len(response.json()["errors"]) == 50


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="cut"),
        pytest.param('{"name": NaN}', id="NaN"),
        pytest.param('{"name": "a", "extra": Infinity}', id="Infinity"),
        pytest.param('{"name": "a", "extra": 1e999}', id="too large"),
        pytest.param('{"name": "a", "extra": ' + "9" * 5000 + "}", id="too many digits"),
        pytest.param('{"name": "a", "name": "b"}', id="a name twice"),
        pytest.param('{"name": "a", "extra": {"x": 1, "x": 2}}', id="a name twice, inside"),
        pytest.param('{"name": "\\ud800"}', id="half a pair"),
        pytest.param('{"\\udfff": 1}', id="half a pair as a name"),
        pytest.param("[" * 200_000, id="deep, open"),
        pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, id="deep"),
        pytest.param("{} {}", id="two values"),
        pytest.param("'a'", id="Python"),
        pytest.param("\ufeff{}", id="byte order mark"),
    ],
)
def test_takes_nothing_that_is_no_json(client: Client, text: str) -> None:
    response = client.post("/takes", text.encode("utf-8", "surrogatepass"), content_type="application/json")
    answer = response.json()
    assert (response.status_code, answer["code"]) == (400, "malformed_json")
    assert len(answer["detail"]) < 200


@pytest.mark.parametrize("text", ['{"name": "\\ud83d\\ude00"}', '{"name": "\\u00e9"}', '{"name": "é😀"}'])
def test_takes_every_way_to_write_a_character(client: Client, text: str) -> None:
    assert client.post("/takes", text.encode(), content_type="application/json").status_code == 200


def test_looks_at_the_size_of_a_body(client: Client) -> None:
    small = json.dumps({"name": "a", "extra": "x" * (1024 * 1024 - 40)})
    assert client.post("/takes", small, content_type="application/json").status_code == 200
    response = client.post("/takes", small + " " * 100, content_type="application/json")
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
