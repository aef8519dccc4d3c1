"""Pushes frames to users from synchronous code: prefork workers have no event loop to lend to a channel layer."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.clock import SYSTEM_CLOCK, Clock, iso_utc
from core.rest import Rest
from realtime import metrics
from realtime.frames import (
    HISTORY_BYTES,
    HISTORY_FRAMES,
    HISTORY_TTL_S,
    Push,
    UserKeys,
    frame_tail,
    redis_channel,
)

__all__ = ["Push", "RedisNotifier"]

log = logging.getLogger(__name__)

DEDUPE_EVENTS: Final = 8_192  # per user: more than a restart of the bridge replays
CHUNK_PUSHES: Final = 512
CHUNK_BYTES: Final = 1024 * 1024
OWED_USERS: Final = 10_000
QUIET_S: Final = 1.0

# Everything in one script, so that no two frames swap between taking a number, the history and the publish. The oldest
# events go by their numbers: by the time a clock that was set back would have the newest forgotten at once.
PUSH_SCRIPT: Final = """
local state_key, history_key, events_key = KEYS[1], KEYS[2], KEYS[3]
local event, tail, new_epoch, channel = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl_s, max_frames, max_bytes, max_events = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local state = redis.call('HMGET', state_key, 'epoch', 'seq', 'bytes')
local epoch, seq, bytes = state[1], tonumber(state[2]) or 0, tonumber(state[3]) or 0
if not epoch then
  epoch, seq = new_epoch, 0
  redis.call('DEL', history_key, events_key)
elseif redis.call('ZSCORE', events_key, event) then
  return 0
end
seq = seq + 1
local frame = '{"epoch":"' .. epoch .. '","seq":' .. string.format('%d', seq) .. ',' .. tail
local held = redis.call('RPUSH', history_key, frame)
bytes = #frame + (held > 1 and bytes or 0)
while held > 1 and (held > max_frames or bytes > max_bytes) do
  bytes = bytes - #redis.call('LPOP', history_key)
  held = held - 1
end
redis.call('HSET', state_key, 'epoch', epoch, 'seq', string.format('%d', seq), 'bytes', string.format('%d', bytes))
redis.call('ZADD', events_key, seq, event)
redis.call('ZREMRANGEBYRANK', events_key, 0, -(max_events + 1))
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ttl_s) end
redis.call('PUBLISH', channel, '{"type":"user.frame","frame":' .. cjson.encode(frame) .. '}')
return seq
"""

# A user whose pushes were lost gets a new epoch: open sockets look, find it and tell their clients to resync.
_BREAK: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'bytes', 0)
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[2], '{"type":"user.look"}')
return 1
"""


class RedisNotifier:
    """Pushes frames in order, one round trip per batch. Safe to use from threads and after a fork.

    Never raises when Redis is away: the users concerned are remembered (bounded), and once Redis is back their sockets
    are told to resync, because what they missed has no number that they could find missing.
    """

    def __init__(self, bus_url: str, clock: Clock = SYSTEM_CLOCK, *, timeout_s: float = 1.0) -> None:
        self._bus_url = bus_url
        self._clock = clock
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        self._pid = 0
        self._rest = Rest(QUIET_S, clock)
        self._owed: set[str] = set()

    def push(self, pushes: Sequence[Push]) -> None:
        """Number, remember and publish each frame whose event is new, in the order given."""
        if not pushes:
            return
        if self._rest.is_on:
            self._lose(pushes)  # a Redis that just failed would cost every batch a time-out
            return
        done = 0
        try:
            client = self._connected()
            self._break_owed(client)
            for chunk in self._chunks(pushes):
                self._send(client, chunk)
                done += len(chunk)
        except (redis.RedisError, OSError) as error:
            self._fail(error, pushes[done:])

    def forget(self, user_id: str) -> None:
        """Nothing that was pushed to this user can be asked for again, and their open sockets are told to resync; when
        Redis is away, once it is back."""
        self._owe({user_id})
        self.settle()

    def settle(self) -> None:
        """Tell whose pushes were lost as soon as Redis answers: to be called again and again, as there may be nothing
        to push for long."""
        if self._owed and not self._rest.is_on:
            try:
                self._break_owed(self._connected())
            except (redis.RedisError, OSError):
                self._rest.begin()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> redis.Redis:
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._client = redis.Redis.from_url(
                    self._bus_url,
                    socket_timeout=self._timeout_s,
                    socket_connect_timeout=self._timeout_s,
                    # one more try for a pooled connection that a restart of Redis closed; pushing twice is harmless
                    retry=Retry(NoBackoff(), 1),
                    retry_on_error=[redis.ConnectionError],
                )
            return self._client

    def _chunks(self, pushes: Sequence[Push]) -> Iterator[list[tuple[Push, bytes]]]:
        at = iso_utc(self._clock.now_ms())
        tails: dict[int, bytes] = {}  # one body goes to a whole audience: encode it once
        chunk: list[tuple[Push, bytes]] = []
        size = 0
        for push in pushes:
            tail = tails.get(id(push.body)) or tails.setdefault(id(push.body), frame_tail(push.body, at=at))
            if chunk and (len(chunk) >= CHUNK_PUSHES or size + len(tail) > CHUNK_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append((push, tail))
            size += len(tail)
        yield chunk

    def _send(self, client: redis.Redis, chunk: Sequence[tuple[Push, bytes]]) -> None:
        pipeline = client.pipeline(transaction=False)
        # EVAL first: it loads the script, so that the EVALSHA behind it cannot miss it and no frame overtakes another
        run = itertools.chain([pipeline.eval], itertools.repeat(pipeline.evalsha))
        text = itertools.chain([PUSH_SCRIPT], itertools.repeat(_sha1(PUSH_SCRIPT)))
        for (push, tail), call, script in zip(chunk, run, text, strict=False):
            keys = UserKeys.of(push.user_id)
            call(
                script, 3, keys.state, keys.history, keys.events,
                push.event_id, tail, secrets.token_hex(8), redis_channel(push.user_id),
                HISTORY_TTL_S, HISTORY_FRAMES, HISTORY_BYTES, DEDUPE_EVENTS,
            )  # fmt: skip
        results = pipeline.execute()
        duplicates = results.count(0)
        metrics.PUSHES.labels("duplicate").inc(duplicates)
        metrics.PUSHES.labels("sent").inc(len(results) - duplicates)

    def _break_owed(self, client: redis.Redis) -> None:
        with self._lock:
            owed, self._owed = self._owed, set()
        if not owed:
            return
        pipeline = client.pipeline(transaction=False)
        for user_id in owed:
            keys = UserKeys.of(user_id)
            pipeline.eval(_BREAK, 2, keys.state, keys.history, secrets.token_hex(8), redis_channel(user_id))
        try:
            pipeline.execute()
        except (redis.RedisError, OSError):
            self._owe(owed)
            raise

    def _fail(self, error: Exception, lost: Sequence[Push]) -> None:
        self._lose(lost)
        self._rest.begin()
        log.warning("live pushes are lost: the bus does not answer (%s)", type(error).__name__)

    def _lose(self, pushes: Sequence[Push]) -> None:
        metrics.PUSHES.labels("lost").inc(len(pushes))
        self._owe({push.user_id for push in pushes})

    def _owe(self, users: set[str]) -> None:
        with self._lock:
            self._owed.update(itertools.islice(users - self._owed, max(0, OWED_USERS - len(self._owed))))


def _sha1(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
