"""The event log on Kafka: what `messaging.ports.EventLog` promises, with confluent-kafka. See ADR 0013."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

from core.forks import unforked
from messaging.errors import RecordTooLarge
from messaging.eventlog.kafka_link import MAX_POLL_S, KafkaLink, KafkaUrl, Usage, client_for_once, closed, opened
from messaging.eventlog.kafka_producer import MAX_MESSAGE_BYTES, OVERHEAD_BYTES, KafkaProducer
from messaging.eventlog.kafka_reader import NO_SUCH, KafkaReader
from messaging.eventlog.kafka_subscription import KafkaSubscription
from messaging.eventlog.records import check_sizes, header_bytes
from messaging.ports import Drift, NewRecord, RebalanceListener, Record, TopicPartition
from messaging.topics import SEGMENT, Topic

logger = logging.getLogger(__name__)

PING_TIMEOUT_S: Final = 1.8
PROVEN_S: Final = 5.0  # in which a producer that will not be let send finds out
REPLICAS: Final = 3  # of a topic that is created, where there are as many servers
ANYBODY: Final = "reader"  # a group for what concerns none


class KafkaLog:
    """`messaging.ports.EventLog` and `TopicAdmin` on a Kafka cluster. Handles open on first use, in each process."""

    def __init__(self, url: str, *, append_timeout_s: float = 5.0, max_poll_s: float = MAX_POLL_S) -> None:
        self._url = KafkaUrl.parse(url)
        self._link = KafkaLink(self._url, timeout_s=append_timeout_s)
        self._max_poll_s = max_poll_s
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None
        self._doubted_s, self._broken = 0.0, ""  # until when the last producer's end is held against the next one
        self._admin: _Admin | None = None
        self._readers: dict[str, KafkaReader] = {}  # by group
        _LOGS.add(self)

    # --- records ---

    def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:  # noqa: ARG002 - never full
        _check_sizes(records)
        if not records:
            return []
        producer = self._opened_producer()
        try:
            return producer.send(records)
        finally:
            if producer.broken:
                self._replace(producer)

    def subscribe(
        self, topics: Sequence[str], *, group: str, member: str, listener: RebalanceListener
    ) -> KafkaSubscription:
        return KafkaSubscription(
            self._link,
            topics,
            group=group,
            member=member,
            listener=listener,
            max_poll_s=self._max_poll_s,
            is_seat_taken=lambda: member in self._seats(group),
        )

    def committed(self, group: str, source: TopicPartition) -> int:
        reader = self._reader(group)
        return max(reader.committed(source) or 0, reader.bounds(source)[0])

    def end_offset(self, source: TopicPartition) -> int:
        return self._reader(ANYBODY).bounds(source)[1]

    def offset_since(self, source: TopicPartition, since_ms: int) -> int:
        return self._reader(ANYBODY).offset_since(source, since_ms)

    def read(self, source: TopicPartition, *, start: int, limit: int) -> list[Record]:
        return self._reader(ANYBODY).read(source, start=start, limit=limit)

    def ping(self) -> None:
        producer = self._opened_producer()
        producer.answers(timeout_s=PING_TIMEOUT_S)
        if producer.broken:
            self._replace(producer)
        if time.monotonic() < self._doubted_s:
            raise self._link.unavailable(f"refuses what is sent: {self._broken}")

    def warm(self) -> None:
        """A producer fetches the id that makes it idempotent as soon as it is open; that takes 0.5 s."""
        self._opened_producer()

    def close(self) -> None:
        with self._lock:
            handles = [self._producer, self._admin, *self._readers.values()]
            self._producer, self._admin, self._readers = None, None, {}
        for handle in handles:
            if handle is not None:
                handle.close()

    # --- topics ---

    def ensure_topics(self, topics: Sequence[Topic]) -> None:
        there, servers = self._metadata()
        missing = [topic for topic in topics if topic.name not in there]
        if not missing:
            return
        new = [self._new_topic(topic, servers) for topic in missing]
        for future in self._admins().client.create_topics(new, **self._limit()).values():
            self._answer(future, but=KafkaError.TOPIC_ALREADY_EXISTS)  # somebody else did it meanwhile
        deadline_s = time.monotonic() + self._link.timeout_s
        while not {topic.name for topic in missing} <= self._metadata()[0].keys():
            if time.monotonic() >= deadline_s:
                raise self._link.unavailable("created topics that did not appear")
            threading.Event().wait(0.02)
        for topic in missing:  # answered once each partition has a leader
            for partition in range(topic.partitions):
                self.end_offset(TopicPartition(topic.name, partition))

    def lacking(self, topics: Sequence[Topic]) -> list[Drift]:
        """By metadata alone: settings are asked for by requests that probes must not make (see ADR 0013)."""
        there, _ = self._metadata(PING_TIMEOUT_S)
        found = [drift for topic in topics for drift in _partitions_drift(topic, there.get(topic.name, ()))]
        return [each for each in found if each.is_shortage]

    def drift(self, topics: Sequence[Topic]) -> list[Drift]:
        there, servers = self._metadata()
        settings = self._settings([topic.name for topic in topics if topic.name in there])
        drift = []
        for topic in topics:
            found = there.get(topic.name, ())
            drift += _partitions_drift(topic, found)
            if topic.name in settings:
                replicas = self._replicas(topic, servers)
                if min(found) != replicas:
                    drift.append(Drift(topic.name, "replicas", str(replicas), str(min(found))))
                drift += settings_drift(topic, settings[topic.name], replicas=min(found), wanted=replicas)
        return drift

    def grow(self, topics: Sequence[Topic]) -> None:
        there, _ = self._metadata()
        wider = [each for each in topics if each.partitions > len(there.get(each.name, ())) > 0]
        if not wider:
            return
        new = [NewPartitions(self._link.named(topic.name), topic.partitions) for topic in wider]
        for future in self._admins().client.create_partitions(new, **self._limit()).values():
            self._answer(future)

    def members(self, group: str) -> list[str]:
        return [seat or "a member without a name" for seat in self._seats(group)]

    def _metadata(self, timeout_s: float | None = None) -> tuple[dict[str, list[int]], int]:
        """The number of replicas of each partition of each topic that is there, and the number of servers."""
        admin = self._admins()
        with admin.usage, self._link.explained():
            try:
                found = admin.client.list_topics(timeout=timeout_s or self._link.timeout_s)
            finally:
                admin.client.poll(0)  # only now is the link told why connections failed
        mine = {name: topic for name, topic in found.topics.items() if name.startswith(self._url.prefix)}
        return {
            self._link.ours(name): [len(each.replicas) for each in topic.partitions.values()]
            for name, topic in mine.items()
            if topic.partitions
        }, len(found.brokers)

    def _replicas(self, topic: Topic, servers: int) -> int:
        return topic.replicas or self._url.replication or min(REPLICAS, servers)

    def _new_topic(self, topic: Topic, servers: int) -> NewTopic:
        replicas = self._replicas(topic, servers)
        return NewTopic(
            self._link.named(topic.name),
            topic.partitions,
            replicas,
            config=_declared(topic, replicas),
        )

    def _settings(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Each topic's, those that it takes over from its server too."""
        asked = [ConfigResource(ConfigResource.Type.TOPIC, self._link.named(name)) for name in names]
        if not asked:
            return {}
        answers = self._admins().client.describe_configs(asked, **self._limit())
        found = {self._link.ours(resource.name): self._answer(future) for resource, future in answers.items()}
        return {
            name: {setting: entry.value for setting, entry in config.items()}
            for name, config in found.items()
            if config
        }

    def _seats(self, group: str) -> list[str]:
        """Each member's static name, else its client's."""

        def ask(left_s: float) -> Any:
            [future] = admin.describe_consumer_groups([self._link.named(group)], request_timeout=left_s).values()
            return _result(future, left_s)

        with client_for_once(self._link) as admin, self._link.explained():  # of its own: see kafka_reader
            found = self._link.insisted(ask)
        return [each.group_instance_id or each.client_id for each in found.members] if found else []

    # --- handles ---

    def _opened_producer(self) -> KafkaProducer:
        with self._lock:
            self._producer = _unless_mute(self._producer, partial(KafkaProducer, self._link))
            return self._producer

    def _replace(self, broken: KafkaProducer) -> None:
        """The next append opens a new one: nothing can be sent through this any more. Until that one had the time to
        fail as well, it is not known to be better."""
        with self._lock:
            if self._producer is not broken:
                return
            self._producer = None
            self._doubted_s, self._broken = time.monotonic() + PROVEN_S, broken.broken
        broken.close()

    def _admins(self) -> _Admin:
        with self._lock:
            self._admin = _unless_mute(self._admin, partial(_Admin, self._link))
            return self._admin

    def _reader(self, group: str) -> KafkaReader:
        with self._lock:
            reader = _unless_mute(self._readers.get(group), partial(KafkaReader, self._link, group=group))
            self._readers[group] = reader
            return reader

    def _limit(self) -> Mapping[str, Any]:
        return {"request_timeout": self._link.timeout_s}

    def _answer(self, future: Future[Any], *, but: int | None = None) -> Any:
        """What an administrative request brought; None for this error or where there is no such thing. Raises
        LogUnavailable."""
        with self._link.explained():
            return _result(future, self._link.timeout_s, but=but)

    def _forked(self) -> None:
        """In a child: open handles of its own."""
        self._producer, self._admin, self._readers = None, None, {}
        self._lock = threading.Lock()


class _Admin:
    """Asks about topics and alters them. May be shared by threads."""

    def __init__(self, link: KafkaLink) -> None:
        self.usage = Usage(link)
        self.client = opened(AdminClient(link.config()))  # type: ignore[arg-type]

    def close(self) -> None:
        """Once nobody is inside."""
        self.usage.end()
        with unforked():
            self.client.__exit__(None, None, None)  # destroys it now
            closed(self.client)

    retire = close


Kept = TypeVar("Kept", KafkaProducer, KafkaReader, _Admin)


def _unless_mute(handle: Kept | None, another: Callable[[], Kept]) -> Kept:
    """This one, or another when there is none, or nothing answered it for long: then it is retired, which may take
    seconds, on a thread. It stays when no other can be had, say for want of file descriptors."""
    if handle is None:
        return another()
    if not handle.usage.silence.is_long:
        return handle
    try:
        new = another()
    except KafkaException as error:
        logger.warning("a client of kafka hears nothing, and there is no other", extra={"error": str(error)})
        return handle
    logger.info("a client of kafka that nothing answers is replaced", extra={"client": type(handle).__name__})
    threading.Thread(target=handle.retire, name="kafka-leaves", daemon=True).start()
    return new


_LOGS: Final[weakref.WeakSet[KafkaLog]] = weakref.WeakSet()


def _forked() -> None:
    for log in _LOGS:
        log._forked()


os.register_at_fork(after_in_child=_forked)


def _result(future: Future[Any], timeout_s: float, *, but: int | None = None) -> Any:
    """What a request that was given this time brought; None for this error or where there is no such thing. Raises
    KafkaException."""
    try:
        return future.result(timeout_s + 1)
    except FutureTimeout:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
    except KafkaException as error:
        if error.args[0].code() in {*NO_SUCH, but}:
            return None
        raise


def _partitions_drift(topic: Topic, found: Sequence[int]) -> list[Drift]:
    if not found:
        return [Drift.missing(topic.name)]
    same = len(found) == topic.partitions
    return [] if same else [Drift.of_partitions(topic.name, topic.partitions, len(found))]


def settings_drift(topic: Topic, found: Mapping[str, str], *, replicas: int, wanted: int) -> list[Drift]:
    """Where the settings of a topic with so many ``replicas`` differ. Where fewer are ``wanted``, or there, no more can
    be asked to have a record."""
    return [
        Drift(
            topic.name,
            "retention" if setting == "retention.ms" else setting,
            _in_words(setting, declared),
            _in_words(setting, found[setting]),
            is_shortage=_endangers(setting, declared, found[setting], replicas),
        )
        for setting, declared in _declared(topic, min(replicas, wanted)).items()
        if found[setting] != declared
    ]


def _declared(topic: Topic, replicas: int) -> dict[str, str]:
    """All that a promise hangs on: what is left out would be as the servers happen to have it."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(int(topic.retention.total_seconds() * 1000)),
        "retention.bytes": "-1",
        "segment.ms": str(int(min(topic.retention, SEGMENT).total_seconds() * 1000)),
        "min.insync.replicas": str(max(1, replicas - 1)),  # one server may be away, and no record with it
        "max.message.bytes": str(MAX_MESSAGE_BYTES + OVERHEAD_BYTES),
    }


def _endangers(setting: str, declared: str, found: str, replicas: int) -> bool:
    """Whether acknowledged records may be lost so, or none, or not the largest, is accepted."""
    match setting:
        case "cleanup.policy":
            return "compact" in found
        case "min.insync.replicas":
            return not int(declared) <= int(found) <= replicas
        case "max.message.bytes":
            return int(found) < int(declared)
    return False


def _in_words(setting: str, value: str) -> str:
    if setting != "retention.ms":
        return value
    return "for ever" if int(value) < 0 else str(timedelta(milliseconds=int(value)))


def _check_sizes(records: Sequence[NewRecord]) -> None:
    check_sizes(records)
    for record in records:
        if 4 * (len(record.key) + header_bytes(record.headers)) <= OVERHEAD_BYTES // 2:
            continue  # as UTF-8 no more than that
        extra = [record.key, *record.headers, *record.headers.values()]
        if sum(len(each.encode()) for each in extra) > OVERHEAD_BYTES // 2:
            raise RecordTooLarge(
                f"key and headers for {record.topic}: the log takes {OVERHEAD_BYTES // 2} bytes of them"
            )
