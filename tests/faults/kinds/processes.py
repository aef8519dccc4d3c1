"""Our own processes are killed or freeze: at any time, and exactly where it hurts most."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from typing import Final

from messaging import topics
from tests.faults.collect import CHANNELS
from tests.faults.kinds.aftermath import of_all, of_soak
from tests.faults.kinds.combined import one_by_one, together
from tests.faults.kinds.onlookers import EVERYBODY, KIND, all_arrive, asking, metric
from tests.faults.patience import eventually
from tests.faults.world import KILLED_S, Pace, World

Strike = Callable[[World, Pace], None]
COPY: Final = re.compile(r"-\d+$")  # of a process' name: the others do its work
IN_DOUBT_S: Final = 20.0  # on a channel; what a sender that died may have sent is waited for by design, 10 s
THAWED_S: Final = 20.0  # who slept finds that its work is others', and joins them


def family(pid: int) -> list[int]:
    """A process and all below it; none when it is gone."""
    found = [pid]
    for parent in found:
        with suppress(OSError), open(f"/proc/{parent}/task/{parent}/children") as listed:
            found += map(int, listed.read().split())
    return found


def children(world: World, name: str) -> list[int]:
    return family(world.system.pid(name))[1:]


def killed(name: str, *, alone: bool = False) -> Strike:
    """kill -9 the last of them and its children, which live on where it dies ``alone``; it comes back once others have
    done its work, where there are any."""

    def strike(world: World, _pace: Pace) -> None:
        victim = names_of(world, [name])[-1]
        at_s = time.monotonic()
        world.system.kill(victim, alone=alone)
        _replace(world, [victim], f"{name} is killed{' without its children' if alone else ''}", at_s)

    return strike


def child_killed(name: str) -> Strike:
    """kill -9 one of its children; its parent replaces it."""

    def strike(world: World, _pace: Pace) -> None:
        before = eventually(lambda: children(world, name))
        at_s = time.monotonic()
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(children(world, name)) >= len(before) and before[0] not in children(world, name))
        world.taken_over(f"a child of {name} is killed", at_s, target_s=KILLED_S)

    return strike


def all_killed(names: Sequence[str]) -> Strike:
    """kill -9 these, their copies and their children, all at once, and start them again. With senders among them what
    goes to channels may have been in doubt; nothing else waits for that."""

    def strike(world: World, _pace: Pace) -> None:
        down = names_of(world, names)
        for each in down:
            world.system.kill(each)
        with ThreadPoolExecutor(len(down)) as starting:
            list(starting.map(world.restart, down))
        back = f"{', '.join(names)} are back"
        if set(SENDERS).isdisjoint(names):
            world.mended(back, target_s=KILLED_S)
        else:
            world.mended(f"{back}, for users", target_s=KILLED_S, kinds=OF_OURS)
            world.mended(f"{back}, for channels", target_s=IN_DOUBT_S, kinds=CHANNELS)

    return strike


def frozen(names: Sequence[str], *, target_s: float = THAWED_S) -> Strike:
    """SIGSTOP these and their children for a while."""

    def strike(world: World, pace: Pace) -> None:
        stopped = [pid for name in names_of(world, names) for pid in family(world.system.pid(name))]
        _signal(stopped, signal.SIGSTOP)
        try:
            threading.Event().wait(pace.pause_s)
        finally:
            _signal(stopped, signal.SIGCONT)
            world.mended(f"{', '.join(names)} thaw", target_s=target_s)

    return strike


def frozen_at(point: str, *works: str, kinds: Iterable[str], target_s: float = KILLED_S) -> Strike:
    """SIGSTOP the worker's child that comes by there first, for so long that its batch, of one of these topics, is in
    other hands when it wakes up. ``kinds``: whom it works for; they wait for it where nobody else does."""

    def strike(world: World, pace: Pace) -> None:
        before = _taken_back(world, works)
        world.arm(point, "stop")
        stopped, at_s = world.struck(point)
        is_alone = _is_alone(world, stopped)
        try:
            eventually(lambda: _taken_back(world, works) > before, every_s=0.3)
            threading.Event().wait(pace.pause_s - (time.monotonic() - at_s))
        finally:
            _signal([stopped], signal.SIGCONT)
        if is_alone:
            world.mended(f"a worker that froze at {point}, alone, thaws", target_s=THAWED_S, kinds=kinds)
        else:
            world.taken_over(f"a worker freezes at {point}", at_s, target_s=target_s, kinds=kinds)

    return strike


def _is_alone(world: World, child: int) -> bool:
    """Whether nobody else works on its queue."""
    name = next(each for each in names_of(world, WORKERS) if child in children(world, each))
    return len(children(world, name)) == 1 and len(names_of(world, [COPY.sub("", name)])) == 1


def _taken_back(world: World, works: Sequence[str]) -> float:
    """How many batches of these topics the bridges took back from vanished workers so far."""
    return sum(
        metric(world.system, bridge, "chat4all_batches_redispatched_total", topic=topic, state="lapsed")
        for bridge in names_of(world, ["bridge"])
        for topic in works
    )


def killed_at(*points: str) -> Strike:
    """kill -9 the child that comes by each point first; its parent starts another."""

    def strike(world: World, _pace: Pace) -> None:
        for point in points:
            world.arm(point)
        for point in points:
            world.taken_over(f"killed at {point}", world.struck(point).at_s, target_s=KILLED_S)

    return strike


def group_killed_at(
    point: str, names: Sequence[str], *, kinds: Iterable[str] = (), target_s: float = KILLED_S
) -> Strike:
    """kill -9 a parent and all its children there; it is back once others have done its work, where there are any.
    ``kinds``: whom it works for; none: all."""

    def strike(world: World, _pace: Pace) -> None:
        world.arm(point, "kill-group")
        at_s = world.struck(point).at_s
        down = eventually(lambda: [each for each in names_of(world, names) if not world.system.is_running(each)])
        _replace(world, down, f"killed with its children at {point}", at_s, kinds=kinds, target_s=target_s)

    return strike


def _replace(
    world: World,
    down: Iterable[str],
    what: str,
    at_s: float,
    *,
    kinds: Iterable[str] = (),
    target_s: float = KILLED_S,
) -> None:
    """Start these again. Where others do their work, recovery is counted from their end; else from their return."""
    for name in down:
        if len(names_of(world, [COPY.sub("", name)])) > 1:
            all_arrive(world, world.load.texts(*EVERYBODY))
            world.restart(name)
            world.taken_over(what, at_s, target_s=target_s, kinds=kinds)
        else:
            world.restart(name)
            world.mended(what, target_s=target_s, kinds=kinds)


def names_of(world: World, names: Iterable[str]) -> list[str]:
    """Those processes and their copies, as far as this world has them."""
    return [
        each for each in world.system.processes if any(each == name or each.startswith(f"{name}-") for name in names)
    ]


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for each in processes:
        with suppress(ProcessLookupError):
            os.kill(each, number)


def nobody_hung(strike: Strike) -> Strike:
    """Whoever asks meanwhile is answered in time."""

    @wraps(strike)
    def struck(world: World, pace: Pace) -> None:
        with asking(world):
            strike(world, pace)

    return struck


WORKERS: Final = ("worker-core", "worker-inbound", "worker-whatsapp", "worker-instagram")
SENDERS: Final = ("worker-whatsapp", "worker-instagram")
OF_OURS: Final = (*(each for each in EVERYBODY if each not in CHANNELS), KIND)  # all that no platform has to take


FRONT_FROZEN: Final = frozen(["api", "gateway"])  # nobody is answered meanwhile
WORKERS_FROZEN: Final = frozen(WORKERS)
BRIDGES_FROZEN: Final = frozen(["bridge"])
ALL_FROZEN: Final = together(FRONT_FROZEN, WORKERS_FROZEN, BRIDGES_FROZEN)  # as when their machine is suspended
KILLS: Final = {
    "API processes are killed before the log's word and before a client's": killed_at(
        "append.sent.api", "accept.appended"
    ),
    "a sender is killed between the platform's yes and our write": group_killed_at(
        "deliver.sent", SENDERS, kinds=CHANNELS, target_s=IN_DOUBT_S
    ),
    "the bridge is killed between work and commit": group_killed_at("bridge.uncommitted", ["bridge"]),
    "workers are killed between store and push, store and log": killed_at(
        "persist.stored", "statuses.stored", "inbound.resolved"
    ),
    "a core worker is killed": nobody_hung(killed("worker-core")),
    "a core worker's parent is killed, its children live on": nobody_hung(killed("worker-core", alone=True)),
    "the API and the gateway are killed": all_killed(["api", "gateway"]),
    "all workers are killed, parents and children": nobody_hung(all_killed(WORKERS)),
}
FREEZES: Final = {
    "a core worker freezes between store and push": nobody_hung(
        frozen_at("persist.stored", topics.MESSAGES, kinds=("user", *(f"from {each}" for each in CHANNELS)))
    ),
    "a sender freezes between the platform's yes and our write": nobody_hung(
        frozen_at("deliver.sent", *map(topics.outbound, CHANNELS), kinds=CHANNELS, target_s=IN_DOUBT_S)
    ),
}
NOW_AND_THEN: Final = {
    "the API and the gateway freeze": FRONT_FROZEN,
    "a bridge is killed": nobody_hung(killed("bridge")),
    "a child of the core worker is killed": child_killed("worker-core"),
    "the gateway is killed": all_killed(["gateway"]),
    "all workers freeze": nobody_hung(WORKERS_FROZEN),
    "all bridges freeze": nobody_hung(BRIDGES_FROZEN),
}
LIKE: Final = {  # what the joined round has of the same kind
    "a bridge is killed": KILLS["the bridge is killed between work and commit"],
    "a child of the core worker is killed": KILLS["workers are killed between store and push, store and log"],
    "the gateway is killed": KILLS["the API and the gateway are killed"],
}

PROCESSES: Final = (
    of_all(
        "our processes are killed, and freeze",
        one_by_one(*KILLS.values(), together(*FREEZES.values()), ALL_FROZEN),
        apart=False,
    ),
    *(of_soak(name, strike, like=LIKE.get(name)) for name, strike in (KILLS | FREEZES | NOW_AND_THEN).items()),
)
