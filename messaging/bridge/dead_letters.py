"""Where records go that can't be processed."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Final

from core.clock import Clock
from core.errors import Unavailable
from core.rest import Rest
from messaging import metrics, tracing
from messaging.ports import EventLog, NewRecord
from messaging.topics import MAX_RECORD_BYTES, dead_letters
from messaging.work import EXPIRED, Work

logger = logging.getLogger(__name__)

KEPT_BYTES: Final = 8 * 1024  # of a key and headers; ours have some hundred
KEPT_OF_KEY_CHARS: Final = 255
AWAY_S: Final = 10.0
"""After a dead letter that could not be written: to find that out takes 5 s, and who buries has more to do."""


class DeadLetters:
    """Writes records that can't be processed to `<topic>-dead-letters`, at a bounded rate.

    A broken release or dependency must not drain a topic into its dead letters: over the rate records wait. What is
    too old to be sent is no sign of that, and must not hold up what is not.
    """

    def __init__(self, log: EventLog, *, per_minute: int, clock: Clock) -> None:
        self._log = log
        self._per_minute = per_minute
        self._clock = clock
        self._written: dict[str, deque[float]] = {}
        self._told_s: dict[str, float] = {}  # when it was logged that a topic waits
        self._rests: dict[str, Rest] = {}  # by topic
        self._lock = threading.Lock()

    def bury(self, work: Work, reason: str) -> bool:
        """True once the dead letter is durable. One after the other: parked sends end in several threads."""
        with self._lock:
            return self._bury(work, reason)

    def _bury(self, work: Work, reason: str) -> bool:
        topic, now_s = work.record.source.topic, self._clock.monotonic_s()
        rest = self._rests.setdefault(topic, Rest(AWAY_S, self._clock))
        if rest.is_on:
            return False
        written = self._written.setdefault(topic, deque())
        while written and written[0] < now_s - 60:
            written.popleft()
        if reason != EXPIRED and len(written) >= self._per_minute:
            self._tell_that_it_waits(topic, now_s)
            return False
        try:
            self._log.append([dead_letter(work, reason, now_ms=self._clock.now_ms())], onward=True)
        except Unavailable:
            rest.begin()
            return False
        if reason != EXPIRED:
            written.append(now_s)
        metrics.DEAD_LETTERS.labels(topic).inc()
        source, offset = work.record.source, work.record.offset
        with tracing.about(work.record):
            logger.error(
                "dead letter",
                extra={"topic": topic, "partition": source.partition, "offset": offset, "reason": reason},
            )
        return True

    def _tell_that_it_waits(self, topic: str, now_s: float) -> None:
        """Once a minute: each record that waits asks again and again."""
        if now_s - self._told_s.get(topic, -60.0) >= 60:
            self._told_s[topic] = now_s
            logger.error("too many dead letters: the topic waits", extra={"topic": topic})


def dead_letter(work: Work, reason: str, *, now_ms: int) -> NewRecord:
    """The record as it was, with where it came from and why it is here in its headers.

    What another producer wrote may be larger than the log takes from us: it is cut then, and ``dl-cut`` tells how long
    its value was. The whole of it lies where it came from.
    """
    record = work.record
    beside = (record.key, *record.headers, *record.headers.values())
    keeps = sum(len(each.encode()) for each in beside) <= KEPT_BYTES
    was_cut = {} if keeps and len(record.value) <= MAX_RECORD_BYTES else {"dl-cut": str(len(record.value))}
    return NewRecord(
        dead_letters(record.source.topic),
        record.key if keeps else record.key[:KEPT_OF_KEY_CHARS],
        record.value[:MAX_RECORD_BYTES],
        {
            **(record.headers if keeps else tracing.onward(record)),
            **was_cut,
            "dl-topic": record.source.topic,
            "dl-partition": str(record.source.partition),
            "dl-offset": str(record.offset),
            "dl-error": reason,
            "dl-attempts": str(work.attempts + work.crashes),
            "dl-first-ms": str(work.first_failed_ms or record.appended_at_ms),
            "dl-last-ms": str(now_ms),
        },
    )
