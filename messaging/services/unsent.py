"""Sends that nobody is going to make: none of their record, claim, status or dead letter is left to tell of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final
from uuid import UUID

from messaging import codec, topics
from messaging.domain import Message, Outbound, Party, Status, rank
from messaging.ports import DeliveryKey, EventLog, MessageStore, ParkScope, Record, TopicPartition
from messaging.services import log_walk

PAGE: Final = 500
PENDING_MOST: Final = 100_000  # of one channel, held in memory

Send = tuple[UUID, str]  # message, recipient
Sends = Mapping[Send, Message]


class Unsent:
    """Looks for lost sends among messages whose records were committed before it is asked first: what these were to
    append to the channels' topics was there by then."""

    def __init__(self, *, log: EventLog, store: MessageStore, group: str, partitions: int) -> None:
        self._log = log
        self._store = store
        self._group = group
        self._partitions = partitions
        self._pending: dict[str, Set[Send] | None] = {}
        self.on_their_way: set[UUID] = set()  # of the messages of the last question

    def lost(self, messages: Sequence[Message]) -> set[UUID]:
        """Those of these stored messages that are on nobody's way to some external recipient, and did not get there."""
        left: Sends = {(each.message_id, to): each for each in messages for to in each.recipients if _channel(to)}
        left = self._unended(left)
        begun = _messages_of(left)
        # In the order in which a send moves on: what moves while this looks is met where it went.
        left = self._not_parked(self._not_pending(left))
        self.on_their_way = begun - _messages_of(left)
        return _messages_of(self._unended(self._not_dead(left)))

    def _unended(self, sends: Sends) -> Sends:
        """Those that are SENT since they were stored, and whose claim did not end."""
        if not sends:
            return {}
        messages = {each.message_id: each for each in sends.values()}
        moved = {
            (message_id, each.recipient)
            for message_id, standing in self._store.statuses(list(messages.values())).items()
            for each in standing
            if each.rank > rank(Status.SENT)
        }
        keys = {send: DeliveryKey(*send) for send in sends if send not in moved}
        settled = self._store.settled_deliveries(list(keys.values()))
        return {send: sends[send] for send, key in keys.items() if key not in settled}

    def _not_pending(self, sends: Sends) -> Sends:
        return {send: message for send, message in sends.items() if not self._is_pending(send)}

    def _is_pending(self, send: Send) -> bool:
        channel = _channel(send[1])
        if channel not in self._pending:
            self._pending[channel] = self._read_pending(topics.outbound(channel))
        pending = self._pending[channel]
        return pending is None or send in pending

    def _read_pending(self, topic: str) -> Set[Send] | None:
        """What the group has not done yet; None when that is too much to tell."""
        found: set[Send] = set()
        for source in (TopicPartition(topic, number) for number in range(self._partitions)):
            start = self._log.committed(self._group, source)
            for page in log_walk.pages(source, self._log, start=start, until_ms=1 << 53, limit=PAGE):
                found.update(send for record in page for send in _send_of(record))
                if len(found) > PENDING_MOST:
                    return None
        return found

    def _not_parked(self, sends: Sends) -> Sends:
        """Without those of conversations that hold something back: it goes once that does."""
        scopes = {send: ParkScope(topics.outbound(_channel(send[1])), sends[send].conversation_id) for send in sends}
        held = self._store.parked_scopes(list(set(scopes.values())))
        return {send: sends[send] for send, scope in scopes.items() if scope not in held}

    def _not_dead(self, sends: Sends) -> Sends:
        left = set(sends)
        if left:
            letters = [
                TopicPartition(topics.dead_letters(topics.outbound(channel)), 0)
                for channel in sorted({_channel(to) for _, to in left})
            ]
            since_ms = min(each.accepted_at_ms for each in sends.values()) - log_walk.CLOCKS_APART_MS
            for _ in log_walk.discard_found(left, _send_of, letters, since_ms=since_ms, log=self._log):
                pass
        return {send: sends[send] for send in left}


def _channel(recipient: str) -> str:
    """Empty for a user."""
    return Party.parse(recipient).channel or ""


def _messages_of(sends: Sends) -> set[UUID]:
    return {message_id for message_id, _ in sends}


def _send_of(record: Record) -> list[Send]:
    """Nothing when it can't be read."""
    outbound = codec.readable(Outbound, record.value)
    return [(outbound.message.message_id, outbound.recipient)] if outbound else []
