"""The accounts app."""

from __future__ import annotations

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = "Accounts"

    def ready(self) -> None:
        from accounts import schema  # noqa: F401, PLC0415 - registers itself, once apps are loaded
        from accounts.checks import database_answers  # noqa: PLC0415
        from core import health  # noqa: PLC0415

        health.register("accounts", database_answers)
