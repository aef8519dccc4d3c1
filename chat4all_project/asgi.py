"""Live sockets for an ASGI server: ``manage.py run_gateway``. The API itself is served through wsgi."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
django.setup(set_prefix=False)

from messaging import wiring  # noqa: E402 - models need the set-up above
from realtime.routing import application as gateway  # noqa: E402

wiring.event_log().warm()

application = gateway(wiring.acknowledge, wiring.gateway_checks())
