"""Batches to workers and back through the bus's Redis, which may be flushed at any moment.

Per lane one hash: the latest epoch, its payload, and whether a worker started it. The Celery task carries only the
lane's name and the epoch, so a batch that is dispatched again while the first waits in the queue costs some bytes, and
a worker that comes late finds a newer epoch and leaves. While it works it renews a lease once a second.

A worker that starts a batch takes along what waits of other lanes of its topic, as databases commit together what came
while they wrote: nobody waits for it, and the more waits, the less each costs (docs/adr/0019-batches-together.md).
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from messaging.work import MOST_BYTES, MOST_RECORDS, Batch, BatchState, Completion, LaneId, Outcome

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
MOST_TOGETHER: Final = 16  # batches of as many lanes
LONGEST_QUEUE: Final = 1_000
"""Tasks behind which none is sent again: a queue that nobody empties must not fill the bus, which all others need."""

_LANE: Final = "chat4all:lane:"

# KEYS lane, queue, waiting; ARGV epoch, payload, ttl, task, reply to, records (0: it goes alone), longest queue. A
# dispatch older than what stands is refused: its bridge slept. One that stands already was answered too late for the
# client, which asked again: perhaps somebody is at work on it by now. `shares`: the epoch that may be taken along and
# that all beside it is of, as a bridge of the release before leaves that as it finds it.
_DISPATCH = """
local standing = redis.call('HGET', KEYS[1], 'epoch')
if standing and standing > ARGV[1] then return 0 end
if standing == ARGV[1] then return 1 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'payload', ARGV[2], 'started', '0')
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('DEL', KEYS[1] .. ':lease')
redis.call('LPUSH', KEYS[2], ARGV[4])
if ARGV[6] ~= '0' then
  redis.call('HSET', KEYS[1], 'shares', ARGV[1], 'records', ARGV[6], 'reply_to', ARGV[5], 'queue', KEYS[2],
    'task', ARGV[4])
  redis.call('RPUSH', KEYS[3], KEYS[1])
  redis.call('LTRIM', KEYS[3], -ARGV[7], -1)
  redis.call('EXPIRE', KEYS[3], ARGV[3])
end
return 1
"""
# KEYS lane, waiting; ARGV epoch, lease ms, most records, most bytes, most batches, the longest a worker may take in s.
# The payload, or nil when the batch is not the latest or is already being worked on; then lane, epoch, whom to tell and
# payload of each that is taken along: those whose tasks nobody took out of the queue yet. The first's parent finds who
# they were should the worker die.
_START = """
local function begun(lane, epoch, payload)
  redis.call('HSET', lane, 'started', '1')
  redis.call('SET', lane .. ':lease', epoch, 'PX', ARGV[2])
  return payload
end
local epoch, started, payload, shares, records =
  unpack(redis.call('HMGET', KEYS[1], 'epoch', 'started', 'payload', 'shares', 'records'))
if epoch ~= ARGV[1] or started == '1' or not payload then return nil end
local found = {begun(KEYS[1], epoch, payload)}
if shares ~= epoch then return found end
local bytes, along = #payload, {}
while #along < tonumber(ARGV[5]) - 1 do
  local lane = redis.call('LINDEX', KEYS[2], 0)
  if not lane then break end
  local its = redis.call('HMGET', lane, 'epoch', 'started', 'payload', 'shares', 'records', 'reply_to', 'queue', 'task')
  local waits = its[1] and its[1] == its[4] and its[2] == '0' and its[3]
  local more, larger = records + (its[5] or 0), bytes + #(its[3] or '')
  if waits and (more > tonumber(ARGV[3]) or larger > tonumber(ARGV[4])) then break end
  redis.call('LPOP', KEYS[2])
  if waits and redis.call('LREM', its[7], -1, its[8]) == 1 then
    records, bytes = more, larger
    along[#along + 1] = {lane, its[1], its[6]}
    found[#found + 1] = {lane, its[1], its[6], begun(lane, its[1], its[3])}
  end
end
if #along > 0 then redis.call('SET', KEYS[1] .. ':along:' .. epoch, cjson.encode(along), 'EX', ARGV[6]) end
return found
"""
# KEYS lane; ARGV epoch, lease ms
_RENEW = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1] .. ':lease', ARGV[1], 'PX', ARGV[2])
return 1
"""
# KEYS a lane and its replies for each; ARGV ttl, lease ms, an epoch and a reply for each. The lease outlives the work:
# the answer is on its way.
_FINISH = """
for place = 1, #KEYS, 2 do
  local lane, replies, epoch, reply = KEYS[place], KEYS[place + 1], ARGV[place + 2], ARGV[place + 3]
  if redis.call('HGET', lane, 'epoch') == epoch then
    redis.call('HDEL', lane, 'payload', 'task')
    redis.call('SET', lane .. ':lease', epoch, 'PX', ARGV[2])
  end
  redis.call('RPUSH', replies, reply)
  redis.call('EXPIRE', replies, ARGV[1])
end
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
    shared: bool = False

    @classmethod
    def of(cls, lane: LaneId, epoch: str, **what: Any) -> _Reply:
        return cls(lane.number, lane.source.topic, lane.source.partition, epoch, **what)

    @property
    def where(self) -> LaneId:
        return LaneId(TopicPartition(self.topic, self.partition), self.lane)


_encode = msgspec.msgpack.Encoder().encode
_decode_payload = msgspec.msgpack.Decoder(list[_WireRecord]).decode
_decode_reply = msgspec.msgpack.Decoder(_Reply).decode


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One record in a worker's hands. ``number``: what its outcome is told by; the offset, but of batches together."""

    record: Record
    attempts: int
    first_failed_ms: int
    number: int


def bus(url: str) -> redis.Redis:
    """A client of the bus whose every call ends within its time-out; connects on first use."""
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 1),
    )


def _lane_key(lane: LaneId) -> str:
    return f"{_LANE}{lane}"


def _lane_of(key: str) -> LaneId:
    topic, partition, number = key.removeprefix(_LANE).rsplit(":", 2)
    return LaneId(TopicPartition(topic, int(partition)), int(number))


def _waiting_key(topic: str) -> str:
    """Lanes of it that have a batch to share, in the order in which they were dispatched; some of them have no more."""
    return f"chat4all:waiting:{topic}"


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
        topic = batch.lane.source.topic
        keys = [_lane_key(batch.lane), self._queue_of(topic), _waiting_key(topic)]
        records = len(batch.works) if batch.shareable else 0
        with _bus_errors():
            task = self._task_of(batch)
            if not self._dispatch(
                keys=keys, args=[batch.epoch, payload, LANE_TTL_S, task, self._bridge, records, LONGEST_QUEUE]
            ):
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
class AllOf:
    """The right to go on with several batches at once."""

    leases: Sequence[Lease]

    def check(self) -> None:
        """Raise LeaseLost when that to one of them is lost."""
        for lease in self.leases:
            lease.check()


@dataclass(frozen=True, slots=True)
class Started:
    """A batch in a worker's hands, and those of other lanes that it took along; ``asked_s`` is for their `Lease`."""

    lane: LaneId
    epoch: str
    reply_to: str
    items: list[WorkItem]
    asked_s: float
    along: tuple[Started, ...] = ()

    @classmethod
    def of(cls, lane: LaneId, epoch: str, reply_to: str, payload: bytes, **more: Any) -> Started:
        items = [
            WorkItem(
                Record(lane.source, wire.offset, wire.key, wire.value, wire.headers, wire.appended_at_ms),
                wire.attempts,
                wire.first_failed_ms,
                number=wire.offset,
            )
            for wire in _decode_payload(payload)
        ]
        return cls(lane, epoch, reply_to, items, **more)


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

    def start(self, lane: LaneId, epoch: str, *, reply_to: str = "") -> Started | None:
        """None when this dispatch is stale: then there is nothing to do and nothing to say."""
        asked_s = self._clock.monotonic_s()
        keys = [_lane_key(lane), _waiting_key(lane.source.topic)]
        most = [MOST_RECORDS, MOST_BYTES, MOST_TOGETHER]
        with _bus_errors():
            found: Any = self._start(keys=keys, args=[epoch, LEASE_MS, *most, math.ceil(FORSAKEN_S)])
        if found is None:
            return None
        payload, *rest = found
        along = tuple(
            Started.of(_lane_of(key.decode()), its.decode(), whom.decode(), theirs, asked_s=asked_s)
            for key, its, whom, theirs in rest
        )
        return Started.of(lane, epoch, reply_to, payload, asked_s=asked_s, along=along)

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
        self._reply([(_Reply.of(lane, epoch, outcomes=outcomes), reply_to)])

    def finish_all(self, answers: Iterable[tuple[Started, dict[int, Outcome]]]) -> None:
        """The same of several, in one step."""
        self._reply([(_Reply.of(each.lane, each.epoch, outcomes=told), each.reply_to) for each, told in answers])

    def report_lost(self, lane: LaneId, epoch: str, *, reply_to: str) -> None:
        """Nothing is known of any record of this batch: one of them broke it."""
        self._reply([(_Reply.of(lane, epoch, lost=True), reply_to)])

    def report_death(self, lane: LaneId, epoch: str, *, reply_to: str) -> None:
        """The parent saw the child die that worked on this batch, and on those that it had taken along."""
        with _bus_errors():
            found: Any = self._client.get(f"{_lane_key(lane)}:along:{epoch}")
        along: list[tuple[str, str, str]] = msgspec.json.decode(found) if found else []
        lost = [(lane, epoch, reply_to), *((_lane_of(key), its, whom) for key, its, whom in along)]
        self._reply([(_Reply.of(where, its, lost=True, shared=bool(along)), whom) for where, its, whom in lost])

    def _reply(self, replies: Sequence[tuple[_Reply, str]]) -> None:
        keys: list[str] = []
        told: list[str | bytes] = []
        for reply, reply_to in replies:
            keys += [_lane_key(reply.where), _replies_key(reply_to)]
            told += [reply.epoch, _encode(reply)]
        with _bus_errors():
            self._finish(keys=keys, args=[REPLY_TTL_S, LEASE_MS, *told])

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
    return Completion(reply.where, reply.epoch, reply.outcomes, reply.lost, reply.shared)


@contextmanager
def _bus_errors() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"the bus does not answer ({type(error).__name__}); check BUS_URL") from error
