"""One fault under load: people write, something breaks, everything settles, the checker judges what everybody saw."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from messaging import topics
from tests.faults.checker import Report, report
from tests.faults.collect import CHANNELS, GROUP, Device, Mark, Watcher, Writer, collect, devices, sources
from tests.faults.history import History
from tests.faults.world import Pace, Profile, World
from tests.town import eventually, insta_id, phone

WRITERS: Final = 6
BOUNDS: Final = {"rss_mb": 900.0, "bus_mb": 128.0, "queue": 1_000.0}
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that breaks, and is whole again when ``strike`` returns.

    ``strike`` runs while people write, and asserts what must hold meanwhile. ``afterwards`` sees the whole history and
    the report of a round that kept its promises, and asserts what must hold in addition. ``short`` names the profiles
    whose every `make test` has it; the soak has it on all of ``profiles``.
    """

    name: str
    strike: Callable[[World, Pace], None]
    profiles: frozenset[Profile] = frozenset({"local", "cluster"})
    short: frozenset[Profile] = frozenset({"local", "cluster"})
    afterwards: Callable[[World, History, Report], None] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row of the report. ``goes_on_s``: from the mending until the first later message arrived, of the slowest
    channel; ``caught_up_s``: until the last of those that had to wait."""

    fault: str
    profile: Profile
    report: Report
    goes_on_s: float
    caught_up_s: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """A conversation of the round, and whom it goes to."""

    conversation: str
    to: str
    kind: str  # user, whatsapp, instagram


@dataclass
class Round:
    """Writers, sockets and a watcher on new conversations of a world."""

    world: World
    pace: Pace
    seed: int
    name: str = field(default_factory=lambda: f"r{next(_names)}")
    began: dict[str, tuple[float, str]] = field(default_factory=dict)  # by text: when it was first tried, its kind
    sockets: list[Device] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writer = Writer(self.world.alice)
        self.watcher = Watcher(self.world.town, self.world.alice, bounds=BOUNDS)
        self.mark = Mark.now(self.world.town, self.world.accounts.values())
        bob = self.world.bob.user_id
        self.lines = [
            *(Line(f"{self.name}-user-{number}", bob, "user") for number in range(24)),
            *(Line(f"{self.name}-wa-{number}", f"whatsapp:+{phone()}", "whatsapp") for number in range(12)),
            *(Line(f"{self.name}-ig-{number}", f"instagram:{insta_id()}", "instagram") for number in range(4)),
        ]
        self._enough = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside people write, and go on until enough was accepted; afterwards all that they wrote was answered."""
        with ExitStack() as stack:
            self.sockets = stack.enter_context(devices(self.world.alice, self.world.bob))
            stack.enter_context(self.watcher.watching())
            writers = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(WRITERS)]
            for each in writers:
                each.start()
            try:
                yield
                eventually(lambda: self.accepted >= self.pace.messages, within_s=self._patience_s)
            finally:
                self._enough.set()
                for each in writers:
                    each.join(self._patience_s)
            assert not any(each.is_alive() for each in writers), "a client hangs"
            self.outcome = self._settled()

    @property
    def accepted(self) -> int:
        return sum(each.message_id is not None for each in list(self.writer.requests))

    def history(self) -> History:
        accounts = list(self.world.accounts.values())
        return collect(
            self.world.town,
            writers=[self.writer],
            accounts=accounts,
            sockets=self.sockets,
            watcher=self.watcher,
            since=self.mark,
        )

    def is_quiet(self) -> bool:
        """Every record is committed and every webhook delivered."""
        log, town = self.world.town.log, self.world.town
        for topic in topics.work_topics(CHANNELS):
            for source in sources(town, topic):
                if log.committed(GROUP, source) < log.end_offset(source):
                    return False
        stats = town.platform.get("/stats").json()
        return not stats["webhooks"]["pending"]

    @property
    def _patience_s(self) -> float:
        return 2 * self.pace.outage_s + 90 + self.pace.messages / 20

    def _write(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {self.name} {number}")
        mine = self.lines[number::WRITERS]
        for count in itertools.count():
            if self._enough.wait(chance.expovariate(self.pace.per_second / WRITERS)):
                return
            line = chance.choice(mine)
            text = f"{line.conversation} {number}.{count}"
            self.began[text] = time.monotonic(), line.kind
            self.writer.write(line.conversation, text, line.to, within_s=self._patience_s)

    def _settled(self) -> Report:
        eventually(self.is_quiet, within_s=self._patience_s)
        deadline_s = time.monotonic() + 60
        while (judged := report(self.history())).violations and time.monotonic() < deadline_s:
            threading.Event().wait(0.5)  # receipts and frames may still be on their way
        return judged

    def times(self) -> tuple[float, float]:
        """How long after the mending work went on, and until all was caught up with; in seconds."""
        mended_s, arrived_s = self.world.mended_s, self._arrivals()
        first: dict[str, float] = {}
        last = 0.0
        for text, (began_s, kind) in self.began.items():
            if (at_s := arrived_s.get(text)) is None or at_s < mended_s:
                continue
            if began_s >= mended_s:
                first[kind] = min(at_s - mended_s, first.get(kind, at_s - mended_s))
            else:
                last = max(last, at_s - mended_s)
        return max(first.values(), default=0.0), last

    def _arrivals(self) -> dict[str, float]:
        """When each text was first pushed to bob or taken by a platform; monotonic seconds."""
        bob = self.sockets[1]
        pushed = {frame["message"]["content"]: at_s for at_s, frame in bob.times if frame["type"] == "message"}
        shift_s = time.time() - time.monotonic()
        for account in self.world.accounts.values():
            for each in self.mark.received(self.world.town, account):
                pushed.setdefault(each["text"], each["received_at"] / 1000 - shift_s)
        return pushed


def run(fault: Fault, world: World, pace: Pace, *, seed: int) -> Outcome:
    """Strike, settle, judge. Raises AssertionError with every broken promise."""
    started_s = time.monotonic()
    for each in (world.alice, world.bob):
        each.sign_in()
    round_ = Round(world, pace, seed)
    with round_.running():
        eventually(lambda: round_.accepted >= min(40, pace.messages // 3), within_s=60)
        world.mended()
        fault.strike(world, pace)
    judged = round_.outcome
    assert not judged.violations, "\n".join(map(str, [judged, *judged.violations[:20]]))
    if fault.afterwards is not None:
        fault.afterwards(world, round_.history(), judged)
    return Outcome(fault.name, world.profile, judged, *round_.times(), time.monotonic() - started_s)
