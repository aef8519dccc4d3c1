"""Which database a table lives in: the message store's own, everything else in ``default``."""

from __future__ import annotations

from typing import Final

from django.db import connections
from django.db.models import Model

STORE_ALIAS: Final = "messages"
STORE_MODELS: Final = frozenset(
    {
        "conversation",
        "membership",
        "message",
        "messagestatus",
        "statustransition",
        "externalid",
        "contactthread",
        "idempotencykey",
        "deliveryclaim",
        "parkedscope",
        "parkedrecord",
    }
)


def is_store_model(app_label: str, model_name: str | None) -> bool:
    return app_label == "messaging" and (model_name or "").lower() in STORE_MODELS


def one_database() -> bool:
    """Do both aliases name the same database?

    Then whichever alias is migrated first must create every table: its migrations are recorded as applied, so that
    the other alias would never get to create the rest.
    """
    return _identity("default") == _identity(STORE_ALIAS)


def _identity(alias: str) -> tuple[object, ...]:
    config = connections.settings[alias]
    return tuple(str(config.get(name) or "") for name in ("ENGINE", "HOST", "PORT", "NAME"))


class MessagesRouter:
    """Sends the store's models to ``messages``. No relation crosses: store rows name users and workspaces by value."""

    def db_for_read(self, model: type[Model], **_hints: object) -> str | None:
        return STORE_ALIAS if is_store_model(model._meta.app_label, model._meta.model_name) else None

    def db_for_write(self, model: type[Model], **_hints: object) -> str | None:
        return self.db_for_read(model)

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **_hints: object) -> bool:
        if one_database():
            return True
        return is_store_model(app_label, model_name) == (db == STORE_ALIAS)
