"""Our own processes are killed or freeze: at any time, and exactly where it hurts most."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from tests.faults.rounds import Fault
from tests.faults.world import Pace, World
from tests.town import eventually

Strike = Callable[[World, Pace], None]


def family(pid: int) -> list[int]:
    """A process and all below it; none when it is gone."""
    found = [pid]
    for parent in found:
        with suppress(OSError), open(f"/proc/{parent}/task/{parent}/children") as listed:
            found += map(int, listed.read().split())
    return found


def children(world: World, name: str) -> list[int]:
    return family(world.system.pid(name))[1:]


def killed(name: str) -> Strike:
    """kill -9 it and its children, and start it again."""

    def strike(world: World, _pace: Pace) -> None:
        world.mended()
        world.system.kill(name)
        world.system.restart(name)

    return strike


def child_killed(name: str) -> Strike:
    """kill -9 one of its children; its parent replaces it."""

    def strike(world: World, _pace: Pace) -> None:
        before = eventually(lambda: children(world, name))
        world.mended()
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(children(world, name)) >= len(before) and before[0] not in children(world, name))

    return strike


def frozen(name: str) -> Strike:
    """SIGSTOP it and its children for a while."""

    def strike(world: World, pace: Pace) -> None:
        stopped = family(world.system.pid(name))
        _signal(stopped, signal.SIGSTOP)
        try:
            threading.Event().wait(pace.pause_s)
        finally:
            _signal(stopped, signal.SIGCONT)
            world.mended()

    return strike


def killed_at(point: str, name: str) -> Strike:
    """kill -9 the process of this service that comes by there first; whoever started it starts another."""

    def strike(world: World, _pace: Pace) -> None:
        world.mended()
        world.arm(point)
        world.struck(point)
        if not world.system.is_running(name):
            world.system.restart(name)
        eventually(lambda: children(world, name) or world.system.is_running(name))

    return strike


def group_killed_at(point: str, names: Iterable[str]) -> Strike:
    """kill -9 a parent and all its children there; it is started again."""

    def strike(world: World, _pace: Pace) -> None:
        world.mended()
        world.arm(point, "kill-group")
        world.struck(point)
        down = eventually(lambda: [each for each in names_of(world, names) if not world.system.is_running(each)])
        for each in down:
            world.system.restart(each)

    return strike


def names_of(world: World, names: Iterable[str]) -> list[str]:
    """Those processes and their copies, as far as this world has them."""
    return [
        each for each in world.system.processes if any(each == name or each.startswith(f"{name}-") for name in names)
    ]


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for each in processes:
        with suppress(ProcessLookupError):
            os.kill(each, number)


PROCESSES: Final = (
    Fault("the API is killed", killed("api")),
    Fault("an API process is killed before a client hears of its message", killed_at("accept.appended", "api")),
    Fault("the bridge is killed between work and commit", group_killed_at("bridge.uncommitted", ["bridge"])),
    Fault("a core worker's child is killed between store and push", killed_at("persist.stored", "worker-core")),
    Fault(
        "the WhatsApp worker is killed between the platform's yes and our write",
        group_killed_at("deliver.sent", ["worker-whatsapp", "worker-instagram"]),
    ),
    Fault("the gateway is killed", killed("gateway")),
    Fault("a child of the core worker is killed", child_killed("worker-core")),
    Fault("the core worker freezes", frozen("worker-core")),
)
