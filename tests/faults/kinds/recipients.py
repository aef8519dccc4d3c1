"""One person can't be reached for long: what is for them waits apart, nobody else notices."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from messaging.ports import TopicPartition
from tests.cluster.conftest import owned
from tests.faults.collect import CHANNELS, GROUP
from tests.faults.kinds.aftermath import NOWHERE
from tests.faults.kinds.combined import Strike, one_by_one, together
from tests.faults.kinds.membership import TAKEN_OVER_WITHIN_S, bridges, everything
from tests.faults.kinds.onlookers import all_arrive
from tests.faults.kinds.platform import (
    AWAY,
    IN_EVERY_WAY,
    are_committed,
    burying_nothing,
    no_send_buried,
    only_unknown_buried,
    outbound_sources,
    refusals,
)
from tests.faults.patience import eventually
from tests.faults.rounds import Fault
from tests.faults.world import CLUSTER, LOCAL, Pace, World
from tests.town import insta_id, phone

KIND: Final = "unreachable"
BUSY: Final = "131056"
GOES_ON_S: Final = 30.0  # until what lay on a partition is committed: what is parked holds nothing back
PARKED_WITHIN_S: Final = 120.0  # it fails in its lane for 30 s


def unreachable(channel: str) -> Strike:
    """One person is busy, says the platform, for twice an outage; once they are parked all bridges are killed."""

    def strike(world: World, pace: Pace) -> None:
        load, began_s = world.load, time.monotonic()
        person = phone() if channel == "whatsapp" else insta_id()
        conversation, to = f"unreachable-{person}", f"{channel}:{'+' if channel == 'whatsapp' else ''}{person}"
        texts = [f"{conversation} {number}" for number in range(3)]
        outbound = outbound_sources(world, channel)
        try:
            with world.town.switches_of(world.accounts[channel], busy_numbers=[person]):
                refused, ends = refusals(world)[BUSY], {each: world.town.log.end_offset(each) for each in outbound}
                for text in texts:
                    load.write(conversation, [text], to, kind=KIND)
                eventually(lambda: refusals(world)[BUSY] > refused, within_s=120, every_s=0.3)
                source, offset = eventually(lambda: _place(world, ends, texts[0].encode()), every_s=0.3)
                eventually(lambda: world.town.log.committed(GROUP, source) > offset, within_s=PARKED_WITHIN_S)
                here = {each: world.town.log.end_offset(each) for each in outbound}
                eventually(lambda: are_committed(world, here), within_s=pace.slack * GOES_ON_S, every_s=0.3)
                _bridges_die(world, outbound)
                eventually(lambda: time.monotonic() - began_s > 2 * pace.outage_s, within_s=3 * pace.outage_s)
                meanwhile = load.texts("user", channel, *(f"from {each}" for each in CHANNELS))
                all_arrive(world, meanwhile)  # while this person still can't be reached
                assert not set(texts) & load.arrivals().keys(), "the person was reached all the time"
        finally:
            world.mended(f"a person on {channel} can be reached", target_s=pace.outage_s + 60, kinds=[KIND])
        all_arrive(world, frozenset(texts), within_s=120 + 2 * pace.outage_s)

    return strike


def _place(world: World, ends: dict[TopicPartition, int], text: bytes) -> tuple[TopicPartition, int] | None:
    """Where the send of this text lies."""
    for source, end in ends.items():
        for record in world.town.log.read(source, start=end, limit=5_000):
            if text in record.value:
                return source, record.offset
    return None


def _bridges_die(world: World, sources: Iterable[TopicPartition]) -> None:
    """All of them. Once they are back, own everything and went on, no commit is behind what it was when they died: a
    restart repeats no more than what was not committed."""
    names = bridges(world)
    with world.shaking():
        try:
            for name in names:
                world.system.kill(name)
            standing = {each: world.town.log.committed(GROUP, each) for each in sources}
        finally:
            for name in names:
                world.restart(name)
    eventually(
        lambda: set().union(*(owned(world.system, name) for name in names)) >= everything(world),
        within_s=TAKEN_OVER_WITHIN_S,
        every_s=0.3,
    )
    eventually(lambda: any(are_committed(world, {each: at + 1}) for each, at in standing.items()), every_s=0.3)
    assert are_committed(world, standing), "a commit went back"


UNREACHABLE: Final = {channel: unreachable(channel) for channel in CHANNELS}
RECIPIENTS: Final = (
    *(
        Fault(
            f"a person on {channel} can't be reached",
            strike,
            short=NOWHERE,
            afterwards=no_send_buried,
            like=UNREACHABLE["instagram"],
        )
        for channel, strike in UNREACHABLE.items()
    ),
    Fault(
        "the platforms stumble, then WhatsApp is away, and a person on Instagram can't be reached",
        one_by_one(IN_EVERY_WAY, burying_nothing(together(AWAY["whatsapp"], UNREACHABLE["instagram"]))),
        short=CLUSTER,
        joined=LOCAL,
        apart=False,
        afterwards=only_unknown_buried,
    ),
)
