"""What the product needs from the world outside. Adapters live in `eventlog/` and `stores/`; `wiring` chooses by URL.

Every sentence here is a promise that the contract suites in tests/contracts check on every adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from messaging.domain import (
    Contact,
    Conversation,
    ExternalRef,
    Message,
    RecipientStatus,
    StatusChange,
)
from messaging.topics import Topic
from realtime.frames import Push as Push  # noqa: PLC0414 - part of this port


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class NewRecord:
    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read. Offsets grow along a partition; there may be gaps between them."""

    source: TopicPartition
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    appended_at_ms: int


class EventLog(Protocol):
    """A durable, partitioned log. Records with equal keys go to one partition and keep their order.

    Delivery is at least once: whatever was read but not committed is read again. An adapter may be built before a
    fork and used after it: it connects on first use.
    """

    def ensure_topics(self, topics: Sequence[Topic]) -> None:
        """Create what is missing; may be called again. Never changes a number of partitions. Raises LogUnavailable."""

    def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:
        """Return once all are durable: each one's partition and offset, in the order given.

        Records of one call that share a key keep the order given. A value may hold up to MAX_RECORD_BYTES, else
        RecordTooLarge and nothing is appended. Raises LogUnavailable when they were not all acknowledged within the
        adapter's time-out (5 s unless configured); any of them may still appear, so readers accept duplicates.

        ``onward``: they follow from records that are on the log. One that is full, and refuses what comes from outside,
        takes them all the same, else it could never get room again.
        """

    def subscribe(self, topics: Sequence[str], *, group: str, member: str, listener: RebalanceListener) -> Subscription:
        """Join ``group`` as ``member``; partitions arrive through ``listener`` while polling.

        A newer run under a name shuts the one before it out: at once where the adapter knows members by name (Redis
        Streams; Kafka with static membership), else when that one stopped polling or let its session lapse.
        """

    def committed(self, group: str, source: TopicPartition) -> int:
        """The offset that the group reads next; 0 or the log's start before the first commit."""

    def end_offset(self, source: TopicPartition) -> int:
        """The offset that the next record gets. With `committed` this is the lag: the lag is 0 when they are equal."""

    def offset_since(self, source: TopicPartition, since_ms: int) -> int:
        """An offset at or behind which everything lies that was appended from then on; the end when nothing was."""

    def read(self, source: TopicPartition, *, start: int, limit: int) -> list[Record]:
        """Up to ``limit`` records from offset ``start`` on, outside any group: for people and checks."""

    def ping(self) -> None:
        """Raise LogUnavailable, naming the part and the remedy, when the log does not answer within 2 s."""

    def warm(self) -> None:
        """Open in the background what the first append would wait for; never blocks or fails. After a fork, once."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, order=True)
class Drift:
    """One thing in which a topic on the log differs from its declaration; both values in words for people."""

    topic: str
    what: str  # "topic", "partitions", "retention", "replicas", "bytes", else a setting as Kafka calls it
    declared: str
    found: str
    is_shortage: bool = False  # a promise does not hold so: acknowledged records may go, or none is accepted

    @classmethod
    def missing(cls, topic: str) -> Drift:
        return cls(topic, "topic", "there", "missing", is_shortage=True)

    @classmethod
    def of_partitions(cls, topic: str, declared: int, found: int) -> Drift:
        return cls(topic, "partitions", str(declared), str(found), is_shortage=found < declared)


class TopicAdmin(Protocol):
    """What `setup_topics` needs of a durable log. Every method raises LogUnavailable."""

    def drift(self, topics: Sequence[Topic]) -> list[Drift]:
        """Where the log differs from these, by topic in the order given; changes nothing."""

    def lacking(self, topics: Sequence[Topic]) -> list[Drift]:
        """Topics that are missing, and too few partitions. Answers, or raises, within 2 s: probes ask."""

    def grow(self, topics: Sequence[Topic]) -> None:
        """Add the partitions that existing topics lack. Keys move: only while nobody appends and no group has a lag."""

    def members(self, group: str) -> list[str]:
        """Who is in the group now."""


class RebalanceListener(Protocol):
    """Told from within `Subscription.poll`, on the polling thread; it may commit in `revoked` only."""

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        """These are ours from now on, read from their committed offset, each under an epoch greater than that of every
        owner before."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """These go to somebody else once this returns (at most 5 s): finish what is in flight, commit, let go."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These are somebody else's already: forget them, a commit would be refused."""


class Subscription(Protocol):
    """One member's share of a group. Used by one thread; at most one member owns a partition at a time."""

    def poll(self, timeout_s: float) -> list[Record]:
        """What arrived on owned, unpaused partitions, each partition's in order, waiting up to ``timeout_s`` for the
        first. Must be called at least every second: it also renews ownership and runs the listener.

        Bounded: at most 1,000 records or 4 MiB (and never less than one record).
        Raises LogUnavailable when the log is away; the subscription stays usable.
        """

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Records of these are not returned any more until resumed; ownership is kept. Unknown ones are ignored."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None: ...

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """The group reads these offsets next. Durable when it returns.

        Raises LeaseLost when any partition is no longer ours (a higher epoch owns it): then none of that
        partition's offset moved; those still ours are committed. LogUnavailable as ever.
        """

    def close(self) -> None:
        """Leave the group; calls ``revoked`` first for what is owned. Others have it at once, but under Kafka's static
        membership: that keeps a member's partitions for its return until its session lapses."""


# --- the message store -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConversationListing:
    conversation: Conversation
    last_activity_ms: int


@dataclass(frozen=True, slots=True)
class ListCursor:
    """Where a list of conversations goes on: strictly older than this pair."""

    last_activity_ms: int
    conversation_id: UUID


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of a message's status history, as it was reported; kept even when it did not move the status."""

    recipient: str
    change: StatusChange


class KeyState(StrEnum):
    NEW = "new"  # claimed by this call: go on
    RUNNING = "running"  # another call holds the lease
    DONE = "done"  # answered before, with `message_id`
    MISMATCH = "mismatch"  # claimed with another body, whatever became of that: its id may be on the log


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """An Idempotency-Key's claim. ``accepted_at_ms`` and ``message_id`` are those of the first call."""

    state: KeyState
    message_id: UUID
    accepted_at_ms: int


class DeliveryState(StrEnum):
    CLAIMED = "claimed"  # ours to send now
    BUSY = "busy"  # another worker is sending under a live lease
    ABANDONED = "abandoned"  # somebody began to send and vanished: ambiguous, now ours under a new lease
    SENT = "sent"  # the platform has it; `external_id`
    FAILED = "failed"  # refused for good; `reason`


@dataclass(frozen=True, slots=True, order=True)
class DeliveryKey:
    message_id: UUID
    recipient: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    key: DeliveryKey
    state: DeliveryState
    external_id: str | None = None
    reason: str | None = None
    since_ms: int = 0  # ABANDONED: when the first sender that vanished began, however often it was claimed since;
    # when it was superseded: since that was seen


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """How a claim ended. Exactly one of the first two is set, or neither: surely not sent, claim it again later.

    ``uncertain`` keeps it as begun (it may have been sent): the next claim answers ABANDONED at once.
    """

    key: DeliveryKey
    external_id: str | None = None
    failed_reason: str | None = None
    uncertain: bool = False


@dataclass(frozen=True, slots=True)
class ParkedRecord:
    """A record set aside with its place on the log; ``value`` as it was read."""

    source: TopicPartition
    offset: int
    value: bytes
    parked_at_ms: int
    attempts: int
    request_id: str | None = None  # the one that it comes from


@dataclass(frozen=True, slots=True, order=True)
class ParkScope:
    """What is held back together: one conversation on one outbound topic."""

    topic: str
    conversation_id: UUID


@dataclass(frozen=True, slots=True)
class Saved:
    """What saving messages found: the ``known`` had been stored before, the others are new.

    ``statuses``: where each new one stands for its recipients, in the message's order, as it was read after all of it
    was stored. Of a message to people on platforms alone that is SENT: they get it once it is stored.
    """

    known: Set[UUID]
    statuses: Mapping[UUID, Sequence[RecipientStatus]]


class MessageStore(Protocol):
    """Conversations, messages, statuses, claims. Every write may be repeated with the same values and changes nothing.

    Any method raises StoreUnavailable when the store does not answer within the adapter's time-out. Built before a
    fork, used after it. Callers check who may see what; the store only checks what it is asked.
    """

    # conversations
    def create_conversation(self, conversation: Conversation) -> tuple[Conversation, bool]:
        """Create unless it exists; the stored one (the first wins, whatever the second says) and whether it is new."""

    def conversation(self, conversation_id: UUID) -> Conversation | None: ...

    def conversations(self, conversation_ids: Collection[UUID]) -> dict[UUID, Conversation]:
        """Those of these that exist, by id."""

    def members(self, conversation_ids: Collection[UUID]) -> dict[UUID, Collection[str]]:
        """Who is in each of these that exist."""

    def last_activity_ms(self, conversation_id: UUID) -> int:
        """The newest message's accept time, or creation. The conversation exists."""

    def add_member(self, conversation_id: UUID, party: str, *, at_ms: int) -> None:
        """Append to the members; already one: nothing changes. The conversation exists."""

    def remove_member(self, conversation_id: UUID, party: str) -> None: ...

    def conversations_of(
        self, party: str, *, workspace_id: UUID, after: ListCursor | None, limit: int
    ) -> list[ConversationListing]:
        """Those of which a user is a member now, last active first; equal times by id, descending."""

    # messages
    def save_messages(self, messages: Sequence[Message]) -> Saved:
        """Store, which makes them SENT to each recipient, and move last activities forward.

        A status that was applied before its message counts from now on. Saving again changes nothing: no status goes
        back, no transition doubles. All or nothing on adapters with transactions, else repeatable after a failure."""

    def message(self, message_id: UUID) -> Message | None: ...

    def messages(self, message_ids: Collection[UUID]) -> dict[UUID, Message]:
        """Those of these that are stored, by id."""

    def history(
        self, conversation_id: UUID, *, before: UUID | None = None, after: UUID | None = None, limit: int
    ) -> list[Message]:
        """A page by message id: with ``after`` the next ones, ascending; else those before ``before`` (or the end),
        descending. Both bounds are exclusive; at most one is given."""

    # statuses
    def apply_statuses(self, changes: Sequence[StatusChange]) -> list[RecipientStatus]:
        """Write each change in order where its rank is higher than what stands (else keep what stands), add it to the
        history once, and return what stands after each of them, as if they were applied one by one.

        News with an `event_id` that the history has is not news: it is kept as it was told first. A change whose
        message is not stored yet waits for it and makes no message. SENT stands where nothing higher was told."""

    def statuses(self, messages: Sequence[Message]) -> dict[UUID, list[RecipientStatus]]:
        """Where each of these messages, which are stored, stands for its recipients, in its order."""

    def transitions(self, message: Message) -> list[Transition]:
        """The status history of a message, which is stored, by time, then rank: SENT to each, and what was told."""

    # what platforms call our messages
    def claim_externals(self, refs: Sequence[ExternalRef]) -> list[ExternalRef]:
        """Record what platforms' ids mean unless they are recorded; the recorded ones, in the order given (the first
        that claims an id wins). For what comes from platforms, whose meaning whoever sees it first makes up."""

    def note_externals(self, refs: Sequence[ExternalRef]) -> None:
        """Record what platforms call messages of ours, whose meaning is the same whoever tells and however often:
        nobody claims such an id."""

    def externals(self, channel: str, account_id: str, external_ids: Collection[str]) -> dict[str, ExternalRef]:
        """Those of these ids that are recorded, by id."""

    # contacts
    def bind_contacts(self, contacts: Sequence[Contact]) -> None:
        """Remember where each was last heard, if ``last_message_id`` is newer than the one known; a name or handle that
        is not empty replaces the known one, an empty one does not. As if they were bound one by one."""

    def contact(self, *, workspace_id: UUID, channel: str, account_id: str, address: str) -> Contact | None: ...

    def contacts(
        self, *, workspace_id: UUID, channel: str, account_id: str, addresses: Collection[str]
    ) -> dict[str, Contact]:
        """Those of these addresses that are known, by address; what it costs does not grow with each of them."""

    def contact_by_handle(
        self, *, workspace_id: UUID, channel: str, account_id: str, handle: str
    ) -> Contact | None: ...

    # Idempotency-Key on POST /v1/messages: kept 24 h
    def claim_key(
        self,
        *,
        workspace_id: UUID,
        sender_id: str,
        key: str,
        body_hash: str,
        message_id: UUID,
        now_ms: int,
        lease_ms: int,
    ) -> KeyClaim:
        """Claim, atomically against every other caller. NEW also when the earlier claim's lease ran out or was released
        without an answer, but then with *its* message id and accept time: appending those again is harmless.

        24 h after its first claim a key is forgotten, answered or not."""

    def answered_key(self, *, workspace_id: UUID, sender_id: str, key: str, body_hash: str, now_ms: int) -> UUID | None:
        """The message id that a request with this key and body was answered with (settled, not yet forgotten), else
        None. Claims nothing."""

    def settle_key(self, *, workspace_id: UUID, sender_id: str, key: str) -> None:
        """The request was answered 202: every later claim with the same body is DONE."""

    def release_key(self, *, workspace_id: UUID, sender_id: str, key: str) -> None:
        """The request failed: the next claim may go on at once."""

    # sending once
    def claim_deliveries(
        self,
        keys: Sequence[DeliveryKey],
        *,
        owner: str,
        now_ms: int,
        lease_ms: int,
        superseded: Callable[[str], bool] | None = None,
    ) -> list[DeliveryClaim]:
        """Claim each for ``owner``, atomically each; in the order given. A claim by the same owner again is CLAIMED.

        Nobody waits for the lease of an owner that is ``superseded``: what it began is ABANDONED, since now, for it may
        be sending still."""

    def settle_deliveries(self, outcomes: Sequence[DeliveryOutcome], *, owner: str) -> None:
        """Record outcomes. SENT is final, and FAILED but for evidence: SENT is recorded whoever brings it. Any other
        outcome of an owner that lost its claim is ignored."""

    def settled_deliveries(self, keys: Collection[DeliveryKey]) -> Set[DeliveryKey]:
        """Those of these whose claim ended SENT or FAILED; claims nothing."""

    # held back conversations
    def park(self, scope: ParkScope, records: Sequence[ParkedRecord], *, due_at_ms: int) -> None:
        """Hold these back, behind those already there; a record already there (same place on the log) is not added
        again. ``due_at_ms`` counts only when the scope is new."""

    def parked_scopes(self, scopes: Sequence[ParkScope]) -> Set[ParkScope]:
        """Which of these hold something back."""

    def due_scopes(self, *, topic: str, now_ms: int, limit: int) -> list[ParkScope]:
        """Those to be tried again by now, the longest due first."""

    def take_due_scopes(self, *, topic: str, now_ms: int, again_at_ms: int, limit: int) -> list[ParkScope]:
        """As `due_scopes`, and each is due at ``again_at_ms`` from here on: of several callers at once one gets it, and
        the next call goes on with others."""

    def due_at_ms(self, scope: ParkScope) -> int | None:
        """When it is to be tried again, None when it holds nothing back."""

    def parked(self, scope: ParkScope, *, limit: int) -> list[ParkedRecord]:
        """The first ones, in log order."""

    def unpark(self, scope: ParkScope, offsets: Sequence[tuple[TopicPartition, int]], *, next_due_ms: int) -> bool:
        """These are done with; what is left is due at ``next_due_ms``. True when nothing is left (the scope is gone:
        a record parked later opens it anew)."""

    def prune(self, *, limit: int) -> int:
        """Delete what nothing needs any more: Idempotency-Keys after 24 h, delivery claims after 14 days (longer than
        a record may stay on the log). At most ``limit`` of each kind at a time; how many, 0 when nothing is left. A
        store that forgets by itself answers 0."""

    def thin_replication(self) -> list[str]:
        """Where rows are kept on fewer nodes than could keep them, in words for people: the loss of one may take
        messages with it. A store whose copies are its server's own affair has none to tell of. Raises
        StoreUnavailable."""

    def ping(self) -> None:
        """Raise StoreUnavailable, naming the part and the remedy, when the store does not answer within 2 s."""

    def close(self) -> None: ...


# --- pushing live ------------------------------------------------------------------------------------------------

Notify = Callable[[Sequence[Push]], None]
"""Push frames, in order, best effort: a push is a hint, history is the truth. Never raises for a Redis that is away."""
