"""Small real PNG pictures, drawn here so that nothing has to be shipped."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from demo.clients import Picture

SIDE: Final = 96
Colour = tuple[int, int, int]


def sunset(filename: str, *, top: Colour, bottom: Colour) -> Picture:
    """A sun in front of a sky that goes from one colour to another."""
    rows = (bytes(_row(y, top, bottom)) for y in range(SIDE))
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)  # 8 bits each of red, green and blue
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return Picture(filename, "image/png", b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in chunks))


def _row(y: int, top: Colour, bottom: Colour) -> list[int]:
    sky = [a + (b - a) * y // SIDE for a, b in zip(top, bottom, strict=True)]
    return [value for x in range(SIDE) for value in ((255, 236, 150) if _in_sun(x, y) else sky)]


def _in_sun(x: int, y: int) -> bool:
    centre, radius = SIDE // 2, SIDE // 5
    return (x - centre) ** 2 + (y - centre) ** 2 < radius**2


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
