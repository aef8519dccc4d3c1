"""The platforms refuse, forget to answer, repeat themselves, tell things in the wrong order, or are away."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from functools import wraps
from typing import Any, Final

from connectors.breaker import BreakerState, Rules
from messaging import topics
from messaging.ports import TopicPartition
from messaging.services.deliver import UNKNOWN
from tests.faults.checker import Report
from tests.faults.collect import CHANNELS, GROUP, sources
from tests.faults.history import History
from tests.faults.kinds.aftermath import NOWHERE
from tests.faults.kinds.combined import Strike
from tests.faults.kinds.onlookers import all_arrive
from tests.faults.patience import eventually
from tests.faults.rounds import Fault
from tests.faults.world import Pace, World

UNNOTICED_S: Final = 10.0  # the longest that anybody else waits while a channel is away
UNAVAILABLE, THROTTLED = "131016", "130429"
OUTAGE_TAKES_S: Final = 2 * Rules().open_s + 120  # a probe that meets the last moment, and a parked message's minute
STUMBLES: Final[dict[str, dict[str, Any]]] = {
    "fail": {"failure_rate": 0.15},
    "throttle": {"throttle_rate": 0.25, "retry_after_s": 1, "throttle_status": 429},
    "repeat themselves": {"duplicate_rate": 0.4, "duplicate_delay_ms": 1_500},
    "tell the end before the middle": {"reorder_rate": 0.5},
    "tell what became of a message before they take it": {"early_status_rate": 0.5},
}
STUMBLED_S: Final = 90.0  # who is in doubt waits for evidence, who failed for half a minute is parked for another
UNANSWERED: Final = {"ambiguous_rate": 0.12}
MODES: Final = ("close", "garbage", "hang")


def away(channel: str) -> Strike:
    """Every call on one channel answers 503 for a while: its breaker opens and it pauses, nobody else notices."""

    def strike(world: World, pace: Pace) -> None:
        town, load = world.town, world.load
        name = f"{channel}:{world.accounts[channel]}"
        others = ("user", *(each for each in CHANNELS if each != channel), *(f"from {each}" for each in CHANNELS))
        try:
            with town.switches_of(world.accounts[channel], outage=True):
                eventually(lambda: town.breakers().get(name) == BreakerState.OPEN, within_s=90, every_s=0.3)
                opened_s = time.monotonic()
                _lasts(pace.outage_s / 2)
                refused, since_s = refusals(world)[UNAVAILABLE], time.monotonic()
                _lasts(pace.outage_s / 2)
                waiting, meanwhile = load.texts(channel) - load.arrivals().keys(), load.texts(*others)
                probes = 1 + (time.monotonic() - since_s) / (Rules().open_s * pace.waits)
                assert refusals(world)[UNAVAILABLE] - refused <= probes, "the channel does not pause"
                assert waiting, "nobody wrote to the channel that is away"
                until_s = time.monotonic()
                all_arrive(world, meanwhile)  # while it is still away
                delays = load.delays(*others, since_s=opened_s, until_s=until_s)
                late = {text: round(s, 1) for text, s in delays.items() if s > pace.slack * UNNOTICED_S}
                assert not late, f"others waited meanwhile: {late}"
                assert delays, "nobody else wrote"
        finally:
            world.mended(f"{channel} is back", target_s=Rules().open_s * pace.waits + 15, kinds=[channel])
        all_arrive(world, waiting, within_s=OUTAGE_TAKES_S + pace.outage_s)
        eventually(lambda: town.breakers().get(name) == BreakerState.CLOSED, within_s=OUTAGE_TAKES_S, every_s=0.3)

    return strike


def stumbling(**switches: Any) -> Strike:
    """Both platforms behave like this for a while, and every kind of it is met."""

    def strike(world: World, pace: Pace) -> None:
        _stumble(world, pace.spell_s, switches)
        _all_told(world)

    return strike


def unanswering(**switches: Any) -> Strike:
    """Some of what they take is never answered: the connection breaks, the answer is no JSON, or none comes."""

    def strike(world: World, pace: Pace) -> None:
        for mode in MODES:
            _stumble(world, pace.spell_s / len(MODES), {**UNANSWERED, "ambiguous_mode": mode, **switches})
        _all_told(world)

    return strike


def _stumble(world: World, spell_s: float, switches: dict[str, Any]) -> None:
    before = stumbles(world)
    with world.town.switches(**switches):
        _lasts(spell_s)
        eventually(lambda: all(stumbles(world)[each] > before[each] for each in _expected(switches)), every_s=0.3)


def _all_told(world: World) -> None:
    """Whatever was said so far arrives."""
    told = world.load.texts(*CHANNELS, *(f"from {each}" for each in CHANNELS))
    world.mended("the platforms behave", target_s=STUMBLED_S)
    all_arrive(world, told, within_s=150)
    ends = {each: world.town.log.end_offset(each) for each in outbound_sources(world, *CHANNELS)}
    eventually(lambda: are_committed(world, ends), every_s=0.3)  # what arrived may still be in doubt with us


def outbound_sources(world: World, *channels: str) -> list[TopicPartition]:
    return [source for each in channels for source in sources(world.town, topics.outbound(each))]


def are_committed(world: World, offsets: Mapping[TopicPartition, int]) -> bool:
    return all(world.town.log.committed(GROUP, each) >= offset for each, offset in offsets.items())


def burying_nothing(strike: Strike) -> Strike:
    """What came before may have dead letters of sends, this adds none: it is waited for."""

    @wraps(strike)
    def struck(world: World, pace: Pace) -> None:
        graves = [TopicPartition(topics.dead_letters(topics.outbound(each)), 0) for each in CHANNELS]
        before = list(map(world.town.log.end_offset, graves))
        strike(world, pace)
        assert list(map(world.town.log.end_offset, graves)) == before, "a send was buried"

    return struck


def refusals(world: World) -> Counter[str]:
    """How many calls the platforms refused so far, by code."""
    stats = world.town.platform.get("/stats").json()
    return Counter(stats["sends"]["refused_by_code"])


def stumbles(world: World) -> Counter[str]:
    """What the platforms did to us so far, as far as they count it."""
    stats = world.town.platform.get("/stats").json()
    webhooks = {each: stats["webhooks"][f"items_{each}"] for each in ("duplicated", "reordered", "early")}
    told = {"unanswered": stats["sends"]["unanswered"], **webhooks}
    return Counter(stats["sends"]["refused_by_code"]) + Counter(told)


def _expected(switches: dict[str, Any]) -> list[str]:
    met = {"failure_rate": UNAVAILABLE, "throttle_rate": THROTTLED, "ambiguous_rate": "unanswered"}
    met |= {"duplicate_rate": "duplicated", "reorder_rate": "reordered", "early_status_rate": "early"}
    return [met[each] for each in switches if each in met]


def no_send_buried(_world: World, history: History, _report: Report) -> None:
    """An outage is waited for: no send becomes a dead letter by it."""
    buried = [each for each in history.dead if each.source[0].endswith(topics.OUTBOUND_SUFFIX)]
    assert not buried, buried


def only_unknown_buried(_world: World, history: History, _report: Report) -> None:
    """Nothing but what a platform did not answer twice."""
    sends = [each for each in history.dead if each.source[0].endswith(topics.OUTBOUND_SUFFIX)]
    assert {each.reason for each in sends} <= {UNKNOWN}, sends


def _lasts(seconds: float) -> None:
    threading.Event().wait(seconds)


IN_EVERY_WAY: Final = unanswering(**{name: value for each in STUMBLES.values() for name, value in each.items()})
STUMBLING: Final = {what: stumbling(**how) for what, how in STUMBLES.items()} | {"do not answer": unanswering()}
AWAY: Final = {channel: away(channel) for channel in CHANNELS}
PLATFORM: Final = (
    *(
        Fault(f"the platforms {what}", strike, short=NOWHERE, afterwards=only_unknown_buried, like=IN_EVERY_WAY)
        for what, strike in STUMBLING.items()
    ),
    *(
        Fault(f"{channel} is away", strike, short=NOWHERE, afterwards=no_send_buried, like=AWAY["whatsapp"])
        for channel, strike in AWAY.items()
    ),
)
