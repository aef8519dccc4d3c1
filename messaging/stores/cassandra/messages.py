"""Messages and where they stand: histories by bucket, statuses by rank, transitions as they were told first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final
from uuid import UUID

from messaging.domain import (
    Message,
    Party,
    RecipientStatus,
    Status,
    StatusChange,
    as_sent,
    history_of,
    once_stored,
    standing_after,
)
from messaging.ports import Saved, Transition
from messaging.stores.cassandra import conversations, keys
from messaging.stores.cassandra.part import Part, chunks, given, grouped
from messaging.stores.cassandra.session import BATCH_ROWS, Call, Lookup, Row, SamePartition, Statement

BUCKETS_AT_ONCE: Final = 16  # of a sparse history, at most
BUCKETS_LISTED: Final = 64

FIELDS: Final = tuple(each.name for each in fields(Message))
COLUMNS: Final = ("bucket", *FIELDS)
INSERT: Final = (
    f"INSERT INTO ks.messages ({', '.join(COLUMNS)}) VALUES ({', '.join('?' for _ in COLUMNS)}) USING TIMESTAMP ?"
)
_SOME: Final = "FROM ks.messages WHERE conversation_id IN ? AND bucket = ? AND message_id IN ?"
SELECT_STORED: Final = f"SELECT message_id {_SOME}"
SELECT_SOME: Final = f"SELECT * {_SOME}"
_HERE: Final = "FROM ks.messages WHERE conversation_id = ? AND bucket = ?"
SELECT_NEWEST: Final = f"SELECT * {_HERE} LIMIT ?"
SELECT_BEFORE: Final = f"SELECT * {_HERE} AND message_id < ? LIMIT ?"
SELECT_AFTER: Final = f"SELECT * {_HERE} AND message_id > ? ORDER BY message_id ASC LIMIT ?"
INSERT_PLACE: Final = "INSERT INTO ks.message_places (message_id, conversation_id) VALUES (?, ?) USING TIMESTAMP ?"
SELECT_PLACE: Final = "SELECT message_id, conversation_id FROM ks.message_places WHERE message_id IN ?"
INSERT_BUCKET: Final = "INSERT INTO ks.conversation_buckets (conversation_id, bucket) VALUES (?, ?) USING TIMESTAMP ?"
_BUCKETS: Final = "SELECT bucket FROM ks.conversation_buckets WHERE conversation_id = ?"
SELECT_BUCKETS: Final = f"{_BUCKETS} AND bucket < ? LIMIT ?"
SELECT_BUCKETS_UP: Final = f"{_BUCKETS} AND bucket >= ? ORDER BY bucket ASC LIMIT ?"
INSERT_STATUS: Final = (
    "INSERT INTO ks.message_statuses (conversation_id, day, message_id, recipient, standing) VALUES (?, ?, ?, ?, ?)"
    " USING TIMESTAMP ?"
)
_STATUSES: Final = (
    "SELECT message_id, recipient, standing FROM ks.message_statuses WHERE conversation_id IN ? AND day = ?"
)
SELECT_STATUSES: Final = f"{_STATUSES} AND message_id IN ?"
SELECT_STANDING: Final = f"{_STATUSES} AND (message_id, recipient) IN ?"
INSERT_TRANSITION: Final = (
    "INSERT INTO ks.status_transitions (conversation_id, day, message_id, recipient, rank, note, status, attempt,"
    " at_ms, reason, external_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"
)
SELECT_TOLD: Final = (
    "SELECT message_id, recipient, rank, note FROM ks.status_transitions"
    " WHERE conversation_id IN ? AND day = ? AND (message_id, recipient, rank, note) IN ?"
)
SELECT_TRANSITIONS: Final = (
    "SELECT * FROM ks.status_transitions WHERE conversation_id = ? AND day = ? AND message_id = ?"
)

NO_BUCKET: Final = 2**31 - 1
StatusKey = tuple[UUID, str]
NewsKey = tuple[UUID, str, int, str]


class Messages(Part):
    """See `MessageStore`."""

    def save_messages(self, messages: Sequence[Message]) -> Saved:
        """Not all or nothing: what a failure leaves undone, the same call does when it is repeated."""
        if not messages:
            return Saved(frozenset(), {})
        first = {message.message_id: message for message in reversed(messages)}
        with self._db.call() as call:
            return _save(call, list(first.values()))

    def message(self, message_id: UUID) -> Message | None:
        return self.messages([message_id]).get(message_id)

    def messages(self, message_ids: Collection[UUID]) -> dict[UUID, Message]:
        if not message_ids:
            return {}
        with self._db.call() as call:
            found = call.found(SELECT_PLACE, [(message_id,) for message_id in set(message_ids)])
            places = [(row["conversation_id"], row["message_id"]) for row in found]
            by_bucket = grouped(places, lambda place: (place[0], keys.bucket(place[1])))
            wanted = [
                (*where, [message_id for _, message_id in some])
                for where, here in by_bucket.items()
                for some in chunks(here)
            ]
            return {row["message_id"]: _message(row) for row in call.found(SELECT_SOME, wanted)}

    def history(
        self, conversation_id: UUID, *, before: UUID | None = None, after: UUID | None = None, limit: int
    ) -> list[Message]:
        with self._db.call() as call:
            page: list[Message] = []
            for window in _windows(call, conversation_id, before=before, after=after):
                for rows in _pages(call, conversation_id, window, before=before, after=after, limit=limit - len(page)):
                    page += map(_message, rows[: limit - len(page)])
                if len(page) >= limit:
                    break
            return page

    # statuses
    def apply_statuses(self, changes: Sequence[StatusChange]) -> list[RecipientStatus]:
        if not changes:
            return []
        with self._db.call() as call:
            by_day = grouped(changes, _day_of_change)
            # A status and its transition are one mutation: what is above all that stands was not told when that was
            # read, what stands was, and only of the rest one has to look. Of two who tell the same at once both write
            # both.
            standing = _standing(call, by_day)
            told = {_news_key(change) for change in changes if _is_what_stands(change, standing)}
            open_ = [change for change in changes if _news_key(change) not in told and _is_below(change, standing)]
            told |= _told(call, grouped(open_, _day_of_change))
            answers, raised = _raised(changes, standing)
            news: dict[NewsKey, StatusChange] = {}
            for change in changes:
                if _news_key(change) not in told:
                    news.setdefault(_news_key(change), change)
            call.write(_mutations(raised, news.values()))
            return answers

    def statuses(self, messages: Sequence[Message]) -> dict[UUID, list[RecipientStatus]]:
        if not messages:
            return {}
        by_day = grouped(messages, lambda each: (each.conversation_id, keys.day(each.message_id)))
        with self._db.call() as call:
            [told] = call.at_once([_of_some(SELECT_STATUSES, by_day)])
            found = {(row["message_id"], row["recipient"]): _recipient_status(row) for rows in told for row in rows}
        return {message.message_id: once_stored(message, found) for message in messages}

    def transitions(self, message: Message) -> list[Transition]:
        with self._db.call() as call:
            rows = call.rows(
                SELECT_TRANSITIONS, message.conversation_id, keys.day(message.message_id), message.message_id
            )
        return [Transition(each.recipient, each) for each in history_of(message, map(_change, rows))]


# --- writing -----------------------------------------------------------------------------------------------------


def _save(call: Call, messages: Sequence[Message]) -> Saved:
    """Three waits: what is there, beside what is the same each time; the messages, beside who is told; their lists,
    beside where the new ones stand.

    The messages come after all that says where they are: they are what a repeat looks for. Where they stand is read
    after them: who tells a status writes it first and looks for the message then, so that one of the two sees the
    other's write, and somebody shows it.
    """
    by_bucket = grouped(messages, _bucket_of)
    [stored] = call.at_once([_of_some(SELECT_STORED, by_bucket)], around(messages))
    known = frozenset(row["message_id"] for rows in stored for row in rows)
    # What is there already stays as it was saved first. Lanes see to it that nobody saves the same at once.
    new = [each for each in messages if each.message_id not in known]
    latest = _latest(messages)
    [members] = call.at_once([conversations.members_of(latest)], rows_of(new))
    [told] = call.at_once([_told_before(new)], conversations.on_lists(members, latest))
    found = {(row["message_id"], row["recipient"]): _recipient_status(row) for rows in told for row in rows}
    return Saved(known, {each.message_id: once_stored(each, found) for each in new})


def around(messages: Sequence[Message]) -> Iterator[SamePartition | Statement]:
    """All that says where messages are: the same each time, whether they are stored or not."""
    yield from map(_place, messages)
    buckets = grouped(grouped(messages, _bucket_of), lambda where: where[0])
    for conversation_id, ms in _latest(messages).items():
        yield SamePartition([conversations.activity(conversation_id, ms), *map(_bucket, buckets[conversation_id])])


def rows_of(messages: Sequence[Message]) -> Iterator[SamePartition]:
    """The messages themselves."""
    for here in grouped(messages, _bucket_of).values():
        yield SamePartition(list(map(_insert, here)))


def _bucket_of(message: Message) -> tuple[UUID, int]:
    return message.conversation_id, keys.bucket(message.message_id)


def _latest(messages: Sequence[Message]) -> dict[UUID, int]:
    """When something was last said in each of their conversations."""
    by_conversation = grouped(messages, lambda each: each.conversation_id)
    return {each: max(message.accepted_at_ms for message in here) for each, here in by_conversation.items()}


def _told_before(new: Sequence[Message]) -> Lookup:
    """A user may have read a message that was not stored yet; whoever is on a platform gets it when it was."""
    seen = [each for each in new if any(Party.parse(recipient).is_user for recipient in each.recipients)]
    return _of_some(SELECT_STATUSES, grouped(seen, lambda each: (each.conversation_id, keys.day(each.message_id))))


def _of_some(cql: str, by_partition: Mapping[tuple[UUID, int], Sequence[Message]]) -> Lookup:
    """Of each partition its messages."""
    return Lookup(
        cql,
        [
            (*where, [message.message_id for message in some])
            for where, here in by_partition.items()
            for some in chunks(here)
        ],
    )


def _insert(message: Message) -> Statement:
    values = {name: getattr(message, name) for name in FIELDS}
    values["recipients"], values["audience"] = list(message.recipients), list(message.audience)
    written = (keys.bucket(message.message_id), *(given(values[name]) for name in FIELDS))
    return Statement(INSERT, (*written, keys.written_us(message.message_id)))


def _bucket(where: tuple[UUID, int]) -> Statement:
    return Statement(INSERT_BUCKET, (*where, where[1] * keys.HOUR_MS * 1000))


def _place(message: Message) -> Statement:
    written_us = keys.written_us(message.message_id)
    return Statement(INSERT_PLACE, (message.message_id, message.conversation_id, written_us))


def _mutations(raised: Iterable[StatusChange], news: Iterable[StatusChange]) -> Iterator[SamePartition]:
    """Each change's status and transition in one mutation: when it is repeated, the one stands for the other."""
    written = [*((change, _status(change)) for change in raised), *((change, _transition(change)) for change in news)]
    by_change = grouped(written, lambda pair: _news_key(pair[0]))
    for here in grouped(by_change.values(), lambda pairs: _day_of_change(pairs[0][0])).values():
        for some in chunks(here, BATCH_ROWS // 2):
            yield SamePartition([write for pairs in some for _, write in pairs])


def _status(change: StatusChange) -> Statement:
    standing = (change.rank, -change.at_ms, change.status.value, change.reason)
    written_us = keys.status_us(change.message_id, change.rank)
    where = (*_day_of_change(change), change.message_id, change.recipient)
    return Statement(INSERT_STATUS, (*where, standing, written_us))


def _transition(change: StatusChange) -> Statement:
    return Statement(
        INSERT_TRANSITION,
        (
            *_day_of_change(change),
            *_news_key(change),
            change.status.value,
            change.attempt,
            change.at_ms,
            given(change.reason),
            given(change.external_id),
            keys.first_us(change.message_id, change.at_ms),
        ),
    )


# --- reading -----------------------------------------------------------------------------------------------------


def _windows(call: Call, conversation_id: UUID, *, before: UUID | None, after: UUID | None) -> Iterator[list[int]]:
    """The buckets that a page may reach into, nearest first: one alone, then ever more at once."""
    size = 1
    for listed in _bucket_pages(call, conversation_id, before=before, after=after):
        rest = listed
        while rest:
            yield rest[:size]
            rest, size = rest[size:], min(size * 2, BUCKETS_AT_ONCE)


def _bucket_pages(call: Call, conversation_id: UUID, *, before: UUID | None, after: UUID | None) -> Iterator[list[int]]:
    where = keys.bucket(after) if after else keys.bucket(before) + 1 if before else NO_BUCKET
    select = SELECT_BUCKETS_UP if after else SELECT_BUCKETS
    while listed := [row["bucket"] for row in call.rows(select, conversation_id, where, BUCKETS_LISTED)]:
        yield listed
        if len(listed) < BUCKETS_LISTED:
            return
        where = listed[-1] + 1 if after else listed[-1]


def _pages(
    call: Call,
    conversation_id: UUID,
    buckets: Iterable[int],
    *,
    before: UUID | None,
    after: UUID | None,
    limit: int,
) -> list[list[Row]]:
    if after:
        return call.each(SELECT_AFTER, [(conversation_id, bucket, after, limit) for bucket in buckets])
    if before:
        return call.each(SELECT_BEFORE, [(conversation_id, bucket, before, limit) for bucket in buckets])
    return call.each(SELECT_NEWEST, [(conversation_id, bucket, limit) for bucket in buckets])


def _message(row: Row) -> Message:
    values: dict[str, Any] = {name: row[name] for name in FIELDS}
    return Message(
        **{**values, "recipients": tuple(values["recipients"] or ()), "audience": tuple(values["audience"] or ())}
    )


def _day_of_change(change: StatusChange) -> tuple[UUID, int]:
    return change.conversation_id, keys.day(change.message_id)


def _news_key(change: StatusChange) -> NewsKey:
    return change.message_id, change.recipient, change.rank, change.note


def _is_what_stands(change: StatusChange, standing: dict[StatusKey, RecipientStatus]) -> bool:
    stands = standing.get((change.message_id, change.recipient))
    return stands is not None and stands.rank == change.rank and not change.note


def _is_below(change: StatusChange, standing: dict[StatusKey, RecipientStatus]) -> bool:
    """Not above what stands."""
    return _stands(change, standing).rank >= change.rank


def _stands(change: StatusChange, standing: dict[StatusKey, RecipientStatus]) -> RecipientStatus:
    return standing.get((change.message_id, change.recipient)) or as_sent(change)


def _standing(call: Call, by_day: dict[tuple[UUID, int], list[StatusChange]]) -> dict[StatusKey, RecipientStatus]:
    wanted = [
        (*where, some)
        for where, here in by_day.items()
        for some in chunks(list({(each.message_id, each.recipient) for each in here}))
    ]
    return {
        (row["message_id"], row["recipient"]): _recipient_status(row) for row in call.found(SELECT_STANDING, wanted)
    }


def _told(call: Call, by_day: dict[tuple[UUID, int], list[StatusChange]]) -> set[NewsKey]:
    wanted = [
        (*where, some) for where, here in by_day.items() for some in chunks(list({_news_key(each) for each in here}))
    ]
    return {(row["message_id"], row["recipient"], row["rank"], row["note"]) for row in call.found(SELECT_TOLD, wanted)}


def _raised(
    changes: Sequence[StatusChange], standing: dict[StatusKey, RecipientStatus]
) -> tuple[list[RecipientStatus], Collection[StatusChange]]:
    """What stands after each change, one after another, and the highest of each recipient that moved it.

    Whoever writes a higher one meanwhile is not overwritten: the write time of ours is lower.
    """
    raised: dict[StatusKey, StatusChange] = {}
    answers = []
    for change in changes:
        key = change.message_id, change.recipient
        if change.rank > _stands(change, standing).rank:
            raised[key] = change
            standing[key] = standing_after(change)
        answers.append(_stands(change, standing))
    return answers, raised.values()


def _recipient_status(row: Row) -> RecipientStatus:
    rank, minus_at_ms, status, reason = row["standing"]
    return RecipientStatus(row["recipient"], Status(status), rank, -minus_at_ms, reason)


def _change(row: Row) -> StatusChange:
    return StatusChange(
        message_id=row["message_id"],
        conversation_id=row["conversation_id"],
        recipient=row["recipient"],
        status=Status(row["status"]),
        at_ms=row["at_ms"],
        attempt=row["attempt"],
        reason=row["reason"],
        external_id=row["external_id"],
    )
