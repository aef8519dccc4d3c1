"""What a connector is: a translator between our neutral values and one platform's wire format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, ClassVar, Protocol

from connectors.errors import DeliveryError
from core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Account:
    """One account on a channel (a phone number, a page). ``credentials`` never appear in repr, logs or errors."""

    channel: str
    account_id: str  # as the platform names it: WhatsApp's phone_number_id, Instagram's ig_id
    base_url: str
    credentials: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Media:
    """A file to send. ``open`` gives its bytes; ``url`` is a link that the platform may fetch (presigned, expiring)."""

    filename: str
    content_type: str
    size: int
    open: Callable[[], BinaryIO] = field(repr=False)
    url: str = field(repr=False)


def _nothing_to_check() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message for one person on one platform, in neutral words.

    A connector calls ``before_post`` just before its first request that may deliver; what that raises ends the send,
    and surely nothing was sent. So whoever sends knows of any failure whether it came before or after.
    """

    correlation_id: str  # names our message; platforms that have a field for it send it back in statuses
    to: str  # the address, as `Connector.normalize` made it
    text: str = field(repr=False)
    media: Media | None = None
    reply_to_external_id: str | None = None
    retries: int = 0  # how often it was tried in vain before
    before_post: Callable[[], None] = field(default=_nothing_to_check, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class WebhookItem:
    """One item of a webhook, not yet understood, and which account it is about. ``contact`` orders the log: equal for
    news about one person. ``receipt``: no person wrote it, `Connector.parse` makes a `StatusReport` of it, or Ignored.
    """

    account_id: str
    contact: str
    payload: dict[str, object]
    receipt: bool = False


@dataclass(frozen=True, slots=True)
class InboundAttachment:
    """A file that somebody sent us: ``media_id`` to ask the platform for, or a ``url`` to fetch."""

    content_type: str
    filename: str
    media_id: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundText:
    """A message from outside."""

    external_id: str
    sender: str  # the address, normalized
    text: str = field(repr=False)
    sender_name: str = ""
    sender_handle: str = ""
    reply_to_external_id: str | None = None
    attachments: tuple[InboundAttachment, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """What became of a message that we sent. ``status`` is one of SENT, DELIVERED, READ, FAILED."""

    external_id: str
    status: str
    at_ms: int  # 0 where the platform gave no time that makes sense: the time of receipt counts
    recipient: str | None = None
    correlation_id: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """Something real that means nothing to us (an echo of our own message, a reaction): counted by ``kind``."""

    kind: str


Event = InboundText | StatusReport | Ignored


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a channel can do: checked at accept, shown in docs and the admin."""

    max_text_chars: int | None = None
    max_text_bytes: int | None = None
    max_caption_chars: int | None = None  # text that goes along with a file; None: as long as any text
    max_media_bytes: int | None = None  # the largest of its kinds; the connector checks each kind; None: no media
    delivery_receipts: bool = False
    read_receipts: bool = False
    resend_ambiguous: bool = True  # False: leave a message that may have been delivered as it is

    def fault(self, text: str, *, media_bytes: int | None = None) -> str | None:
        """Why this channel cannot carry such a message, as a stable reason; None when it can."""
        if media_bytes is None:
            return self._text_fault(text) if text.strip() else "empty"
        return self._media_fault(text, media_bytes) or self._text_fault(text)

    def _text_fault(self, text: str) -> str | None:
        too_many_chars = self.max_text_chars is not None and len(text) > self.max_text_chars
        too_many_bytes = self.max_text_bytes is not None and len(text.encode(errors="replace")) > self.max_text_bytes
        return "text_too_long" if too_many_chars or too_many_bytes else None

    def _media_fault(self, caption: str, media_bytes: int) -> str | None:
        if self.max_media_bytes is None:
            return "media_not_supported"
        if media_bytes > self.max_media_bytes:
            return "media_too_large"
        too_long = self.max_caption_chars is not None and len(caption) > self.max_caption_chars
        return "caption_too_long" if too_long else None


Explain = Callable[[int, Mapping[str, object]], DeliveryError | None]
"""What a platform's answer means, from status and JSON body; None leaves it to the general rules of `Http`."""


class Http(Protocol):
    """Owns time-outs and the mapping from answer to error; see `connectors.http.HttpClient`."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        data: Mapping[str, str] | None = None,
        files: Mapping[str, object] | None = None,
        explain: Explain | None = None,
        repeatable: bool = False,
        read_s: float | None = None,
    ) -> Mapping[str, object]:
        """The JSON object in a 2xx. Everything else raises one of the four kinds of `DeliveryError`.

        ``explain`` sees status and body of an answer first and may say which error it is (platforms hide throttling
        in HTTP 400); None leaves it to the general rules: refused or never connected, 408, 425, 429 and 5xx (unless
        the platform may have acted: 504, and a read time-out, are ambiguous) transient, with Retry-After; 401, 403 and
        redirects paused; other 4xx permanent; unreadable 2xx ambiguous.

        ``repeatable``: doing it twice harms nobody (a look-up, an upload), so what would be ambiguous is transient.

        ``read_s``: how long the answer may take to begin, where the platform does more than usual before it answers.
        """

    def download(self, url: str, *, headers: Mapping[str, str] | None = None, max_bytes: int) -> bytes:
        """The bytes behind ``url``. Raises as `request` does; Permanent ``media_too_large`` beyond ``max_bytes``."""


class Connector(ABC):
    """One provider. Stateless but for its HTTP client: one instance serves all accounts and threads."""

    name: ClassVar[str]  # the channel: "whatsapp"
    capabilities: ClassVar[Capabilities]
    required_credentials: ClassVar[tuple[str, ...]]
    default_base_url: ClassVar[str]

    def __init__(self, http: Http) -> None:
        self._http = http

    @abstractmethod
    def normalize(self, address: str) -> str:
        """The one spelling of an address (``+5511999998888``). Raises InvalidAddress."""

    def is_handle(self, address: str) -> bool:
        """True for a normalized address that only names a person and must first be resolved to one seen inbound."""
        del address
        return False

    @abstractmethod
    def send(self, account: Account, message: Outgoing) -> str:
        """Send, asking ``message.before_post`` first; the platform's id of the message. Raises a DeliveryError."""

    @abstractmethod
    def verify_signature(self, account: Account, headers: Mapping[str, str], body: bytes) -> None:
        """Raise BadSignature unless the raw bytes were signed with the account's secret. Constant time."""

    def answer_challenge(self, account: Account, query: Mapping[str, str]) -> str:
        """The plain text answer to a subscription's GET. Raises BadSignature when the verify token is wrong."""
        del account, query
        raise InvalidRequest(f"{self.name} has no subscription check")

    @abstractmethod
    def split(self, account: Account, payload: Mapping[str, object]) -> list[WebhookItem]:
        """Every item of every array, in order. Raises BadWebhook.

        ``account`` is the one whose address it came to; where a platform calls one address for several accounts, its
        items say which they are about.
        """

    @abstractmethod
    def parse(self, account: Account, payload: Mapping[str, object]) -> Event:
        """Understand one item as `split` made it. Never raises for what a platform may add one day: that is Ignored."""

    def fetch_media(self, account: Account, attachment: InboundAttachment) -> bytes:
        """The bytes of a file that somebody sent us. Raises a DeliveryError, Permanent when it is gone or too large."""
        del account, attachment
        raise NotImplementedError(f"{self.name} has no media")
