"""Delete files that nobody sent."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from core.commands import LeanCommand
from files import services
from files.errors import StorageUnavailable


class Command(LeanCommand):
    help = (
        "Delete files that no message carried within a day of their upload, and what broken uploads left in this "
        "machine's UPLOAD_TEMP_DIR and in the folder of files. Bridges do this every hour; it may be stopped at any "
        "moment."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--batch", type=int, default=500, help="files deleted at a time (default: 500)")

    def handle(self, *_args: Any, **options: Any) -> None:
        if options["batch"] < 1:
            raise CommandError("--batch must be at least 1")
        deleted = 0
        try:
            while round_ := services.prune_unsent(options["batch"]):
                deleted += round_
        except StorageUnavailable as error:
            raise CommandError(f"{error.detail}; {deleted} files are deleted already, run it again") from error
        self.stdout.write(f"deleted {deleted} files")
