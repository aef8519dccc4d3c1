"""What REQUIRE promises: a server that must be there is there, and its tests cannot be skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import servers
from tests.stack.downloads import ROOT
from tests.stack.stack import Stack

USES_THE_BROWSER = """
from tests.browser.conftest import browser

def test_it(browser):
    assert browser.is_connected()
"""


def test_every_required_server_is_there() -> None:
    for name in servers.required():
        assert name in servers.SERVERS, f"REQUIRE names {name!r}; known are {', '.join(servers.SERVERS)}"
        assert servers.needed(name)


def test_a_missing_server_skips_the_test_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.SERVERS, "kafka", lambda: None)
    monkeypatch.setenv("REQUIRE", "redis,chromium")
    with pytest.raises(pytest.skip.Exception, match="there is no kafka"):
        servers.needed("kafka")


def test_a_missing_server_that_is_required_fails_the_test_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.SERVERS, "kafka", lambda: None)
    monkeypatch.setenv("REQUIRE", "redis, kafka")
    with pytest.raises(pytest.fail.Exception, match="REQUIRE names kafka"):
        servers.needed("kafka")


def test_a_server_that_is_there_is_named() -> None:
    assert servers.needed("redis-6.2").endswith("redis-server")


@pytest.mark.parametrize("long_run", [False, True])
def test_for_a_long_run_java_compiles_as_in_production(tmp_path: Path, long_run: bool) -> None:
    stack = Stack(tmp_path, ["kafka", "cassandra"], long_run=long_run)
    for server in stack.servers:
        server.fetch()
        _, _, serves = " ".join(server.command()).rpartition("exec ")  # Kafka's disk is made ready before that
        assert ("TieredStopAtLevel=1" in serves) is not long_run


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("path/google-chrome-stable", id="Google Chrome"),
        pytest.param("playwright/chromium-1187/chrome-linux/chrome", id="Playwright's"),
    ],
)
def test_the_browser_tests_take_a_chromium_wherever_it_is(tmp_path: Path, place: str) -> None:
    """Where it is all that there is: what `.ci/system-parts` takes for one, or fetched, is what they start."""
    chromium = tmp_path / place
    chromium.parent.mkdir(parents=True)
    chromium.write_text(f'#!/bin/sh\nPATH={os.environ["PATH"]} exec {servers.needed("chromium")} "$@"\n')
    chromium.chmod(0o755)
    (tmp_path / "test_it.py").write_text(USES_THE_BROWSER)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path / "test_it.py"],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": str(tmp_path / "path"),
            "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "playwright"),
            "REQUIRE": "chromium",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
