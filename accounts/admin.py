"""Users, groups, workspaces and the audit for operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

from django.contrib import admin, messages
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import AdminPasswordChangeForm, AdminUserCreationForm
from django.contrib.auth.forms import UserChangeForm as DjangoUserChangeForm
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse

from accounts import audit, services
from accounts.models import (
    DEFAULT_WORKSPACE_ID,
    MAX_SLUG_CHARS,
    MAX_USERNAME_CHARS,
    NAME_TAKEN,
    AuditEvent,
    User,
    Workspace,
)
from core.addresses import client_address


class LoginForm(AdminAuthenticationForm):
    """Takes ``workspace/username``, which is longer than a username."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].widget.attrs["maxlength"] = MAX_SLUG_CHARS + 1 + MAX_USERNAME_CHARS
        self.fields["username"].help_text = "Users of other workspaces than default: workspace/username"


admin.site.login_form = LoginForm
admin.site.site_header = admin.site.site_title = "Chat4All"


class AuditedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Writes down who added, changed or deleted what, in the transaction that does it.

    Names of fields, never their values, except what ``audited_flags`` are from now on.
    """

    audited_as: ClassVar[str]
    audited_flags: ClassVar[tuple[str, ...]] = ()

    def write_down(self, request: HttpRequest, obj: Model, what: str, *, fields: Iterable[str] = ()) -> None:
        flags = () if what == "deleted" else self.audited_flags
        names = ", ".join(fields)
        audit.record(
            f"{self.audited_as}.{what}",
            actor=getattr(request.user, "public_id", ""),
            workspace=obj if isinstance(obj, Workspace) else getattr(obj, "workspace", ""),
            target=getattr(obj, "public_id", obj),
            details="; ".join(each for each in (names, *(f"{flag}={getattr(obj, flag)}" for flag in flags)) if each),
            address=client_address(request),
        )

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        """With the fields' own names for the audit; Django's history shows labels and skips what it does not know."""
        names = ["password"] if isinstance(form, AdminPasswordChangeForm) else form.changed_data
        return [*super().construct_change_message(request, form, formsets, add), {"names": names}]

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self.write_down(request, obj, "added", fields=_names(message))
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self.write_down(request, obj, "changed", fields=_names(message))
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        for obj in queryset:
            self.write_down(request, obj, "deleted")
        return super().log_deletions(request, queryset)

    def response_action(self, *args: Any, **kwargs: Any) -> HttpResponse | None:
        """Of many at once: Django has a transaction for the other pages only."""
        with transaction.atomic():
            return super().response_action(*args, **kwargs)


def _names(message: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    return (name for part in message for name in part.get("names", ()))


class UserCreationForm(AdminUserCreationForm):  # type: ignore[type-arg]
    """A new user with a password, in a workspace that the operator chooses."""

    class Meta:
        model = User
        fields = ("workspace", "username", "display_name")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial.setdefault("workspace", DEFAULT_WORKSPACE_ID)

    def clean_username(self) -> str:
        """Django's looks for the name in all workspaces; the model's constraint knows better."""
        username: str = self.cleaned_data["username"]
        return username


class UserChangeForm(DjangoUserChangeForm):  # type: ignore[type-arg]
    def clean_username(self) -> str:
        """The workspace is no field here, so Django leaves out the constraint that is about both."""
        username: str = self.cleaned_data["username"]
        same = User.objects.filter(workspace_id=self.instance.workspace_id, username__lower=username.lower())
        if same.exclude(pk=self.instance.pk).exists():
            raise ValidationError(NAME_TAKEN, code="username_taken")
        return username


RIGHTS: Final = ("is_staff", "is_superuser", "groups", "user_permissions")


@admin.register(User)
class UserAdmin(AuditedAdmin, DjangoUserAdmin):  # type: ignore[type-arg]
    """Rights are given by superusers, and nobody else lays hands on one: whoever could would be one."""

    audited_as = "user"
    audited_flags = ("is_active", "is_staff", "is_superuser")
    form = UserChangeForm
    add_form = UserCreationForm
    list_display = ("username", "workspace", "display_name", "public_id", "is_active", "is_staff", "created_at")
    list_filter = ("workspace", "is_active", "is_staff")
    list_select_related = ("workspace",)
    search_fields = ("username", "display_name", "public_id")
    ordering = ("workspace__slug", "username")
    readonly_fields = ("public_id", "created_at", "last_login")
    actions = ("activate", "deactivate", "end_sessions")
    fieldsets = (
        (None, {"fields": ("public_id", "workspace", "username", "display_name", "password")}),
        ("Access", {"fields": ("is_active", "is_staff", "is_superuser", "groups", "user_permissions")}),
        ("History", {"fields": ("created_at", "last_login")}),
    )
    add_fieldsets = (
        (
            None,
            {
                "classes": ("wide",),
                "fields": ("workspace", "username", "display_name", "usable_password", "password1", "password2"),
            },
        ),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        """A user stays in their workspace: conversations and files of theirs carry it, too."""
        fixed: tuple[str, ...] = () if request.user.is_superuser else RIGHTS
        if obj:
            fixed = ("workspace", *fixed)
        return (*self.readonly_fields, *fixed)

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Asked for passwords, too."""
        return super().has_change_permission(request, obj) and _is_in_reach(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_delete_permission(request, obj) and _is_in_reach(request, obj)

    @admin.action(description="Activate", permissions=["change"])
    def activate(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        self.message_user(request, f"{self._switch(request, queryset, is_active=True)} activated")

    @admin.action(description="Deactivate: sign-ins and tokens stop working within 5 s", permissions=["change"])
    def deactivate(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Yourself excluded: it would leave you outside."""
        changed = self._switch(request, queryset.exclude(pk=request.user.pk or 0), is_active=False)
        self.message_user(request, f"{changed} deactivated")

    @admin.action(description="End sessions: sign in again within the hour", permissions=["change"])
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """All but the one that asks for it."""
        users = list(self._in_reach(request, queryset))
        ended = services.end_sessions(users, besides=request.session.session_key)
        for user in users:
            self.write_down(request, user, "sessions_ended")
        self.message_user(request, f"Sessions ended: {ended}")

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: Any) -> None:
        super().save_model(request, obj, form, change)
        if "is_active" in form.changed_data:
            services.end_sessions([obj])

    def user_change_password(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """In a transaction, which Django has for its other forms."""
        with transaction.atomic():
            return super().user_change_password(request, *args, **kwargs)

    def _switch(self, request: HttpRequest, users: QuerySet[User], *, is_active: bool) -> int:
        """How many were not like that before. Their sessions end either way: some may be of before we ended any."""
        others = self._in_reach(request, users.filter(is_active=not is_active))
        changed = list(others.select_for_update(of=("self",)))
        for user in changed:
            user.is_active = is_active
            user.save(update_fields=["is_active"])
            self.write_down(request, user, "changed", fields=["is_active"])
        services.end_sessions(changed)
        return len(changed)

    def _in_reach(self, request: HttpRequest, users: QuerySet[User]) -> QuerySet[User]:
        """Those whom this operator may change; that there are others is said."""
        if request.user.is_superuser:
            return users
        if left_out := users.filter(is_superuser=True).count():
            said = f"{left_out} left as they were: only superusers change superusers"
            self.message_user(request, said, messages.WARNING)
        return users.filter(is_superuser=False)


def _is_in_reach(request: HttpRequest, user: User | None) -> bool:
    return user is None or request.user.is_superuser or not user.is_superuser


admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(AuditedAdmin, DjangoGroupAdmin):
    audited_as = "group"


@admin.register(Workspace)
class WorkspaceAdmin(AuditedAdmin):
    audited_as = "workspace"
    audited_flags = ("open_registration",)
    list_display = ("slug", "name", "open_registration", "created_at")
    search_fields = ("slug", "name")
    readonly_fields = ("id", "created_at")

    def get_readonly_fields(self, request: HttpRequest, obj: Workspace | None = None) -> tuple[str, ...]:  # noqa: ARG002
        """People sign in with the slug; that of the default workspace is even left out."""
        return (*self.readonly_fields, "slug") if obj else self.readonly_fields

    def has_delete_permission(self, request: HttpRequest, obj: Workspace | None = None) -> bool:  # noqa: ARG002
        """Never: the messages of a workspace live in another store and would be left without an owner."""
        return False


@admin.register(AuditEvent)
class AuditEventAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Read-only, for whoever has the permission to view it."""

    list_display = ("at", "action", "actor", "workspace", "target", "details", "address")
    list_filter = ("at", "action", "workspace")
    search_fields = ("actor", "workspace", "target", "details", "address")
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False
