"""Fetching a server's program: once, whole, and with a reason when it fails. Go is played by a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stack import downloads

ROOT = Path(__file__).resolve().parents[2]
FETCH = "from tests.stack import downloads; print(downloads.toxiproxy())"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def play_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make `go` a script that notes each call and goes on with what it is given; the path of its notes."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def play(script: str) -> Path:
        notes = tmp_path / "notes"
        (programs / "go").write_text(f'#!/bin/sh\necho "$@" >> {notes}\n{script}\n')
        (programs / "go").chmod(0o755)
        return notes

    return play


def eventually(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.01)


@contextmanager
def fetching() -> Iterator[subprocess.Popen[str]]:
    command = (sys.executable, "-c", FETCH)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def go_on(tmp_path: Path) -> Iterator[Path]:
    """A file that the player of Go waits for; whatever happens, it does not wait for ever."""
    yield tmp_path / "go-on"
    (tmp_path / "go-on").touch()


def test_a_program_is_fetched_once_at_its_pinned_version(cache: Path, play_go: Callable[[str], Path]) -> None:
    notes = play_go('echo built > "$GOBIN/server"')
    assert downloads.toxiproxy().read_text() == "built\n"
    assert downloads.toxiproxy().is_relative_to(cache)
    assert notes.read_text() == f"install github.com/Shopify/toxiproxy/v2/cmd/server@{downloads.TOXIPROXY}\n"


def test_a_failure_names_the_server_the_command_and_the_end_of_its_output(
    cache: Path, play_go: Callable[[str], Path]
) -> None:
    play_go("seq 100; echo no such host >&2; exit 3")
    with pytest.raises(downloads.DownloadFailed) as failure:
        downloads.toxiproxy()
    text = str(failure.value)
    assert text.startswith("toxiproxy could not be fetched: exit code 3")
    assert "99\n100\nno such host\n" in text
    assert "\n50\n" not in text
    assert text.endswith(f"go install github.com/Shopify/toxiproxy/v2/cmd/server@{downloads.TOXIPROXY}")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_missing_tool_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(downloads.DownloadFailed, match="there is no mvn on PATH"):
        downloads.kafka()


def test_two_at_once_fetch_once(cache: Path, play_go: Callable[[str], Path], go_on: Path) -> None:
    notes = play_go(f'until [ -e {go_on} ]; do sleep 0.02; done; echo built > "$GOBIN/server"')
    with fetching() as one:
        eventually(notes.exists)
        with fetching() as two:
            assert two.stderr is not None
            assert "waiting for another process" in two.stderr.readline()
            go_on.touch()
            assert Path(two.communicate(timeout=20)[0].strip()).read_text() == "built\n"
        assert one.wait(20) == 0
    assert len(notes.read_text().splitlines()) == 1


def test_a_killed_fetch_leaves_no_half_program(cache: Path, play_go: Callable[[str], Path], go_on: Path) -> None:
    notes = play_go(
        f'echo half > "$GOBIN/server"; until [ -e {go_on} ]; do sleep 0.02; done; echo whole > "$GOBIN/server"'
    )
    with fetching() as killed:
        eventually(lambda: list(cache.glob(".toxiproxy-*/server")))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        go_on.touch()
        assert downloads.toxiproxy().read_text() == "whole\n"
    assert len(notes.read_text().splitlines()) == 2
    assert not list(cache.glob(".toxiproxy-*"))
