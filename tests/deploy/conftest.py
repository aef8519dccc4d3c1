"""Small servers that stand where a container would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Pages = Mapping[str, tuple[int, str]]


class Backend:
    """Answers by path, else 200 with the path. ``seen`` has each request's method, path, headers and body length;
    ``begun`` has the path already when the body has yet to come."""

    def __init__(self, pages: Pages) -> None:
        self.begun: list[str] = []
        self.seen: list[tuple[str, str, dict[str, str], int]] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                backend.begun.append(self.path)
                length = len(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                backend.seen.append((self.command, self.path, dict(self.headers), length))
                status, body = pages.get(self.path, (200, self.path))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_PUT = answer  # noqa: N815 - names of http.server

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def httpd() -> Iterator[Callable[[Pages], Backend]]:
    running: list[Backend] = []

    def start(pages: Pages) -> Backend:
        running.append(Backend(pages))
        return running[-1]

    yield start
    for each in running:
        each.stop()
