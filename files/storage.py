"""The local profile's storage: a folder behind django-storages' API, with presigned links like S3's."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Protocol

from django.conf import settings
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage

from files.errors import StorageRefused, StorageUnavailable
from files.incoming import remove_older
from files.links import signed_query

DEFAULT_EXPIRE_S = 3600
MIN_FREE_BYTES: Final = 64 * 1024 * 1024
DRAFTS: Final = ".incoming"  # in the folder: where they are found when whoever wrote them was killed


class FileStorage(Protocol):
    """What we ask of a storage beyond Django's API; `tests/files/test_storages.py` says it in full."""

    def url(self, name: str, parameters: Mapping[str, str] | None = None, expire: int | None = None) -> str:
        """A link that works for anybody, without a token, for ``expire`` seconds."""

    def ping(self) -> None:
        """Raise StorageUnavailable, naming the part and the remedy, when it cannot take files; within 2 s."""

    def remove_leftovers(self, *, before_s: float) -> None:
        """What saves left behind that broke off before then (Unix time), where the storage does not do so by itself."""

    def set_up(self, *, cors_origins: Sequence[str], dry_run: bool) -> Iterator[str]:
        """Create what is missing; may be repeated. A line for each step. Raises StorageUnavailable."""


class LocalStorage(FileSystemStorage):
    """Files in a folder, written all or not at all and flushed to the disk before `save` returns.

    Like the S3 backend it overwrites (names hold ids that are never given twice, so only a repeated write meets an
    existing name) and ``url`` takes ``parameters`` and ``expire``, so that callers need not know which one they have.
    """

    def url(self, name: str | None, parameters: Mapping[str, str] | None = None, expire: int | None = None) -> str:
        """A link to our own API that needs no token and ends after ``expire`` seconds.

        ``parameters`` (S3's names for answer headers) are not needed: the view takes them from the file's row.
        """
        del parameters
        file_id = PurePosixPath(name or "").stem
        expires_s = int(time.time()) + (DEFAULT_EXPIRE_S if expire is None else expire)
        return f"{settings.API_URL}/files/raw/{file_id}?{signed_query(file_id, expires_s)}"

    def ping(self) -> None:
        """The folder is made if it is not there, as `save` would."""
        try:
            Path(self.location).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.location):
                free = shutil.disk_usage(self.location).free
        except OSError as error:
            raise StorageRefused(
                f"The file storage (folder {self.location}) cannot be written ({error.strerror}): see that FILES_URL "
                "is right and that the folder belongs to the user who runs this."
            ) from error
        if free < MIN_FREE_BYTES:
            raise StorageUnavailable(f"The file storage (folder {self.location}) has no room left: make some.")

    def remove_leftovers(self, *, before_s: float) -> None:
        remove_older(self._drafts, before_s=before_s)

    @property
    def _drafts(self) -> Path:
        return Path(self.location) / DRAFTS

    def set_up(self, *, cors_origins: Sequence[str], dry_run: bool) -> Iterator[str]:
        """``cors_origins`` are not needed: links lead to our own API."""
        del cors_origins
        if dry_run and not Path(self.location).is_dir():
            yield f"folder {self.location}: missing, would be created"
            return
        self.ping()
        free_gib = shutil.disk_usage(self.location).free / 1024**3
        yield f"folder {self.location}: can be written, {free_gib:.1f} GiB free"

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        del max_length
        return name

    def _save(self, name: str, content: File[Any]) -> str:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if (uploaded := getattr(content, "temporary_file_path", None)) and _renamed(Path(uploaded()), target):
            return name
        self._drafts.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._drafts, delete=False) as draft:
            try:
                _copy(content, draft)
                Path(draft.name).replace(target)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
        _sync_folder(target.parent)
        return name


def _renamed(source: Path, target: Path) -> bool:
    """Move without copying; False when they are on different file systems."""
    if source.stat().st_dev != target.parent.stat().st_dev:
        return False
    with source.open("rb") as written:
        os.fsync(written.fileno())
    source.replace(target)
    _sync_folder(target.parent)
    return True


def _copy(content: File[Any], draft: IO[bytes]) -> None:
    content.seek(0)
    shutil.copyfileobj(content, draft, length=1024 * 1024)
    draft.flush()
    os.fsync(draft.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
