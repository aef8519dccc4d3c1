"""Behind `status-updates`: statuses move forward, their history grows, who cares is told live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID

from core.clock import iso_utc
from core.failpoints import failpoint
from messaging import codec, metrics
from messaging.domain import Message, Party, RecipientStatus, Status, StatusChange, overall
from messaging.ports import MessageStore, Notify, Push
from messaging.services.batches import Item, Lease, Outcomes, all_of, decoded
from messaging.services.recent import RecentMessages
from messaging.work import DONE

News = tuple[StatusChange, RecipientStatus]  # and what stands after it


def apply_statuses(
    items: Sequence[Item], *, store: MessageStore, notify: Notify, lease: Lease, recent: RecentMessages
) -> Outcomes:
    """Raises Unavailable and LeaseLost."""
    values, outcomes = decoded(partial(codec.decode, StatusChange), items)
    changes = [change for _, change in values]
    if not changes:
        return outcomes
    lease.check()
    standing = store.apply_statuses(changes)
    failpoint("statuses.stored")
    # Told by what stands, not by what this call moved: a worker killed between the two steps leaves a replay that
    # moves nothing and still has to tell.
    news = [(change, stands) for change, stands in zip(changes, standing, strict=True) if stands.rank == change.rank]
    _count([change for change, _ in news])
    messages = recent.get({change.message_id for change, _ in news}, store)
    known = [each for each in news if each[0].message_id in messages]  # the frame of one that is to come shows it
    overalls = _overalls(known, messages, store)
    lease.check()
    notify([push for change, _ in known for push in _pushes(change, messages[change.message_id], overalls)])
    return outcomes | all_of(values, DONE)


def _overalls(news: Sequence[News], messages: Mapping[UUID, Message], store: MessageStore) -> dict[UUID, Status]:
    """What each message shows as a whole. Of one recipient that is what stands, and needs no look."""
    to_many = [message for message in messages.values() if len(message.recipients) > 1]
    shown = {change.message_id: stands.status for change, stands in news}
    statuses = store.statuses(to_many) if to_many else {}
    return shown | {message_id: overall(each) for message_id, each in statuses.items()}


def _count(news: Sequence[StatusChange]) -> None:
    counts = Counter((Party.parse(each.recipient).channel, each.status) for each in news)
    for (channel, status), count in counts.items():
        metrics.STATUSES.labels(channel or metrics.USERS, status.value).inc(count)


def _pushes(change: StatusChange, message: Message, overalls: Mapping[UUID, Status]) -> list[Push]:
    """The sender sees the tick turn, the recipient's other devices see that it was read."""
    body = {
        "type": "status",
        "message_id": str(message.message_id),
        "conversation_id": message.conversation,
        "recipient_id": change.recipient,
        "status": change.status.value,
        "overall": overalls[message.message_id].value,
        "at": iso_utc(change.at_ms),
        "reason": change.reason,
    }
    interested = dict.fromkeys((message.sender_id, change.recipient))
    return [Push(user, change.event_id, body) for user in interested if Party.parse(user).is_user]
