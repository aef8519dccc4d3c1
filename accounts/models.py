"""Workspaces (tenants), their users, and the sessions behind refresh tokens."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar, Final

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import IntegrityError, models, transaction
from django.db.models.functions import Lower

from accounts import audit
from accounts.audit import AuditEvent as AuditEvent  # noqa: PLC0414 - it is one of this app's models
from core import ids

DEFAULT_WORKSPACE_ID: Final = uuid.UUID("0192f0c1-a000-7000-8000-000000000001")
DEFAULT_WORKSPACE_SLUG: Final = "default"
USERNAME_PATTERN: Final = r"\A[A-Za-z0-9._-]{3,64}\Z"
MAX_USERNAME_CHARS: Final = 64
MAX_DISPLAY_NAME_CHARS: Final = 128
MAX_SLUG_CHARS: Final = 64


class Workspace(models.Model):
    """A tenant: everything that a customer owns carries one. A fresh install has `default`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.SlugField(max_length=MAX_SLUG_CHARS, unique=True)
    name = models.CharField(max_length=128)
    open_registration = models.BooleanField(default=False, help_text="Anyone may register a user through the API.")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.slug


def split_login(login: str) -> tuple[str, str]:
    """``acme/bob`` is bob of acme; a name without a slash is of the default workspace."""
    slug, slash, username = login.rpartition("/")
    return (slug if slash else DEFAULT_WORKSPACE_SLUG), username


class UserManager(BaseUserManager["User"]):
    def named(self, *, workspace: str, username: str) -> User | None:
        """The user of that name, whatever its case, in the workspace with that slug."""
        return (
            self.select_related("workspace").filter(workspace__slug=workspace, username__lower=username.lower()).first()
        )

    def get_by_natural_key(self, username: str | None) -> User:
        slug, name = split_login(username or "")
        if user := self.named(workspace=slug, username=name):
            return user
        raise self.model.DoesNotExist(f"no user {username}")

    def create_user(self, username: str, password: str | None = None, **fields: Any) -> User:
        """A user with a hashed password; in the default workspace unless ``workspace`` is given.

        Raises ValidationError for a name that is malformed or taken.
        """
        if "workspace" not in fields:
            fields.setdefault("workspace_id", DEFAULT_WORKSPACE_ID)
        user = self.model(username=username, **fields)
        user.set_password(password)
        user.full_clean(exclude=["password"])
        try:
            with transaction.atomic(using=self.db):
                user.save(using=self.db)
        except IntegrityError as error:  # somebody else took the name since it was checked
            raise ValidationError({"username": ValidationError(NAME_TAKEN, code="username_taken")}) from error
        return user

    def create_superuser(self, username: str, password: str | None = None, **fields: Any) -> User:
        """For commands, Django's `createsuperuser` among them: the audit says that one of them did it."""
        with transaction.atomic(using=self.db):
            user = self.create_user(username, password, is_staff=True, is_superuser=True, **fields)
            audit.record(
                "operator.created", actor=audit.command_actor(), workspace=user.workspace, target=user.public_id
            )
        return user


NAME_TAKEN: Final = "This username is taken."


class User(AbstractBaseUser, PermissionsMixin):
    """Somebody who signs in. The API knows a user by ``public_id`` only; names are unique within a workspace."""

    id = models.BigAutoField(primary_key=True)
    public_id = models.CharField(max_length=64, unique=True, default=ids.user_id, editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="users")
    username = models.CharField(
        max_length=MAX_USERNAME_CHARS,
        validators=[RegexValidator(USERNAME_PATTERN, "3 to 64 of: letters, digits, dot, underscore, hyphen.")],
    )
    display_name = models.CharField(max_length=MAX_DISPLAY_NAME_CHARS, blank=True)
    is_active = models.BooleanField(default=True, help_text="Off: cannot sign in, and tokens stop working within 5 s.")
    is_staff = models.BooleanField("operator", default=False, help_text="May sign in to the admin.")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = UserManager()

    USERNAME_FIELD = "username"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        constraints = (
            models.UniqueConstraint(
                models.F("workspace"),
                Lower("username"),
                name="username_unique_per_workspace",
                violation_error_code="username_taken",
                violation_error_message=NAME_TAKEN,
            ),
        )

    def __str__(self) -> str:
        return self.username


User._meta.get_field("username").register_lookup(Lower)  # username__lower uses the constraint's index


class Session(models.Model):
    """One sign-in: what its current refresh token must say. Each refresh moves ``generation`` on.

    ``auth_hash`` changes with the password, so that a changed password ends the sessions made with the old one.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="sessions")
    auth_hash = models.CharField(max_length=64)
    generation = models.PositiveIntegerField(default=0)
    rotated_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"session {self.id}"
