"""The load generator: answers that come in pieces, connections that were idle."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from bench import client
from bench.client import Answer, HttpConnection, Loop, whole_body

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
PIECES = b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


@pytest.mark.parametrize(("head", "rest"), [(SIZED, b"hello"), (CHUNKED, PIECES)])
def test_a_body_is_whole_with_its_last_byte(head: bytes, rest: bytes) -> None:
    assert [whole_body(head, rest[:length]) for length in range(len(rest))] == [None] * len(rest)
    assert whole_body(head, rest) == b"hello"


def test_an_answer_without_a_body_is_whole_at_once() -> None:
    assert whole_body(b"HTTP/1.1 204 No Content", b"") == b""


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_connection_that_was_idle_for_long_is_not_trusted(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may end it in the moment in which a request goes out."""
    loop, answers = Loop(), list[Answer]()
    connection = HttpConnection(loop, f"http://127.0.0.1:{server.getsockname()[1]}")
    with server.accept()[0] as old:
        _ask(connection, answers.append)
        _answer(old)
        assert loop.run_until(lambda: not connection.busy, timeout_s=10)
        monkeypatch.setattr(client, "IDLE_S", 0.0)
        _ask(connection, answers.append)
        assert old.recv(1) == b""
    with server.accept()[0] as new:
        _answer(new)
        assert loop.run_until(lambda: not connection.busy, timeout_s=10)
    assert [answer.body for answer in answers] == [b"hello"] * 2
    connection.close()


def _ask(connection: HttpConnection, then: Callable[[Answer], None]) -> None:
    connection.send(b"GET / HTTP/1.1\r\n\r\n", then)


def _answer(peer: socket.socket) -> None:
    assert peer.recv(100).startswith(b"GET")
    peer.sendall(SIZED + b"\r\n\r\nhello")
