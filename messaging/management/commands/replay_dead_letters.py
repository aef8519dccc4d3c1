"""Put dead letters back on the topics that they came from."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from accounts import audit
from core.clock import SYSTEM_CLOCK
from core.commands import LeanCommand
from core.errors import Unavailable
from messaging import wiring
from messaging.management.arguments import TIMES, Stop, Stopped, moment_ms, stop_on_signals
from messaging.replays import SqlMarks
from messaging.services import replay
from messaging.services.replay import Fate, Page, Place, Verdict, Wanted
from messaging.topics import Topic

PROGRESS_EVERY = 1_000  # dead letters looked at
FILTERS = {"topic": None, "since": 0, "until": 1 << 53, "error": None}  # and what they are when nobody gives them


class Command(LeanCommand):
    help = (
        "Append dead letters again to the topics that they came from, oldest first, each once however often this runs. "
        "A send that failed is replayed as a new attempt; left alone is what was delivered meanwhile, and what was too "
        "large to be kept whole. Without a filter: all of them. Exit code 2 when it ended early."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--topic", action="append", metavar="TOPIC", help="that they came from; may be repeated")
        parser.add_argument("--since", type=moment_ms, default=0, metavar="TIME", help=f"dead since then. {TIMES}")
        parser.add_argument("--until", type=moment_ms, default=1 << 53, metavar="TIME", help="dead before then")
        parser.add_argument("--error", help="only those of this error, as the admin's list of dead letters shows it")
        parser.add_argument(
            "--id",
            action="append",
            type=_place,
            metavar="ID",
            help="such as messages:0:17; repeatable, no other filter",
        )
        parser.add_argument("--limit", type=int, default=None, help="replay at most so many")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done with each")

    def handle(self, *_: Any, **options: Any) -> None:
        if options["limit"] is not None and options["limit"] < 1:
            raise CommandError("--limit must be at least 1")
        if options["id"] and any(options[each] != default for each, default in FILTERS.items()):
            raise CommandError("--id names single letters: no other filter goes with it")
        counts: Counter[Fate] = Counter()
        try:
            with stop_on_signals() as stop:
                self._replay(options, counts, stop)
        except Stopped:
            raise CommandError(f"stopped; {_told(counts)} so far, run it again to go on", returncode=2) from None
        except (Unavailable, OperationalError, InterfaceError) as error:
            why = error.detail if isinstance(error, Unavailable) else "the database does not answer"
            raise CommandError(f"{why}; {_told(counts)} so far, run it again to go on", returncode=2) from error
        self.stdout.write(f"{'would be ' if options['dry_run'] else ''}{_told(counts)}")

    def _replay(self, options: dict[str, Any], counts: Counter[Fate], stop: Stop) -> None:
        log, store, marks = wiring.event_log(), wiring.message_store(), SqlMarks()
        left: int | None = options["limit"]
        if not options["dry_run"]:
            replay.forget_gone(log, _work_topics(), marks=marks)
        looked_at, told_at = 0, 0
        for page in self._chosen(options):
            stop.check()
            verdicts = _first(replay.judge(page.letters, store=store, marks=marks, now_ms=SYSTEM_CLOCK.now_ms()), left)
            if options["dry_run"]:
                for each in verdicts:
                    self.stdout.write(_line(each))
            else:
                replayed = replay.Replayed(audit.command_actor(), SYSTEM_CLOCK.now_ms())
                if places := replay.places(verdicts):
                    # First, so that what was done is known, whatever dies in between.
                    audit.record(
                        "dead_letters.replayed",
                        actor=replayed.by,
                        target="dead letters",
                        details=", ".join(map(str, places)),
                    )
                replay.carry_out(verdicts, log=log, marks=marks, replayed=replayed)
            counts.update(replay.tally(verdicts))
            looked_at += page.looked_at
            if verdicts and not options["dry_run"]:
                told_at = looked_at
                self.stdout.write(f"{verdicts[-1].letter.place}: {_told(counts)}")
            elif looked_at >= told_at + PROGRESS_EVERY:
                told_at = looked_at
                self.stdout.write(f"{looked_at} looked at: {_told(counts)}")
            if left is not None:
                left -= replay.tally(verdicts)[Fate.REPLAYED]
                if left <= 0:
                    return

    def _chosen(self, options: dict[str, Any]) -> Iterator[Page]:
        """In pieces, each small enough to be held in memory."""
        log, known = wiring.event_log(), {topic.name: topic for topic in _work_topics()}
        names = options["topic"] or known
        places: list[Place] = options["id"] or []
        if unknown := {*names, *(place.topic for place in places)} - set(known):
            raise CommandError(f"no such topic: {', '.join(sorted(unknown))}. There are {', '.join(known)}")
        wanted = Wanted([known[name] for name in names], options["since"], options["until"], options["error"])
        if not places:
            yield from replay.pages(log, wanted, store=wiring.message_store())
            return
        for place in dict.fromkeys(places):
            found = replay.at(log, place)
            if found is None:
                raise CommandError(f"there is no dead letter {place} (any more)")
            yield Page([found], 1, None)


def _work_topics() -> list[Topic]:
    work = wiring.work_topics()
    return [topic for topic in wiring.all_topics() if topic.name in work]


def _first(verdicts: list[Verdict], most: int | None) -> list[Verdict]:
    """Up to the one with which ``most`` are replayed."""
    if most is None:
        return verdicts
    replayed = [number for number, each in enumerate(verdicts) if each.fate is Fate.REPLAYED]
    return verdicts[: replayed[most - 1] + 1] if len(replayed) >= most else verdicts


def _line(verdict: Verdict) -> str:
    letter = verdict.letter
    attempt = ", as a new attempt" if len(verdict.records) > 1 else ""
    return f"{letter.place}\t{letter.error}\tmessage {letter.message_id or '?'}\t{verdict.fate.value}{attempt}"


def _told(counts: Counter[Fate]) -> str:
    others = [f"{counts[fate]} {fate.value}" for fate in Fate if fate is not Fate.REPLAYED and counts[fate]]
    return ", ".join([f"{counts[Fate.REPLAYED]} replayed", *others])


def _place(text: str) -> Place:
    try:
        return Place.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
