"""Where a file waits until it is whole. Of no framework beyond Django: workers and bridges start without the API's."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile


def incoming_dir() -> Path:
    """Where bytes wait until they are whole; made on first use."""
    path = Path(settings.UPLOAD_TEMP_DIR)
    path.mkdir(parents=True, exist_ok=True)
    return path


def remove_older(folder: Path, *, before_s: float) -> None:
    """Files in it that nobody has touched since then (Unix time): whoever wrote them is gone."""
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # finished meanwhile
            if path.is_file() and path.stat().st_mtime < before_s:
                path.unlink()


class Upload(UploadedFile):  # type: ignore[type-arg]  # generic in the stubs only
    """A file as received: on disk under a name of ours, with what was measured while it streamed in."""

    sha256 = ""
    head = b""

    def __init__(self, name: str, content_type: str | None) -> None:
        waiting = tempfile.NamedTemporaryFile(dir=incoming_dir(), suffix=".upload")  # noqa: SIM115 — close() does
        super().__init__(waiting, name, content_type, 0)
        self._waiting = waiting.name

    def temporary_file_path(self) -> str:
        """Storages that can take a file over by renaming look for this, as for Django's TemporaryUploadedFile."""
        return self._waiting

    def close(self) -> None:
        """Remove it, unless the storage has taken it over."""
        with suppress(FileNotFoundError):
            super().close()
