"""Who is in a group, who owns which partition, how far the group came: what a log keeps for its subscriptions.

`LeasedSubscription` decides, a `Ledger` keeps: each method is one atomic step in the place that all members share.

A *lease* is the right to read and commit one partition. It lapses unless renewed and carries an *epoch* that grows
with each new owner, so that a member which slept through the end of its lease can neither commit nor renew.
An *instance* is one run of a member: a restart under the same name takes over at once, and the run before it is out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from messaging.ports import Record, TopicPartition


@dataclass(frozen=True, slots=True)
class Beat:
    """The group as it stood at a heartbeat."""

    seated: bool  # False: a newer run of this member is in its place
    members: Mapping[str, Sequence[str]]  # the live ones and the topics that each reads
    partitions: Mapping[str, int]  # of every topic there is
    lost: Sequence[TopicPartition]  # of those held: not ours any more


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease just taken, and where the group goes on reading."""

    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class Fetched:
    records: Mapping[TopicPartition, Sequence[Record]]
    stirred: bool  # the group changed: beat now


class Ledger(Protocol):
    """One member's view of its group. Every method may raise LogUnavailable; calling again is always right."""

    def beat(self, held: Mapping[TopicPartition, int]) -> Beat:
        """Say that this member lives and renew its leases (partition to epoch); the first call joins the group.

        A lease that lapsed is renewed as well, as long as nobody else took it. Thread-safe.
        """

    def acquire(self, sources: Sequence[TopicPartition]) -> dict[TopicPartition, Claim]:
        """Take those that are free, lapsed, or held by an earlier run of this member, each under a higher epoch."""

    def release(self, held: Mapping[TopicPartition, int]) -> None:
        """Give these up, as far as they are still ours, and stir the group."""

    def commit(self, offsets: Mapping[TopicPartition, tuple[int, int]]) -> list[TopicPartition]:
        """Record partition -> (epoch, offset) where that epoch is ours; return those refused. Never goes back."""

    def leave(self) -> None: ...

    def fetch(self, positions: Mapping[TopicPartition, int], *, wait_s: float, per_source: int) -> Fetched:
        """Up to ``per_source`` records of each from its position on; waits for the first, or until stirred."""

    def trim(self, now_ms: int, source: TopicPartition) -> bool:
        """One bounded step of retention; True when there is more to trim."""

    def unread_sources(self) -> list[TopicPartition]:
        """Partitions of topics that no group reads: somebody has to trim them."""


def share(member: str, beat: Beat) -> set[TopicPartition]:
    """The partitions that ``member`` should own: every member computes the same from the same beat.

    Partitions are dealt in order, each to the member that reads its topic and has the fewest so far.
    """
    if not beat.seated:
        return set()
    dealt: Counter[str] = Counter()
    mine: set[TopicPartition] = set()
    for topic in sorted({topic for topics in beat.members.values() for topic in topics}):
        readers = sorted(name for name, topics in beat.members.items() if topic in topics)
        for partition in range(beat.partitions.get(topic, 0)):
            owner = min(readers, key=lambda name: dealt[name])
            dealt[owner] += 1
            if owner == member:
                mine.add(TopicPartition(topic, partition))
    return mine
