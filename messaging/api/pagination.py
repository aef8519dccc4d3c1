"""Opaque cursors: clients pass on what they were given, and nothing in them grants anything."""

from __future__ import annotations

import base64
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from core.errors import InvalidRequest
from messaging.ports import ListCursor
from messaging.services.replay import Place

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200


class HistoryCursor(msgspec.Struct, array_like=True):
    """Where a page of history starts: before or after a message id."""

    direction: str
    message_id: UUID


class _ListingCursor(msgspec.Struct, array_like=True):
    last_activity_ms: int
    conversation_id: UUID


class _PlaceCursor(msgspec.Struct, array_like=True):
    topic: str
    partition: int
    offset: int


Cursor = TypeVar("Cursor", HistoryCursor, _ListingCursor, _PlaceCursor)


def write_history(direction: str, message_id: UUID | None) -> str | None:
    return _write(HistoryCursor(direction, message_id)) if message_id else None


def read_history(text: str) -> HistoryCursor:
    """Raises InvalidRequest at ``cursor``."""
    cursor = _read(HistoryCursor, text)
    if cursor.direction not in ("before", "after"):
        raise _invalid()
    return cursor


def write_listing(cursor: ListCursor | None) -> str | None:
    return _write(_ListingCursor(cursor.last_activity_ms, cursor.conversation_id)) if cursor else None


def read_listing(text: str) -> ListCursor:
    """Raises InvalidRequest at ``cursor``."""
    cursor = _read(_ListingCursor, text)
    if not 0 <= cursor.last_activity_ms < 1 << 53:
        raise _invalid()
    return ListCursor(cursor.last_activity_ms, cursor.conversation_id)


def write_place(place: Place | None) -> str | None:
    return _write(_PlaceCursor(place.topic, place.partition, place.offset)) if place else None


def read_place(text: str) -> Place:
    """Raises InvalidRequest at ``cursor``."""
    cursor = _read(_PlaceCursor, text)
    if not (0 <= cursor.offset < 1 << 53 and 0 <= cursor.partition < 1 << 31):
        raise _invalid()
    return Place(cursor.topic, cursor.partition, cursor.offset)


def _write(value: msgspec.Struct) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


def _read(kind: type[Cursor], text: str) -> Cursor:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=kind)
    except (ValueError, msgspec.DecodeError):
        raise _invalid() from None


def _invalid() -> InvalidRequest:
    return InvalidRequest.at(
        "cursor", "not a cursor of ours: pass on next_cursor or prev_cursor as it was", code="invalid_cursor"
    )
