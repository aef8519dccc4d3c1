"""The accounts app."""

from __future__ import annotations

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = "Accounts"

    def ready(self) -> None:
        from accounts.checks import database_answers  # noqa: PLC0415
        from core import health  # noqa: PLC0415

        health.register("accounts", database_answers)
