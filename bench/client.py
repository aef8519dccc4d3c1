"""A load generator small enough not to be what is measured: raw HTTP/1.1 keep-alive and WebSockets on one epoll loop.

One request costs it about 25 µs of CPU and one frame about 10 µs (`python -m bench.client` measures it); httpx takes
20 times as much, which on two cores would be taken from the servers under test.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol
from urllib.parse import urlsplit

RECEIVE_BYTES: Final = 256 * 1024
SEND_BYTES: Final = 512 * 1024  # a request goes out in one piece: 500 messages are 80 KB
IDLE_S: Final = 10.0  # the servers end a connection after 30 s without a request, perhaps right under one
FIN, TEXT, CLOSE, PING, PONG = 0x80, 0x1, 0x8, 0x9, 0xA


class Readable(Protocol):
    def readable(self) -> None:
        """Bytes wait on the socket."""


class Loop:
    """Whose sockets have something to read is told so; one thread, no time of its own."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()

    def add(self, connection: socket.socket, reader: Readable) -> None:
        self._selector.register(connection, selectors.EVENT_READ, reader)

    def remove(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)

    def turn(self, wait_s: float) -> None:
        """Read whatever there is, waiting up to ``wait_s`` for the first of it."""
        for key, _ in self._selector.select(max(0.0, wait_s)):
            key.data.readable()

    def run_until(self, done: Callable[[], bool], *, timeout_s: float) -> bool:
        """True once ``done``; False when that took longer than ``timeout_s``."""
        deadline_s = time.perf_counter() + timeout_s
        while not done():
            if time.perf_counter() > deadline_s:
                return False
            self.turn(0.05)
        return True


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    return connection


def post(path: str, token: str, body: object) -> bytes:
    """The bytes of a POST with a JSON body."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass(slots=True)
class Answer:
    status: int
    body: bytes
    took_s: float  # since it was due


class HttpConnection:
    """One keep-alive connection with one request under way at a time."""

    def __init__(self, loop: Loop, url: str) -> None:
        self._loop = loop
        self._url = url
        self._received = b""
        self._due_s = 0.0
        self._then: Callable[[Answer], None] | None = None
        self._open()

    def _open(self) -> None:
        self._socket = connect(self._url)
        self._socket.setblocking(False)
        self._loop.add(self._socket, self)
        self._used_s = time.perf_counter()

    @property
    def busy(self) -> bool:
        return self._then is not None

    def send(self, request: bytes, then: Callable[[Answer], None], *, due_s: float | None = None) -> None:
        """Send a request (of less than a socket's buffer); ``then`` gets the answer, timed from ``due_s``."""
        now_s = time.perf_counter()
        if now_s - self._used_s > IDLE_S:
            self.close()
            self._open()
        self._due_s, self._used_s = now_s if due_s is None else due_s, now_s
        self._then = then
        if self._socket.send(request) != len(request):
            raise RuntimeError("the request does not fit the socket's buffer")

    def readable(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            self._closed()
            return
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank or (body := whole_body(head, rest)) is None:
            return
        then, self._then = self._then, None
        self._received = b""
        if then is not None:
            then(Answer(int(head[9:12]), body, time.perf_counter() - self._due_s))

    def _closed(self) -> None:
        """By the server: it may, after a while without requests."""
        if self.busy:
            raise ConnectionError("the server closed a connection instead of answering")
        self.close()
        self._open()

    def close(self) -> None:
        self._loop.remove(self._socket)
        self._socket.close()


def whole_body(head: bytes, rest: bytes) -> bytes | None:
    """The body of the one answer that is awaited; None while a part of it is missing."""
    lower = head.lower()
    if (start := lower.find(b"content-length:")) >= 0:
        length = int(lower[start + 15 :].split(b"\r\n", 1)[0])
        return rest[:length] if len(rest) >= length else None
    if b"transfer-encoding: chunked" not in lower:
        return b""
    body = b""
    while True:
        size, line_end, rest = rest.partition(b"\r\n")
        if not line_end or len(rest) < (length := int(size, 16)) + 2:
            return None
        if not length:
            return body
        body, rest = body + rest[:length], rest[length + 2 :]


@dataclass(slots=True)
class Pool:
    """Connections that take requests as they come due; what finds none free waits, and its waiting counts."""

    loop: Loop
    url: str
    size: int
    _free: list[HttpConnection] = field(init=False)
    _all: list[HttpConnection] = field(init=False)
    _waiting: deque[tuple[bytes, Callable[[Answer], None], float]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._all = [HttpConnection(self.loop, self.url) for _ in range(self.size)]
        self._free = list(self._all)

    def send(self, request: bytes, then: Callable[[Answer], None], *, due_s: float) -> None:
        self._waiting.append((request, then, due_s))
        self._next()

    def _next(self) -> None:
        while self._waiting and self._free:
            request, then, due_s = self._waiting.popleft()
            connection = self._free.pop()
            connection.send(request, partial(self._ended, connection, then), due_s=due_s)

    def _ended(self, connection: HttpConnection, then: Callable[[Answer], None], answer: Answer) -> None:
        self._free.append(connection)
        self._next()
        then(answer)

    @property
    def under_way(self) -> int:
        return self.size - len(self._free) + len(self._waiting)

    def close(self) -> None:
        for connection in self._all:
            connection.close()


class WebSocket:
    """A live socket; ``headers`` are the handshake's, ``on_text`` gets each frame. Acknowledges nothing by itself."""

    def __init__(self, loop: Loop, url: str, on_text: Callable[[bytes], None], *, headers: Mapping[str, str]) -> None:
        self._socket = connect(url)
        self._received = b""
        self._on_text = on_text
        self._loop = loop
        self._shake_hands(urlsplit(url).path or "/", headers)
        self._socket.setblocking(False)
        loop.add(self._socket, self)
        self._parse()

    def _shake_hands(self, path: str, headers: Mapping[str, str]) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{more}\r\n".encode()
        )
        while b"\r\n\r\n" not in self._received:
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionError("the server closed the connection during the handshake")
            self._received += data
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise ConnectionError(f"the server refused the handshake: {head[:100]!r}")

    def readable(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed a socket")
        self._received += data
        self._parse()

    def _parse(self) -> None:
        """Hand on whole frames. What servers send is not masked, and ours never splits a message."""
        start, received = 0, self._received
        while len(received) - start >= 2:
            opcode, length, at = received[start] & 0xF, received[start + 1], start + 2
            if length == 126:
                at += 2
                length = int.from_bytes(received[at - 2 : at])
            elif length == 127:
                at += 8
                length = int.from_bytes(received[at - 8 : at])
            if len(received) < at + length:
                break
            start = at + length
            self._got(opcode, received[at:start])
        self._received = received[start:]

    def _got(self, opcode: int, payload: bytes) -> None:
        match opcode:
            case 0x1:
                self._on_text(payload)
            case 0x9:
                self._send(PONG, payload)
            case 0x8:
                raise ConnectionError(f"the server closed a socket with code {int.from_bytes(payload[:2])}")

    def send_text(self, text: bytes) -> None:
        self._send(TEXT, text)

    def _send(self, opcode: int, payload: bytes) -> None:
        """Masked with zeros: a mask is required, a random one is not."""
        size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack(">H", len(payload))
        self._socket.sendall(bytes([FIN | opcode]) + size + b"\0\0\0\0" + payload)

    def close(self) -> None:
        self._loop.remove(self._socket)
        self._socket.close()
