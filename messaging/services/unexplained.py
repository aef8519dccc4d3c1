"""Rows of the store that no record explains: of conversations that the log has records of at that time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final
from uuid import UUID

from core.ids import uuid7_floor, uuid7_ms
from messaging import codec
from messaging.domain import Message
from messaging.ports import EventLog, MessageStore, Record, TopicPartition
from messaging.services import log_walk
from messaging.topics import Topic

PAGE: Final = 100
WINDOW: Final = 100_000  # ids of records that are held in memory: some 20 MB


class Rows:
    """The rows of a window of time, of those conversations that a partition of ``messages`` has records of in it.

    A row is one window's by its id. What has no record in the window may have been appended earlier or later than its
    id says: it is looked for on all of the log from then on.
    """

    def __init__(
        self, topic: Topic, source: TopicPartition, *, since_ms: int, log: EventLog, store: MessageStore
    ) -> None:
        self._source = source
        others = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        self._sources = sorted(others, key=lambda each: each != source)  # partitions may have been added meanwhile
        self._log = log
        self._store = store
        self._since_ms = max(since_ms, log_walk.kept_since_ms(source, log))
        self._explained: set[UUID] = set()
        self._conversations: set[UUID] = set()

    @property
    def is_full(self) -> bool:
        return len(self._explained) >= WINDOW

    def meet(self, messages: Iterable[Message]) -> None:
        """These have records."""
        for message in messages:
            self._explained.add(message.message_id)
            self._conversations.add(message.conversation_id)

    def unexplained(self, until_ms: int) -> Iterator[tuple[int, list[UUID]]]:
        """Page by page how many rows were looked at, and those without a record; the next window begins here."""
        suspects: set[UUID] = set()
        for conversation_id in self._conversations:
            for ids in self._ids(conversation_id, until_ms):
                suspects |= ids - self._explained
                yield len(ids), []
            if len(suspects) >= PAGE:
                yield from self._judged(suspects)
                suspects = set()
        yield from self._judged(suspects)
        self._since_ms = max(self._since_ms, until_ms)
        self._explained, self._conversations = set(), set()

    def _ids(self, conversation_id: UUID, until_ms: int) -> Iterator[set[UUID]]:
        if self._since_ms >= until_ms:
            return
        after = uuid7_floor(self._since_ms)
        while rows := self._store.history(conversation_id, after=after, limit=PAGE):
            yield {row.message_id for row in rows if uuid7_ms(row.message_id) < until_ms}
            after = rows[-1].message_id
            if len(rows) < PAGE or uuid7_ms(after) >= until_ms:
                return

    def _judged(self, suspects: set[UUID]) -> Iterator[tuple[int, list[UUID]]]:
        if not suspects:
            return
        left = set(suspects)
        since_ms = min(map(uuid7_ms, left)) - log_walk.CLOCKS_APART_MS
        for _ in log_walk.discard_found(left, _id_of, self._sources, since_ms=since_ms, log=self._log):
            yield 0, []
        kept_since_ms = log_walk.kept_since_ms(self._source, self._log)  # now: some may have gone while this looked
        yield 0, sorted(each for each in left if uuid7_ms(each) >= kept_since_ms)


def _id_of(record: Record) -> list[UUID]:
    """Nothing when it can't be read."""
    message = codec.readable(Message, record.value)
    return [message.message_id] if message else []
