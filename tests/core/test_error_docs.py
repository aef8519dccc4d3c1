"""docs/errors.md lists every code that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from core import problems

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "accounts", "connectors", "files", "messaging", "realtime")


def codes_of_classes() -> dict[str, str]:
    """Each ``code = "…"`` in a class of an errors module, and where it stands."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("errors.py"):
            classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
            for statement in (statement for each in classes for statement in each.body):
                match statement:
                    case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                        found[code] = f"{path.relative_to(ROOT)}:{statement.lineno}"
    return found


def codes_of_problems() -> dict[str, str]:
    text = Path(problems.__file__).read_text()
    codes = re.findall(r'Problem\(\s*\d+, "(\w+)"|: \("(\w+)", "', text)
    return {one or other: "core/problems.py" for one, other in codes}


CODES = codes_of_classes() | codes_of_problems()


@pytest.mark.parametrize(("code", "where"), CODES.items(), ids=CODES.keys())
def test_lists_every_code(code: str, where: str) -> None:
    assert f"`{code}`" in (ROOT / "docs" / "errors.md").read_text(), f"{where} has a code that docs/errors.md has not"


def test_finds_codes_of_both_kinds() -> None:
    assert {"invalid_token", "log_unavailable", "not_authenticated", "payload_too_large"} <= CODES.keys()
