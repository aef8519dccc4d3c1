"""WhatsApp Cloud API: what a send must look like, what statuses and inbound messages look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from simulator.accounts import Account
from simulator.graph import Draft, ReadReceipt, invalid, parse
from simulator.switches import digits

Str = Annotated[str, Meta(min_length=1, max_length=4096)]
Short = Annotated[str, Meta(min_length=1, max_length=60)]
Object = dict[str, Any]

MEDIA_TYPES: Final = ("image", "video", "document", "audio", "sticker")
MAX_LIST_ROWS: Final = 10
SCOPED_ID: Final = r"^[A-Z]{2}\.[A-Za-z0-9.]{1,128}$"  # a person as one business knows them
MIN_NUMBER_DIGITS, MAX_NUMBER_DIGITS = 7, 15  # E.164

# What the failed status or the refusal says: code → title.
TITLES: Final = {
    131009: "Parameter value is not valid",
    131026: "Message undeliverable",
    131047: "Re-engagement message",
    131053: "Media upload error",
    131056: "(Business Account, Consumer Account) pair rate limit hit",
}


class Context(msgspec.Struct):
    message_id: Str


class Envelope(msgspec.Struct):
    """What every message has; the object named by ``type`` is checked by its own struct."""

    messaging_product: Literal["whatsapp"]
    to: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    recipient: Annotated[str, Meta(pattern=SCOPED_ID)] | None = None  # in place of a number that the person hides
    recipient_type: Literal["individual"] = "individual"
    type: str = "text"
    context: Context | None = None
    biz_opaque_callback_data: Annotated[str, Meta(max_length=512)] | None = None


class Text(msgspec.Struct):
    body: Annotated[str, Meta(min_length=1, max_length=4096)]
    preview_url: bool = False


class Media(msgspec.Struct):
    id: Str | None = None
    link: Annotated[str, Meta(pattern=r"^https?://\S+$", max_length=4096)] | None = None
    caption: Annotated[str, Meta(max_length=1024)] | None = None
    filename: Annotated[str, Meta(max_length=255)] | None = None


class Language(msgspec.Struct):
    code: Annotated[str, Meta(pattern=r"^[a-z]{2,3}(_[A-Z]{2,3})?$")]
    policy: Literal["deterministic"] = "deterministic"


class Component(msgspec.Struct):
    type: Literal["header", "body", "button"]
    sub_type: Str | None = None
    index: int | str | None = None
    parameters: list[Object] = []


class Template(msgspec.Struct):
    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,512}$")]
    language: Language
    components: list[Component] = []


class Reply(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    title: Annotated[str, Meta(min_length=1, max_length=20)]


class Button(msgspec.Struct):
    type: Literal["reply"]
    reply: Reply


class Buttons(msgspec.Struct):
    buttons: Annotated[list[Button], Meta(min_length=1, max_length=3)]


class Row(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=200)]
    title: Annotated[str, Meta(min_length=1, max_length=24)]
    description: Annotated[str, Meta(max_length=72)] = ""


class Section(msgspec.Struct):
    rows: Annotated[list[Row], Meta(min_length=1)]
    title: Annotated[str, Meta(max_length=24)] = ""


class Rows(msgspec.Struct):
    button: Annotated[str, Meta(min_length=1, max_length=20)]
    sections: Annotated[list[Section], Meta(min_length=1, max_length=10)]


class LinkParameters(msgspec.Struct):
    display_text: Annotated[str, Meta(min_length=1, max_length=20)]
    url: Annotated[str, Meta(pattern=r"^https?://\S+$")]


class Link(msgspec.Struct):
    name: Literal["cta_url"]
    parameters: LinkParameters


class Body(msgspec.Struct):
    text: Annotated[str, Meta(min_length=1, max_length=1024)]


class Footer(msgspec.Struct):
    text: Short


class Interactive(msgspec.Struct):
    type: Literal["button", "list", "cta_url"]
    body: Body
    action: Object
    header: Object | None = None
    footer: Footer | None = None


class Reaction(msgspec.Struct):
    message_id: Str
    emoji: Annotated[str, Meta(max_length=16)]  # empty takes the reaction back


class Location(msgspec.Struct):
    longitude: Annotated[float, Meta(ge=-180, le=180)]
    latitude: Annotated[float, Meta(ge=-90, le=90)]
    name: str = ""
    address: str = ""


class Name(msgspec.Struct):
    formatted_name: Str


class ContactCard(msgspec.Struct):
    name: Name
    phones: list[Object] = []


class Receipt(msgspec.Struct):
    messaging_product: Literal["whatsapp"]
    status: Literal["read"]
    message_id: Str
    typing_indicator: Object | None = None


ACTIONS: Final[dict[str, type]] = {"button": Buttons, "list": Rows, "cta_url": Link}
OBJECTS: Final[dict[str, type]] = {
    "text": Text,
    **dict.fromkeys(MEDIA_TYPES, Media),
    "template": Template,
    "interactive": Interactive,
    "reaction": Reaction,
    "location": Location,
    "contacts": Annotated[list[ContactCard], Meta(min_length=1)],  # type: ignore[dict-item]
}


def parse_send(body: Object) -> Draft | ReadReceipt:
    """A message to send or a read receipt. Raises GraphError 100 naming the field."""
    if "status" in body:
        receipt = parse(body, Receipt)
        if receipt.typing_indicator is not None and receipt.typing_indicator.get("type") != "text":
            raise invalid("typing_indicator['type'] must be text")
        return ReadReceipt(message_id=receipt.message_id, typing=receipt.typing_indicator is not None)
    envelope = parse(body, Envelope)
    kind = envelope.type
    to = envelope.to or envelope.recipient
    if to is None:
        raise invalid("The parameter to is required.")
    if kind not in OBJECTS:
        raise invalid("Param type must be one of " + ", ".join(OBJECTS))
    if kind not in body:
        raise invalid(f"The parameter {kind} is required.")
    content: object = parse(body[kind], OBJECTS[kind], at=kind)
    _check_limits(kind, content)
    media = content if isinstance(content, Media) else Media()
    return Draft(
        to=to,
        contact=to if envelope.recipient else _wa_id(to),
        type=kind,
        text=_text_of(content),
        content=None if kind == "text" else {kind: body[kind]},
        media_id=media.id,
        media_link=media.link,
        filename=media.filename,
        correlation=envelope.biz_opaque_callback_data,
        reply_to=envelope.context.message_id if envelope.context else None,
        ignores_window=kind == "template",
    )


def _wa_id(to: str) -> str:
    number = digits(to)
    if not (number.isascii() and number.isdigit() and MIN_NUMBER_DIGITS <= len(number) <= MAX_NUMBER_DIGITS):
        raise invalid("Param to must be a phone number with its country code")
    return number


def without_ninth_digit(number: str) -> str:
    """``5511999998888`` → ``551199998888``: people get webhooks and statuses under the short one."""
    is_mobile = len(number) == 13 and number.startswith("55") and number[4] == "9"
    return number[:4] + number[5:] if is_mobile else number


def _check_limits(kind: str, content: object) -> None:
    """What the shape alone does not say."""
    if isinstance(content, Media):
        if (content.id is None) == (content.link is None):
            raise invalid(f"Param {kind} must have exactly one of id and link")
        if content.caption is not None and kind in ("audio", "sticker"):
            raise invalid(f"Param {kind} takes no caption")
        if content.filename is not None and kind != "document":
            raise invalid(f"Param {kind} takes no filename")
    elif isinstance(content, Interactive):
        action: object = parse(content.action, ACTIONS[content.type], at="interactive.action")
        ids = _choice_ids(action)
        if len(ids) > MAX_LIST_ROWS:
            raise invalid(f"Total row count exceeds the maximum of {MAX_LIST_ROWS}")
        if len(set(ids)) < len(ids):
            raise invalid("Ids of buttons or rows must be unique")


def _choice_ids(action: object) -> list[str]:
    if isinstance(action, Buttons):
        return [button.reply.id for button in action.buttons]
    if isinstance(action, Rows):
        return [row.id for section in action.sections for row in section.rows]
    return []


def _text_of(content: object) -> str:
    """What a person would read of it."""
    match content:
        case Text(body=text) | Media(caption=str(text)) | Interactive(body=Body(text=text)) | Reaction(emoji=text):
            return text
        case Template(name=name):
            return name
        case _:
            return ""


def answer(draft: Draft, wamid: str) -> Object:
    return {
        "messaging_product": "whatsapp",
        "contacts": [{"input": draft.to, "wa_id": draft.contact}],
        "messages": [{"id": wamid}],
    }


def status_item(
    status: str, *, wamid: str, draft: Draft, at_s: int, error: tuple[int, str] | None = None
) -> tuple[str, Object]:
    """One of ``statuses[]``; ``error`` is the code and details of a failed one."""
    item: Object = {"id": wamid, "status": status, "timestamp": str(at_s), "recipient_id": draft.contact}
    if draft.correlation is not None:
        item["biz_opaque_callback_data"] = draft.correlation
    if error is None:
        item["conversation"] = {"id": f"conversation-{draft.contact}", "origin": {"type": "service"}}
        if status == "sent":
            item["conversation"]["expiration_timestamp"] = str(at_s + 86_400)
        item["pricing"] = {"billable": False, "pricing_model": "PMP", "category": "service"}
    else:
        code, details = error
        title = TITLES.get(code, "Message failed")
        item["errors"] = [{"code": code, "title": title, "message": title, "error_data": {"details": details}}]
    return "statuses", item


def inbound_item(
    *, wamid: str, contact: str, at_s: int, content: Object, reply_to: str | None, our_number: str
) -> tuple[str, Object]:
    """One of ``messages[]``; ``content`` is ``{"type": T, T: {…}}``."""
    who = "from" if contact.isdigit() else "from_user_id"
    item: Object = {who: contact, "id": wamid, "timestamp": str(at_s), **content}
    if reply_to is not None:
        item["context"] = {"from": our_number, "id": reply_to}
    return "messages", item


def inbound_media(*, kind: str, media_id: str, mime_type: str, sha256: str, filename: str, caption: str) -> Object:
    content: Object = {"id": media_id, "mime_type": mime_type, "sha256": sha256}
    if kind == "document":
        content["filename"] = filename
    if caption and kind not in ("audio", "sticker"):
        content["caption"] = caption
    return {"type": kind, kind: content}


STATUSES_PER_CHANGE: Final = 20
CHANGES_PER_ENTRY: Final = 4


def webhook(account: Account, items: Sequence[tuple[str, Object, str]]) -> Object:
    """One POST for many items (kind, payload, the person's name), in order.

    Neighbours of one kind share a change, and a large batch has several changes and entries, so that a receiver
    which reads only the first of any array is found out.
    """
    changes: list[Object] = []
    last_kind = ""
    for kind, item, name in items:
        if kind != last_kind or len(changes[-1]["value"][kind]) >= STATUSES_PER_CHANGE:
            changes.append({"value": _value(account, kind), "field": "messages"})
            last_kind = kind
        value = changes[-1]["value"]
        value[kind].append(item)
        if kind == "messages":
            _introduce(value["contacts"], item, name=name)
    chunks = [changes[start : start + CHANGES_PER_ENTRY] for start in range(0, len(changes), CHANGES_PER_ENTRY)]
    return {
        "object": "whatsapp_business_account",
        "entry": [{"id": account.business_id, "changes": chunk} for chunk in chunks],
    }


def _value(account: Account, kind: str) -> Object:
    value: Object = {
        "messaging_product": "whatsapp",
        "metadata": {
            "display_phone_number": account.display_phone_number,
            "phone_number_id": account.account_id,
        },
    }
    if kind == "messages":
        value["contacts"] = []
    value[kind] = []
    return value


def _introduce(contacts: list[Object], item: Object, *, name: str) -> None:
    identity = {"wa_id": item["from"]} if "from" in item else {"user_id": item["from_user_id"]}
    if not any(identity.items() <= known.items() for known in contacts):
        contacts.append({"profile": {"name": name}, **identity})
