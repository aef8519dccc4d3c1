"""The machine itself fails: its disk is full, its clock jumps, two processes do not agree on the time."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import httpx

from core.ids import uuid7_ms
from tests.faults.history import Request
from tests.faults.kinds.aftermath import of_all, of_soak
from tests.faults.kinds.onlookers import KIND, asking, say
from tests.faults.kinds.processes import children, family
from tests.faults.patience import eventually
from tests.faults.world import LOCAL, Pace, World
from tests.town import phone

MINUTES_S: Final = 7 * 60  # more than any lease, claim or look-back has
APART_S: Final = 4.0  # of two API processes: within the lease of an idempotency claim, so that both are in it


# --- the disk --------------------------------------------------------------------------------------------------------


def full_disk(world: World, pace: Pace) -> None:
    """First the databases can't be written, then the log neither: clients hear 503. With room again all goes on.

    To mount a file system that is small takes rights that not everybody has. A limit of the kernel's is told the same
    way where a write fails (EFBIG for ENOSPC), and takes none; a redis-server ends by either.
    """
    ours = [name for name in world.system.processes if name not in ("simulator", "redis-bus")]
    try:
        with asking(world) as client:
            try:
                _limit_files(world, [name for name in ours if name != "redis-log"], 0)
                threading.Event().wait(pace.pause_s)
                assert all(map(world.system.is_running, ours)), "who can't write waits"
                assert client.accepted[-1] not in world.alice.sees(client.conversation), "the log has it, the store not"
                assert _posts_under_a_key(world) == httpx.codes.SERVICE_UNAVAILABLE, "there is no room for its claim"
                _limit_files(world, ours, 0)
                client.hears(503)
                threading.Event().wait(pace.pause_s)
            finally:
                _make_room(world, ours)
                world.mended("there is room on the disk again", target_s=30)
            client.hears(202)
    finally:
        _make_room(world, ours)
    assert all(map(world.system.is_running, ours))


def _posts_under_a_key(world: World) -> int:
    """What alice hears."""
    headers = {"Idempotency-Key": phone()}
    return say(world, world.alice.api, f"full-{phone()}", f"is there room? {phone()}", **headers)


def _make_room(world: World, names: Iterable[str]) -> None:
    _limit_files(world, names, resource.RLIM_INFINITY)
    for name in names:
        if not world.system.is_running(name):
            world.restart(name)


def _limit_files(world: World, names: Iterable[str], size: int) -> None:
    """What all their processes may write to a file, those included that are born meanwhile."""
    for name in names:
        limited: set[int] = set()
        while world.system.is_running(name) and (born := set(family(world.system.pid(name))) - limited):
            for pid in born:
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            limited |= born


# --- clocks ----------------------------------------------------------------------------------------------------------
# Those of `core.clock`, by which the pipeline goes. Tokens and passwords go by the system's, which nothing here sets.


@contextmanager
def wrong(world: World) -> Iterator[Callable[[str, float], None]]:
    """Sets clocks: of all with ``set_clock("", 60)``, of a service with ``("bridge", 60)``, of one process with
    ``("1234", 60)``. All are right again in the end."""
    folder = world.failpoints

    def set_clock(whose: str, ahead_s: float) -> None:
        aside = folder / ".clock"
        aside.write_text(str(ahead_s))
        aside.rename(folder / (f"clock.{whose}" if whose else "clock"))

    try:
        yield set_clock
    finally:
        for each in folder.glob("clock*"):
            each.unlink()


def goes_on(world: World, *kinds: str, beyond: int = 5, within_s: float = 60) -> None:
    """So many more of each kind arrive that were written from now on."""
    known = world.load.texts(*kinds)

    def arrived() -> bool:
        threading.Event().wait(0.5)  # to look is not cheap
        seen = world.load.arrivals()
        return all(sum(each in seen for each in world.load.texts(kind) - known) >= beyond for kind in kinds)

    eventually(arrived, within_s=within_s)


def clocks_jump(world: World, pace: Pace) -> None:
    """All clocks of ours go forth by minutes, back by twice as many, and forth again: work goes on each time, also in
    the hands of a bridge that is new."""
    try:
        with wrong(world) as set_clock:
            for ahead_s in (MINUTES_S, -MINUTES_S, MINUTES_S / 2):
                set_clock("", ahead_s)
                world.system.kill("bridge")
                world.restart("bridge")
                goes_on(world, "user", "whatsapp", within_s=pace.outage_s + 60)
                assert _id_is_ahead_s(world) > MINUTES_S / 4, "ids never go back"
    finally:
        world.restart("api")  # whose ids would be ahead of the time for as long


def clocks_differ(world: World, pace: Pace) -> None:
    """Two API processes whose clocks are seconds apart take turns in the same conversations; so do bridge and workers,
    which are behind both."""
    with wrong(world) as set_clock:
        fast, slow, *_ = eventually(lambda: _api_processes(world))
        set_clock(str(fast), APART_S)
        set_clock(str(slow), -APART_S)
        for name in ("bridge", "worker-whatsapp"):
            set_clock(name, -2 * APART_S)
        goes_on(world, "user", "whatsapp", within_s=pace.outage_s + 60)
        for one in (1, -1):  # both take their turns
            eventually(lambda one=one: _id_is_ahead_s(world) * one > APART_S / 2, every_s=0.2)  # type: ignore[misc]


def _id_is_ahead_s(world: World) -> float:
    """Of the time, the id of a message that is accepted now."""
    alice, bob = world.alice, world.bob.user_id
    conversation, text = f"time-{phone()}", f"what time is it? {phone()}"
    began_s, asked_ms = time.monotonic(), time.time_ns() / 1e6
    accepted = alice.insist(conversation, text, bob)
    world.load.note(Request(conversation, alice.user_id, text, accepted), began_s=began_s, kind=KIND)
    return (uuid7_ms(UUID(accepted)) - asked_ms) / 1000


def _api_processes(world: World) -> list[int]:
    """The two that answer requests, once there are two."""
    found = [pid for pid in children(world, "api") if _answers_requests(pid)]
    return found if len(found) >= 2 else []


def _answers_requests(pid: int) -> bool:
    """Not the helper that watches over shared memory."""
    try:
        return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


MACHINE: Final = (
    of_all("the disk is full", full_disk, profiles=LOCAL),
    of_soak("the clock jumps by minutes", clocks_jump),
    of_soak("the clocks of two API processes differ by seconds", clocks_differ),
)
