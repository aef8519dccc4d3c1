"""The ``Range`` header, as far as a download needs it: one range of bytes (RFC 9110, section 14)."""

from __future__ import annotations

import re
from typing import Final

from files.errors import RangeNotSatisfiable

_ONE_RANGE: Final = re.compile(r"bytes=\s*([0-9]{0,19})-([0-9]{0,19})\s*")


def parse(header: str, *, size: int) -> range | None:
    """The bytes asked for, cut to the file; None where the header is to be ignored and all is sent.

    Ignored: other units, several ranges, and what is not a range at all. Raises RangeNotSatisfiable for a range
    that begins past the end.
    """
    match = _ONE_RANGE.fullmatch(header)
    if not match or match[1] == match[2] == "":
        return None
    if not match[1]:
        return _suffix(int(match[2]), size=size)
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return None
    if first >= size:
        raise RangeNotSatisfiable(size)
    return range(first, min(last, size - 1) + 1)


def _suffix(length: int, *, size: int) -> range:
    if not length or not size:
        raise RangeNotSatisfiable(size)
    return range(max(size - length, 0), size)
