"""A small in-process cache whose entries expire: for answers that may be a few seconds old."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Generic, TypeVar

from core.clock import SYSTEM_CLOCK, Clock
from core.rest import Rest

RENEWED_FOR_S: Final = 30.0
"""Since somebody last asked for it."""
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(slots=True)
class _Entry(Generic[Value]):
    """``until_s`` and ``used_s`` are monotonic: when it ends, and when somebody last got it."""

    value: Value
    until_s: float
    used_s: float


class TtlCache(Generic[Key, Value]):
    """Thread-safe, at most ``size`` entries (the oldest go first), each kept for ``ttl_s``."""

    def __init__(self, *, ttl_s: float, size: int = 10_000, clock: Clock = SYSTEM_CLOCK) -> None:
        self._ttl_s = ttl_s
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[Key, _Entry[Value]] = {}

    def get(self, key: Key) -> Value | None:
        entry = self._entries.get(key)  # one dict look-up: atomic, so readers need no lock
        if entry is None:
            return None
        now_s = entry.used_s = self._clock.monotonic_s()
        return entry.value if entry.until_s > now_s else None

    def known(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """Those of these that `get` answers."""
        return {key: value for key in keys if (value := self.get(key)) is not None}

    def put(self, key: Key, value: Value) -> None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._insert(key, _Entry(value, now_s + self._ttl_s, now_s))

    def _insert(self, key: Key, entry: _Entry[Value]) -> None:
        """At the end: insertion order is the order of age."""
        self._entries.pop(key, None)
        while len(self._entries) >= self._size:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = entry

    def take(self, key: Key) -> Value | None:
        """As `get`, and it is forgotten."""
        with self._lock:
            entry = self._entries.pop(key, None)
        return entry.value if entry and entry.until_s > self._clock.monotonic_s() else None

    def forget(self, key: Key) -> None:
        with self._lock:
            self._entries.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def renew(self, load: Callable[[Collection[Key]], Iterable[tuple[Key, Value]]], *, most: int) -> None:
        """Load again, before anybody has to wait for it, what was asked for within RENEWED_FOR_S and has no more than
        half of its time left: at most so many keys, those that were asked for last, and not "nothing".

        Its time counts from before ``load`` was asked. What is not loaded ends when it would have; what was forgotten
        or put meanwhile stays so. Raises what ``load`` does.
        """
        now_s = self._clock.monotonic_s()
        with self._lock:
            due = [
                (entry.used_s, key, entry)
                for key, entry in self._entries.items()
                if entry.value and entry.until_s - now_s <= self._ttl_s / 2 and now_s - entry.used_s < RENEWED_FOR_S
            ]
        before = {key: entry for _, key, entry in heapq.nlargest(most, due, key=itemgetter(0))}
        for key, value in load(before.keys()) if before else ():
            self._replace(key, before[key], _Entry(value, now_s + self._ttl_s, before[key].used_s))

    def _replace(self, key: Key, old: _Entry[Value], new: _Entry[Value]) -> None:
        with self._lock:
            if self._entries.get(key) is old:
                del self._entries[key]
                self._entries[key] = new


class LastKnown(TtlCache[Key, Value]):
    """What a part answered counts for ``ttl_s``, and while the part is away for ``outage_s`` more; "nothing" does not.

    Whoever finds it away says so, and for ``rest_s`` the others need not wait to find out, too.
    """

    def __init__(
        self, *, ttl_s: float, outage_s: float, rest_s: float = 2.0, size: int = 10_000, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__(ttl_s=ttl_s, size=size, clock=clock)
        self._outage_s = outage_s
        self._rest = Rest(rest_s, clock)

    def get(self, key: Key) -> Value | None:
        found = super().get(key)
        if found is None and self.rests:
            return self.last(key)
        return found

    def learn(self, key: Key, value: Value) -> None:
        """For `last` alone: nobody asked for it, so who does first gets what is true then, if there is an answer."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            old = self._entries.get(key)
            if old is None or old.until_s <= now_s:
                self._insert(key, _Entry(value, now_s, old.used_s if old else float("-inf")))

    @property
    def rests(self) -> bool:
        """The part was found away a moment ago: what `last` does not know nobody knows now."""
        return self._rest.is_on

    def away(self) -> None:
        """The part does not answer."""
        self._rest.begin()

    def last(self, key: Key) -> Value | None:
        """What it answered last, unless that was too long ago, or nothing."""
        entry = self._entries.get(key)
        if entry is None or not entry.value or entry.until_s + self._outage_s <= self._clock.monotonic_s():
            return None
        return entry.value

    def clear(self) -> None:
        super().clear()
        self._rest.end()
