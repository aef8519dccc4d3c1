"""Log lines: one JSON object each, with the request and the message, without secrets and phone numbers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from django.test import Client
from django.utils.safestring import mark_safe
from hypothesis import given
from hypothesis import strategies as st

from core import logging as logs
from core.logging import bind, concern, redact, request_id
from tests.lines import Lines


def test_writes_one_object_per_line(lines: Lines) -> None:
    logging.getLogger("shop").warning("sold %d\nthings", 3, extra={"price": 7})
    [line] = lines()
    assert line.pop("time").endswith("Z")
    assert line == {"level": "WARNING", "logger": "shop", "message": "sold 3\nthings", "price": 7, "service": "test"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("half a character: \ud800", "half a character: \ud800"),
        (mark_safe("<b>sold</b>"), "<b>sold</b>"),
        ("Grüße 👋", "Grüße 👋"),
        (1 << 70, 1 << 70),
        ({("a", 1): 2}, {"('a', 1)": 2}),
        (ValueError("no"), "ValueError: no"),
    ],
    ids=["a lone surrogate", "a safe string", "beyond ASCII", "a large number", "a key that is no text", "an error"],
)
def test_no_line_is_lost_for_what_it_carries(lines: Lines, value: object, shown: object) -> None:
    logging.getLogger("shop").warning("sold", extra={"what": value})
    assert lines()[0]["what"] == shown


def test_names_the_request_and_the_message(lines: Lines) -> None:
    log = logging.getLogger("shop")
    with bind(request_id="r1"):
        with bind(message_id="m1"):
            log.warning("both")
        log.warning("request")
    log.warning("none")
    assert [(line.get("request_id"), line.get("message_id")) for line in lines()] == [
        ("r1", "m1"),
        ("r1", None),
        (None, None),
    ]
    assert request_id() is None


def test_names_what_it_turns_out_to_be_about_to_the_end_of_the_block(lines: Lines) -> None:
    log = logging.getLogger("shop")
    with bind(request_id="r1"):
        concern("m1")
        log.warning("from here on")
    log.warning("and no longer")
    assert [(line.get("request_id"), line.get("message_id")) for line in lines()] == [("r1", "m1"), (None, None)]


def test_lets_a_line_name_its_own_message(lines: Lines) -> None:
    with bind(message_id="outer"):
        logging.getLogger("shop").warning("x", extra={"message_id": "inner"})
    assert lines()[0]["message_id"] == "inner"


PIECES = st.sampled_from(
    [
        "Bearer ",
        "BEARER  abc.def",
        "eyJhbGciOiJSUzI1NiJ9.e30.c2ln",
        "access_token=",
        "TOKEN=x",
        "toKen=y",
        "+55119",
        "5511988887777",
        "whatsapp:",
        "sms +",
        "tel: ",
        "wa_id ",
        'wa_id": "',
        "hub.verify_",
        "&",
        '"',
        " ",
        "a",
    ]
)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_what_is_looked_for_first_hides_nothing_from_an_expression(text: str) -> None:
    expected = text
    for _, pattern, replacement in logs._TOKENS:
        expected = pattern.sub(replacement, expected)
    assert redact(text) == logs._PHONE.sub(logs._masked, expected)


JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2VyIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer [redacted]"),
        ("bearer abcdef", "Bearer [redacted]"),
        (f"got {JWT}.", "got [token]."),
        ("GET /?token=abc&x=1", "GET /?token=[redacted]&x=1"),
        ("?hub.verify_token=abc", "?hub.verify_token=[redacted]"),
        ("access_token=abc refresh_token=def", "access_token=[redacted] refresh_token=[redacted]"),
        ("to +5511999998888 failed", "to +55119****8888 failed"),
        ("whatsapp:+5511999998888", "whatsapp:+55119****8888"),
        ("whatsapp:5511999998888", "whatsapp:55119****8888"),
        ('{"wa_id": "5511999998888"}', '{"wa_id": "55119****8888"}'),
        ("+12025550123", "+12*****0123"),
        ("at 1700000000000 ms", "at 1700000000000 ms"),
        ("a token of ours", "a token of ours"),
        ("1 + 12345 = 12346", "1 + 12345 = 12346"),
    ],
)
def test_shows_no_token_and_no_whole_phone_number(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_redacts_extras_and_tracebacks_too(lines: Lines) -> None:
    try:
        int(f"cannot call +5511999998888 with {JWT}\nBearer abc.def\n{JWT}\twhatsapp:5511999998888")
    except ValueError:
        logging.getLogger("shop").exception("failed", extra={"to": "+5511999998888", "header": "Bearer xyz"})
    [line] = lines()
    text = json.dumps(line)
    assert "999998888" not in text
    assert JWT not in text
    assert "xyz" not in text
    assert "abc.def" not in text
    assert "cannot call +55119****8888 with [token]" in line["exc_info"]


@pytest.mark.django_db
def test_writes_one_line_per_request_without_its_query(client: Client, lines: Lines) -> None:
    client.get("/health?token=secret", headers={"X-Request-ID": "abc"})
    [line] = [line for line in lines() if line["logger"] == "chat4all.access"]
    assert (line["method"], line["route"], line["status"], line["request_id"]) == ("GET", "health", 200, "abc")
    assert line["duration_ms"] > 0
    assert "secret" not in json.dumps(lines())


@pytest.mark.django_db
def test_names_the_route_and_not_the_address(client: Client, lines: Lines) -> None:
    client.get("/no/such/+5511999998888?token=secret")
    access = [line for line in lines() if line["logger"] == "chat4all.access"]
    assert [(line["route"], line["status"]) for line in access] == [("unmatched", 404)]
    assert "secret" not in json.dumps(lines())


def test_never_writes_the_request_that_django_adds(lines: Lines, rf: Any) -> None:
    logging.getLogger("django.security").warning("x", extra={"request": rf.get("/?token=secret"), "status_code": 400})
    [line] = lines()
    assert "request" not in line
    assert line["status_code"] == 400


def test_configures_a_process_of_its_own() -> None:
    program = """
import logging, sys
from core.logging import configure
configure({"service": "bridge", "level": "debug"})
configure({"service": "bridge", "level": "debug"})
logging.getLogger("a").debug("hello")
logging.getLogger("django.server").info("here")
logging.getLogger("httpx").info("GET https://example.org/?key=1")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["service"], line["message"]) for line in found] == [("bridge", "hello"), ("bridge", "here")]
    assert done.stdout == ""
