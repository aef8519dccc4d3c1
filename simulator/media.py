"""Files on the platform: uploads, and what people attach. Signed URLs that expire."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from typing import Final

import msgspec

from simulator.graph import invalid

MIB: Final = 1024 * 1024
MAX_BYTES: Final = {
    "image": 5 * MIB,
    "audio": 16 * MIB,
    "video": 16 * MIB,
    "document": 100 * MIB,
    "sticker": MIB // 2,
}
LARGEST: Final = max(MAX_BYTES.values())
INSTAGRAM_MAX_BYTES: Final = {"image": 8 * MIB, "audio": 25 * MIB, "video": 25 * MIB, "file": 25 * MIB}
INSTAGRAM_KINDS: Final = {  # as Meta lists the types that it fetches
    **dict.fromkeys(("image/png", "image/jpeg", "image/gif"), "image"),
    **dict.fromkeys(("video/mp4", "video/ogg", "video/x-msvideo", "video/quicktime", "video/webm"), "video"),
    **dict.fromkeys(("audio/aac", "audio/mp4", "audio/wav", "audio/x-wav"), "audio"),
    "application/pdf": "file",
}
_OFFICE: Final = "application/vnd.openxmlformats-officedocument."
KINDS: Final = {  # as Meta lists the types that can be uploaded
    **dict.fromkeys(("image/jpeg", "image/png"), "image"),
    **dict.fromkeys(("audio/aac", "audio/amr", "audio/mp4", "audio/mpeg", "audio/ogg", "audio/opus"), "audio"),
    **dict.fromkeys(("video/mp4", "video/3gpp"), "video"),
    **dict.fromkeys(("text/plain", "application/pdf", "application/msword"), "document"),
    **dict.fromkeys(("application/vnd.ms-excel", "application/vnd.ms-powerpoint"), "document"),
    f"{_OFFICE}wordprocessingml.document": "document",
    f"{_OFFICE}spreadsheetml.sheet": "document",
    f"{_OFFICE}presentationml.presentation": "document",
    "image/webp": "sticker",
}


class MediaFile(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    account_id: str
    content_type: str
    filename: str
    sha256: str
    data: bytes

    def __repr__(self) -> str:
        return f"MediaFile({self.id}, {self.content_type}, {len(self.data)} bytes)"


def bare_type(content_type: str) -> str:
    """``audio/ogg; codecs=opus`` → ``audio/ogg``"""
    return content_type.split(";", maxsplit=1)[0].strip().lower()


def check_upload(content_type: str, size: int) -> None:
    """Raises GraphError for a type that Meta does not take, or a file that is too large for any kind, or empty.

    The cap of its kind counts when it is sent: a picture of 8 MB may still go as a document.
    """
    if bare_type(content_type) not in KINDS:
        raise invalid("Param file must be a file with one of the following types: " + ", ".join(KINDS))
    if size == 0:
        raise invalid("Param file is empty")
    if size > LARGEST:
        raise invalid("Param file is too large")


def fault(file: MediaFile, kind: str) -> str | None:
    """Why the file cannot be sent as ``kind``."""
    if kind not in (KINDS[bare_type(file.content_type)], "document"):
        return f"The file is no {kind}"
    return f"The file is too large for {kind}" if len(file.data) > MAX_BYTES[kind] else None


class Shelf:
    """Files by id, at most ``max_bytes`` together: the oldest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._files: OrderedDict[str, MediaFile] = OrderedDict()
        self._key = os.urandom(32)

    def put(self, *, account_id: str, content_type: str, filename: str, data: bytes) -> MediaFile:
        file = MediaFile(
            id=str(secrets.randbelow(9 * 10**15) + 10**15),
            account_id=account_id,
            content_type=content_type,
            filename=filename,
            sha256=hashlib.sha256(data).hexdigest(),
            data=data,
        )
        self._files[file.id] = file
        self._bytes += len(data)
        while self._bytes > self._max_bytes and len(self._files) > 1:
            _, oldest = self._files.popitem(last=False)
            self._bytes -= len(oldest.data)
        return file

    def get(self, media_id: str) -> MediaFile | None:
        return self._files.get(media_id)

    def signed_path(self, file: MediaFile, *, ttl_s: float, public: bool = False) -> str:
        """A path that works until ``ttl_s`` from now; ``public``: without the Bearer, as Instagram's CDN does."""
        expires_ms = int((time.time() + ttl_s) * 1000)
        access = "public" if public else "bearer"
        return f"/media/{file.id}?access={access}&expires={expires_ms}&sig={self._sign(file.id, access, expires_ms)}"

    def opens(self, media_id: str, *, access: str, expires: str, signature: str) -> bool:
        """Whether a signed path is one of ours and still valid."""
        if not (expires.isascii() and expires.isdigit() and len(expires) < 20):
            return False
        genuine = hmac.compare_digest(self._sign(media_id, access, int(expires)).encode(), signature.encode())
        return genuine and time.time() * 1000 < int(expires)

    def _sign(self, media_id: str, access: str, expires_ms: int) -> str:
        return hmac.new(self._key, f"{media_id}|{access}|{expires_ms}".encode(), hashlib.sha256).hexdigest()[:32]
