"""Whose members changed, told over the bus's Redis to every process that keeps conversations."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Final, Protocol
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.clock import SYSTEM_CLOCK, Clock
from core.rest import Rest

logger = logging.getLogger(__name__)

CHANNEL: Final = "chat4all:members"
ID_BYTES: Final = 16
EVERYTHING: Final = b""  # in the place of a conversation's id, as whatever is none
TIMEOUT_S: Final = 0.25  # to tell may not hold up an answer for longer
PAUSE_S: Final = 5.0  # without telling again after Redis failed
LOOK_S: Final = 1.0
SILENCE_S: Final = 5.0  # an answer that takes longer comes from nowhere


class Keeper(Protocol):
    """Who keeps conversations."""

    def forget(self, conversation_id: UUID) -> None:
        """Its members are others now."""

    def forget_all(self) -> None:
        """Something may have been missed: called first when it is begun to hear, and after each interruption."""

    def heard(self, until_s: float) -> None:
        """About once a second: until then (monotonic) nothing was missed."""


class RedisMemberNews:
    """Best effort: without Redis others go on with what they keep until its time is over."""

    def __init__(self, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._url = url
        self._clock = clock
        self._rest = Rest(PAUSE_S, clock)
        self._lock = threading.Lock()
        self._owed = 0  # how many changes were not told so far
        self._is_at_it = False  # a thread makes that good
        self._client = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )

    def tell(self, conversation_id: UUID) -> None:
        """To be called once the store has it. Never raises; what cannot be told now is told as soon as it can be."""
        if self._rest.is_on or not self._publish(conversation_id.bytes):
            self._owe()

    def _publish(self, news: bytes) -> bool:
        try:
            self._client.publish(CHANNEL, news)
        except (redis.RedisError, OSError) as error:
            if not self._rest.is_on:
                logger.warning("nobody hears of changed members", extra={"error": type(error).__name__})
            self._rest.begin()
            return False
        self._rest.end()
        return True

    def _owe(self) -> None:
        with self._lock:
            self._owed += 1
            if not self._is_at_it:
                with suppress(RuntimeError):  # there can be no more threads: the next change tries again
                    threading.Thread(target=self._make_good, name="member-news-owed", daemon=True).start()
                    self._is_at_it = True

    def _make_good(self) -> None:
        """Have everybody forget all, once Redis takes that: nobody knows any more which ones changed."""
        while True:
            threading.Event().wait(LOOK_S)
            owed = self._owed
            if self._publish(EVERYTHING):
                with self._lock:
                    if self._owed == owed:
                        self._is_at_it = False
                        return

    def listen(self, keeper: Keeper) -> threading.Event:
        """Hear of it on a daemon thread of this process, which must not fork afterwards, until the event is set."""
        enough = threading.Event()
        threading.Thread(target=self._listen, args=(keeper, enough), name="member-news", daemon=True).start()
        return enough

    def _listen(self, keeper: Keeper, enough: threading.Event) -> None:
        while not enough.is_set():
            try:
                self._hear(keeper, enough)
            except (redis.RedisError, OSError):
                enough.wait(LOOK_S)

    def _hear(self, keeper: Keeper, enough: threading.Event) -> None:
        """Raises RedisError or OSError when nobody answers any more.

        Redis answers a PING behind all that was published before it: then nothing is missing until it was asked,
        however long the answer lay with us.
        """
        client = redis.Redis.from_url(self._url, socket_timeout=SILENCE_S, socket_connect_timeout=SILENCE_S)
        with client, client.pubsub() as subscription:  # type: ignore[no-untyped-call]
            asked_s = self._clock.monotonic_s()
            is_open = True  # a question: subscribing is the first
            subscription.subscribe(CHANNEL)
            while not enough.is_set():
                message = subscription.get_message(timeout=LOOK_S)
                kind = message["type"] if message else ""
                if kind == "subscribe":  # also after redis-py connected anew by itself
                    keeper.forget_all()
                elif message and kind == "message":
                    news = message["data"]
                    keeper.forget(UUID(bytes=news)) if len(news) == ID_BYTES else keeper.forget_all()
                if kind in ("subscribe", "pong"):
                    keeper.heard(asked_s)
                    is_open = False
                now_s = self._clock.monotonic_s()
                if is_open and now_s - asked_s > SILENCE_S:
                    raise redis.TimeoutError("no answer")
                if not is_open and now_s - asked_s > LOOK_S:
                    asked_s, is_open = now_s, True
                    subscription.ping()
