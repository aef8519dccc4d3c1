"""A folder for servers, outside of pytest's: PostgreSQL does not run as root, and pytest's is closed to others."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PREFIX: Final = "chat4all-stack-"


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Removed in the end, by the next of us when we are killed. Others may pass through it, and see nothing of it."""
    _remove_abandoned()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    directory.chmod(0o711)
    with _lock_of(directory).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _remove_abandoned() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with (
            contextlib.suppress(OSError),
            _lock_of(directory).open("r+") as lock,
        ):  # somebody holds it, or it is not ours
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)


def _lock_of(directory: Path) -> Path:
    return directory / "in-use"
