"""What everybody saw of a run, as values: `collect` fills it from a running system, `checker` judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Id = str  # of a message
Source = tuple[str, int]  # a topic's partition


@dataclass(frozen=True, slots=True)
class Request:
    """One message that a client wanted to send, with all of its tries under one Idempotency-Key.

    ``message_id`` is set when it was acknowledged (202). ``undecided``: no answer tells whether it was taken: the
    connection broke, or 503, after which the record may still appear. Neither: it was refused.
    """

    conversation: str
    sender: str
    content: str  # differs from that of every other request
    message_id: Id | None = None
    undecided: bool = False


class Heard(NamedTuple):
    """What a person said to us on a platform, in the order in which they did. ``sender`` is their address.

    ``taken``: our webhook answered 200, so the platform will not tell us again. What was not may be stored as well.
    """

    sender: str
    text: str  # differs from everything else that anybody said
    external_id: str
    taken: bool = True


class Logged(NamedTuple):
    """A record of `messages`, as its topic's reader sees it. ``external_id``: the platform's, of what a person said."""

    source: Source
    offset: int
    conversation: str
    message_id: Id
    external_id: str = ""


class Told(NamedTuple):
    """A record of `status-updates`. ``rank`` is `messaging.domain.rank`; ``note`` marks a second try."""

    message_id: Id
    recipient: str
    rank: int
    note: str = ""


class DeadLetter(NamedTuple):
    """Where it came from, and what it is about where that can be read: of `inbound` the platform's id of a message.
    ``reason`` is why it is one."""

    source: Source
    offset: int
    message_id: Id | None
    external_id: str = ""
    reason: str = ""
    receipts: frozenset[Id] = frozenset()  # of `inbound`: the messages of ours that its receipts name


@dataclass(frozen=True, slots=True)
class Row:
    """A stored message, with its standing rank for each recipient."""

    message_id: Id
    conversation: str
    sender: str
    content: str
    ranks: Mapping[str, int] = field(default_factory=dict)


class Sent(NamedTuple):
    """A message that a platform took from us, in the order in which it took them. What is none that we know has no
    conversation and no id. ``receipt`` is the rank of what it then told our webhook, which answered 200; of a platform
    that gives back our id: what the others tell of a send whose answer nobody saw names nothing that we know."""

    conversation: str
    recipient: str
    message_id: Id
    receipt: int = 0


class Frame(NamedTuple):
    """What a socket brought. ``rank`` is None for a new message; ``note`` marks the news of a second try. What is about
    no message has no conversation."""

    epoch: str
    seq: int
    conversation: str
    message_id: Id
    recipient: str = ""
    rank: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Client:
    """A user's device: what its socket brought, and what it fetched over REST, by conversation: when it began, and each
    time that it was told to resync. What it shows in the end is both together. ``fetched`` has all its conversations
    but those that it had before, which are ``older``; ``ranks`` are those that came with a message, pushed or fetched,
    by message and recipient; ``resyncs``: before which of the frames it was told to.
    """

    user: str
    frames: Sequence[Frame]
    fetched: Mapping[str, frozenset[Id]]
    resyncs: frozenset[int] = frozenset()
    ranks: Mapping[tuple[Id, str], int] = field(default_factory=dict)
    older: frozenset[str] = frozenset()


class Commit(NamedTuple):
    """A look at a partition: what was committed, and then the lowest offset whose work was not seen to be done."""

    source: Source
    committed: int
    watermark: int


class Level(NamedTuple):
    """The highest value that something bounded was seen to have: memory, a queue."""

    name: str
    highest: float
    bound: float


@dataclass(frozen=True, slots=True)
class History:
    """Everything that is compared. Sequences are in the order in which things happened where they were seen.

    ``stored`` holds each conversation's messages as its history lists them, oldest first. ``external`` are recipients
    that a platform delivers to.
    """

    requests: Sequence[Request]
    log: Sequence[Logged]
    told: Sequence[Told]
    dead: Sequence[DeadLetter]
    stored: Mapping[str, Sequence[Row]]
    sent: Sequence[Sent]
    heard: Sequence[Heard] = ()
    clients: Sequence[Client] = ()
    commits: Sequence[Commit] = ()
    levels: Sequence[Level] = ()
    external: frozenset[str] = frozenset()
