"""Does a run's history keep what docs/guarantees.md promises? Pure, and linear in what happened.

Each rule looks at one promise, so that a violation names what broke. `tests/faults/test_checker.py` holds a wrong
history against each of them.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final

from messaging.domain import Status, rank
from tests.faults.history import Client, DeadLetter, Frame, Heard, History, Id, Logged, Request, Row, Source, Told

MAYBE_DUPLICATE: Final = "maybe_duplicate"
FAILED: Final = rank(Status.FAILED)
DELIVERED: Final = rank(Status.DELIVERED)


class Rule(StrEnum):
    """One promise; the value is what a person reads."""

    LOST = "acknowledged, and neither stored nor a dead letter"
    HEARD_LOST = "heard from a person with a 200, and neither stored nor a dead letter"
    SAME_ID = "two requests were given one id"
    STORED_TWICE = "stored more than once"
    STORED_WRONG = "stored otherwise than it was acknowledged"
    PHANTOM = "stored, though nobody's request can have made it"
    PUSH_ORDER = "pushed in another order than the log's"
    SEND_ORDER = "sent in another order than the log's"
    HEARD_ORDER = "on the log in another order than the person said it"
    HISTORY_ORDER = "listed in another order than that of ids"
    STATUS_BACK = "a status went back"
    STATUS_LOST = "a status on the log does not stand in the store"
    RECEIPT_LOST = "a platform's receipt was answered with a 200, and is no status on the log"
    NOT_SENT = "never reached its platform, and nothing says that it failed"
    SENT_TWICE = "reached its platform more than once, unmarked"
    SENT_WRONG = "reached somebody whom it was not for"
    COMMIT_AHEAD = "committed beyond what was done"
    COMMIT_BACK = "a committed offset went back"
    FRAME_ORDER = "frames of a socket out of sequence, or one event twice"
    SHOWN_WRONG = "pushed to somebody who may not see it"
    CLIENT_DIFFERS = "a client does not show what is stored"
    STATUS_DIFFERS = "a client shows another status than the store"
    UNBOUNDED = "over its bound"


@dataclass(frozen=True, slots=True)
class Violation:
    rule: Rule
    where: str

    def __str__(self) -> str:
        return f"{self.rule.value}: {self.where}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a run's report counts."""

    violations: Sequence[Violation]
    acknowledged: int
    heard: int  # messages of persons that our webhooks answered with 200
    lost: int
    dead: int
    ambiguous: int  # sends marked as perhaps a second one
    duplicated: int  # messages that a platform has more than once, marked or not
    undecided: int  # requests that nobody can tell the end of
    appeared: int  # of these: stored after all

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} acknowledged, {self.heard} heard, {self.lost} lost, {self.dead} dead letters, "
            f"{self.duplicated} duplicated to a platform, {self.ambiguous} ambiguous, "
            f"{self.appeared} of {self.undecided} undecided ones appeared, "
            f"{len(self.violations)} violations"
        )


class _Facts:
    """What several rules ask of a history."""

    def __init__(self, history: History) -> None:
        self.history = history

    @cached_property
    def acknowledged(self) -> dict[Id, Request]:
        return {each.message_id: each for each in self.history.requests if each.message_id is not None}

    @cached_property
    def heard(self) -> dict[tuple[str, str], Heard]:
        """By who said it, and what."""
        return {(each.sender, each.text): each for each in self.history.heard}

    @cached_property
    def dead_heard(self) -> frozenset[str]:
        """The platform's ids of what is a dead letter, be it before or after it got an id of ours."""
        on_log = {each.message_id: each.external_id for each in self.history.log if each.external_id}
        named = {each.external_id for each in self.history.dead if each.source[0] == "inbound" and each.external_id}
        return frozenset(named | {on_log[each] for each in self.dead_ids if each in on_log})

    @cached_property
    def rows(self) -> list[Row]:
        return [row for rows in self.history.stored.values() for row in rows]

    @cached_property
    def dead_places(self) -> dict[tuple[Source, int], DeadLetter]:
        return {(each.source, each.offset): each for each in self.history.dead}

    @cached_property
    def dead_ids(self) -> frozenset[Id]:
        """Messages that may rightly be missing from the store. A send that is dead was stored before."""
        on_log = {(each.source, each.offset): each.message_id for each in self.history.log}
        named = {each.message_id for each in self.history.dead if each.source[0] == "messages" and each.message_id}
        return frozenset(named | {on_log[place] for place in self.dead_places if place in on_log})

    @cached_property
    def dead_sends(self) -> frozenset[Id]:
        outbound = (each for each in self.history.dead if each.source[0].endswith("-outbound"))
        return frozenset(each.message_id for each in outbound if each.message_id)

    @cached_property
    def places(self) -> dict[Id, int]:
        """Where each message lies among those of its conversation: its first record that is no dead letter. A repeat of
        the same id changes nothing; a dead one that was replayed counts from there."""
        return {each.message_id: number for number, each in enumerate(self.firsts)}

    @cached_property
    def firsts(self) -> list[Logged]:
        """Those records, in order."""
        seen: dict[Id, Logged] = {}
        for each in sorted(self.history.log, key=lambda each: (each.source, each.offset)):
            if (each.source, each.offset) not in self.dead_places:
                seen.setdefault(each.message_id, each)
        return list(seen.values())

    @cached_property
    def tries(self) -> Counter[tuple[Id, str]]:
        """How many more times than once a message may have reached a recipient: marked second tries, new attempts."""
        marks = {
            (each.message_id, each.recipient, each.rank, each.note)
            for each in self.history.told
            if each.note == MAYBE_DUPLICATE or _is_new_attempt(each)
        }
        return Counter((message_id, recipient) for message_id, recipient, *_ in marks)

    @cached_property
    def over(self) -> frozenset[tuple[Id, str]]:
        """Sends that failed, and that nobody had tried again."""
        failed = {(each.message_id, each.recipient) for each in self.history.told if each.rank == FAILED}
        return frozenset(
            failed - {(each.message_id, each.recipient) for each in self.history.told if _is_new_attempt(each)}
        )

    @cached_property
    def highest_told(self) -> dict[tuple[Id, str], int]:
        highest: dict[tuple[Id, str], int] = {}
        for each in self.history.told:
            key = each.message_id, each.recipient
            highest[key] = max(each.rank, highest.get(key, 0))
        return highest

    @cached_property
    def homes(self) -> dict[Id, str]:
        """Each stored message's conversation."""
        return {row.message_id: name for name, rows in self.history.stored.items() for row in rows}

    @cached_property
    def parties(self) -> dict[str, frozenset[str]]:
        """Who says something in a conversation, or is said something."""
        return {
            name: frozenset(party for row in rows for party in (row.sender, *row.ranks))
            for name, rows in self.history.stored.items()
        }

    @cached_property
    def members(self) -> dict[str, frozenset[Id]]:
        return {name: frozenset(row.message_id for row in rows) for name, rows in self.history.stored.items()}


def _is_new_attempt(told: Told) -> bool:
    return 2 <= told.rank < DELIVERED and not told.rank % 2


Found = Iterator[str]


def _lost(facts: _Facts) -> Found:
    stored = {row.message_id for row in facts.rows}
    for message_id in facts.acknowledged:
        if message_id not in stored and message_id not in facts.dead_ids:
            yield message_id


def _heard_lost(facts: _Facts) -> Found:
    stored = {(row.sender, row.content) for row in facts.rows}
    for said, each in facts.heard.items():
        if each.taken and said not in stored and each.external_id not in facts.dead_heard:
            yield f"{each.external_id} of {each.sender}"


def _same_id(facts: _Facts) -> Found:
    """Of which one would be lost unseen."""
    ids = Counter(each.message_id for each in facts.history.requests if each.message_id is not None)
    for message_id, count in ids.items():
        if count > 1:
            yield f"{message_id}, {count} times"


def _stored_twice(facts: _Facts) -> Found:
    for message_id, count in Counter(row.message_id for row in facts.rows).items():
        if count > 1:
            yield f"{message_id}, {count} times"
    ids: dict[tuple[str, str], set[Id]] = defaultdict(set)  # what a person said once has one id of ours
    for row in facts.rows:
        if (row.sender, row.content) in facts.heard:
            ids[row.sender, row.content].add(row.message_id)
    for (sender, _), theirs in ids.items():
        if len(theirs) > 1:
            yield f"{', '.join(sorted(theirs))} of {sender}"


def _stored_wrong(facts: _Facts) -> Found:
    for row in facts.rows:
        request = facts.acknowledged.get(row.message_id)
        if request and (row.conversation, row.sender, row.content) != _meant(request):
            yield row.message_id


def _phantoms(facts: _Facts) -> Found:
    """A request that ended undecided may have made one row, no more. What a person said makes a row also when our
    answer to the platform was lost."""
    may_appear = Counter(_meant(each) for each in facts.history.requests if each.undecided and each.message_id is None)
    for message_id, row in {row.message_id: row for row in facts.rows}.items():
        look = row.conversation, row.sender, row.content
        if message_id in facts.acknowledged or (row.sender, row.content) in facts.heard:
            continue
        if may_appear[look] <= 0:
            yield message_id
        may_appear[look] -= 1


def _meant(request: Request) -> tuple[str, str, str]:
    return request.conversation, request.sender, request.content


def _push_order(facts: _Facts) -> Found:
    for client in facts.history.clients:
        frames: dict[str, list[Id]] = defaultdict(list)
        for frame in client.frames:
            if frame.rank is None:
                frames[frame.conversation].append(frame.message_id)
        for conversation, ids in frames.items():
            for one, other in _swapped(ids, facts):
                yield f"{conversation} of {client.user}: {other} after {one}"


def _send_order(facts: _Facts) -> Found:
    """By first arrival. What an operator replayed, dead or with its worker, comes later, as it should."""
    sends: dict[tuple[str, str], list[Id]] = defaultdict(list)
    for each in facts.history.sent:
        if each.message_id not in facts.dead_sends or (each.message_id, each.recipient) in facts.over:
            sends[each.conversation, each.recipient].append(each.message_id)
    for (conversation, recipient), ids in sends.items():
        for one, other in _swapped(ids, facts):
            yield f"{conversation} to {recipient}: {other} after {one}"


def _swapped(ids: Sequence[Id], facts: _Facts) -> Iterator[tuple[Id, Id]]:
    """Neighbours whose order is not the log's; what is not on the log (trimmed) can't be told."""
    known = [each for each in dict.fromkeys(ids) if each in facts.places]
    for one, other in itertools.pairwise(known):
        if facts.places[one] > facts.places[other]:
            yield one, other


def _heard_order(facts: _Facts) -> Found:
    """Within a conversation: a person's messages may move to another one, of which the order says nothing."""
    said = {each.external_id: number for number, each in enumerate(facts.history.heard)}
    senders = {each.external_id: each.sender for each in facts.history.heard}
    last: dict[tuple[str, str], Logged] = {}
    for each in facts.firsts:
        if each.external_id not in said:
            continue
        key = senders[each.external_id], each.conversation
        if key in last and said[last[key].external_id] > said[each.external_id]:
            yield f"{each.message_id} after {last[key].message_id} of {key[0]}"
        last[key] = each


def _history_order(facts: _Facts) -> Found:
    for conversation, rows in facts.history.stored.items():
        for one, other in itertools.pairwise(rows):
            if one.message_id > other.message_id:
                yield f"{conversation}: {other.message_id} after {one.message_id}"


def _status_back(facts: _Facts) -> Found:
    """As each socket saw it. A new attempt outranks the failure before it, so this holds for replays as well."""
    for client in facts.history.clients:
        standing: dict[tuple[Id, str], int] = {}
        for frame in client.frames:
            key = frame.message_id, frame.recipient
            if frame.rank is None:
                continue
            if frame.rank < standing.get(key, 0):
                yield f"{frame.message_id} for {frame.recipient}, seen by {client.user}"
            standing[key] = frame.rank


def _status_lost(facts: _Facts) -> Found:
    for row in {row.message_id: row for row in facts.rows}.values():
        for recipient, standing in row.ranks.items():
            if standing != facts.highest_told.get((row.message_id, recipient), 0):
                yield f"{row.message_id} for {recipient}"


def _receipt_lost(facts: _Facts) -> Found:
    """What nobody has in the store is told by other rules."""
    buried = {message_id for each in facts.history.dead for message_id in each.receipts}
    ranks = {row.message_id: row.ranks for row in facts.rows if row.message_id not in buried}
    for each in facts.history.sent:
        ours = each.recipient in ranks.get(each.message_id, {})
        if ours and each.receipt > facts.highest_told.get((each.message_id, each.recipient), 0):
            yield f"{each.message_id} to {each.recipient}"


def _not_sent(facts: _Facts) -> Found:
    arrived = {(each.message_id, each.recipient) for each in facts.history.sent}
    for row in {row.message_id: row for row in facts.rows}.values():
        for recipient, standing in row.ranks.items():
            owed = recipient in facts.history.external and (row.message_id, recipient) not in arrived
            failed = standing < DELIVERED and standing % 2  # FAILED of some attempt
            if owed and not failed and row.message_id not in facts.dead_sends:
                yield f"{row.message_id} to {recipient}"


def _sent_twice(facts: _Facts) -> Found:
    for (message_id, recipient), count in _arrivals(facts).items():
        if count > 1 + facts.tries[message_id, recipient]:
            yield f"{message_id} to {recipient}, {count} times"


def _sent_wrong(facts: _Facts) -> Found:
    """A message that is lost or no dead letter's is told by other rules; what nobody wrote is not."""
    ranks = {row.message_id: row.ranks for row in facts.rows}
    on_log = {each.message_id for each in facts.history.log}
    for each in facts.history.sent:
        known = each.message_id in on_log if each.message_id not in ranks else each.recipient in ranks[each.message_id]
        if not known:
            yield f"{each.message_id or 'an unknown message'} to {each.recipient}"


def _arrivals(facts: _Facts) -> Counter[tuple[Id, str]]:
    return Counter((each.message_id, each.recipient) for each in facts.history.sent)


def _commit_ahead(facts: _Facts) -> Found:
    for each in facts.history.commits:
        if each.committed > each.watermark:
            yield f"{each.source[0]}/{each.source[1]}: {each.committed} committed, {each.watermark} not done"


def _commit_back(facts: _Facts) -> Found:
    last: dict[Source, int] = {}
    for each in facts.history.commits:
        if each.committed < last.get(each.source, 0):
            yield f"{each.source[0]}/{each.source[1]}: {each.committed} after {last[each.source]}"
        last[each.source] = each.committed


def _frame_order(facts: _Facts) -> Found:
    """An epoch names each event once; a new one, which begins with a resync, may name it again."""
    for client in facts.history.clients:
        yield from _gaps(client)
        events = Counter((frame.epoch if client.resyncs else "", *_event(frame)) for frame in client.frames)
        for (_, message_id, *_), count in events.items():
            if count > 1:
                yield f"{client.user} got {message_id} {count} times"


def _gaps(client: Client) -> Found:
    """Each frame has the next number of the same epoch, but for the first one after a resync."""
    for place, (one, other) in enumerate(itertools.pairwise(client.frames), 1):
        is_same, is_next = other.epoch == one.epoch, other.seq == one.seq + 1
        missed = place not in client.resyncs and not (is_same and is_next)
        if missed or (is_same and other.seq <= one.seq):
            yield f"{client.user}: {other.seq} after {one.seq}"


def _event(frame: Frame) -> tuple[Id, str, int | None, str]:
    return frame.message_id, frame.recipient, frame.rank, frame.note


def _shown_wrong(facts: _Facts) -> Found:
    """Of a conversation in which nobody says anything to its user, or which nobody knows. What belongs to one that the
    user had before is not judged: nothing tells what is stored there."""
    for client in facts.history.clients:
        own = client.older | {name for name, parties in facts.parties.items() if client.user in parties}
        for frame in client.frames:
            home = facts.homes.get(frame.message_id, frame.conversation)
            if home and home not in own:
                yield f"{client.user}, {home}: {frame.message_id}"


def _client_differs(facts: _Facts) -> Found:
    for client in facts.history.clients:
        pushed: dict[str, set[Id]] = defaultdict(set)
        for frame in client.frames:
            if frame.rank is None:
                pushed[frame.conversation].add(frame.message_id)
        for conversation, fetched in client.fetched.items():
            if differing := (fetched | pushed[conversation]) ^ facts.members.get(conversation, frozenset()):
                yield f"{client.user}, {conversation}: {', '.join(sorted(differing)[:3])}"


def _status_differs(facts: _Facts) -> Found:
    """The sender's devices, and those of a recipient who is a user, follow a status."""
    for client in facts.history.clients:
        shown = dict(client.ranks)
        has = {message_id for fetched in client.fetched.values() for message_id in fetched}
        for frame in client.frames:
            if frame.rank is None:
                has.add(frame.message_id)
            else:
                key = frame.message_id, frame.recipient
                shown[key] = max(frame.rank, shown.get(key, 0))
        for row in facts.rows:
            for recipient, standing in row.ranks.items():
                follows = row.message_id in has and client.user in (row.sender, recipient)
                if follows and max(0, shown.get((row.message_id, recipient), 0)) != standing:
                    yield f"{client.user}, {row.message_id} for {recipient}"


def _unbounded(facts: _Facts) -> Found:
    for each in facts.history.levels:
        if each.highest > each.bound:
            yield f"{each.name}: {each.highest:g}, at most {each.bound:g}"


RULES: Final[dict[Rule, Callable[[_Facts], Found]]] = {
    Rule.LOST: _lost,
    Rule.HEARD_LOST: _heard_lost,
    Rule.SAME_ID: _same_id,
    Rule.STORED_TWICE: _stored_twice,
    Rule.STORED_WRONG: _stored_wrong,
    Rule.PHANTOM: _phantoms,
    Rule.PUSH_ORDER: _push_order,
    Rule.SEND_ORDER: _send_order,
    Rule.HEARD_ORDER: _heard_order,
    Rule.HISTORY_ORDER: _history_order,
    Rule.STATUS_BACK: _status_back,
    Rule.STATUS_LOST: _status_lost,
    Rule.RECEIPT_LOST: _receipt_lost,
    Rule.NOT_SENT: _not_sent,
    Rule.SENT_TWICE: _sent_twice,
    Rule.SENT_WRONG: _sent_wrong,
    Rule.COMMIT_AHEAD: _commit_ahead,
    Rule.COMMIT_BACK: _commit_back,
    Rule.FRAME_ORDER: _frame_order,
    Rule.SHOWN_WRONG: _shown_wrong,
    Rule.CLIENT_DIFFERS: _client_differs,
    Rule.STATUS_DIFFERS: _status_differs,
    Rule.UNBOUNDED: _unbounded,
}


def check(history: History) -> list[Violation]:
    """Everything that is wrong with it; empty for a run that kept its promises."""
    return _violations(_Facts(history))


def report(history: History) -> Report:
    facts = _Facts(history)
    violations = _violations(facts)
    undecided = [each for each in history.requests if each.undecided and each.message_id is None]
    looks = {(row.conversation, row.sender, row.content) for row in facts.rows}
    marked = {(each.message_id, each.recipient) for each in history.told if each.note == MAYBE_DUPLICATE}
    return Report(
        violations=violations,
        acknowledged=len(facts.acknowledged),
        heard=sum(each.taken for each in history.heard),
        lost=sum(each.rule in (Rule.LOST, Rule.HEARD_LOST) for each in violations),
        dead=len(history.dead),
        ambiguous=len(marked),
        duplicated=sum(count > 1 for count in _arrivals(facts).values()),
        undecided=len(undecided),
        appeared=sum(_meant(each) in looks for each in undecided),
    )


def _violations(facts: _Facts) -> list[Violation]:
    return [Violation(rule, where) for rule, broken in RULES.items() for where in _first(broken(facts))]


def _first(found: Iterable[str], most: int = 1_000) -> Iterator[str]:
    """A run in which everything is wrong must not fill the memory with saying so."""
    for _, where in zip(range(most), found, strict=False):
        yield where
