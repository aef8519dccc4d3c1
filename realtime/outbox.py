"""Frames that wait for a slow reader: bounded, because the server in front of us would buffer without an end."""

from __future__ import annotations

from collections import deque
from typing import Final

# A replay (1,000 frames or 1 MiB, see realtime.frames) fits with room for what comes live meanwhile.
MAX_FRAMES: Final = 2_048
MAX_BYTES: Final = 2 * 1024 * 1024


class Outbox:
    """First in, first out. ``add`` is False when the bound is reached: the frame was not taken."""

    def __init__(self, *, max_frames: int = MAX_FRAMES, max_bytes: int = MAX_BYTES) -> None:
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frames: deque[bytes] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: bytes) -> bool:
        if len(self._frames) >= self._max_frames or self._bytes + len(frame) > self._max_bytes:
            return False
        self._frames.append(frame)
        self._bytes += len(frame)
        return True

    def take(self) -> bytes:
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        return frame

    def clear(self) -> None:
        self._frames.clear()
        self._bytes = 0
