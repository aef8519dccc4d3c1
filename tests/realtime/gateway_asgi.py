"""The gateway's application with acknowledgements that a test can read: they go to a list in Redis."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import django
import redis
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.realtime.gateway_settings")
django.setup(set_prefix=False)

from accounts.tokens import Principal  # noqa: E402
from core.errors import Unavailable  # noqa: E402
from messaging import wiring  # noqa: E402
from realtime.consumers import MarkedMessage  # noqa: E402
from realtime.routing import application as gateway  # noqa: E402


def acknowledge(principal: Principal, messages: Sequence[MarkedMessage]) -> None:
    with redis.Redis.from_url(settings.BUS_URL) as bus:
        if bus.exists("test:refuse-acknowledgements"):
            bus.incr("test:refused-acknowledgements")
            raise Unavailable("the event log does not answer")
        for message in messages:
            bus.rpush("test:acknowledged", json.dumps([principal.user_id, *message]))


application = gateway(acknowledge, {"bus": wiring.bus_answers})
