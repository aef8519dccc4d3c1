"""Gauges of what is nobody's own (lags, breakers), measured again and again on a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection

from django.db import close_old_connections

from connectors.breaker import BreakerState
from core.errors import Unavailable
from core.forks import unforked
from messaging import metrics, wiring
from messaging.breakers import key_of
from messaging.models import ChannelAccount
from messaging.ports import TopicPartition

logger = logging.getLogger(__name__)

LAG_EVERY_S = 5.0
BREAKERS_EVERY_S = 5.0
_SHOWN = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def every(seconds: float, work: Callable[[], object], *, at_once: bool = False) -> None:
    """Run ``work`` again and again on a daemon thread; a part that is away is told in the log and tried again."""

    def loop() -> None:
        pause = threading.Event()
        if at_once:
            attempt(work)
        while not pause.wait(seconds):
            attempt(work)

    threading.Thread(target=loop, daemon=True, name="timer").start()


def attempt(work: Callable[[], object]) -> None:
    """Run it once, and give its database connections back: one that broke would fail whatever comes later."""
    try:
        with unforked():
            try:
                work()
            finally:
                close_old_connections()
    except Unavailable as error:
        logger.warning("timer waits", extra={"error": error.detail})
    except Exception:
        logger.exception("timer failed")


def watch_lag(topics: Collection[str]) -> None:
    """Keep the lag of these measured. Several processes may: what they show is the same, so take the maximum."""
    every(LAG_EVERY_S, lambda: measure_lag(topics), at_once=True)


def watch_breakers() -> None:
    every(BREAKERS_EVERY_S, measure_breakers, at_once=True)


def measure_lag(topics: Collection[str]) -> None:
    """Of each partition, whoever owns it, or nobody. Raises Unavailable: then the last numbers vanish after a while."""
    log, lags = wiring.event_log(), dict[tuple[str, ...], float]()
    for topic in wiring.all_topics():
        if topic.name not in topics:
            continue
        for partition in range(topic.partitions):
            source = TopicPartition(topic.name, partition)
            lag = log.end_offset(source) - log.committed(wiring.GROUP, source)
            lags[topic.name, str(partition)] = float(max(0, lag))
    metrics.CONSUMER_LAG.set_all(lags)


def measure_breakers() -> None:
    """Of each channel account; one that nothing was sent through is closed. Without Redis nothing is known."""
    states = wiring.breakers().shared_states()
    if states is None:
        return
    accounts = ChannelAccount.objects.filter(is_active=True).values_list("channel", "account_id")
    metrics.BREAKER_STATE.set_all(
        {
            (channel, account): _SHOWN[states.get(key_of(channel, account), BreakerState.CLOSED)]
            for channel, account in accounts
        }
    )


def of_queues(queues: Collection[str]) -> tuple[str, ...]:
    """The topics whose work waits in these Celery queues."""
    return tuple(topic for topic in wiring.work_topics() if wiring.queue_of(topic) in queues)
