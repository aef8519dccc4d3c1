"""Users and workspaces for operators."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import AdminUserCreationForm
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.models import DEFAULT_WORKSPACE_ID, MAX_SLUG_CHARS, MAX_USERNAME_CHARS, User, Workspace


class LoginForm(AdminAuthenticationForm):
    """Takes ``workspace/username``, which is longer than a username."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].widget.attrs["maxlength"] = MAX_SLUG_CHARS + 1 + MAX_USERNAME_CHARS
        self.fields["username"].help_text = "Users of other workspaces than default: workspace/username"


admin.site.login_form = LoginForm
admin.site.site_header = admin.site.site_title = "Chat4All"


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


@admin.register(User)
class UserAdmin(DjangoUserAdmin):  # type: ignore[type-arg]
    add_form = UserCreationForm
    list_display = ("username", "workspace", "display_name", "public_id", "is_active", "is_staff", "created_at")
    list_filter = ("workspace", "is_active", "is_staff")
    list_select_related = ("workspace",)
    search_fields = ("username", "display_name", "public_id")
    ordering = ("workspace__slug", "username")
    readonly_fields = ("public_id", "created_at", "last_login")
    actions = ("activate", "deactivate")
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

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:  # noqa: ARG002
        """A user stays in their workspace: conversations and files of theirs carry it, too."""
        return (*self.readonly_fields, "workspace") if obj else self.readonly_fields

    @admin.action(description="Activate", permissions=["change"])
    def activate(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        self.message_user(request, f"{queryset.update(is_active=True)} activated")

    @admin.action(description="Deactivate: sign-ins and tokens stop working within 5 s", permissions=["change"])
    def deactivate(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Yourself excluded: it would leave you outside."""
        changed = queryset.exclude(pk=request.user.pk or 0).update(is_active=False)
        self.message_user(request, f"{changed} deactivated")


@admin.register(Workspace)
class WorkspaceAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("slug", "name", "open_registration", "created_at")
    search_fields = ("slug", "name")
    readonly_fields = ("id", "created_at")

    def has_delete_permission(self, request: HttpRequest, obj: Workspace | None = None) -> bool:  # noqa: ARG002
        """Never: the messages of a workspace live in another store and would be left without an owner."""
        return False
