"""Reading a stretch of the log by time, outside any group: for people and checks."""

from __future__ import annotations

from collections.abc import Iterator

from messaging.ports import EventLog, Record, TopicPartition


def first_since(source: TopicPartition, since_ms: int, log: EventLog) -> int:
    """An offset such that everything appended from ``since_ms`` on is at it or behind it.

    Reads about 20 single records for each million in the partition.
    """
    low, high = 0, log.end_offset(source)
    while low < high:
        middle = (low + high) // 2
        record = next(iter(log.read(source, start=middle, limit=1)), None)
        if record is None or record.appended_at_ms >= since_ms:
            high = middle
        else:
            low = record.offset + 1
    return low


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
