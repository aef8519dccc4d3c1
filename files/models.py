"""What we know of stored bytes. Where they lie is the storage's business, see `files.storage`."""

from __future__ import annotations

from django.db import models

from accounts.models import Workspace


class StoredFile(models.Model):
    """A file whose bytes are in the storage. The row is written after the bytes, so it never points at nothing."""

    class State(models.TextChoices):
        STORED = "stored"
        REMOVED = "removed"  # kept as a tombstone: the id is never given again

    public_id = models.CharField(max_length=64, unique=True)
    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="+")
    uploader_id = models.CharField(max_length=320)  # a user's public id, or an address on a channel
    conversation_id = models.UUIDField(null=True)  # the internal one; what it was uploaded for, it grants nothing
    conversation = models.CharField(max_length=128, blank=True)  # as the client wrote it
    filename = models.CharField(max_length=255)
    content_type = models.CharField(max_length=129)
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    path = models.CharField(max_length=512)
    state = models.CharField(max_length=16, choices=State, default=State.STORED)
    created_at_ms = models.BigIntegerField()

    class Meta:
        verbose_name = "file"
        indexes = (
            models.Index(fields=["workspace", "-created_at_ms"], name="files_by_workspace"),
            models.Index(fields=["workspace", "uploader_id"], name="files_by_uploader"),
            models.Index(fields=["state", "created_at_ms"], name="files_by_age"),
        )

    def __str__(self) -> str:
        return self.public_id


class FileGrant(models.Model):
    """A message in this conversation carries the file, so the conversation's members may see it."""

    file = models.ForeignKey(StoredFile, on_delete=models.CASCADE, related_name="grants")
    conversation_id = models.UUIDField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["file", "conversation_id"], name="file_granted_once"),)

    def __str__(self) -> str:
        return f"file {self.file_id} in {self.conversation_id}"
