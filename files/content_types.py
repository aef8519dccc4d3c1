"""What a file is, by its first bytes; what the sender calls it is only a hint."""

from __future__ import annotations

import mimetypes
import re
from typing import Final

HEAD_BYTES: Final = 4096
BINARY: Final = "application/octet-stream"
TEXT: Final = "text/plain"

_SYNTAX = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")

# Offset, magic bytes, type. Formats that chats carry and platforms accept.
_SIGNATURES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (4, b"ftypM4A", "audio/mp4"),
    *((4, b"ftyp" + brand, "image/heic") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")),
    *((4, b"ftyp" + brand, "image/heif") for brand in (b"mif1", b"msf1")),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyp3gp", "video/3gpp"),
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    *((0, bytes((0xFF, second)), "audio/mpeg") for second in b"\xfb\xfa\xf3\xf2\xe3\xe2"),  # layer III of each version
    *((0, bytes((0xFF, second)), "audio/aac") for second in b"\xf1\xf0\xf9\xf8"),
    (0, b"#!AMR", "audio/amr"),
    (0, b"fLaC", "audio/flac"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (0, b"\x1f\x8b", "application/gzip"),
)
_RIFF: Final = {"image/webp", "audio/wav"}
_KNOWN_BY_MAGIC: Final = {kind for _, _, kind in _SIGNATURES}

# Containers whose content the extension tells: it may narrow the type, never change it.
_WITHIN: Final = {
    "application/zip": ("application/vnd.openxmlformats-", "application/vnd.oasis.", "application/epub+zip"),
    "application/x-ole-storage": ("application/msword", "application/vnd.ms-"),
    "audio/ogg": ("audio/ogg", "audio/opus", "video/ogg"),
    "video/webm": ("video/webm", "audio/webm", "video/x-matroska"),
    "video/mp4": ("video/mp4", "audio/mp4"),
}
# Types that a browser runs: a file of ours is never handed out as one of them.
_ACTIVE: Final = re.compile(
    r"(text/html|.*\+xml|.*/xml|.*(java|ecma|vb|live)script.*|text/css|.*xsl.*|multipart/.*|message/.*)"
)


def detect(head: bytes, *, filename: str, declared: str = "") -> str:
    """The content type of a file that begins with ``head`` (its first 4 KiB are enough).

    A known signature wins over every claim. Claims (the sender's, then the extension's) count only where no signature
    could contradict them. What a browser would run becomes text or bytes.
    """
    claims = [claim for claim in (_wellformed(declared), _by_extension(filename)) if claim]
    if magic := _by_magic(head):
        narrower = _WITHIN.get(magic, ())
        return next((claim for claim in claims if claim.startswith(narrower)), magic) if narrower else magic
    if _is_text(head):
        return next((claim for claim in claims if _is_textual(claim)), TEXT)
    return next((claim for claim in claims if _may_be(claim)), BINARY)


def _by_magic(head: bytes) -> str | None:
    for offset, magic, kind in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic and (kind not in _RIFF or head.startswith(b"RIFF")):
            return kind
    return None


def _is_text(head: bytes) -> bool:
    if b"\x00" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and len(head) == HEAD_BYTES  # a character cut by the end of the sample
    return True


def _is_textual(claim: str) -> bool:
    return claim == "application/json" or (claim.startswith("text/") and not _ACTIVE.fullmatch(claim))


def _may_be(claim: str) -> bool:
    return not (claim in _KNOWN_BY_MAGIC or claim.startswith("text/") or _ACTIVE.fullmatch(claim))


def _wellformed(declared: str) -> str:
    kind = declared.partition(";")[0].strip().lower()
    return kind if _SYNTAX.fullmatch(kind) else ""


def _by_extension(filename: str) -> str:
    return mimetypes.guess_type(filename)[0] or ""
