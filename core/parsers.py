"""JSON as RFC 8259 says, and nothing that only Python would accept."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two parsers that disagree on which of two equal names counts are a way around checks."""
    whole = dict(pairs)
    if len(whole) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return whole


_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)


def parse_json(body: bytes) -> Any:
    """The value in these bytes. Raises ParseError for what is no JSON in UTF-8: NaN, equal names in one object, half a
    surrogate pair, nesting too deep for the parser."""
    try:
        text = body.decode("utf-8")
        value = _decoder.decode(text)
        if "\\u" in text:  # "\ud800" alone decodes to a string that no database, log or socket takes
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ParseError("The JSON is nested too deeply.", code="malformed_json") from None
    except ValueError as error:  # JSONDecodeError and UnicodeError are ValueErrors
        raise ParseError(f"The body is not JSON: {_where(error)}.", code="malformed_json") from None
    return value


def _where(error: ValueError) -> str:
    """What is wrong, and where, without quoting the body."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:80]} at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeError):
        return "not valid UTF-8"
    return str(error)[:80]


class JSONParser(BaseParser):
    """``application/json`` of at most DATA_UPLOAD_MAX_MEMORY_SIZE bytes, which DRF's own parser does not look at."""

    media_type = "application/json"

    def parse(self, stream: Any, _media_type: str | None = None, _context: Mapping[str, Any] | None = None) -> Any:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(limit + 1)
        if len(body) > limit:
            raise RequestDataTooBig(f"The body may hold up to {limit} bytes.")
        return parse_json(body)
