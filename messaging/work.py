"""What passes between the bridge and the workers: batches one way, an outcome per record back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from messaging.ports import Record, TopicPartition

MOST_RECORDS: Final = 100  # of what one task does, and MOST_BYTES of their values: it must end in time
MOST_BYTES: Final = 256 * 1024
EXPIRED: Final = "expired"  # why a send is a dead letter that came too late: nothing of ours is broken


@dataclass(frozen=True, slots=True, order=True)
class LaneId:
    """A slice of a partition: records whose keys hash alike go through one lane, one batch at a time."""

    source: TopicPartition
    number: int

    def __str__(self) -> str:
        return f"{self.source.topic}:{self.source.partition}:{self.number}"


@dataclass(slots=True)
class Work:
    """A record on its way, and what was tried with it."""

    record: Record
    attempts: int = 0  # answers that asked for a retry and burned an attempt
    crashes: int = 0  # workers that died with this record alone in their hands
    first_failed_ms: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What one task gets. ``epoch`` grows with every dispatch of a lane; only the latest may have effects.

    ``shareable``: a worker may do it together with what other lanes of its topic have for it.
    """

    lane: LaneId
    epoch: str
    works: tuple[Work, ...]
    shareable: bool = False


class Verdict(StrEnum):
    DONE = "done"  # or parked in the store, which counts as done
    RETRY = "retry"  # again after ``after_s``, and nothing of the same key before it; burns an attempt
    PAUSED = "paused"  # the same, without burning one: a part that is needed is away
    POISON = "poison"  # to the dead letters
    NOT_STARTED = "not_started"  # out of time, or behind a retry of the same key


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record. ``reason`` is a stable code or an error class, never message text."""

    verdict: Verdict
    after_s: float = 0.0
    reason: str = ""


DONE = Outcome(Verdict.DONE)
NOT_STARTED = Outcome(Verdict.NOT_STARTED)


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of one batch. ``lost``: its worker died, nothing is known of any record; ``shared``: others as well."""

    lane: LaneId
    epoch: str
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by offset; one that is missing was not started
    lost: bool = False
    shared: bool = False


class BatchState(StrEnum):
    """What is known of a batch that was dispatched."""

    QUEUED = "queued"  # waits for a worker
    LOST_IN_QUEUE = "lost_in_queue"  # not started, and the queue is empty: the broker lost it
    RUNNING = "running"  # a worker renews its lease
    LAPSED = "lapsed"  # it was started, and nobody renews its lease
    GONE = "gone"  # nothing is known of it: the bus was flushed


class Dispatcher(Protocol):
    """The bridge's way to the workers. Best effort: what is lost on the way is dispatched again."""

    def dispatch(self, batch: Batch) -> None:
        """Hand the batch to a worker; a later batch of the lane supersedes it. Raises Unavailable."""

    def send_again(self, batch: Batch) -> None:
        """Its task may be lost while it waits: send another for the same dispatch; whichever starts first counts.
        Raises Unavailable."""

    def completions(self, timeout_s: float) -> list[Completion]:
        """Those that ended since, waiting up to ``timeout_s`` for the first. Raises Unavailable."""

    def inspect(self, batches: list[Batch]) -> list[BatchState]:
        """What became of these, one state each. Raises Unavailable."""
