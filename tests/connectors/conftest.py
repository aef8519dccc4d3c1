"""Platforms to talk to: a scripted transport under the real client, and a real server on a real socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from connectors.base import Account
from connectors.http import HttpClient, Limits

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = Limits(connect_s=0.5, answer_bytes=4096)
IMPATIENT = Limits(read_s=0.25)
WHATSAPP_ID, INSTAGRAM_ID = "106540352242922", "17841405822304914"
SECRETS = {"access_token": "token-of-Alice", "app_secret": "secret-of-Alice", "verify_token": "verify-of-Alice"}


def fixture(name: str) -> dict[str, Any]:
    value = json.loads((FIXTURES / name).read_text())
    assert isinstance(value, dict)
    return value


def whatsapp_account(**changes: str) -> Account:
    return Account("whatsapp", WHATSAPP_ID, "https://graph.test", {**SECRETS, **changes})


def instagram_account(**changes: str) -> Account:
    return Account("instagram", INSTAGRAM_ID, "https://graph.test", {**SECRETS, **changes})


@dataclass
class ScriptedPlatform:
    """Answers requests from a list (the last answer again and again) and keeps what it was sent."""

    answers: list[tuple[int, bytes, dict[str, str]]] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        status, body, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return httpx.Response(status, stream=httpx.ByteStream(body), headers=headers)

    def says(self, status: int, body: str | dict[str, Any], headers: dict[str, str] | None = None) -> ScriptedPlatform:
        text = body if isinstance(body, str) else json.dumps(body)
        self.answers.append((status, text.encode(), headers or {}))
        return self

    def client(self) -> HttpClient:
        return HttpClient(transport=httpx.MockTransport(self))

    def body(self, index: int = -1) -> dict[str, Any]:
        value = json.loads(self.requests[index].content)
        assert isinstance(value, dict)
        return value


@pytest.fixture
def platform() -> ScriptedPlatform:
    return ScriptedPlatform()


@dataclass
class RealServer:
    """An HTTP server in a thread: each path is answered by a function that has the raw handler in hand."""

    url: str
    pages: dict[str, Callable[[BaseHTTPRequestHandler], None]]
    seen: list[str]
    release: threading.Event  # handlers that hang wait for it, so that no test leaves a thread behind


@pytest.fixture
def server() -> Iterator[RealServer]:
    pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.do_GET()

        def do_GET(self) -> None:
            seen.append(self.path)
            try:
                pages[self.path.partition("?")[0]](self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that hang up are what some tests are about

    with Server(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        release = threading.Event()
        yield RealServer(f"http://127.0.0.1:{http_server.server_port}", pages, seen, release)
        release.set()
        http_server.shutdown()
        thread.join()


@pytest.fixture
def refused_url() -> Iterator[str]:
    """An address where nobody listens, and nobody can begin to while the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def client() -> Iterator[HttpClient]:
    made = HttpClient(SMALL)
    yield made
    made.close()


@pytest.fixture
def impatient() -> Iterator[HttpClient]:
    made = HttpClient(IMPATIENT)
    yield made
    made.close()
