"""The people outside: when they last wrote, what they will answer. And buckets that say how much is too much."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

MAX_PEOPLE: Final = 100_000


class People:
    """Bounded: whoever was silent longest is forgotten first."""

    def __init__(self) -> None:
        self._last_wrote: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()
        self._script: dict[str, deque[str]] = {}
        self.reply_delay_ms = 0

    def wrote(self, account_id: str, contact: str, name: str) -> None:
        known = self._last_wrote.pop((account_id, contact), (0.0, ""))
        self._last_wrote[account_id, contact] = (time.monotonic(), name or known[1])
        if len(self._last_wrote) > MAX_PEOPLE:
            self._last_wrote.popitem(last=False)

    def name(self, account_id: str, contact: str) -> str:
        return self._last_wrote.get((account_id, contact), (0.0, ""))[1]

    def wrote_within(self, account_id: str, contact: str, window_s: float) -> bool:
        known = self._last_wrote.get((account_id, contact))
        return known is not None and time.monotonic() - known[0] < window_s

    def set_script(self, replies: Mapping[str, Sequence[str]], *, delay_ms: int) -> None:
        self._script = {contact: deque(texts) for contact, texts in replies.items()}
        self.reply_delay_ms = delay_ms

    def script(self) -> dict[str, list[str]]:
        """What is still to be said."""
        return {contact: list(texts) for contact, texts in self._script.items()}

    def next_reply(self, contact: str) -> str | None:
        texts = self._script.get(contact)
        return texts.popleft() if texts else None


class Buckets:
    """Token buckets by key, forgotten when there are too many."""

    def __init__(self) -> None:
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, *, per_s: float, burst: float) -> bool:
        """One token, if there is one."""
        now = time.monotonic()
        level, at = self._levels.pop(key, (burst, now))
        level = min(burst, level + (now - at) * per_s)
        allowed = level >= 1
        self._levels[key] = (level - allowed, now)
        if len(self._levels) > MAX_PEOPLE:
            self._levels.popitem(last=False)
        return allowed
