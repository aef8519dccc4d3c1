"""Reading answers that come in pieces."""

from __future__ import annotations

import pytest

from bench.client import whole_body

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
PIECES = b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


@pytest.mark.parametrize(("head", "rest"), [(SIZED, b"hello"), (CHUNKED, PIECES)])
def test_a_body_is_whole_with_its_last_byte(head: bytes, rest: bytes) -> None:
    assert [whole_body(head, rest[:length]) for length in range(len(rest))] == [None] * len(rest)
    assert whole_body(head, rest) == b"hello"


def test_an_answer_without_a_body_is_whole_at_once() -> None:
    assert whole_body(b"HTTP/1.1 204 No Content", b"") == b""
