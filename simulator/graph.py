"""What all of the Graph API shares: its errors, its ids, a send once it is understood."""

from __future__ import annotations

import base64
import json
import os
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class GraphError(Exception):
    """An answer that says no, in Meta's shape."""

    def __init__(
        self, code: int, title: str, details: str = "", *, http_status: int = 400, subcode: int | None = None
    ) -> None:
        super().__init__(title)
        self.code = code
        self.title = title
        self.details = details or title
        self.http_status = http_status
        self.subcode = subcode
        self.retry_after_s = 0

    def later(self, retry_after_s: int) -> GraphError:
        """The same, saying when to come back; 0 says nothing."""
        self.retry_after_s = retry_after_s
        return self

    def as_json(self, *, product: str) -> dict[str, Any]:
        error: dict[str, Any] = {
            "message": f"(#{self.code}) {self.title}",
            "type": "OAuthException",
            "code": self.code,
            "error_data": {"messaging_product": product, "details": self.details},
            "fbtrace_id": "A" + _random_text(16),
        }
        if self.subcode is not None:
            error["error_subcode"] = self.subcode
        return {"error": error}


def invalid(details: str, *, subcode: int | None = None) -> GraphError:
    return GraphError(100, "Invalid parameter", details, subcode=subcode)


def bad_token() -> GraphError:
    return GraphError(190, "Invalid OAuth access token - Cannot parse access token", http_status=401)


def no_such_object() -> GraphError:
    return GraphError(
        100,
        "Unsupported request. The object does not exist, or cannot be loaded due to missing permissions",
        subcode=33,
    )


def unavailable() -> GraphError:
    return GraphError(131016, "Service unavailable", "A service is temporarily unavailable", http_status=503)


def throttled(http_status: int) -> GraphError:
    details = "Message failed to send because there were too many messages sent"
    return GraphError(130429, "Rate limit hit", details, http_status=http_status)


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A valid request to send, on either channel. ``contact`` is the person's id as the platform writes it."""

    to: str
    contact: str
    type: str
    text: str = ""
    content: dict[str, Any] | None = None  # the type's object as received, for all but text
    media_id: str | None = None
    media_link: str | None = None
    filename: str | None = None
    correlation: str | None = None
    reply_to: str | None = None
    ignores_window: bool = False  # a template
    extended_window: bool = False  # Instagram: HUMAN_AGENT, seven days


class ReadReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """We have read what a person wrote; perhaps with a typing indicator."""

    message_id: str
    typing: bool


def decode_body(raw: bytes) -> dict[str, Any]:
    """The request's JSON object. Graph answers 100 to anything else."""
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid("The request body is not a JSON object") from None


def parse(value: object, kind: type[T], *, at: str = "") -> T:
    """``value`` as a ``kind``, or Graph's code 100 saying which field is wrong (``at`` is the path to ``value``)."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        fault, _, path = str(error).partition(" - at `$")
        where = at + path.rstrip("`")
        raise invalid(f"{fault} - at `{where.lstrip('.')}`" if where else fault) from None


def encode_webhook(body: object) -> bytes:
    """Meta escapes everything outside ASCII, and slashes; the signature covers these very bytes."""
    return json.dumps(body, separators=(",", ":")).replace("/", "\\/").encode()


def new_wamid() -> str:
    """Random even under a seed: a receiver that keeps its ids must never meet one twice after our restart."""
    return "wamid." + base64.b64encode(os.urandom(28)).decode()


def new_mid() -> str:
    return "aWdfZAG1f" + _random_text(24)


def _random_text(size: int) -> str:
    return base64.urlsafe_b64encode(os.urandom(size)).decode().rstrip("=")
