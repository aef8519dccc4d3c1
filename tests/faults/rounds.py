"""One fault under load: people write, something breaks, everything settles, the checker judges what everybody saw."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import httpx

from core.errors import Unavailable
from tests.faults.checker import Report, report
from tests.faults.collect import CHANNELS, GROUP, Device, Mark, Taken, Watcher, Writer, all_sources, collect, devices
from tests.faults.history import History, Request
from tests.faults.patience import eventually
from tests.faults.world import CLUSTER, LOCAL, Blow, Line, Pace, Profile, World
from tests.town import insta_id, phone

EACH_PER_SECOND: Final = 8.0  # what a writer, who waits for its answers, has no trouble to write
BEFORE: Final = 8  # accepted before the strike: work is going on
AFTERWARDS: Final = 10  # and after it at least: they tell when work goes on
BATCHES: Final = 0.2  # of the requests to users: they carry several messages
PARKED_S: Final = 120.0  # what waits apart is tried again after half the time for which it was parked, or a minute
PERSONS_SHARE: Final = 0.2  # of the writers' requests; persons on the platforms write that much together
# Of processes about twice what they have when nothing breaks, pages that children share counted for each.
BOUNDS: Final = {
    "rss_mb": 300.0,
    "rss_mb api": 750.0,
    "rss_mb worker": 900.0,
    "rss_mb redis": 900.0,
    "rss_mb simulator": 900.0,
    "bus_mb": 128.0,
    "queue": 50.0,
}
LOG_BOUNDS: Final = {"log_share": 1.0}
BEGUN_WITHIN_S: Final = 5.0  # of a blow: what is said then meets what it left
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that breaks, and is whole again when ``strike`` returns.

    ``strike`` runs while people write, and asserts what must hold meanwhile. ``afterwards`` sees the whole history and
    the report of a round that kept its promises, and asserts what must hold in addition.

    ``short`` names the profiles whose every `make test` has it. The soak has it on all of ``profiles`` when it is a
    fault ``apart``; else its parts are. Joined laps have it where ``short`` or ``joined`` names the profile; of what
    neither they nor their parts strike with, ``like`` is the strike of its kind that they have.
    """

    name: str
    strike: Callable[[World, Pace], None]
    profiles: frozenset[Profile] = LOCAL | CLUSTER
    short: frozenset[Profile] = LOCAL | CLUSTER
    afterwards: Callable[[World, History, Report], None] | None = None
    apart: bool = True
    joined: frozenset[Profile] = frozenset()
    like: Callable[[World, Pace], None] | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long the slowest conversation took to go on after a blow, by its target; and until all that had to wait was
    there. ``slowest`` tells what was said first in that conversation, and in which."""

    what: str
    went_on_s: float
    target_s: float
    caught_up_s: float
    slowest: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row of the report."""

    fault: str
    profile: Profile
    report: Report
    recoveries: Sequence[Recovery]
    took_s: float

    def missed(self, slack: float = 1.0) -> list[Recovery]:
        """Those that took longer than so many times their target."""
        return [each for each in self.recoveries if each.went_on_s > slack * each.target_s]


class PromisesBroken(AssertionError):
    """The checker found something; ``report`` says what."""

    def __init__(self, report: Report) -> None:
        super().__init__("\n".join(map(str, [report, *report.violations[:20]])))
        self.report = report


class Begun(NamedTuple):
    """When somebody first tried to say something, and what it is a part of. ``at_s`` is monotonic."""

    at_s: float
    kind: str
    conversation: str


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
    began: dict[str, Begun] = field(default_factory=dict)  # by text
    sockets: list[Device] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writers = max(6, math.ceil(self.pace.per_second / EACH_PER_SECOND))
        self.writer = Writer(self.world.alice)
        accounts = list(self.world.accounts.values())
        self.mark = self.world.mark = Mark.now(self.world.town, accounts, after=self.world.mark)
        self.watcher = Watcher(
            self.world.town,
            self.world.alice,
            self.world.parking,
            accounts=accounts,
            since=self.mark,
            bounds=BOUNDS | (LOG_BOUNDS if self.world.profile == "local" else {}),
        )
        bob = self.world.bob.user_id
        self.lines = [
            *(Line(f"{self.name}-user-{number}", bob, "user") for number in range(24)),
            *(Line(f"{self.name}-wa-{number}", f"whatsapp:+{phone()}", "whatsapp") for number in range(12)),
            *(Line(f"{self.name}-ig-{number}", f"instagram:{insta_id()}", "instagram") for number in range(4)),
        ]
        self.persons = [*self._answering(4), *self._strangers(2)]
        self.said: list[str] = []  # what platforms took from persons
        self._taken = Taken(self.world.town, accounts, self.mark)
        self._taken_s: dict[str, float] = {}  # by text, monotonic
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
            assert self.writer.strange == [], self.writer.strange[:5]
            self.seen, self.outcome = self._settled()

    @property
    def accepted(self) -> int:
        return self.writer.accepted

    def texts(self, *kinds: str) -> frozenset[str]:
        """What was accepted so far, or taken by a platform from a person, of these kinds."""
        taken = [each.content for each in list(self.writer.requests) if each.message_id is not None]
        return frozenset(text for text in (*taken, *list(self.said)) if self.began[text].kind in kinds)

    def write(self, conversation: str, texts: Sequence[str], to: str, *, kind: str) -> None:
        """Have alice say these as well, in one request; judged like everything else."""
        self.began |= dict.fromkeys(texts, Begun(time.monotonic(), kind, conversation))
        self.writer.write(conversation, texts, to, within_s=self._patience_s)

    def note(self, request: Request, *, began_s: float, kind: str) -> None:
        """What alice said to bob by another way, and heard; judged like everything else."""
        self.began[request.content] = Begun(began_s, kind, request.conversation)
        self.writer.note(request)

    def looked_around(self) -> None:
        """Returns once commits and levels of every kind were seen since now."""
        now_s = time.monotonic()
        try:
            eventually(lambda: not self.watcher.unseen_since(now_s), within_s=self._patience_s, every_s=0.1)
        except AssertionError as error:
            error.add_note(f"unseen: {self.watcher.unseen_since(now_s)}\n{self.watcher.failed}")
            raise

    def _history(self) -> History:
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
            for source in all_sources(town):
                if log.committed(GROUP, source) < log.end_offset(source):
                    return False
            stats = town.platform.get("/stats").json()
            return not stats["webhooks"]["pending"] and self.world.parking.is_empty()
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
            self.began[text] = Begun(time.monotonic(), who.kind, who.address)
            with suppress(httpx.HTTPError, AssertionError):  # the platform's ledger knows what it took
                self.world.town.says(who.channel, self.world.accounts[who.channel], who.address, text)
                self.said.append(text)

    def _settled(self) -> tuple[History, Report]:
        eventually(self.is_quiet, within_s=self._patience_s + PARKED_S, every_s=0.5)
        began_s, longest_s = time.monotonic(), 0.0
        while True:
            look_s = time.monotonic()
            history = self._history()
            judged = report(history)
            took_s = time.monotonic() - look_s  # to look at a big round costs the system something
            longest_s = max(longest_s, took_s)
            if not judged.violations or time.monotonic() - began_s > max(60, 4 * longest_s):
                return history, judged
            threading.Event().wait(0.5 + took_s)  # receipts and frames may still be on their way

    def recoveries(self) -> list[Recovery]:
        """One for each blow."""
        began, arrived_s = self.began.copy(), self.arrivals()
        return [recovery(each, began, arrived_s, self.world.strikes_s) for each in self.world.blows]

    def delays(self, *kinds: str, since_s: float, until_s: float) -> dict[str, float]:
        """How long each text took that was accepted and begun in that time, infinity when it is not there; seconds.
        Without those that met something else, see `World.shaking`."""
        arrived_s, found = self.arrivals(), {}
        for text in self.texts(*kinds):
            began_s, at_s = self.began[text].at_s, arrived_s.get(text, math.inf)
            shaken = any(began_s < end_s and at_s > start_s for start_s, end_s in self.world.shaken_s)
            if since_s <= began_s <= until_s and not shaken:
                found[text] = at_s - began_s
        return found

    def arrivals(self) -> dict[str, float]:
        """When each text was first shown to bob, taken by a platform, or shown to alice from a person; monotonic
        seconds."""
        alice, bob = self.sockets
        said = {text for text, begun in self.began.copy().items() if begun.kind.startswith("from ")}
        shown_s = bob.shown_s.copy() | {text: at_s for text, at_s in alice.shown_s.copy().items() if text in said}
        shift_s = time.time() - time.monotonic()
        for each in self._taken.more():
            self._taken_s.setdefault(each["text"], each["received_at"] / 1000 - shift_s)
        return self._taken_s | shown_s


def recovery(
    blow: Blow, began: Mapping[str, Begun], arrived_s: Mapping[str, float], strikes_s: Iterable[float]
) -> Recovery:
    """From a blow, of what was under way then or begun soon after. Who still waits when the next strike begins waits by
    that one from there."""
    until_s = min((each for each in strikes_s if each > blow.at_s), default=math.inf)
    waited_s: dict[str, list[float]] = defaultdict(list)  # by conversation
    kinds: dict[str, str] = {}
    for text, begun in began.items():
        start_s, end_s = max(begun.at_s, blow.at_s), min(arrived_s.get(text, 0), until_s)
        is_its = not blow.kinds or begun.kind in blow.kinds
        if is_its and begun.at_s <= blow.at_s + BEGUN_WITHIN_S and end_s >= start_s:
            waited_s[begun.conversation].append(end_s - start_s)
            kinds.setdefault(begun.conversation, f"{begun.kind}, begun {begun.at_s - blow.at_s:+.1f} s from then")
    went_on = max if blow.taken_over else min
    went_on_s = {conversation: went_on(each) for conversation, each in waited_s.items()}
    slowest = max(went_on_s, key=went_on_s.__getitem__, default="")
    return Recovery(
        blow.what,
        went_on_s=went_on_s.get(slowest, 0.0),
        target_s=blow.target_s,
        caught_up_s=max(map(max, waited_s.values()), default=0.0),
        slowest=f"{kinds[slowest]}, in {slowest}" if slowest else "",
    )


def run(fault: Fault, world: World, pace: Pace, *, seed: int) -> Outcome:
    """Strike, settle, judge. Raises AssertionError with every broken promise."""
    started_s = time.monotonic()
    world.new_round()
    for each in (world.alice, world.bob):
        each.sign_in()
    round_ = Round(world, pace, f"{seed} {fault.name}")  # the same whatever was struck before
    world.load = round_
    with round_.running():
        eventually(lambda: round_.accepted >= BEFORE, within_s=60)
        fault.strike(world, pace)
        round_.looked_around()
    judged = round_.outcome
    if judged.violations:
        raise PromisesBroken(judged)
    assert judged.heard, "no person on a platform was heard"
    if fault.afterwards is not None:
        fault.afterwards(world, round_.seen, judged)
    took_s = time.monotonic() - started_s
    return Outcome(fault.name, world.profile, judged, round_.recoveries(), took_s)
