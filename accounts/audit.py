"""What was done to accounts and settings, by whom: rows that are only ever added. See docs/admin.md."""

from __future__ import annotations

import getpass
import ipaddress
import logging
import os
from typing import Any, NoReturn

from django.db import models, transaction

logger = logging.getLogger(__name__)


class AppendOnly(TypeError):
    """Somebody wrote code that changes or deletes what was written down."""

    def __init__(self) -> None:
        super().__init__("the audit is only ever added to")


class _Events(models.QuerySet["AuditEvent"]):
    def update(self, **_: Any) -> NoReturn:
        raise AppendOnly

    def delete(self) -> NoReturn:
        raise AppendOnly


class AuditEvent(models.Model):
    """All by value: an event outlives what it names. Never values of fields, credentials, passwords or messages."""

    at = models.DateTimeField(auto_now_add=True, db_index=True)
    action = models.CharField(max_length=64)
    actor = models.CharField(max_length=128, blank=True, help_text="A public id, or manage.py; empty: nobody knows.")
    workspace = models.CharField(max_length=64, blank=True)
    target = models.CharField(max_length=255, blank=True)
    details = models.TextField(blank=True)
    address = models.CharField(max_length=64, blank=True, help_text="The /24 or /48 around it.")

    objects = _Events.as_manager()

    class Meta:
        ordering = ("-id",)
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.action} {self.target}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnly
        super().save(*args, **kwargs)

    def delete(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise AppendOnly


def record(
    action: str, *, actor: str, workspace: object = "", target: object = "", details: str = "", address: str = ""
) -> None:
    """Write an event in the transaction that the caller is in, and its log line once that is committed."""
    said = {
        "action": action,
        "actor": actor,
        "workspace": str(workspace),
        "target": str(target),
        "details": details,
        "address": _around(address),
    }
    event = AuditEvent.objects.create(**said)
    transaction.on_commit(lambda: logger.info("audit", extra={"event": event.pk, **said}))


def command_actor() -> str:
    """Who runs a command, as far as the machine tells."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        name = str(os.getuid())
    return f"manage.py ({name[:64]})"


def _around(address: str) -> str:
    """The /24 or /48 around an address, or around a client's /64: a place, hardly a person."""
    try:
        here = ipaddress.ip_interface(address).ip
    except ValueError:
        return ""
    return str(ipaddress.ip_network((here, 24 if here.version == 4 else 48), strict=False))
