"""What is held back: records by conversation, scopes with a due time, and an index of scopes by due time.

The scope's row is the authority, changed by light-weight transactions with a new revision each. The index is a hint:
an entry is written before the scope names it and deleted after the scope has let go of it, under an id that is never
used again, so that no delete meets a later write, and an entry that no scope names counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

from core.ids import uuid7
from messaging.errors import StoreUnavailable
from messaging.ports import ParkedRecord, ParkScope, TopicPartition
from messaging.stores.cassandra import keys
from messaging.stores.cassandra.part import Part, chunks, grouped
from messaging.stores.cassandra.session import Call, Conditional, Row, SamePartition, Statement

ROUNDS: Final = 50
STALE_AFTER_US: Final = 3600 * 1_000_000  # an entry that its writer cannot be about to name any more

_SCOPE: Final = "topic = ? AND conversation_id = ?"
SELECT_SCOPE: Final = f"SELECT * FROM ks.parked_scopes WHERE {_SCOPE}"
SELECT_SCOPE_REVISION: Final = f"SELECT revision FROM ks.parked_scopes WHERE {_SCOPE}"
SELECT_SCOPES: Final = "SELECT * FROM ks.parked_scopes WHERE conversation_id IN ? AND topic = ?"
SELECT_SCOPES_THERE: Final = (
    "SELECT conversation_id, topic FROM ks.parked_scopes WHERE conversation_id IN ? AND topic = ?"
)
INSERT_SCOPE: Final = (
    "INSERT INTO ks.parked_scopes (due_at_ms, opened, entry, entered_us, revision, topic, conversation_id)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS"
)
UPDATE_SCOPE: Final = (
    "UPDATE ks.parked_scopes SET due_at_ms = ?, opened = ?, entry = ?, entered_us = ?, revision = ?"
    f" WHERE {_SCOPE} IF revision = ?"
)
DELETE_SCOPE: Final = f"DELETE FROM ks.parked_scopes WHERE {_SCOPE} IF revision = ?"
INSERT_DUE: Final = (
    "INSERT INTO ks.parked_due (topic, shard, due_at_ms, opened, entry, conversation_id, entered_us)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"
)
DELETE_DUE: Final = (
    "DELETE FROM ks.parked_due USING TIMESTAMP ?"
    " WHERE topic = ? AND shard = ? AND due_at_ms = ? AND opened = ? AND entry = ?"
)
# All shards in one question: it is asked every second, and nearly always answered by nothing.
SELECT_DUE: Final = (
    "SELECT * FROM ks.parked_due WHERE topic = ? AND shard IN ? AND due_at_ms <= ? PER PARTITION LIMIT ?"
)
INSERT_RECORD: Final = (
    "INSERT INTO ks.parked_records (topic, conversation_id, source_topic, partition, offset, value, parked_at_ms,"
    " attempts, request_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_RECORDS: Final = f"FROM ks.parked_records WHERE {_SCOPE}"
_HERE: Final = "AND source_topic = ? AND partition = ? AND offset IN ?"
SELECT_RECORDS: Final = (
    f"SELECT source_topic, partition, offset, value, parked_at_ms, attempts, request_id {_RECORDS} LIMIT ?"
)
SELECT_WRITTEN: Final = f"SELECT source_topic, partition, offset, writetime(value) AS written_us {_RECORDS} {_HERE}"
DELETE_RECORD: Final = (
    f"DELETE FROM ks.parked_records USING TIMESTAMP ? WHERE {_SCOPE} AND source_topic = ? AND partition = ?"
    " AND offset = ?"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A scope's place in the index."""

    due_at_ms: int
    opened: UUID  # when the scope was opened: of those due at once the oldest comes first
    entry: UUID
    entered_us: int

    @classmethod
    def of(cls, row: Row) -> Entry:
        return cls(row["due_at_ms"], row["opened"], row["entry"], row["entered_us"])

    @property
    def place(self) -> tuple[int, int]:
        return self.due_at_ms, self.opened.int


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope as it is stored."""

    scope: ParkScope
    entry: Entry
    revision: UUID


class Parking(Part):
    """See `MessageStore`."""

    def park(self, scope: ParkScope, records: Sequence[ParkedRecord], *, due_at_ms: int) -> None:
        if not records:
            return
        with self._db.call() as call:
            _add(call, scope, records)
            for _ in range(ROUNDS):
                # Records first, then a new revision: who is emptying the scope fails to delete it and looks again.
                found = _scope(call, scope)
                if found:
                    if _update(call, found, found.entry):
                        return
                elif self._open(call, scope, due_at_ms):
                    return
        raise StoreUnavailable("a held back conversation kept changing; try again")

    def parked_scopes(self, scopes: Sequence[ParkScope]) -> Set[ParkScope]:
        if not scopes:
            return set()
        with self._db.call() as call:
            found = call.found(SELECT_SCOPES_THERE, [(scope.conversation_id, scope.topic) for scope in set(scopes)])
        return {ParkScope(row["topic"], row["conversation_id"]) for row in found}

    def due_scopes(self, *, topic: str, now_ms: int, limit: int) -> list[ParkScope]:
        with self._db.call() as call:
            return [found.scope for found in self._due(call, topic, now_ms, limit)]

    def take_due_scopes(self, *, topic: str, now_ms: int, again_at_ms: int, limit: int) -> list[ParkScope]:
        taken: list[ParkScope] = []
        with self._db.call() as call:
            for _ in range(ROUNDS):
                due = self._due(call, topic, now_ms, limit - len(taken))
                moved = self._move(call, due, again_at_ms)
                taken += [found.scope for found, ours in zip(due, moved, strict=True) if ours]
                # Where somebody was faster, others are next; what stays due after it was taken is not taken twice.
                if all(moved) or len(taken) >= limit or again_at_ms <= now_ms:
                    return taken
        return taken

    def due_at_ms(self, scope: ParkScope) -> int | None:
        with self._db.call() as call:
            found = _scope(call, scope)
        return found.entry.due_at_ms if found else None

    def parked(self, scope: ParkScope, *, limit: int) -> list[ParkedRecord]:
        with self._db.call() as call:
            return [_record(row) for row in call.rows(SELECT_RECORDS, *_key(scope), limit)]

    def unpark(self, scope: ParkScope, offsets: Sequence[tuple[TopicPartition, int]], *, next_due_ms: int) -> bool:
        with self._db.call() as call:
            for _ in range(ROUNDS):
                found = _scope(call, scope)
                if found is None:
                    return True
                _remove(call, scope, offsets)
                if call.rows(SELECT_RECORDS, *_key(scope), 1):
                    if self._move(call, [found], next_due_ms) == [True]:
                        return False
                elif _delete(call, found):
                    return True
        raise StoreUnavailable("a held back conversation kept changing; try again")

    # --- inside ------------------------------------------------------------------------------------------------------

    def _open(self, call: Call, scope: ParkScope, due_at_ms: int) -> bool:
        entry = self._entry(due_at_ms, uuid7())
        revision = uuid4()
        call.write([_entered(scope, entry)])
        write = Statement(INSERT_SCOPE, (*_values(entry), revision, *_key(scope)))
        [is_ours] = call.conditionally([Conditional(write, _look(scope), revision)])
        if is_ours is False:  # refused; of one that may yet take effect the entry stays
            call.write([_left(scope, entry)])
        return bool(is_ours)

    def _move(self, call: Call, scopes: Sequence[Scope], due_at_ms: int) -> list[bool]:
        """Give each another due time; which of them were as they were found."""
        entries = [self._entry(due_at_ms, found.entry.opened) for found in scopes]
        call.write(_entered(found.scope, entry) for found, entry in zip(scopes, entries, strict=True))
        moved = call.conditionally([_updated(found, entry) for found, entry in zip(scopes, entries, strict=True)])
        call.write(
            _left(found.scope, found.entry if ours else entry)
            for found, entry, ours in zip(scopes, entries, moved, strict=True)
            if ours is not None
        )
        return [bool(ours) for ours in moved]

    def _entry(self, due_at_ms: int, opened: UUID) -> Entry:
        return Entry(due_at_ms, opened, uuid4(), self._clock.now_ms() * 1000)

    def _due(self, call: Call, topic: str, now_ms: int, limit: int) -> list[Scope]:
        """The longest due first: the heads of all shards, merged, without what no scope names."""
        depth = limit + 16
        while True:
            found = call.rows(SELECT_DUE, topic, list(range(keys.DUE_SHARDS)), now_ms, depth)
            shards = grouped(found, lambda row: row["shard"]).values()
            rows = sorted(found, key=lambda row: Entry.of(row).place)
            # Past the end of a shard that was not read to its end nothing is known to be next.
            ends = [Entry.of(here[-1]).place for here in shards if len(here) == depth]
            known = [row for row in rows if not ends or Entry.of(row).place <= min(ends)]
            due = list(self._named(call, topic, known, limit))
            if len(due) >= limit or not ends:
                return due[:limit]
            depth *= 4

    def _named(self, call: Call, topic: str, rows: Sequence[Row], limit: int) -> Iterator[Scope]:
        count = 0
        for some in chunks(rows):
            named = {row["conversation_id"] for row in some}
            scopes = {
                row["conversation_id"]: row for row in call.found(SELECT_SCOPES, [(each, topic) for each in named])
            }
            for row in some:
                scope = scopes.get(row["conversation_id"])
                if scope and scope["entry"] == row["entry"]:
                    count += 1
                    yield _stored(scope)
                elif row["entered_us"] < self._clock.now_ms() * 1000 - STALE_AFTER_US:
                    call.write([_left(ParkScope(topic, row["conversation_id"]), Entry.of(row))])
            if count >= limit:
                return


def _key(scope: ParkScope) -> tuple[str, UUID]:
    return scope.topic, scope.conversation_id


def _look(scope: ParkScope) -> Statement:
    return Statement(SELECT_SCOPE_REVISION, _key(scope))


def _scope(call: Call, scope: ParkScope) -> Scope | None:
    row = call.row(SELECT_SCOPE, *_key(scope))
    return _stored(row) if row else None


def _stored(row: Row) -> Scope:
    return Scope(ParkScope(row["topic"], row["conversation_id"]), Entry.of(row), row["revision"])


def _values(entry: Entry) -> tuple[int, UUID, UUID, int]:
    return entry.due_at_ms, entry.opened, entry.entry, entry.entered_us


def _updated(found: Scope, entry: Entry) -> Conditional:
    revision = uuid4()
    write = Statement(UPDATE_SCOPE, (*_values(entry), revision, *_key(found.scope), found.revision))
    return Conditional(write, _look(found.scope), revision)


def _update(call: Call, found: Scope, entry: Entry) -> bool:
    return call.conditionally([_updated(found, entry)]) == [True]


def _delete(call: Call, found: Scope) -> bool:
    write = Statement(DELETE_SCOPE, (*_key(found.scope), found.revision))
    if call.conditionally([Conditional(write, _look(found.scope), None)]) != [True]:
        return False
    call.write([_left(found.scope, found.entry)])
    return True


def _shard(scope: ParkScope) -> int:
    return keys.shard(str(scope.conversation_id), keys.DUE_SHARDS)


def _entered(scope: ParkScope, entry: Entry) -> Statement:
    where = (scope.topic, _shard(scope), entry.due_at_ms, entry.opened, entry.entry)
    return Statement(INSERT_DUE, (*where, scope.conversation_id, entry.entered_us, entry.entered_us))


def _left(scope: ParkScope, entry: Entry) -> Statement:
    """Deleted with its own write time, which beats the write, whatever the clocks of the two say."""
    where = (scope.topic, _shard(scope), entry.due_at_ms, entry.opened, entry.entry)
    return Statement(DELETE_DUE, (entry.entered_us, *where))


def _add(call: Call, scope: ParkScope, records: Sequence[ParkedRecord]) -> None:
    """Those that are not there yet: a record stays as it was parked first."""
    there = _written(call, scope, [(each.source, each.offset) for each in records])
    new = {(each.source, each.offset): each for each in reversed(records)}
    call.write(
        [
            SamePartition(
                [
                    Statement(INSERT_RECORD, (*_key(scope), *_place(source, offset), *_what(each)))
                    for (source, offset), each in new.items()
                    if (source, offset) not in there
                ]
            )
        ]
    )


def _remove(call: Call, scope: ParkScope, offsets: Sequence[tuple[TopicPartition, int]]) -> None:
    """Each with the time at which it was written, so that the same record parked again later is not deleted with it."""
    there = _written(call, scope, offsets)
    call.write(
        [
            SamePartition(
                [
                    Statement(DELETE_RECORD, (written_us, *_key(scope), *_place(source, offset)))
                    for (source, offset), written_us in there.items()
                ]
            )
        ]
    )


def _written(
    call: Call, scope: ParkScope, offsets: Sequence[tuple[TopicPartition, int]]
) -> dict[tuple[TopicPartition, int], int]:
    wanted = [
        (*_key(scope), source.topic, source.partition, [offset for _, offset in some])
        for source, here in grouped(set(offsets), lambda pair: pair[0]).items()
        for some in chunks(here)
    ]
    return {
        (TopicPartition(row["source_topic"], row["partition"]), row["offset"]): row["written_us"]
        for rows in call.each(SELECT_WRITTEN, wanted)
        for row in rows
    }


def _place(source: TopicPartition, offset: int) -> tuple[str, int, int]:
    return source.topic, source.partition, offset


def _what(record: ParkedRecord) -> tuple[bytes, int, int, str | None]:
    return record.value, record.parked_at_ms, record.attempts, record.request_id


def _record(row: Row) -> ParkedRecord:
    source = TopicPartition(row["source_topic"], row["partition"])
    return ParkedRecord(source, row["offset"], row["value"], row["parked_at_ms"], row["attempts"], row["request_id"])
