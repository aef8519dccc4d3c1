"""What every storage does, whichever FILES_URL chose: a folder, a bucket. Links are followed by an outside client."""

from __future__ import annotations

import gc
import hashlib
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from django.conf import settings
from django.core.files.base import ContentFile, File
from django.core.files.storage import default_storage, storages
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django import Settings

from accounts.models import DEFAULT_WORKSPACE_ID
from core.clock import SYSTEM_CLOCK, ManualClock
from files import services
from files.incoming import Upload
from files.models import StoredFile
from files.storage import FileStorage
from tests.files import buckets
from tests.files.conftest import Person, Send
from tests.forks import a_child_can

MIB: Final = 1024 * 1024
PNG: Final = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 400


@contextmanager
def a_folder(folder: Path) -> Iterator[str]:
    yield (folder / "files").as_uri()


@contextmanager
def a_bucket(_folder: Path) -> Iterator[str]:
    name = buckets.new_name()
    with buckets.removed_after(name):
        yield buckets.url_of(name)


STORAGES: Final[dict[str, Callable[[Path], AbstractContextManager[str]]]] = {"folder": a_folder, "s3": a_bucket}


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.cluster if n == "s3" else ()) for n in STORAGES])
def storage(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[FileStorage]:
    """Empty and set up; it is the default storage, too."""
    with STORAGES[request.param](tmp_path) as url:
        yield _default(settings, url)


@pytest.fixture
def bucket(settings: Settings, tmp_path: Path) -> Iterator[Any]:
    with a_bucket(tmp_path) as url:
        yield _default(settings, url)


def _default(settings: Settings, url: str) -> Any:
    settings.STORAGES = {**settings.STORAGES, "default": buckets.settings_of(url)}
    found: Any = storages["default"]
    list(found.set_up(cors_origins=[], dry_run=False))
    return found


Follow = Callable[..., Any]


@pytest.fixture
def follow() -> Follow:
    """Fetches a link as somebody outside would; one to our own API (a folder's) without the way over a socket."""

    def get(link: str, **headers: str) -> Any:
        if not link.startswith(settings.API_URL):
            return httpx.get(link, headers=headers, timeout=30)
        answer: Any = Client().get(link.removeprefix(settings.API_URL), headers=headers)
        body = answer.getvalue() if answer.streaming else answer.content
        return httpx.Response(answer.status_code, headers=dict(answer.items()), content=body)

    return get


def test_what_was_saved_is_there_until_it_is_deleted(storage: Any) -> None:
    assert not storage.exists("w/c/file_1.txt")
    assert storage.save("w/c/file_1.txt", ContentFile(b"hello")) == "w/c/file_1.txt"
    assert storage.exists("w/c/file_1.txt")
    assert storage.size("w/c/file_1.txt") == 5
    storage.delete("w/c/file_1.txt")
    storage.delete("w/c/file_1.txt")  # again: nothing to do
    assert not storage.exists("w/c/file_1.txt")
    with pytest.raises(FileNotFoundError):
        storage.open("w/c/file_1.txt", "rb").read()


def test_a_repeated_save_replaces(storage: Any) -> None:
    storage.save("a.txt", ContentFile(b"first"))
    assert storage.save("a.txt", ContentFile(b"second")) == "a.txt"
    with storage.open("a.txt", "rb") as stored:
        assert stored.read() == b"second"


def test_any_part_can_be_read(storage: Any) -> None:
    content = os.urandom(700_000)
    storage.save("a.bin", ContentFile(content))
    with storage.open("a.bin", "rb") as stored:
        assert stored.read(10) == content[:10]
        stored.seek(300_000)
        assert stored.read(300_000) == content[300_000:600_000]
        stored.seek(5)
        assert stored.read(5) == content[5:10]
        stored.seek(0, os.SEEK_END)
        assert (stored.tell(), stored.read(1)) == (700_000, b"")
        stored.seek(0)
        assert stored.read() == content


def test_a_large_upload_goes_through_in_little_memory(storage: Any, settings: Settings) -> None:
    """50 MiB in parts from the disk, and back again."""
    upload = Upload("big.bin", "application/octet-stream")
    digest = hashlib.sha256()
    for number in range(50):
        chunk = bytes([number]) * MIB
        digest.update(chunk)
        upload.write(chunk)
    upload.seek(0)
    storage.save("warm.bin", ContentFile(b"x"))
    gc.collect()
    tracemalloc.start()
    try:
        storage.save("big.bin", upload)
        received = hashlib.sha256()
        with storage.open("big.bin", "rb") as stored:
            while chunk := stored.read(MIB):
                received.update(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        upload.close()
    assert received.hexdigest() == digest.hexdigest()
    assert peak < 16 * MIB


def test_a_spooled_file_of_several_parts_arrives_whole(storage: Any, tmp_path: Path) -> None:
    """What platforms send us has no name on the disk."""
    content = os.urandom(MIB) * 40
    with (tmp_path / "spool").open("w+b") as spool:
        spool.write(content)
        spool.seek(0)
        storage.save("spooled.bin", File(spool))
    with storage.open("spooled.bin", "rb") as stored:
        assert hashlib.sha256(stored.read()).digest() == hashlib.sha256(content).digest()


# --- through the API ----------------------------------------------------------------------------------------------


def link_of(person: Person, file_id: object) -> str:
    answer = person.api.get(f"/v1/files/{file_id}/download")
    assert answer.status_code == 200, answer.content
    url: str = answer.json()["download_url"]
    return url


def test_a_link_works_for_an_outside_client(storage: FileStorage, follow: Follow, alice: Person, upload: Send) -> None:
    file_id = upload(PNG, 'rel "ação".png')["file_id"]
    answer = follow(link_of(alice, file_id))
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Disposition"] == "attachment; filename*=utf-8''rel%20_a%C3%A7%C3%A3o_.png"
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_a_link_takes_ranges(storage: FileStorage, follow: Follow, alice: Person, upload: Send) -> None:
    link = link_of(alice, upload(PNG, "a.png")["file_id"])
    part = follow(link, Range="bytes=8-11")
    assert (part.status_code, part.content) == (206, PNG[8:12])
    assert part.headers["Content-Range"] == f"bytes 8-11/{len(PNG)}"
    assert follow(link, Range="bytes=-4").content == PNG[-4:]
    assert follow(link, Range=f"bytes={len(PNG)}-").status_code == 416


def test_a_changed_link_opens_nothing(storage: FileStorage, follow: Follow, alice: Person, upload: Send) -> None:
    one, other = (link_of(alice, upload()["file_id"]) for _ in range(2))
    assert follow(one.partition("?")[0]).status_code == 403
    swapped = f"{other.partition('?')[0]}?{one.partition('?')[2]}"
    assert follow(swapped).status_code == 403
    assert follow(one).status_code == 200


def test_a_link_ends(storage: FileStorage, follow: Follow, upload: Send) -> None:
    info = services.by_link(str(upload()["file_id"]))
    link = services.download_url(info, expires_in_s=1)
    waited = 0
    while (status := follow(link).status_code) == 200:
        waited += 1
        assert waited < 2_000, "it never ends"
    assert status == 403


def test_room_comes_back_with_what_nobody_sent(storage: Any, alice: Person, settings: Settings) -> None:
    settings.USER_FILES_BYTES = 1_000
    tomorrow = ManualClock(SYSTEM_CLOCK.now_ms() + 25 * 3600 * 1000)

    def post(size: int) -> int:
        return alice.api.post("/v1/files", {"file": SimpleUploadedFile("a.bin", b"x" * size)}).status_code

    assert [post(1_000), post(1)] == [201, 413]
    path = StoredFile.objects.get().path
    assert default_storage.exists(path)
    assert services.prune_unsent(10, clock=tomorrow) == 1
    assert not default_storage.exists(path)
    assert post(1_000) == 201


def test_what_a_platform_sent_can_be_opened_and_linked(storage: Any, db: None) -> None:
    placement = services.Placement(workspace_id=DEFAULT_WORKSPACE_ID, uploader_id=services.FROM_OUTSIDE)
    info = services.store_bytes(iter([PNG]), placement=placement, filename="a.png", content_type="image/png")
    with services.open_bytes(info.file_id) as stored:
        assert stored.read() == PNG
    assert services.download_url(info)


def test_can_be_set_up_again_and_again(storage: FileStorage) -> None:
    storage.ping()
    first = list(storage.set_up(cors_origins=["https://a.example"], dry_run=True))
    assert list(storage.set_up(cors_origins=["https://a.example"], dry_run=True)) == first
    assert list(storage.set_up(cors_origins=["https://a.example"], dry_run=False))


# --- S3 alone -----------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_links_name_the_endpoint_that_clients_reach(db: None, settings: Settings, alice: Person, upload: Send) -> None:
    """The signature covers the host: a proxy in front of the bucket must be known when the link is made."""
    name = buckets.new_name()
    with buckets.removed_after(name):
        inside = urlsplit(buckets.url_of(name))
        port = urlsplit(parse_qs(inside.query)["endpoint"][0]).port
        url = buckets.url_of(name, public_endpoint=f"http://localhost:{port}")
        settings.STORAGES = {**settings.STORAGES, "default": buckets.settings_of(url)}
        list(services.storage().set_up(cors_origins=[], dry_run=False))
        link = link_of(alice, upload()["file_id"])
        assert link.startswith(f"http://localhost:{port}/{name}/")
        assert httpx.get(link).content == b"hello"
        assert httpx.get(link.replace("localhost", "127.0.0.1")).status_code == 403


@pytest.mark.cluster
def test_nothing_in_the_bucket_is_public(bucket: Any) -> None:
    bucket.save("a.txt", ContentFile(b"private"))
    bare = bucket.url("a.txt").partition("?")[0]
    assert httpx.get(bare).status_code == 403
    assert httpx.get(bare.rpartition("/")[0] + "/").status_code == 403


@pytest.mark.cluster
def test_an_upload_that_breaks_off_leaves_no_parts(bucket: Any) -> None:

    class Breaks(ContentFile):  # type: ignore[type-arg]  # generic in the stubs only
        def read(self, *args: Any) -> bytes:
            if self.tell() > 20 * MIB:
                raise OSError("the disk has a hole")
            return super().read(*args)  # type: ignore[no-any-return]

    with pytest.raises(OSError, match="hole"):
        bucket.save("broken.bin", Breaks(b"x" * 40 * MIB))
    assert not bucket.exists("broken.bin")
    left = bucket.connection.meta.client.list_multipart_uploads(Bucket=bucket.bucket_name, Prefix="broken.bin")
    assert left.get("Uploads", []) == []


@pytest.mark.cluster
def test_a_child_process_has_a_client_of_its_own(bucket: Any) -> None:
    bucket.save("a.txt", ContentFile(b"x"))
    parents = bucket.connection

    def use_its_own() -> None:
        assert bucket.connection is not parents
        assert bucket.exists("a.txt")

    a_child_can(use_its_own)
    assert bucket.connection is parents
