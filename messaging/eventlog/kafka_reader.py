"""Looking at Kafka from outside any group: how far a group came, where a partition begins and ends, what it holds.

Consumers answer this, not the AdminClient: its requests to a group's coordinator abort the whole process when a server
goes away under them (librdkafka 3663 and 4605, seen here with 2.16.0).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Place

from core.forks import unforked
from messaging.eventlog.kafka_link import KafkaLink, Usage, closed, opened
from messaging.eventlog.kafka_producer import MAX_MESSAGE_BYTES
from messaging.eventlog.kafka_subscription import record_of
from messaging.ports import Record, TopicPartition

NO_SUCH: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.GROUP_ID_NOT_FOUND,
    }
)

T = TypeVar("T")


class KafkaReader:
    """A consumer that bears a group's name and never joins it. May be shared by threads."""

    def __init__(self, link: KafkaLink, *, group: str) -> None:
        self._link = link
        self._reading = threading.Lock()
        self.usage = Usage(link)
        consumer = Consumer(
            {
                **link.config(),
                "group.id": link.named(group),
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "allow.auto.create.topics": False,
                "queued.max.messages.kbytes": 4 * 1024,
                "fetch.wait.max.ms": 10,  # the last read's request must be over before the next one's
                "message.max.bytes": MAX_MESSAGE_BYTES,
                "fetch.max.bytes": 8 * 1024 * 1024,
            }
        )
        self._consumer = opened(consumer)

    def committed(self, source: TopicPartition) -> int | None:
        """None before the first commit."""

        def ask(timeout_s: float) -> int:
            [place] = self._consumer.committed([self._place(source)], timeout=timeout_s)
            if place.error:
                raise KafkaException(place.error)
            return place.offset

        offset = self._asked(source, ask)
        return None if offset is None or offset < 0 else offset

    def bounds(self, source: TopicPartition) -> tuple[int, int]:
        """The offsets of the first record kept and of the next one to come; (0, 0) where there is no such partition."""
        place = self._place(source)
        found = self._asked(source, lambda timeout_s: self._consumer.get_watermark_offsets(place, timeout=timeout_s))
        return found or (0, 0)

    def offset_since(self, source: TopicPartition, since_ms: int) -> int:
        """By Kafka's own index of times, to which -1 and -2 are the ends; the end when all that is there is older."""

        def ask(timeout_s: float) -> int:
            [place] = self._consumer.offsets_for_times(
                [Place(self._link.named(source.topic), source.partition, max(since_ms, 0))], timeout=timeout_s
            )
            if place.error:
                raise KafkaException(place.error)
            return place.offset

        end = self.bounds(source)[1]  # before it is asked: what is appended meanwhile lies behind
        offset = self._asked(source, ask)
        return end if offset is None or offset < 0 else offset

    def read(self, source: TopicPartition, *, start: int, limit: int) -> list[Record]:
        first, end = self.bounds(source)
        start = max(start, first)
        if start >= end or limit <= 0:
            return []
        with self._reading, self.usage, self._link.explained():
            self._consumer.assign([Place(self._link.named(source.topic), source.partition, start)])
            try:
                return self._read(end, limit)
            finally:
                self._consumer.unassign()

    def close(self) -> None:
        """Once nobody is inside."""
        self.usage.end()
        with unforked():
            self._consumer.close()
            closed(self._consumer)

    retire = close

    def _read(self, end: int, limit: int) -> list[Record]:
        deadline_s = time.monotonic() + self._link.timeout_s
        found: list[Record] = []
        while len(found) < limit and (not found or found[-1].offset < end - 1):
            if time.monotonic() >= deadline_s:
                raise self._link.unavailable("did not bring the records in time")
            messages = self._consumer.consume(min(limit - len(found), 500), 0.05)
            found += [record_of(message, self._link) for message in messages if message.error() is None]
        return [record for record in found if record.offset < end]

    def _asked(self, source: TopicPartition, ask: Callable[[float], T]) -> T | None:
        """The answer; None for what is not there. Raises LogUnavailable."""

        def ask_what_is_there(left_s: float) -> T | None:
            try:
                return ask(left_s)
            except KafkaException as error:
                if error.args[0].code() in NO_SUCH and not self._is_there(source, timeout_s=left_s):
                    return None
                raise

        with self.usage, self._link.explained():
            return self._link.insisted(ask_what_is_there, also=NO_SUCH)

    def _is_there(self, source: TopicPartition, *, timeout_s: float) -> bool:
        """By a server's own word: librdkafka knows no partition either before it reached one."""
        topic = self._consumer.list_topics(timeout=timeout_s).topics.get(self._link.named(source.topic))
        return topic is not None and source.partition in topic.partitions

    def _place(self, source: TopicPartition) -> Place:
        return Place(self._link.named(source.topic), source.partition)
