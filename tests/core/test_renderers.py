"""Answers as JSON."""

from __future__ import annotations

import json
from enum import StrEnum

import pytest
from django.utils.safestring import SafeString
from rest_framework.exceptions import ErrorDetail

from core.renderers import JSONRenderer


class Colour(StrEnum):
    RED = "red"


def test_subclasses_of_str_are_strings_and_text_is_utf_8() -> None:
    data = {SafeString("safe"): [ErrorDetail("wrong", code="odd"), Colour.RED, "é👋\u2028", 1, 1.5, None, True]}
    rendered = JSONRenderer().render(data)
    assert json.loads(rendered) == {"safe": ["wrong", "red", "é👋\u2028", 1, 1.5, None, True]}
    assert "é👋".encode() in rendered
    assert b": " not in rendered


def test_nothing_is_an_empty_body() -> None:
    assert JSONRenderer().render(None) == b""


def test_what_is_no_json_is_our_fault() -> None:
    with pytest.raises(TypeError, match="object is no JSON"):
        JSONRenderer().render({"x": object()})
