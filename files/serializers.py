"""The shapes of requests and answers; the API's documentation is made from them."""

from __future__ import annotations

import re
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from core.clock import iso_utc
from core.ids import CONVERSATION_ID
from core.serializers import StrictSerializer, TextField
from files.services import FileInfo

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class UploadForm(StrictSerializer):
    """multipart/form-data"""

    file = serializers.FileField(max_length=None, allow_empty_file=True)  # emptiness has an error code of its own
    conversation_id = TextField(
        max_length=128,
        required=False,
        trim_whitespace=False,
        help_text="What it is meant for. Others see it once a message carries it.",
    )
    checksum = TextField(required=False, help_text="SHA-256 in hex; a file that differs is refused.")

    def validate_conversation_id(self, value: str) -> str:
        if not CONVERSATION_ID.fullmatch(value):
            raise serializers.ValidationError(
                "Letters, digits and . _ : @ + ~ = - only, and not dots alone.", code="invalid_conversation_id"
            )
        return value

    def validate_checksum(self, value: str) -> str:
        if not _SHA256.fullmatch(value):
            raise serializers.ValidationError("A SHA-256 in hex has 64 digits.")
        return value.lower()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        for name in self.fields:
            if len(self.initial_data.getlist(name)) > 1:
                twice: list[Any] = [ErrorDetail("Given twice.", "too_many")]
                raise serializers.ValidationError({str(name): twice})
        return attrs


class FileDescription(serializers.Serializer[Any]):
    file_id = serializers.CharField()
    filename = serializers.CharField()
    size = serializers.IntegerField(help_text="bytes")
    content_type = serializers.CharField(help_text="As found in the bytes, whatever the upload said.")
    checksum = serializers.CharField(help_text="SHA-256, hex")
    created_at = serializers.DateTimeField()
    conversation_id = serializers.CharField(allow_null=True)


class DownloadLink(serializers.Serializer[Any]):
    download_url = serializers.URLField(help_text="Works without a token until it expires; keep it private.")
    expires_in = serializers.IntegerField(help_text="seconds")


def described(info: FileInfo) -> dict[str, object]:
    """A file as the API shows it."""
    return {
        "file_id": info.file_id,
        "filename": info.filename,
        "size": info.size,
        "content_type": info.content_type,
        "checksum": info.checksum,
        "created_at": iso_utc(info.created_at_ms),
        "conversation_id": info.conversation or None,
    }
