"""What both adapters do alike with a record: check its size, place its key, weigh it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from messaging.errors import RecordTooLarge
from messaging.ports import NewRecord, Record
from messaging.topics import MAX_RECORD_BYTES


def check_sizes(records: Sequence[NewRecord]) -> None:
    """Raise RecordTooLarge for the first value that the log does not take."""
    for record in records:
        if len(record.value) > MAX_RECORD_BYTES:
            raise RecordTooLarge(f"{len(record.value)} bytes for {record.topic}: the log takes {MAX_RECORD_BYTES}")


def key_hash(key: str) -> int:
    """Stable over processes, releases and machines; a key's partition is this modulo the number of partitions."""
    return zlib.crc32(key.encode())


def header_bytes(headers: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in headers.items())


def weight(record: Record) -> int:
    """Roughly what it takes in memory, for bounds."""
    return len(record.value) + len(record.key) + header_bytes(record.headers)
