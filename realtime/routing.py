"""The gateway's application, with what it takes from the product handed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from channels.routing import ProtocolTypeRouter

from core.health import Check
from realtime.consumers import Acknowledge, ProcessHistory, UserSocket
from realtime.http import HealthApp


def application(acknowledge: Acknowledge, checks: Mapping[str, Check]) -> Any:
    """An ASGI application. ``acknowledge`` is told what the first device of a user confirmed, at least once each;
    ``checks`` are what its /ready answers.

    No check of the Origin header: a socket is opened by a token that a page has to hold, never by a cookie that a
    browser would send along for a stranger's page.
    """
    history = ProcessHistory()
    return ProtocolTypeRouter(
        {
            "http": HealthApp(checks),
            "websocket": UserSocket.as_asgi(acknowledge=acknowledge, history=history),
        }
    )
