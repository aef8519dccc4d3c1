"""What the services behind topics have in common: decode a batch, tell what is poison, answer per record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from messaging.errors import UndecodableRecord
from messaging.ports import Record
from messaging.work import Outcome, Verdict

Value = TypeVar("Value")
Outcomes = dict[int, Outcome]  # by the item's number

AWAY: Final = Outcome(Verdict.PAUSED, after_s=1.0, reason="unavailable")  # a part is away: again, no attempt burned


class Item(Protocol):
    """A record in a worker's hands; see `messaging.dispatch.WorkItem`."""

    @property
    def record(self) -> Record: ...
    @property
    def attempts(self) -> int: ...
    @property
    def first_failed_ms(self) -> int: ...
    @property
    def number(self) -> int:
        """By which its outcome is told."""


class Lease(Protocol):
    """The right to go on with a batch."""

    def check(self) -> None:
        """Raises LeaseLost; call it before every append, push and send."""


def decoded(read: Callable[[bytes], Value], items: Sequence[Item]) -> tuple[list[tuple[Item, Value]], Outcomes]:
    """The values of a batch in order, and an outcome for each record that ``read`` finds undecodable."""
    values: list[tuple[Item, Value]] = []
    outcomes: Outcomes = {}
    for item in items:
        try:
            values.append((item, read(item.record.value)))
        except UndecodableRecord:
            outcomes[item.number] = Outcome(Verdict.POISON, reason="undecodable")
    return values, outcomes


def all_of(items: Sequence[tuple[Item, Value]], outcome: Outcome) -> Outcomes:
    return {item.number: outcome for item, _ in items}
