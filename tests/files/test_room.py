"""How much one user may keep, and what goes when nobody sent it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client
from pytest_django import Settings

from accounts.models import DEFAULT_WORKSPACE_ID
from core.clock import SYSTEM_CLOCK, ManualClock
from files import services
from files.errors import FileNotFound, StorageUnavailable
from files.incoming import incoming_dir
from files.models import StoredFile
from files.storage import LocalStorage
from tests.files.conftest import SHARED, Person, Send

DAY_S = 24 * 3600


@pytest.fixture
def tomorrow() -> ManualClock:
    """A little more than a day after everything that a test uploads."""
    return ManualClock(SYSTEM_CLOCK.now_ms() + (DAY_S + 60) * 1000)


def place(file_id: object) -> Path:
    return Path(default_storage.path(StoredFile.objects.get(public_id=file_id).path))


def post(client: Client, size: int) -> int:
    return client.post("/v1/files", {"file": SimpleUploadedFile("a.bin", b"x" * size)}).status_code


def test_a_user_keeps_so_much_and_no_more(alice: Person, bob: Person, settings: Settings) -> None:
    settings.USER_FILES_BYTES = 1_000
    assert [post(alice.api, size) for size in (600, 401, 400, 1)] == [201, 413, 201, 413]
    assert post(bob.api, 1_000) == 201
    refused = alice.api.post("/v1/files", {"file": SimpleUploadedFile("a.bin", b"x")})
    assert refused.json()["code"] == "file_quota_exceeded"
    assert list(incoming_dir().iterdir()) == []


def test_what_is_surely_too_much_is_refused_before_it_is_read(alice: Person, settings: Settings) -> None:
    settings.USER_FILES_BYTES = 1_000
    answer = alice.api.generic(
        "POST", "/v1/files", b"never a form", content_type="multipart/form-data; boundary=x", CONTENT_LENGTH="90000"
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "file_quota_exceeded")


def test_what_nobody_sent_within_a_day_goes(alice: Person, upload: Send, tomorrow: ManualClock) -> None:
    file_id, sent = str(upload()["file_id"]), str(upload()["file_id"])
    services.grant(sent, conversation_id=SHARED)
    path = StoredFile.objects.get(public_id=file_id).path
    assert services.prune_unsent(10) == 0  # it is young
    assert services.prune_unsent(10, clock=tomorrow) == 1
    assert not default_storage.exists(path)
    assert alice.api.get(f"/v1/files/{file_id}").status_code == 404
    with pytest.raises(FileNotFound):
        services.grant(file_id, conversation_id=SHARED)
    with services.open_bytes(sent) as kept:
        assert kept.read() == b"hello"
    assert services.prune_unsent(10, clock=tomorrow) == 0


def test_room_comes_back_with_what_goes(alice: Person, settings: Settings, tomorrow: ManualClock) -> None:
    settings.USER_FILES_BYTES = 1_000
    assert [post(alice.api, 1_000), post(alice.api, 1)] == [201, 413]
    services.prune_unsent(10, clock=tomorrow)
    assert post(alice.api, 1_000) == 201


def test_what_people_sent_from_outside_stays(db: None, tomorrow: ManualClock) -> None:
    placement = services.Placement(workspace_id=DEFAULT_WORKSPACE_ID, uploader_id=services.FROM_OUTSIDE)
    info = services.store_bytes(iter([b"x"]), placement=placement, filename="a", content_type="")
    assert services.prune_unsent(10, clock=tomorrow) == 0
    assert services.by_link(info.file_id) == info


def test_goes_in_steps(upload: Send, tomorrow: ManualClock) -> None:
    for _ in range(5):
        upload()
    assert [services.prune_unsent(2, clock=tomorrow) for _ in range(4)] == [2, 2, 1, 0]


def block(path: Path) -> None:
    """No storage deletes that."""
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()


def test_bytes_that_could_not_be_deleted_go_a_later_time_and_stop_no_others(
    upload: Send, tomorrow: ManualClock
) -> None:
    first, *others = [place(upload()["file_id"]) for _ in range(3)]
    block(first)
    assert services.prune_unsent(10, clock=tomorrow) == 2
    assert [path.exists() for path in (first, *others)] == [True, False, False]
    with pytest.raises(StorageUnavailable, match="none of 1 files"):
        services.prune_unsent(10, clock=tomorrow)
    (first / "in the way").unlink()
    assert services.prune_unsent(10, clock=tomorrow) == 1
    assert not first.exists()


def test_however_many_cannot_be_deleted_others_have_their_turn(upload: Send, tomorrow: ManualClock) -> None:
    *stuck, free = [place(upload()["file_id"]) for _ in range(4)]
    for path in stuck:
        block(path)
    deleted = 0
    for _ in range(100):
        with suppress(StorageUnavailable):
            deleted += services.prune_unsent(1, clock=tomorrow)
    assert (deleted, free.exists()) == (1, False)


class Away(LocalStorage):
    clock: ClassVar = ManualClock()

    def delete(self, name: str) -> None:
        self.clock.advance(20)
        raise TimeoutError


def test_a_storage_that_is_away_is_not_asked_for_each_file(
    upload: Send, tomorrow: ManualClock, settings: Settings
) -> None:
    for _ in range(5):
        upload()
    away = {**settings.STORAGES["default"], "BACKEND": f"{__name__}.Away"}
    settings.STORAGES = {**settings.STORAGES, "default": away}
    Away.clock = tomorrow
    with pytest.raises(StorageUnavailable, match="none of 2 files"):
        services.prune_unsent(10, clock=tomorrow)


def test_leftovers_of_broken_uploads_go_after_a_day(db: None) -> None:
    old, young = incoming_dir() / "old.upload", incoming_dir() / "young.upload"
    for path in (old, young):
        path.write_bytes(b"x")
    then_s = time.time() - DAY_S - 60
    os.utime(old, (then_s, then_s))
    services.prune_unsent(1)
    assert [path.exists() for path in (old, young)] == [False, True]
    young.unlink()


def test_an_operator_prunes_by_hand(upload: Send, tomorrow: ManualClock, capsys: pytest.CaptureFixture[str]) -> None:
    file_id = upload()["file_id"]
    StoredFile.objects.filter(public_id=file_id).update(created_at_ms=SYSTEM_CLOCK.now_ms() - (DAY_S + 60) * 1000)
    call_command("prune_files")
    assert "deleted 1 files" in capsys.readouterr().out
