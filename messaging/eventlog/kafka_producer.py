"""Appending to Kafka: one idempotent producer, one thread that hears of deliveries, any number that wait for theirs."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from core.failpoints import failpoint
from core.forks import unforked
from messaging.errors import LogUnavailable
from messaging.eventlog.kafka_link import KafkaLink, Usage, closed, opened
from messaging.ports import NewRecord, TopicPartition
from messaging.topics import MAX_RECORD_BYTES

OVERHEAD_BYTES: Final = 64 * 1024  # for key, headers and Kafka's own, beside a value of the maximum
MAX_MESSAGE_BYTES: Final = MAX_RECORD_BYTES + OVERHEAD_BYTES
BUFFER_KBYTES: Final = 64 * 1024  # what may wait for a server that is away; more is refused

Place = tuple[TopicPartition, int]


_source = functools.lru_cache(TopicPartition)  # one for thousands of records


class _Call:
    """One append's records on their way. ``delivered`` runs on the producer's thread, ``wait`` on the caller's, once.

    It waits for a lock that the last delivery lets go: an Event is two more locks and a list of who waits, and with 64
    threads at it that was a third of an append.
    """

    __slots__ = ("_done", "_error", "_left", "_places")

    def __init__(self, count: int) -> None:
        self._places: list[Place | None] = [None] * count
        self._left = count
        self._error: KafkaError | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def delivered(self, index: int, source: str, error: KafkaError | None, message: Message) -> None:
        if error is None:
            partition, offset = message.partition(), message.offset()
            assert partition is not None and offset is not None  # noqa: PT018, S101 - it was delivered
            self._places[index] = (_source(source, partition), offset)
        else:
            self._error = error
        self._left -= 1
        if not self._left:
            self._done.release()

    def wait(self, timeout_s: float) -> KafkaError | list[Place] | None:
        """The places, the error of a record that was refused, or None when it takes too long."""
        if not self._done.acquire(timeout=max(0.0, timeout_s)):
            return self._error
        return self._error or [place for place in self._places if place is not None]


class KafkaProducer:
    """Opens in the process that uses it. Threads may send at once; a call's records with one key keep their order."""

    def __init__(self, link: KafkaLink) -> None:
        self._link = link
        self._topics: frozenset[str] = frozenset()
        self._ending = threading.Lock()  # until `_closing` is set the handle is there
        self._closing = threading.Event()
        self._gives_up = False  # whoever waits is told so
        self.usage = Usage(link)
        self.broken = ""  # why nothing can be sent through this any more
        producer = Producer(
            {
                **link.config(),
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",  # Java's: other clients find the same partition for a key
                "linger.ms": 0,  # one record goes at once; under load records gather while a request is under way
                "message.max.bytes": MAX_MESSAGE_BYTES,
                "message.timeout.ms": int(link.timeout_s * 950),  # ends before its caller's patience, with a reason
                "request.timeout.ms": int(link.timeout_s * 950),
                "queue.buffering.max.kbytes": BUFFER_KBYTES,
            }
        )
        self._producer = opened(producer)
        threading.Thread(target=self._serve, name="kafka-deliveries", daemon=True).start()

    def send(self, records: Sequence[NewRecord]) -> list[Place]:
        """Each one's place once all are acknowledged. Raises LogUnavailable."""
        with self.usage:
            return self._sent(records)

    def answers(self, *, timeout_s: float) -> None:
        """Raise LogUnavailable unless a server does. Opening the producer fetches its id (0.5 s) in the background, so
        that the first append need not wait for it."""
        with self.usage, self._link.explained():
            self._producer.list_topics(timeout=timeout_s)  # naming a topic might create it

    def close(self) -> None:
        """Whoever waits is told at once. The thread ends by itself and takes the handle along."""
        with self._ending:
            self._gives_up = True
            if not self._closing.is_set():
                self._producer.purge()
                self._closing.set()

    def retire(self) -> None:
        """Nobody begins to send any more; whoever does waits as long as they would have."""
        with self._ending:
            self._closing.set()

    def _sent(self, records: Sequence[NewRecord]) -> list[Place]:
        deadline_s = time.monotonic() + self._link.timeout_s
        self._check_topics({record.topic for record in records}, timeout_s=self._link.timeout_s)
        call = _Call(len(records))
        for index, record in enumerate(records):
            self._produce(record, partial(call.delivered, index, record.topic))
        failpoint("append.sent")
        answer = call.wait(deadline_s - time.monotonic())
        if isinstance(answer, list):
            self._link.presence.answered()
            return answer
        if answer is None:
            raise self._link.unavailable("did not acknowledge in time")
        raise self._refused(answer)

    def _produce(self, record: NewRecord, on_delivery: partial[None]) -> None:
        headers = {name: value.encode() for name, value in record.headers.items()} if record.headers else None
        try:
            self._producer.produce(
                self._link.named(record.topic),
                record.value,
                record.key.encode(),
                headers=headers,  # type: ignore[arg-type]  # its dict is invariant
                on_delivery=on_delivery,
            )
        except BufferError as error:
            raise self._link.unavailable("takes no more: too much waits for it already") from error
        except KafkaException as error:
            raise self._refused(error.args[0]) from error

    def _refused(self, error: KafkaError) -> LogUnavailable:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self.broken = error.name()
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            self._topics = frozenset()
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return self._link.failed(error)
        return self._link.unavailable(f"refused a record: {error.name()}")

    def _check_topics(self, names: set[str], *, timeout_s: float) -> None:
        """A record for a topic that is not there would wait in vain, and its neighbours would be appended."""
        if names <= self._topics:
            return
        with self._link.explained():
            found = self._producer.list_topics(timeout=timeout_s)
        self.usage.silence.broken()
        self._topics = frozenset(self._link.ours(name) for name in found.topics)
        if missing := sorted(names - self._topics):
            raise LogUnavailable(f"The event log has no topic {', '.join(missing)}: run `manage.py setup_topics`")

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._poll(0.5)
        self.usage.end(self._tell)
        self._producer.purge()  # what nobody waits for any more, or closing would
        self._poll(0)
        with unforked():
            self._producer.close()  # now: it knows us and we know it, and as a child's garbage it would crash that
            closed(self._producer)

    def _tell(self) -> None:
        if self._gives_up:
            self._producer.purge()
        self._poll(0.05)

    def _poll(self, timeout_s: float) -> None:
        """confluent-kafka raises a fatal error here, instead of telling ``error_cb``."""
        try:
            self._producer.poll(timeout_s)
        except KafkaException as error:
            self.broken = error.args[0].name()
            self._producer.purge()  # whoever waits is told at once
            self._closing.wait(0.05)
