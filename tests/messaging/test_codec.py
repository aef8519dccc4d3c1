"""What is on the log for days is read by the releases to come: its bytes do not change by accident."""

from __future__ import annotations

from uuid import UUID

import pytest

from messaging import codec
from messaging.domain import InboundEvent, InboundReceipts, Message, Outbound, Status, StatusChange
from messaging.errors import UndecodableRecord

ONE, TWO = UUID(int=1), UUID(int=2)
MESSAGE = Message(
    message_id=ONE,
    workspace_id=TWO,
    conversation_id=TWO,
    conversation="c",
    sender_id="user_1",
    recipient_id=None,
    recipients=("whatsapp:+5511",),
    audience=("user_1",),
    content="olá",
    reply_to=TWO,
    accepted_at_ms=7,
)
MESSAGE_BYTES = (
    '{"message_id":"00000000-0000-0000-0000-000000000001","workspace_id":"00000000-0000-0000-0000-000000000002",'
    '"conversation_id":"00000000-0000-0000-0000-000000000002","conversation":"c","sender_id":"user_1",'
    '"recipient_id":null,"recipients":["whatsapp:+5511"],"audience":["user_1"],"content":"olá","file_id":null,'
    '"reply_to":"00000000-0000-0000-0000-000000000002","accepted_at_ms":7,"account_id":null,"external_id":null}'
)
RECORDS = [
    pytest.param(MESSAGE, "message", MESSAGE_BYTES, id="message"),
    pytest.param(
        Outbound(message=MESSAGE, recipient="whatsapp:+5511", channel="whatsapp", attempt=1, routed_at_ms=8),
        "outbound",
        f'{{"message":{MESSAGE_BYTES},"recipient":"whatsapp:+5511","channel":"whatsapp","attempt":1,"routed_at_ms":8}}',
        id="outbound",
    ),
    pytest.param(
        StatusChange(
            message_id=ONE, conversation_id=TWO, recipient="r", status=Status.FAILED, at_ms=9, reason="platform:1"
        ),
        "status",
        '{"message_id":"00000000-0000-0000-0000-000000000001","conversation_id":"00000000-0000-0000-0000-000000000002",'
        '"recipient":"r","status":"FAILED","at_ms":9,"attempt":0,"reason":"platform:1","external_id":null}',
        id="status",
    ),
    pytest.param(
        InboundEvent(
            workspace_id=TWO, channel="x", account_id="a", contact="c", payload={"message": {}}, received_at_ms=3
        ),
        "inbound",
        '{"workspace_id":"00000000-0000-0000-0000-000000000002","channel":"x","account_id":"a","contact":"c",'
        '"payload":{"message":{}},"received_at_ms":3}',
        id="inbound",
    ),
    pytest.param(
        InboundReceipts(
            workspace_id=TWO, channel="x", account_id="a", payloads=({"status": 1}, {"status": 2}), received_at_ms=3
        ),
        "receipts",
        '{"workspace_id":"00000000-0000-0000-0000-000000000002","channel":"x","account_id":"a",'
        '"payloads":[{"status":1},{"status":2}],"received_at_ms":3}',
        id="receipts",
    ),
]


@pytest.mark.parametrize(("value", "kind", "body"), RECORDS)
def test_a_record_is_these_bytes_and_comes_back(value: codec.AnyValue, kind: str, body: str) -> None:
    data = f'{{"v":1,"kind":"{kind}","body":{body}}}'.encode()
    assert codec.encode(value) == data
    assert codec.decode_any(data) == value
    assert codec.decode(type(value), data) == value  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff no JSON", "not a record of ours: DecodeError"),
        (b'{"v":2,"kind":"receipts","body":{}}', "version 2 is newer than 1"),
        (b'{"v":1,"kind":"status","body":{}}', "a 'status' where a 'inbound' or a 'receipts' belongs"),
        (b'{"v":1,"kind":"unheard of","body":{}}', "a 'unheard of' where"),
        (b'{"v":1,"kind":"receipts","body":{"payloads":5}}', "not a record of ours: ValidationError"),
        (b'{"v":1,"kind":"receipts","body":' + b"[" * 100_000, "not a record of ours"),
    ],
)
def test_what_it_cannot_read_it_refuses(data: bytes, told: str) -> None:
    with pytest.raises(UndecodableRecord, match=told):
        codec.decode_inbound(data)
