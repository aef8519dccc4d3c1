"""What must have come of a round in addition to the promises, when what broke is whole again."""

from __future__ import annotations

from typing import Final

from messaging.domain import Status, rank
from tests.faults.checker import Report
from tests.faults.history import History
from tests.faults.world import World
from tests.town import eventually

READ: Final = rank(Status.READ)


def all_read(world: World, history: History, report: Report) -> None:
    """What broke was waited for: nothing became a dead letter, and each receipt of WhatsApp's found its message."""
    assert report.dead == 0
    for unread in [
        row.message_id
        for rows in history.stored.values()
        for row in rows
        if any(recipient.startswith("whatsapp:") and standing < READ for recipient, standing in row.ranks.items())
    ]:
        eventually(lambda message_id=unread: world.alice.message(message_id)["status"] == "READ")  # type: ignore[misc]
