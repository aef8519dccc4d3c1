"""Plain HTTP on the gateway's port: is it alive, is it ready, what does it count."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from django.conf import settings

from core.health import Check, Page, Readiness, health_page, metrics_page, ready_page
from realtime.consumers import PATHS

SERVICE: Final = "gateway"
PAGES: Final = PATHS | {"/health", "/ready", "/metrics"}


class HealthApp:
    """``/health`` 200 while the process lives, ``/ready`` 503 when one of ``checks`` fails, ``/metrics``.

    The last two only on the port for health, unless PUBLIC_PROBES.
    """

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._readiness = Readiness()
        for name, check in checks.items():
            self._readiness.register(name, check)

    async def __call__(self, scope: dict[str, Any], _receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        path = scope["path"] if _may_see(scope) else "/hidden"
        page = await self._answer(scope["method"], path)
        headers = [(b"content-type", page.content_type.encode()), (b"content-length", str(len(page.body)).encode())]
        if page.status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        if page.status == 426:
            headers.append((b"upgrade", b"websocket"))
        await send({"type": "http.response.start", "status": page.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else page.body})

    async def _answer(self, method: str, path: str) -> Page:
        """Checks block: they are waited for on another thread than the one that serves the sockets."""
        if path not in PAGES:
            return _problem(404, "not_found", "Not found")
        if method not in {"GET", "HEAD"}:
            return _problem(405, "method_not_allowed", "Only GET here")
        match path:
            case "/health":
                return health_page(SERVICE)
            case "/ready":
                return await asyncio.to_thread(ready_page, SERVICE, self._readiness)
            case "/metrics":
                return await asyncio.to_thread(metrics_page, self._readiness)
            case _:
                return _problem(426, "upgrade_required", "This address speaks WebSocket")


def _may_see(scope: dict[str, Any]) -> bool:
    if settings.PUBLIC_PROBES or scope["path"] not in {"/ready", "/metrics"}:
        return True
    _, port = scope.get("server") or ("", None)
    return port is not None and port == scope.get("state", {}).get("health_port")


def _problem(status: int, code: str, title: str) -> Page:
    body = {"type": "about:blank", "title": title, "status": status, "code": code}
    return Page(status, "application/problem+json", json.dumps(body).encode())


BODY_REFUSED: Final = _problem(413, "payload_too_large", "Requests have no body here")
