"""Behind `status-updates`: statuses move forward, their history grows, who cares is told live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from core.clock import iso_utc
from core.failpoints import failpoint
from messaging import metrics
from messaging.domain import Message, Party, RecipientStatus, StatusChange, overall
from messaging.ports import MessageStore, Notify, Push
from messaging.services.batches import Item, Lease, Outcomes, all_of, decoded
from messaging.work import DONE


def apply_statuses(items: Sequence[Item], *, store: MessageStore, notify: Notify, lease: Lease) -> Outcomes:
    """Raises Unavailable and LeaseLost."""
    values, outcomes = decoded(StatusChange, items)
    changes = [change for _, change in values]
    if not changes:
        return outcomes
    lease.check()
    standing = store.apply_statuses(changes)
    failpoint("statuses.stored")
    # Told by what stands, not by what this call moved: a worker killed between the two steps leaves a replay that
    # moves nothing and still has to tell.
    news = [change for change, stands in zip(changes, standing, strict=True) if stands.rank == change.rank]
    _count(news)
    messages = store.messages({change.message_id for change in news})
    statuses = store.statuses(list(messages.values()))
    known = [change for change in news if change.message_id in messages]  # the frame of one that is to come shows it
    lease.check()
    notify([push for change in known for push in _pushes(change, messages[change.message_id], statuses)])
    return outcomes | all_of(values, DONE)


def _count(news: Sequence[StatusChange]) -> None:
    counts = Counter((Party.parse(each.recipient).channel, each.status) for each in news)
    for (channel, status), count in counts.items():
        metrics.STATUSES.labels(channel or metrics.USERS, status.value).inc(count)


def _pushes(change: StatusChange, message: Message, statuses: dict[UUID, list[RecipientStatus]]) -> list[Push]:
    """The sender sees the tick turn, the recipient's other devices see that it was read."""
    body = {
        "type": "status",
        "message_id": str(message.message_id),
        "conversation_id": message.conversation,
        "recipient_id": change.recipient,
        "status": change.status.value,
        "overall": overall(statuses[message.message_id]).value,
        "at": iso_utc(change.at_ms),
        "reason": change.reason,
    }
    interested = dict.fromkeys((message.sender_id, change.recipient))
    return [Push(user, change.event_id, body) for user in interested if Party.parse(user).is_user]
