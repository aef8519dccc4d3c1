"""A multipart body becomes one temporary file, measured on the way; memory holds one chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import IO, Any, Final

from django.conf import settings
from django.core.files.uploadhandler import FileUploadHandler
from django.http import HttpRequest, UnreadablePostError
from django.utils.http import parse_header_parameters
from rest_framework.exceptions import ParseError
from rest_framework.parsers import DataAndFiles, MultiPartParser
from rest_framework.request import Request

from core.errors import InvalidRequest
from files import content_types, filenames
from files.errors import FileTooLarge, LengthRequired, MalformedUpload, StorageUnavailable
from files.incoming import Upload

FILE_FIELD: Final = "file"
ENVELOPE_BYTES: Final = 64 * 1024  # boundaries, part headers and the other fields around the file
_TAIL_BYTES: Final = 1024


class MeasuringHandler(FileUploadHandler):
    """Streams the one field ``file`` to disk, hashing it, and stops at the limit."""

    chunk_size = 256 * 1024

    def __init__(self, request: HttpRequest | None = None, *, limit_bytes: int) -> None:
        super().__init__(request)
        self._limit_bytes = limit_bytes
        self._digest = hashlib.sha256()
        self.upload: Upload | None = None

    def new_file(self, field_name: str, *args: Any, **kwargs: Any) -> None:
        if field_name != FILE_FIELD:
            raise InvalidRequest.at(
                field_name[:64], "No file is expected here; send it as 'file'.", code="unknown_field"
            )
        if self.upload is not None:
            raise InvalidRequest.at(FILE_FIELD, "Send one file per request.", code="too_many")
        super().new_file(field_name, *args, **kwargs)
        try:
            self.upload = Upload(filenames.sanitized(self.file_name or ""), self.content_type)
        except OSError as error:
            raise StorageUnavailable("The server has no room for uploads.") from error

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if start + len(raw_data) > self._limit_bytes:
            raise FileTooLarge(self._limit_bytes)
        assert self.upload is not None  # noqa: S101 — Django calls new_file first
        if missing := content_types.HEAD_BYTES - len(self.upload.head):
            self.upload.head += raw_data[:missing]
        self._digest.update(raw_data)
        try:
            self.upload.write(raw_data)
        except OSError as error:  # the disk is full
            raise StorageUnavailable("The server has no room for this upload.") from error

    def file_complete(self, file_size: int) -> Upload | None:
        if self.upload is None:
            return None
        try:
            self.upload.seek(0)  # also flushes
        except OSError as error:
            raise StorageUnavailable("The server has no room for this upload.") from error
        self.upload.size = file_size
        self.upload.sha256 = self._digest.hexdigest()
        return self.upload

    def close(self) -> None:
        """Remove the temporary file, unless the storage has taken it."""
        if self.upload is not None:
            self.upload.close()


class UploadParser(MultiPartParser):
    """Multipart that is checked to be whole: Django's parser takes a body that was cut off for a complete one."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> DataAndFiles[Any, Any]:
        request: Request = (parser_context or {})["request"]
        body = _Tail(stream)
        handler = MeasuringHandler(request._request, limit_bytes=settings.MAX_FILE_BYTES)
        request._request.upload_handlers = [handler]
        try:
            parsed = super().parse(body, media_type, parser_context)  # type: ignore[arg-type]
            body.require_whole(media_type or "")
        except ParseError as error:
            handler.close()
            raise MalformedUpload("The body is not multipart/form-data.") from error
        except UnreadablePostError as error:
            handler.close()
            raise MalformedUpload("The body ended early.") from error
        except BaseException:
            handler.close()
            raise
        return parsed


def announced_bytes(request: Request) -> int:
    """The Content-Length. Raises LengthRequired, and FileTooLarge before a byte of the body is read."""
    announced = request.META.get("CONTENT_LENGTH") or ""
    if not announced.isdecimal():
        raise LengthRequired("Send the upload with a Content-Length, not chunked.")
    if int(announced) > settings.MAX_FILE_BYTES + ENVELOPE_BYTES:
        raise FileTooLarge(settings.MAX_FILE_BYTES)
    return int(announced)


class _Tail:
    """Reads through to the body, remembering how it ended."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._last = b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._last = (self._last + data)[-_TAIL_BYTES:] if len(data) < _TAIL_BYTES else data[-_TAIL_BYTES:]
        return data

    def require_whole(self, media_type: str) -> None:
        """Raise MalformedUpload unless the closing boundary came: it is the last thing that a client sends."""
        boundary = str(parse_header_parameters(media_type)[1].get("boundary", ""))
        if f"--{boundary}--".encode() not in self._last:
            raise MalformedUpload("The body ended early.")
