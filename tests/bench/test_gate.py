"""The gate: what falls below its floor, or was not measured at all, makes it fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import figures, gate
from bench.figures import Figure, Section


def run(tmp_path: Path, found: dict[str, float], minima: dict[str, float]) -> int:
    results, least = tmp_path / "bench.json", tmp_path / "gate.json"
    figures.keep([Section("all", [Figure(name, "", name=name, ratio=ratio) for name, ratio in found.items()])], results)
    least.write_text(json.dumps(minima))
    return gate.main([str(results), "--minima", str(least)])


@pytest.mark.parametrize(
    ("found", "minima", "code"),
    [
        pytest.param({"api": 0.8}, {"api": 0.5}, 0, id="above"),
        pytest.param({"api": 0.5}, {"api": 0.5}, 0, id="just"),
        pytest.param({"api": 0.49}, {"api": 0.5}, 1, id="below"),
        pytest.param({"loop": 0.9}, {"api": 0.5}, 1, id="not measured"),
        pytest.param({"api": 0.8, "new": 0.1}, {"api": 0.5}, 0, id="without a minimum"),
        pytest.param({"api": float("nan")}, {"api": 0.5}, 1, id="not a number"),
    ],
)
def test_the_gate_fails_below_a_minimum(
    tmp_path: Path, found: dict[str, float], minima: dict[str, float], code: int
) -> None:
    assert run(tmp_path, found, minima) == code


def test_the_gate_names_what_fell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, {"api": 0.3, "loop": 0.9}, {"api": 0.5, "loop": 0.4})
    assert capsys.readouterr().err == "api is 0.30 of its floor, below 0.50\n"


def test_the_gate_says_that_nothing_was_measured_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate.main([str(tmp_path / "none.json")]) == 1
    assert "make bench" in capsys.readouterr().err


def test_the_recorded_minima_are_ratios() -> None:
    minima = json.loads(gate.MINIMA.read_text())
    assert minima
    assert all(0 < least < 1 for least in minima.values())
