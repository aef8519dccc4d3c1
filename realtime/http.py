"""Plain HTTP on the gateway's port: is it alive, is it ready, what does it count."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from redis.exceptions import RedisError

from core import metrics
from realtime.replay import History

Answer = tuple[int, str, bytes]
JSON = "application/json"


class HealthApp:
    """``/health`` 200 while the process lives, ``/ready`` 503 when the bus does not answer, ``/metrics``.

    The last two only on the port for health, unless PUBLIC_PROBES.
    """

    def __init__(self, history: Callable[[], History]) -> None:
        self._history = history

    async def __call__(self, scope: dict[str, Any], _receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        path = scope["path"] if _may_see(scope) else "/hidden"
        status, content_type, body = await self._answer(scope["method"], path)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        if status == 426:
            headers.append((b"upgrade", b"websocket"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, method: str, path: str) -> Answer:
        if path not in {"/", "/ws", "/health", "/ready", "/metrics"}:
            return _problem(404, "not_found", "Not found")
        if method not in {"GET", "HEAD"}:
            return _problem(405, "method_not_allowed", "Only GET here")
        match path:
            case "/health":
                return 200, JSON, _json({"status": "ok", "service": "gateway"})
            case "/ready":
                return await self._ready()
            case "/metrics":
                return 200, metrics.CONTENT_TYPE, metrics.page()
            case _:
                return _problem(426, "upgrade_required", "This address speaks WebSocket")

    async def _ready(self) -> Answer:
        try:
            await self._history().ping()
        except (RedisError, OSError):
            remedy = "start the bus' redis-server, or set BUS_URL to the one that runs"
            return 503, JSON, _json({"status": "failed", "checks": {"bus": {"status": "failed", "remedy": remedy}}})
        return 200, JSON, _json({"status": "ok", "checks": {"bus": {"status": "ok"}}})


def _may_see(scope: dict[str, Any]) -> bool:
    if settings.PUBLIC_PROBES or scope["path"] not in {"/ready", "/metrics"}:
        return True
    _, port = scope.get("server") or ("", None)
    return port is not None and port == scope.get("state", {}).get("health_port")


def _problem(status: int, code: str, title: str) -> Answer:
    body = {"type": "about:blank", "title": title, "status": status, "code": code}
    return status, "application/problem+json", _json(body)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
