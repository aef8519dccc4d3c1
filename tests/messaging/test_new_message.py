"""A body of POST /v1/messages that is seen to be right at a glance says what it says to the serializer, too."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.exceptions import ValidationError

from core.serializers import parsed
from messaging.api import serializers
from messaging.api.serializers import MAX_PARTY_CHARS, NewMessage, new_message
from messaging.domain import MAX_CONTENT_BYTES, MAX_CONVERSATION_ID_CHARS

CHARACTERS = list(" \t\n\x00\x85\xa0aZ09._:@+~=-é\u2028👋\ud800")
SIZES = (MAX_CONVERSATION_ID_CHARS, MAX_PARTY_CHARS, MAX_CONTENT_BYTES // 2, MAX_CONTENT_BYTES)
LONG = [letters for size in SIZES for letters in ("a" * size, "a" * (size + 1), "é" * size)]
USUAL = ["a", "user_1", "whatsapp:+5511999998888", "0192f0c1-a7b3-7c11-a8e2-c5d9f3b4a6e7"]
ODD = st.tuples(st.sampled_from(["", "a"]), st.sampled_from(CHARACTERS), st.sampled_from(["", "a"])).map("".join)
VALUES: st.SearchStrategy[object] = (
    ODD | st.sampled_from(LONG) | st.sampled_from([*USUAL, "", 0, 1, True, None, 1.5, [], {}])
)
RIGHT = {"conversation_id": "chat-1", "recipient_id": "user_1", "content": "hello"}
NAMES = (*RIGHT, "sender_id", "file_id", "reply_to", "strange")


def outcome(check: Any, *arguments: Any) -> object:
    """What it says, or all that it finds wrong."""
    try:
        return check(*arguments)
    except ValidationError as error:
        return error.get_full_details()


@pytest.mark.parametrize("name", NAMES)
@given(VALUES)
def test_a_glance_says_what_the_serializer_does(name: str, value: object) -> None:
    body = {**RIGHT, name: value}
    assert outcome(new_message, body) == outcome(parsed, NewMessage, body)


@pytest.mark.parametrize("body", [None, [], "a", {}, *({name: RIGHT[name]} for name in RIGHT)])
def test_what_lacks_something_is_refused(body: object) -> None:
    assert outcome(new_message, body) == outcome(parsed, NewMessage, body)
    with pytest.raises(ValidationError):
        new_message(body)


@pytest.mark.parametrize("more", [{}, {"recipient_id": "user_1"}, {"recipient_id": "whatsapp:+5511999998888"}])
def test_what_clients_send_is_seen_at_a_glance(monkeypatch: pytest.MonkeyPatch, more: dict[str, str]) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the serializer was asked")

    monkeypatch.setattr(serializers, "parsed", never)
    body = {"conversation_id": "chat-1", "content": "Olá, tudo bem? 👋\n", **more}
    assert new_message(body) == body
    assert new_message(body) is not body
