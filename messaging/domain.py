"""The values that travel: frozen, without Django, without I/O.

Times are milliseconds since the Unix epoch in UTC (``_ms``). Ids of messages are UUIDv7 and sort by time of accept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

MAX_CONTENT_BYTES: Final = 64 * 1024
MAX_CONVERSATION_ID_CHARS: Final = 128
MAX_MEMBERS: Final = 256
MAX_ADDRESS_CHARS: Final = 255
MAX_EXTERNAL_ID_CHARS: Final = 512
MAX_IDEMPOTENCY_KEY_CHARS: Final = 255
MAX_ATTEMPT: Final = 499  # of sending; `rank`: evidence of delivery outranks every attempt

_ADDRESS = re.compile(r"(?P<channel>[a-z][a-z0-9_-]{0,31}):(?P<address>\S.{0,254})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Party:
    """Somebody who can be in a conversation: a user (``channel`` is None), or an address on a channel.

    Written as the API writes it: ``user_0192…``, ``whatsapp:+5511999998888``, ``instagram:17841400000000000``.
    """

    channel: str | None
    address: str

    @classmethod
    def parse(cls, text: str) -> Party:
        """Total: whatever has no ``channel:`` before it is taken as a user id."""
        match = _ADDRESS.fullmatch(text)
        return cls(match["channel"], match["address"]) if match else cls(None, text)

    @property
    def is_user(self) -> bool:
        return self.channel is None

    def __str__(self) -> str:
        return self.address if self.channel is None else f"{self.channel}:{self.address}"


def inbound_conversation(channel: str, address: str, account_id: str) -> str:
    """The public id of the conversation that an unknown person opens by writing to an account of ours."""
    public_id = f"{channel}:{address}@{account_id}"
    if len(public_id) > MAX_CONVERSATION_ID_CHARS:
        public_id = f"{channel}:{hashlib.sha256(public_id.encode()).hexdigest()}@"
    return public_id


def is_reserved(public_id: str) -> bool:
    """Whether only inbound messages open conversations of such an id.

    A user who opened one before its person first writes would read what that person tells the account's agents.
    """
    _, colon, rest = public_id.partition(":")
    return bool(colon) and "@" in rest


class Status(StrEnum):
    """How far a message came for one recipient."""

    ACCEPTED = "ACCEPTED"  # on the log: the 202
    SENT = "SENT"  # stored and handed on
    DELIVERED = "DELIVERED"  # the platform says so, or a device of an internal user acknowledged it
    READ = "READ"
    FAILED = "FAILED"  # with a reason; overridden by late evidence of delivery


def rank(status: Status, attempt: int = 0) -> int:
    """The place of a status in the only order there is; a write of a lower rank changes nothing.

    A replay of a failed send opens attempt ``n + 1``, whose SENT outranks the FAILED before it. Attempts end at
    MAX_ATTEMPT, so that evidence of delivery outranks every attempt.
    """
    match status:
        case Status.ACCEPTED:
            return -1
        case Status.SENT:
            return 2 * attempt
        case Status.FAILED:
            return 2 * attempt + 1
        case Status.DELIVERED:
            return 1000
        case Status.READ:
            return 2000


@dataclass(frozen=True, slots=True)
class Conversation:
    """A thread. ``public_id`` is what the client wrote, ``conversation_id`` its UUIDv5 within the workspace."""

    conversation_id: UUID
    workspace_id: UUID
    public_id: str
    title: str
    members: tuple[str, ...]  # parties in the order in which they joined
    created_by: str
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message as accepted: everything later steps need, fixed once, so that a replay writes the same again."""

    message_id: UUID
    workspace_id: UUID
    conversation_id: UUID
    conversation: str  # the conversation's public id
    sender_id: str  # a user id, or the address of an external person
    recipient_id: str | None  # as asked for; None: all other members
    recipients: tuple[str, ...]  # whose status is tracked, external ones are sent to
    audience: tuple[str, ...]  # user ids that see it live, the sender's own devices included
    content: str
    file_id: str | None = None
    reply_to: UUID | None = None
    accepted_at_ms: int
    account_id: str | None = None  # inbound: the channel account that it came through
    external_id: str | None = None  # inbound: the platform's id


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange:
    """News about one recipient of one message. ``at_ms`` is when it happened, as its source says."""

    message_id: UUID
    conversation_id: UUID
    recipient: str
    status: Status
    at_ms: int
    attempt: int = 0
    reason: str | None = None  # FAILED: a stable code, such as "undeliverable" or "platform:131026"
    external_id: str | None = None

    @property
    def rank(self) -> int:
        return rank(self.status, self.attempt)

    @property
    def note(self) -> str:
        """What makes a SENT news although SENT stands already: "maybe_duplicate", told before a second try."""
        return self.reason or "" if self.status is Status.SENT else ""

    @property
    def event_id(self) -> str:
        """Equal for equal news: a replay pushes no second frame."""
        note = f":{self.note}" if self.note else ""
        return f"status:{self.message_id}:{self.recipient}:{self.rank}{note}"


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """Where a message stands for one recipient."""

    recipient: str
    status: Status
    rank: int
    at_ms: int
    reason: str | None = None


def sent(message: Message) -> Iterator[StatusChange]:
    """What it means to each recipient that a message is stored. It goes without saying: no store writes it down."""
    for recipient in message.recipients:
        yield StatusChange(
            message_id=message.message_id,
            conversation_id=message.conversation_id,
            recipient=recipient,
            status=Status.SENT,
            at_ms=message.accepted_at_ms,
        )


def once_stored(message: Message, found: Mapping[tuple[UUID, str], RecipientStatus]) -> list[RecipientStatus]:
    """Where a stored message stands for its recipients, in its order: SENT, or what was ``found`` of it by id and
    recipient, where that is higher."""
    stands = []
    for change in sent(message):
        told = found.get((message.message_id, change.recipient))
        stands.append(told if told and told.rank > change.rank else standing_after(change))
    return stands


def standing_after(change: StatusChange) -> RecipientStatus:
    """What stands once this was told and nothing higher."""
    return RecipientStatus(change.recipient, change.status, change.rank, change.at_ms, change.reason)


def as_sent(change: StatusChange) -> RecipientStatus:
    """What stands for whom nothing was told that moves a status: SENT, as soon as there is a message; whose accept, its
    time, nobody knows here."""
    return RecipientStatus(change.recipient, Status.SENT, rank(Status.SENT), change.at_ms)


def history_of(message: Message, told: Iterable[StatusChange]) -> list[StatusChange]:
    """The status history of a stored message of which this was ``told``, by time, then rank."""
    news = {change.event_id: change for change in sent(message)}
    for change in told:
        news.setdefault(change.event_id, change)
    return sorted(news.values(), key=lambda each: (each.at_ms, each.rank, each.recipient))


def overall(statuses: Iterable[RecipientStatus]) -> Status:
    """What the message as a whole shows: the lowest of its recipients; SENT when it has none (a note to oneself)."""
    lowest = min(statuses, key=lambda each: each.rank, default=None)
    return lowest.status if lowest else Status.SENT


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundEvent:
    """One item of a platform's webhook that may be a person's message, verified and split, not yet understood. Keyed
    ``account:contact``."""

    workspace_id: UUID
    channel: str
    account_id: str
    contact: str  # the platform's id of the person, as far as the item names one; orders the log
    payload: dict[str, object]
    received_at_ms: int

    @property
    def payloads(self) -> tuple[dict[str, object], ...]:
        """As `InboundReceipts` have several."""
        return (self.payload,)


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundReceipts:
    """What one webhook told of messages that an account sent: items that no person wrote, about any number of them.
    Keyed ``account:receipts:…``, each by itself: statuses only move forward, in whatever order they are told."""

    workspace_id: UUID
    channel: str
    account_id: str
    payloads: tuple[dict[str, object], ...]
    received_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """A message on its way to one external recipient."""

    message: Message
    recipient: str
    channel: str
    attempt: int = 0
    routed_at_ms: int

    @property
    def correlation_id(self) -> str:
        """What a platform sends back with its statuses, so that they find the message and the attempt."""
        message_id = str(self.message.message_id)
        return f"{message_id}/{self.attempt}" if self.attempt else message_id


def correlated(correlation_id: str) -> tuple[UUID, int]:
    """The message and the attempt that an `Outbound.correlation_id` names. Raises ValueError."""
    message_id, slash, number = correlation_id.partition("/")
    attempt = int(number) if slash else 0
    if not 0 <= attempt <= MAX_ATTEMPT:
        raise ValueError("no attempt has that number")
    return UUID(message_id), attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """An external person as one channel account knows them, and the conversation they were last heard in."""

    workspace_id: UUID
    channel: str
    account_id: str
    address: str
    conversation_id: UUID
    last_message_id: UUID  # the binding only moves forward along this
    name: str = ""
    handle: str = ""  # Instagram: the username that resolves to this address


Reference = tuple[str, str, str]  # channel, account id, and what the platform calls a message there


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalRef:
    """What a platform's message id means to us."""

    channel: str
    account_id: str
    external_id: str
    message_id: UUID
    conversation_id: UUID
    party: str  # outbound: the recipient; inbound: the sender
    attempt: int = 0  # outbound: the one that the platform took

    @property
    def reference(self) -> Reference:
        return self.channel, self.account_id, self.external_id
