"""Where records go that can't be processed."""

from __future__ import annotations

import logging
from collections import deque

from core.clock import Clock
from core.errors import Unavailable
from messaging import metrics
from messaging.ports import EventLog, NewRecord
from messaging.topics import dead_letters
from messaging.work import EXPIRED, Work

logger = logging.getLogger(__name__)


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

    def bury(self, work: Work, reason: str) -> bool:
        """True once the dead letter is durable."""
        topic, now_s = work.record.source.topic, self._clock.monotonic_s()
        written = self._written.setdefault(topic, deque())
        while written and written[0] < now_s - 60:
            written.popleft()
        if reason != EXPIRED and len(written) >= self._per_minute:
            logger.error("too many dead letters: the topic waits", extra={"topic": topic})
            return False
        try:
            self._log.append([dead_letter(work, reason, now_ms=self._clock.now_ms())])
        except Unavailable:
            return False
        if reason != EXPIRED:
            written.append(now_s)
        metrics.DEAD_LETTERS.labels(topic).inc()
        source, offset = work.record.source, work.record.offset
        logger.error(
            "dead letter",
            extra={"topic": topic, "partition": source.partition, "offset": offset, "reason": reason},
        )
        return True


def dead_letter(work: Work, reason: str, *, now_ms: int) -> NewRecord:
    """The record as it was, with where it came from and why it is here in its headers."""
    record = work.record
    return NewRecord(
        dead_letters(record.source.topic),
        record.key,
        record.value,
        {
            **record.headers,
            "dl-topic": record.source.topic,
            "dl-partition": str(record.source.partition),
            "dl-offset": str(record.offset),
            "dl-error": reason,
            "dl-attempts": str(work.attempts + work.crashes),
            "dl-first-ms": str(work.first_failed_ms or record.appended_at_ms),
            "dl-last-ms": str(now_ms),
        },
    )
