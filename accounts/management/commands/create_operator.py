"""Make sure that an operator can sign in to the admin, with a generated password kept in a private file."""

from __future__ import annotations

import json
import os
import secrets
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from accounts import audit
from accounts.models import DEFAULT_WORKSPACE_SLUG, User
from core.commands import LeanCommand


class Command(LeanCommand):
    help = (
        "Create the operator unless it exists, with a generated password kept in a private file. "
        "May be run again: what was changed in the admin since stays, and only a lost file has a new password made."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--file", type=Path, required=True, help="JSON with username and password, mode 0600")
        parser.add_argument("--username", default="operator", help="only for the first time (default: operator)")

    def handle(self, *_args: Any, **options: Any) -> None:
        path: Path = options["file"]
        kept = _read(path) if path.exists() else None
        username = kept[0] if kept else options["username"]
        user = User.objects.named(workspace=DEFAULT_WORKSPACE_SLUG, username=username)
        if user and kept and user.is_staff and not user.is_active:
            self.stdout.write(
                f"{user} is deactivated and stays so; remove {path} and choose another --username for more"
            )
            return
        if user and not (user.is_staff and user.is_active):
            state = "no operator: " if user.is_active else "deactivated: activate them in the admin, or "
            file = f"remove {path} and " if kept else ""
            raise CommandError(f"{user} is {state}{file}choose another --username. Nothing was changed.")
        username, password = kept or _write(path, username)
        if user is None:
            User.objects.create_superuser(username, password)
            self.stdout.write(f"created {username}; the password is in {path}")
        elif not kept:
            try:
                _replace_password(user, password)
            except BaseException:
                path.unlink()  # it would be taken for the one of a password that was changed since
                raise
            self.stdout.write(f"{username} got a new password; it is in {path}")
        elif not user.check_password(password):
            self.stdout.write(f"{username} has another password than {path} by now, and keeps it")


def _replace_password(user: User, password: str) -> None:
    user.set_password(password)
    with transaction.atomic():
        user.save(update_fields=["password"])
        audit.record(
            "operator.password_replaced",
            actor=audit.command_actor(),
            workspace=user.workspace,
            target=user.public_id,
        )


def _write(path: Path, username: str) -> tuple[str, str]:
    password = secrets.token_urlsafe(18)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        json.dump({"username": username, "password": password}, file)
    return username, password


def _read(path: Path) -> tuple[str, str]:
    try:
        content = json.loads(path.read_text())
        return str(content["username"]), str(content["password"])
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"{path} holds no username and password; remove it to have new ones made") from None
