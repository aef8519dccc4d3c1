"""Conversations, their members, and each person's list of them, last active first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID, uuid4

from messaging.domain import Conversation, Party
from messaging.errors import StoreUnavailable
from messaging.ports import ConversationListing, ListCursor
from messaging.stores.cassandra import keys
from messaging.stores.cassandra.part import Part
from messaging.stores.cassandra.session import Call, Conditional, Lookup, Row, SamePartition, Statement

MAX_CHANGES: Final = 50  # of one conversation's members that may get in between: then something is wrong
SLICE_ROWS: Final = 500  # of a person's list, read at a time

SELECT: Final = "SELECT * FROM ks.conversations WHERE conversation_id = ?"
SELECT_SOME: Final = "SELECT * FROM ks.conversations WHERE conversation_id IN ?"
SELECT_CREATED: Final = "SELECT created_at_ms FROM ks.conversations WHERE conversation_id = ?"
SELECT_MEMBERS: Final = "SELECT conversation_id, workspace_id, members FROM ks.conversations WHERE conversation_id IN ?"
SELECT_REVISION: Final = "SELECT revision FROM ks.conversations WHERE conversation_id = ?"
INSERT: Final = (
    "INSERT INTO ks.conversations (conversation_id, workspace_id, public_id, title, members, created_by, created_at_ms,"
    " revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS"
)
UPDATE_MEMBERS: Final = (
    "UPDATE ks.conversations SET members = ?, revision = ? WHERE conversation_id = ? IF revision = ?"
)
SELECT_ACTIVITY: Final = "SELECT last_activity_ms FROM ks.conversation_activity WHERE conversation_id = ?"
SELECT_ACTIVITIES: Final = (
    "SELECT conversation_id, last_activity_ms FROM ks.conversation_activity WHERE conversation_id IN ?"
)
UPDATE_ACTIVITY: Final = (
    "UPDATE ks.conversation_activity USING TIMESTAMP ? SET last_activity_ms = ? WHERE conversation_id = ?"
)
UPDATE_LISTED: Final = (
    "UPDATE ks.party_activity USING TIMESTAMP ? SET last_activity_ms = ?"
    " WHERE party = ? AND workspace_id = ? AND day = ? AND conversation_id = ?"
)
SELECT_LISTED: Final = (
    "SELECT day, conversation_id, last_activity_ms FROM ks.party_activity"
    " WHERE party = ? AND workspace_id = ? AND (day, conversation_id) < (?, ?) LIMIT ?"
)
HIGHEST: Final = UUID(int=(1 << 128) - 1)  # sorts after every id of ours
NO_DAY: Final = 2**31 - 1


class Conversations(Part):
    """See `MessageStore`."""

    def create_conversation(self, conversation: Conversation) -> tuple[Conversation, bool]:
        revision = uuid4()
        values = (
            conversation.conversation_id,
            conversation.workspace_id,
            conversation.public_id,
            conversation.title,
            list(conversation.members),
            conversation.created_by,
            conversation.created_at_ms,
            revision,
        )
        with self._db.call() as call:
            stored = _stored(call, conversation.conversation_id)
            is_new = False
            if stored is None:
                look = Statement(SELECT_REVISION, (conversation.conversation_id,))
                is_new = call.conditionally([Conditional(Statement(INSERT, values), look, revision)]) == [True]
                stored = conversation if is_new else _stored(call, conversation.conversation_id)
            if stored is None:
                raise StoreUnavailable("a conversation was neither created nor found; try again")
            # Also when it was there: who created it may have died before it was on anybody's list.
            created_at_ms = stored.created_at_ms
            call.write([activity(stored.conversation_id, created_at_ms)])
            _list_for(call, stored, stored.members, at_least_ms=created_at_ms)
            return stored, is_new

    def conversation(self, conversation_id: UUID) -> Conversation | None:
        with self._db.call() as call:
            return _stored(call, conversation_id)

    def conversations(self, conversation_ids: Collection[UUID]) -> dict[UUID, Conversation]:
        with self._db.call() as call:
            found = call.found(SELECT_SOME, [(each,) for each in set(conversation_ids)])
            return {row["conversation_id"]: _conversation(row) for row in found}

    def members(self, conversation_ids: Collection[UUID]) -> dict[UUID, Collection[str]]:
        with self._db.call() as call:
            found = call.found(SELECT_MEMBERS, [(each,) for each in set(conversation_ids)])
            return {row["conversation_id"]: row["members"] or () for row in found}

    def last_activity_ms(self, conversation_id: UUID) -> int:
        """Who created it may have died before its activity was written."""
        with self._db.call() as call:
            stored = call.row(SELECT_CREATED, conversation_id)
            return max(stored["created_at_ms"] if stored else 0, _activity(call, conversation_id))

    def add_member(self, conversation_id: UUID, party: str, *, at_ms: int) -> None:  # noqa: ARG002 - the list is the order
        with self._db.call() as call:
            changed = _change_members(
                call, conversation_id, lambda members: members if party in members else (*members, party)
            )
            if changed is not None:
                _list_for(call, changed, [party], at_least_ms=changed.created_at_ms)

    def remove_member(self, conversation_id: UUID, party: str) -> None:
        """Entries of their list stay and count for nothing: who is listed is a member, see `_Walk`."""
        with self._db.call() as call:
            _change_members(call, conversation_id, lambda members: tuple(each for each in members if each != party))

    def conversations_of(
        self, party: str, *, workspace_id: UUID, after: ListCursor | None, limit: int
    ) -> list[ConversationListing]:
        with self._db.call() as call:
            return _Walk(call, party, workspace_id, after, limit).page()


def members_of(conversation_ids: Iterable[UUID]) -> Lookup:
    """Who is a member, for `on_lists`: to be read once the activities are written.

    The order matters: `create_conversation` and `add_member` make the member known first and read the activity then, so
    that one of the two sees the other's write.
    """
    return Lookup(SELECT_MEMBERS, [(each,) for each in conversation_ids])


def on_lists(found: Iterable[Sequence[Row]], latest: Mapping[UUID, int]) -> Iterator[SamePartition]:
    """Conversations move forward on the lists of their members."""
    lists: dict[tuple[str, UUID], list[Statement]] = {}
    for row in itertools.chain.from_iterable(found):
        conversation_id, workspace_id = row["conversation_id"], row["workspace_id"]
        for party in _with_lists(row["members"] or ()):
            moved = _listed(party, workspace_id, conversation_id, latest[conversation_id])
            lists.setdefault((party, workspace_id), []).append(moved)
    yield from map(SamePartition, lists.values())


def activity(conversation_id: UUID, ms: int) -> Statement:
    return Statement(UPDATE_ACTIVITY, (ms * 1000, ms, conversation_id))


def _stored(call: Call, conversation_id: UUID) -> Conversation | None:
    row = call.row(SELECT, conversation_id)
    return _conversation(row) if row else None


def _conversation(row: Row) -> Conversation:
    return Conversation(
        conversation_id=row["conversation_id"],
        workspace_id=row["workspace_id"],
        public_id=row["public_id"],
        title=row["title"],
        members=tuple(row["members"] or ()),
        created_by=row["created_by"],
        created_at_ms=row["created_at_ms"],
    )


def _change_members(
    call: Call, conversation_id: UUID, change: Callable[[tuple[str, ...]], tuple[str, ...]]
) -> Conversation | None:
    """The conversation with its members changed, by whoever gets in between as well; None when there is none."""
    for _ in range(MAX_CHANGES):
        row = call.row(SELECT, conversation_id)
        if row is None:
            return None
        before = _conversation(row)
        after = replace(before, members=change(before.members))
        if after == before:
            return before
        revision = uuid4()
        write = Statement(UPDATE_MEMBERS, (list(after.members), revision, conversation_id, row["revision"]))
        look = Statement(SELECT_REVISION, (conversation_id,))
        if call.conditionally([Conditional(write, look, revision)]) == [True]:
            return after
    raise StoreUnavailable("the members of a conversation kept changing; try again")


def _list_for(call: Call, conversation: Conversation, parties: Iterable[str], *, at_least_ms: int) -> None:
    last_ms = max(at_least_ms, _activity(call, conversation.conversation_id))
    where = conversation.workspace_id, conversation.conversation_id
    call.write(_listed(party, *where, last_ms) for party in _with_lists(parties))


def _activity(call: Call, conversation_id: UUID) -> int:
    row = call.row(SELECT_ACTIVITY, conversation_id)
    return int(row["last_activity_ms"]) if row else 0


def _with_lists(parties: Iterable[str]) -> Iterator[str]:
    """Users: people on platforms have no list of ours to look at."""
    return (party for party in parties if Party.parse(party).is_user)


def _listed(party: str, workspace_id: UUID, conversation_id: UUID, ms: int) -> Statement:
    return Statement(UPDATE_LISTED, (ms * 1000, ms, party, workspace_id, keys.day_of(ms), conversation_id))


@dataclass(slots=True)
class _Walk:
    """A page of a person's list: back through the days, each day sorted, until the page is full.

    A day's slice is read whole, which is bounded by the conversations that were active for this person on that day. An
    entry counts when its time is the conversation's last activity: else a later day has it.
    """

    call: Call
    party: str
    workspace_id: UUID
    after: ListCursor | None
    limit: int
    listed: list[ConversationListing] = field(default_factory=list)
    seen: set[UUID] = field(default_factory=set)

    def page(self) -> list[ConversationListing]:
        where = (keys.day_of(self.after.last_activity_ms) if self.after else NO_DAY, HIGHEST)
        day: list[Row] = []
        while len(self.listed) < self.limit:
            rows = self.call.rows(SELECT_LISTED, self.party, self.workspace_id, *where, SLICE_ROWS)
            for row in rows:
                if day and row["day"] != day[0]["day"]:
                    self._take(day)
                    day = []
                day.append(row)
            if len(rows) < SLICE_ROWS:
                self._take(day)
                break
            where = (rows[-1]["day"], rows[-1]["conversation_id"])
        return self.listed[: self.limit]

    def _take(self, day: Sequence[Row]) -> None:
        entries = sorted(
            (
                (row["last_activity_ms"], row["conversation_id"])
                for row in day
                if row["conversation_id"] not in self.seen
            ),
            reverse=True,
        )
        if self.after:
            cursor = (self.after.last_activity_ms, self.after.conversation_id)
            entries = [entry for entry in entries if entry < cursor]
        while entries and len(self.listed) < self.limit:
            some, entries = entries[: self.limit], entries[self.limit :]
            self._list(some)

    def _list(self, entries: Sequence[tuple[int, UUID]]) -> None:
        ids = [(conversation_id,) for _, conversation_id in entries]
        activities, found = self.call.at_once([Lookup(SELECT_ACTIVITIES, ids), Lookup(SELECT_SOME, ids)])
        last = {row["conversation_id"]: row["last_activity_ms"] for rows in activities for row in rows}
        conversations = {row["conversation_id"]: _conversation(row) for rows in found for row in rows}
        for ms, conversation_id in entries:
            self.seen.add(conversation_id)
            conversation = conversations.get(conversation_id)
            if conversation is None or self.party not in conversation.members:
                continue
            last_ms = last.get(conversation_id, ms)
            # Without a cursor all later days were walked: what has no later entry (yet) belongs here.
            if ms >= last_ms or self.after is None:
                self.listed.append(ConversationListing(conversation, ms))
