"""Where on the event log a message lies: found by time, for people; nothing else needs to know."""

from __future__ import annotations

from typing import Final

from messaging import codec, topics
from messaging.domain import Message
from messaging.ports import EventLog, Record, TopicPartition

CLOCKS_APART_MS: Final = 10_000  # the API's clock names the message, the log's its record
PAGE: Final = 200
MOST_PAGES: Final = 25  # of a partition: 5,000 records from the accept time on


def find(message: Message, *, log: EventLog, partitions: int) -> Record | None:
    """The first record of this message on `messages`, None when it is trimmed or not near its time.

    Asks each partition where that time begins, then reads pages. Raises LogUnavailable.
    """
    for number in range(partitions):
        source = TopicPartition(topics.MESSAGES, number)
        if record := _find_in(source, message, log):
            return record
    return None


def _find_in(source: TopicPartition, message: Message, log: EventLog) -> Record | None:
    start = log.offset_since(source, message.accepted_at_ms - CLOCKS_APART_MS)
    for _ in range(MOST_PAGES):
        page = log.read(source, start=start, limit=PAGE)
        for record in page:
            if record.key == str(message.conversation_id) and _holds(record, message):
                return record
        if len(page) < PAGE or page[-1].appended_at_ms > message.accepted_at_ms + CLOCKS_APART_MS:
            return None
        start = page[-1].offset + 1
    return None


def _holds(record: Record, message: Message) -> bool:
    found = codec.readable(Message, record.value)
    return found is not None and found.message_id == message.message_id
