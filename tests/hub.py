"""The product's composition root over a test's own servers, in this process: what `wiring` opened is closed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.test import override_settings
from pytest_django import Settings

from accounts import directory
from messaging import channels, wiring
from messaging.ports import EventLog


@contextmanager
def hub(settings: Settings, *, log_url: str, bus_url: str, append_timeout_s: float = 5.0) -> Iterator[None]:
    """`wiring` with these servers, their topics created; caches are empty before and after."""
    settings.EVENT_LOG_URL, settings.BUS_URL = log_url, bus_url
    settings.APPEND_TIMEOUT_S = append_timeout_s
    forget()
    wiring.event_log().ensure_topics(wiring.all_topics())
    yield
    wiring.event_log().close()
    wiring.breakers().close()
    forget()


def log_at(url: str) -> EventLog:
    """The log of another process, as `wiring` would open it."""
    with override_settings(EVENT_LOG_URL=url):
        return wiring.event_log.__wrapped__()


def forget() -> None:
    """Everything that this process opened or remembers."""
    for each in vars(wiring).values():
        if hasattr(each, "cache_clear"):
            each.cache_clear()
    channels.forget()
    directory.cache.clear()
