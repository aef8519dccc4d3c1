"""One fault under load: people write, something breaks, everything settles, the checker judges what everybody saw."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import httpx

from core.errors import Unavailable
from messaging import topics
from tests.faults.checker import Report, report
from tests.faults.collect import CHANNELS, GROUP, Device, Mark, Watcher, Writer, collect, devices, sources
from tests.faults.history import History
from tests.faults.patience import eventually
from tests.faults.world import CLUSTER, LOCAL, Line, Pace, Profile, World
from tests.town import insta_id, phone

EACH_PER_SECOND: Final = 8.0  # what a writer, who waits for its answers, has no trouble to write
AFTERWARDS: Final = 30  # accepted after the strike at least: they tell when work goes on
BATCHES: Final = 0.2  # of the requests to users: they carry several messages
PARKED_S: Final = 120.0  # what waits apart is tried again after half the time for which it was parked, or a minute
PERSONS_SHARE: Final = 0.2  # of the writers' requests; persons on the platforms write that much together
BOUNDS: Final = {"rss_mb": 900.0, "bus_mb": 128.0, "queue": 1_000.0}
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that breaks, and is whole again when ``strike`` returns.

    ``strike`` runs while people write, and asserts what must hold meanwhile. ``afterwards`` sees the whole history and
    the report of a round that kept its promises, and asserts what must hold in addition. ``short`` names the profiles
    whose every `make test` has it; the soak has it on all of ``profiles``, unless ``joined``: then its parts are
    faults of their own there. ``target_s`` is how soon work shall go on after the mending; the report names who missed
    it.
    """

    name: str
    strike: Callable[[World, Pace], None]
    profiles: frozenset[Profile] = LOCAL | CLUSTER
    short: frozenset[Profile] = LOCAL | CLUSTER
    afterwards: Callable[[World, History, Report], None] | None = None
    target_s: float = 10.0
    joined: bool = False


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
    target_s: float = 10.0


class PromisesBroken(AssertionError):
    """The checker found something; ``report`` says what."""

    def __init__(self, report: Report) -> None:
        super().__init__("\n".join(map(str, [report, *report.violations[:20]])))
        self.report = report


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody on a platform who writes to us."""

    channel: str
    address: str  # as the platform has it
    kind: str  # from whatsapp, from instagram


@dataclass
class Round:
    """Writers, sockets and a watcher on new conversations of a world."""

    world: World
    pace: Pace
    seed: str
    name: str = field(default_factory=lambda: f"r{next(_names)}")
    began: dict[str, tuple[float, str]] = field(default_factory=dict)  # by text: when it was first tried, its kind
    sockets: list[Device] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writers = max(6, math.ceil(self.pace.per_second / EACH_PER_SECOND))
        self.writer = Writer(self.world.alice)
        self.watcher = Watcher(self.world.town, self.world.alice, bounds=BOUNDS)
        self.mark = Mark.now(self.world.town, self.world.accounts.values(), after=self.world.mark)
        self.world.mark = self.mark
        bob = self.world.bob.user_id
        self.lines = [
            *(Line(f"{self.name}-user-{number}", bob, "user") for number in range(24)),
            *(Line(f"{self.name}-wa-{number}", f"whatsapp:+{phone()}", "whatsapp") for number in range(12)),
            *(Line(f"{self.name}-ig-{number}", f"instagram:{insta_id()}", "instagram") for number in range(4)),
        ]
        self.persons = [*self._answering(4), *self._strangers(2)]
        self.said: list[str] = []  # what platforms took from persons
        self._enough = threading.Event()

    def _answering(self, each: int) -> Iterator[Person]:
        """Some of those whom alice writes to, of each channel."""
        for channel in CHANNELS:
            for line in [line for line in self.lines if line.kind == channel][:each]:
                yield Person(channel, line.to.partition(":")[2].lstrip("+"), f"from {channel}")

    def _strangers(self, each: int) -> Iterator[Person]:
        for channel, new in zip(CHANNELS, (phone, insta_id), strict=True):
            yield from (Person(channel, new(), f"from {channel}") for _ in range(each))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside people write, and go on until enough was accepted; afterwards all that they wrote was answered."""
        with ExitStack() as stack:
            self.sockets = stack.enter_context(devices(self.world.alice, self.world.bob))
            stack.enter_context(self.watcher.watching())
            writers = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(self.writers)]
            writers.append(threading.Thread(target=self._say, daemon=True))
            for each in writers:
                each.start()
            try:
                yield
                least = max(self.pace.messages, self.accepted + AFTERWARDS)
                eventually(lambda: self.accepted >= least, within_s=self._patience_s)
            finally:
                self._enough.set()
                for each in writers:
                    each.join(self._patience_s)
            assert not any(each.is_alive() for each in writers), "a client hangs"
            self.outcome = self._settled()

    @property
    def accepted(self) -> int:
        return self.writer.accepted

    def texts(self, *kinds: str) -> frozenset[str]:
        """What was accepted so far, or taken by a platform from a person, of these kinds."""
        taken = [each.content for each in list(self.writer.requests) if each.message_id is not None]
        return frozenset(text for text in (*taken, *list(self.said)) if self.began[text][1] in kinds)

    def write(self, conversation: str, texts: Sequence[str], to: str, *, kind: str) -> None:
        """Have alice say these as well, in one request; judged like everything else."""
        began_s = time.monotonic()
        self.began |= dict.fromkeys(texts, (began_s, kind))
        self.writer.write(conversation, texts, to, within_s=self._patience_s)

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
        """Every record is committed, nothing is parked, and every webhook delivered."""
        log, town = self.world.town.log, self.world.town
        try:
            for topic in topics.work_topics(CHANNELS):
                for source in sources(town, topic):
                    if log.committed(GROUP, source) < log.end_offset(source):
                        return False
            stats = town.platform.get("/stats").json()
            return not stats["webhooks"]["pending"] and not self.world.parked()
        except (Unavailable, httpx.HTTPError):
            return False  # nobody can tell

    @property
    def _patience_s(self) -> float:
        return 2 * self.pace.outage_s + 90 + self.pace.messages / 20

    def _write(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        mine = self.lines[number :: self.writers]
        for count in itertools.count():
            if self._enough.wait(chance.expovariate(self.pace.per_second / self.writers)):
                return
            line = chance.choice(mine)
            several = line.kind == "user" and chance.random() < BATCHES
            texts = [
                f"{line.conversation} {number}.{count}.{each}" for each in range(self.pace.batch if several else 1)
            ]
            self.write(line.conversation, texts, line.to, kind=line.kind)

    def _say(self) -> None:
        chance, pause_s = random.Random(f"{self.seed} persons"), 1 / (self.pace.per_second * PERSONS_SHARE)
        for count in itertools.count():
            if self._enough.wait(chance.expovariate(1 / pause_s)):
                return
            if len(self.said) > 10 + PERSONS_SHARE * self.accepted:
                continue  # nobody waits for an answer here: a machine too slow for the writers must not be flooded
            who = chance.choice(self.persons)
            text = f"{self.name} {who.address} says {count}"
            self.began[text] = time.monotonic(), who.kind
            with suppress(httpx.HTTPError, AssertionError):  # the platform's ledger knows what it took
                self.world.town.says(who.channel, self.world.accounts[who.channel], who.address, text)
                self.said.append(text)

    def _settled(self) -> Report:
        eventually(self.is_quiet, within_s=self._patience_s + PARKED_S, every_s=0.5)
        began_s, longest_s = time.monotonic(), 0.0
        while True:
            look_s = time.monotonic()
            judged = report(self.history())
            took_s = time.monotonic() - look_s  # to look at a big round costs the system something
            longest_s = max(longest_s, took_s)
            if not judged.violations or time.monotonic() - began_s > max(60, 4 * longest_s):
                return judged
            threading.Event().wait(0.5 + took_s)  # receipts and frames may still be on their way

    def times(self) -> tuple[float, float]:
        """How long after the mending work went on, and until all was caught up with; in seconds."""
        mended_s, arrived_s = self.world.mended_s, self.arrivals()
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

    def arrivals(self) -> dict[str, float]:
        """When each text was first pushed to bob, taken by a platform, or pushed to alice from a person; monotonic
        seconds."""
        alice, bob = self.sockets
        pushed = {frame["message"]["content"]: at_s for at_s, frame in list(bob.times) if frame["type"] == "message"}
        for at_s, frame in list(alice.times):
            if frame["type"] == "message" and ":" in frame["message"]["sender_id"]:
                pushed.setdefault(frame["message"]["content"], at_s)
        shift_s = time.time() - time.monotonic()
        for account in self.world.accounts.values():
            for each in self.mark.received(self.world.town, account):
                pushed.setdefault(each["text"], each["received_at"] / 1000 - shift_s)
        return pushed


def run(fault: Fault, world: World, pace: Pace, *, seed: int) -> Outcome:
    """Strike, settle, judge. Raises AssertionError with every broken promise."""
    started_s = time.monotonic()
    world.disarm()
    for each in (world.alice, world.bob):
        each.sign_in()
    round_ = Round(world, pace, f"{seed} {fault.name}")  # the same whatever was struck before
    world.load = round_
    with round_.running():
        eventually(lambda: round_.accepted >= min(40, pace.messages // 3), within_s=60)
        world.mended()
        fault.strike(world, pace)
    judged = round_.outcome
    if judged.violations:
        raise PromisesBroken(judged)
    assert judged.heard, "no person on a platform was heard"
    if fault.afterwards is not None:
        fault.afterwards(world, round_.history(), judged)
    took_s = time.monotonic() - started_s
    return Outcome(fault.name, world.profile, judged, *round_.times(), took_s, fault.target_s)
