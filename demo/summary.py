"""The numbers at the end: what passed, how fast, and whether anything is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from demo.clients import User
from demo.journal import DELIVERED, READ, Journal
from demo.reckoning import Evidence, Reckoning, Stored

INTERNAL: Final = "users"
CHANNELS: Final = (INTERNAL, "whatsapp", "instagram")
PERCENTILES: Final = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Row:
    """One channel. None where there is nothing of the kind."""

    channel: str
    accepted: int
    stored: int
    at_platform: int | None
    delivered: int | None
    read: int
    replies_in: int | None
    files: int


@dataclass(frozen=True, slots=True)
class Summary:
    rows: Sequence[Row]
    frames: int
    latencies_ms: Mapping[str, Sequence[float]]
    reckoning: Reckoning
    broken_off: Sequence[str]

    @property
    def flawless(self) -> bool:
        return self.reckoning.flawless and not self.broken_off


def summarize(
    evidence: Evidence, reckoning: Reckoning, users: Sequence[User], journal: Journal, broken_off: Sequence[str]
) -> Summary:
    return Summary(
        rows=[_row(channel, evidence, journal) for channel in CHANNELS],
        frames=sum(len(user.frames) for user in users),
        latencies_ms=_latencies(evidence, users, journal),
        reckoning=reckoning,
        broken_off=broken_off,
    )


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The smallest value that so many percent do not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


def in_words(reckoning: Reckoning) -> list[str]:
    """What is wrong, one line for each kind."""
    lines = [f"{len(messages)} {loss.value}" for loss, messages in reckoning.losses.items() if messages]
    surplus = {
        "sent to a platform twice": reckoning.twice_at_platform,
        "of a person stored twice": reckoning.twice_in_store,
        "pushed twice": reckoning.twice_pushed,
    }
    return lines + [f"{count} {what}" for what, count in surplus.items() if count]


def channel_of(party: str) -> str:
    return party.partition(":")[0] if ":" in party else INTERNAL


def _row(channel: str, evidence: Evidence, journal: Journal) -> Row:
    told = [each for each in evidence.told if channel_of(each.recipient) == channel]
    said = [each for each in evidence.said if channel_of(each.sender) == channel]
    stored = _stored(evidence)
    lives = [journal.lives[each.message_id] for each in told]
    people = [each for each in stored.values() if channel_of(each.sender) == channel]
    return Row(
        channel=channel,
        accepted=len(told),
        stored=sum(each.message_id in stored for each in told),
        at_platform=_at_platform(channel, evidence) if channel != INTERNAL else None,
        delivered=None
        if channel == "instagram"
        else sum(bool({DELIVERED, READ} & life.reached.keys()) for life in lives),
        read=sum(READ in life.reached for life in lives),
        replies_in=len(people) if channel != INTERNAL else None,
        files=sum(each.sha256 is not None for each in told) + sum(each.sha256 is not None for each in said),
    )


def _stored(evidence: Evidence) -> dict[str, Stored]:
    return {each.message_id: each for witness in evidence.witnesses for each in witness.history}


def _at_platform(channel: str, evidence: Evidence) -> int:
    return sum(channel_of(each.recipient) == channel for each in evidence.received)


def _latencies(evidence: Evidence, users: Sequence[User], journal: Journal) -> dict[str, list[float]]:
    by_id = {user.user_id: user for user in users}
    received = {each.correlation: each.at_ms for each in evidence.received if each.correlation}
    told = evidence.told
    framed = [
        (by_id[each.recipient].framed_at_ms.get(each.message_id), each) for each in told if each.recipient in by_id
    ]
    read = [journal.lives[each.message_id].elapsed_ms(READ) for each in told]
    return {
        "POST → 202": [sent.post_ms for user in users for sent in user.sent],
        "POST → recipient's frame": [at_ms - each.at_ms for at_ms, each in framed if at_ms is not None],
        "POST → WhatsApp has it": [
            received[each.message_id] - each.at_ms for each in told if each.message_id in received
        ],
        "POST → READ (they take their time to read)": [elapsed for elapsed in read if elapsed is not None],
    }
