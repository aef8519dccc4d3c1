"""Versioned bytes <-> values. What is on the log for seven days must be readable by the next release.

A record is ``{"v":1,"kind":"message","body":{…}}``. A reader knows every version up to its own; a higher one, an
unknown kind or broken bytes raise UndecodableRecord and end in the dead letters.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, TypeVar

import msgspec

from messaging.domain import InboundEvent, InboundReceipts, Message, Outbound, StatusChange
from messaging.errors import UndecodableRecord

VERSION: Final = 1
_KINDS: Final[dict[type, str]] = {
    Message: "message",
    StatusChange: "status",
    InboundEvent: "inbound",
    InboundReceipts: "receipts",
    Outbound: "outbound",
}

AnyValue = Message | StatusChange | InboundEvent | InboundReceipts | Outbound
Value = TypeVar("Value", Message, StatusChange, InboundEvent, InboundReceipts, Outbound)


class _Envelope(msgspec.Struct):
    v: int
    kind: str
    body: msgspec.Raw


_encoder = msgspec.json.Encoder()
_envelope = msgspec.json.Decoder(_Envelope)
_bodies: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    name: msgspec.json.Decoder(each) for each, name in _KINDS.items()
}


def encode(value: AnyValue) -> bytes:
    """The bytes of a value, for the log."""
    return _encoder.encode({"v": VERSION, "kind": _KINDS[type(value)], "body": value})


def decode(kind: type[Value], data: bytes) -> Value:
    """The value in these bytes. Raises UndecodableRecord: bytes that are no JSON, another kind, an unknown version."""
    value: Value = _decoded(data, {_KINDS[kind]})
    return value


def decode_inbound(data: bytes) -> InboundEvent | InboundReceipts:
    """Whichever of the two that `inbound` holds. Raises UndecodableRecord."""
    value: InboundEvent | InboundReceipts = _decoded(data, {_KINDS[InboundEvent], _KINDS[InboundReceipts]})
    return value


def decode_any(data: bytes) -> AnyValue:
    """The value in these bytes, whatever it is. Raises UndecodableRecord."""
    value: AnyValue = _decoded(data, _bodies.keys())
    return value


def readable(kind: type[Value], data: bytes) -> Value | None:
    """The value in these bytes; None where there is none, for those who look for one among others."""
    try:
        return decode(kind, data)
    except UndecodableRecord:
        return None


def _decoded(data: bytes, kinds: Collection[str]) -> Any:
    try:
        envelope = _envelope.decode(data)
        if envelope.v > VERSION:
            raise UndecodableRecord(f"version {envelope.v} is newer than {VERSION}: upgrade this reader first")
        if envelope.kind not in kinds:
            raise UndecodableRecord(f"a {envelope.kind!r} where a {' or a '.join(map(repr, sorted(kinds)))} belongs")
        return _bodies[envelope.kind].decode(envelope.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableRecord(f"not a record of ours: {type(error).__name__}") from error
