"""What a message costs as things grow: conversations, stored messages, connected users, a backlog, workers.

    python -m bench.growth [--profile cluster] [--full] [--only stored,conversations,connected,backlog,workers]

One system goes through all but the last, which needs more workers: its store is filled first, and the others meet it
full. Costs are CPU milliseconds of all processes and servers, which another program on the machine changes less than
times.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Self

import httpx

from bench.figures import Curve, Figure, Line, Measured, Spread
from bench.live import kept, listeners_of
from bench.loop import people_on_whatsapp
from bench.people import WHATSAPP_SECRETS, Parcel, Talk, User, crowd, external_talks, parcels, talks, users
from bench.profiles import Profile, add_profile, event_log, not_stored, profile_of, running
from bench.scale import FULL, SHORT, Scale
from bench.traffic import LATE_S, Lag, Traffic, Watched, pushed
from bench.usage import Spent, Usage, family, rss_mb
from demo.supervisor import ROOT, LocalSystem
from messaging.ports import TopicPartition
from messaging.topics import outbound

SHAPES: Final = {1: (1, 1), 10: (2, 5), 100: (5, 20), 1_000: (20, 50), 10_000: (50, 200)}  # senders, listeners
PARCEL: Final = 50
BULK_ABOVE: Final = 100_000  # messages: through the store's port a million takes twenty minutes
WINDOW: Final = 500
WARM_UP_S: Final = 2.0
PAIRS: Final = 20
LIVE_PER_S: Final = 100
BACKLOG_BATCH: Final = 500
BACKLOG_CLIENTS: Final = 4
BACKLOG_POSTS: Final = 100  # at a time: a few seconds
CATCH_UP_S: Final = 7200.0
PARTITIONS: Final = 8  # of two lanes each, so that eight workers find batches
PLATFORM_MS: Final = 4000  # of each send
AT_ONCE: Final = 16  # sends of a worker, which waits for them
WAVES, SPARE = 3, 5  # of those that are measured; that may go by while workers start and end
BESIDE_WORKERS: Final = ("redis-log", "redis-bus", "simulator", "api", "worker-core", "bridge")
LOOK_S, SETTLED_S = 0.05, 0.3
WAITING: Final = 400  # conversations: 25 a lane, more than a worker sends at once
BEGIN_S: Final = 8.0  # until those that are left have batches
TOLD: Final = ("sent", "delivered", "read")
HOUR_MS: Final = 3600 * 1000  # later than anybody looks


def stored(system: LocalSystem, profile: Profile, scale: Scale) -> Iterator[Measured]:
    """The same traffic on a store that holds little, and on one with many messages in the same conversations."""
    costs: dict[int, float] = {}
    many, listeners = crowd(system.api_url, *SHAPES[100], prefix="stored")
    posts = parcels(many, PARCEL)
    _at_most(system, posts, listeners, seconds=WARM_UP_S)
    for count in (0, scale.stored):
        if count:
            bulk = profile == "cluster" and count > BULK_ABOVE
            took_s = _fill(system, many, count, bulk=bulk)
            if bulk:
                _fill(system, many, 0, bulk=bulk, settle=True)
            how = "in bulk, with the store's statements" if bulk else "through the store's port"
            yield Figure(f"storing {count:,} messages {how}", f"{count / took_s:,.0f}/s")
        cost = _at_most(system, posts, listeners, seconds=10 * scale.time)
        costs[count] = cost.ms
        value = f"{cost}; newest page {_page(system, many)}"
        yield Figure(f"with {count:,} more messages stored", value, cost.spent.shared)
    yield from _flatness("stored messages", costs)


def conversations(system: LocalSystem, _profile: Profile, scale: Scale) -> Iterator[Measured]:
    """The same number under way, spread over ever more conversations."""
    costs: dict[int, float] = {}
    for count in scale.conversations:
        many, listeners = crowd(system.api_url, *SHAPES[count], prefix=f"many{count}")
        _touch(system, many, listeners)
        cost = _at_most(system, parcels(many, PARCEL), listeners, seconds=10 * scale.time)
        costs[count] = cost.ms
        what = f"{count:,} conversations, {WINDOW} messages under way"
        yield Figure(what, f"{cost}", cost.spent.shared)
        if count in (min(scale.conversations), max(scale.conversations)):
            yield cost.spent.figure(what, cost.messages)
    yield from _flatness("conversations", costs)


def _touch(system: LocalSystem, many: Sequence[Talk], listeners: Sequence[User]) -> None:
    """A message in each conversation, and until it came: what only the first one takes is not what grows."""
    traffic = Traffic(system, listeners, pushed)
    posts = parcels(many, len(listeners))  # a sender has a conversation with each of them
    traffic.post(posts, len(posts))
    traffic.settle()
    traffic.close()


@dataclass(frozen=True, slots=True)
class Cost:
    """What so many messages took, and how many came a second."""

    spent: Spent
    messages: int
    per_s: float

    @property
    def ms(self) -> float:
        """CPU of a message in all processes and servers."""
        return sum(ms for _, ms in self.spent.each(self.messages))

    def __str__(self) -> str:
        return f"{self.ms:.2f} ms of CPU a message, {self.per_s:,.0f}/s"


def _at_most(system: LocalSystem, posts: Sequence[Parcel], listeners: Sequence[User], *, seconds: float) -> Cost:
    """So many under way all the time."""
    traffic, usage = Traffic(system, listeners, pushed), Usage(system)
    per_s = traffic.closed_window(posts, window=WINDOW, seconds=seconds)
    cost = Cost(usage.spent(), len(traffic.watched.due_s), per_s)
    traffic.close()
    return cost


def _fill(system: LocalSystem, many: Sequence[Talk], count: int, *, bulk: bool, settle: bool = False) -> float:
    lines = [
        f"{each.conversation_id} {each.sender.user_id} {each.recipient.user_id}" for each in many if each.recipient
    ]
    started_s = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "bench.fill", str(count), *["--bulk"] * bulk, *["--settle"] * settle],
        cwd=ROOT,
        env={**system.env, "SERVICE": "manage"},
        input="\n".join(lines),
        text=True,
        check=True,
    )
    return time.perf_counter() - started_s


def _page(system: LocalSystem, many: Sequence[Talk]) -> Spread:
    """Of 50 messages with their statuses, over HTTP."""
    took_s = []
    with httpx.Client(base_url=system.api_url, timeout=30) as http:
        for talk in many:
            headers = {"Authorization": f"Bearer {talk.sender.token}"}
            started_s = time.perf_counter()
            path = f"/v1/conversations/{talk.conversation_id}/messages"
            http.get(path, headers=headers, params={"limit": 50}).raise_for_status()
            took_s.append(time.perf_counter() - started_s)
    return Spread.of(took_s)


def connected(system: LocalSystem, _profile: Profile, scale: Scale) -> Iterator[Measured]:
    """The same traffic while ever more users are connected, most of them silent."""
    costs: dict[int, float] = {}
    some = talks(system.api_url, 1, prefix="talking")
    listeners = listeners_of(some)
    silent = users(system.api_url, max(scale.connected) - len(listeners), prefix="silent")
    for count in scale.connected:
        everybody = [*listeners, *silent[: count - len(listeners)]]
        traffic = Traffic(system, everybody, pushed)
        traffic.open_loop(some, per_s=20, seconds=WARM_UP_S)
        traffic.watched.due_s.clear()
        usage = Usage(system)
        traffic.open_loop(some, per_s=50, seconds=16 * scale.time)
        seen, spent = traffic.watched, usage.spent()
        gateway_mb = rss_mb(family(system.pid("gateway")))
        traffic.close()
        each = dict(spent.each(len(seen.due_s)))
        costs[count] = sum(each.values())
        value = f"{costs[count]:.2f} ms of CPU a message at 50/s, {Spread.of(seen.latencies_s())}"
        of_gateway = f"gateway {each.get('gateway', 0):.2f} ms, {gateway_mb:.0f} MB"
        yield Figure(f"{count:,} connected", value, f"{of_gateway}; {spent.shared}")
    yield from _flatness("connected users", costs)


def backlog(system: LocalSystem, profile: Profile, scale: Scale) -> Iterator[Measured]:
    """Many records wait when the bridge comes back, and others go on posting."""
    people = talks(system.api_url, PAIRS, prefix="meanwhile")
    many, _ = crowd(system.api_url, BACKLOG_CLIENTS, 20, prefix="backlog")
    lag = Lag(system)
    system.restart("bridge", timeout_s=120)  # what it holds then is a bridge's own
    with Memory(system) as memory:
        system.end("bridge")
        waiting = _accepted(system, parcels(many, BACKLOG_BATCH), scale.backlog)
        before = lag()
        traffic, usage = Traffic(system, listeners_of(people), pushed), Usage(system)
        started_s = time.perf_counter()
        system.restart("bridge", timeout_s=120)
        watch = Watch(started_s + CATCH_UP_S)
        lags = traffic.open_until(people, per_s=LIVE_PER_S, over=watch.is_over)
        took_s = watch.over_s - started_s
    seen, spent = traffic.watched, usage.spent()
    traffic.close()
    lag.wait_for_none(LATE_S)  # what is left of it may be behind what was heard, in another lane
    lag.close()
    caught_up = before + len(seen.due_s)
    what = f"a backlog of {before:,} records, {LIVE_PER_S}/s arrive meanwhile"
    yield Figure(f"{what}: caught up", f"in {took_s:.0f} s, {caught_up / took_s:,.0f}/s", spent.shared)
    unstored = len(not_stored(system, list(waiting.due_s)))
    yield Figure(
        f"{what}: ids of the backlog", f"{unstored} not stored", f"{len(waiting.due_s)} accepted, nobody listens"
    )
    yield kept(f"{LIVE_PER_S}/s beside that backlog", system, seen)
    grown = ", ".join(f"{name} {first:.0f} → {most_mb:.0f}" for name, (first, most_mb) in memory.found.items())
    yield Figure(f"{what}: memory, before and at most, MB", grown)
    title = f"Catching up with {before:,} records, {profile} profile"
    line = Line("lag", tuple((float(second), float(value)) for second, value in enumerate(lags)))
    yield Curve(f"backlog-{profile}.svg", title, "s", "records", (line,))


def _accepted(system: LocalSystem, posts: Sequence[Parcel], messages: int) -> Watched:
    """At least so many, posted by as many at once as there are ``posts``; nobody listens to them."""
    traffic = Traffic(system, [], pushed, connections=len(posts))
    while (missing := messages - len(traffic.watched.due_s)) > 0:
        traffic.post(posts, min(BACKLOG_POSTS, math.ceil(missing / BACKLOG_BATCH)))
    traffic.close()
    return traffic.watched


def workers(profile: Profile, directory: Path, scale: Scale) -> Iterator[Measured]:
    """Sends a second to a platform that takes its time and tells nothing, with ever more workers of that channel. More
    waits on the log than all of them get done: they work through it."""
    rates: dict[int, float] = {}
    least, most = min(scale.workers), max(scale.workers)
    env = {**WHATSAPP_SECRETS, "PARTITIONS": str(PARTITIONS)}
    names = ["worker-whatsapp", *(f"worker-whatsapp-{number}" for number in range(2, most + 1))]
    instances = {names[0]: most}
    with running(profile, directory, env=env, processes=(*BESIDE_WORKERS, *names), instances=instances) as system:
        senders, some = people_on_whatsapp(system)
        waiting = [*some, *external_talks(system.api_url, senders, WAITING - len(some), prefix="more")]
        switches = {"latency_ms": PLATFORM_MS, "auto_read": False, "status_delay_ms": dict.fromkeys(TOLD, HOUR_MS)}
        httpx.put(f"{system.simulator_url}/_control/switches", json=switches, timeout=30).raise_for_status()
        waves = sum(scale.workers) * (WAVES + BEGIN_S * 1000 / PLATFORM_MS) + (sum(scale.workers) + most) * SPARE
        _post_all(system, waiting, int(AT_ONCE * waves))
        time.sleep(BEGIN_S)  # what was dispatched while little was there is small: all of them work through that
        with ThreadPoolExecutor(most) as ending:
            list(ending.map(system.end, names[least:]))
        lag = Lag(system)
        for count in scale.workers:
            with ThreadPoolExecutor(most) as starting:
                list(starting.map(partial(_begin, system), names[:count]))
            time.sleep(BEGIN_S)
            rates[count] = _sends_per_s(system, WAVES * AT_ONCE * count)
        if not lag():
            raise RuntimeError("the workers ran out of messages: nothing can be told")
        lag.close()
    for count in sorted(rates):
        half = rates.get(count // 2)
        doubled = f"{rates[count] / half:.2f} of half as many (target 1.9)" if half else ""
        yield Figure(f"{count} workers, {PLATFORM_MS} ms a send", f"{rates[count]:,.1f} messages/s", doubled)
    per_doubling = (rates[most] / rates[least]) ** (1 / math.log2(most / least))
    what, value = f"each doubling, {least} to {most}", f"{per_doubling:.2f} times"
    yield Figure(what, value, "target 1.9", name="workers", ratio=per_doubling / 2)


def _begin(system: LocalSystem, name: str) -> None:
    if not system.is_running(name):
        system.restart(name, timeout_s=120)


def _sends_per_s(system: LocalSystem, count: int) -> float:
    """From when some have just arrived, as the sends of a worker arrive together, until at least so many more have."""
    with httpx.Client(base_url=system.simulator_url, timeout=30) as http:  # a new one each time is 30 ms of CPU
        first = now = _sends(http)
        while now == first:
            time.sleep(LOOK_S)
            now = _sends(http)
        time.sleep(SETTLED_S)
        first, started_s, deadline_s = _sends(http), time.perf_counter(), time.perf_counter() + LATE_S
        while _sends(http) - first < count:
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"{count} sends took longer than {LATE_S:.0f} s")
            time.sleep(LOOK_S)
        time.sleep(SETTLED_S)  # as at the beginning: all of the last wave count
        return (_sends(http) - first) / (time.perf_counter() - started_s)


def _post_all(system: LocalSystem, waiting: Sequence[Talk], messages: int) -> None:
    """So many, one to each in turn; returns once all are on their way to the channel."""
    traffic = Traffic(system, [], pushed)
    log = event_log(system)
    out = [TopicPartition(outbound("whatsapp"), number) for number in range(PARTITIONS)]
    before = sum(map(log.end_offset, out))
    traffic.post(waiting, messages)
    deadline_s = time.monotonic() + LATE_S
    while sum(map(log.end_offset, out)) - before < messages:
        if time.monotonic() > deadline_s:
            raise TimeoutError("not everything that was posted came to its channel")
        time.sleep(0.2)
    traffic.close()
    log.close()


def _sends(http: httpx.Client) -> int:
    return int(http.get("/_control/stats").raise_for_status().json()["sends"]["accepted"])


def _flatness(what: str, costs: dict[int, float]) -> Iterator[Measured]:
    """How the cost at most compares to that at least."""
    least, largest = min(costs), max(costs)
    ratio = costs[least] / costs[largest]
    value = f"{costs[largest] / costs[least]:.2f} times the cost"
    name = what.replace(" ", "-")
    yield Figure(f"{largest:,} {what} instead of {least:,}", value, "target: flat", name=name, ratio=ratio)


@dataclass(slots=True)
class Watch:
    """When the backlog was gone: what waits is what comes within two seconds."""

    deadline_s: float
    over_s: float = 0.0

    def is_over(self, lags: Sequence[int]) -> bool:
        self.over_s = time.perf_counter()
        return (bool(lags) and lags[-1] < 2 * LIVE_PER_S) or self.over_s > self.deadline_s


class Memory:
    """What each process held when it began, and the most since then: megabytes, by name."""

    def __init__(self, system: LocalSystem) -> None:
        self._system = system
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.found: dict[str, tuple[float, float]] = {}

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._look()

    def _look(self) -> None:
        for name in self._system.processes:
            with suppress(ProcessLookupError):  # it is down
                now = rss_mb(family(self._system.pid(name)))
                first, most_mb = self.found.get(name, (now, now))
                self.found[name] = first, max(most_mb, now)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


TOGETHER: Final[dict[str, Callable[[LocalSystem, Profile, Scale], Iterator[Measured]]]] = {
    "stored": stored,
    "conversations": conversations,
    "connected": connected,
    "backlog": backlog,
}
ALL: Final = (*TOGETHER, "workers")


def of(system: LocalSystem, profile: Profile, scale: Scale, only: Collection[str] = ALL) -> Iterator[Measured]:
    """All but the workers."""
    for part in (part for name, part in TOGETHER.items() if name in only):
        yield from part(system, profile, scale)


def everything(profile: Profile, directory: Path, scale: Scale, only: Collection[str] = ALL) -> Iterator[Measured]:
    if TOGETHER.keys() & only:
        with running(profile, directory / "together") as system:
            yield from of(system, profile, scale, only)
    if "workers" in only:
        yield from workers(profile, directory / "workers", scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_profile(parser)
    parser.add_argument("--full", action="store_true", help="the long form, which takes an hour")
    parser.add_argument("--only", default=",".join(ALL), help="some of %(default)s")
    parser.add_argument("--stored", type=int, metavar="N", help="messages that the store is filled with")
    parser.add_argument("--backlog", type=int, metavar="N", help="records that wait before the bridge comes back")
    options = parser.parse_args()
    names, scale = options.only.split(","), FULL if options.full else SHORT
    scale = replace(scale, stored=options.stored or scale.stored, backlog=options.backlog or scale.backlog)
    if unknown := set(names) - set(ALL):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as folder:
        for measured in everything(profile_of(options), Path(folder), scale, names):
            print(measured, flush=True)


if __name__ == "__main__":
    main()
