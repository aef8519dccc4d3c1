"""The whole loop: POST, log, worker, WhatsApp (simulated), its signed webhooks, and the sender's frame that says READ.

python -m bench.loop [--profile cluster]

On the cluster the floor stands beside it: `bench.floor_loop` on the same servers, right after.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from bench import floor_loop
from bench.figures import Figure, Measured, Spread, Stages
from bench.live import growth, kept
from bench.people import LINGER_MS, WHATSAPP_SECRETS, Talk, User, external_talks, set_up_whatsapp, users
from bench.profiles import Profile, add_profile, kill, place, profile_of
from bench.traffic import LATE_S, Lag, Traffic, read
from bench.usage import Usage
from demo.supervisor import LocalSystem

SENDERS: Final = 20
PEOPLE: Final = 200
WINDOW: Final = 200
STEADY_PER_S: Final = {"local": 50.0, "cluster": 300.0}
TARGETS: Final = {"local": "", "cluster": "target 300/s with flat lag"}
WINDOW_S: Final = 10.0  # at least: a message takes seven
WARM_UP_S: Final = 5.0  # once the first of them were read; of the floor as well
KEPT_UP: Final = 0.75  # of the most, where that is less than the target: what is posted faster only waits
FLOOR_TARGET: Final = 0.6


def people_on_whatsapp(system: LocalSystem) -> tuple[list[User], list[Talk]]:
    set_up_whatsapp(system)
    senders = users(system.api_url, SENDERS, prefix="loop")
    return senders, external_talks(system.api_url, senders, PEOPLE, prefix="loop")


def most(
    system: LocalSystem,
    senders: Sequence[User],
    talks: Sequence[Talk],
    *,
    seconds: float,
    plot: str = "",
    when_full: Callable[[], None] = lambda: None,
) -> tuple[float, list[Measured]]:
    """The next message goes out when the platform's READ of an earlier one reached its sender: READs a second, from
    ``when_full`` on."""
    before = _sends(system)
    traffic, usage = Traffic(system, senders, read), Usage(system)
    per_s = traffic.closed_window(talks, window=WINDOW, seconds=seconds, when_full=when_full)
    seen, spent = traffic.watched, usage.spent()
    traffic.close()
    what = f"whole loop, {WINDOW} under way"
    beside = f"0.4 s of it are the simulator's own, which batches webhooks for {LINGER_MS} ms; {spent.shared}"
    found: list[Measured] = [
        Figure(f"{what}: POST to READ", f"{per_s:,.0f}/s, {Spread.of(seen.latencies_s())}", beside),
        kept(what, system, seen),
        _at_the_platform(what, system, before, len(seen.due_s)),
        spent.figure(what, len(seen.due_s)),
    ]
    if plot:
        found.append(Stages(plot, "CPU of a message to READ", ((what, tuple(spent.each(len(seen.due_s)))),)))
    return per_s, found


def sustained(
    system: LocalSystem, senders: Sequence[User], talks: Sequence[Talk], *, per_s: float, target: str, seconds: float
) -> list[Figure]:
    """Posted on time, whatever becomes of it: what cannot be kept up with shows as a lag that grows."""
    before = _sends(system)
    traffic, usage = Traffic(system, senders, read), Usage(system)
    lags = traffic.open_loop(talks, per_s=per_s, seconds=seconds)
    seen, spent = traffic.watched, usage.spent()
    traffic.close()
    what = f"whole loop at {per_s:.0f}/s for {seconds:.0f} s"
    beside = "; ".join(filter(None, (target, growth(lags), spent.shared)))
    return [
        Figure(f"{what}: POST to READ", f"{Spread.of(seen.latencies_s())}", beside),
        kept(what, system, seen),
        _at_the_platform(what, system, before, len(seen.due_s)),
    ]


def _at_the_platform(what: str, system: LocalSystem, before: dict[str, Any], accepted: int) -> Figure:
    lag = Lag(system)
    lag.wait_for_none(2 * LATE_S)
    lag.close()
    after = _sends(system)
    sent, doubled = (after[name] - before[name] for name in ("accepted", "duplicates"))
    return Figure(f"{what}: at the platform", f"{sent} messages, {doubled} twice", f"{accepted} accepted")


def _sends(system: LocalSystem) -> dict[str, Any]:
    """The simulator's count, once nothing of it is under way any more."""
    deadline_s = time.perf_counter() + LATE_S
    with httpx.Client(base_url=system.simulator_url, timeout=30) as http:
        while True:
            stats = http.get("/_control/stats").raise_for_status().json()
            if not stats["webhooks"]["pending"] or time.perf_counter() > deadline_s:
                return dict(stats["sends"])
            time.sleep(0.1)


def everything(profile: Profile, directory: Path, *, scale: float, steady_s: float = 15) -> Iterator[Measured]:
    window_s = max(WINDOW_S, 20 * scale)
    with place(profile) as servers:
        with LocalSystem(directory / "system", env={**servers, **WHATSAPP_SECRETS}) as system:
            senders, talks = people_on_whatsapp(system)
            most(system, senders, talks, seconds=WARM_UP_S)
            per_s, found = most(system, senders, talks, seconds=window_s, plot=f"cpu-loop-{profile}.svg")
            yield from found
            rate = min(STEADY_PER_S[profile], KEPT_UP * per_s)
            yield from sustained(system, senders, talks, per_s=rate, target=TARGETS[profile], seconds=steady_s)
            kill(system)
        if profile == "local":
            return
        with LocalSystem(directory / "floor", env=servers, processes=("redis-bus", "simulator")) as rest:
            floor = floor_loop.measured(rest, seconds=window_s, warm_up_s=WARM_UP_S)
        yield floor.figure
        yield Figure(
            "the whole loop beside its floor",
            f"{per_s / floor.per_s:.2f}",
            f"target {FLOOR_TARGET}",
            name="loop",
            ratio=per_s / floor.per_s,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_profile(parser)
    parser.add_argument("--scale", type=float, default=1.0, help="of the time that each measurement takes")
    parser.add_argument("--steady-s", type=float, default=15.0, help="at the target's rate, or what is kept up with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as name:
        for measured in everything(profile_of(options), Path(name), scale=options.scale, steady_s=options.steady_s):
            print(measured, flush=True)


if __name__ == "__main__":
    main()
