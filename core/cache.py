"""A small in-process cache whose entries expire: for answers that may be a few seconds old."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from core.clock import SYSTEM_CLOCK, Clock

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class TtlCache(Generic[Key, Value]):
    """Thread-safe, at most ``size`` entries (the oldest go first), each kept for ``ttl_s``."""

    def __init__(self, *, ttl_s: float, size: int = 10_000, clock: Clock = SYSTEM_CLOCK) -> None:
        self._ttl_s = ttl_s
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[Key, tuple[float, Value]] = {}

    def get(self, key: Key) -> Value | None:
        entry = self._entries.get(key)  # one dict look-up: atomic, so readers need no lock
        if entry is None or entry[0] <= self._clock.monotonic_s():
            return None
        return entry[1]

    def known(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """Those of these that `get` answers."""
        return {key: value for key in keys if (value := self.get(key)) is not None}

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._entries.pop(key, None)  # to the end: insertion order is the order of age
            while len(self._entries) >= self._size:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = (self._clock.monotonic_s() + self._ttl_s, value)

    def take(self, key: Key) -> Value | None:
        """As `get`, and it is forgotten."""
        with self._lock:
            entry = self._entries.pop(key, None)
        return entry[1] if entry and entry[0] > self._clock.monotonic_s() else None

    def forget(self, key: Key) -> None:
        with self._lock:
            self._entries.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


class LastKnown(TtlCache[Key, Value]):
    """What a part answered counts for ``ttl_s``, and while the part is away for ``outage_s`` more; "nothing" does not.

    Whoever finds it away says so, and for ``rest_s`` the others need not wait to find out, too.
    """

    def __init__(
        self, *, ttl_s: float, outage_s: float, rest_s: float = 2.0, size: int = 10_000, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__(ttl_s=ttl_s, size=size, clock=clock)
        self._outage_s = outage_s
        self._rest_s = rest_s
        self._rests_until_s = float("-inf")

    def get(self, key: Key) -> Value | None:
        found = super().get(key)
        if found is None and self._clock.monotonic_s() < self._rests_until_s:
            return self.last(key)
        return found

    def away(self) -> None:
        """The part does not answer."""
        self._rests_until_s = self._clock.monotonic_s() + self._rest_s

    def last(self, key: Key) -> Value | None:
        """What it answered last, unless that was too long ago, or nothing."""
        entry = self._entries.get(key)
        if entry is None or not entry[1] or entry[0] + self._outage_s <= self._clock.monotonic_s():
            return None
        return entry[1]

    def clear(self) -> None:
        super().clear()
        self._rests_until_s = float("-inf")
