"""Registering, signing in, ending sessions, and forgetting those that are over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.contrib.auth import SESSION_KEY
from django.contrib.auth.hashers import make_password
from django.contrib.auth.password_validation import validate_password
from django.contrib.sessions.models import Session as AdminSession
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.utils import timezone

from accounts import audit, guard
from accounts.errors import InvalidCredentials, RegistrationClosed, UsernameTaken
from accounts.guard import Limit
from accounts.models import Session, User, Workspace
from core.errors import FieldError, InvalidRequest

_DECOY_PASSWORD: Final = "what-is-hashed-does-not-matter"  # noqa: S105 - no password of anybody


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    username: str
    password: str = field(repr=False)
    display_name: str
    workspace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    username: str
    password: str = field(repr=False)
    workspace: str


def register(wanted: Registration, *, address: str) -> User:
    """A new user. Raises TooManyAttempts, RegistrationClosed, UsernameTaken, or InvalidRequest for a weak password."""
    with guard.guard().attempt(guard.registration_limits(address=address)):
        return _registered(wanted)


def _registered(wanted: Registration) -> User:
    workspace = Workspace.objects.filter(slug=wanted.workspace, open_registration=True).first()
    if workspace is None:
        raise RegistrationClosed
    if User.objects.named(workspace=workspace.slug, username=wanted.username):
        raise UsernameTaken
    _check_strength(wanted)
    try:
        return User.objects.create_user(
            wanted.username, wanted.password, workspace=workspace, display_name=wanted.display_name
        )
    except ValidationError as error:
        raise _explained(error) from error


def _check_strength(wanted: Registration) -> None:
    try:
        validate_password(wanted.password, User(username=wanted.username))
    except ValidationError as error:
        faults = [FieldError("password", each.code or "invalid", each.messages[0]) for each in error.error_list]
        raise InvalidRequest(faults[0].message, fields=faults) from None


def _explained(error: ValidationError) -> UsernameTaken | InvalidRequest:
    if any(each.code == "username_taken" for faults in error.error_dict.values() for each in faults):
        return UsernameTaken()
    faults = [
        FieldError(name, each.code or "invalid", each.messages[0])
        for name, inner in error.error_dict.items()
        for each in inner
    ]
    return InvalidRequest(faults[0].message, fields=faults)


def sign_in(given: Credentials, *, address: str, door: str) -> User:
    """The user with these credentials. Raises InvalidCredentials or TooManyAttempts.

    Takes one argon2id run whether or not the user exists, so that time does not tell who has an account.
    """
    limits = guard.sign_in_limits(workspace=given.workspace, username=given.username, address=address)
    with guard.guard().attempt(limits) as attempt:
        user = User.objects.named(workspace=given.workspace, username=given.username)
        if user is None:
            make_password(_DECOY_PASSWORD)
        attempt.counts = user is None or not user.check_password(given.password) or not user.is_active
    if user is None or attempt.counts:
        if attempt.used_up:
            _write_down_lock(user, attempt.used_up, address=address, door=door)
        raise InvalidCredentials
    if user.is_staff:
        audit.record(
            "operator.signed_in",
            actor=user.public_id,
            workspace=user.workspace,
            target=user.public_id,
            details=door,
            address=address,
        )
    return user


def end_sessions(users: Collection[User], *, besides: str | None = None) -> int:
    """How many sessions of these users ended, at the API and at the admin but for the one with the key ``besides``.

    Access tokens work until they end.
    """
    ended = sum(user.sessions.all().delete()[0] for user in users)
    ids = {str(user.pk) for user in users}
    for session in AdminSession.objects.exclude(pk=besides or ""):  # few: of operators, who are named inside
        if session.get_decoded().get(SESSION_KEY) in ids:
            ended += session.delete()[0]
    return ended


def _write_down_lock(user: User | None, used_up: Sequence[Limit], *, address: str, door: str) -> None:
    """Without the name when nobody has it: people type passwords there."""
    audit.record(
        "sign_in.locked",
        actor="",
        workspace=user.workspace if user else "",
        target=user.public_id if user else "",
        details=f"{door}: {' and '.join(limit.whom for limit in used_up)}",
        address=address,
    )


def prune_sessions(limit: int) -> int:
    """Delete up to ``limit`` sessions of the API and as many of the admin that have expired; how many."""
    now = timezone.now()
    return _delete_some(Session.objects.filter(expires_at__lte=now), "expires_at", limit) + _delete_some(
        AdminSession.objects.filter(expire_date__lte=now), "expire_date", limit
    )


def _delete_some(expired: QuerySet[Any], order: str, limit: int) -> int:
    """One that was renewed since it was looked up stays."""
    oldest = list(expired.order_by(order).values_list("pk", flat=True)[:limit])
    deleted, _ = expired.filter(pk__in=oldest).delete()
    return deleted
