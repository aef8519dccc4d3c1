"""Identifiers: time-ordered for messages, derived for conversations, opaque for people."""

from __future__ import annotations

import functools
import os
import re
import threading
import uuid
from typing import Final

from core.clock import wall_ns

_SUBMS_BITS = 12  # RFC 9562, method 3: rand_a holds the fraction of the millisecond

CONVERSATION_ID: Final = re.compile(r"\.*[A-Za-z0-9_:@+~=-][A-Za-z0-9._:@+~=-]*")
"""How a client may name a conversation, in up to 128 characters: safe in a path, where dots alone mean another place,
and in a channel's own ids."""


KEPT_CHARS: Final = 512
"""Of a text whose id is kept: a path may name a conversation in 64 KiB, which is none."""


class Uuid7Factory:
    """Mints UUIDv7 that strictly grow within one process (RFC 9562, section 6.2, method 3).

    The 12 bits after the version hold the fraction of the millisecond (244 ns steps), so that ids minted by two
    processes sort by time to less than a microsecond as far as their clocks agree. When the clock stands still or
    goes back the last tick plus one is used.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_tick = 0

    def __call__(self) -> uuid.UUID:
        ms, rest_ns = divmod(wall_ns(), 1_000_000)
        tick = ms << _SUBMS_BITS | (rest_ns << _SUBMS_BITS) // 1_000_000
        with self._lock:
            tick = self._last_tick = max(tick, self._last_tick + 1)
        ms, fraction = tick >> _SUBMS_BITS, tick & 0xFFF
        random_62 = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
        return uuid.UUID(int=ms << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | random_62)


uuid7 = Uuid7Factory()


BATCH_IDS: Final = 512


def batch_id(base: uuid.UUID, number: int) -> uuid.UUID:
    """The id of the ``number``-th of up to BATCH_IDS things that came at once; ``base`` is any id of them.

    They sort by their number, and before and after everything that `uuid7` mints: it never uses a tick twice.
    """
    if not 0 <= number < BATCH_IDS:
        raise ValueError(f"a batch has no number {number}")
    return uuid.UUID(int=base.int & ~(BATCH_IDS - 1) | number)


def uuid7_ms(value: uuid.UUID) -> int:
    """The Unix time in milliseconds at which a UUIDv7 was minted."""
    return value.int >> 80


def uuid7_floor(ms: int) -> uuid.UUID:
    """The lowest UUIDv7 of a millisecond: behind it sorts what is minted then or later, and nothing else."""
    return uuid.UUID(int=ms << 80 | 0x7 << 76 | 0b10 << 62)


def uuid7_us(value: uuid.UUID) -> int:
    """The Unix time in microseconds at which a UUIDv7 of ours was minted."""
    fraction = (value.int >> 64) & 0xFFF
    return (value.int >> 80) * 1000 + (fraction * 1000 >> _SUBMS_BITS)


def derived_id(workspace_id: uuid.UUID, text: str) -> uuid.UUID:
    """The id inside for a name a client chose (a conversation id): UUIDv5 of the workspace and that text.

    Two workspaces that choose the same text get different ids, so neither can probe for or take the other's.
    """
    return _kept_id(workspace_id, text) if len(text) <= KEPT_CHARS else uuid.uuid5(workspace_id, text)


@functools.lru_cache(10_000)
def _kept_id(workspace_id: uuid.UUID, text: str) -> uuid.UUID:
    return uuid.uuid5(workspace_id, text)


def user_id() -> str:
    """A fresh public user id such as ``user_0192f0c1a7b37c11a8e2c5d9f3b4a6e7``: opaque, never reused."""
    return f"user_{uuid7().hex}"


def file_id() -> str:
    """A fresh public file id such as ``file_0192f0c1a7b37c11a8e2c5d9f3b4a6e7``."""
    return f"file_{uuid7().hex}"
