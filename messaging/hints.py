"""What the store need not be asked for, or does not know yet, in the bus's Redis: messages that were just accepted, so
that GET can answer ACCEPTED; what platforms call those that were just sent, as their receipts come soon; and
Idempotency-Keys whose request ended while the store was away, so that a retry need not wait.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.clock import SYSTEM_CLOCK, Clock
from core.rest import Rest
from messaging import codec
from messaging.domain import ExternalRef, Message, Reference

logger = logging.getLogger(__name__)

TTL_S: Final = 60
SHARE: Final = 0.5  # of Redis's `maxmemory` taken, by whatever: then none are put, as the rest is for what must go on
TIMEOUT_S: Final = 0.25  # a hint may not hold up a 202 for longer
PAUSE_S: Final = 5.0  # without asking again after Redis failed

Command = tuple[str | bytes | int, ...]

# KEYS of the hints; ARGV seconds, share, a value for each. One command for hundreds of them; 0 where there is no room.
_PUT_ALL: Final = """
local info = redis.pcall('INFO', 'memory') -- an ACL may refuse it, and then it is no string
info = type(info) == 'string' and info or ''
local taken = tonumber(string.match(info, '\\nused_memory:(%d+)') or 0)
local limit = tonumber(string.match(info, '\\nmaxmemory:(%d+)') or 0)
if limit > 0 and taken > tonumber(ARGV[2]) * limit then return 0 end
for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i + 2], 'EX', ARGV[1]) end
return 1
"""
TRUSTED_S: Final = 1.0  # to be there without an answer, since it answered
ON_ITS_WAY_S: Final = 0.02
READ_AT_ONCE: Final = 8 * 1024  # bytes; Redis takes up to 16 KiB from a connection before it looks at the others


class RedisHints:
    """Best effort: without Redis, or room in it, there are no hints, and nobody finds a message in the moment before it
    is stored: a GET answers 404, and it is neither read nor replied to."""

    def __init__(self, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._rest = Rest(PAUSE_S, clock)
        self._no_room = Rest(PAUSE_S, clock)
        self._has_room = True
        self._clock = clock
        self._asked_s = float("-inf")  # when Redis last answered that it took one, monotonic
        self._client = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._put_all = self._client.register_script(_PUT_ALL)
        self._one_way = _OneWay(self._client.connection_pool)

    def put(self, messages: Mapping[UUID, bytes]) -> None:
        """Redis has them as a rule before what anybody asks it from now on. For most it is not waited for: once a
        second it answers, or nobody would ever know that it is away, full or a replica."""
        keys, values = [_key(each) for each in messages], list(messages.values())
        now_s = self._clock.monotonic_s()
        if len(keys) == 1 and len(values[0]) < READ_AT_ONCE and now_s < self._asked_s + TRUSTED_S:
            self._ask(lambda _: self._one_way.send(("SET", keys[0], values[0], "EX", TTL_S)))
        elif self._put(keys, values):
            self._asked_s = now_s

    def _put(self, keys: Sequence[str], values: Sequence[bytes]) -> bool:
        """Whether Redis has them."""
        if not keys or self._no_room.is_on:
            return False
        answer = self._ask(lambda _: self._put_all(keys=keys, args=[TTL_S, SHARE, *values]))
        if answer == 0:
            self._no_room.begin()
        if answer is not None and self._has_room != bool(answer):
            self._has_room = bool(answer)
            logger.warning("hints are left out: the bus has no room" if answer == 0 else "the bus has room for hints")
        return answer == 1

    def get(self, message_id: UUID) -> Message | None:
        """Asked once more where it is not there: one that was put a moment ago may be on its way, or behind others."""
        name = _key(message_id)
        data = self._ask(lambda client: client.get(name))
        if data is None and not self._rest.is_on and not self._no_room.is_on:
            threading.Event().wait(ON_ITS_WAY_S)
            data = self._ask(lambda client: client.get(name))
        return codec.readable(Message, data) if isinstance(data, bytes) else None

    def accepted(self, message_ids: Collection[UUID]) -> list[Message]:
        """Those of these that are known here."""
        keys = [_key(each) for each in message_ids]
        found: Any = self._ask(lambda client: client.mget(keys)) if keys else None
        return [message for data in found or () if data and (message := codec.readable(Message, data))]

    def put_references(self, refs: Sequence[ExternalRef]) -> None:
        """These are stored: whoever gets receipts of them soon need not ask the store. Raises nothing."""
        self._put(
            [_reference_key(each.channel, each.account_id, each.external_id) for each in refs],
            list(map(msgspec.json.encode, refs)),
        )

    def references(self, wanted: Collection[Reference]) -> list[ExternalRef]:
        """Those of these that are known here."""
        keys = [_reference_key(*each) for each in wanted]
        found: Any = self._ask(lambda client: client.mget(keys)) if keys else None
        return [ref for data in found or () if data and (ref := _reference(data))]

    def end_try(self, workspace_id: UUID, sender_id: str, key: str, *, keep_ms: int) -> None:
        name = _try_key(workspace_id, sender_id, key)
        self._ask(lambda client: client.set(name, b"", px=keep_ms))

    def has_ended(self, workspace_id: UUID, sender_id: str, key: str) -> bool:
        name = _try_key(workspace_id, sender_id, key)
        return bool(self._ask(lambda client: client.exists(name)))

    def _ask(self, question: Callable[[redis.Redis], object]) -> object:
        """The answer; None when Redis is away, and for a while after it was."""
        if self._rest.is_on:
            return None
        try:
            return question(self._client)
        except (redis.RedisError, OSError) as error:
            self._rest.begin()
            self._one_way = _OneWay(self._client.connection_pool)  # that one may never hear of it
            logger.warning("hints are away", extra={"error": type(error).__name__})
            return None


class _OneWay:
    """A connection of its own on which Redis answers nothing (CLIENT REPLY OFF): half of what a command costs is its
    answer. Threads that come while another one sends leave theirs to it: one call of the system's for all of them."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._connection: redis.Connection | None = None
        self._left: deque[Command] = deque()

    def send(self, command: Command) -> None:
        """Or have it sent by whoever is at it, in a moment. Raises RedisError or OSError."""
        self._left.append(command)
        while self._left and self._lock.acquire(blocking=False):
            try:
                self._send_all()
            finally:
                self._lock.release()

    def _send_all(self) -> None:
        connection, self._connection = self._connection, None  # until it has taken all
        if connection is None or _says_something(connection):
            connection = self._opened()
        commands = [self._left.popleft() for _ in range(len(self._left))]
        packed = connection.pack_commands(commands)  # type: ignore[no-untyped-call]
        connection.send_packed_command(packed, check_health=False)  # type: ignore[no-untyped-call]
        self._connection = connection

    def _opened(self) -> redis.Connection:
        connection: redis.Connection = self._pool.connection_class(**self._pool.connection_kwargs)
        connection.connect()  # type: ignore[no-untyped-call]
        connection.send_command("CLIENT", "REPLY", "OFF")  # type: ignore[no-untyped-call]
        return connection


def _says_something(connection: redis.Connection) -> bool:
    """It was closed, or Redis refuses to be silent: then it is closed here."""
    try:
        if not connection.can_read():
            return False
    except (redis.RedisError, OSError):
        pass
    connection.disconnect()  # type: ignore[no-untyped-call]
    return True


def _key(message_id: UUID) -> str:
    return f"chat4all:hint:{message_id}"


def _reference(data: bytes) -> ExternalRef | None:
    """None for what another release wrote."""
    try:
        return msgspec.json.decode(data, type=ExternalRef)
    except msgspec.MsgspecError:
        return None


def _reference_key(channel: str, account_id: str, external_id: str) -> str:
    return f"chat4all:ref:{channel}:{account_id}:{external_id}"


def _try_key(workspace_id: UUID, sender_id: str, key: str) -> str:
    return f"chat4all:ended:{workspace_id}:{sender_id}:{key}"
