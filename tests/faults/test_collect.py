"""What is read out of the records of a real system."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from messaging import codec
from messaging.domain import InboundEvent, InboundReceipts
from tests.faults.collect import heard_id, receipts_in


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (
            {"message": {"from": "5511", "id": "wamid.1", "text": {"body": "hi"}}, "contact": {"wa_id": "5511"}},
            "wamid.1",
        ),
        ({"status": {"id": "wamid.1", "status": "delivered"}}, ""),
        ({"messaging": {"sender": {"id": "1784"}, "recipient": {"id": "9"}, "message": {"mid": "mid.1"}}}, "mid.1"),
        ({"messaging": {"sender": {"id": "1784"}, "recipient": {"id": "9"}, "read": {"mid": "mid.1"}}}, ""),
    ],
    ids=["WhatsApp", "a status of WhatsApp's", "Instagram", "a receipt of Instagram's"],
)
def test_what_a_webhook_brought_is_known_by_its_platform_s_id(payload: dict[str, Any], found: str) -> None:
    event = InboundEvent(
        workspace_id=uuid4(), channel="x", account_id="9", contact="1784", payload=payload, received_at_ms=1
    )
    assert heard_id(codec.encode(event)) == found


def test_receipts_have_none() -> None:
    told = InboundReceipts(
        workspace_id=uuid4(),
        channel="x",
        account_id="9",
        payloads=({"status": {"id": "wamid.1", "status": "delivered"}},),
        received_at_ms=1,
    )
    assert heard_id(codec.encode(told)) == ""


def test_the_messages_that_receipts_name_are_read_out_of_them() -> None:
    one, two = str(uuid4()), str(uuid4())
    told = InboundReceipts(
        workspace_id=uuid4(),
        channel="whatsapp",
        account_id="9",
        payloads=(
            {"status": {"id": "wamid.1", "biz_opaque_callback_data": one}},
            {"status": {"id": "wamid.2", "biz_opaque_callback_data": f"{two}/3"}},
            {"status": {"id": "wamid.3"}},
            {"status": "no object"},
            {"messaging": {"read": {"mid": "mid.1"}}},
        ),
        received_at_ms=1,
    )
    assert receipts_in(codec.encode(told)) == {one, two}
    assert receipts_in(b"no record") == frozenset()


def test_what_nobody_can_read_has_none() -> None:
    assert heard_id(b"\xff\x00 no record at all") == ""
