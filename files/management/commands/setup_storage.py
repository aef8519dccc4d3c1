"""Bring the file storage to what the system needs."""

from __future__ import annotations

import threading
import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from core.commands import LeanCommand
from files import services
from files.errors import StorageRefused, StorageUnavailable

PAUSE_S = 1.0


class Command(LeanCommand):
    help = (
        "Create the bucket of FILES_URL, have broken uploads aborted after a day, allow direct requests from browsers "
        "(CORS), and try it out; or make the folder. May be repeated: what is there stays."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--cors-origin", action="append", metavar="URL", help="may talk to the bucket (default: FILES_CORS_ORIGINS)"
        )
        parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for it (default %(default)s)")
        parser.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")

    def handle(self, *_args: Any, **options: Any) -> None:
        deadline_s = time.monotonic() + options["timeout"]
        while True:
            try:
                self._set_up(options)
            except StorageRefused as error:
                raise CommandError(error.detail) from error
            except StorageUnavailable as error:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise CommandError(f"{error.detail} Given up after {options['timeout']:g} s.") from error
                self.stderr.write(f"waiting, {left_s:.0f} s left: {error.detail}")
                threading.Event().wait(min(PAUSE_S, left_s))
            else:
                return

    def _set_up(self, options: dict[str, Any]) -> None:
        origins = options["cors_origin"] or settings.FILES_CORS_ORIGINS
        for line in services.storage().set_up(cors_origins=origins, dry_run=options["dry_run"]):
            self.stdout.write(line)
