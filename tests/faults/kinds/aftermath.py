"""Faults after which everything must have arrived: what came of a round, in addition to the promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from messaging.domain import Status, rank
from messaging.services.deliver import UNKNOWN
from tests.faults.checker import Report
from tests.faults.history import History
from tests.faults.patience import eventually
from tests.faults.rounds import Fault
from tests.faults.world import CLUSTER, LOCAL, Pace, Profile, World

READ: Final = rank(Status.READ)
NOWHERE: Final[frozenset[Profile]] = frozenset()

Strike = Callable[[World, Pace], None]


def all_read(world: World, history: History, _report: Report) -> None:
    """What broke was waited for: only what was in doubt twice is a dead letter, and receipts found their messages."""
    assert {each.reason for each in history.dead} <= {UNKNOWN}, history.dead
    dead = {each.message_id for each in history.dead}
    for unread in [
        row.message_id
        for rows in history.stored.values()
        for row in rows
        if row.message_id not in dead
        and any(recipient.startswith("whatsapp:") and standing < READ for recipient, standing in row.ranks.items())
    ]:
        eventually(
            lambda message_id=unread: world.alice.message(message_id)["status"] == "READ",  # type: ignore[misc]
            every_s=0.2,
        )


def of_all(
    name: str,
    strike: Strike,
    *,
    profiles: frozenset[Profile] = LOCAL | CLUSTER,
    apart: bool = True,
) -> Fault:
    """A fault of every `make test`, and of the soak, after which all was read."""
    return Fault(name, strike, profiles, short=profiles, afterwards=all_read, apart=apart)


def of_soak(
    name: str,
    strike: Strike,
    *,
    profiles: frozenset[Profile] = LOCAL | CLUSTER,
    apart: bool = True,
    like: Strike | None = None,
) -> Fault:
    """The same of the soak alone: of its joined laps where it is none ``apart``."""
    joined = NOWHERE if apart else profiles
    return Fault(name, strike, profiles, NOWHERE, all_read, apart=apart, joined=joined, like=like)
