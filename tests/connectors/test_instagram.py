"""Instagram: addresses, what we say to the platform, what we understand of its webhooks."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest

from connectors.base import Event, Ignored, InboundAttachment, InboundText, Media, Outgoing, StatusReport
from connectors.errors import (
    AmbiguousDeliveryError,
    BadWebhook,
    DeliveryError,
    InvalidAddress,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)
from connectors.http import HttpClient, Limits
from connectors.instagram import FETCH_S, UNSUPPORTED, Instagram
from connectors.meta import API_VERSION
from messaging import tasks
from messaging.dispatch import HARD_LIMIT_S
from messaging.services.deliver import CLAIM_LEASE_MS
from tests.connectors.conftest import INSTAGRAM_ID, ScriptedPlatform, fixture, instagram_account

ACCOUNT = instagram_account()
SENT = {"recipient_id": "1535148674817116", "message_id": "mid.new"}
MB = 1024 * 1024


def media(content_type: str, size: int = 4) -> Media:
    return Media("f", content_type, size, open=lambda: io.BytesIO(b"!!!!"), url="https://files.test/1?sig=2")


def outgoing(text: str = "Hi", to: str = "1535148674817116", **more: Any) -> Outgoing:
    return Outgoing(correlation_id="0192f0c1", to=to, text=text, **more)


@pytest.mark.parametrize(
    ("written", "address", "handle"),
    [
        pytest.param("1535148674817116", "1535148674817116", False, id="scoped id"),
        pytest.param("maria.silva_1", "maria.silva_1", True, id="username"),
        pytest.param("@Maria.Silva_1", "maria.silva_1", True, id="username as people write it"),
    ],
)
def test_an_address_is_a_scoped_id_or_a_username(written: str, address: str, handle: bool) -> None:
    instagram = Instagram(HttpClient())
    assert instagram.normalize(written) == address
    assert instagram.normalize(address) == address
    assert instagram.is_handle(address) is handle


@pytest.mark.parametrize(
    "written", ["", "@", "maria silva", "a" * 31, "@1535148674817116", "m/../x", "\uff11\uff12", "1" * 33]
)
def test_what_neither_can_be_is_refused(written: str) -> None:
    with pytest.raises(InvalidAddress):
        Instagram(HttpClient()).normalize(written)


def test_a_text_is_sent_and_the_platforms_id_comes_back(platform: ScriptedPlatform) -> None:
    assert Instagram(platform.says(200, SENT).client()).send(ACCOUNT, outgoing("Olá")) == "mid.new"
    request = platform.requests[0]
    assert str(request.url) == f"https://graph.test/{API_VERSION}/{INSTAGRAM_ID}/messages"
    assert request.headers["authorization"] == "Bearer token-of-Alice"
    assert platform.body() == {"recipient": {"id": "1535148674817116"}, "message": {"text": "Olá"}}


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/png", "image"),
        ("video/mp4", "video"),
        ("audio/mp4", "audio"),
        ("audio/mp4; codecs=mp4a.40.2", "audio"),
        ("application/pdf", "file"),
    ],
)
def test_a_file_goes_as_a_link(platform: ScriptedPlatform, content_type: str, kind: str) -> None:
    sent = Instagram(platform.says(200, SENT).client()).send(ACCOUNT, outgoing("", media=media(content_type)))
    assert sent == "mid.new"
    attachment = {"type": kind, "payload": {"url": "https://files.test/1?sig=2"}}
    assert platform.body()["message"] == {"attachment": attachment}


def test_a_file_with_text_goes_as_two_messages_and_the_later_one_stands_for_both(platform: ScriptedPlatform) -> None:
    platform.says(200, SENT | {"message_id": "mid.file"}).says(200, SENT | {"message_id": "mid.text"})
    sent = Instagram(platform.client()).send(ACCOUNT, outgoing("Look", media=media("image/png")))
    assert sent == "mid.text"
    assert [list(platform.body(index)["message"]) for index in (0, 1)] == [["attachment"], ["text"]]


def test_a_file_whose_link_could_not_be_fetched_is_sent_again_and_its_text_waits(platform: ScriptedPlatform) -> None:
    platform.says(400, {"error": {"code": 100, "error_subcode": 2018008}})
    with pytest.raises(TransientDeliveryError) as caught:
        Instagram(platform.client()).send(ACCOUNT, outgoing("Look", media=media("image/png")))
    assert (caught.value.outage, len(platform.requests)) == (False, 1)


def test_the_platform_has_time_to_fetch_a_file_before_it_answers() -> None:
    waits_s: list[float] = []

    def note(request: httpx.Request) -> httpx.Response:
        waits_s.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(SENT).encode()))

    instagram = Instagram(HttpClient(transport=httpx.MockTransport(note)))
    instagram.send(ACCOUNT, outgoing("Look", media=media("video/mp4")))
    assert waits_s == [20, Limits().read_s]


def test_a_file_and_its_text_are_sent_before_the_task_is_killed() -> None:
    limits = Limits()
    file_s = limits.total_s + FETCH_S  # the answer begins FETCH_S later at most, and may drip as any other
    text_s = limits.total_s + limits.read_s
    assert tasks.BATCH_DEADLINE_S + file_s + text_s < HARD_LIMIT_S
    assert HARD_LIMIT_S * 1000 < CLAIM_LEASE_MS


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        pytest.param(503, AmbiguousDeliveryError, "partly_sent", id="down"),
        pytest.param(429, AmbiguousDeliveryError, "partly_sent", id="throttled"),
        pytest.param(401, AmbiguousDeliveryError, "partly_sent", id="not authenticated any more"),
        pytest.param(400, PermanentDeliveryError, "http_400", id="refused, which sending both again would not change"),
    ],
)
def test_what_fails_after_the_file_was_sent_is_not_called_unsent(
    platform: ScriptedPlatform, status: int, kind: type[DeliveryError], reason: str
) -> None:
    instagram = Instagram(platform.says(200, SENT).says(status, "{}").client())
    with pytest.raises(DeliveryError) as caught:
        instagram.send(ACCOUNT, outgoing("Look", media=media("image/png")))
    assert (type(caught.value), caught.value.reason) == (kind, reason)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(outgoing("é" * 501), "text_too_long", id="text beyond 1000 bytes"),
        pytest.param(outgoing("", media=media("image/png", 8 * MB + 1)), "media_too_large", id="image"),
        pytest.param(outgoing("", media=media("video/mp4", 25 * MB + 1)), "media_too_large", id="video"),
        pytest.param(outgoing("é" * 501, media=media("video/mp4")), "text_too_long", id="text behind a file"),
        pytest.param(outgoing("Look", media=media("application/zip")), "media_not_supported", id="archive"),
        pytest.param(outgoing("", media=media("image/webp")), "media_not_supported", id="picture of another kind"),
        pytest.param(outgoing("", media=media("audio/ogg")), "media_not_supported", id="sound of another kind"),
        pytest.param(outgoing(""), "empty", id="nothing"),
        pytest.param(outgoing(to="maria"), "unresolved_handle", id="a username cannot be messaged"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_sent(
    platform: ScriptedPlatform, message: Outgoing, reason: str
) -> None:
    with pytest.raises(PermanentDeliveryError) as caught:
        Instagram(platform.says(200, SENT).client()).send(ACCOUNT, message)
    assert (caught.value.reason, platform.requests) == (reason, [])


def test_what_just_fits_is_sent(platform: ScriptedPlatform) -> None:
    instagram = Instagram(platform.says(200, SENT).client())
    assert instagram.send(ACCOUNT, outgoing("é" * 500)) == "mid.new"
    assert instagram.send(ACCOUNT, outgoing("", media=media("image/png", 8 * MB))) == "mid.new"
    assert instagram.send(ACCOUNT, outgoing("", media=media("video/mp4", 25 * MB))) == "mid.new"


def test_a_file_that_somebody_sent_is_fetched_without_our_token() -> None:
    seen: list[httpx.Request] = []

    def cdn(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b"jpeg"))

    instagram = Instagram(HttpClient(transport=httpx.MockTransport(cdn)))
    assert instagram.fetch_media(ACCOUNT, InboundAttachment("image/jpeg", "", url="https://cdn.test/x?s=1")) == b"jpeg"
    assert "authorization" not in seen[0].headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        pytest.param(403, PermanentDeliveryError, id="expired"),
        pytest.param(401, PermanentDeliveryError, id="never to be had without a token, which the CDN does not get"),
        pytest.param(404, PermanentDeliveryError, id="gone"),
        pytest.param(302, PausedDeliveryError, id="moved, which is never followed"),
        pytest.param(503, TransientDeliveryError, id="down"),
    ],
)
def test_a_file_whose_link_expired_is_not_waited_for(
    platform: ScriptedPlatform, status: int, kind: type[DeliveryError]
) -> None:
    instagram = Instagram(platform.says(status, "URL signature expired").client())
    with pytest.raises(DeliveryError) as caught:
        instagram.fetch_media(ACCOUNT, InboundAttachment("image/jpeg", "", url="https://cdn.test/x?s=1"))
    assert (type(caught.value), caught.value.outage) == (kind, kind is not PermanentDeliveryError)


@pytest.mark.parametrize("url", [None, "", "http://10.0.0.1/x", "file:///etc/passwd"])
def test_no_link_to_an_unsafe_place_is_followed(platform: ScriptedPlatform, url: str | None) -> None:
    with pytest.raises(PermanentDeliveryError) as caught:
        Instagram(platform.client()).fetch_media(ACCOUNT, InboundAttachment("image/jpeg", "", url=url))
    assert (caught.value.reason, platform.requests) == ("media_refused", [])


def test_every_item_of_every_entry_is_found_in_order_and_says_whose_it_is() -> None:
    instagram = Instagram(HttpClient())
    everybodys = instagram.split(ACCOUNT, fixture("instagram_batch.json"))
    items = [item for item in everybodys if item.account_id == INSTAGRAM_ID]
    assert [instagram.parse(ACCOUNT, item.payload) for item in items] == [
        InboundText(external_id="mid.one", sender="1535148674817116", text="Hi there"),
        Ignored("echo"),
        StatusReport(external_id="mid.ours", status="READ", at_ms=1749416385000, recipient="1535148674817116"),
        InboundText(external_id="mid.press", sender="999", text="Talk to a person"),
    ]
    # An echo is news about the person whom it went to.
    assert [item.contact for item in items] == ["1535148674817116"] * 3 + ["999"]
    [other] = [item for item in everybodys if item not in items]
    assert (other.account_id, other.contact) == ("another-account", "1")


@pytest.mark.parametrize("said", [{"message": {"mid": "m", "text": "hi"}}, {"postback": {"mid": "m", "title": "hi"}}])
def test_what_a_person_says_is_no_receipt_whatever_comes_along(said: dict[str, object]) -> None:
    item = {"sender": {"id": "999"}, "recipient": {"id": INSTAGRAM_ID}, "read": {}, **said}
    payload = {"object": "instagram", "entry": [{"id": INSTAGRAM_ID, "messaging": [item]}]}
    [found] = Instagram(HttpClient()).split(ACCOUNT, payload)
    assert isinstance(Instagram(HttpClient()).parse(ACCOUNT, found.payload), InboundText)
    assert not found.receipt


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"object": "whatsapp_business_account", "entry": []},
        {"object": "instagram", "entry": None},
        {"object": "instagram", "entry": [5]},
        {"object": "instagram", "entry": [{"id": INSTAGRAM_ID, "messaging": {}}]},
    ],
)
def test_what_is_no_webhook_of_instagram_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(BadWebhook):
        Instagram(HttpClient()).split(ACCOUNT, payload)


def understood(**fields: object) -> Event:
    item = {"sender": {"id": "999"}, "recipient": {"id": INSTAGRAM_ID}, "timestamp": 1749416383123, **fields}
    return Instagram(HttpClient()).parse(ACCOUNT, {"messaging": item})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param({"message": {"mid": "m", "text": "Hi"}}, "Hi", id="text"),
        pytest.param(
            {"message": {"mid": "m", "text": "Yes", "quick_reply": {"payload": "Y"}}}, "Yes", id="quick reply"
        ),
        pytest.param({"message": {"mid": "m", "quick_reply": {"payload": "Y"}}}, "Y", id="quick reply without text"),
        pytest.param({"message": {"mid": "m", "is_unsupported": True}}, UNSUPPORTED, id="people learn of it"),
        pytest.param(
            {"message": {"mid": "m", "attachments": [{"type": "ephemeral"}]}}, UNSUPPORTED, id="to be seen once"
        ),
        pytest.param({"postback": {"mid": "m", "payload": "START"}}, "START", id="postback without a title"),
    ],
)
def test_what_people_say_becomes_text(fields: dict[str, object], text: str) -> None:
    assert understood(**fields) == InboundText(external_id="m", sender="999", text=text)


def test_files_and_the_message_answered_come_along() -> None:
    attachments = [
        {"type": "image", "payload": {"url": "https://cdn.test/1"}},
        {"type": "share", "payload": {"url": "https://cdn.test/2"}},
        {"type": "image", "payload": {}},
        "nonsense",
    ]
    event = understood(message={"mid": "m", "attachments": attachments, "reply_to": {"mid": "mid.ours"}})
    assert event == InboundText(
        external_id="m",
        sender="999",
        text="",
        reply_to_external_id="mid.ours",
        attachments=(
            InboundAttachment("image/jpeg", "", url="https://cdn.test/1"),
            InboundAttachment("application/octet-stream", "", url="https://cdn.test/2"),
        ),
    )


def test_a_name_and_a_username_are_taken_where_the_platform_gives_them() -> None:
    event = understood(sender={"id": "999", "name": "Maria", "username": "Maria.S"}, message={"mid": "m", "text": "Hi"})
    assert isinstance(event, InboundText)
    assert (event.sender_name, event.sender_handle) == ("Maria", "maria.s")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        pytest.param({"message": {"mid": "m", "text": "Hi", "is_echo": True}}, "echo", id="our own message"),
        pytest.param({"sender": {"id": INSTAGRAM_ID}, "message": {"mid": "m", "text": "Hi"}}, "echo", id="from us"),
        pytest.param({"message": {"mid": "m", "is_deleted": True}}, "deleted", id="taken back"),
        pytest.param({"reaction": {"mid": "m", "emoji": "❤"}}, "reaction", id="reaction"),
        pytest.param({"message": {"mid": "m"}}, "empty", id="nothing in it"),
        pytest.param({"message": {"text": "Hi"}}, "malformed", id="message without an id"),
        pytest.param({"sender": {}, "message": {"mid": "m", "text": "Hi"}}, "malformed", id="message from nobody"),
        pytest.param({"message": "Hi"}, "malformed", id="message that is text"),
        pytest.param({"read": {"watermark": 5}}, "malformed", id="read without an id"),
        pytest.param({"sender": {}, "postback": {"mid": "m", "title": "x"}}, "malformed", id="postback from nobody"),
        pytest.param({"delivery": {"mids": ["m"]}}, "unknown_type", id="there is no delivery event"),
        pytest.param({}, "unknown_type", id="what comes one day"),
    ],
)
def test_what_means_nothing_to_us_is_counted(fields: dict[str, object], kind: str) -> None:
    assert understood(**fields) == Ignored(kind)
