"""The honest count: what clients and people were told, against what the store, the platforms and the sockets hold.

Pure: everything comes in as values, collected by whoever watched. A message counts as lost when any place that has to
hold it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

READ: Final = "READ"


class Loss(StrEnum):
    """What may be wrong with a message; the value is what a person reads."""

    NOT_STORED = "missing in the store"
    NOT_AT_PLATFORM = "missing at the platform"
    NO_FRAME = "never pushed to a member's socket"
    NO_STATUS = "never became READ"
    INBOUND_NOT_STORED = "a person's message missing in the store"
    FILE_DIFFERS = "a file that came out different"


@dataclass(frozen=True, slots=True)
class Told:
    """A 202: from now on we owe this message. ``recipient`` is a party: a user id or ``whatsapp:+55…``."""

    message_id: str
    conversation_id: str
    sender: str
    recipient: str
    content: str
    at_ms: float
    sha256: str | None = None  # of its file


@dataclass(frozen=True, slots=True)
class Said:
    """A message that a person sent to us on their platform."""

    external_id: str
    sender: str  # a party
    content: str
    at_ms: float
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A message in a conversation's history, as one member sees it. ``sha256`` is of the bytes that came down."""

    message_id: str
    conversation_id: str
    sender: str
    content: str
    status: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A message that a platform took from us. ``correlation`` is our id, where the platform keeps it for us."""

    recipient: str  # a party
    content: str
    at_ms: float
    sha256: str | None = None
    correlation: str | None = None

    @property
    def look(self) -> Look:
        return self.recipient, self.content, self.sha256


Look = tuple[str, str, str | None]  # party, text, file: all there is to go by without a correlation


@dataclass(frozen=True, slots=True)
class Witness:
    """What one user has seen: every history, and every frame of their socket."""

    user_id: str
    history: Sequence[Stored]
    frames: Sequence[str]  # message ids, one for each frame of a new message
    read_at_ms: Mapping[str, float]  # when a status frame told that a message was read


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is compared.

    ``members`` are the user ids in each conversation. ``earlier`` are message ids from before, none of this run's
    business; ``unfinished_earlier`` what platforms may still get of them.
    """

    told: Sequence[Told]
    said: Sequence[Said]
    received: Sequence[Received]
    witnesses: Sequence[Witness]
    members: Mapping[str, Sequence[str]]
    earlier: frozenset[str] = frozenset()
    unfinished_earlier: Sequence[Look] = ()


@dataclass(slots=True)
class Reckoning:
    """What came of it. ``losses`` has the messages (ours by id, a person's by the platform's) by what is wrong."""

    losses: dict[Loss, set[str]] = field(default_factory=lambda: {loss: set() for loss in Loss})
    late: set[str] = field(default_factory=set)
    twice_at_platform: int = 0
    twice_in_store: int = 0  # one message of a person, stored more than once
    twice_pushed: int = 0

    @property
    def lost(self) -> int:
        """Messages, however many things are wrong with one."""
        return len(set().union(*self.losses.values()))

    @property
    def twice(self) -> int:
        return self.twice_at_platform + self.twice_in_store + self.twice_pushed

    @property
    def flawless(self) -> bool:
        return not (self.lost or self.late or self.twice)


def reckon(evidence: Evidence, *, limit_s: float) -> Reckoning:
    """Compare. ``limit_s``: a message that was not READ that long after it was sent is late."""
    reckoning = Reckoning()
    limit_ms = limit_s * 1000
    for told in evidence.told:
        _check_told(told, evidence, reckoning, limit_ms)
    _check_platforms(evidence, reckoning)
    _check_said(evidence, reckoning, limit_ms)
    for witness in evidence.witnesses:
        reckoning.twice_pushed += sum(count - 1 for count in Counter(witness.frames).values())
    return reckoning


def _check_told(told: Told, evidence: Evidence, reckoning: Reckoning, limit_ms: float) -> None:
    members = evidence.members.get(told.conversation_id, ())
    wanted = (told.conversation_id, told.sender, told.content)
    for witness in _those(evidence, {told.sender, *members}):
        copy = _copy(witness, told.message_id)
        if copy is None or (copy.conversation_id, copy.sender, copy.content) != wanted:
            reckoning.losses[Loss.NOT_STORED].add(told.message_id)
        elif copy.sha256 != told.sha256:
            reckoning.losses[Loss.FILE_DIFFERS].add(told.message_id)
        elif copy.status != READ:
            reckoning.losses[Loss.NO_STATUS].add(told.message_id)
        if told.message_id not in witness.frames:
            reckoning.losses[Loss.NO_FRAME].add(told.message_id)
    finished_ms = _read_at(told.message_id, told.sender, evidence)
    _check_finished(told.message_id, finished_ms, told.at_ms, reckoning, limit_ms)


def _check_said(evidence: Evidence, reckoning: Reckoning, limit_ms: float) -> None:
    """People's messages have no id that clients see: those that look alike are paired in their order."""
    waiting = _stored_of_people(evidence)
    for said in sorted(evidence.said, key=lambda each: each.at_ms):
        alike = waiting.get((said.sender, said.content, said.sha256))
        if not alike:
            reckoning.losses[Loss.INBOUND_NOT_STORED].add(said.external_id)
            continue
        _check_arrived(said, alike.pop(0), evidence, reckoning, limit_ms)
    reckoning.twice_in_store += sum(len(each) for each in waiting.values())


def _check_arrived(said: Said, stored: Stored, evidence: Evidence, reckoning: Reckoning, limit_ms: float) -> None:
    members = set(evidence.members.get(stored.conversation_id, ()))
    if stored.status != READ:
        reckoning.losses[Loss.NO_STATUS].add(said.external_id)
    for witness in _those(evidence, members):
        if _copy(witness, stored.message_id) is None:
            reckoning.losses[Loss.INBOUND_NOT_STORED].add(said.external_id)
        if stored.message_id not in witness.frames:
            reckoning.losses[Loss.NO_FRAME].add(said.external_id)
        finished_ms = witness.read_at_ms.get(stored.message_id)
        _check_finished(said.external_id, finished_ms, said.at_ms, reckoning, limit_ms)


def _check_finished(
    name: str, finished_ms: float | None, begun_ms: float, reckoning: Reckoning, limit_ms: float
) -> None:
    if finished_ms is None:
        reckoning.losses[Loss.NO_STATUS].add(name)
    if finished_ms is None or finished_ms - begun_ms > limit_ms:
        reckoning.late.add(name)


def _check_platforms(evidence: Evidence, reckoning: Reckoning) -> None:
    """By our id where the platform keeps it. Elsewhere by looks: as many as were sent, and no more."""
    by_id = Counter((each.correlation, each.look) for each in evidence.received if each.correlation)
    by_look = Counter(each.look for each in evidence.received if not each.correlation)
    ours = {told.message_id for told in evidence.told}
    reckoning.twice_at_platform += sum(
        count - 1
        for correlation, count in Counter(each.correlation for each in evidence.received).items()
        if correlation in ours
    )
    anonymous: set[Look] = set()
    for told in evidence.told:
        look = (told.recipient, told.content, told.sha256)
        if ":" not in told.recipient or by_id[told.message_id, look]:
            continue
        anonymous.add(look)
        if by_look[look]:
            by_look[look] -= 1
        else:
            reckoning.losses[Loss.NOT_AT_PLATFORM].add(told.message_id)
    by_look.subtract(evidence.unfinished_earlier)
    reckoning.twice_at_platform += sum(max(0, by_look[look]) for look in anonymous)


def _stored_of_people(evidence: Evidence) -> dict[Look, list[Stored]]:
    """This run's messages of external people, each once, in the order of their ids (which is that of arrival)."""
    found = {
        stored.message_id: stored
        for witness in evidence.witnesses
        for stored in witness.history
        if ":" in stored.sender and stored.message_id not in evidence.earlier
    }
    waiting: dict[Look, list[Stored]] = {}
    for _, stored in sorted(found.items()):
        waiting.setdefault((stored.sender, stored.content, stored.sha256), []).append(stored)
    return waiting


def _those(evidence: Evidence, user_ids: set[str]) -> Iterable[Witness]:
    return [witness for witness in evidence.witnesses if witness.user_id in user_ids]


def _copy(witness: Witness, message_id: str) -> Stored | None:
    return next((stored for stored in witness.history if stored.message_id == message_id), None)


def _read_at(message_id: str, user_id: str, evidence: Evidence) -> float | None:
    return next((each.read_at_ms.get(message_id) for each in _those(evidence, {user_id})), None)
