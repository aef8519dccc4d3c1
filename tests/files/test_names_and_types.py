"""File names from strangers, and what their bytes say they are."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from files import content_types, filenames


@given(st.text(max_size=400))
@example("..")
@example("a" * 251 + ". .pdf")
@example("con" + "\u202e" + ".txt")
@example("é" * 200 + ".JPEG")
@example(" . / .. \\ . ")
@example("nul." + "x" * 300)
@example("\u0344" * 90 + ".txt")
def test_any_name_becomes_one_that_is_safe_everywhere(name: str) -> None:
    safe = filenames.sanitized(name)
    assert 1 <= len(safe.encode()) <= filenames.MAX_FILENAME_BYTES
    assert not set(safe) & set('/\\<>:"|?*\x00\r\n')
    assert safe not in {".", ".."}
    assert not safe.endswith((".", " "))
    assert all(unicodedata.category(char) not in {"Cc", "Cs"} for char in safe)
    assert filenames.sanitized(safe) == safe
    assert unicodedata.is_normalized("NFC", safe)


@given(st.text(max_size=400))
def test_an_extension_is_short_and_plain(name: str) -> None:
    suffix = filenames.extension(filenames.sanitized(name))
    assert suffix == "" or (suffix.startswith(".") and suffix[1:].isascii() and suffix[1:].isalnum())
    assert len(suffix) <= 11


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("report.pdf", "report.pdf"),
        ("C:\\Users\\me\\a.txt", "a.txt"),
        ("invoice\u202egpj.exe", "invoicegpj.exe"),
        ("👨\u200d👩\u200d👧.png", "👨\u200d👩\u200d👧.png"),
        ("", "file"),
        ("...", "file"),
        ("a.txt. . ", "a.txt"),
        ("LPT1", "_LPT1"),
        (".gitignore", ".gitignore"),
    ],
)
def test_names_keep_what_is_harmless(given_name: str, kept: str) -> None:
    assert filenames.sanitized(given_name) == kept


MP4 = b"\x00\x00\x00\x20ftypisom"


@pytest.mark.parametrize(
    ("head", "filename", "declared", "kind"),
    [
        pytest.param(b"\x89PNG\r\n\x1a\n..", "a.txt", "text/html", "image/png", id="bytes win over both claims"),
        pytest.param(b"RIFF....WEBP", "a", "", "image/webp", id="webp"),
        pytest.param(b"12345678WEBP", "a", "", "text/plain", id="not webp without RIFF"),
        pytest.param(b"%PDF-1.7", "a.exe", "", "application/pdf", id="pdf"),
        pytest.param(MP4, "a.mp4", "video/mp4", "video/mp4", id="mp4"),
        pytest.param(MP4, "voice.m4a", "audio/mp4", "audio/mp4", id="only sound in it"),
        pytest.param(MP4, "a.mp4", "text/html", "video/mp4", id="a claim from another family"),
        pytest.param(b"\xff\xfb\x90d", "a.mp3", "", "audio/mpeg", id="mp3"),
        pytest.param(b"\xff\xf3\x44\xc4", "speech.mp3", "audio/mpeg", "audio/mpeg", id="mp3 of MPEG 2, as of speech"),
        pytest.param(b"\xff\xe3\x18\xc4", "speech.mp3", "", "audio/mpeg", id="mp3 of MPEG 2.5"),
        pytest.param(b"\xff\xf9\x50\x80", "a.aac", "", "audio/aac", id="aac of MPEG 2"),
        pytest.param(b"\xff\xfea\x00", "a.mp3", "", "application/octet-stream", id="UTF-16 is no sound"),
        pytest.param(b"\x00\x00\x00\x18ftypheix", "a.heic", "", "image/heic", id="a picture of 10 bits"),
        pytest.param(b"\x00\x00\x00\x18ftypmif1", "a.heif", "", "image/heif", id="a picture of another codec"),
        pytest.param(b"OggS\x00", "v.ogg", "audio/ogg; codecs=opus", "audio/ogg", id="a voice message"),
        pytest.param(
            b"PK\x03\x04..",
            "a.docx",
            "",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            id="docx in a zip",
        ),
        pytest.param(b"PK\x03\x04..", "a.html", "text/html", "application/zip", id="zip"),
        pytest.param(b"hello", "a.csv", "text/csv", "text/csv", id="text of a kind"),
        pytest.param(b'{"a": 1}', "a.json", "", "application/json", id="json"),
        pytest.param(b"<html>", "a.html", "text/html", "text/plain", id="html is text"),
        pytest.param(b"<svg/>", "a.svg", "image/svg+xml", "text/plain", id="svg can run scripts"),
        pytest.param(b"\x00\x01", "a.png", "image/png", "application/octet-stream", id="no png in sight"),
        pytest.param(
            b"\x00\x01", "a.html", "text/html", "application/octet-stream", id="binary that claims to be html"
        ),
        pytest.param(b"\x00\x01", "a.psd", "image/x-psd", "image/x-psd", id="unknown to us, so believed"),
        pytest.param(b"\x00\x01", "a", "x\r\nSet-Cookie: a=b", "application/octet-stream", id="header injection"),
        pytest.param("ação".encode() * 1000, "a", "", "text/plain", id="cut within a letter"),
        pytest.param(b"\xff\xfe\xfd", "a.txt", "text/plain", "application/octet-stream", id="not UTF-8"),
    ],
)
def test_the_type_is_what_the_bytes_say(head: bytes, filename: str, declared: str, kind: str) -> None:
    sample = head[: content_types.HEAD_BYTES]
    assert content_types.detect(sample, filename=filename, declared=declared) == kind


@given(st.binary(max_size=64), st.text(max_size=40), st.text(max_size=80))
def test_no_file_is_something_that_a_browser_runs(head: bytes, filename: str, declared: str) -> None:
    kind = content_types.detect(head, filename=filename, declared=declared)
    assert not any(word in kind for word in ("html", "script", "svg", "xml;"))
    assert kind.count("/") == 1
    assert len(kind) <= 129
    assert kind.isprintable()
