"""Instagram messaging.

Decisions: a message holds either text or a file, so a text with a file goes as two messages, the file first because it
is the one that may be refused; what fails between the two is ambiguous. There is no delivery event: never DELIVERED.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

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
    AmbiguousDeliveryError,
    DeliveryError,
    InvalidAddress,
    PausedDeliveryError,
    PermanentDeliveryError,
)
from connectors.meta import MetaConnector, as_dict, as_text, as_time_ms, each, entries, may_fetch, message_id

MB: Final = 1024 * 1024
MAX_IMAGE_BYTES: Final = 8 * MB
MAX_FILE_BYTES: Final = 25 * MB
FETCH_S: Final = 20.0  # until an answer: the platform fetches a file first, and who gives up too early sends it twice
KINDS: Final = {  # as Meta lists what Instagram takes
    **dict.fromkeys(("image/png", "image/jpeg", "image/gif"), "image"),
    **dict.fromkeys(("video/mp4", "video/ogg", "video/x-msvideo", "video/quicktime", "video/webm"), "video"),
    **dict.fromkeys(("audio/aac", "audio/mp4", "audio/wav", "audio/x-wav"), "audio"),
    "application/pdf": "file",
}
UNSUPPORTED: Final = "[a message of a kind that Instagram does not pass on]"
CONTENT_TYPES: Final = {"image": "image/jpeg", "video": "video/mp4", "audio": "audio/mp4"}  # the webhook names no more

_SCOPED_ID = re.compile(r"[0-9]{1,32}")
_USERNAME = re.compile(r"[a-z0-9._]{1,30}")


class Instagram(MetaConnector):
    """Messages through Instagram's messaging API. Addresses: a person's scoped id (digits), or their username."""

    name = "instagram"
    capabilities = Capabilities(max_text_bytes=1000, max_media_bytes=MAX_FILE_BYTES, read_receipts=True)
    default_base_url = "https://graph.instagram.com"

    def normalize(self, address: str) -> str:
        if _SCOPED_ID.fullmatch(address):
            return address
        handle = address.removeprefix("@").lower()
        if not _USERNAME.fullmatch(handle) or _SCOPED_ID.fullmatch(handle):
            raise InvalidAddress("an Instagram address is a scoped id (digits only) or a username")
        return handle

    def is_handle(self, address: str) -> bool:
        return not _SCOPED_ID.fullmatch(address)

    def send(self, account: Account, message: Outgoing) -> str:
        media = message.media
        if fault := self._fault(message):
            raise PermanentDeliveryError(fault)
        message.before_post()
        if media is None:
            return self._send_part(account, message, {"text": message.text})
        sent = self._send_part(account, message, {"attachment": _attachment(media)})
        return self._send_rest(account, message) if message.text.strip() else sent

    def _fault(self, message: Outgoing) -> str | None:
        media = message.media
        if self.is_handle(message.to):
            return "unresolved_handle"  # a username cannot be messaged
        if media and (kind := kind_of(media)) is None:
            return "media_not_supported"
        if media and kind == "image" and media.size > MAX_IMAGE_BYTES:
            return "media_too_large"
        return self.capabilities.fault(message.text, media_bytes=media.size if media else None)

    def _send_part(self, account: Account, message: Outgoing, part: Mapping[str, object]) -> str:
        body = {"recipient": {"id": message.to}, "message": part}
        reply = self._post_message(account, message, body, read_s=FETCH_S if "attachment" in part else None)
        return message_id(reply.get("message_id"))

    def _send_rest(self, account: Account, message: Outgoing) -> str:
        """The text behind its file. Its id stands for both: who has read the later one has seen the earlier."""
        try:
            return self._send_part(account, message, {"text": message.text})
        except PermanentDeliveryError:
            raise  # sending both again would only repeat the file
        except DeliveryError as error:
            raise AmbiguousDeliveryError(
                "partly_sent", f"the file was sent, its text was not: {error.reason}", outage=error.outage
            ) from error

    def split(self, account: Account, payload: Mapping[str, object]) -> list[WebhookItem]:
        del account  # an app has one address for all its accounts
        return [
            WebhookItem(
                account_id, _person(account_id, as_dict(item)), {"messaging": item}, receipt=_is_receipt(as_dict(item))
            )
            for entry in entries(payload, object_name="instagram")
            for account_id in (as_text(entry.get("id")),)
            for item in each(entry, "messaging")
        ]

    def parse(self, account: Account, payload: Mapping[str, object]) -> Event:
        item = as_dict(payload.get("messaging"))
        sender = as_dict(item.get("sender"))
        person = as_text(sender.get("id"))
        if person == account.account_id:
            return Ignored("echo")
        match item:
            case {"message": dict(message)}:
                return _message(message, sender)
            case {"read": {"mid": str(mid)}} if mid:
                at_ms = as_time_ms(item.get("timestamp"), unit_ms=1)
                return StatusReport(external_id=mid, status="READ", at_ms=at_ms, recipient=person or None)
            case {"postback": {"mid": str(mid), **press}} if mid and person:
                text = as_text(press.get("title")) or as_text(press.get("payload"))
                return _inbound(mid, sender, text)
        return Ignored(_noise(item))

    def fetch_media(self, account: Account, attachment: InboundAttachment) -> bytes:
        url = attachment.url or ""
        if not may_fetch(account, url):
            raise PermanentDeliveryError("media_refused", "the platform gave a link that is not safe to follow")
        try:
            return self._http.download(url, max_bytes=MAX_FILE_BYTES)  # signed links: no token goes to the CDN
        except PausedDeliveryError as error:
            if error.reason not in {"http_401", "http_403"}:
                raise
            # So the CDN answers an expired link, and nothing about the account. No later try gets the file.
            raise PermanentDeliveryError(error.reason, error.detail) from error


def kind_of(media: Media) -> str | None:
    """What the platform calls such a file; None for one that it does not take."""
    return KINDS.get(media.content_type.partition(";")[0].strip().lower())


def _attachment(media: Media) -> dict[str, object]:
    return {"type": kind_of(media), "payload": {"url": media.url}}


def _person(account_id: str, item: Mapping[str, object]) -> str:
    """The one of both ends that is not us: an echo comes from ourselves."""
    sender, recipient = (as_text(as_dict(item.get(end)).get("id")) for end in ("sender", "recipient"))
    return recipient if sender == account_id else sender


def _is_receipt(item: Mapping[str, object]) -> bool:
    return "read" in item and "message" not in item and "postback" not in item


def _noise(item: Mapping[str, object]) -> str:
    known = (name for name in ("reaction", "message", "read", "postback") if name in item)
    name = next(known, "unknown_type")
    return "malformed" if name in {"message", "read", "postback"} else name


def _message(message: dict[str, object], sender: dict[str, object]) -> Event:
    mid = as_text(message.get("mid"))
    for flag, kind in (("is_echo", "echo"), ("is_deleted", "deleted")):
        if message.get(flag):
            return Ignored(kind)
    if not mid or not as_text(sender.get("id")):
        return Ignored("malformed")
    text = as_text(message.get("text")) or as_text(as_dict(message.get("quick_reply")).get("payload"))
    attachments = _attachments(message.get("attachments"))
    # A picture to be seen once comes as an attachment without a link (``ephemeral``).
    if not text and not attachments and (message.get("is_unsupported") or message.get("attachments")):
        text = UNSUPPORTED
    reply_to = as_text(as_dict(message.get("reply_to")).get("mid")) or None
    return _inbound(mid, sender, text, attachments=attachments, reply_to=reply_to)


def _inbound(
    mid: str,
    sender: dict[str, object],
    text: str,
    *,
    attachments: tuple[InboundAttachment, ...] = (),
    reply_to: str | None = None,
) -> Event:
    if not text and not attachments:
        return Ignored("empty")
    return InboundText(
        external_id=mid,
        sender=as_text(sender.get("id")),
        text=text,
        sender_name=as_text(sender.get("name")),
        sender_handle=as_text(sender.get("username")).lower(),
        reply_to_external_id=reply_to,
        attachments=attachments,
    )


def _attachments(value: object) -> tuple[InboundAttachment, ...]:
    found = []
    for item in value if isinstance(value, list) else ():
        kind, url = as_text(as_dict(item).get("type")), as_text(as_dict(as_dict(item).get("payload")).get("url"))
        if url:
            found.append(InboundAttachment(CONTENT_TYPES.get(kind, "application/octet-stream"), "", url=url))
    return tuple(found)
