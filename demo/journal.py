"""The life of each message as the demo's own clients see it, and a way to wait for what comes next."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

ACCEPTED, SENT, DELIVERED, READ, FAILED = "ACCEPTED", "SENT", "DELIVERED", "READ", "FAILED"
STEPS: Final = (ACCEPTED, SENT, DELIVERED, READ)
ENDS: Final = (READ, FAILED)

_STARTED: Final = time.time() * 1000 - time.monotonic() * 1000


def now_ms() -> float:
    """Wall-clock time that never jumps, in ms since 1970: comparable with what the hub and the simulator write down."""
    return _STARTED + time.monotonic() * 1000


@dataclass(slots=True)
class Life:
    """One message. Times are `now_ms`; ``reached`` is when the first client learned of each status."""

    message_id: str
    conversation_id: str
    sender: str
    recipient: str
    content: str
    has_file: bool
    begun_ms: float
    reached: dict[str, float] = field(default_factory=dict)
    reason: str | None = None

    @property
    def is_finished(self) -> bool:
        return any(end in self.reached for end in ENDS)

    def elapsed_ms(self, status: str) -> float | None:
        return self.reached[status] - self.begun_ms if status in self.reached else None


Watcher = Callable[[Life, str], None]


class Journal:
    """Lives by message id. Belongs to one event loop.

    A frame may come before the 202 that it belongs to: what it says waits until `begin`.
    """

    def __init__(self) -> None:
        self.lives: dict[str, Life] = {}
        self.watchers: list[Watcher] = []
        self._early: dict[str, dict[str, float]] = {}
        self._news = asyncio.Event()

    def begin(self, life: Life) -> None:
        """A 202, or the first sight of a person's message."""
        self.lives[life.message_id] = life
        self._reach(life, ACCEPTED, now_ms())
        for status, at_ms in self._early.pop(life.message_id, {}).items():
            self._reach(life, status, at_ms)
        self._tell()

    def see(self, message_id: str, status: str, *, reason: str | None = None) -> None:
        """A frame told that a message came so far. Messages of earlier runs are never begun, and never shown."""
        life = self.lives.get(message_id)
        if life is None:
            self._early.setdefault(message_id, {}).setdefault(status, now_ms())
            return
        life.reason = reason or life.reason
        self._reach(life, status, now_ms())
        self._tell()

    def said_by(self, sender: str, content: str) -> Life | None:
        """The latest message of a person with this text."""
        found = [life for life in self.lives.values() if life.sender == sender and life.content == content]
        return found[-1] if found else None

    async def until(self, holds: Callable[[], object], *, within_s: float) -> bool:
        """Whether it came to hold in time; looked at whenever there is news."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not holds():
                    await self._news.wait()
        return bool(holds())

    def _reach(self, life: Life, status: str, at_ms: float) -> None:
        if status not in life.reached:
            life.reached[status] = at_ms
            for watcher in self.watchers:
                watcher(life, status)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def begun(message: dict[str, Any], *, recipient: str, at_ms: float) -> Life:
    """The life of a message as the API writes one."""
    return Life(
        message_id=message["message_id"],
        conversation_id=message["conversation_id"],
        sender=message["sender_id"],
        recipient=recipient,
        content=message["content"],
        has_file=bool(message["file_id"]),
        begun_ms=at_ms,
    )
