"""Create the Cassandra keyspace and its tables."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser

from core.commands import LeanCommand


class Command(LeanCommand):
    help = (
        "Wait for Cassandra, create the keyspace that MESSAGE_STORE_URL names and bring its tables to the newest "
        "schema. May be run again, and by several at once. What differs from --replication is reported, never changed; "
        "tables that are gone are an error: they are restored, not made again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--replication",
            default="SimpleStrategy:1",
            help="SimpleStrategy:1 (one node) or dc1:3,dc2:3 (default: %(default)s)",
        )
        parser.add_argument("--dry-run", action="store_true", help="only print the CQL that is missing")
        parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the server (default: 60)")

    def handle(self, *_: Any, **options: Any) -> None:
        if not settings.MESSAGE_STORE_URL.startswith(("cassandra:", "cassandra+ssl:")):
            self.stdout.write("MESSAGE_STORE_URL names no Cassandra: nothing to do")
            return
        from messaging.stores.cassandra import setup  # noqa: PLC0415 - its driver is not in the local profile
        from messaging.stores.cassandra.address import Address  # noqa: PLC0415
        from messaging.stores.cassandra.replication import Replication  # noqa: PLC0415

        try:
            replication = Replication.parse(options["replication"])
            address = Address.parse(settings.MESSAGE_STORE_URL)
            run = setup.SetUp(address, say=self._say, timeout_s=options["timeout"])
            if options["dry_run"]:
                steps = run.plan(replication)
                self._say("\n".join(steps) if steps else "nothing to do")
                return
            drift = run.run(replication)
        except (setup.SetUpFailed, ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from error
        for each in drift:
            self.stderr.write(f"drift: {each}")
        self._say(f"keyspace {address.keyspace} is ready")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()
