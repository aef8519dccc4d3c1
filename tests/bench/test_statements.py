"""Recorded statements, run about other things."""

from __future__ import annotations

from bench.statements import Template, together
from messaging.stores.cassandra.session import SamePartition, Statement, Write


def values(steps: list[list[Write]]) -> list[list[list[list[object]]]]:
    return [[[list(statement.values) for statement in write] for write in step] for step in steps]


STEPS: list[list[Write]] = [
    [Statement("SELECT a", ("m1", 7)), Statement("SELECT b", (["x", ("m1", "p1")],))],
    [SamePartition([Statement("INSERT c", ("m1", None)), Statement("INSERT d", ("p1", "m1"))])],
]


def test_a_template_fills_in_names_wherever_they_stand() -> None:
    filled = Template(STEPS, {"m1", "p1"}).filled({"m1": "m2", "p1": "p2"})
    assert values([list(step) for step in filled]) == [
        [[["m2", 7]], [[["x", ("m2", "p2")]]]],
        [[["m2", None], ["p2", "m2"]]],
    ]
    assert isinstance(filled[1][0], SamePartition)


def test_a_template_stays_as_it_was_recorded() -> None:
    template = Template(STEPS, {"m1"})
    assert template.filled({"m1": "m2"}) != template.filled({"m1": "m3"})
    assert values(STEPS)[0][0] == [["m1", 7]]


def test_several_pieces_of_work_go_step_by_step_together() -> None:
    one, other = ([[Statement(f"{name}{step}", ())] for step in (1, 2)] for name in "ab")
    joined = together([one, other])
    assert [[statement.cql for write in step for statement in write] for step in joined] == [["a1", "b1"], ["a2", "b2"]]
