"""What the platform remembers: rings of the last messages each way, and counters for all that ever was."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import msgspec


class Numbered(Protocol):
    seq: int

    @property
    def weight(self) -> int: ...


Entry = TypeVar("Entry", bound=Numbered)


class Received(msgspec.Struct, kw_only=True):
    """A message that the platform accepted from us. ``attempt`` says which one it is with its correlation."""

    seq: int = 0
    id: str
    channel: str
    account_id: str
    to: str
    type: str
    text: str
    content: dict[str, Any] | None = None
    filename: str | None = None
    media_sha256: str | None = None
    media_size: int | None = None
    correlation: str | None = None
    reply_to: str | None = None
    received_at: int  # ms
    attempt: int = 1
    status: str = "accepted"  # the last that was handed to the webhook's queue
    told: str = "accepted"  # the last that the webhook answered with 200

    @property
    def weight(self) -> int:
        return len(self.text) + (len(str(self.content)) if self.content else 0)


class Said(msgspec.Struct, kw_only=True):
    """A message that a person sent to us. ``delivered_at`` is when the webhook was first answered with 200."""

    seq: int = 0
    id: str
    channel: str
    account_id: str
    sender: str = msgspec.field(name="from")
    type: str
    text: str
    media_sha256: str | None = None
    sent_at: int  # ms
    delivered_at: int | None = None
    read_by_us: bool = False

    @property
    def weight(self) -> int:
        return len(self.text)


class Ring(Generic[Entry]):
    """The last entries, at most ``max_entries`` and about ``max_chars`` of text, each with the next number."""

    def __init__(self, max_entries: int, *, max_chars: int = 200_000_000) -> None:
        self._max_entries = max_entries
        self._max_chars = max_chars
        self._chars = 0
        self._next = 1
        self._oldest = 1
        self._by_seq: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._by_seq)

    def add(self, entry: Entry) -> list[Entry]:
        """The entries that had to go for this one."""
        entry.seq = self._next
        self._next += 1
        self._by_seq[entry.seq] = entry
        self._chars += entry.weight
        gone = []
        while len(self._by_seq) > self._max_entries or (self._chars > self._max_chars and len(self._by_seq) > 1):
            dropped = self._by_seq.pop(self._oldest)
            self._oldest += 1
            self._chars -= dropped.weight
            gone.append(dropped)
        return gone

    def since(self, seq: int) -> Iterator[Entry]:
        """Entries after number ``seq``, in order."""
        for each in range(max(seq + 1, self._oldest), self._next):
            yield self._by_seq[each]

    @property
    def oldest(self) -> int:
        return self._oldest


class Ledger:
    """Rings and counters. Counters count everything since the last reset, also what the rings forgot."""

    def __init__(self, max_messages: int) -> None:
        self.received: Ring[Received] = Ring(max_messages)
        self.said: Ring[Said] = Ring(max_messages)
        self._received_by_id: dict[str, Received] = {}
        self._said_by_id: dict[str, Said] = {}
        self._attempts: OrderedDict[str, int] = OrderedDict()
        self._max_messages = max_messages
        self.accepted: Counter[str] = Counter()  # by channel
        self.refused: Counter[str] = Counter()  # by code
        self.duplicates = 0  # accepted sends beyond the first of their correlation
        self.duplicated_correlations = 0
        self.unanswered = 0  # ambiguous: accepted, and the answer was withheld
        self.read_receipts = 0
        self.typing_indicators = 0
        self.media_uploaded = 0
        self.inbound: Counter[str] = Counter()  # by channel
        self.replies = 0  # of the inbound, those from the script

    def accept(self, message: Received) -> None:
        self.accepted[message.channel] += 1
        if message.correlation is not None:
            message.attempt = self._count_attempt(message.correlation)
            self.duplicates += message.attempt > 1
            self.duplicated_correlations += message.attempt == 2
        self._received_by_id[message.id] = message
        for gone in self.received.add(message):
            del self._received_by_id[gone.id]

    def _count_attempt(self, correlation: str) -> int:
        attempt = self._attempts[correlation] = self._attempts.pop(correlation, 0) + 1
        if len(self._attempts) > self._max_messages:
            self._attempts.popitem(last=False)
        return attempt

    def attempts(self, correlation: str | None) -> int:
        """How many sends were accepted with this correlation so far; 1 for what has none."""
        return 1 if correlation is None else self._attempts.get(correlation, 1)

    def say(self, message: Said) -> None:
        self.inbound[message.channel] += 1
        self._said_by_id[message.id] = message
        for gone in self.said.add(message):
            del self._said_by_id[gone.id]

    def said_by_id(self, external_id: str) -> Said | None:
        return self._said_by_id.get(external_id)

    def chat_of(self, external_id: str) -> tuple[str, str] | None:
        """The account and the person between whom a message went; None for one that never did, or is forgotten."""
        if received := self._received_by_id.get(external_id):
            return received.account_id, received.to
        said = self._said_by_id.get(external_id)
        return (said.account_id, said.sender) if said else None

    def counts(self) -> dict[str, Any]:
        return {
            "sends": {
                "accepted": self.accepted.total(),
                "accepted_by_channel": dict(self.accepted),
                "refused": self.refused.total(),
                "refused_by_code": dict(self.refused),
                "unanswered": self.unanswered,
                "duplicates": self.duplicates,
                "duplicated_correlations": self.duplicated_correlations,
            },
            "inbound": {
                "sent": self.inbound.total(),
                "sent_by_channel": dict(self.inbound),
                "scripted_replies": self.replies,
            },
            "read_receipts": self.read_receipts,
            "typing_indicators": self.typing_indicators,
            "media_uploaded": self.media_uploaded,
            "kept": {"messages": len(self.received), "inbound": len(self.said)},
        }
