"""Delete what the message store needs no more."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from core.commands import LeanCommand
from messaging import wiring
from messaging.errors import StoreUnavailable


class Command(LeanCommand):
    help = (
        "Delete idempotency keys older than 24 h and delivery claims older than 14 days (twice as long as a record "
        "stays on the log), a bounded number at a time. Bridges do this every hour; it may be stopped at any moment."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--batch", type=int, default=1000, help="rows deleted at a time (default: 1000)")

    def handle(self, *_args: Any, **options: Any) -> None:
        if options["batch"] < 1:
            raise CommandError("--batch must be at least 1")
        deleted = 0
        try:
            while round_ := wiring.message_store().prune(limit=options["batch"]):
                deleted += round_
        except StoreUnavailable as error:
            raise CommandError(f"{error.detail}; {deleted} rows are deleted already, run it again") from error
        self.stdout.write(f"deleted {deleted} rows")
