"""Clients of the hub and of the simulator, as anybody could write them: plain HTTP and one socket per user."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from demo.journal import READ, SENT, Journal, Life, begun, now_ms

Json = dict[str, Any]
TIMEOUT_S: Final = 15.0
PAGE: Final = 200
_AGAIN_S: Final = 0.5
_PASSING: Final = frozenset({409, 502, 503, 504})  # still at it, or a part is away: ask again


class Refused(RuntimeError):
    """The hub or the simulator answered with an error; the text holds its code, never what was sent."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file on its way."""

    filename: str
    content_type: str
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(slots=True)
class Sent:
    """What a client was told and when: the 202 of one message."""

    life: Life
    post_ms: float  # from the request to its 202
    sha256: str | None


class User:
    """A registered user with a device that is online: acknowledges what comes in, reads it a moment later."""

    def __init__(
        self,
        *,
        name: str,
        user_id: str,
        token: str,
        api_url: str,
        gateway_url: str,
        journal: Journal,
        patience_s: float,
    ) -> None:
        """``patience_s``: how long it goes on asking an API that is away."""
        self.name = name
        self._patience_s = patience_s
        self.user_id = user_id
        self.sent: list[Sent] = []
        self.frames: list[str] = []  # message ids, one for each frame of a new message
        self.framed_at_ms: dict[str, float] = {}
        self.read_at_ms: dict[str, float] = {}
        self.reading_s = 0.15  # how long this person looks at a message before it counts as read
        self._journal = journal
        self._token = token
        self._gateway_url = gateway_url
        self._http = httpx.AsyncClient(
            base_url=api_url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S, trust_env=False
        )
        self._reading: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None
        self._online = asyncio.Event()
        self._place: tuple[str, int] | None = None  # epoch and seq of the last frame
        self._seen: set[tuple[str, int]] = set()

    async def __aenter__(self) -> Self:
        self._listening = asyncio.create_task(self._listen(), name=f"socket of {self.name}")
        async with asyncio.timeout(TIMEOUT_S):
            await self._online.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._reading, *([self._listening] if self._listening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    # --- what a person does --------------------------------------------------------------------------------------

    async def say(self, conversation_id: str, text: str, *, to: str | None = None, file: Picture | None = None) -> Life:
        """Send a message, with a file that is uploaded first; its life from the 202 on. Raises Refused."""
        body: Json = {"conversation_id": conversation_id, "content": text}
        if to is not None:
            body["recipient_id"] = to
        if file is not None:
            body["file_id"] = await self._upload(conversation_id, file)
        begun_ms = now_ms()
        answer = await self._post_message(body)
        message = {**body, **answer, "sender_id": self.user_id, "file_id": body.get("file_id")}
        life = begun(message, recipient=to or "", at_ms=begun_ms)
        self._journal.begin(life)
        self.sent.append(Sent(life, now_ms() - begun_ms, file.sha256 if file else None))
        return life

    async def open(self, conversation_id: str, *, title: str, members: list[str]) -> None:
        """Make sure that a conversation exists."""
        body = {"conversation_id": conversation_id, "title": title, "members": members}
        _checked(await self._http.post("/v1/conversations", json=body))

    async def conversations(self) -> list[Json]:
        return [each async for each in self._pages("/v1/conversations")]

    async def history(self, conversation_id: str) -> list[Json]:
        return [each async for each in self._pages(f"/v1/conversations/{conversation_id}/messages")]

    async def download(self, file_id: str) -> bytes:
        """The bytes behind the file's presigned link, fetched without a token."""
        link = _checked(await self._http.get(f"/v1/files/{file_id}/download"))["download_url"]
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as anybody:
            return (await anybody.get(link)).raise_for_status().content

    async def _upload(self, conversation_id: str, file: Picture) -> str:
        answer = await self._http.post(
            "/v1/files",
            files={"file": (file.filename, file.data, file.content_type)},
            data={"conversation_id": conversation_id, "checksum": file.sha256},
        )
        return str(_checked(answer)["file_id"])

    async def _post_message(self, body: Json) -> Json:
        """One message, however often it has to be asked for: the key makes sure of it."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return await self._post("/v1/messages", json=body, headers=headers)

    async def _post(self, path: str, **request: Any) -> Json:
        """The answer of something that may be repeated, asked for until the API is there. Raises Refused."""
        deadline = time.monotonic() + self._patience_s
        while True:
            is_last = time.monotonic() > deadline
            try:
                answer = await self._http.post(path, **request)
                if is_last or answer.status_code not in _PASSING:
                    return _checked(answer)
            except httpx.TransportError as error:
                if is_last:
                    raise Refused(f"POST {_shape(path)}: {type(error).__name__}") from None
            await asyncio.sleep(_AGAIN_S)

    async def _pages(self, path: str) -> AsyncIterator[Json]:
        query: Json = {"limit": PAGE}
        while True:
            page = _checked(await self._http.get(path, params=query))
            for each in page["items"]:
                yield each
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    # --- the device ----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Follow the socket, and come back where it was left whenever it breaks."""
        while True:
            with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                place = f"?epoch={self._place[0]}&since={self._place[1]}" if self._place else ""
                async with connect(
                    f"{self._gateway_url}/{place}",
                    subprotocols=[Subprotocol("chat4all"), Subprotocol(f"bearer.{self._token}")],
                    proxy=None,
                ) as socket:
                    async for text in socket:
                        await self._take(json.loads(text), socket)
            await asyncio.sleep(_AGAIN_S)

    async def _take(self, frame: Json, socket: ClientConnection) -> None:
        if "seq" in frame:
            self._place = (frame["epoch"], frame["seq"])
        match frame["type"]:
            case "hello":
                self._online.set()
            case "message":
                await self._take_message(frame, socket)
            case "status":
                self._take_status(frame)

    async def _take_message(self, frame: Json, socket: ClientConnection) -> None:
        message, at_ms = frame["message"], now_ms()
        message_id = message["message_id"]
        if (frame["epoch"], frame["seq"]) not in self._seen:
            self._seen.add((frame["epoch"], frame["seq"]))
            self.frames.append(message_id)
        self.framed_at_ms.setdefault(message_id, at_ms)
        if ":" in message["sender_id"] and message_id not in self._journal.lives:
            accepted_ms = min(at_ms, _ms(message["accepted_at"]))
            self._journal.begin(begun(message, recipient=self.user_id, at_ms=accepted_ms))
        self._journal.see(message_id, SENT)
        if message["sender_id"] != self.user_id:
            await socket.send(json.dumps({"type": "ack", "seq": frame["seq"]}))
            reading = asyncio.create_task(self._read(message_id))
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)

    def _take_status(self, frame: Json) -> None:
        if frame["overall"] == READ:
            self.read_at_ms.setdefault(frame["message_id"], now_ms())
        self._journal.see(frame["message_id"], frame["overall"], reason=frame["reason"])

    async def _read(self, message_id: str) -> None:
        await asyncio.sleep(self.reading_s)
        with contextlib.suppress(Refused):  # then it never becomes READ, and is counted
            await self._post(f"/v1/messages/{message_id}/read")


class Simulator:
    """The people outside, by the simulator's control API."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=f"{url}/_control", timeout=TIMEOUT_S, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def turn(self, switches: Json) -> None:
        _checked(await self._http.put("/switches", json=switches))

    async def script(self, replies: dict[str, list[str]], *, delay_ms: int) -> None:
        """What each person answers, line by line, to each message that they read."""
        _checked(await self._http.put("/replies", json={"replies": replies, "delay_ms": delay_ms}))

    async def write(self, channel: str, account_id: str, *, sender: str, name: str, text: str = "") -> None:
        """A person writes to us."""
        await self._inbound(channel, account_id, {"from": sender, "name": name, "text": text})

    async def attach(self, channel: str, account_id: str, *, sender: str, name: str, file: str, media: Json) -> None:
        """A person sends us a file; ``media`` as the control API wants it."""
        await self._inbound(channel, account_id, {"from": sender, "name": name, "media": {"filename": file, **media}})

    async def said(self) -> list[Json]:
        return await self._all("/inbound", "inbound")

    async def received(self) -> list[Json]:
        return await self._all("/messages", "messages")

    async def pending(self) -> int:
        """Webhook items that are still to be delivered."""
        return int(_checked(await self._http.get("/stats"))["webhooks"]["pending"])

    async def _inbound(self, channel: str, account_id: str, body: Json) -> None:
        _checked(await self._http.post("/inbound", json={"channel": channel, "account_id": account_id, **body}))

    async def _all(self, path: str, name: str) -> list[Json]:
        found: list[Json] = []
        since, more = 0, True
        while more:
            page = _checked(await self._http.get(path, params={"since": since}))
            found, since, more = [*found, *page[name]], page["next"], page["more"]
        return found


def _checked(answer: httpx.Response) -> Json:
    """The answer's JSON. Raises Refused with the error's code."""
    if answer.is_success:
        body: Json = answer.json()
        return body
    try:
        problem = answer.json()
        code = problem.get("code") or problem.get("error", {}).get("code")
    except (ValueError, AttributeError):
        code = "no JSON"
    raise Refused(f"{answer.request.method} {_shape(answer.request.url.path)}: {answer.status_code} {code}")


def _shape(path: str) -> str:
    """A path without the ids in it."""
    parts = path.split("/")
    return "/".join(parts) if len(parts) <= 3 else f"{'/'.join(parts[:3])}/…"


def _ms(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp() * 1000
