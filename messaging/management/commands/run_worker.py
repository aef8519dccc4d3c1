"""Work on one queue's batches, until SIGTERM."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import CommandParser

from core.commands import LeanCommand
from messaging import tasks, wiring


class Command(LeanCommand):
    help = (
        "Work on the batches of a queue until SIGTERM; what is under way ends first. "
        "Answers /health, /ready and /metrics on HEALTH_PORT."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        queues = sorted({wiring.queue_of(topic) for topic in wiring.work_topics()})
        parser.add_argument("queue", choices=queues, help="core, inbound, or the name of a channel")
        parser.add_argument(
            "--processes",
            type=_positive,
            default=1,
            metavar="N",
            help="children that work at once (default %(default)s); one sends to a channel in parallel all the same",
        )
        parser.add_argument("--name", help="in lines of the log, before @ and the host (default: the queue)")

    def handle(self, *_: Any, queue: str, processes: int, name: str | None, **__: Any) -> None:
        sys.exit(tasks.run_worker(queue, name=name or queue, processes=processes))


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} is no number of processes: 1 or more")
    return int(text)
