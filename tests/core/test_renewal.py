"""The thread that asks again for what requests ask for."""

from __future__ import annotations

import threading

import pytest

from core import renewal


def test_one_that_fails_keeps_neither_the_others_nor_itself_from_the_next_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(renewal, "EVERY_S", 0.01)
    failed, twice = threading.Semaphore(0), threading.Semaphore(0)

    def fail() -> None:
        failed.release()
        raise ZeroDivisionError

    enough = renewal.keep_renewing(fail, twice.release)
    try:
        for each in (failed, twice):
            assert all(each.acquire(timeout=10) for _ in range(2))
    finally:
        enough.set()
    assert "not renewed" in caplog.text
