"""Batches to workers and back through the bus's Redis, which may be flushed at any moment.

Per lane one hash: the latest epoch, its payload, and whether a worker started it. The Celery task carries only the
lane's name and the epoch, so a batch that is dispatched again while the first waits in the queue costs some bytes, and
a worker that comes late finds a newer epoch and leaves. While it works it renews a lease once a second.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.clock import SYSTEM_CLOCK, Clock
from core.errors import Unavailable
from messaging.errors import LeaseLost
from messaging.ports import Record, TopicPartition
from messaging.work import Batch, BatchState, Completion, LaneId, Outcome

logger = logging.getLogger(__name__)

LEASE_MS: Final = 3_000
RENEW_EVERY_S: Final = 1.0
LEASE_VALID_S: Final = 2.0  # a worker trusts its lease for less than the bus does: it stops before another starts
HANGS_S: Final = 45.0  # nothing begins after 5 s, and the longest call, an upload, may take 35 more
HARD_LIMIT_S: Final = 60  # then its parent ends a worker: a record that hangs it counts as one that kills it
FORSAKEN_S: Final = HARD_LIMIT_S + 5.0  # then nobody will: the parent itself was killed, or is frozen
STACK_SHOWN: Final = 12  # calls of each thread
LANE_TTL_S: Final = 3_600
REPLY_TTL_S: Final = 60
SOCKET_TIMEOUT_S: Final = 2.0
LONGEST_QUEUE: Final = 1_000
"""Tasks behind which none is sent again: a queue that nobody empties must not fill the bus, which all others need."""

# KEYS lane, queue; ARGV epoch, payload, ttl, task. A dispatch older than what stands is refused: its bridge slept. One
# that stands already was answered too late for the client, which asked again: perhaps somebody is at work on it by now.
_DISPATCH = """
local standing = redis.call('HGET', KEYS[1], 'epoch')
if standing and standing > ARGV[1] then return 0 end
if standing == ARGV[1] then return 1 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'payload', ARGV[2], 'started', '0')
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('DEL', KEYS[1] .. ':lease')
redis.call('LPUSH', KEYS[2], ARGV[4])
return 1
"""
# KEYS lane; ARGV epoch, lease ms. The payload, or nil when the batch is not the latest or is already being worked on.
_START = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return nil end
if redis.call('HGET', KEYS[1], 'started') == '1' then return nil end
redis.call('HSET', KEYS[1], 'started', '1')
redis.call('SET', KEYS[1] .. ':lease', ARGV[1], 'PX', ARGV[2])
return redis.call('HGET', KEYS[1], 'payload')
"""
# KEYS lane; ARGV epoch, lease ms
_RENEW = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1] .. ':lease', ARGV[1], 'PX', ARGV[2])
return 1
"""
# KEYS lane, replies; ARGV epoch, reply, ttl, lease ms. The lease outlives the work: the answer is on its way.
_FINISH = """
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'payload')
  redis.call('SET', KEYS[1] .. ':lease', ARGV[1], 'PX', ARGV[4])
end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""
# KEYS lane; ARGV epoch. A worker that outlived its lease must not end its successor's.
_END_SOLO = """
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[1] .. ':lease') end
"""
# KEYS lane; ARGV epoch. Whether it stands, was started, has a live lease.
_INSPECT = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 'gone' end
if redis.call('HGET', KEYS[1], 'started') == '0' then return 'queued' end
if redis.call('EXISTS', KEYS[1] .. ':lease') == 1 then return 'running' end
return 'lapsed'
"""


class _WireRecord(msgspec.Struct, array_like=True):
    offset: int
    key: str
    value: bytes
    headers: dict[str, str]
    attempts: int
    first_failed_ms: int
    appended_at_ms: int


class _Reply(msgspec.Struct):
    lane: int
    topic: str
    partition: int
    epoch: str
    outcomes: dict[int, Outcome] = {}
    lost: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode_payload = msgspec.msgpack.Decoder(list[_WireRecord]).decode
_decode_reply = msgspec.msgpack.Decoder(_Reply).decode


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One record in a worker's hands."""

    record: Record
    attempts: int
    first_failed_ms: int


def bus(url: str) -> redis.Redis:
    """A client of the bus whose every call ends within its time-out; connects on first use."""
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 1),
    )


def ping(url: str) -> None:
    """Raise Unavailable unless the bus answers; leaves no connection behind."""
    with _bus_errors(), bus(url) as client:
        client.ping()


def _lane_key(lane: LaneId) -> str:
    return f"chat4all:lane:{lane}"


def _replies_key(bridge: str) -> str:
    return f"chat4all:replies:{bridge}"


def queue_length(client: redis.Redis, queue: str) -> int:
    """Tasks that wait in a Celery queue on the Redis transport (a list of the queue's name). Raises Unavailable."""
    with _bus_errors():
        return int(client.llen(queue))


class BusDispatcher:
    """The bridge's end. ``task(lane, epoch, reply_to)`` is what a queue gets, ``queue_of(topic)`` which one."""

    def __init__(
        self,
        url: str,
        *,
        bridge: str,
        task: Callable[[LaneId, str, str], bytes],
        queue_of: Callable[[str], str],
    ) -> None:
        self._url = url
        self._bridge = bridge
        self._task = task
        self._queue_of = queue_of
        self._client = bus(url)
        self._waiting = bus(url)  # blocks in BLPOP: a connection of its own
        self._dispatch = self._client.register_script(_DISPATCH)
        self._inspect = self._client.register_script(_INSPECT)

    def dispatch(self, batch: Batch) -> None:
        payload = _encode(
            [
                _WireRecord(
                    work.record.offset,
                    work.record.key,
                    work.record.value,
                    dict(work.record.headers),
                    work.attempts,
                    work.first_failed_ms,
                    work.record.appended_at_ms,
                )
                for work in batch.works
            ]
        )
        keys = [_lane_key(batch.lane), self._queue_of(batch.lane.source.topic)]
        with _bus_errors():
            if not self._dispatch(keys=keys, args=[batch.epoch, payload, LANE_TTL_S, self._task_of(batch)]):
                raise Unavailable("another bridge dispatches this lane")

    def send_again(self, batch: Batch) -> None:
        queue = self._queue_of(batch.lane.source.topic)
        with _bus_errors():
            if self._client.llen(queue) < LONGEST_QUEUE:
                self._client.lpush(queue, self._task_of(batch))

    def completions(self, timeout_s: float) -> list[Completion]:
        key = _replies_key(self._bridge)
        with _bus_errors():
            first: Any = self._waiting.blpop([key], timeout=timeout_s)
            if first is None:
                return []
            # Not in one go: a bus that freezes in between would empty the list for a client that is gone.
            more: Any = self._waiting.lpop(key, 1_000) or []
        return [_completion(_decode_reply(raw)) for raw in [first[1], *more]]

    def inspect(self, batches: list[Batch]) -> list[BatchState]:
        queues = [self._queue_of(batch.lane.source.topic) for batch in batches]
        with _bus_errors(), self._client.pipeline(transaction=False) as pipeline:
            for queue in queues:  # first: a task that is taken out in between counts as at work
                pipeline.llen(queue)
            for batch in batches:
                self._inspect(keys=[_lane_key(batch.lane)], args=[batch.epoch], client=pipeline)
            found = pipeline.execute()
        waiting, states = found[: len(queues)], [BatchState(state.decode()) for state in found[len(queues) :]]
        return [
            BatchState.LOST_IN_QUEUE if state is BatchState.QUEUED and not tasks else state
            for tasks, state in zip(waiting, states, strict=True)
        ]

    def _task_of(self, batch: Batch) -> bytes:
        return self._task(batch.lane, batch.epoch, self._bridge)


class Lease:
    """A worker's right to go on with a batch. `check` before every effect: append, push, send.

    ``asked_s``: when it was asked for, monotonic. From then on it is counted, as the bus does from some time after.
    """

    def __init__(self, clock: Clock, *, asked_s: float) -> None:
        self._clock = clock
        self._renewed_s = asked_s
        self._lost = threading.Event()

    def renewed(self, at_s: float) -> None:
        self._renewed_s = at_s

    def lose(self) -> None:
        self._lost.set()

    def check(self) -> None:
        """Raise LeaseLost when another dispatch superseded this one, or when this process slept through its lease."""
        if self._lost.is_set() or self._clock.monotonic_s() - self._renewed_s > LEASE_VALID_S:
            raise LeaseLost("the batch is in other hands by now")


@dataclass(frozen=True, slots=True)
class Started:
    """A batch in a worker's hands; ``asked_s`` is for its `Lease`."""

    items: list[WorkItem]
    asked_s: float


@dataclass(slots=True)
class _Held:
    """A lease that the keeper renews. ``since_s``: monotonic."""

    lane: LaneId
    epoch: str
    lease: Lease
    since_s: float
    is_told: bool = False


class BusWorker:
    """The worker's end: start a batch, keep its lease, answer. One per process, used by one task at a time."""

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._client = bus(url)
        self._clock = clock
        self._start = self._client.register_script(_START)
        self._renew = self._client.register_script(_RENEW)
        self._finish = self._client.register_script(_FINISH)
        self._end_solo = self._client.register_script(_END_SOLO)
        self._held: dict[int, _Held] = {}
        self._keeper_pid = 0

    def start(self, lane: LaneId, epoch: str) -> Started | None:
        """None when this dispatch is stale: then there is nothing to do and nothing to say."""
        asked_s = self._clock.monotonic_s()
        with _bus_errors():
            payload: Any = self._start(keys=[_lane_key(lane)], args=[epoch, LEASE_MS])
        if payload is None:
            return None
        items = [
            WorkItem(
                Record(lane.source, wire.offset, wire.key, wire.value, wire.headers, wire.appended_at_ms),
                wire.attempts,
                wire.first_failed_ms,
            )
            for wire in _decode_payload(payload)
        ]
        return Started(items, asked_s)

    @contextmanager
    def lease(self, lane: LaneId, epoch: str, *, asked_s: float) -> Iterator[Lease]:
        """A lease renewed by a thread of the process until the block ends."""
        held = _Held(lane, epoch, Lease(self._clock, asked_s=asked_s), asked_s)
        self._held[id(held)] = held
        self._have_keeper()
        try:
            yield held.lease
        finally:
            del self._held[id(held)]

    @contextmanager
    def solo_lease(self, lane: LaneId) -> Iterator[Lease | None]:
        """A lease on work that no bridge dispatched, None while another worker holds it."""
        key, epoch, asked_s = _lane_key(lane), secrets.token_hex(8), self._clock.monotonic_s()
        with _bus_errors():
            taken = self._client.set(f"{key}:lease", epoch, nx=True, px=LEASE_MS)
            if taken:
                self._client.hset(key, "epoch", epoch)
                self._client.expire(key, LANE_TTL_S)
        if not taken:
            yield None
            return
        with self.lease(lane, epoch, asked_s=asked_s) as lease:
            yield lease
        with _bus_errors():
            self._end_solo(keys=[key], args=[epoch])

    def finish(self, lane: LaneId, epoch: str, *, reply_to: str, outcomes: dict[int, Outcome]) -> None:
        self._reply(_Reply(lane.number, lane.source.topic, lane.source.partition, epoch, outcomes), reply_to)

    def report_lost(self, lane: LaneId, epoch: str, *, reply_to: str) -> None:
        """The parent saw the child die that worked on this batch."""
        self._reply(_Reply(lane.number, lane.source.topic, lane.source.partition, epoch, lost=True), reply_to)

    def _reply(self, reply: _Reply, reply_to: str) -> None:
        lane = LaneId(TopicPartition(reply.topic, reply.partition), reply.lane)
        with _bus_errors():
            self._finish(
                keys=[_lane_key(lane), _replies_key(reply_to)],
                args=[reply.epoch, _encode(reply), REPLY_TTL_S, LEASE_MS],
            )

    def _have_keeper(self) -> None:
        """One thread for all leases of a process, started in it: a thread for each batch costs more than a small batch,
        and none survives a fork."""
        if self._keeper_pid != os.getpid():
            self._keeper_pid = os.getpid()
            threading.Thread(target=self._keep, daemon=True, name="lease").start()

    def _keep(self) -> None:
        pause = threading.Event()
        while not pause.wait(RENEW_EVERY_S):
            for held in tuple(self._held.values()):
                if self._clock.monotonic_s() - held.since_s > FORSAKEN_S:
                    held.lease.lose()
                    continue
                self._renew_one(held)
                if not held.is_told and self._clock.monotonic_s() - held.since_s > HANGS_S:
                    held.is_told = True
                    extra = {"lane": str(held.lane), "at": _standing()}
                    logger.warning("a batch hangs; its worker is ended if this lasts", extra=extra)

    def _renew_one(self, held: _Held) -> None:
        at_s = self._clock.monotonic_s()
        try:
            with _bus_errors():
                still_ours = self._renew(keys=[_lane_key(held.lane)], args=[held.epoch, LEASE_MS])
        except Unavailable:
            return  # the lease runs out by itself if this lasts
        if still_ours:
            held.lease.renewed(at_s)
        else:
            held.lease.lose()


def _standing() -> dict[str, list[str]]:
    """Where each other thread is just now, innermost call first: files, lines and functions, no values."""
    frames = sys._current_frames()
    return {
        thread.name: [f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in reversed(calls)]
        for thread in threading.enumerate()
        if thread is not threading.current_thread()
        and (calls := traceback.extract_stack(frames.get(thread.ident or 0))[-STACK_SHOWN:])
    }


def _completion(reply: _Reply) -> Completion:
    lane = LaneId(TopicPartition(reply.topic, reply.partition), reply.lane)
    return Completion(lane, reply.epoch, reply.outcomes, reply.lost)


@contextmanager
def _bus_errors() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"the bus does not answer ({type(error).__name__}); check BUS_URL") from error
