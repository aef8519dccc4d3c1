"""`make soak`: every fault again and again, in an order that the seed decides, until enough was acknowledged."""

from __future__ import annotations

import argparse
import itertools
import random
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import tests.conftest  # sets Django up; before whatever imports models
from demo.interrupts import interruptible
from tests.faults import kinds, rounds, summary
from tests.faults.rounds import Fault, Outcome, PromisesBroken
from tests.faults.summary import Failure
from tests.faults.world import DENSE, DENSE_LOCAL, FULL, SHORT, Pace, Profile, World, world_of

ROOT: Final = Path(tests.conftest.__file__).resolve().parents[1]
GUARANTEES: Final = ROOT / "docs" / "guarantees.md"
KEPT: Final = ROOT / "test-results" / "soak"
STARTS: Final = 3  # in vain, one after the other: then the profile's lap is over
PACES: Final[dict[str, dict[Profile, Pace]]] = {
    "full": {"local": FULL, "cluster": FULL},
    "dense": {"local": DENSE_LOCAL, "cluster": DENSE},
    "short": {"local": SHORT, "cluster": SHORT},
}
PROFILES: Final[dict[str, tuple[Profile, ...]]] = {
    "local": ("local",),
    "cluster": ("cluster",),
    "both": ("local", "cluster"),
}

PACES_HELP: Final = (
    "short: as `make test` has it; dense: full, with about 30 messages a second (local: 80), most of them in batches"
)
ONLY_HELP: Final = "the fault of this name, or those whose name has these words; may be given several times"
WRITE_HELP: Final = "put the tables into docs/guarantees.md, also when it is interrupted once there were enough"

Strike = Callable[[Fault, World, Pace, int], Outcome]
Opened = Callable[[Profile], AbstractContextManager[World]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. ``profile`` is one of PROFILES, ``pace`` one of PACES; ``joined``: rounds in which several
    things break, where there are such; ``only``: see `named`."""

    seed: int
    profile: str = "both"
    messages: int = 200_000
    pace: str = "full"
    joined: bool = False
    only: tuple[str, ...] = ()

    def seed_of(self, lap: int) -> int:
        """So that a later lap is the first one of a run with that seed."""
        return self.seed + lap

    def order(self, profile: Profile, lap: int, faults: Sequence[Fault]) -> list[Fault]:
        """The same for the same seed, whatever else is run. What is joined has to be asked for."""
        chosen = [each for each in self._wanted(profile, faults) if profile in each.profiles]
        random.Random(f"{self.seed_of(lap)} {profile}").shuffle(chosen)
        return chosen

    def _wanted(self, profile: Profile, faults: Sequence[Fault]) -> list[Fault]:
        if self.only:
            return [each for each in faults if any(each in named(words, faults) for words in self.only)]
        return [each for each in faults if (profile in each.short | each.joined if self.joined else each.apart)]

    def repeats(self, profile: Profile, fault: Fault, lap: int) -> str:
        """The line that runs this one round again."""
        return (
            f"python -m tests.faults.soak --profile {profile} --pace {self.pace} --seed {self.seed_of(lap)} "
            f"--messages 1 --only {shlex.quote(fault.name)}"
        )


def named(words: str, faults: Sequence[Fault]) -> list[Fault]:
    """The fault of this name; without one, those whose name has these words."""
    exactly = [each for each in faults if each.name.lower() == words.lower()]
    return exactly or [each for each in faults if words.lower() in each.name.lower()]


@dataclass
class Soak:
    """Rounds one after the other: each fault once in a lap, laps until enough was acknowledged.

    A round that fails is written down, and costs the world that it broke. A lap in which nothing was acknowledged is
    the last: there is nothing to be had.
    """

    plan: Plan
    faults: Sequence[Fault]
    strike: Strike
    opened: Opened
    say: Callable[[str], None] = print
    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _began_s: float = field(default_factory=time.monotonic)

    @property
    def acknowledged(self) -> int:
        return sum(each.report.acknowledged for each in self.outcomes)

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._began_s) / 60

    def run(self) -> None:
        for lap in itertools.count():
            before = self.acknowledged
            for profile in PROFILES[self.plan.profile]:
                self._through(profile, lap)
            if self.has_enough or self.acknowledged == before:
                return

    @property
    def has_enough(self) -> bool:
        return self.acknowledged >= self.plan.messages

    def _through(self, profile: Profile, lap: int) -> None:
        todo = deque(self.plan.order(profile, lap, self.faults))
        bad_starts = 0
        while todo and not (lap and self.has_enough):  # the first lap has every fault, whatever was acknowledged
            before = len(todo)
            try:
                self._in_a_world(profile, lap, todo)
            except Exception as error:  # the next world may have better luck
                why = f"{type(error).__name__}: {error}"
                self._note(Failure("the system's start or end", profile, self.plan.seed_of(lap), why))
            bad_starts = bad_starts + 1 if len(todo) == before else 0
            if bad_starts == STARTS:
                return

    def _in_a_world(self, profile: Profile, lap: int, todo: deque[Fault]) -> None:
        """Until nothing is left to do, or a round fails."""
        with self.opened(profile) as world:
            while todo and not (lap and self.has_enough):
                fault = todo.popleft()
                try:
                    outcome = self.strike(fault, world, PACES[self.plan.pace][profile], self.plan.seed_of(lap))
                except Exception as error:
                    self._note(self._failure(fault, profile, lap, error))
                    _keep(world, f"{len(self.failures)}-{profile}")
                    return
                self.outcomes.append(outcome)
                self._progress(outcome, lap, len(todo))

    def _failure(self, fault: Fault, profile: Profile, lap: int, error: Exception) -> Failure:
        found = error.report if isinstance(error, PromisesBroken) else None
        why = f"{type(error).__name__}: {error}"
        return Failure(fault.name, profile, self.plan.seed_of(lap), why, self.plan.repeats(profile, fault, lap), found)

    def _note(self, failure: Failure) -> None:
        self.failures.append(failure)
        again = f"\nagain: {failure.again}" if failure.again else ""
        self.say(f"FAILED {failure.profile}: {failure.fault}\n{failure.why[:4000]}{again}")

    def _progress(self, done: Outcome, lap: int, left: int) -> None:
        seen = done.report
        self.say(
            f"{done.profile}, lap {lap + 1}, {left} to go: {done.fault}: {seen.acknowledged:,} acknowledged, "
            f"{seen.lost} lost, {seen.duplicated} twice, {seen.ambiguous} ambiguous, "
            f"{seen.undecided} undecided, took {done.took_s:.0f} s{_told_late(done)}; "
            f"{self.acknowledged:,} of {self.plan.messages:,}, about {self._minutes_left(lap):.0f} min left"
        )

    def _minutes_left(self, lap: int) -> float:
        """As long as it took so far, for what is missing: messages, or rounds of the first lap."""
        rounds_done = len(self.outcomes) + len(self.failures)
        missing = max(0, self.plan.messages - self.acknowledged) / max(1, self.acknowledged)
        first_lap = sum(len(self.plan.order(each, 0, self.faults)) for each in PROFILES[self.plan.profile])
        return self.minutes * max(missing, 0.0 if lap else first_lap / rounds_done - 1)


def _keep(world: World, name: str) -> None:
    """The logs of a world in which something failed."""
    with suppress(OSError, shutil.Error):
        shutil.copytree(world.system.state_dir / "logs", KEPT / name, dirs_exist_ok=True)


@contextmanager
def own_world(pace: str, profile: Profile) -> Iterator[World]:
    """A new system in a folder that goes with it."""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="chat4all-soak-", ignore_cleanup_errors=True))
        )
        yield stack.enter_context(world_of(profile, folder, PACES[pace][profile]))


def strike(fault: Fault, world: World, pace: Pace, seed: int) -> Outcome:
    return rounds.run(fault, world, pace, seed=seed)


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    plan = _plan(options)
    if unknown := [words for words in plan.only if not _is_known(words, plan)]:
        print(f"no fault of {plan.profile} has {' or '.join(map(repr, unknown))} in its name", file=sys.stderr)
        return 2
    opened = partial(own_world, plan.pace)
    soak = Soak(plan, kinds.ALL, strike, opened, say=lambda text: print(text, flush=True))
    print(f"seed {plan.seed}: the same seed strikes in the same order", flush=True)
    try:
        with interruptible():
            soak.run()
    except KeyboardInterrupt:
        _tell(soak, write=options.write and soak.has_enough)
        return 130
    _tell(soak, write=options.write)
    return 1 if soak.failures or any(each.missed() for each in soak.outcomes) else 0


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(options.seed, options.profile, options.messages, options.pace, options.joined, tuple(options.only))


def _is_known(words: str, plan: Plan) -> bool:
    alone = replace(plan, only=(words,))
    return any(alone.order(profile, 0, kinds.ALL) for profile in PROFILES[plan.profile])


def _told_late(done: Outcome) -> str:
    late = (f"{each.what}: {each.went_on_s:.1f} s, not {each.target_s:g} s ({each.slowest})" for each in done.missed())
    return "".join(f", LATE {each}" for each in late)


def _tell(soak: Soak, *, write: bool) -> None:
    for profile in PROFILES[soak.plan.profile]:
        told = f"{_headline(soak.plan, profile, soak.minutes)}\n\n{_table(soak, profile)}"
        print(told, flush=True)
        if write:
            GUARANTEES.write_text(summary.between_marks(GUARANTEES.read_text(), profile, told))


def _headline(plan: Plan, profile: Profile, minutes: float) -> str:
    only = f", only {', '.join(f'`{each}`' for each in plan.only)}" if plan.only else ""
    joined = ", several faults in a round" if plan.joined else ""
    return (
        f"The {profile} profile, seed {plan.seed}, pace {plan.pace}{joined}{only}, {datetime.now(UTC):%Y-%m-%d}, "
        f"in a run of {minutes:.0f} minutes."
    )


def _table(soak: Soak, profile: Profile) -> str:
    outcomes = [each for each in soak.outcomes if each.profile == profile]
    return summary.soak(outcomes, [each for each in soak.failures if each.profile == profile])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="both")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="of the order; random")
    parser.add_argument("--messages", type=int, default=200_000, help="acknowledged over all rounds, at least")
    parser.add_argument("--pace", choices=sorted(PACES), default="full", help=PACES_HELP)
    parser.add_argument(
        "--joined", action="store_true", help="every kind in fewer rounds: several things break in most"
    )
    parser.add_argument("--only", action="append", default=[], metavar="WORDS", help=ONLY_HELP)
    parser.add_argument("--write", action="store_true", help=WRITE_HELP)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
