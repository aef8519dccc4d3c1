"""WhatsApp: addresses, what we say to the platform, what we understand of its webhooks."""

from __future__ import annotations

import io
from typing import Any

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
from connectors.http import HttpClient
from connectors.meta import API_VERSION
from connectors.whatsapp import UNSUPPORTED, WhatsApp, kind_of
from tests.connectors.conftest import WHATSAPP_ID, RealServer, ScriptedPlatform, fixture, whatsapp_account

SENT = {"contacts": [{"input": "5511912345678", "wa_id": "5511912345678"}], "messages": [{"id": "wamid.new"}]}
ACCOUNT = whatsapp_account()
MB = 1024 * 1024


def media(content_type: str, size: int = 4, filename: str = "photo.jpg") -> Media:
    return Media(filename, content_type, size, open=lambda: io.BytesIO(b"\x89\x00\xff!"), url="https://files.test/1")


def outgoing(text: str = "Olá", **more: Any) -> Outgoing:
    return Outgoing(correlation_id="0192f0c1", to="+5511912345678", text=text, **more)


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "address"),
    [
        pytest.param("+5511912345678", "+5511912345678", id="as E.164 writes it"),
        pytest.param("5511912345678", "+5511912345678", id="as the platform writes it"),
        pytest.param("+55 (11) 91234-5678", "+5511912345678", id="as people write it"),
        pytest.param("+551187654321", "+5511987654321", id="Brazilian mobile without its ninth digit"),
        pytest.param("554187654321", "+5541987654321", id="the same in another state"),
        pytest.param("+551133334444", "+551133334444", id="Brazilian landline, which never has one"),
        pytest.param("5215512345678", "+525512345678", id="Mexican mobile with the old 1"),
        pytest.param("+12025550123", "+12025550123", id="United States"),
        pytest.param("+15550783881", "+15550783881", id="the platform's own test numbers, in no number plan"),
        pytest.param("+351912345678", "+351912345678", id="Portugal"),
        pytest.param("US.13491208655302741918", "US.13491208655302741918", id="a person who hides their number"),
    ],
)
def test_an_address_has_one_spelling(written: str, address: str) -> None:
    whatsapp = WhatsApp(HttpClient())
    assert whatsapp.normalize(written) == address
    assert whatsapp.normalize(address) == address
    assert not whatsapp.is_handle(address)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "+",
        "alice",
        "+55119",
        "+55119123456789012",
        "+999912345678",
        "++5511912345678",
        "+551\uff1912345678",
        "+05511",
    ],
)
def test_what_no_phone_can_have_is_refused_without_repeating_it(written: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        WhatsApp(HttpClient()).normalize(written)
    assert len(written) < 8 or written not in str(caught.value)


# --- to the platform ---------------------------------------------------------------------------------------------


def test_a_text_is_sent_with_our_id_and_the_platforms_id_comes_back(platform: ScriptedPlatform) -> None:
    whatsapp = WhatsApp(platform.says(200, SENT).client())
    assert whatsapp.send(ACCOUNT, outgoing("Olá 👋")) == "wamid.new"
    request = platform.requests[0]
    assert str(request.url) == f"https://graph.test/{API_VERSION}/{WHATSAPP_ID}/messages"
    assert request.headers["authorization"] == "Bearer token-of-Alice"
    assert platform.body() == {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": "5511912345678",
        "biz_opaque_callback_data": "0192f0c1",
        "type": "text",
        "text": {"body": "Olá 👋", "preview_url": True},
    }


def test_an_answer_names_the_message_that_it_answers(platform: ScriptedPlatform) -> None:
    WhatsApp(platform.says(200, SENT).client()).send(ACCOUNT, outgoing(reply_to_external_id="wamid.theirs"))
    assert platform.body()["context"] == {"message_id": "wamid.theirs"}


def test_a_person_who_hides_their_number_is_written_to_by_scoped_id(platform: ScriptedPlatform) -> None:
    message = Outgoing(correlation_id="1", to="US.13491208655302741918", text="Hi")
    WhatsApp(platform.says(200, SENT).client()).send(ACCOUNT, message)
    assert platform.body()["recipient"] == "US.13491208655302741918"
    assert "to" not in platform.body()


@pytest.mark.parametrize(
    ("content_type", "size", "caption", "kind"),
    [
        pytest.param("image/jpeg", 5 * MB, "", "image", id="photo"),
        pytest.param("image/jpeg", 5 * MB + 1, "", "document", id="photo too large for a photo"),
        pytest.param("IMAGE/PNG; q=1", 1, "", "image", id="type in capitals with a parameter"),
        pytest.param("image/svg+xml", 1, "", "document", id="image of a kind that is not shown"),
        pytest.param("video/mp4", 16 * MB, "look", "video", id="video"),
        pytest.param("video/mp4", 16 * MB + 1, "", "document", id="video too large for a video"),
        pytest.param("audio/ogg", 1, "", "audio", id="audio"),
        pytest.param("audio/ogg", 1, "listen", "document", id="audio with a caption, which audio cannot have"),
        pytest.param("application/pdf", 100 * MB, "", "document", id="document"),
    ],
)
def test_a_file_goes_as_what_it_can_be_shown_as(content_type: str, size: int, caption: str, kind: str) -> None:
    assert kind_of(media(content_type, size), caption=caption) == kind


def test_a_file_is_uploaded_as_bytes_and_sent_by_id(platform: ScriptedPlatform) -> None:
    whatsapp = WhatsApp(platform.says(200, {"id": "media-7"}).says(200, SENT).client())
    assert whatsapp.send(ACCOUNT, outgoing("Veja", media=media("image/jpeg"))) == "wamid.new"
    upload = platform.requests[0]
    assert str(upload.url) == f"https://graph.test/{API_VERSION}/{WHATSAPP_ID}/media"
    assert upload.headers["authorization"] == "Bearer token-of-Alice"
    assert b'name="messaging_product"\r\n\r\nwhatsapp' in upload.content
    assert b'name="type"\r\n\r\nimage/jpeg' in upload.content
    assert b'filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n\x89\x00\xff!' in upload.content
    assert platform.body()["type"] == "image"
    assert platform.body()["image"] == {"id": "media-7", "caption": "Veja"}


def test_a_document_keeps_its_name(platform: ScriptedPlatform) -> None:
    whatsapp = WhatsApp(platform.says(200, {"id": "media-7"}).says(200, SENT).client())
    whatsapp.send(ACCOUNT, outgoing("", media=media("application/pdf", filename="conta de março.pdf")))
    assert platform.body()["document"] == {"id": "media-7", "filename": "conta de março.pdf"}


def test_a_strange_filename_does_not_break_the_upload(platform: ScriptedPlatform) -> None:
    whatsapp = WhatsApp(platform.says(200, {"id": "media-7"}).says(200, SENT).client())
    assert whatsapp.send(ACCOUNT, outgoing("", media=media("image/png", filename="a\r\nX: 1\ud800.png"))) == "wamid.new"
    assert b"\r\nX: 1" not in platform.requests[0].content


def test_an_upload_that_failed_was_no_message_and_is_safe_to_repeat(platform: ScriptedPlatform) -> None:
    whatsapp = WhatsApp(platform.says(504, "").client())
    with pytest.raises(TransientDeliveryError):
        whatsapp.send(ACCOUNT, outgoing("", media=media("image/png")))
    with pytest.raises(TransientDeliveryError):
        WhatsApp(ScriptedPlatform().says(200, {}).client()).send(ACCOUNT, outgoing("", media=media("image/png")))
    assert len(platform.requests) == 1


GONE = {"error": {"code": 100, "error_subcode": 33}}


@pytest.mark.parametrize("file", [pytest.param(None, id="message"), pytest.param(media("image/png"), id="upload")])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(GONE, "platform:100", id="no such number, or no permission"),
        pytest.param({"error": {"code": 33}}, "platform:33", id="number was deleted"),
        pytest.param({"error": {"code": 131037}}, "platform:131037", id="number has no approved name"),
    ],
)
def test_a_number_that_we_may_not_use_pauses_the_account_and_costs_no_message(
    platform: ScriptedPlatform, file: Media | None, error: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PausedDeliveryError) as caught:
        WhatsApp(platform.says(400, error).client()).send(ACCOUNT, outgoing("Veja", media=file))
    assert (caught.value.reason, caught.value.outage, len(platform.requests)) == (reason, True, 1)


def test_a_gateway_that_gave_up_leaves_it_open_whatever_it_says_of_the_number(platform: ScriptedPlatform) -> None:
    with pytest.raises(AmbiguousDeliveryError):
        WhatsApp(platform.says(504, GONE).client()).send(ACCOUNT, outgoing())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(outgoing("x" * 4097), "text_too_long", id="text"),
        pytest.param(outgoing("x" * 1025, media=media("image/png")), "caption_too_long", id="caption"),
        pytest.param(outgoing("", media=media("video/mp4", 100 * MB + 1)), "media_too_large", id="file"),
        pytest.param(outgoing(" \n"), "empty", id="nothing"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_sent(
    platform: ScriptedPlatform, message: Outgoing, reason: str
) -> None:
    with pytest.raises(PermanentDeliveryError) as caught:
        WhatsApp(platform.says(200, SENT).client()).send(ACCOUNT, message)
    assert (caught.value.reason, platform.requests) == (reason, [])


def test_what_just_fits_is_sent(platform: ScriptedPlatform) -> None:
    whatsapp = WhatsApp(platform.says(200, SENT | {"id": "media-7"}).client())
    assert whatsapp.send(ACCOUNT, outgoing("x" * 4096)) == "wamid.new"
    assert whatsapp.send(ACCOUNT, outgoing("x" * 1024, media=media("image/png"))) == "wamid.new"


def test_a_file_that_somebody_sent_is_fetched_with_the_token(server: RealServer, client: HttpClient) -> None:
    tokens: list[str | None] = []

    def described(handler: Any) -> None:
        answer(handler, f'{{"url": "{server.url}/cdn/1?sig=2", "id": "media-1"}}'.encode())

    def answer(handler: Any, body: bytes) -> None:
        tokens.append(handler.headers["Authorization"])
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server.pages[f"/{API_VERSION}/media-1"] = described
    server.pages["/cdn/1"] = lambda handler: answer(handler, b"\x89PNG")
    account = whatsapp_account()
    object.__setattr__(account, "base_url", server.url + "/")
    found = WhatsApp(client).fetch_media(account, InboundAttachment("image/png", "", media_id="media-1"))
    assert found == b"\x89PNG"
    assert tokens == ["Bearer token-of-Alice"] * 2


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "file:///etc/passwd", "", "https://", "http://[::1"])
def test_the_token_follows_no_link_to_an_unsafe_place(platform: ScriptedPlatform, url: str) -> None:
    whatsapp = WhatsApp(platform.says(200, {"url": url}).client())
    with pytest.raises(PermanentDeliveryError) as caught:
        whatsapp.fetch_media(ACCOUNT, InboundAttachment("image/png", "", media_id="media-1"))
    assert caught.value.reason == "media_refused"
    assert len(platform.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        pytest.param(404, {}, PermanentDeliveryError, id="gone"),
        pytest.param(400, GONE, PermanentDeliveryError, id="gone, as Graph says it, which tells nothing of our number"),
        pytest.param(401, {}, PausedDeliveryError, id="a bad token"),
        pytest.param(500, {}, TransientDeliveryError, id="broken"),
    ],
)
def test_a_file_that_is_gone_is_a_permanent_failure_and_a_bad_token_pauses(
    platform: ScriptedPlatform, status: int, body: dict[str, Any], kind: type[DeliveryError]
) -> None:
    with pytest.raises(kind):
        WhatsApp(platform.says(status, body).client()).fetch_media(
            ACCOUNT, InboundAttachment("image/png", "", media_id="media-1")
        )


# --- from the platform -------------------------------------------------------------------------------------------


def test_every_item_of_every_array_is_found_in_order_and_says_whose_it_is() -> None:
    whatsapp = WhatsApp(HttpClient())
    everybodys = whatsapp.split(ACCOUNT, fixture("whatsapp_batch.json"))
    items = [item for item in everybodys if item.account_id == WHATSAPP_ID]
    events = [whatsapp.parse(ACCOUNT, item.payload) for item in items]
    assert events == [
        InboundText(external_id="wamid.one", sender="+5511987654321", text="Olá!", sender_name="João"),
        InboundText(
            external_id="wamid.two",
            sender="+5511912345678",
            text="Veja isto",
            sender_name="Maria",
            reply_to_external_id="wamid.ours",
            attachments=(InboundAttachment("image/jpeg", "", media_id="media-1"),),
        ),
        StatusReport(
            external_id="wamid.ours",
            status="DELIVERED",
            at_ms=1749416390000,
            recipient="+5511987654321",
            correlation_id="0192f0c1-a7b3-7c11-a8e2-c5d9f3b4a6e7",
        ),
        StatusReport(
            external_id="wamid.lost",
            status="FAILED",
            at_ms=1749416391000,
            recipient="+5511912345678",
            reason="platform:131026",
        ),
        Ignored("error"),
    ]
    # News about one person share a key, whichever spelling the platform used.
    assert [item.contact for item in items] == ["+5511987654321", "+5511912345678"] * 2 + [""]
    [other] = [item for item in everybodys if item not in items]
    assert (other.account_id, other.contact) == ("somebody-elses-number", "+5511900000000")


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"object": "instagram", "entry": []}, id="another object"),
        pytest.param({"object": "whatsapp_business_account"}, id="no entries"),
        pytest.param({"object": "whatsapp_business_account", "entry": {}}, id="entries that are no array"),
        pytest.param({"object": "whatsapp_business_account", "entry": ["x"]}, id="an entry that is no object"),
        pytest.param({"object": "whatsapp_business_account", "entry": [{"changes": "x"}]}, id="changes that are text"),
    ],
)
def test_what_is_no_webhook_of_whatsapp_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(BadWebhook):
        WhatsApp(HttpClient()).split(ACCOUNT, payload)


def understood(message: object, *contacts: object) -> Event:
    value = {"metadata": {"phone_number_id": WHATSAPP_ID}, "contacts": list(contacts), "messages": [message]}
    payload = {"object": "whatsapp_business_account", "entry": [{"changes": [{"value": value}]}]}
    whatsapp = WhatsApp(HttpClient())
    (item,) = whatsapp.split(ACCOUNT, payload)
    return whatsapp.parse(ACCOUNT, item.payload)


def message(kind: str, **content: object) -> dict[str, object]:
    return {"id": "wamid.1", "from": "5511912345678", "timestamp": "1749416383", "type": kind, **content}


CARD = {
    "name": {"formatted_name": "Zé", "first_name": "José"},
    "phones": [{"phone": "+55 11 91234-5678", "wa_id": "5511912345678", "type": "CELL"}, {"phone": "190"}],
}


def form(response_json: object) -> dict[str, object]:
    reply = {"name": "flow", "body": "Sent", "response_json": response_json}
    return message("interactive", interactive={"type": "nfm_reply", "nfm_reply": reply})


@pytest.mark.parametrize(
    ("received", "text"),
    [
        pytest.param(message("text", text={"body": "Oi"}), "Oi", id="text"),
        pytest.param(message("button", button={"text": "Yes", "payload": "y"}), "Yes", id="template button"),
        pytest.param(
            message("interactive", interactive={"type": "button_reply", "button_reply": {"id": "1", "title": "Yes"}}),
            "Yes",
            id="button",
        ),
        pytest.param(
            message("interactive", interactive={"list_reply": {"id": "2", "title": "Pizza", "description": "big"}}),
            "Pizza",
            id="list",
        ),
        pytest.param(
            form(
                '{"flow_token": "secret", "name": "Zé", "days": ["Mon", "Tue"], "agreed": true, "place": {"city": "é"}}'
            ),
            'name: Zé\ndays: Mon, Tue\nagreed: true\nplace: {"city": "é"}',
            id="form",
        ),
        pytest.param(form('{"flow_token": "secret"}'), "Sent", id="form without fields"),
        pytest.param(form("{}"), "Sent", id="empty form"),
        pytest.param(form('["a"]'), "Sent", id="form that is no object"),
        pytest.param(form("{"), "Sent", id="form that is no JSON"),
        pytest.param(form('{"a":' * 100_000), "Sent", id="form nested too deep"),
        pytest.param(form({"name": "Zé"}), "Sent", id="form of another type"),
        pytest.param(
            message("location", location={"latitude": -23.5, "longitude": -46.6, "name": "Sé", "address": "Praça 1"}),
            "📍 Sé, Praça 1\nhttps://maps.google.com/?q=-23.5,-46.6",
            id="named place",
        ),
        pytest.param(
            message("location", location={"latitude": 1, "longitude": 2}),
            "📍\nhttps://maps.google.com/?q=1,2",
            id="bare place",
        ),
        pytest.param(
            message("unsupported", errors=[{"code": 131051}]), UNSUPPORTED, id="people learn that somebody wrote"
        ),
        pytest.param(message("order", order={"catalog_id": "1", "product_items": []}), UNSUPPORTED, id="order"),
        pytest.param(message("hologram", hologram={}), UNSUPPORTED, id="what comes one day"),
        pytest.param({**message("text"), "type": None}, UNSUPPORTED, id="no type"),
        pytest.param(
            message("contacts", contacts=[CARD, {"name": {"formatted_name": "Rui"}}, {"phones": [{"phone": "190"}]}]),
            "👤 Zé, +55 11 91234-5678, 190\n👤 Rui\n👤 190",
            id="contact cards",
        ),
        pytest.param(message("contacts", contacts=[{}, "x", {"phones": [5]}]), UNSUPPORTED, id="nothing on the cards"),
        pytest.param(message("contacts", contacts=CARD), UNSUPPORTED, id="cards that are no array"),
    ],
)
def test_what_people_say_becomes_text(received: dict[str, object], text: str) -> None:
    event = understood(received)
    assert isinstance(event, InboundText)
    assert (event.text, event.sender) == (text, "+5511912345678")


@pytest.mark.parametrize("kind", ["image", "video", "audio", "document", "sticker"])
def test_every_kind_of_file_becomes_an_attachment(kind: str) -> None:
    event = understood(message(kind, **{kind: {"id": "m1", "mime_type": "a/b", "filename": "f.bin"}}))
    assert isinstance(event, InboundText)
    assert event.attachments == (InboundAttachment("a/b", "f.bin", media_id="m1"),)


@pytest.mark.parametrize(
    ("received", "kind"),
    [
        pytest.param(message("reaction", reaction={"emoji": "👍"}), "reaction", id="reaction"),
        pytest.param(message("system", system={"body": "changed number"}), "system", id="system"),
        pytest.param(message("text", text={}), "empty", id="text without text"),
        pytest.param(message("text", text="Oi"), "empty", id="text of another type"),
        pytest.param(message("image", image={"caption": ""}), "empty", id="image without an id"),
        pytest.param(message("location", location={"latitude": "x"}), "empty", id="place nowhere"),
        pytest.param({**message("text", text={"body": "Oi"}), "id": ""}, "malformed", id="no id"),
        pytest.param({**message("text", text={"body": "Oi"}), "from": None}, "malformed", id="no sender"),
        pytest.param("text", "malformed", id="no object"),
    ],
)
def test_what_means_nothing_to_us_is_counted_and_not_lost_silently(received: object, kind: str) -> None:
    assert understood(received) == Ignored(kind)


def test_a_sender_who_hides_their_number_is_known_by_scoped_id() -> None:
    scoped = {"id": "wamid.1", "from_user_id": "US.134", "timestamp": "1", "type": "text", "text": {"body": "Hi"}}
    event = understood(scoped, {"profile": {"name": "Bob", "username": "bob"}, "user_id": "US.134"})
    assert isinstance(event, InboundText)
    assert (event.sender, event.sender_name, event.sender_handle) == ("US.134", "Bob", "bob")


def test_a_name_is_given_only_to_its_owner() -> None:
    event = understood(message("text", text={"body": "Oi"}), {"profile": {"name": "Mallory"}, "wa_id": "5511900000000"})
    assert isinstance(event, InboundText)
    assert event.sender_name == ""


def status(**fields: object) -> Event:
    return WhatsApp(HttpClient()).parse(ACCOUNT, {"status": {"id": "wamid.1", "timestamp": "1749416383", **fields}})


@pytest.mark.parametrize("timestamp", [None, "", "soon", "-5", "9" * 30, "9" * 5000, "١٢٣", {}, True, "0"])
def test_a_time_that_makes_no_sense_is_no_time(timestamp: object) -> None:
    event = status(status="read", timestamp=timestamp)
    assert isinstance(event, StatusReport)
    assert event.at_ms == 0


@pytest.mark.parametrize(
    ("wire", "news"), [("sent", "SENT"), ("delivered", "DELIVERED"), ("read", "READ"), ("failed", "FAILED")]
)
def test_statuses_have_our_names(wire: str, news: str) -> None:
    event = status(status=wire)
    assert isinstance(event, StatusReport)
    assert event.status == news
    assert event.reason == ("platform:unknown" if wire == "failed" else None)


@pytest.mark.parametrize("wire", ["deleted", "warning", "", None, 5])
def test_a_status_that_nobody_knows_is_ignored(wire: object) -> None:
    assert status(status=wire) == Ignored("unknown_status")


@pytest.mark.parametrize("errors", [[], [5], {}, [{"code": "131026"}], None])
def test_a_failure_without_a_readable_code_still_counts(errors: object) -> None:
    event = status(status="failed", errors=errors)
    assert isinstance(event, StatusReport)
    assert event.reason == "platform:unknown"


def test_a_status_without_an_id_is_malformed() -> None:
    assert status(id=None, status="read") == Ignored("malformed")
