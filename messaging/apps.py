from __future__ import annotations

from django.apps import AppConfig


class MessagingConfig(AppConfig):
    """The product's tables: channel accounts in the default database, the ORM message store in its own."""

    name = "messaging"
    verbose_name = "Messaging"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from core import health  # noqa: PLC0415 - once apps are loaded
        from files import services as files  # noqa: PLC0415
        from messaging import checks, wiring  # noqa: F401, PLC0415 - checks register themselves

        for name, check in wiring.checks().items():
            health.register(name, check, optional=name in wiring.OPTIONAL)
        files.set_membership_check(wiring.is_member)
        files.set_conversation_check(wiring.check_conversation)
