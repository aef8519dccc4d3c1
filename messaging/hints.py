"""What the store does not know yet, in the bus's Redis: messages that were just accepted, so that GET can answer
ACCEPTED, and Idempotency-Keys whose request ended while the store was away, so that a retry need not wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.clock import SYSTEM_CLOCK, Clock
from core.rest import Rest
from messaging import codec
from messaging.domain import Message

logger = logging.getLogger(__name__)

TTL_S: Final = 60
TIMEOUT_S: Final = 0.25  # a hint may not hold up a 202 for longer
PAUSE_S: Final = 5.0  # without asking again after Redis failed

# KEYS of the hints; ARGV seconds, a value for each. One command for hundreds of them.
_PUT_ALL: Final = """
for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i + 1], 'EX', ARGV[1]) end
"""


class RedisHints:
    """Best effort: without Redis there are no hints, and a GET in the moment before storage answers 404."""

    def __init__(self, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._rest = Rest(PAUSE_S, clock)
        self._client = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._put_all = self._client.register_script(_PUT_ALL)

    def put(self, messages: Mapping[UUID, bytes]) -> None:
        keys, values = [_key(each) for each in messages], list(messages.values())
        if len(keys) == 1:
            self._ask(lambda client: client.set(keys[0], values[0], ex=TTL_S))
        elif keys:
            self._ask(lambda _: self._put_all(keys=keys, args=[TTL_S, *values]))

    def get(self, message_id: UUID) -> Message | None:
        data = self._ask(lambda client: client.get(_key(message_id)))
        return codec.readable(Message, data) if isinstance(data, bytes) else None

    def accepted(self, message_ids: Collection[UUID]) -> list[Message]:
        """Those of these that are known here."""
        keys = [_key(each) for each in message_ids]
        found: Any = self._ask(lambda client: client.mget(keys)) if keys else None
        return [message for data in found or () if data and (message := codec.readable(Message, data))]

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
            logger.warning("hints are away", extra={"error": type(error).__name__})
            return None


def _key(message_id: UUID) -> str:
    return f"chat4all:hint:{message_id}"


def _try_key(workspace_id: UUID, sender_id: str, key: str) -> str:
    return f"chat4all:ended:{workspace_id}:{sender_id}:{key}"
