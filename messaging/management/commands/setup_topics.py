"""Create the topics that are missing and say where the event log differs from what is declared."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from django.core.management.base import CommandError

from core.commands import LeanCommand
from messaging import wiring
from messaging.errors import LogUnavailable, StoreUnavailable
from messaging.ports import Drift, TopicPartition
from messaging.topics import Topic

EXIT_SHORTAGE: Final = 1  # or a refusal: somebody has to change something
EXIT_AWAY: Final = 3  # 2 is a wrong option
RETRY_EVERY_S: Final = 1.0
EVER_MS: Final = 2**62  # nothing is due later

T = TypeVar("T")


class Command(LeanCommand):
    help = (
        "Create every topic that the system needs in the event log, then compare partitions, replicas and settings "
        "with what is declared. What exists is left as it is. Exit code 0: the system can work, whatever else differs; "
        "1: something is lacking that a promise hangs on, or was refused; 3: the event log is away."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
        parser.add_argument(
            "--drained",
            action="store_true",
            help="also add partitions that existing topics lack. Keys move: everything that appends must be stopped; "
            "refused while the group has members or a lag, or a conversation is held back",
        )
        parser.add_argument(
            "--replication-factor",
            type=_positive,
            metavar="N",
            help="replicas of each topic (Kafka; default: 3, or as many as there are servers)",
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="wait so long for the event log (default: 60)",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        self._deadline_s = time.monotonic() + options["timeout"]
        log = wiring.event_log()
        topics = [replace(topic, replicas=options["replication_factor"]) for topic in wiring.all_topics()]
        before = self._asked(lambda: log.drift(topics))
        if options["dry_run"]:
            self._say_plan(before, drained=options["drained"])
        else:
            self._asked(lambda: log.ensure_topics(topics))
            if options["drained"]:
                self._grow(topics)
        self._list(topics)
        left = before if options["dry_run"] else self._asked(lambda: log.drift(topics))
        if options["dry_run"]:  # what this command would not mend
            left = [each for each in left if not _is_mended(each, drained=options["drained"])]
        if left:
            self.stdout.write("\n".join(_table(left)))
        if shortages := [each for each in left if each.is_shortage]:
            raise CommandError(
                f"the event log lacks what a promise hangs on. Hint: {_remedy(shortages)}", returncode=EXIT_SHORTAGE
            )
        if left:
            self.stderr.write(f"the event log differs from what is declared, and works so. Hint: {_remedy(left)}")

    def _say_plan(self, drift: Sequence[Drift], *, drained: bool) -> None:
        for each in drift:
            if each.what == "topic":
                self.stdout.write(f"would create {each.topic}")
            elif _is_mended(each, drained=drained):
                self.stdout.write(f"would grow {each.topic} from {each.found} to {each.declared} partitions")
        if drained:
            for obstacle in self._asked(lambda: _in_the_way(drift)):
                self.stdout.write(f"in the way: {obstacle}")

    def _grow(self, topics: Sequence[Topic]) -> None:
        """Add partitions, to all that lack some or to none."""
        log = wiring.event_log()
        narrow = self._asked(lambda: log.lacking(topics))
        if obstacles := self._asked(lambda: _in_the_way(narrow)):
            found = "\n".join(f"  {each}" for each in obstacles)
            raise CommandError(f"growing moves keys, and this is in the way:\n{found}", returncode=EXIT_SHORTAGE)
        names = {each.topic for each in narrow}
        self._asked(lambda: log.grow([topic for topic in topics if topic.name in names]))

    def _list(self, topics: Sequence[Topic]) -> None:
        for topic in topics:
            self.stdout.write(f"{topic.name}: {topic.partitions} partitions, kept {topic.retention.days} days")

    def _asked(self, ask: Callable[[], T]) -> T:
        """The answer of a log that may only be starting, or restarting: all that is asked may be asked again. That it
        refuses us is told at once: that does not mend itself."""
        while True:
            try:
                return ask()
            except (LogUnavailable, StoreUnavailable) as error:
                if not error.may_pass:
                    raise CommandError(error.detail, returncode=EXIT_SHORTAGE) from error
                left_s = self._deadline_s - time.monotonic()
                if left_s <= 0:
                    raise CommandError(error.detail, returncode=EXIT_AWAY) from error
                self.stderr.write(f"waiting, {left_s:.0f} s left: {error.detail}")
                time.sleep(min(RETRY_EVERY_S, left_s))


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _is_mended(drift: Drift, *, drained: bool) -> bool:
    """Whether this command does something about it."""
    return drift.what == "topic" or (drift.what == "partitions" and drift.is_shortage and drained)


def _in_the_way(drift: Sequence[Drift]) -> list[str]:
    """Why these must not grow now: a record that waits on one partition, or was set aside from it (and is tried again
    by partition and offset), would be overtaken by its key's next ones."""
    log, store = wiring.event_log(), wiring.message_store()
    narrow = [each for each in drift if each.what == "partitions" and each.is_shortage]
    members = sorted(log.members(wiring.GROUP)) if narrow else []
    sources = [TopicPartition(each.topic, number) for each in narrow for number in range(int(each.found))]
    lags = {source: log.end_offset(source) - log.committed(wiring.GROUP, source) for source in sources}
    held_back = [each.topic for each in narrow if store.due_scopes(topic=each.topic, now_ms=EVER_MS, limit=1)]
    return [
        *([f"the group has members ({', '.join(members)}): stop every bridge"] if members else []),
        *(
            f"{source.topic}/{source.partition} has a lag of {lag}: let bridges finish"
            for source, lag in lags.items()
            if lag
        ),
        *(
            f"conversations are held back on {topic}: let bridges and workers finish, they try again"
            for topic in held_back
        ),
    ]


def _table(drift: Sequence[Drift]) -> Iterator[str]:
    rows = [("topic", "", "declared", "found"), *((each.topic, each.what, each.declared, each.found) for each in drift)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _remedy(drift: Sequence[Drift]) -> str:
    remedies = {
        "partitions": "PARTITIONS must be what is there, or grow with everything stopped: setup_topics --drained "
        "(they never shrink)",
        "bytes": "setup_topics takes LOG_PARTITION_BYTES over (dead letters have no bound)",
        "retention": "change a topic's retention.ms with Kafka's own tools, or RETENTION_DAYS",
        "replicas": "change replicas with Kafka's own tools, or declare them (?replication=N, --replication-factor N)",
    }
    kinds = dict.fromkeys(each.what for each in drift)
    return "; ".join(remedies.get(what, f"change {what} with Kafka's own tools (kafka-configs.sh)") for what in kinds)
