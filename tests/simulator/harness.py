"""A simulator as a process of its own, and a real webhook server to be called by it."""

from __future__ import annotations

import hashlib
import hmac
import json
import mimetypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import httpx

T = TypeVar("T")
JSON = dict[str, Any]
PATIENCE_S = 15.0
REPOSITORY = Path(__file__).resolve().parents[2]

WHATSAPP, INSTAGRAM = "106540352242922", "17841400000000001"
ALICE, BOB, MALLORY = "5511999990001", "447700900002", "14155550003"
ALICE_ON_INSTAGRAM = "6212345678901234"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def account(channel: str, account_id: str, **changes: str) -> JSON:
    return {
        "channel": channel,
        "account_id": account_id,
        "access_token": f"token-of-{account_id}",
        "app_secret": f"secret-of-{account_id}",
        "verify_token": f"verify-{account_id}",
        **changes,
    }


def eventually(look: Callable[[], T], *, timeout_s: float = PATIENCE_S) -> T:
    """What ``look`` returns once it is true; polls what cannot be waited for in another way."""
    deadline = time.monotonic() + timeout_s
    while not (result := look()):
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s"
        threading.Event().wait(0.01)
    return result


@dataclass
class Post:
    """One POST as it arrived. ``at`` is monotonic."""

    path: str
    body: bytes
    signature: str
    status: int
    at: float
    json: JSON = field(init=False)

    def __post_init__(self) -> None:
        self.json = json.loads(self.body)

    @property
    def account_id(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def signed(self) -> bool:
        digest = hmac.new(f"secret-of-{self.account_id}".encode(), self.body, hashlib.sha256).hexdigest()
        return self.signature == f"sha256={digest}"


class Receiver:
    """The hub's side: answers the subscription's GET, keeps every POST, answers as told."""

    def __init__(self, port: int = 0) -> None:
        self.posts: list[Post] = []
        self.gets: list[dict[str, str]] = []
        self.verify_answer: Callable[[dict[str, str]], tuple[int, str]] = lambda query: (200, query["hub.challenge"])
        self.answers: list[int] = []  # statuses for the next POSTs; afterwards 200
        self.changed = threading.Condition()
        self.era = 0  # part of the path: what a forgotten test's simulator still had under way is not kept
        self.gate = threading.Event()  # closed: POSTs wait before they are answered
        self.gate.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.era}/hook/{{channel}}/{{account_id}}"

    def begin_era(self) -> None:
        """Forget everything, also what is still on its way here."""
        self.gate.set()
        with self.changed:
            self.era += 1
            self.answers.clear()
            self.posts.clear()
            self.gets.clear()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for(self, look: Callable[[], T], *, timeout_s: float = PATIENCE_S) -> T:
        """What ``look`` returns once it is true, looked at whenever something arrives."""
        with self.changed:
            assert self.changed.wait_for(look, timeout_s), f"not received within {timeout_s} s: {self._summary()}"
            return look()

    def items(self, kind: str, *, accepted: bool = True) -> list[JSON]:
        """Every status, message or messaging item in order of arrival."""
        return [
            item
            for post in list(self.posts)
            if not accepted or post.status == 200
            for item in items_of(post.json, kind)
        ]

    def statuses(self, wamid: str | None = None) -> list[str]:
        return [item["status"] for item in self.items("statuses") if wamid in (None, item["id"])]

    def _summary(self) -> list[tuple[int, list[str]]]:
        return [(post.status, [item["status"] for item in items_of(post.json, "statuses")]) for post in self.posts]

    def _handler(receiver) -> type[BaseHTTPRequestHandler]:  # noqa: N805 (the handler's own self is below)
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if parts.path.startswith("/file"):
                    return self._answer(200, b"bytes behind a link", mimetypes.guess_type(parts.path)[0])
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                with receiver.changed:
                    receiver.gets.append({**query, "path": parts.path.removeprefix(f"/{receiver.era}")})
                    receiver.changed.notify_all()
                status, text = receiver.verify_answer(query)
                return self._answer(status, text.encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                signature = self.headers.get("X-Hub-Signature-256", "")
                era, _, path = self.path.removeprefix("/").partition("/")
                if era != str(receiver.era):
                    return self._answer(200, b"")
                with receiver.changed:
                    status = receiver.answers.pop(0) if receiver.answers else 200
                    receiver.posts.append(Post(f"/{path}", body, signature, status, time.monotonic()))
                    receiver.changed.notify_all()
                receiver.gate.wait(PATIENCE_S)
                return self._answer(status, b"")

            def _answer(self, status: int, body: bytes, content_type: str | None = None) -> None:
                self.send_response(status)
                if content_type:
                    self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        return Handler


def items_of(body: JSON, kind: str) -> Iterator[JSON]:
    for entry in body["entry"]:
        if kind == "messaging":
            yield from entry.get("messaging", [])
        for change in entry.get("changes", []):
            yield from change["value"].get(kind, [])


class Simulator:
    """``python -m simulator`` on a free port."""

    def __init__(self, *arguments: str, log_path: Path, env: dict[str, str] | None = None, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log_path
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simulator", "--port", str(self.port), *arguments],
                stderr=log,
                stdout=log,
                cwd=REPOSITORY,
                env={**os.environ, **(env or {})},
            )
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)
        eventually(self._healthy)

    def _healthy(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        return self.log_path.read_text()

    def close(self) -> int:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    # --- as our connectors would

    def post(self, path: str, body: object, *, token: str) -> httpx.Response:
        return self.http.post(path, json=body, headers={"Authorization": f"Bearer {token}"})

    def whatsapp(self, body: object, *, account_id: str = WHATSAPP, token: str | None = None) -> httpx.Response:
        return self.post(f"/v21.0/{account_id}/messages", body, token=token or f"token-of-{account_id}")

    def instagram(self, body: object) -> httpx.Response:
        return self.post(f"/v21.0/{INSTAGRAM}/messages", body, token=f"token-of-{INSTAGRAM}")

    def send_text(self, body: str = "olá", *, to: str = ALICE, correlation: str | None = None) -> str:
        """The wamid."""
        response = self.whatsapp(text(body, to=to, correlation=correlation))
        assert response.status_code == 200, response.text
        return str(response.json()["messages"][0]["id"])

    # --- control

    def turn(self, **switches: object) -> JSON:
        return self.control("PUT", "switches", switches)

    def inbound(self, **fields: object) -> JSON:
        body = {"channel": "whatsapp", "account_id": WHATSAPP, "from": ALICE, "name": "Alice", **fields}
        return self.control("POST", "inbound", body, status=201)

    def control(self, method: str, path: str, body: object = None, *, status: int = 200) -> JSON:
        response = self.http.request(method, f"/_control/{path}", json=body)
        assert response.status_code == status, response.text
        return dict(response.json())

    def messages(self, **query: str | int) -> list[JSON]:
        response = self.http.get("/_control/messages", params=query)
        assert response.status_code == 200, response.text
        return list(response.json()["messages"])

    def stats(self) -> JSON:
        return self.control("GET", "stats")

    def settle(self) -> JSON:
        """The stats once nothing is pending."""
        return eventually(lambda: stats if (stats := self.stats())["webhooks"]["pending"] == 0 else None) or {}


def text(body: str, *, to: str = ALICE, correlation: str | None = None, **more: object) -> JSON:
    message: JSON = {"messaging_product": "whatsapp", "to": to, "type": "text", "text": {"body": body}, **more}
    if correlation is not None:
        message["biz_opaque_callback_data"] = correlation
    return message
