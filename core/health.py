"""Is this process alive, can it work, and what does it count: /health, /ready and /metrics.

The API serves the views of `core.probes`; processes without HTTP call `serve_health`, which answers the same from a
daemon thread. A check is a callable that raises; a Chat4AllError's detail should name the part and the remedy.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import msgspec
from django.conf import settings

from core import metrics as shared_metrics
from core.clock import SYSTEM_CLOCK, Clock
from core.errors import Chat4AllError, Unavailable
from core.forks import unforked

logger = logging.getLogger(__name__)

Check = Callable[[], None]
CHECK_TIMEOUT_S: Final = 3.0  # each part ends its own check after 2 s and says what to do
KEEP_S: Final = 1.0
JSON: Final = "application/json"


class State(StrEnum):
    """Of a part, and of the process: that of its worst part."""

    OK = "ok"
    DEGRADED = "degraded"  # away, and everything that does not need it goes on
    FAILED = "failed"


PART_STATE: Final = shared_metrics.Sampled(
    "chat4all_part_state", "What /ready says of a part: 0 ok, 1 degraded, 2 failed", ["part"]
)
_SHOWN: Final = {State.OK: 0, State.DEGRADED: 1, State.FAILED: 2}


@dataclass(frozen=True, slots=True)
class Part:
    """What was found out about it; ``fault`` is "" when it is fine."""

    state: State = State.OK
    fault: str = ""

    def as_json(self) -> dict[str, str]:
        return {"status": self.state, **({"detail": self.fault} if self.fault else {})}


@dataclass(frozen=True, slots=True)
class Page:
    """An answer, whoever serves it."""

    status: int
    content_type: str
    body: bytes


class Readiness:
    """Named checks, run at the same time, each given ``timeout_s``; the answer is kept for ``keep_s``.

    A check that hangs fails and is not started again until it ends, so that hanging ones never pile up. A part that is
    ``optional`` may be away: that only degrades. What an operator must mend (an Unavailable that may not pass) fails.
    """

    def __init__(
        self, *, timeout_s: float = CHECK_TIMEOUT_S, keep_s: float = KEEP_S, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._timeout_s = timeout_s
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()
        self._checks: dict[str, Check] = {}
        self._optional: set[str] = set()
        self._running: dict[str, _Run] = {}
        self._answer: tuple[float, dict[str, Part]] | None = None

    def register(self, name: str, check: Check, *, optional: bool = False) -> None:
        """Add a check, or replace the one of that name."""
        with self._lock:
            self._checks[name] = check
            (self._optional.add if optional else self._optional.discard)(name)
            self._answer = None

    def failures(self) -> dict[str, str]:
        """Each part's fault, "" for one that is fine."""
        return {name: part.fault for name, part in self.parts().items()}

    def parts(self) -> dict[str, Part]:
        with self._lock:
            now_s = self._clock.monotonic_s()
            if self._answer is None or now_s - self._answer[0] >= self._keep_s:
                before = self._answer[1] if self._answer else {}
                self._answer = now_s, self._run_all()
                _log_changes(before, self._answer[1])
                PART_STATE.set_all({(name,): _SHOWN[part.state] for name, part in self._answer[1].items()})
            return self._answer[1]

    def _run_all(self) -> dict[str, Part]:
        runs = {name: self._start(name, check) for name, check in self._checks.items()}
        deadline_s = self._clock.monotonic_s() + self._timeout_s
        for run in runs.values():
            run.thread.join(max(0.0, deadline_s - self._clock.monotonic_s()))
        return {name: self._found(name, run) for name, run in runs.items()}

    def _found(self, name: str, run: _Run) -> Part:
        away = State.DEGRADED if name in self._optional else State.FAILED
        if run.thread.is_alive():
            return Part(away, f"no answer within {self._timeout_s:g} s")
        if not run.fault:
            return Part()
        return Part(away if run.may_pass else State.FAILED, run.fault)

    def _start(self, name: str, check: Check) -> _Run:
        run = self._running.get(name)
        if run is None or not run.thread.is_alive():
            run = self._running[name] = _Run(name, check)
        return run


class _Run:
    """One run of one check in a daemon thread: a process that stops does not wait for it."""

    def __init__(self, name: str, check: Check) -> None:
        self.fault = ""
        self.may_pass = False
        self._check = check
        self.thread = threading.Thread(target=self._run, name=f"check-{name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with unforked(joins=True):
            self._judge()

    def _judge(self) -> None:
        try:
            self._check()
        except Chat4AllError as error:
            self.fault = error.detail
            self.may_pass = isinstance(error, Unavailable) and error.may_pass
        except Exception as error:
            self.fault = type(error).__name__  # its text may hold a URL with a password
            logger.warning("a readiness check failed unexpectedly", exc_info=True)


def _log_changes(before: Mapping[str, Part], after: Mapping[str, Part]) -> None:
    for name, part in after.items():
        if part == before.get(name, Part()):
            continue
        if part.fault:
            told = "not ready" if part.state is State.FAILED else "degraded"
            logger.warning(told, extra={"part": name, "fault": part.fault})
        else:
            logger.info("ready again", extra={"part": name})


OWN: Final = Readiness()
register = OWN.register
"""Add a check to what this process's /ready answers."""


def service_name() -> str:
    name: str = settings.LOGGING.get("service", "")
    return name


def health_page(service: str) -> Page:
    return Page(200, JSON, msgspec.json.encode({"status": "ok", "service": service}))


def ready_page(service: str, readiness: Readiness) -> Page:
    parts = readiness.parts()
    worst = max((part.state for part in parts.values()), key=_SHOWN.__getitem__, default=State.OK)
    body = {"status": worst, "service": service, "parts": {name: part.as_json() for name, part in parts.items()}}
    return Page(503 if worst is State.FAILED else 200, JSON, msgspec.json.encode(body))


def metrics_page(readiness: Readiness | None = None) -> Page:
    if readiness:
        readiness.parts()  # to be shown, whether or not anybody asks for /ready
    return Page(200, shared_metrics.CONTENT_TYPE, shared_metrics.page())


# --- a server for processes without HTTP --------------------------------------------------------------------------


class HealthServer:
    """Answers /health, /ready and /metrics until `stop`. ``port`` is the real one, also when 0 was asked for."""

    def __init__(self, port: int, readiness: Readiness, *, service: str, host: str, shared: bool = False) -> None:
        pages: dict[str, Callable[[], Page]] = {
            "/health": lambda: health_page(service),
            "/ready": unforked()(lambda: ready_page(service, readiness)),
            "/metrics": unforked()(lambda: metrics_page(readiness)),
        }
        self._server = (_SharedServer if shared else _Server)((host, port), _handler(pages))
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that keeps its connection open must not keep the process alive

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hung up before the answer was there, as a probe whose time is over does, is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _SharedServer(_Server):
    """One port for all processes of a service: whichever of them lives answers."""

    allow_reuse_port = True


def _handler(pages: Mapping[str, Callable[[], Page]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # seconds that a silent client may hold a thread

        def do_GET(self) -> None:
            make = pages.get(self.path.partition("?")[0])
            page = make() if make else Page(404, JSON, b'{"status":"not found"}')
            self.send_response(page.status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(page.body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(page.body)

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come every few seconds and say nothing worth a line."""

    return Handler


def serve_health(
    port: int, checks: Mapping[str, Check], *, optional: Collection[str] = (), service: str | None = None
) -> HealthServer:
    """Serve this process's health from a daemon thread, on HEALTH_HOST; port 0 takes a free one.

    Raises OSError when it is taken.
    """
    readiness = Readiness()
    for name, check in checks.items():
        readiness.register(name, check, optional=name in optional)
    return HealthServer(port, readiness, service=service or service_name(), host=settings.HEALTH_HOST)


def serve_own_health(port: int) -> HealthServer:
    """Serve what `core.probes` answers once more, on a port of its own that the service's processes share.

    It answers while all threads that serve requests are busy, and only to those who reach HEALTH_HOST.
    """
    return HealthServer(port, OWN, service=service_name(), host=settings.HEALTH_HOST, shared=True)
