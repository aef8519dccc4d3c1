"""Versioned bytes <-> values. What is on the log for seven days must be readable by the next release.

A record is ``{"v":1,"kind":"message","body":{…}}``. A reader knows every version up to its own; a higher one, an
unknown kind or broken bytes raise UndecodableRecord and end in the dead letters.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from messaging.domain import InboundEvent, Message, Outbound, StatusChange
from messaging.errors import UndecodableRecord

VERSION: Final = 1
_KINDS: Final[dict[type, str]] = {
    Message: "message",
    StatusChange: "status",
    InboundEvent: "inbound",
    Outbound: "outbound",
}

Value = TypeVar("Value", Message, StatusChange, InboundEvent, Outbound)


class _Envelope(msgspec.Struct):
    v: int
    kind: str
    body: msgspec.Raw


_encoder = msgspec.json.Encoder()
_envelope = msgspec.json.Decoder(_Envelope)
_bodies: Final[dict[type, msgspec.json.Decoder[Any]]] = {kind: msgspec.json.Decoder(kind) for kind in _KINDS}


def encode(value: Message | StatusChange | InboundEvent | Outbound) -> bytes:
    """The bytes of a value, for the log."""
    return _encoder.encode({"v": VERSION, "kind": _KINDS[type(value)], "body": value})


def decode(kind: type[Value], data: bytes) -> Value:
    """The value in these bytes. Raises UndecodableRecord: bytes that are no JSON, another kind, an unknown version."""
    try:
        envelope = _envelope.decode(data)
        _check(envelope, _KINDS[kind])
        body: Value = _bodies[kind].decode(envelope.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableRecord(f"not a record of ours: {type(error).__name__}") from error
    return body


def readable(kind: type[Value], data: bytes) -> Value | None:
    """The value in these bytes; None where there is none, for those who look for one among others."""
    try:
        return decode(kind, data)
    except UndecodableRecord:
        return None


def _check(envelope: _Envelope, kind: str) -> None:
    if envelope.v > VERSION:
        raise UndecodableRecord(f"version {envelope.v} is newer than {VERSION}: upgrade this reader first")
    if envelope.kind != kind:
        raise UndecodableRecord(f"a {envelope.kind!r} where a {kind!r} belongs")
