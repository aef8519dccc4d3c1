"""WhatsApp Business Cloud API.

Decisions: a caption beyond 1024 characters is refused instead of being split in two messages, which could not be sent
exactly once. Audio takes no caption, so audio with text goes as a document, and so does what is too large for its kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import phonenumbers

from connectors.base import (
    Account,
    Capabilities,
    Event,
    Ignored,
    InboundAttachment,
    InboundText,
    Media,
    Outgoing,
    StatusReport,
    WebhookItem,
)
from connectors.errors import (
    DeliveryError,
    InvalidAddress,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)
from connectors.meta import (
    MetaConnector,
    as_dict,
    as_int,
    as_text,
    as_time_ms,
    bearer,
    each,
    entries,
    explain,
    first,
    may_fetch,
    message_id,
)

MB: Final = 1024 * 1024
MAX_BYTES: Final = {"image": 5 * MB, "audio": 16 * MB, "video": 16 * MB, "document": 100 * MB}
KINDS: Final = {
    "image/jpeg": "image",
    "image/png": "image",
    "video/mp4": "video",
    "video/3gpp": "video",
    "audio/aac": "audio",
    "audio/amr": "audio",
    "audio/mp4": "audio",
    "audio/mpeg": "audio",
    "audio/ogg": "audio",
}
STATUSES: Final = {"sent": "SENT", "delivered": "DELIVERED", "read": "READ", "failed": "FAILED"}
MEDIA_TYPES: Final = {"image", "video", "audio", "document", "sticker"}
NO_MESSAGES: Final = {"reaction", "system"}  # nobody waits for an answer to these
# In the answer to a POST: our own number was deleted, or we may not use it. A file's look-up says 100/33 of the file.
NUMBER_GONE: Final = {33, 131037}
NUMBER_GONE_SUBCODE: Final = 33  # of 100
UNSUPPORTED: Final = "[a message of a kind that WhatsApp does not pass on]"

# Accounts made before a numbering change keep their old wa_id, so one person comes in two spellings: Brazil's mobiles
# without the ninth digit (landlines, 2 to 5, never have it), Mexico's with a 1 behind the country code.
ONE_SPELLING: Final = (
    (re.compile(r"55(\d\d)([6-9]\d{7})"), r"55\g<1>9\g<2>"),
    (re.compile(r"521(\d{10})"), r"52\g<1>"),
)
_PUNCTUATION = re.compile(r"[\s().-]")
_SCOPED_ID = re.compile(r"[A-Z]{2}\.(?:ENT\.)?[A-Za-z0-9]{1,128}")  # a person who hides their number: US.1349120…


class WhatsApp(MetaConnector):
    """Messages through the WhatsApp Business Cloud API."""

    name = "whatsapp"
    capabilities = Capabilities(
        max_text_chars=4096,
        max_caption_chars=1024,
        max_media_bytes=MAX_BYTES["document"],
        delivery_receipts=True,
        read_receipts=True,
    )
    default_base_url = "https://graph.facebook.com"

    def normalize(self, address: str) -> str:
        if _SCOPED_ID.fullmatch(address):
            return address
        digits = _PUNCTUATION.sub("", address).removeprefix("+")
        if not (digits.isascii() and digits.isdigit()):
            raise InvalidAddress("a WhatsApp address is a phone number in international form, such as +5511999998888")
        number = _one_spelling(digits)
        # Possible, not valid: number plans grow faster than libraries, and whoever wrote to us must be answerable.
        if not _possible(number):
            raise InvalidAddress("not a phone number in international form (E.164), such as +5511999998888")
        return number

    def send(self, account: Account, message: Outgoing) -> str:
        media = message.media
        if fault := self.capabilities.fault(message.text, media_bytes=media.size if media else None):
            raise PermanentDeliveryError(fault)
        content = self._media(account, media, message.text) if media else _text(message.text)
        message.before_post()
        reply = self._post_message(account, message, _envelope(message) | content)
        return message_id(first(reply.get("messages")).get("id"))

    def _explain_post(self, status: int, body: Mapping[str, object], *, retries: int = 0) -> DeliveryError | None:
        found = super()._explain_post(status, body, retries=retries)
        if isinstance(found, PermanentDeliveryError) and _number_is_gone(as_dict(body.get("error"))):
            return PausedDeliveryError(found.reason)
        return found

    def _media(self, account: Account, media: Media, caption: str) -> dict[str, object]:
        kind = kind_of(media, caption=caption)
        part: dict[str, object] = {"id": self._upload(account, media)}
        if caption.strip():
            part["caption"] = caption
        if kind == "document":
            part["filename"] = media.filename
        return {"type": kind, kind: part}

    def _upload(self, account: Account, media: Media) -> str:
        with media.open() as source:
            reply = self._http.request(
                "POST",
                self._url(account, account.account_id, "media"),
                headers=bearer(account),
                data={"messaging_product": "whatsapp", "type": media.content_type},
                files={"file": (_wire_name(media.filename), source, media.content_type)},
                explain=self._explain_post,
                repeatable=True,
            )
        if uploaded := as_text(reply.get("id")):
            return uploaded
        raise TransientDeliveryError("no_media_id", "an upload was answered without an id")

    def split(self, account: Account, payload: Mapping[str, object]) -> list[WebhookItem]:
        del account  # an app has one address for all its numbers
        return [
            item
            for entry in entries(payload, object_name="whatsapp_business_account")
            for change in each(entry, "changes")
            for item in _items(as_dict(as_dict(change).get("value")))
        ]

    def parse(self, account: Account, payload: Mapping[str, object]) -> Event:
        del account
        match payload:
            case {"message": dict(message)}:
                return _message(message, as_dict(payload.get("contact")))
            case {"status": dict(status)}:
                return _status(status)
            case {"error": _}:
                return Ignored("error")
        return Ignored("malformed")

    def fetch_media(self, account: Account, attachment: InboundAttachment) -> bytes:
        reply = self._http.request(
            "GET", self._url(account, attachment.media_id or ""), headers=bearer(account), explain=explain
        )
        url = as_text(reply.get("url"))
        if not may_fetch(account, url):
            raise PermanentDeliveryError("media_refused", "the platform gave a link that is not safe to follow")
        return self._http.download(url, headers=bearer(account), max_bytes=MAX_BYTES["document"])


def _number_is_gone(error: Mapping[str, object]) -> bool:
    code, subcode = as_int(error.get("code")), as_int(error.get("error_subcode"))
    return code in NUMBER_GONE or (code == 100 and subcode == NUMBER_GONE_SUBCODE)


def kind_of(media: Media, *, caption: str = "") -> str:
    """How a file is sent: image, video or audio where WhatsApp shows it as such, else document."""
    kind = KINDS.get(media.content_type.partition(";")[0].strip().lower(), "document")
    mute = kind == "audio" and caption.strip()
    return "document" if mute or media.size > MAX_BYTES[kind] else kind


def _one_spelling(digits: str) -> str:
    for variant, spelling in ONE_SPELLING:
        if variant.fullmatch(digits):
            return "+" + variant.sub(spelling, digits)
    return "+" + digits


def _possible(number: str) -> bool:
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return False
    possible = phonenumbers.is_possible_number_with_reason(parsed) == phonenumbers.ValidationResult.IS_POSSIBLE
    return possible and bool(number == phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))


def _address(wire: object) -> str:
    """The address of somebody whom the platform names; what normalize would refuse stays as it is, never lost."""
    digits = as_text(wire).removeprefix("+")
    return _one_spelling(digits) if digits.isascii() and digits.isdigit() else digits


# --- to the platform ---------------------------------------------------------------------------------------------


def _envelope(message: Outgoing) -> dict[str, object]:
    wire = {"recipient": message.to} if _SCOPED_ID.fullmatch(message.to) else {"to": message.to.removeprefix("+")}
    envelope: dict[str, object] = {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        **wire,
        "biz_opaque_callback_data": message.correlation_id,
    }
    if message.reply_to_external_id:
        envelope["context"] = {"message_id": message.reply_to_external_id}
    return envelope


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "text": {"body": text, "preview_url": True}}


def _wire_name(filename: str) -> str:
    """Encodable, without control characters, never empty: multipart would refuse or drop the part."""
    printable = "".join(letter for letter in filename if letter.isprintable())
    return printable.encode(errors="replace").decode() or "file"


# --- from the platform -------------------------------------------------------------------------------------------


def _items(value: dict[str, object]) -> list[WebhookItem]:
    number_id = as_text(as_dict(value.get("metadata")).get("phone_number_id"))
    contacts = [as_dict(contact) for contact in each(value, "contacts")]
    messages = [_message_item(number_id, message, contacts) for message in each(value, "messages")]
    statuses = [
        WebhookItem(number_id, _address(as_dict(status).get("recipient_id")), {"status": status}, receipt=True)
        for status in each(value, "statuses")
    ]
    errors = [WebhookItem(number_id, "", {"error": error}) for error in each(value, "errors")]
    return messages + statuses + errors


def _message_item(number_id: str, message: object, contacts: list[dict[str, object]]) -> WebhookItem:
    """With the name and handle of its sender, which stand elsewhere in the webhook."""
    fields = as_dict(message)
    sender, scoped = fields.get("from"), fields.get("from_user_id")
    known = next(
        (
            contact
            for contact in contacts
            if (sender and contact.get("wa_id") == sender) or (scoped and contact.get("user_id") == scoped)
        ),
        {},
    )
    return WebhookItem(number_id, _address(sender or scoped), {"message": message, "contact": known})


def _message(message: dict[str, object], contact: dict[str, object]) -> Event:
    external_id, sender = as_text(message.get("id")), _address(message.get("from") or message.get("from_user_id"))
    if not external_id or not sender:
        return Ignored("malformed")
    kind = as_text(message.get("type"))
    if kind in NO_MESSAGES:
        return Ignored(kind)
    profile = as_dict(contact.get("profile"))
    attachments = _attachments(message, kind)
    text = _text_of(message, kind)
    if not text and not attachments:
        return Ignored("empty")
    return InboundText(
        external_id=external_id,
        sender=sender,
        text=text,
        sender_name=as_text(profile.get("name")),
        sender_handle=as_text(profile.get("username")),
        reply_to_external_id=as_text(as_dict(message.get("context")).get("id")) or None,
        attachments=attachments,
    )


def _text_of(message: dict[str, object], kind: str) -> str:
    if kind == "contacts":  # the only part that is an array
        return _cards(message.get(kind)) or UNSUPPORTED
    # People must learn that somebody wrote, even where the platform keeps the content to itself, or we cannot show it.
    return READERS[kind](as_dict(message.get(kind))) if kind in READERS else UNSUPPORTED


def _attachments(message: dict[str, object], kind: str) -> tuple[InboundAttachment, ...]:
    part = as_dict(message.get(kind)) if kind in MEDIA_TYPES else {}
    media_id = as_text(part.get("id"))
    if not media_id:
        return ()
    content_type = as_text(part.get("mime_type")) or "application/octet-stream"
    return (InboundAttachment(content_type, as_text(part.get("filename")), media_id=media_id),)


def _caption(part: dict[str, object]) -> str:
    return as_text(part.get("caption"))


def _location(part: dict[str, object]) -> str:
    latitude, longitude = part.get("latitude"), part.get("longitude")
    if not (isinstance(latitude, int | float) and isinstance(longitude, int | float)):
        return ""
    names = [as_text(part.get(name)) for name in ("name", "address")]
    link = f"https://maps.google.com/?q={latitude},{longitude}"
    return "\n".join(line for line in (f"📍 {', '.join(filter(None, names))}".strip(), link))


def _cards(cards: object) -> str:
    """Names with their phone numbers, a line for each card."""
    found = [_card(as_dict(card)) for card in cards] if isinstance(cards, list) else []
    return "\n".join(f"👤 {line}" for line in filter(None, found))


def _card(card: dict[str, object]) -> str:
    phones = card.get("phones")
    numbers = [as_text(as_dict(phone).get("phone")) for phone in phones] if isinstance(phones, list) else []
    return ", ".join(filter(None, (as_text(as_dict(card.get("name")).get("formatted_name")), *numbers)))


def _interactive(part: dict[str, object]) -> str:
    reply = next((as_dict(part[name]) for name in ("button_reply", "list_reply", "nfm_reply") if name in part), {})
    return as_text(reply.get("title")) or _answers(as_text(reply.get("response_json"))) or as_text(reply.get("body"))


def _answers(response_json: str) -> str:
    """What somebody filled in a form, a line for each field, without our secret; "" where nothing can be read."""
    with suppress(ValueError, RecursionError):
        fields = as_dict(json.loads(response_json))
        return "\n".join(f"{name}: {_answer(value)}" for name, value in fields.items() if name != "flow_token")
    return ""


def _answer(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_answer(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


READERS: Final[dict[str, Callable[[dict[str, object]], str]]] = {
    "text": lambda part: as_text(part.get("body")),
    "button": lambda part: as_text(part.get("text")),
    "interactive": _interactive,
    "location": _location,
    **dict.fromkeys(MEDIA_TYPES, _caption),
}


def _status(status: dict[str, object]) -> Event:
    external_id = as_text(status.get("id"))
    if not external_id:
        return Ignored("malformed")
    news = STATUSES.get(as_text(status.get("status")))
    if news is None:
        return Ignored("unknown_status")
    return StatusReport(
        external_id=external_id,
        status=news,
        at_ms=as_time_ms(status.get("timestamp"), unit_ms=1000),
        recipient=_address(status.get("recipient_id")) or None,
        correlation_id=as_text(status.get("biz_opaque_callback_data")) or None,
        reason=_reason(status) if news == "FAILED" else None,
    )


def _reason(status: dict[str, object]) -> str:
    code = as_int(first(status.get("errors")).get("code"))
    return "platform:unknown" if code is None else f"platform:{code}"
