"""Create the topics that are missing."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from core.errors import Chat4AllError
from messaging import wiring


class Command(BaseCommand):
    help = "Create every topic that the system needs in the event log; existing ones stay as they are."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only list them")

    def handle(self, *_: Any, **options: Any) -> None:
        topics = wiring.all_topics()
        if not options["dry_run"]:
            try:
                wiring.event_log().ensure_topics(topics)
            except Chat4AllError as error:
                raise CommandError(f"{error.detail}. Check EVENT_LOG_URL and its server.") from error
        for topic in topics:
            self.stdout.write(f"{topic.name}: {topic.partitions} partitions, kept {topic.retention.days} days")
