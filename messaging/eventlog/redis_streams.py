"""The event log on Redis Streams: one stream per partition, Lua for every step that must be atomic. See ADR 0002."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from core.clock import SYSTEM_CLOCK, Clock
from messaging.errors import LogUnavailable
from messaging.eventlog.ledger import Beat, Claim, Fetched
from messaging.eventlog.records import check_sizes, key_hash
from messaging.eventlog.redis_link import Argument, RedisLink, Script
from messaging.eventlog.subscription import LEASE_TTL_S, LeasedSubscription
from messaging.ports import Drift, NewRecord, RebalanceListener, Record, TopicPartition
from messaging.topics import Topic

PING_TIMEOUT_S: Final = 2.0
GROUP_TIMEOUT_S: Final = 2.0  # less than a lease: a member learns in time that the log is away
SCRIPT_RECORDS: Final = 1000  # one call of the append script: bounds how long it keeps the server from others
SCRIPT_BYTES: Final = 8 * 1024 * 1024

_ENSURE_TOPICS: Final = Script("ensure_topics")
_APPEND: Final = Script("append")
_BEAT: Final = Script("beat")
_ACQUIRE: Final = Script("acquire")
_RELEASE: Final = Script("release")
_COMMIT: Final = Script("commit")
_TRIM: Final = Script("trim")

_encode_headers: Final = msgspec.json.Encoder().encode  # each record has some: a tenth of the standard library's time
_decode_headers: Final = msgspec.json.Decoder(dict[str, str]).decode


class RedisStreamsLog:
    """`messaging.ports.EventLog` on a redis-server with ``appendfsync always`` and ``noeviction``.

    Offsets are dense: record n of a partition has offset n. ``namespace`` only names its keys.
    """

    def __init__(
        self,
        url: str,
        *,
        append_timeout_s: float = 5.0,
        lease_ttl_s: float = LEASE_TTL_S,
        clock: Clock = SYSTEM_CLOCK,
        namespace: str = "log",
    ) -> None:
        self._link = RedisLink(url, timeout_s=append_timeout_s)
        self._append_timeout_s = append_timeout_s
        self._prefix = "{" + namespace + "}:"  # braces: one hash slot, should it ever meet a cluster
        self._lease_ttl_s = lease_ttl_s
        self._clock = clock

    def ensure_topics(self, topics: Sequence[Topic]) -> None:
        """Retention and size of what is there become what is declared: they are this process's to apply."""
        self._ensure(topics, grow=False)

    def drift(self, topics: Sequence[Topic], *, timeout_s: float | None = None) -> list[Drift]:
        there = {name: json.loads(meta) for name, meta in self._topics(timeout_s)}
        drift = []
        for topic in topics:
            if (found := there.get(topic.name)) is None:
                drift.append(Drift.missing(topic.name))
                continue
            if found["partitions"] != topic.partitions:
                drift.append(Drift.of_partitions(topic.name, topic.partitions, found["partitions"]))
            retention = timedelta(milliseconds=found["retention_ms"])
            compared: tuple[tuple[str, object, object], ...] = (
                ("retention", topic.retention, retention),
                ("bytes", topic.max_bytes, found.get("max_bytes")),
            )
            drift += [Drift(topic.name, what, _told(due), _told(is_)) for what, due, is_ in compared if due != is_]
        return drift

    def lacking(self, topics: Sequence[Topic]) -> list[Drift]:
        return [each for each in self.drift(topics, timeout_s=PING_TIMEOUT_S) if each.is_shortage]

    def grow(self, topics: Sequence[Topic]) -> None:
        there = {name for name, _ in self._topics()}
        self._ensure([topic for topic in topics if topic.name in there], grow=True)

    def members(self, group: str) -> list[str]:
        seconds, microseconds = self._link.call("TIME")
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        seats = _pairs(self._link.call("HGETALL", f"{self._prefix}members:{group}"))
        return [name for name, seat in seats if json.loads(seat)["until_ms"] > now_ms]

    def _ensure(self, topics: Sequence[Topic], *, grow: bool) -> None:
        arguments: list[Argument] = []
        for topic in topics:
            retention_ms = int(topic.retention.total_seconds() * 1000)
            max_bytes = "" if topic.max_bytes is None else topic.max_bytes
            arguments += [topic.name, topic.partitions, retention_ms, max_bytes]
        self._link.script(_ENSURE_TOPICS, self._prefix, int(grow), *arguments)

    def _topics(self, timeout_s: float | None = None) -> list[tuple[str, bytes]]:
        return _pairs(self._link.call("HGETALL", f"{self._prefix}topics", timeout_s=timeout_s))

    def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:
        check_sizes(records)
        deadline_s = time.monotonic() + self._append_timeout_s
        places: list[tuple[TopicPartition, int]] = []
        for chunk in _chunks(records):
            places += self._append_chunk(chunk, onward=onward, timeout_s=deadline_s - time.monotonic())
        return places

    def subscribe(
        self, topics: Sequence[str], *, group: str, member: str, listener: RebalanceListener
    ) -> LeasedSubscription:
        ledger = _RedisLedger(
            self._link, self._prefix, topics=topics, group=group, member=member, lease_ttl_s=self._lease_ttl_s
        )
        return LeasedSubscription(
            ledger, member=member, listener=listener, clock=self._clock, lease_ttl_s=self._lease_ttl_s
        )

    def committed(self, group: str, source: TopicPartition) -> int:
        offset = self._link.call("HGET", f"{self._prefix}committed:{group}", _name(source))
        return int(offset or self._link.call("HGET", f"{self._prefix}start", _name(source)) or 0)

    def end_offset(self, source: TopicPartition) -> int:
        return int(self._link.call("HGET", f"{self._prefix}end", _name(source)) or 0)

    def offset_since(self, source: TopicPartition, since_ms: int) -> int:
        """Reads about 20 single records for each million in the partition."""
        low, high = 0, self.end_offset(source)
        while low < high:
            middle = (low + high) // 2
            record = next(iter(self.read(source, start=middle, limit=1)), None)
            if record is None or record.appended_at_ms >= since_ms:
                high = middle
            else:
                low = record.offset + 1
        return low

    def read(self, source: TopicPartition, *, start: int, limit: int) -> list[Record]:
        stream = _stream(self._prefix, source)
        entries = self._link.call("XRANGE", stream, f"{max(start, 0) + 1}-0", "+", "COUNT", limit)
        return [_record(source, entry) for entry in entries]

    def trim(self, now_ms: int) -> int:
        """Apply every topic's retention now; how many records went. Subscriptions do this bit by bit by themselves."""
        sources = [TopicPartition(name, each) for name, meta in self._topics() for each in range(_partitions(meta))]
        return sum(self._trim(now_ms, source) for source in sources)

    def ping(self) -> None:
        self._link.call("PING", timeout_s=PING_TIMEOUT_S)

    def warm(self) -> None:
        """A connection takes a millisecond: the first append opens it."""

    def close(self) -> None:
        self._link.close()

    def _append_chunk(
        self, records: Sequence[NewRecord], *, onward: bool, timeout_s: float
    ) -> list[tuple[TopicPartition, int]]:
        arguments: list[Argument] = [int(onward)]
        for record in records:
            headers = _encode_headers(dict(record.headers)) if record.headers else b""
            arguments += [record.topic, key_hash(record.key), record.key, record.value, headers]
        try:
            placed = self._link.script(_APPEND, self._prefix, *arguments, timeout_s=timeout_s, point="append.sent")
        except ResponseError as error:
            if not str(error).startswith("NOTOPIC "):
                raise
            topic = str(error).removeprefix("NOTOPIC ")
            raise LogUnavailable(f"The event log has no topic {topic}: run `manage.py setup_topics`") from error
        return [
            (TopicPartition(record.topic, partition), offset)
            for record, partition, offset in zip(records, placed[::2], placed[1::2], strict=True)
        ]

    def _trim(self, now_ms: int, source: TopicPartition) -> int:
        total, more = 0, 1
        while more:
            dropped, more = self._link.script(_TRIM, self._prefix, source.topic, source.partition, now_ms)
            total += dropped
        return total


class _RedisLedger:
    """`messaging.eventlog.ledger.Ledger` in Redis. The group's bell is a stream that every change rings: members wait
    on it together with their partitions."""

    def __init__(
        self, link: RedisLink, prefix: str, *, topics: Sequence[str], group: str, member: str, lease_ttl_s: float
    ) -> None:
        self._link = link
        self._prefix = prefix
        self._topics = json.dumps(sorted(set(topics)))
        self._group = group
        self._member = member
        self._instance = uuid.uuid4().hex
        self._ttl_ms = int(lease_ttl_s * 1000)
        self._joined = False
        self._generation = 0  # of the group, as last heard

    def beat(self, held: Mapping[TopicPartition, int]) -> Beat:
        joining = 0 if self._joined else 1
        seated, generation, seats, topics, lost = self._script(
            _BEAT, self._group, self._member, self._instance, joining, self._ttl_ms, self._topics, *_flat(held)
        )
        self._joined = True
        self._generation = int(generation)
        return Beat(
            seated=bool(seated),
            members={name: json.loads(read) for name, read in _pairs(seats)},
            partitions={name: _partitions(meta) for name, meta in _pairs(topics)},
            lost=[_source(name) for name in lost],
        )

    def acquire(self, sources: Sequence[TopicPartition]) -> dict[TopicPartition, Claim]:
        names = [_name(source) for source in sources]
        taken = self._script(_ACQUIRE, self._group, self._member, self._instance, self._ttl_ms, *names)
        return {
            _source(name): Claim(int(epoch), int(position))
            for name, epoch, position in zip(taken[::3], taken[1::3], taken[2::3], strict=True)
        }

    def release(self, held: Mapping[TopicPartition, int]) -> None:
        self._script(_RELEASE, self._group, self._member, self._instance, 0, *_flat(held))

    def leave(self) -> None:
        self._script(_RELEASE, self._group, self._member, self._instance, 1)

    def commit(self, offsets: Mapping[TopicPartition, tuple[int, int]]) -> list[TopicPartition]:
        arguments: list[Argument] = []
        for source, (epoch, offset) in offsets.items():
            arguments += [_name(source), epoch, offset]
        refused = self._script(_COMMIT, self._group, self._instance, *arguments)
        return [_source(name) for name in refused]

    def fetch(self, positions: Mapping[TopicPartition, int], *, wait_s: float, per_source: int) -> Fetched:
        bell = f"{self._prefix}bell:{self._group}"
        streams = {_stream(self._prefix, source): source for source in positions}
        wait = ("BLOCK", math.ceil(wait_s * 1000)) if wait_s > 0 else ()  # BLOCK 0 would be for ever
        ids = [f"{position}-0" for position in positions.values()]  # XREAD begins after the id
        reply = self._link.call(
            "XREAD", *wait, "COUNT", per_source, "STREAMS", *streams, bell, *ids, f"{self._generation}-0",
            timeout_s=wait_s + GROUP_TIMEOUT_S,
        )  # fmt: skip
        arrived = {key.decode(): entries for key, entries in reply or ()}
        stirred = arrived.pop(bell, None) is not None
        records = {streams[key]: [_record(streams[key], entry) for entry in arrived[key]] for key in arrived}
        return Fetched(records, stirred)

    def trim(self, now_ms: int, source: TopicPartition) -> bool:
        _, more = self._script(_TRIM, source.topic, source.partition, now_ms)
        return bool(more)

    def unread_sources(self) -> list[TopicPartition]:
        topics = _pairs(self._link.call("HGETALL", f"{self._prefix}topics", timeout_s=GROUP_TIMEOUT_S))
        return [
            TopicPartition(name, partition)
            for name, meta in topics
            if not self._link.call("EXISTS", f"{self._prefix}readers:{name}", timeout_s=GROUP_TIMEOUT_S)
            for partition in range(_partitions(meta))
        ]

    def _script(self, script: Script, *arguments: Argument) -> Any:
        return self._link.script(script, self._prefix, *arguments, timeout_s=GROUP_TIMEOUT_S)


def _chunks(records: Sequence[NewRecord]) -> Iterator[list[NewRecord]]:
    """Records in order, in as few script calls as their bounds allow: nearly always one."""
    chunk: list[NewRecord] = []
    size = 0
    for record in records:
        size += len(record.value)
        if chunk and (len(chunk) == SCRIPT_RECORDS or size > SCRIPT_BYTES):
            yield chunk
            chunk, size = [], len(record.value)
        chunk.append(record)
    if chunk:
        yield chunk


def _told(bound: object) -> str:
    return "unlimited" if bound is None else str(bound)


def _name(source: TopicPartition) -> str:
    return f"{source.topic}/{source.partition}"


def _source(name: bytes) -> TopicPartition:
    topic, partition = name.decode().rsplit("/", 1)
    return TopicPartition(topic, int(partition))


def _stream(prefix: str, source: TopicPartition) -> str:
    return f"{prefix}records:{_name(source)}"


def _flat(held: Mapping[TopicPartition, int]) -> list[Argument]:
    return [argument for source, epoch in held.items() for argument in (_name(source), epoch)]


def _pairs(flat: Sequence[bytes]) -> list[tuple[str, bytes]]:
    return [(name.decode(), value) for name, value in zip(flat[::2], flat[1::2], strict=True)]


def _partitions(meta: bytes) -> int:
    return int(json.loads(meta)["partitions"])


def _record(source: TopicPartition, entry: tuple[bytes, list[bytes]]) -> Record:
    """The fields stand in the order in which append.lua writes them: t, k, v, h."""
    entry_id, fields = entry
    return Record(
        source=source,
        offset=int(entry_id.split(b"-")[0]) - 1,
        key=fields[3].decode(),
        value=fields[5],
        headers=_decode_headers(fields[7]) if fields[7] else {},
        appended_at_ms=int(fields[1]),
    )
