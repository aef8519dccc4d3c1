"""core as a Django app: it has no models, only what every package stands on."""

from __future__ import annotations

from django.apps import AppConfig


class CoreConfig(AppConfig):
    name = "core"

    def ready(self) -> None:
        from core import schema  # noqa: F401, PLC0415 - registers itself, once apps are loaded
