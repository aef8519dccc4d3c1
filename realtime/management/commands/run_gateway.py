"""Serve live sockets: ``manage.py run_gateway --port 8085``."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from channels.routing import get_default_application
from django.conf import settings
from django.core.management.base import CommandError

from core.commands import LeanCommand
from realtime.consumers import Limits


class Command(LeanCommand):
    help = "Serve live sockets, and /health, /ready and /metrics on the same port. Stops cleanly on SIGTERM."

    def add_arguments(self, parser: ArgumentParser) -> None:
        limits = Limits()
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
        parser.add_argument("--port", type=int, default=8085, help="port to listen on (default %(default)s)")
        parser.add_argument("--health-port", type=int, help="one more port, for /health, /ready and /metrics")
        parser.add_argument(
            "--check-s",
            type=float,
            default=limits.check_s,
            help="how often each socket looks for lost frames and a deactivated user (default %(default)s)",
        )
        parser.add_argument(
            "--expiry-notice-s",
            type=float,
            default=limits.expiry_notice_s,
            help="how long before its token expires a client is told (default %(default)s)",
        )

    def handle(self, *, host: str, port: int, health_port: int | None, **options: Any) -> None:
        # here, because it installs Twisted's reactor, which other commands have no use for
        from realtime.gateway import Gateway, Listener  # noqa: PLC0415

        listeners = [Listener(host, port)]
        if health_port is not None:
            listeners.append(Listener(settings.HEALTH_HOST, health_port))
        limits = Limits(check_s=options["check_s"], expiry_notice_s=options["expiry_notice_s"])
        self.stdout.write(f"gateway on ws://{host}:{port}/")
        try:
            Gateway(get_default_application(), listeners, limits, health_port).run()
        except OSError as error:
            raise CommandError(f"the gateway cannot listen: {error}. Choose another with --port.") from error
        self.stdout.write("gateway stopped")
