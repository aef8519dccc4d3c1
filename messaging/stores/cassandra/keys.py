"""Where a message's rows live, and with what write times: all of it follows from ids and values alone."""

from __future__ import annotations

import zlib
from typing import Final
from uuid import UUID

from core.ids import uuid7_ms, uuid7_us

HOUR_MS: Final = 3600 * 1000
DAY_MS: Final = 24 * HOUR_MS
PERIOD_HOURS: Final = 10 * 24
CONTACT_SHARDS: Final = 64  # each look-up of many contacts asks at most so many partitions
DUE_SHARDS: Final = 8


def bucket(message_id: UUID) -> int:
    """The hour in which the message's period begins.

    Readers follow the buckets that are listed, whatever their length: a shorter period from some hour on is a change
    of this function alone, as long as it answers the same for ids before that hour.
    """
    return uuid7_ms(message_id) // HOUR_MS // PERIOD_HOURS * PERIOD_HOURS


def day(message_id: UUID) -> int:
    return day_of(uuid7_ms(message_id))


def day_of(ms: int) -> int:
    return ms // DAY_MS


def written_us(message_id: UUID) -> int:
    """The write time of a message's rows: the same however often they are written."""
    return uuid7_us(message_id)


def status_us(message_id: UUID, rank: int) -> int:
    """The write time of a status: last write wins becomes highest rank wins."""
    return uuid7_us(message_id) + rank


def first_us(message_id: UUID, at_ms: int) -> int:
    """A write time that is larger the earlier something was reported: the first report stands."""
    return uuid7_us(message_id) + (uuid7_ms(message_id) - at_ms) * 1000


def shard(text: str, shards: int) -> int:
    """Stable across processes and versions, which `hash` is not."""
    return zlib.crc32(text.encode()) % shards
