"""What the rounds of a run came to, as a table: printed at the end of the tests, written by the soak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from tests.faults.checker import Report
from tests.faults.rounds import Outcome

OUTCOMES: Final[list[Outcome]] = []  # of this process

HEAD: Final = (
    "| profile | fault | acknowledged | heard | lost | twice at a platform | ambiguous | dead letters "
    "| goes on after | caught up after |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
)


def note(outcome: Outcome) -> None:
    OUTCOMES.append(outcome)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line for each round, and one for all."""
    return "\n".join((*HEAD, *map(_line, outcomes), _total(outcomes)))


def _line(each: Outcome) -> str:
    numbers = _counts([each.report], "{:,}")
    return f"| {each.profile} | {each.fault} | {numbers} | {each.goes_on_s:.1f} s | {each.caught_up_s:.1f} s |"


def _total(outcomes: Sequence[Outcome]) -> str:
    numbers = _counts([each.report for each in outcomes], "**{:,}**")
    slowest = max((each.goes_on_s for each in outcomes), default=0.0)
    latest = max((each.caught_up_s for each in outcomes), default=0.0)
    return f"| | **{len(outcomes)} faults** | {numbers} | {slowest:.1f} s | {latest:.1f} s |"


# --- the soak --------------------------------------------------------------------------------------------------------

BEGIN: Final = "<!-- {profile}: `make soak` writes from here -->"
END: Final = "<!-- {profile}: to here -->"
SOAK_HEAD: Final = (
    "| profile | fault | times | acknowledged | heard | lost | twice at a platform | ambiguous | dead letters "
    "| undecided | went on after, at most | target | caught up after, at most |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A round that broke a promise, then with its report, or that could not be judged. ``again`` repeats it."""

    fault: str
    profile: str
    seed: int
    why: str
    again: str = ""
    report: Report | None = None


def soak(outcomes: Sequence[Outcome], failures: Sequence[Failure]) -> str:
    """Markdown: a line for each kind of fault, one for all, who missed the target, and what failed."""
    kinds = [list(group) for _, group in groupby(sorted(outcomes, key=_kind), key=_kind)]
    rows = [_kind_line(each) for each in kinds]
    reports = [each.report for each in outcomes] + [each.report for each in failures if each.report is not None]
    struck = len(outcomes) + len(failures)
    undecided = sum(each.undecided for each in reports)
    slowest = max((each.goes_on_s for each in outcomes), default=0.0)
    latest = max((each.caught_up_s for each in outcomes), default=0.0)
    total = (
        f"| | **all** | **{struck:,}** | {_counts(reports, '**{:,}**')} | **{undecided:,}** | {slowest:.1f} s | "
        f"| {latest:.1f} s |"
    )
    return "\n".join((*SOAK_HEAD, *rows, total, *_missed(kinds), *_failed(failures)))


def between_marks(text: str, profile: str, told: str) -> str:
    """``text`` with this between the profile's marks. Raises ValueError when it has none."""
    marks = BEGIN.format(profile=profile), END.format(profile=profile)
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"no {marks[0]} … {marks[1]}")
    return f"{before}{begin}\n\n{told}\n\n{end}{after}"


def _kind(each: Outcome) -> tuple[str, str]:
    return each.profile, each.fault


def _kind_line(same: Sequence[Outcome]) -> str:
    profile, fault = _kind(same[0])
    numbers = _counts([each.report for each in same], "{:,}")
    undecided = sum(each.report.undecided for each in same)
    latest = max(each.caught_up_s for each in same)
    return (
        f"| {profile} | {fault} | {len(same)} | {numbers} | {undecided:,} | {_slowest(same):.1f} s "
        f"| {same[0].target_s:g} s | {latest:.1f} s |"
    )


def _counts(reports: Sequence[Report], form: str) -> str:
    counts = (
        sum(each.acknowledged for each in reports),
        sum(each.heard for each in reports),
        sum(each.lost for each in reports),
        sum(each.duplicated for each in reports),
        sum(each.ambiguous for each in reports),
        sum(each.dead for each in reports),
    )
    return " | ".join(map(form.format, counts))


def _slowest(same: Sequence[Outcome]) -> float:
    return max(each.goes_on_s for each in same)


def _missed(kinds: Sequence[Sequence[Outcome]]) -> list[str]:
    late = [same for same in kinds if _slowest(same) > same[0].target_s]
    named = [
        f"- {same[0].fault} ({same[0].profile}): {_slowest(same):.1f} s, not {same[0].target_s:g} s" for same in late
    ]
    return ["", "Went on later than they should:", "", *named] if late else []


def _failed(failures: Sequence[Failure]) -> list[str]:
    named = [
        f"- {each.fault} ({each.profile}), seed {each.seed}: {each.why.splitlines()[0][:200]}" for each in failures
    ]
    return ["", "**Failed**:", "", *named] if failures else []
