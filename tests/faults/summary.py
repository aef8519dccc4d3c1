"""What the rounds of a run came to, as a table: printed at the end of the tests, written by the soak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.faults.rounds import Outcome

OUTCOMES: Final[list[Outcome]] = []  # of this process

HEAD: Final = (
    "| profile | fault | acknowledged | lost | twice at a platform | ambiguous | dead letters "
    "| goes on after | caught up after |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|",
)


def note(outcome: Outcome) -> None:
    OUTCOMES.append(outcome)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line for each round, and one for all."""
    return "\n".join((*HEAD, *map(_line, outcomes), _total(outcomes)))


def _line(each: Outcome) -> str:
    seen = each.report
    counts = (seen.acknowledged, seen.lost, seen.duplicated, seen.ambiguous, seen.dead)
    numbers = " | ".join(f"{count:,}" for count in counts)
    return f"| {each.profile} | {each.fault} | {numbers} | {each.goes_on_s:.1f} s | {each.caught_up_s:.1f} s |"


def _total(outcomes: Sequence[Outcome]) -> str:
    reports = [each.report for each in outcomes]
    counts = (
        sum(each.acknowledged for each in reports),
        sum(each.lost for each in reports),
        sum(each.duplicated for each in reports),
        sum(each.ambiguous for each in reports),
        sum(each.dead for each in reports),
    )
    numbers = " | ".join(f"**{count:,}**" for count in counts)
    slowest = max((each.goes_on_s for each in outcomes), default=0.0)
    latest = max((each.caught_up_s for each in outcomes), default=0.0)
    return f"| | **{len(outcomes)} faults** | {numbers} | {slowest:.1f} s | {latest:.1f} s |"
