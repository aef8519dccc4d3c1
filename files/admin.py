"""Files for operators: what is stored, whose it is, where it was sent. Their bytes are not shown here."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from core.clock import iso_utc
from files.models import FileGrant, StoredFile


class GrantInline(admin.TabularInline):  # type: ignore[type-arg]
    """Conversations whose members may see the file."""

    model = FileGrant
    verbose_name = verbose_name_plural = "conversations that it was sent to"
    fields = ("conversation_id",)
    can_delete = False
    extra = 0

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's signature
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Whoever may see the file: it is a part of it."""
        return True


@admin.register(StoredFile)
class StoredFileAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Read-only: a row and its bytes are only changed together, by `files.services`."""

    list_display = ("public_id", "workspace", "filename", "content_type", "size", "uploader_id", "created", "state")
    list_filter = ("workspace", "state")
    list_select_related = ("workspace",)
    search_fields = ("public_id", "filename", "uploader_id", "conversation", "sha256")
    ordering = ("-created_at_ms",)
    fields = (
        "public_id", "workspace", "filename", "content_type", "size", "sha256", "uploader_id", "conversation",
        "created", "state", "path",
    )  # fmt: skip
    readonly_fields = fields
    inlines = (GrantInline,)

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    @admin.display(description="created", ordering="created_at_ms")
    def created(self, file: StoredFile) -> str:
        return iso_utc(file.created_at_ms)
