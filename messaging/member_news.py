"""Whose members changed, told over the bus's Redis to every process that keeps conversations."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.clock import SYSTEM_CLOCK, Clock
from core.rest import Rest

logger = logging.getLogger(__name__)

CHANNEL: Final = "chat4all:members"
TIMEOUT_S: Final = 0.25  # to tell may not hold up an answer for longer
PAUSE_S: Final = 5.0  # without telling again after Redis failed
LOOK_S: Final = 1.0
SILENCE_S: Final = 5.0  # an answer that takes longer comes from nowhere


class RedisMemberNews:
    """Best effort: without Redis others go on with what they keep until its time is over."""

    def __init__(self, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._url = url
        self._clock = clock
        self._rest = Rest(PAUSE_S, clock)
        self._client = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )

    def tell(self, conversation_id: UUID) -> None:
        """To be called once the store has it. Never raises."""
        if self._rest.is_on:
            return
        try:
            self._client.publish(CHANNEL, conversation_id.bytes)
        except (redis.RedisError, OSError) as error:
            self._rest.begin()
            logger.warning("nobody hears of changed members", extra={"error": type(error).__name__})

    def listen(self, forget: Callable[[UUID], None], forget_all: Callable[[], None]) -> threading.Event:
        """Hear of it on a daemon thread of this process, which must not fork afterwards, until the event is set.

        ``forget_all`` is called whenever something may have been missed, and first when it begins to hear.
        """
        enough = threading.Event()
        threading.Thread(
            target=self._listen, args=(forget, forget_all, enough), name="member-news", daemon=True
        ).start()
        return enough

    def _listen(self, forget: Callable[[UUID], None], forget_all: Callable[[], None], enough: threading.Event) -> None:
        while not enough.is_set():
            try:
                self._hear(forget, forget_all, enough)
            except (redis.RedisError, OSError):
                enough.wait(LOOK_S)

    def _hear(self, forget: Callable[[UUID], None], forget_all: Callable[[], None], enough: threading.Event) -> None:
        """Raises RedisError or OSError when nobody answers any more."""
        client = redis.Redis.from_url(self._url, socket_timeout=SILENCE_S, socket_connect_timeout=SILENCE_S)
        with client, client.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(CHANNEL)
            heard_s = self._clock.monotonic_s()
            while not enough.is_set():
                message = subscription.get_message(timeout=LOOK_S)
                now_s = self._clock.monotonic_s()
                if message is None:
                    if now_s - heard_s > SILENCE_S:
                        raise redis.TimeoutError("no answer")
                    subscription.ping()
                    continue
                heard_s = now_s
                if message["type"] == "subscribe":  # also after redis-py connected anew by itself
                    forget_all()
                elif message["type"] == "message":
                    forget(UUID(bytes=message["data"]))
