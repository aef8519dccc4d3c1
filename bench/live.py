"""From POST to the recipient's frame, between users: latency at a steady rate, what is sustained, what is the most.

python -m bench.live [--profile cluster]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.figures import Curve, Figure, Line, Measured, Spread, Stages
from bench.people import Parcel, Post, Talk, User, crowd, parcels, talks
from bench.profiles import Profile, alone, not_stored, running
from bench.traffic import LATE_S, Traffic, Watched, pushed
from bench.usage import Spent, Usage
from demo.supervisor import LocalSystem

PAIRS: Final = 50
WINDOW: Final = 200
SENDERS, LISTENERS = 10, 20  # of batches: each sender has a conversation with each listener
PARCEL: Final = 100
RATES: Final = {"local": (25, 50, 100, 200, 300), "cluster": (25, 50, 100, 200)}  # 200: more than goes
STEADY: Final = {"local": (50, "p50 15, p99 60 ms"), "cluster": (100, "p50 8, p99 40 ms")}
WARM_UP_S: Final = 8.0
LEAST_S: Final = 20.0  # at the target's rate: of six seconds its 99th percentile is what three or four messages took
BATCHED_PER_S: Final = 900  # target on the cluster


def latency(system: LocalSystem, people: Sequence[Talk], *, profile: Profile, seconds: float) -> Iterator[Measured]:
    """At the steady rate of the target, then at others for the curve."""
    per_s, target = STEADY[profile]
    seen, spent = _at(system, people, per_s=per_s, seconds=seconds)
    what = f"POST to recipient's frame, {per_s}/s for {seconds:.0f} s"
    yield Figure(what, f"{Spread.of(seen.latencies_s())}", f"target: {target}; {spent.shared}")
    found = {per_s: Spread.of(seen.latencies_s())}
    for rate in RATES[profile]:
        if rate not in found:
            seen, _ = _at(system, people, per_s=rate, seconds=max(3, seconds / 4))
            found[rate] = Spread.of(seen.latencies_s())
    yield Curve(
        f"live-{profile}.svg",
        f"POST to the recipient's frame, {profile} profile",
        "messages/s",
        "ms",
        tuple(
            Line(name, tuple((rate, getattr(found[rate], name)) for rate in sorted(found)))
            for name in ("p50", "p95", "p99")
        ),
    )


def _at(system: LocalSystem, people: Sequence[Talk], *, per_s: float, seconds: float) -> tuple[Watched, Spent]:
    traffic = _traffic(system, people)
    traffic.open_loop(people, per_s=min(per_s, 20), seconds=1)  # its own connections
    traffic.watched.due_s.clear()
    usage = Usage(system)
    traffic.open_loop(people, per_s=per_s, seconds=seconds)
    spent = usage.spent()
    traffic.close()
    return traffic.watched, spent


def warm_up(system: LocalSystem, people: Sequence[Talk], *, seconds: float) -> None:
    """As many as go, not measured: what is compiled, cached and connected at work is then."""
    traffic = _traffic(system, people)
    traffic.closed_window(people, window=WINDOW, seconds=seconds)
    traffic.close()


def sustained(system: LocalSystem, people: Sequence[Talk], *, per_s: float, seconds: float) -> list[Figure]:
    """Everything accepted must be stored and pushed once, and the lag must not grow."""
    traffic, usage = _traffic(system, people), Usage(system)
    lags = traffic.open_loop(people, per_s=per_s, seconds=seconds)
    seen, spent = traffic.watched, usage.spent()
    traffic.close()
    what = f"{per_s:.0f}/s for {seconds:.0f} s"
    return [
        Figure(f"{what}: POST to frame", f"{Spread.of(seen.latencies_s())}", f"{growth(lags)}; {spent.shared}"),
        kept(what, system, seen),
        spent.figure(what, len(seen.due_s)),
    ]


def growth(lags: Sequence[int]) -> str:
    """In words: flat means that the second half is not worse than the first by more than a tenth."""
    half = len(lags) // 2
    if not half:
        return "too short to see the lag grow"
    first, second = max(lags[:half]), max(lags[half:])
    judged = "" if second <= first * 1.1 else ": **lag not flat**"
    return f"largest lag {first} records in the first half, {second} in the second{judged}"


def most(
    system: LocalSystem,
    posts: Sequence[Post],
    listeners: Iterable[User],
    *,
    window: int,
    seconds: float,
    acknowledge: bool = False,
    beside: str = "",
    plot: str = "",
) -> Iterator[Measured]:
    """The next message goes out when an earlier one arrived."""
    traffic, usage = Traffic(system, listeners, pushed, acknowledge=acknowledge), Usage(system)
    per_s = traffic.closed_window(posts, window=window, seconds=seconds)
    seen, spent = traffic.watched, usage.spent()
    traffic.close()
    size = posts[0].messages if isinstance(posts[0], Parcel) else 1
    posted = f", posted {size} at once" if size > 1 else ""
    what = f"{window} under way{posted}{', each acknowledged' if acknowledge else ''}"
    value = f"{per_s:,.0f}/s, {Spread.of(seen.latencies_s())}"
    yield Figure(f"{what}: POST to frame", value, "; ".join(filter(None, (beside, spent.shared))))
    yield kept(what, system, seen)
    yield spent.figure(what, len(seen.due_s))
    if plot:
        parts = tuple(spent.each(len(seen.due_s)))
        yield Stages(plot, "CPU of a message to stored and pushed", ((what, parts),))


def kept(what: str, system: LocalSystem, seen: Watched) -> Figure:
    """By comparing ids: what was answered 202, what came as frames, what the store holds."""
    unstored = len(not_stored(system, list(seen.due_s)))
    value = f"{seen.unheard()} not heard of within {LATE_S:.0f} s, {unstored} not stored, {seen.twice} twice"
    return Figure(f"{what}: ids", value, f"{len(seen.due_s)} accepted, {seen.refused} refused")


def _traffic(system: LocalSystem, people: Sequence[Talk]) -> Traffic:
    return Traffic(system, listeners_of(people), pushed)


def listeners_of(people: Sequence[Talk]) -> list[User]:
    return list(dict.fromkeys(talk.recipient for talk in people if talk.recipient))


def of(system: LocalSystem, profile: Profile, *, scale: float) -> Iterator[Measured]:
    people = talks(system.api_url, PAIRS, prefix="live")
    warm_up(system, people, seconds=WARM_UP_S)
    yield from latency(system, people, profile=profile, seconds=max(LEAST_S, 20 * scale))
    yield from sustained(system, people, per_s=200, seconds=30 * scale)
    listeners = listeners_of(people)
    yield from most(system, people, listeners, window=WINDOW, seconds=15 * scale, plot=f"cpu-{profile}.svg")
    yield from most(system, people, listeners, window=WINDOW, seconds=10 * scale, acknowledge=True)
    many, listening = crowd(system.api_url, SENDERS, LISTENERS, prefix="crowd")
    target = f"target {BATCHED_PER_S}/s" if profile == "cluster" else ""
    yield from most(
        system, parcels(many, PARCEL), listening, window=PARCEL * SENDERS, seconds=15 * scale, beside=target
    )


def everything(profile: Profile, directory: Path, *, scale: float) -> Iterator[Measured]:
    with running(profile, directory) as system:
        yield from of(system, profile, scale=scale)


if __name__ == "__main__":
    alone(__doc__, everything)
