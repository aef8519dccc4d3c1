"""Instagram messaging: what a send must look like, what echoes, reads and inbound messages look like."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from simulator.accounts import Account
from simulator.graph import Draft, GraphError, invalid, parse

Object = dict[str, Any]
MAX_TEXT_BYTES: Final = 1000
ECHO_APP_ID: Final = 178_414_000_000_001


class Recipient(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=64)]


class Payload(msgspec.Struct):
    url: Annotated[str, Meta(pattern=r"^https?://\S+$", max_length=4096)]


class Attachment(msgspec.Struct):
    type: Literal["image", "video", "audio", "file"]
    payload: Payload


class ReplyTo(msgspec.Struct):
    mid: Annotated[str, Meta(min_length=1, max_length=512)]


class Message(msgspec.Struct):
    text: Annotated[str, Meta(min_length=1)] | None = None
    attachment: Attachment | None = None
    reply_to: ReplyTo | None = None


class Send(msgspec.Struct):
    recipient: Recipient
    message: Message
    messaging_type: Literal["RESPONSE", "UPDATE", "MESSAGE_TAG"] | None = None
    tag: str | None = None
    reply_to: ReplyTo | None = None


def parse_send(body: Object) -> Draft:
    """A message to send. Raises GraphError 100 naming the field."""
    send = parse(body, Send)
    message = send.message
    if (message.text is None) == (message.attachment is None):
        raise invalid("Param message must have exactly one of text and attachment")
    if message.text is not None and len(message.text.encode()) > MAX_TEXT_BYTES:
        raise invalid(f"Length of param message[text] must be less than or equal to {MAX_TEXT_BYTES} bytes")
    if send.tag not in (None, "HUMAN_AGENT"):
        raise invalid("Param tag must be HUMAN_AGENT")
    if not (send.recipient.id.isascii() and send.recipient.id.isdigit()):
        raise no_such_person()  # a username cannot be messaged
    reply_to = message.reply_to or send.reply_to
    return Draft(
        to=send.recipient.id,
        contact=send.recipient.id,
        type=message.attachment.type if message.attachment else "text",
        text=message.text or "",
        content=None if message.text is not None else {"attachment": body["message"]["attachment"]},
        media_link=message.attachment.payload.url if message.attachment else None,
        reply_to=reply_to.mid if reply_to else None,
        extended_window=send.tag == "HUMAN_AGENT",
    )


def no_such_person() -> GraphError:
    return GraphError(100, "No matching user found", subcode=2534014)


def no_such_message() -> GraphError:
    return invalid("Param reply_to['mid'] is no message of this chat")


def window_closed() -> GraphError:
    return GraphError(10, "This message is sent outside of allowed window.", subcode=2534022)


def not_available(code: int) -> GraphError:
    """551, or a code that otherwise means a missing permission: the subcode alone tells."""
    if code == 10:
        return GraphError(10, "This person isn't receiving messages from you right now.", subcode=2018108)
    return GraphError(code, "This person isn't available right now.", subcode=1545041)


def answer(draft: Draft, mid: str) -> Object:
    return {"recipient_id": draft.contact, "message_id": mid}


def echo_item(account: Account, draft: Draft, *, mid: str, at_ms: int) -> Object:
    """Our own message, as the account's owner sees it."""
    message: Object = {"mid": mid, "is_echo": True, "app_id": ECHO_APP_ID}
    if draft.text:
        message["text"] = draft.text
    if draft.media_link is not None:
        message["attachments"] = [{"type": draft.type, "payload": {"url": draft.media_link}}]
    if draft.reply_to is not None:
        message["reply_to"] = {"mid": draft.reply_to}
    return _event(account.account_id, draft.contact, at_ms) | {"message": message}


def read_item(account: Account, draft: Draft, *, mid: str, at_ms: int) -> Object:
    """The person has read ``mid``. There is no delivery event on Instagram."""
    return _event(draft.contact, account.account_id, at_ms) | {"read": {"mid": mid}}


def inbound_item(account: Account, *, contact: str, username: str, at_ms: int, message: Object) -> Object:
    event = _event(contact, account.account_id, at_ms) | {"message": message}
    if username:
        event["sender"]["username"] = username
    return event


def _event(sender: str, recipient: str, at_ms: int) -> Object:
    return {"sender": {"id": sender}, "recipient": {"id": recipient}, "timestamp": at_ms}


EVENTS_PER_ENTRY: Final = 25


def webhook(account: Account, items: Sequence[tuple[str, Object, str]]) -> Object:
    """One POST for many items, in order; a large batch has several entries."""
    events = [item for _, item, _ in items]
    chunks = [events[start : start + EVENTS_PER_ENTRY] for start in range(0, len(events), EVENTS_PER_ENTRY)]
    now_ms = time.time_ns() // 1_000_000
    return {
        "object": "instagram",
        "entry": [{"id": account.account_id, "time": now_ms, "messaging": chunk} for chunk in chunks],
    }
