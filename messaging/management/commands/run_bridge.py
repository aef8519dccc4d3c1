"""Run a bridge: records from the event log to the workers, until SIGTERM."""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import redis
from django.conf import settings
from django.core.management.base import CommandParser

from accounts import services as accounts
from core.clock import SYSTEM_CLOCK
from core.commands import LeanCommand
from core.health import serve_health
from files import services as files
from messaging import dispatch, metrics, sampling, tasks, wiring
from messaging.bridge import Bridge, BridgeLimits
from messaging.dispatch import BusDispatcher
from messaging.services.deliver import RESUME_WITHIN_MS
from messaging.topics import channel_of

logger = logging.getLogger(__name__)

PARKED_EVERY_S = 1.0
MAX_WAITING = 32  # tasks in a channel's queue: then its workers are away or behind, and batches would wait for resumes
RESUMES_AT_ONCE = 4 * tasks.RESUMED_TOGETHER  # conversations
PRUNE_EVERY_S = 3600.0
PRUNES: Final[tuple[Callable[[], int], ...]] = (
    lambda: wiring.message_store().prune(limit=1_000),
    lambda: files.prune_unsent(limit=500),
    lambda: accounts.prune_sessions(limit=1_000),
)
"""What nobody needs any more, so many at a time; each tells how many it deleted. One that fails stops no other."""


class Command(LeanCommand):
    help = "Hand records from the event log to the workers until SIGTERM. Several bridges share the partitions."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--topics", nargs="+", metavar="TOPIC", help="only these (default: all)")
        parser.add_argument("--member", default="", help="a stable name in the group (default: host and process id)")
        parser.add_argument("--health-port", type=int, default=0, help="serve /health, /ready and /metrics there")

    def handle(self, *_: Any, **options: Any) -> None:
        topics = tuple(options["topics"] or wiring.work_topics())
        member = options["member"] or f"{socket.gethostname()}-{os.getpid()}"
        bridge = Bridge(
            wiring.event_log(),
            BusDispatcher(settings.BUS_URL, bridge=member, task=tasks.batch_task, queue_of=wiring.queue_of),
            topics=topics,
            group=wiring.GROUP,
            member=member,
            limits=BridgeLimits(lanes=settings.LANES, gather_s=settings.GATHER_MS / 1000),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: bridge.stop())
        if options["health_port"]:
            checks = {**wiring.checks(), "bridge": bridge.check}
            serve_health(options["health_port"], checks, optional=wiring.OPTIONAL)
        bus = dispatch.bus(settings.BUS_URL)
        sampling.every(PARKED_EVERY_S, lambda: resume_parked(topics, bus))
        for prune in PRUNES:
            sampling.every(PRUNE_EVERY_S, functools.partial(until_none_is_left, prune))
        metrics.start_at_zero(topics, ())
        sampling.watch_lag(topics)
        sampling.watch_breakers()
        bridge.run()


def resume_parked(topics: tuple[str, ...], bus: redis.Redis) -> None:
    """Have workers try again what is due; a queue that nobody empties is not filled for ever."""
    store = wiring.message_store()
    for topic in topics:
        if channel_of(topic) is None:
            continue
        room = MAX_WAITING - dispatch.queue_length(bus, wiring.queue_of(topic))
        if room <= 0:
            continue
        now_ms = SYSTEM_CLOCK.now_ms()
        again_at_ms = now_ms + RESUME_WITHIN_MS
        most = min(room * tasks.RESUMED_TOGETHER, RESUMES_AT_ONCE)
        # Taken, they are nobody's for a while: bridges hand out each once, and the next round goes on behind them.
        due = store.take_due_scopes(topic=topic, now_ms=now_ms, again_at_ms=again_at_ms, limit=most)
        for start in range(0, len(due), tasks.RESUMED_TOGETHER):
            tasks.send_resume(due[start : start + tasks.RESUMED_TOGETHER], again_at_ms)


def until_none_is_left(prune: Callable[[], int]) -> None:
    while prune():
        pass
