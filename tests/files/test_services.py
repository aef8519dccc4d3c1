"""What messaging uses: storing what platforms sent, reading it again."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.core.files.base import File
from django.core.files.storage import default_storage
from pytest_django import Settings

from accounts.models import DEFAULT_WORKSPACE_ID
from core.clock import ManualClock
from files import services
from files.errors import EmptyFile, FileNotFound, FileTooLarge, StorageTooSlow, StorageUnavailable
from files.models import StoredFile
from files.services import Placement
from files.storage import LocalStorage
from tests.files.conftest import SHARED, Person
from tests.forks import a_child_can

FROM_WHATSAPP = Placement(
    workspace_id=DEFAULT_WORKSPACE_ID, uploader_id="whatsapp:+5511", conversation_id=SHARED, conversation="shared"
)


def chunks(*parts: bytes) -> Iterator[bytes]:
    yield from parts


def store(*parts: bytes, file_id: str | None = None, filename: str = "photo.jpg") -> services.FileInfo:
    return services.store_bytes(
        chunks(*parts),
        placement=FROM_WHATSAPP,
        filename=filename,
        content_type="image/jpeg",
        file_id=file_id,
        clock=ManualClock(1_234_567),
    )


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_inbound_media_is_stored_and_read_again(db: None) -> None:
    info = store(b"\xff\xd8", b"\xff", b"data")
    with services.open_bytes(info.file_id) as stored:
        assert stored.read() == b"\xff\xd8\xffdata"
    assert (info.size, info.content_type, info.created_at_ms) == (7, "image/jpeg", 1_234_567)
    assert info.checksum == hashlib.sha256(b"\xff\xd8\xffdata").hexdigest()
    assert services.get(info.file_id, workspace_id=DEFAULT_WORKSPACE_ID) == info
    assert (info.uploader_id, info.conversation_id) == ("whatsapp:+5511", SHARED)


def test_more_than_fits_in_memory_goes_over_the_disk(db: None) -> None:
    info = store(*[bytes([n]) * 500_000 for n in range(6)])
    with services.open_bytes(info.file_id) as stored:
        assert hashlib.sha256(stored.read()).hexdigest() == info.checksum


def test_a_replay_reads_and_stores_nothing(db: None) -> None:
    first = store(b"once", file_id="file_fixed")

    def untouched() -> bytes:
        raise AssertionError("the platform was asked again")

    again = services.store_bytes(
        iter(untouched, b""), placement=FROM_WHATSAPP, filename="b", content_type="", file_id="file_fixed"
    )
    assert again == first
    assert StoredFile.objects.count() == 1


def test_a_replay_after_a_crash_between_bytes_and_row_ends_with_one_of_each(db: None) -> None:
    first = store(b"bytes", file_id="file_fixed")
    StoredFile.objects.all().delete()
    assert store(b"bytes", file_id="file_fixed") == first
    folder = Path(default_storage.path(first.path)).parent
    assert [each.name for each in folder.iterdir() if each.name.startswith("file_fixed")] == ["file_fixed.jpg"]


def test_a_stream_that_breaks_keeps_nothing(db: None) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        services.store_bytes(broken(), placement=FROM_WHATSAPP, filename="a", content_type="", file_id="file_half")
    assert services.get("file_half", workspace_id=DEFAULT_WORKSPACE_ID) is None
    assert not list(Path(default_storage.path("")).rglob("file_half*"))


class Slow(LocalStorage):
    """Takes nothing until told."""

    goes_on: ClassVar = threading.Event()
    away: ClassVar = False

    def ping(self) -> None:
        if self.away:
            raise StorageUnavailable

    def _save(self, name: str, content: File[Any]) -> str:
        assert self.goes_on.wait(10)
        return super()._save(name, content)


class Away(Slow):
    away = True


@pytest.mark.parametrize(("storage", "told"), [(Slow, StorageTooSlow), (Away, StorageUnavailable)])
def test_a_storage_is_waited_for_until_the_deadline(
    storage: type[LocalStorage], told: type[Exception], db: None, settings: Settings, tmp_path: Path
) -> None:
    slow = {**settings.STORAGES["default"], "BACKEND": f"{__name__}.{storage.__name__}"}
    settings.STORAGES = {**settings.STORAGES, "default": slow}
    clock = ManualClock()

    def keep(within_s: float) -> services.FileInfo:
        return services.store_bytes(
            chunks(b"x"),
            placement=FROM_WHATSAPP,
            filename="a",
            content_type="",
            file_id="file_slow",
            deadline_s=clock.monotonic_s() + within_s,
            clock=clock,
        )

    for _ in range(services.SAVES_AT_ONCE + 1):
        Slow.goes_on.clear()
        with pytest.raises(StorageUnavailable) as raised:
            keep(0.01)
        assert type(raised.value) is told
        Slow.goes_on.set()
        for thread in threading.enumerate():
            if thread.name == "files":
                thread.join(10)
    assert files_in(tmp_path) == []
    with pytest.raises(StorageTooSlow):
        keep(0)
    assert keep(10) == services.by_link("file_slow")


class Unreadable(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError("the disk has a hole")


def test_a_write_that_fails_leaves_no_draft(db: None, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="hole"):
        default_storage.save("somewhere/file_x.bin", File(Unreadable(b"x")))
    assert files_in(tmp_path) == []


class Killed(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        os._exit(0)


def test_the_draft_of_a_writer_that_was_killed_goes_after_a_day(db: None, tmp_path: Path) -> None:
    a_child_can(lambda: default_storage.save("somewhere/file_x.bin", File(Killed(b"x"))))
    [draft] = files_in(tmp_path)
    services.prune_unsent(1)
    assert draft.exists()
    then_s = time.time() - services.UNSENT_LIFETIME_S - 60
    os.utime(draft, (then_s, then_s))
    services.prune_unsent(1)
    assert not draft.exists()


def test_limits_hold_for_inbound_too(db: None, limit_bytes: int) -> None:
    with pytest.raises(FileTooLarge):
        store(b"x" * limit_bytes, b"x")
    with pytest.raises(EmptyFile):
        store(b"")


def test_another_workspace_has_no_such_file(trent: Person) -> None:
    info = store(b"x")
    assert services.get(info.file_id, workspace_id=trent.workspace_id) is None


def test_unknown_bytes_cannot_be_opened(db: None) -> None:
    with pytest.raises(FileNotFound):
        services.open_bytes("file_unknown")
