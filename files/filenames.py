"""Names that strangers gave to files, made safe to store, to show and to put into a header."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_FILENAME_BYTES: Final = 255  # what ext4, NTFS and S3 consoles all take
FALLBACK: Final = "file"

_KEPT_FORMAT_CHARS = "\u200c\u200d"  # joiners: emoji families, Persian, Hindi; the others can turn "gpj.exe" around
_FORBIDDEN = re.compile(r'[<>:"|?*]')
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # names that Windows opens as devices
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,10}")


def sanitized(name: str) -> str:
    """A file name without path, control or reordering characters, in NFC, of 1 to 255 bytes, its extension kept.

    Total, and a fixed point: sanitizing again changes nothing.
    """
    base = re.split(r"[/\\]", name)[-1]
    visible = "".join(char for char in base if _is_visible(char))
    plain = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", visible))
    trimmed = _shortened(_trimmed(plain))
    safe = f"_{trimmed}" if _DEVICE.match(trimmed) else trimmed
    return _shortened(safe) or FALLBACK


def extension(name: str) -> str:
    """``.jpg`` of a sanitized name, in lower case; "" when it has none that is short and plain."""
    dot = name.rfind(".")
    found = name[dot:] if dot > 0 else ""
    return found.lower() if _EXTENSION.fullmatch(found) else ""


def _is_visible(char: str) -> bool:
    return char in _KEPT_FORMAT_CHARS or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _trimmed(name: str) -> str:
    """Windows drops trailing dots and blanks, so two names could mean one file; ``..`` means another folder."""
    stripped = name.strip().rstrip(". ").lstrip()
    return "" if set(stripped) <= {"."} else stripped


def _shortened(name: str) -> str:
    if len(name.encode()) <= MAX_FILENAME_BYTES:
        return name
    suffix = extension(name)
    stem = name[: len(name) - len(suffix)].encode()[: MAX_FILENAME_BYTES - len(suffix)]
    return _trimmed(stem.decode(errors="ignore")) + suffix
