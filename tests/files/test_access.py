"""Who may see a file (guarantee 10), and the links that are handed to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.files.storage import default_storage
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client

from files import links, services
from files.errors import FileNotFound
from files.models import FileGrant, StoredFile
from tests.files.conftest import SHARED, Person, Send

CONTENT = bytes(range(256)) * 40


def link_of(person: Person, file_id: object) -> str:
    answer = person.api.get(f"/v1/files/{file_id}/download")
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    assert answer.json()["expires_in"] == 3600
    url: str = answer.json()["download_url"]
    return url.removeprefix("http://127.0.0.1:8082")


def test_only_the_uploader_sees_a_file_that_was_not_sent(
    alice: Person, bob: Person, upload: Send, members: set[str]
) -> None:
    members |= {alice.user_id, bob.user_id}
    file_id = upload(conversation_id="shared")["file_id"]
    assert alice.api.get(f"/v1/files/{file_id}").status_code == 200
    assert bob.api.get(f"/v1/files/{file_id}").status_code == 404


def test_members_see_what_was_sent_to_them_and_nobody_else_does(
    alice: Person, bob: Person, mallory: Person, trent: Person, upload: Send, members: set[str]
) -> None:
    file_id = str(upload(CONTENT)["file_id"])
    services.grant(file_id, conversation_id=SHARED)
    services.grant(file_id, conversation_id=SHARED)  # a replay
    members |= {bob.user_id, trent.user_id}
    assert FileGrant.objects.count() == 1
    assert bob.api.get(f"/v1/files/{file_id}").status_code == 200
    assert Client().get(link_of(bob, file_id)).getvalue() == CONTENT
    for outsider in (mallory, trent):  # Trent is listed as a member, but the file is of another workspace
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/download"):
            answer = outsider.api.get(path)
            unknown = outsider.api.get(path.replace(file_id, "file_unknown"))
            assert (answer.status_code, answer.json()["code"]) == (404, "file_not_found")
            assert {**answer.json(), "request_id": ""} == {**unknown.json(), "request_id": ""}


def test_a_removed_file_is_gone_for_everybody(alice: Person, upload: Send) -> None:
    file_id = str(upload()["file_id"])
    link = link_of(alice, file_id)
    StoredFile.objects.update(state=StoredFile.State.REMOVED)
    assert alice.api.get(f"/v1/files/{file_id}").status_code == 404
    assert Client().get(link).status_code == 404


def test_what_does_not_exist_cannot_be_granted(db: None) -> None:
    with pytest.raises(FileNotFound):
        services.grant("file_unknown", conversation_id=SHARED)


def test_a_redirect_leads_to_the_bytes(alice: Person, upload: Send) -> None:
    answer = alice.api.get(f"/v1/files/{upload()['file_id']}/download?redirect=1")
    assert answer.status_code == 302
    target = urlsplit(answer["Location"])
    assert Client().get(f"{target.path}?{target.query}").getvalue() == b"hello"


def test_the_bytes_come_as_a_harmless_attachment(alice: Person, upload: Send) -> None:
    answer = Client().get(link_of(alice, upload(b"<b>hi</b>", 'rel "ação".html')["file_id"]))
    assert answer.status_code == 200
    assert answer["Content-Disposition"] == "attachment; filename*=utf-8''rel%20_a%C3%A7%C3%A3o_.html"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Type"] == "text/plain"
    assert "sandbox" in answer["Content-Security-Policy"]
    assert answer["Content-Length"] == "9"
    assert answer.getvalue() == b"<b>hi</b>"


def test_an_image_element_gets_its_image(alice: Person, upload: Send) -> None:
    link = link_of(alice, upload(b"\xff\xd8\xffjpeg", "a.jpg")["file_id"])
    assert Client().get(link, headers={"Accept": "image/*"}).getvalue() == b"\xff\xd8\xffjpeg"


def changed(link: str, **values: str) -> str:
    parts = urlsplit(link)
    query = {name: each[0] for name, each in parse_qs(parts.query).items()} | values
    return f"{parts.path}?" + "&".join(f"{name}={value}" for name, value in query.items() if value)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"expires": "99999999999"}, id="longer life"),
        pytest.param({"expires": ""}, id="no end"),
        pytest.param({"expires": "never"}, id="no number"),
        pytest.param({"expires": "٣"}, id="a digit of another script"),
        pytest.param({"signature": ""}, id="no signature"),
        pytest.param({"signature": "0" * 64}, id="another signature"),
        pytest.param({"signature": "é"}, id="not ASCII"),
    ],
)
def test_a_changed_link_is_refused(alice: Person, upload: Send, change: dict[str, str]) -> None:
    answer = Client().get(changed(link_of(alice, upload()["file_id"]), **change))
    assert (answer.status_code, answer.json()["code"]) == (403, "bad_signature")


def test_a_link_opens_its_own_file_only(alice: Person, upload: Send) -> None:
    one, other = str(upload()["file_id"]), str(upload()["file_id"])
    answer = Client().get(link_of(alice, one).replace(one, other))
    assert (answer.status_code, answer.json()["code"]) == (403, "bad_signature")


def test_a_link_ends(alice: Person, upload: Send) -> None:
    file_id = str(upload()["file_id"])
    query = links.signed_query(file_id, int(time.time()))
    answer = Client().get(f"/files/raw/{file_id}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (403, "link_expired")


def test_bytes_that_the_storage_lost_are_an_outage(alice: Person, upload: Send) -> None:
    link = link_of(alice, upload()["file_id"])
    default_storage.delete(StoredFile.objects.get().path)
    answer = Client().get(link)
    assert (answer.status_code, answer.json()["code"]) == (503, "files_unavailable")


@pytest.fixture
def pooled(db: None, tmp_path: Path) -> Iterator[BaseDatabaseWrapper]:
    """A database whose settings say that it is pooled. Each query to the accounts' takes a connection of it."""
    path = str(tmp_path / "pooled.sqlite3")
    connections.settings["pooled"] = {**connections.settings["default"], "NAME": path, "OPTIONS": {}}
    wrapper = connections["pooled"]

    def take(execute: Callable[..., Any], *query: Any) -> Any:
        if wrapper.connection is None:
            wrapper.connect()
        return execute(*query)

    with connection.execute_wrapper(take):
        yield wrapper
    wrapper.close()
    del connections["pooled"], connections.settings["pooled"]


def test_a_download_that_takes_its_time_keeps_no_connection(
    alice: Person, upload: Send, pooled: BaseDatabaseWrapper
) -> None:
    link = link_of(alice, upload(CONTENT)["file_id"])
    assert pooled.connection is not None
    pooled.settings_dict["OPTIONS"]["pool"] = True
    answer = Client().get(link)
    assert pooled.connection is None
    assert answer.getvalue() == CONTENT


@pytest.mark.parametrize(
    ("header", "status", "first", "stop"),
    [
        ("bytes=0-99", 206, 0, 100),
        ("bytes=100-", 206, 100, len(CONTENT)),
        ("bytes=-10", 206, len(CONTENT) - 10, len(CONTENT)),
        ("bytes=0-999999", 206, 0, len(CONTENT)),
        ("bytes=-999999", 206, 0, len(CONTENT)),
        (f"bytes={len(CONTENT) - 1}-", 206, len(CONTENT) - 1, len(CONTENT)),
        ("bytes=0-0,5-9", 200, 0, len(CONTENT)),
        ("bytes=9-5", 200, 0, len(CONTENT)),
        ("bytes=-", 200, 0, len(CONTENT)),
        ("lines=1-2", 200, 0, len(CONTENT)),
        ("bytes=٣-", 200, 0, len(CONTENT)),
    ],
)
def test_a_range_is_served(alice: Person, upload: Send, header: str, status: int, first: int, stop: int) -> None:
    answer = Client().get(link_of(alice, upload(CONTENT)["file_id"]), headers={"Range": header})
    assert answer.status_code == status
    assert answer.getvalue() == CONTENT[first:stop]
    assert answer["Content-Length"] == str(stop - first)
    expected = f"bytes {first}-{stop - 1}/{len(CONTENT)}" if status == 206 else None
    assert answer.get("Content-Range") == expected


@pytest.mark.parametrize("header", [f"bytes={len(CONTENT)}-", "bytes=-0", "bytes=9999999999999999999-"])
def test_a_range_past_the_end_cannot_be_served(alice: Person, upload: Send, header: str) -> None:
    answer = Client().get(link_of(alice, upload(CONTENT)["file_id"]), headers={"Range": header})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_a_resumed_download_of_another_version_starts_again(alice: Person, upload: Send) -> None:
    link = link_of(alice, upload(CONTENT)["file_id"])
    stale = Client().get(link, headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert (stale.status_code, stale.getvalue()) == (200, CONTENT)
    fresh = Client().get(link, headers={"Range": "bytes=5-", "If-Range": stale["ETag"]})
    assert (fresh.status_code, fresh.getvalue()) == (206, CONTENT[5:])


def test_an_unchanged_file_is_not_sent_again(alice: Person, upload: Send) -> None:
    link = link_of(alice, upload(CONTENT)["file_id"])
    etag = Client().head(link)["ETag"]
    assert Client().get(link, headers={"If-None-Match": etag}).status_code == 304
