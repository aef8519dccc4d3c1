"""The soak's runner: an order that can be repeated, rounds that fail, the table. For rounds see test_short.py."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.faults import kinds, soak, summary
from tests.faults.checker import Report, Rule, Violation, report
from tests.faults.history import History
from tests.faults.kinds.combined import parts
from tests.faults.rounds import Fault, Outcome, PromisesBroken, Recovery
from tests.faults.soak import PROFILES, Plan, Soak
from tests.faults.world import CLUSTER, LOCAL, Pace, Profile, World


def nothing(_world: World, _pace: Pace) -> None:
    """Rounds are not run here."""


FAULTS = tuple(Fault(f"part {number} breaks", nothing) for number in range(8))
LOCAL_ONLY = Fault("the disk is full", nothing, profiles=frozenset({"local"}))


def seen(acknowledged: int, *, lost: int = 0, **more: int) -> Report:
    broken = [Violation(Rule.LOST, str(number)) for number in range(lost)]
    quiet = report(History(requests=[], log=[], told=[], dead=[], stored={}, sent=[]))
    return replace(quiet, violations=broken, acknowledged=acknowledged, lost=lost, **more)


def outcome(fault: str, *, acknowledged: int = 100, went_on_s: float = 1.0, **more: Any) -> Outcome:
    recoveries = [Recovery("it is back", went_on_s, target_s=10.0, caught_up_s=went_on_s + 2)]
    return Outcome(fault, "local", seen(acknowledged, **more), recoveries, 30.0)


class Rounds:
    """Rounds that acknowledge a hundred messages each, but for those whose fault ``fails``."""

    def __init__(self, **fails: Exception) -> None:
        self.fails = {name.replace("_", " "): error for name, error in fails.items()}
        self.struck: list[tuple[Profile, int, str, int]] = []
        self.worlds = 0
        self.said: list[str] = []

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[World]:
        self.worlds += 1
        self._profile = profile
        yield cast(World, None)

    def strike(self, fault: Fault, _world: World, _pace: Pace, seed: int) -> Outcome:
        self.struck.append((self._profile, self.worlds, fault.name, seed))
        if fault.name in self.fails:
            raise self.fails[fault.name]
        return Outcome(fault.name, self._profile, seen(100), [], 30.0)

    def soak(self, plan: Plan, faults: tuple[Fault, ...] = FAULTS) -> Soak:
        done = Soak(plan, faults, self.strike, self.opened, self.said.append)
        done.run()
        return done

    def names(self) -> list[str]:
        return [name for _, _, name, _ in self.struck]


@pytest.fixture(autouse=True)
def _no_logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(soak, "_keep", lambda world, name: None)  # there is no world whose logs could be kept


def test_the_same_seed_strikes_in_the_same_order_and_another_in_another() -> None:
    orders = {seed: [] for seed in (7, 8)}  # type: dict[int, list[str]]
    for seed in (7, 8, 7):
        rounds = Rounds()
        rounds.soak(Plan(seed, "local", messages=1))
        assert sorted(rounds.names()) == [each.name for each in FAULTS]
        assert orders[seed] in ([], rounds.names())
        orders[seed] = rounds.names()
    assert orders[7] != orders[8]


def test_every_fault_once_and_then_laps_until_enough_was_acknowledged() -> None:
    rounds = Rounds()
    done = rounds.soak(Plan(3, "local", messages=1_050))
    assert done.acknowledged == 1_100
    assert sorted(rounds.names()[:8]) == [each.name for each in FAULTS]
    assert len(rounds.struck) == 11
    assert {seed for *_, seed in rounds.struck[:8]} == {3}
    assert {seed for *_, seed in rounds.struck[8:]} == {4}, "a later lap is repeated by its own seed"


def test_what_is_struck_by_itself_is_struck_together_only_on_demand() -> None:
    both = Fault("part 1 and part 2 break", nothing, apart=False)
    rounds = Rounds()
    rounds.soak(Plan(3, "local", messages=1), (*FAULTS, both))
    assert both.name not in rounds.names()
    rounds.soak(Plan(3, "local", messages=1, only=("and part 2",)), (*FAULTS, both))
    assert rounds.names()[-1] == both.name


def test_joined_are_the_rounds_of_make_test_and_those_that_say_so() -> None:
    both = Fault("part 1 and part 2 break", nothing, apart=False)
    by_itself, as_well = replace(FAULTS[0], short=frozenset()), replace(FAULTS[1], short=CLUSTER, joined=LOCAL)
    rounds = Rounds()
    rounds.soak(Plan(3, "both", messages=1, joined=True), (both, by_itself, as_well, replace(FAULTS[2], short=CLUSTER)))
    struck = {profile: {name for of, _, name, _ in rounds.struck if of == profile} for profile in PROFILES["both"]}
    assert struck["local"] == {both.name, as_well.name}
    assert struck["cluster"] == {both.name, as_well.name, FAULTS[2].name}


@pytest.mark.parametrize("profile", PROFILES["both"])
def test_joined_laps_strike_with_every_kind(profile: Profile) -> None:
    """With the very strike of a fault that is one apart, or with the one that it says is like it."""
    apart, joined = (Plan(3, joined=each).order(profile, 0, kinds.ALL) for each in (False, True))
    struck = frozenset().union(*(parts(each.strike) for each in joined))
    assert [each.name for each in apart if not (parts(each.strike) <= struck or _has_its_like(each, struck))] == []


def _has_its_like(fault: Fault, struck: frozenset[object]) -> bool:
    return fault.like is not None and parts(fault.like) <= struck


@pytest.mark.parametrize(("acknowledged", "is_written"), [(100, True), (99, False)])
def test_interrupted_it_writes_what_it_came_to_once_that_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, acknowledged: int, is_written: bool
) -> None:
    monkeypatch.setattr(soak, "GUARANTEES", tmp_path / "guarantees.md")
    marks = summary.BEGIN.format(profile="local"), summary.END.format(profile="local")
    soak.GUARANTEES.write_text("\n".join(marks))

    def interrupted(running: Soak) -> None:
        running.outcomes.append(outcome("one", acknowledged=acknowledged))
        raise KeyboardInterrupt

    monkeypatch.setattr(Soak, "run", interrupted)
    assert soak.main(["--profile", "local", "--messages", "100", "--write"]) == 130
    assert ("| local | one |" in soak.GUARANTEES.read_text()) is is_written


@pytest.mark.parametrize(("went_on_s", "code"), [(10.0, 0), (10.5, 1)])
def test_who_is_late_fails_the_soak(monkeypatch: pytest.MonkeyPatch, went_on_s: float, code: int) -> None:
    monkeypatch.setattr(Soak, "run", lambda running: running.outcomes.append(outcome("one", went_on_s=went_on_s)))
    assert soak.main(["--profile", "local", "--messages", "100"]) == code


def test_a_profile_has_its_own_world_and_its_own_faults() -> None:
    rounds = Rounds()
    rounds.soak(Plan(3, "both", messages=1), (*FAULTS, LOCAL_ONLY))
    assert [profile for profile, *_ in rounds.struck] == ["local"] * 9 + ["cluster"] * 8
    assert rounds.worlds == 2


def test_a_round_that_fails_costs_its_world_and_nothing_else() -> None:
    rounds = Rounds(part_2_breaks=PromisesBroken(seen(90, lost=3)), part_5_breaks=TimeoutError("it hangs"))
    done = rounds.soak(Plan(3, "local", messages=500))
    assert sorted(rounds.names()) == [each.name for each in FAULTS]
    assert rounds.worlds == 3
    assert {each.fault for each in done.failures} == {"part 2 breaks", "part 5 breaks"}
    after = [world for _, world, name, _ in rounds.struck if name in rounds.fails]
    assert after == [1, 2], "each in the world that the one before had not broken"
    again = "--profile local --pace full --seed 3 --messages 1 --only 'part 2 breaks'"
    assert any(again in said for said in rounds.said)


def test_the_line_of_a_failed_round_runs_that_round_alone_with_its_seed() -> None:
    broken = Fault("part 2's parent breaks", nothing)
    both = Fault("part 1 breaks, then part 2's parent breaks", nothing)
    python, m, module, *words = shlex.split(Plan(3, "both", messages=500).repeats("local", broken, lap=4))
    assert (python, m, module) == ("python", "-m", soak.__name__)
    rounds = Rounds()
    rounds.soak(soak._plan(soak._parser().parse_args(words)), (*FAULTS, both, broken))
    assert [(profile, name, seed) for profile, _, name, seed in rounds.struck] == [("local", broken.name, 7)]


@pytest.mark.parametrize(
    ("only", "struck"),
    [
        pytest.param(["part 3 breaks"], {3}, id="the one of this name"),
        pytest.param(["Part 3"], {3, 8}, id="those that have it in theirs"),
        pytest.param(["part 3 breaks", "part 5"], {3, 5}, id="several"),
        pytest.param(["part 5", "part 5 breaks"], {5}, id="once each"),
    ],
)
def test_words_pick_a_fault_by_its_name_or_those_that_have_them_in_theirs(only: list[str], struck: set[int]) -> None:
    faults = (*FAULTS, Fault("part 1 breaks, then part 3 breaks", nothing))
    plan = soak._plan(soak._parser().parse_args([word for each in only for word in ("--only", each)]))
    assert sorted(each.name for each in plan.order("local", 0, faults)) == sorted(faults[each].name for each in struck)


def test_it_ends_when_nothing_can_be_acknowledged_any_more() -> None:
    rounds = Rounds(**{each.name.replace(" ", "_"): RuntimeError("away") for each in FAULTS})
    done = rounds.soak(Plan(3, "local", messages=500))
    assert len(done.failures) == len(FAULTS)


def test_a_world_that_does_not_start_is_a_failure_and_ends_it_in_time() -> None:
    def opened(_profile: Profile) -> AbstractContextManager[World]:
        raise OSError("no disk")

    rounds = Rounds()
    done = Soak(Plan(3, "local", messages=500), FAULTS, rounds.strike, opened, rounds.said.append)
    done.run()
    assert len(done.failures) == soak.STARTS
    assert not done.outcomes


def test_a_world_that_starts_the_second_time_costs_no_round() -> None:
    rounds, tries = Rounds(), iter([OSError("busy"), None, None])

    def opened(profile: Profile) -> AbstractContextManager[World]:
        if error := next(tries):
            raise error
        return rounds.opened(profile)

    done = Soak(Plan(3, "local", messages=500), FAULTS, rounds.strike, opened, rounds.said.append)
    done.run()
    assert len(done.failures) == 1
    assert sorted(rounds.names()) == [each.name for each in FAULTS]


def test_each_round_says_how_much_is_done() -> None:
    rounds = Rounds()
    rounds.soak(Plan(3, "local", messages=1_600))
    assert "100 of 1,600" in rounds.said[0]
    assert all("min left" in each for each in rounds.said)
    assert "1,600 of 1,600, about 0 min left" in rounds.said[-1]


def test_the_table_has_a_line_for_each_kind_and_blow_and_names_who_was_late_or_failed() -> None:
    outcomes = [
        outcome("one", went_on_s=4.0),
        outcome("two", ambiguous=2, duplicated=1),
        outcome("one", acknowledged=2_000, went_on_s=11.5, undecided=3),
    ]
    failures = [
        summary.Failure("three", "local", 9, "PromisesBroken: 40 acknowledged, 1 lost\nmore", "…", seen(40, lost=1))
    ]
    told = summary.soak(outcomes, failures)
    assert "| local | one | 2 | 2,100 | 0 | 0 | 0 | 0 | 0 | 3 | 11.5 s | 13.5 s |" in told
    assert "| local | two | 1 | 100 | 0 | 0 | 1 | 2 | 0 | 0 | 1.0 s | 3.0 s |" in told
    total = "| | **all** | **4** | **2,240** | **0** | **1** | **1** | **2** | **0** | **3** | 11.5 s | 13.5 s |"
    assert total in told, "what failed counts"
    assert "| local | it is back | 3 | 11.5 s **late** | 10 s | 13.5 s |" in told
    assert "- three (local), seed 9: PromisesBroken: 40 acknowledged, 1 lost" in told.splitlines()


def test_what_is_written_stays_between_its_marks_and_replaces_what_was_there() -> None:
    local, cluster = (
        (summary.BEGIN.format(profile=each), summary.END.format(profile=each)) for each in PROFILES["both"]
    )
    text = f"before\n{local[0]}\nold\n{local[1]}\n{cluster[0]}{cluster[1]}"
    once = summary.between_marks(text, "local", "first")
    both = summary.between_marks(summary.between_marks(once, "local", "new"), "cluster", "other")
    assert both == f"before\n{local[0]}\n\nnew\n\n{local[1]}\n{cluster[0]}\n\nother\n\n{cluster[1]}"
    with pytest.raises(ValueError, match="soak"):
        summary.between_marks("no marks", "local", "new")


@pytest.mark.parametrize("profile", PROFILES["both"])
def test_the_guarantees_have_a_place_for_it(profile: Profile) -> None:
    assert summary.between_marks(soak.GUARANTEES.read_text(), profile, "new")


def test_words_that_no_fault_has_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--only", "Kafka", "--only", "no such words"]) == 2
    assert "'no such words'" in capsys.readouterr().err
