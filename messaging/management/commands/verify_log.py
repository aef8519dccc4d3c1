"""Walk a time range of the log and the store side by side."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from core.clock import SYSTEM_CLOCK
from core.commands import LeanCommand
from core.errors import Unavailable
from messaging import wiring
from messaging.management.arguments import TIMES, Stop, Stopped, moment_ms, stop_on_signals
from messaging.services import reconcile
from messaging.services.reconcile import Counts, Places, Span

GRACE_S = 60.0
PROGRESS_EVERY = 10_000  # records and rows


class Command(LeanCommand):
    help = (
        "Report each message on the log that is not stored, is stored otherwise, or is not sent on to an external "
        "recipient, each status that was not applied, and, in the conversations met, each message that is stored and "
        "was never on the log. What is a dead letter is no fault, and what the bridges have not committed is on its "
        "way. What is stored otherwise, or without a record, stays as it is: messages never change, and which of both "
        "is right is for a person to tell. Exit code 1 when something differs and was not repaired, or when --limit "
        "ended it before the end; 2 when a part is away."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--since", type=moment_ms, required=True, metavar="TIME", help=f"appended since. {TIMES}")
        parser.add_argument("--until", type=moment_ms, default=1 << 53, metavar="TIME", help="appended before")
        parser.add_argument("--topic", choices=reconcile.TOPICS, help="only this one (default: both)")
        parser.add_argument("--grace", type=float, default=GRACE_S, metavar="SECONDS", help="leave out what is younger")
        parser.add_argument(
            "--limit", type=_positive, default=100, help="stop after so many differences (default: 100)"
        )
        parser.add_argument("--repair", action="store_true", help="append again what is not stored, sent on or applied")

    def handle(self, *_: Any, **options: Any) -> None:
        counts = Counts()
        try:
            with stop_on_signals() as stop:
                left, is_all = self._walk(options, counts, stop)
        except Stopped:
            self._tell(counts)
            raise CommandError("stopped before the end", returncode=2) from None
        except (Unavailable, OperationalError, InterfaceError) as error:
            why = error.detail if isinstance(error, Unavailable) else "the message store does not answer"
            raise CommandError(f"{why}; {counts.records} records were compared, run it again", returncode=2) from error
        self._tell(counts)
        if not is_all:
            raise CommandError(f"stopped after {counts.faults.total()} differences: --limit", returncode=1)
        if left:
            raise CommandError(f"{left} differences", returncode=1)

    def _walk(self, options: dict[str, Any], counts: Counts, stop: Stop) -> tuple[int, bool]:
        """How many differences are left, and whether all was looked at."""
        until_ms = min(options["until"], SYSTEM_CLOCK.now_ms() - int(options["grace"] * 1000))
        span = Span(options["since"], until_ms)
        places = Places(wiring.event_log(), wiring.message_store(), wiring.GROUP)
        wanted = [options["topic"]] if options["topic"] else reconcile.TOPICS
        left, told_at = 0, 0
        for topic in (each for each in wiring.all_topics() if each.name in wanted):
            for differences in reconcile.compare(topic, span, places, counts):
                stop.check()
                for each in differences:
                    self.stdout.write(str(each))
                left += len(reconcile.repair(differences, places.log) if options["repair"] else differences)
                if counts.records + counts.rows >= told_at + PROGRESS_EVERY:
                    told_at = counts.records + counts.rows
                    self._tell(counts)
                if counts.faults.total() >= options["limit"]:
                    return left, False
        return left, True

    def _tell(self, counts: Counts) -> None:
        faults = [f"{count} {fault.value}" for fault, count in sorted(counts.faults.items())]
        self.stdout.write(
            f"{counts.records} records and {counts.rows} rows compared: {', '.join(faults) or 'nothing differs'} "
            f"({counts.pending} on their way, {counts.sending} being sent, {counts.dead} dead letters, "
            f"{counts.waiting} statuses wait for their message)"
        )


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ArgumentTypeError("at least 1")
    return int(text)
