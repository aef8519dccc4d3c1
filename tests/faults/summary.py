"""What the rounds of a run came to, as a table: printed at the end of the tests, written by the soak."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from tests.faults.checker import Report
from tests.faults.rounds import Outcome, Recovery

OUTCOMES: Final[list[Outcome]] = []  # of this process

HEAD: Final = (
    "| profile | fault | acknowledged | heard | lost | twice at a platform | ambiguous | dead letters "
    "| went on after, at most | caught up after, at most | took |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
)


def note(outcome: Outcome) -> None:
    OUTCOMES.append(outcome)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line for each round, one for all, and one for each blow in them."""
    return "\n".join((*HEAD, *map(_line, outcomes), _total(outcomes), *recoveries(outcomes)))


def _line(each: Outcome) -> str:
    numbers = _counts([each.report], "{:,}")
    return (
        f"| {each.profile} | {each.fault} | {numbers} | {_slowest([each])} | {_latest([each])} | {each.took_s:.0f} s |"
    )


def _total(outcomes: Sequence[Outcome]) -> str:
    numbers = _counts([each.report for each in outcomes], "**{:,}**")
    took_s = sum(each.took_s for each in outcomes)
    whole = f"{_slowest(outcomes)} | {_latest(outcomes)} | {took_s:.0f} s |"
    return f"| | **{len(outcomes)} rounds** | {numbers} | {whole}"


def recoveries(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each kind of blow: how long the slowest conversation took to go on after the slowest of them."""
    blows = [(each.profile, blow) for each in outcomes for blow in each.recoveries]
    by_kind = groupby(sorted(blows, key=_blow), key=_blow)
    return [*RECOVERY_HEAD, *(_recovery_line(*kind, [blow for _, blow in same]) for kind, same in by_kind)]


def _blow(each: tuple[str, Recovery]) -> tuple[str, str]:
    return each[0], each[1].what


def _recovery_line(profile: str, what: str, same: Sequence[Recovery]) -> str:
    went_on_s = max(each.went_on_s for each in same)
    caught_up_s = max(each.caught_up_s for each in same)
    target_s = max(each.target_s for each in same)
    late = " **late**" if went_on_s > target_s else ""
    return f"| {profile} | {what} | {len(same)} | {went_on_s:.1f} s{late} | {target_s:g} s | {caught_up_s:.1f} s |"


# --- the soak --------------------------------------------------------------------------------------------------------

BEGIN: Final = "<!-- {profile}: `make soak` writes from here -->"
END: Final = "<!-- {profile}: to here -->"
SOAK_HEAD: Final = (
    "| profile | fault | times | acknowledged | heard | lost | twice at a platform | ambiguous | dead letters "
    "| undecided | went on after, at most | caught up after, at most |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
)
RECOVERY_HEAD: Final = (
    "",
    "Recovery: how long the slowest conversation took to go on, and until all that had waited was there. Counted from "
    "the end of who is killed where others do its work, else from the moment at which what broke is whole.",
    "",
    "| profile | from when | times | went on after, at most | target | caught up after, at most |",
    "|---|---|--:|--:|--:|--:|",
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
    """Markdown: a line for each kind of fault, one for all, one for each kind of blow, and what failed."""
    kinds = [list(group) for _, group in groupby(sorted(outcomes, key=_kind), key=_kind)]
    rows = [_kind_line(each) for each in kinds]
    reports = [each.report for each in outcomes] + [each.report for each in failures if each.report is not None]
    struck = len(outcomes) + len(failures)
    undecided = sum(each.undecided for each in reports)
    numbers = f"{_counts(reports, '**{:,}**')} | **{undecided:,}**"
    total = f"| | **all** | **{struck:,}** | {numbers} | {_slowest(outcomes)} | {_latest(outcomes)} |"
    return "\n".join((*SOAK_HEAD, *rows, total, *recoveries(outcomes), *_failed(failures)))


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
    return f"| {profile} | {fault} | {len(same)} | {numbers} | {undecided:,} | {_slowest(same)} | {_latest(same)} |"


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


def _slowest(outcomes: Sequence[Outcome]) -> str:
    return _longest(blow.went_on_s for each in outcomes for blow in each.recoveries)


def _latest(outcomes: Sequence[Outcome]) -> str:
    return _longest(blow.caught_up_s for each in outcomes for blow in each.recoveries)


def _longest(seconds: Iterable[float]) -> str:
    """A dash where nothing that broke had to recover."""
    longest = max(seconds, default=None)
    return "-" if longest is None else f"{longest:.1f} s"


def _failed(failures: Sequence[Failure]) -> list[str]:
    named = [
        f"- {each.fault} ({each.profile}), seed {each.seed}: {each.why.splitlines()[0][:200]}" for each in failures
    ]
    return ["", "**Failed**:", "", *named] if failures else []
