"""Reading a stretch of the log by time, outside any group: for people and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from messaging.ports import EventLog, Record, TopicPartition

CLOCKS_APART_MS: Final = 15 * 60_000  # at most, of who writes ids and times into a record and of who appends it

Key = TypeVar("Key")


def pages(source: TopicPartition, log: EventLog, *, start: int, until_ms: int, limit: int) -> Iterator[list[Record]]:
    """Records in log order, up to ``limit`` at a time, until one was appended at ``until_ms`` or later, or the end.

    The end is where it was at the first page: what is appended while somebody reads does not keep them reading.
    """
    end = log.end_offset(source)
    while start < end:
        page = [record for record in log.read(source, start=start, limit=limit) if record.offset < end]
        if not page:
            return
        if page[-1].appended_at_ms >= until_ms:
            if early := [record for record in page if record.appended_at_ms < until_ms]:
                yield early
            return
        yield page
        start = page[-1].offset + 1


def kept_since_ms(source: TopicPartition, log: EventLog) -> int:
    """What was minted from then on lies behind the first record that the log has kept; far ahead when it keeps none."""
    first = next(iter(log.read(source, start=0, limit=1)), None)
    if first is None:
        return 1 << 53
    return first.appended_at_ms + (CLOCKS_APART_MS if first.offset else 0)  # from 0 on nothing is gone yet


def discard_found(
    wanted: set[Key],
    keys_of: Callable[[Record], Iterable[Key]],
    sources: Iterable[TopicPartition],
    *,
    since_ms: int,
    log: EventLog,
) -> Iterator[None]:
    """Take out of ``wanted`` what the records since then are about, page by page, until nothing is left in it."""
    for source in sources:
        start = log.offset_since(source, since_ms)
        for page in pages(source, log, start=start, until_ms=1 << 53, limit=100):
            for record in page:
                wanted.difference_update(keys_of(record))
            yield
            if not wanted:
                return
