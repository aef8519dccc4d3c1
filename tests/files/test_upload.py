"""POST /v1/files and GET /v1/files/{id}."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from prometheus_client import REGISTRY

from core.ids import derived_id
from files.models import StoredFile
from tests.files.conftest import Person, Send

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def part(content: bytes, *, name: str = "file", filename: str | None = "a.txt", extra: str = "") -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{extra}\r\n".encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def problem(answer: Any) -> tuple[int, str]:
    assert answer["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def waiting() -> list[Path]:
    folder = Path(settings.UPLOAD_TEMP_DIR)
    return list(folder.iterdir()) if folder.exists() else []


def test_an_upload_is_stored_with_what_was_measured(alice: Person) -> None:
    answer = alice.api.post("/v1/files", {"file": SimpleUploadedFile("pic.png", PNG), "conversation_id": "team"})
    body = answer.json()
    assert answer.status_code == 201
    assert answer["Location"] == f"/v1/files/{body['file_id']}"
    assert body["size"] == len(PNG)
    assert body["checksum"] == hashlib.sha256(PNG).hexdigest()
    assert body["content_type"] == "image/png"
    assert body["filename"] == "pic.png"
    assert body["conversation_id"] == "team"
    assert body["created_at"].endswith("Z")
    row = StoredFile.objects.get(public_id=body["file_id"])
    inside = derived_id(alice.workspace_id, "team")
    assert row.path == f"{alice.workspace_id}/{inside}/{body['file_id']}.png"
    with default_storage.open(row.path) as stored:
        assert stored.read() == PNG
    assert waiting() == []


def test_names_no_conversation_of_others(mallory: Person, members: set[str]) -> None:
    form = {"file": SimpleUploadedFile("pic.png", PNG), "conversation_id": "shared"}
    assert mallory.api.post("/v1/files", form).status_code == 404
    assert not StoredFile.objects.exists()
    assert waiting() == []
    members.add(mallory.user_id)
    form["file"] = SimpleUploadedFile("pic.png", PNG)
    assert mallory.api.post("/v1/files", form).status_code == 201


def test_metadata_is_what_the_upload_answered(alice: Person, upload: Send) -> None:
    body = upload()
    assert alice.api.get(f"/v1/files/{body['file_id']}").json() == body
    assert body["conversation_id"] is None


def test_the_checksum_is_compared_in_either_case(upload: Send) -> None:
    upload(b"hello", checksum=hashlib.sha256(b"hello").hexdigest().upper())


def test_a_declared_type_is_not_believed(alice: Person) -> None:
    lie = SimpleUploadedFile("cat.png", b"<script>alert(1)</script>", content_type="text/html")
    assert alice.api.post("/v1/files", {"file": lie}).json()["content_type"] == "text/plain"


def test_sizes_are_counted(upload: Send) -> None:
    def total() -> float:
        return REGISTRY.get_sample_value("chat4all_file_upload_bytes_sum", {"source": "api"}) or 0

    before = total()
    upload(b"x" * 1234)
    assert total() - before == 1234


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"", (411, "length_required"), id="nothing at all"),
        pytest.param(END, (422, "invalid_request"), id="no parts"),
        pytest.param(part(b"") + END, (422, "file_empty"), id="empty file"),
        pytest.param(part(b"x", filename=None) + END, (422, "invalid_request"), id="a text field called file"),
        pytest.param(part(b"x", filename="") + END, (422, "invalid_request"), id="no file chosen"),
        pytest.param(part(b"x", name="document") + END, (422, "invalid_request"), id="file under another name"),
        pytest.param(part(b"x") * 2 + END, (422, "invalid_request"), id="two files"),
        pytest.param(
            part(b"x") + part(b"y", name="colour", filename=None) + END, (422, "invalid_request"), id="unknown field"
        ),
        pytest.param(
            part(b"x") + part(b"a", name="conversation_id", filename=None) * 2 + END,
            (422, "invalid_request"),
            id="conversation given twice",
        ),
        pytest.param(
            part(b"x") + part(b"c" * 129, name="conversation_id", filename=None) + END,
            (422, "invalid_request"),
            id="conversation too long",
        ),
        pytest.param(
            part(b"x") + part(b"a\x00b", name="conversation_id", filename=None) + END,
            (422, "invalid_request"),
            id="conversation with NUL",
        ),
        *(
            pytest.param(
                part(b"x") + part(name, name="conversation_id", filename=None) + END,
                (422, "invalid_request"),
                id=f"conversation {name!r}",
            )
            for name in (b"a/b", b"a b", b"../x", b" a", "ü".encode(), b"<script>")
        ),
        pytest.param(
            part(b"x") + part(b"zz", name="checksum", filename=None) + END, (422, "invalid_request"), id="no checksum"
        ),
        pytest.param(
            part(b"x") + part(b"0" * 64, name="checksum", filename=None) + END,
            (422, "checksum_mismatch"),
            id="another checksum",
        ),
        pytest.param(
            part(b"x") + part(b"y" * 1_100_000, name="conversation_id", filename=None) + END,
            (413, "payload_too_large"),
            id="a megabyte of text",
        ),
        pytest.param(part(b"x"), (400, "malformed_multipart"), id="no end"),
        pytest.param(b"just bytes", (400, "malformed_multipart"), id="not multipart"),
        pytest.param(b'{"file": "x"}', (400, "malformed_multipart"), id="JSON inside"),
        pytest.param(
            part(b"abc", extra="Content-Transfer-Encoding: base64\r\n") + END,
            (400, "malformed_multipart"),
            id="broken base64",
        ),
    ],
)
def test_what_is_no_upload_is_refused_and_leaves_nothing(alice: Person, body: bytes, expected: tuple[int, str]) -> None:
    answer = alice.api.post("/v1/files", body, content_type=MULTIPART)
    assert problem(answer) == expected
    assert not StoredFile.objects.exists()
    assert waiting() == []


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=é"]
)
def test_a_missing_boundary_is_malformed(alice: Person, content_type: str) -> None:
    assert problem(alice.api.post("/v1/files", part(b"x") + END, content_type=content_type))[0] == 400


def test_another_media_type_is_not_read(alice: Person) -> None:
    assert problem(alice.api.post("/v1/files", b"{}", content_type="application/json")) == (
        415,
        "unsupported_media_type",
    )


def test_a_body_that_was_cut_off_is_not_taken_for_a_file(alice: Person) -> None:
    whole = part(b"x" * 1000) + END
    cut: Any = {"CONTENT_LENGTH": str(len(whole)), "wsgi.input": io.BytesIO(whole[:500])}
    answer = alice.api.post("/v1/files", whole, content_type=MULTIPART, **cut)
    assert problem(answer) == (400, "malformed_multipart")
    assert waiting() == []


@pytest.mark.parametrize("length", ["", "-5"])
def test_an_upload_says_its_length(alice: Person, length: str) -> None:
    answer = alice.api.post("/v1/files", part(b"x") + END, content_type=MULTIPART, CONTENT_LENGTH=length)
    assert problem(answer) == (411, "length_required")


def test_too_much_is_refused_before_it_is_read(alice: Person, limit_bytes: int) -> None:
    answer = alice.api.post(
        "/v1/files", b"never looked at", content_type=MULTIPART, CONTENT_LENGTH=str(limit_bytes + 70_000)
    )
    assert problem(answer) == (413, "file_too_large")
    assert str(limit_bytes) in answer.json()["detail"]


def test_the_limit_is_exact(alice: Person, upload: Send, limit_bytes: int) -> None:
    assert upload(b"x" * limit_bytes)["size"] == limit_bytes
    answer = alice.api.post("/v1/files", {"file": SimpleUploadedFile("big.bin", b"x" * (limit_bytes + 1))})
    assert problem(answer) == (413, "file_too_large")
    assert waiting() == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("a\x00b.txt", "ab.txt"),
        ("con.txt", "_con.txt"),
        ("x" * 300 + ".pdf", "x" * 251 + ".pdf"),
        ("a." + "y" * 400, "a." + "y" * 253),
        ("relatório ação.pdf", "relatório ação.pdf"),
    ],
)
def test_a_hostile_name_is_made_harmless(alice: Person, given: str, kept: str) -> None:
    body = part(b"x", filename=given) + END
    answer = alice.api.post("/v1/files", body, content_type=MULTIPART)
    assert answer.json()["filename"] == kept
    assert str(alice.workspace_id) == StoredFile.objects.get().path.split("/")[0]


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/file_x", "/v1/files/file_x/download"])
def test_strangers_are_asked_to_sign_in(db: None, path: str) -> None:
    send = Client().post if path == "/v1/files" else Client().get
    assert problem(send(path)) == (401, "not_authenticated")


def test_a_storage_that_fails_is_told_as_503_and_keeps_no_row(alice: Person, tmp_path: Path, settings: Any) -> None:
    (tmp_path / "file").write_bytes(b"")
    settings.STORAGES = {**settings.STORAGES, "default": {
        "BACKEND": "files.storage.LocalStorage", "OPTIONS": {"location": str(tmp_path / "file" / "inside")},
    }}  # fmt: skip
    answer = alice.api.post("/v1/files", {"file": SimpleUploadedFile("a.txt", b"x")})
    assert problem(answer) == (503, "files_unavailable")
    assert answer["Retry-After"]
    assert not StoredFile.objects.exists()
