"""What platforms call our messages, and the people there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any, Final
from uuid import UUID, uuid4

from messaging.domain import Contact, ExternalRef
from messaging.errors import StoreUnavailable
from messaging.stores.cassandra import keys
from messaging.stores.cassandra.part import Part, chunks, grouped
from messaging.stores.cassandra.session import Call, Conditional, Row, Statement

HANDLE_OWNERS: Final = 100  # of one handle, ever: more are not looked at

_REF: Final = tuple(each.name for each in fields(ExternalRef))
_ID: Final = "FROM ks.external_ids WHERE channel = ? AND account_id = ? AND external_id = ?"
SELECT_REFS: Final = "SELECT * FROM ks.external_ids WHERE external_id IN ? AND channel = ? AND account_id = ?"
SELECT_REF_REVISION: Final = f"SELECT revision {_ID}"
INSERT_REF: Final = (
    f"INSERT INTO ks.external_ids ({', '.join(_REF)}, revision) VALUES ({', '.join('?' for _ in _REF)}, ?)"
    " IF NOT EXISTS"
)
NOTE_REF: Final = (
    f"INSERT INTO ks.external_ids ({', '.join(_REF)}) VALUES ({', '.join('?' for _ in _REF)}) USING TIMESTAMP ?"
)
_ADDRESS: Final = "workspace_id = ? AND channel = ? AND account_id = ? AND shard = ?"
SELECT_CONTACTS: Final = (
    "SELECT workspace_id, channel, account_id, address, heard, name, writetime(name) AS name_us, handle,"
    f" writetime(handle) AS handle_us FROM ks.contacts WHERE {_ADDRESS} AND address IN ?"
)
UPDATE_HEARD: Final = f"UPDATE ks.contacts USING TIMESTAMP ? SET heard = ? WHERE {_ADDRESS} AND address = ?"
UPDATE_NAME: Final = f"UPDATE ks.contacts USING TIMESTAMP ? SET name = ? WHERE {_ADDRESS} AND address = ?"
UPDATE_HANDLE: Final = f"UPDATE ks.contacts USING TIMESTAMP ? SET handle = ? WHERE {_ADDRESS} AND address = ?"
INSERT_HANDLE: Final = (
    "INSERT INTO ks.contact_handles (workspace_id, channel, account_id, handle, address) VALUES (?, ?, ?, ?, ?)"
    " USING TIMESTAMP ?"
)
SELECT_HANDLE: Final = (
    "SELECT address FROM ks.contact_handles WHERE workspace_id = ? AND channel = ? AND account_id = ? AND handle = ?"
    " LIMIT ?"
)

Place = tuple[UUID, str, str]  # workspace, channel, our account


class ExternalIds(Part):
    """See `MessageStore`."""

    def claim_externals(self, refs: Sequence[ExternalRef]) -> list[ExternalRef]:
        if not refs:
            return []
        first: dict[tuple[str, str, str], ExternalRef] = {}
        for ref in refs:
            first.setdefault(_ref_key(ref), ref)
        with self._db.call() as call:
            claimed = call.conditionally([_claim(ref) for ref in first.values()])
            lost = [key for key, is_ours in zip(first, claimed, strict=True) if not is_ours]
            standing = map(_ref, call.found(SELECT_REFS, [(each, *place) for *place, each in lost]))
            found = {_ref_key(ref): ref for ref in standing}
            if len(found) < len(lost):
                raise StoreUnavailable("an external id was neither claimed nor found; try again")
            first |= found
        return [first[_ref_key(ref)] for ref in refs]

    def note_externals(self, refs: Sequence[ExternalRef]) -> None:
        if not refs:
            return
        with self._db.call() as call:
            call.write([Statement(NOTE_REF, (*_values(ref), keys.written_us(ref.message_id))) for ref in refs])

    def externals(self, channel: str, account_id: str, external_ids: Collection[str]) -> dict[str, ExternalRef]:
        if not external_ids:
            return {}
        with self._db.call() as call:
            found = call.found(SELECT_REFS, [(each, channel, account_id) for each in set(external_ids)])
        return {row["external_id"]: _ref(row) for row in found}


class Contacts(Part):
    """See `MessageStore`."""

    def bind_contacts(self, contacts: Sequence[Contact]) -> None:
        if not contacts:
            return
        with self._db.call() as call:
            # Where somebody was heard last needs no look: its write time decides.
            named = [each for each in contacts if each.name or each.handle]
            known = {
                (*place, row["address"]): row
                for place, here in grouped(named, _place).items()
                for row in _rows(call, place, {each.address for each in here})
            }
            writes: list[Statement] = []
            for contact in contacts:
                row = known.setdefault((*_place(contact), contact.address), {})
                writes += _said(contact, row)
            # First who may have a handle: a repeat asks the contact only. Else in any order, the write times decide.
            call.write(each for each in writes if each.cql == INSERT_HANDLE)
            call.write(each for each in writes if each.cql != INSERT_HANDLE)

    def contact(self, *, workspace_id: UUID, channel: str, account_id: str, address: str) -> Contact | None:
        found = self.contacts(workspace_id=workspace_id, channel=channel, account_id=account_id, addresses=[address])
        return found.get(address)

    def contacts(
        self, *, workspace_id: UUID, channel: str, account_id: str, addresses: Collection[str]
    ) -> dict[str, Contact]:
        if not addresses:
            return {}
        with self._db.call() as call:
            return _contacts(call, (workspace_id, channel, account_id), addresses)

    def contact_by_handle(self, *, workspace_id: UUID, channel: str, account_id: str, handle: str) -> Contact | None:
        if not handle:
            return None  # what those without one have in common names nobody
        place = workspace_id, channel, account_id
        with self._db.call() as call:
            owners = [row["address"] for row in call.rows(SELECT_HANDLE, *place, handle, HANDLE_OWNERS)]
            found = _contacts(call, place, owners) if owners else {}
        owned = [contact for contact in found.values() if contact.handle == handle]
        return max(owned, key=lambda each: each.last_message_id, default=None)


def _ref_key(ref: ExternalRef) -> tuple[str, str, str]:
    return ref.channel, ref.account_id, ref.external_id


def _claim(ref: ExternalRef) -> Conditional:
    revision = uuid4()
    write = Statement(INSERT_REF, (*_values(ref), revision))
    return Conditional(write, Statement(SELECT_REF_REVISION, _ref_key(ref)), revision)


def _values(ref: ExternalRef) -> tuple[Any, ...]:
    return tuple(getattr(ref, name) for name in _REF)


def _ref(row: Row) -> ExternalRef:
    return ExternalRef(**{**{name: row[name] for name in _REF}, "attempt": row["attempt"] or 0})


def _place(contact: Contact) -> Place:
    return contact.workspace_id, contact.channel, contact.account_id


def _rows(call: Call, place: Place, addresses: Iterable[str]) -> Iterable[Row]:
    """At most CONTACT_SHARDS partitions are asked, however many the addresses."""
    by_shard = grouped(sorted(addresses), _shard)
    wanted = [(*place, shard, some) for shard, here in by_shard.items() for some in chunks(here)]
    return (row for rows in call.each(SELECT_CONTACTS, wanted) for row in rows)


def _contacts(call: Call, place: Place, addresses: Iterable[str]) -> dict[str, Contact]:
    return {row["address"]: _contact(row) for row in _rows(call, place, set(addresses)) if row["heard"]}


def _shard(address: str) -> int:
    return keys.shard(address, keys.CONTACT_SHARDS)


def _contact(row: Row) -> Contact:
    last_message_id, conversation_id = row["heard"]
    return Contact(
        workspace_id=row["workspace_id"],
        channel=row["channel"],
        account_id=row["account_id"],
        address=row["address"],
        conversation_id=conversation_id,
        last_message_id=last_message_id,
        name=row["name"] or "",
        handle=row["handle"] or "",
    )


def _said(contact: Contact, row: Row) -> list[Statement]:
    """What this tells that is new; ``row`` is what was known, and afterwards what is."""
    where = (*_place(contact), _shard(contact.address), contact.address)
    heard_us = keys.written_us(contact.last_message_id)
    writes = []
    if not row.get("heard") or contact.last_message_id > row["heard"][0]:
        row["heard"] = (contact.last_message_id, contact.conversation_id)
        writes.append(Statement(UPDATE_HEARD, (heard_us, row["heard"], *where)))
    for name, update in (("name", UPDATE_NAME), ("handle", UPDATE_HANDLE)):
        value = getattr(contact, name)
        if value and value != row.get(name):
            # Told later it counts, whatever message told it: past the write time of what it replaces.
            row[f"{name}_us"] = max(heard_us, (row.get(f"{name}_us") or 0) + 1)
            row[name] = value
            writes.append(Statement(update, (row[f"{name}_us"], value, *where)))
            if name == "handle":
                writes.append(Statement(INSERT_HANDLE, (*_place(contact), value, contact.address, heard_us)))
    return writes
