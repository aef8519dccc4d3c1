"""Codes are a promise: docs/errors.md lists every one that a client may meet, with its status."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from core.errors import Chat4AllError

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("core", "accounts", "connectors", "files", "messaging", "realtime")
TEXT: Final = (ROOT / "docs" / "errors.md").read_text()
LISTED: Final = set(re.findall(r"^\| (\d+) \| `(\w+)`", TEXT, re.MULTILINE))


def subclasses(kind: type[Chat4AllError]) -> Iterator[type[Chat4AllError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def errors() -> list[type[Chat4AllError]]:
    """Every failure that we raise on purpose, wherever it is declared."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not re.search(r"\.(migrations|management)\b", module.name):
                importlib.import_module(module.name)
    return [each for each in subclasses(Chat4AllError) if each.__module__.partition(".")[0] in PACKAGES]


ERRORS: Final = errors()
UNSENT: Final = TEXT.partition("## Never sent to clients")[2]


def field_codes() -> dict[str, Path]:
    """Codes of single fields as they stand in the code: ``code="…"``, and what a channel does not carry."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.is_relative_to(ROOT / "messaging" / "admin"):
                continue  # its forms answer in sentences
            for code in re.findall(r'\bcode="(\w+)"|ErrorDetail\([^()]*, "(\w+)"\)', path.read_text()):
                found[code[0] or code[1]] = path.relative_to(ROOT)
    faults = re.findall(r'return "(\w+)"|else "(\w+)"|"(\w+)" if', (ROOT / "connectors" / "base.py").read_text())
    return {**found, **{code: Path("connectors/base.py") for groups in faults for code in groups if code}}


FIELD_CODES: Final = field_codes()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_lists_every_failure_with_its_status(error: type[Chat4AllError]) -> None:
    if "code" in vars(error) or "http_status" in vars(error):
        assert (str(error.http_status), error.code) in LISTED or f"`{error.code}`" in UNSENT


@pytest.mark.parametrize("code", FIELD_CODES)
def test_lists_every_code_of_a_field(code: str) -> None:
    assert f"`{code}`" in TEXT, FIELD_CODES[code]


def test_finds_what_it_looks_for() -> None:
    assert {"WebhookTooLarge", "LogUnavailable", "BadSignature"} <= {each.__name__ for each in ERRORS}
    assert {"invalid_cursor", "text_too_long", "too_many", "unknown_field"} <= FIELD_CODES.keys()
