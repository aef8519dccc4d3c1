"""The one HTTP client of a process, and what each answer or silence of a platform means."""

from __future__ import annotations

import email.utils
import functools
import json as json_module
import logging
import os
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import tenacity

from connectors.base import Explain
from connectors.errors import (
    AmbiguousDeliveryError,
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)

MAX_RETRY_AFTER_S: Final = 3600.0  # a broken header must not hold a message back for years

# Nothing of the request has left: these, and only these, may be tried again without asking anybody.
_NEVER_CONNECTED: Final = (httpx.ConnectError, httpx.ConnectTimeout)
_MISCONFIGURED: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL, UnicodeEncodeError)
_SILENCE: Final = (httpx.TransportError, httpx.DecodingError)

_in_lane = tenacity.wait_exponential(multiplier=0.1, max=2.5) + tenacity.wait_random_exponential(
    multiplier=0.1, max=2.5
)


def retry_delay_s(attempt: int) -> float:
    """How long to wait after failed attempt number ``attempt`` (from 1): exponential, half fixed and half random.

    0.1 to 0.2 s at first, 2.5 to 5 s from the sixth on; twelve attempts take about 30 s.
    """
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = max(attempt, 1)
    return _in_lane(state)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much. ``total_s`` bounds what drips: each byte in time, the whole never.

    Together they end any send and any look at a file before its task is killed: see the tests of `deliver`, `inbound`,
    and of Instagram, which sends twice.
    """

    connect_s: float = 1.5
    read_s: float = 8.0
    write_s: float = 5.0
    total_s: float = 10.0
    upload_s: float = 25.0  # to send a file, on top of the time for an answer
    download_s: float = 25.0  # to fetch one
    idle_clients: int = 64  # more than that are closed after use; at work there are as many as threads
    idle_s: float = 4.0  # below the 5 s after which common servers close: fewer requests run into a closing socket
    answer_bytes: int = 1024 * 1024

    @property
    def awake_s(self) -> float:
        """What a request may take beside its whole time, with a process that runs: to connect twice, to write, to wait
        for an answer to begin."""
        return 2 * self.connect_s + self.write_s + self.read_s


class _TooLarge(Exception):
    """More bytes than asked for."""


class _TooSlow(Exception):
    """A body drips."""


class _InTime:
    """A file that raises _TooSlow instead of being read when the time to send it is over."""

    def __init__(self, source: Any, deadline_s: float) -> None:
        self._source = source
        self._deadline_s = deadline_s

    def read(self, size: int = -1) -> bytes:
        if time.monotonic() > self._deadline_s:
            raise _TooSlow
        content: bytes = self._source.read(size)
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes | None  # None: too large, too slow or cut short
    too_large: bool = False

    def json(self) -> Mapping[str, Any] | None:
        """The JSON object in it, None for anything else."""
        with suppress(ValueError, RecursionError):
            value = json_module.loads(self.body or b"")
            return value if isinstance(value, dict) else None
        return None


class HttpClient:
    """Implements `connectors.base.Http` over httpx: thread-safe, keeps connections, opens on first use in each process.

    Follows no redirects. Errors and logs name the method and the host only: paths and queries of some platforms hold
    tokens, bodies hold what people write.

    Each request borrows a client of its own: httpcore 1.0.9 closes a connection that another thread has just taken when
    threads share a busy pool (seen here: 22 of 200 requests lost their answer, each a possible duplicate).
    """

    def __init__(self, limits: Limits | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        self._limits = limits or Limits()
        self._transport = transport
        # By process: a child must neither use nor close the sockets of its parent. Dicts and deques need no lock, which
        # a fork could leave locked for ever. Last in, first out: the warmest connection is taken.
        self._idle: dict[int, deque[httpx.Client]] = {}
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_NEVER_CONNECTED),
            # Within 2 s altogether: 0.3 s for a first try that failed at once, 0.2 s of pause, 1.5 s to connect.
            stop=tenacity.stop_after_attempt(2) | tenacity.stop_after_delay(0.3),
            wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=0.2, jitter=0.1),
            reraise=True,
        )

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        data: Mapping[str, str] | None = None,
        files: Mapping[str, object] | None = None,
        explain: Explain | None = None,
        repeatable: bool = False,
        read_s: float | None = None,
    ) -> Mapping[str, object]:
        where = _where(method, url)
        limits = self._limits
        within_s = limits.total_s + (limits.upload_s if files else 0)
        content: dict[str, object] = {"data": data, "files": files and _in_time(files, limits.upload_s)}
        if json is not None:
            headers = {**(headers or {}), "Content-Type": "application/json"}
            content = {"content": _json_bytes(json)}
        if read_s is not None:
            within_s += read_s - limits.read_s
            content["timeout"] = httpx.Timeout(read_s, connect=limits.connect_s, write=limits.write_s)
        began_s = time.monotonic()
        answer = self._exchange(method, url, headers, content, max_bytes=limits.answer_bytes, within_s=within_s)
        found = _judge(answer, explain, where) if isinstance(answer, _Answer) else _silence(answer, where)
        if not isinstance(found, DeliveryError):
            return found
        if not isinstance(answer, _Answer) and time.monotonic() - began_s > limits.awake_s + within_s:
            found.outage = False  # we slept: that it let us go says nothing about the platform
        raise _repeatable(found) if repeatable or method in {"GET", "HEAD"} else found

    def download(self, url: str, *, headers: Mapping[str, str] | None = None, max_bytes: int) -> bytes:
        where = _where("GET", url)
        answer = self._exchange("GET", url, headers, {}, max_bytes=max_bytes, within_s=self._limits.download_s)
        if not isinstance(answer, _Answer):
            raise _repeatable(_silence(answer, where))
        if error := _by_status(answer, where):
            raise _repeatable(error)
        if answer.body is None:
            if answer.too_large:
                raise PermanentDeliveryError("media_too_large", f"{where}: more than {max_bytes} bytes")
            raise TransientDeliveryError("unreadable_answer", f"{where}: the file could not be read", outage=False)
        return answer.body

    def close(self) -> None:
        """Close this process's idle connections; the next request opens new ones."""
        for client in self._idle.pop(os.getpid(), ()):
            client.close()

    def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        content: Mapping[str, Any],
        *,
        max_bytes: int,
        within_s: float,
    ) -> _Answer | Exception:
        """The answer, or what came instead. Returned, not raised: an exception of httpx would travel along as the
        cause of ours, and it may quote a header (h11 quotes an illegal one in full)."""
        try:
            return self._retrying(self._once, method, url, headers, content, max_bytes=max_bytes, within_s=within_s)
        except (*_SILENCE, *_MISCONFIGURED, _TooSlow) as error:
            return error

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        content: Mapping[str, Any],
        *,
        max_bytes: int,
        within_s: float,
    ) -> _Answer:
        deadline_s = time.monotonic() + within_s
        with self._client() as client, client.stream(method, url, headers=headers, **content) as response:
            # An answer that has begun goes on as quickly as any other: `read_s` of `request` was for its begin.
            response.request.extensions["timeout"]["read"] = self._limits.read_s
            try:
                body = _read(response, max_bytes=max_bytes, deadline_s=deadline_s)
            except (_TooLarge, _TooSlow, *_SILENCE) as error:  # the status is known by now: it says more than silence
                return _Answer(response.status_code, response.headers, None, isinstance(error, _TooLarge))
            return _Answer(response.status_code, response.headers, body)

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        idle = self._idle.setdefault(os.getpid(), deque())
        try:
            client = idle.pop()
        except IndexError:
            client = self._open()
        try:
            yield client
        finally:
            if len(idle) < self._limits.idle_clients:
                idle.append(client)
            else:
                client.close()

    def _open(self) -> httpx.Client:
        # httpx logs every URL with its query at INFO, httpcore logs answers' headers at DEBUG.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        limits = self._limits
        return httpx.Client(
            transport=self._transport,
            # A proxy from the environment serves the world outside, not the platform simulator next door.
            mounts=None if self._transport else {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None},
            verify=_tls(),
            timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s, write=limits.write_s),
            limits=httpx.Limits(max_keepalive_connections=4, keepalive_expiry=limits.idle_s),
            follow_redirects=False,
            # identity: a compressed answer could unpack to any size before it is measured.
            headers={"User-Agent": "chat4all", "Accept": "application/json", "Accept-Encoding": "identity"},
        )


@functools.cache
def _tls() -> ssl.SSLContext:
    """Shared, because reading the trusted certificates takes longer than a request."""
    return httpx.create_ssl_context()


def _read(response: httpx.Response, *, max_bytes: int, deadline_s: float) -> bytes:
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:18]) > max_bytes:
        raise _TooLarge
    chunks: list[bytes] = []
    size = 0
    for chunk in response.iter_raw():
        size += len(chunk)
        if size > max_bytes:
            raise _TooLarge
        if time.monotonic() > deadline_s:
            raise _TooSlow
        chunks.append(chunk)
    return b"".join(chunks)


def _in_time(files: Mapping[str, object], limit_s: float) -> dict[str, object]:
    """The same parts, whose files have to be sent within ``limit_s`` from now."""
    deadline_s = time.monotonic() + limit_s
    parts: dict[str, object] = {}
    for field, part in files.items():
        match part:
            case (str(name), source, *rest) if hasattr(source, "read"):
                parts[field] = (name, _InTime(source, deadline_s), *rest)
            case _:
                parts[field] = part
    return parts


def _json_bytes(value: object) -> bytes:
    """Half a surrogate pair, which Python's strings can hold and UTF-8 cannot, becomes a question mark."""
    return json_module.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _where(method: str, url: str) -> str:
    """What errors call a request: ``POST graph.facebook.com``."""
    try:
        return f"{method} {urlsplit(url).hostname or '(no host)'}"
    except ValueError:
        return f"{method} (no host)"


def _silence(error: Exception, where: str) -> DeliveryError:
    """What it means that no answer came."""
    if isinstance(error, _MISCONFIGURED):
        return PausedDeliveryError("misconfigured", f"{where}: the account's base URL or credentials cannot be sent")
    if isinstance(error, (*_NEVER_CONNECTED, httpx.ProxyError)):
        return TransientDeliveryError("unreachable", f"{where}: no connection")
    if isinstance(error, _TooSlow):  # half a request was sent: nobody acts on that
        return TransientDeliveryError("too_slow", f"{where}: the file could not be sent in time", outage=False)
    if isinstance(error, httpx.TimeoutException):
        return AmbiguousDeliveryError("timeout", f"{where}: no answer in time")
    return AmbiguousDeliveryError("connection_lost", f"{where}: the connection broke before the answer")


def _judge(answer: _Answer, explain: Explain | None, where: str) -> Mapping[str, object] | DeliveryError:
    body = answer.json()
    error = (explain(answer.status, body or {}) if explain else None) or _by_status(answer, where)
    if error is not None:
        return _with_retry_after(error, answer.headers)
    if body is None:
        return AmbiguousDeliveryError("unreadable_answer", f"{where}: HTTP {answer.status} without readable JSON")
    return body


def _by_status(answer: _Answer, where: str) -> DeliveryError | None:
    """The general rules; None for a 2xx."""
    status = answer.status
    reason, detail = f"http_{status}", f"{where}: HTTP {status}"
    if 200 <= status < 300:
        return None
    if status == 504:  # a gateway gave up waiting, the platform behind it may not have
        return AmbiguousDeliveryError(reason, detail)
    if status == 429:
        return TransientDeliveryError("throttled", detail, outage=False)
    if status in {408, 425} or status >= 500:
        return TransientDeliveryError(reason, detail)
    if status in {401, 403} or status < 400:  # a redirect: the base URL is wrong
        return PausedDeliveryError(reason, detail)
    return _refused(answer, reason, detail)


def _refused(answer: _Answer, reason: str, detail: str) -> DeliveryError:
    if answer.body is None:  # refused, but why was cut off: it may have been throttling inside HTTP 400
        return TransientDeliveryError(reason, f"{detail}, cut short", outage=False)
    return PermanentDeliveryError(reason, detail)


def _repeatable(error: DeliveryError) -> DeliveryError:
    if isinstance(error, AmbiguousDeliveryError):
        return TransientDeliveryError(
            error.reason, error.detail, retry_after_s=error.retry_after_s, outage=error.outage
        )
    return error


def _with_retry_after(error: DeliveryError, headers: Mapping[str, str]) -> DeliveryError:
    """The platform's own wish outranks our default."""
    if isinstance(error, (TransientDeliveryError, PausedDeliveryError)):
        wish = parse_retry_after(headers.get("retry-after", ""), now_s=time.time())
        error.retry_after_s = error.retry_after_s if wish is None else wish
    return error


def parse_retry_after(value: str, *, now_s: float) -> float | None:
    """Seconds from a Retry-After header (seconds or an HTTP date), at most an hour; None when it says nothing."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_RETRY_AFTER_S)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return min(max(moment.timestamp() - now_s, 0.0), MAX_RETRY_AFTER_S)
    except (ValueError, TypeError, OverflowError):
        return None
