"""docs/guarantees.md names tests: they exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).resolve().parent
NAMED: Final = re.findall(r"`(test_\w+)`", (TESTS.parent / "docs" / "guarantees.md").read_text())
THERE: Final = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())}


@pytest.mark.parametrize("name", sorted(set(NAMED)))
def test_a_promise_names_a_test_that_there_is(name: str) -> None:
    assert name in THERE


def test_every_promise_names_one() -> None:
    text = (TESTS.parent / "docs" / "guarantees.md").read_text()
    promises = re.split(r"^\d+\. ", text.partition("**Sending once**")[0], flags=re.MULTILINE)[1:]
    assert len(promises) == 10
    assert all("`test_" in promise for promise in promises)
