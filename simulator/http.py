"""Small things that both APIs need: bounded bodies, JSON answers, answers that never come."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

MAX_JSON_BYTES: Final = 1024 * 1024


class TooLarge(Exception):
    """The request's body is larger than the limit of its endpoint."""


def bounded(request: Request, limit: int) -> Request:
    """The same request, which raises TooLarge as soon as more than ``limit`` bytes came in."""
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise TooLarge
        return message

    return Request(request.scope, receive)


async def read(request: Request, limit: int = MAX_JSON_BYTES) -> bytes:
    return await bounded(request, limit).body()


def json_answer(body: object, status: int = 200, *, retry_after_s: int = 0) -> Response:
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


class Withheld(Response):
    """An answer that the caller never gets: the connection breaks off, or nothing comes until the caller leaves."""

    def __init__(self, *, hang_until: asyncio.Event | None = None) -> None:
        super().__init__(b"", media_type="application/json")
        self._hang_until = hang_until

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        if self._hang_until is not None:
            await _disconnected_or(self._hang_until, receive)
        # A body that ends before its announced length: the server then cuts the connection.
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json"), (b"content-length", b"200")],
            }
        )
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


async def _disconnected_or(event: asyncio.Event, receive: Receive) -> None:
    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    waits = [asyncio.ensure_future(disconnected()), asyncio.ensure_future(event.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
