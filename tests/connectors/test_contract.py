"""What every connector promises, whichever it is: a new one is tested here as soon as it exists."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import registry
from connectors.base import Account, Connector, Event, InboundText, Media, Outgoing, StatusReport
from connectors.errors import BadSignature, BadWebhook, InvalidAddress
from tests.connectors.conftest import ScriptedPlatform, fixture

CONNECTORS = [pytest.param(registry.get(name), id=name) for name in registry.channels()]
EVENTS = get_args(Event)

# Values as platforms send them, and as they should never: with the names that connectors look for, so that arbitrary
# JSON gets past the first check.
NAMES = st.sampled_from(
    [
        "object",
        "entry",
        "changes",
        "value",
        "metadata",
        "phone_number_id",
        "contacts",
        "messages",
        "statuses",
        "errors",
        "messaging",
        "sender",
        "recipient",
        "message",
        "id",
        "from",
        "from_user_id",
        "timestamp",
        "type",
        "text",
        "body",
        "image",
        "location",
        "latitude",
        "longitude",
        "button",
        "interactive",
        "button_reply",
        "list_reply",
        "nfm_reply",
        "response_json",
        "phones",
        "phone",
        "formatted_name",
        "title",
        "status",
        "recipient_id",
        "code",
        "mid",
        "attachments",
        "payload",
        "url",
        "is_echo",
        "read",
        "postback",
        "quick_reply",
        "reply_to",
        "context",
        "profile",
        "name",
        "wa_id",
        "user_id",
        "reaction",
        "unsupported",
        "error",
    ]
)
WORDS = st.sampled_from(
    ["whatsapp_business_account", "instagram", "1", "text", "image", "location", "contacts", "failed", "read"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=6),
    max_leaves=25,
)
OBJECTS = st.dictionaries(NAMES | st.text(max_size=4), JSON, max_size=6)


def account(connector: Connector) -> Account:
    return Account(connector.name, "1", "https://graph.test", dict.fromkeys(connector.required_credentials, "x"))


def bring_to_life(connector: Connector, inner: Any) -> dict[str, Any]:
    """Arbitrary JSON at the places where items stand."""
    if connector.name == "whatsapp":
        value = {"metadata": {"phone_number_id": "1"}, "contacts": [], **inner}
        return {"object": "whatsapp_business_account", "entry": [{"changes": [{"value": value}]}]}
    return {"object": connector.name, "entry": [{"id": "1", "messaging": [inner]}]}


@pytest.mark.parametrize("connector", CONNECTORS)
def test_it_says_what_it_needs_and_where_the_platform_is(connector: Connector) -> None:
    assert connector.required_credentials
    assert connector.default_base_url.startswith("https://")
    assert not connector.default_base_url.endswith("/")
    assert connector.capabilities.max_text_chars or connector.capabilities.max_text_bytes


@pytest.mark.parametrize("connector", CONNECTORS)
@given(payload=OBJECTS)
@settings(max_examples=60, deadline=None)
def test_arbitrary_json_is_refused_or_understood_and_never_breaks_it(
    connector: Connector, payload: dict[str, Any]
) -> None:
    for candidate in (payload, bring_to_life(connector, payload)):
        try:
            items = connector.split(account(connector), candidate)
        except BadWebhook:
            continue
        for item in items:
            assert isinstance(item.contact, str)
            event = connector.parse(account(connector), item.payload)
            check_event(event)
            assert not (item.receipt and isinstance(event, InboundText))


@pytest.mark.parametrize("connector", CONNECTORS)
@given(payload=OBJECTS)
@settings(max_examples=60, deadline=None)
def test_an_item_that_it_never_made_is_understood_or_ignored(connector: Connector, payload: dict[str, Any]) -> None:
    check_event(connector.parse(account(connector), payload))


def check_event(event: Event) -> None:
    assert isinstance(event, EVENTS)
    if isinstance(event, InboundText):
        assert event.external_id
        assert event.sender
        assert event.text or event.attachments
    if isinstance(event, StatusReport):
        assert event.external_id
        assert event.status in {"SENT", "DELIVERED", "READ", "FAILED"}
        assert (event.reason is not None) == (event.status == "FAILED")
        assert 0 <= event.at_ms <= 4_102_444_800_000
        assert 0 <= event.at_ms <= 4_102_444_800_000


@pytest.mark.parametrize("connector", CONNECTORS)
@given(address=st.text(max_size=40) | st.from_regex(r"\+?[0-9 ()-]{4,20}", fullmatch=True))
@settings(max_examples=200, deadline=None)
def test_a_normalized_address_stays_as_it_is(connector: Connector, address: str) -> None:
    try:
        once = connector.normalize(address)
    except InvalidAddress:
        return
    assert connector.normalize(once) == once


@pytest.mark.parametrize("connector", CONNECTORS)
def test_an_unsigned_webhook_is_refused(connector: Connector) -> None:
    with pytest.raises(BadSignature):
        connector.verify_signature(account(connector), {}, b"{}")


@pytest.mark.parametrize("connector", CONNECTORS)
def test_the_items_of_a_recorded_webhook_survive_the_log(connector: Connector) -> None:
    recorded = fixture(f"{connector.name}_batch.json")
    ours = {"whatsapp": "106540352242922", "instagram": "17841405822304914"}
    mine = Account(connector.name, ours.get(connector.name, "1"), "https://graph.test", {})
    items = connector.split(mine, recorded)
    assert len(items) >= 4
    for item in items:
        again = msgspec.json.decode(msgspec.json.encode(item.payload))
        assert connector.parse(mine, again) == connector.parse(mine, item.payload)
        assert item.receipt == isinstance(connector.parse(mine, item.payload), StatusReport)


@pytest.mark.parametrize("connector", CONNECTORS)
def test_it_never_delivers_what_its_platform_never_says(connector: Connector) -> None:
    if connector.capabilities.delivery_receipts:
        return
    recorded = fixture(f"{connector.name}_batch.json")
    mine = Account(connector.name, "17841405822304914", "https://graph.test", {})
    events = [connector.parse(mine, item.payload) for item in connector.split(mine, recorded)]
    assert "DELIVERED" not in {event.status for event in events if isinstance(event, StatusReport)}


PHOTO = Media("photo.png", "image/png", 3, open=lambda: BytesIO(b"png"), url="https://files.test/photo.png")


class Refused(Exception):
    """Whoever sends may not send any more."""


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("media", [pytest.param(None, id="text"), pytest.param(PHOTO, id="file")])
def test_it_asks_once_right_before_what_may_deliver(connector: Connector, media: Media | None) -> None:
    platform = ScriptedPlatform().says(200, {"id": "u", "message_id": "m", "messages": [{"id": "m"}]})
    asked: list[int] = []

    def note() -> None:
        asked.append(len(platform.requests))

    def refuse() -> None:
        raise Refused

    to = {"whatsapp": "+5511999998888"}.get(connector.name, "17841400000000000")
    made = type(connector)(platform.client())
    message = Outgoing(correlation_id="1", to=to, text="hi", media=media, before_post=note)
    assert made.send(account(connector), message) == "m"
    [before] = asked
    assert before < len(platform.requests)
    sent = len(platform.requests)
    with pytest.raises(Refused):
        made.send(account(connector), replace(message, before_post=refuse))
    assert len(platform.requests) == sent + before
    assert not media or connector.name != "whatsapp" or platform.requests[-1].url.path.endswith("/media")
