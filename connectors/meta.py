"""What Meta's platforms share: signed webhooks, the subscription challenge, the Graph API's error codes."""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote, urlsplit

from connectors.base import Account, Connector, Outgoing
from connectors.errors import (
    AmbiguousDeliveryError,
    BadSignature,
    BadWebhook,
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)

API_VERSION: Final = "v23.0"

# Throttling comes inside HTTP 400. Seconds to wait unless Retry-After says otherwise: one limit counts per second and
# number, the others over an hour.
THROTTLED_S: Final[Mapping[int, float]] = {
    4: 60.0,  # the app's call limit
    17: 60.0,  # the user's call limit
    32: 60.0,  # the page's call limit
    613: 60.0,  # a custom limit
    80002: 60.0,  # the Instagram account's call limit
    80007: 60.0,  # the WhatsApp business account's call limit
    130429: 1.0,  # messages a second of this number
    131048: 60.0,  # too many reports of spam
    133016: 60.0,  # registrations of this number
}
PAIR_LIMIT: Final = 131056  # messages to this person: Meta asks to wait 4^n s, 1, 4, 16 …, after the n-th retry
PAIR_STEPS: Final = 5  # up to 17 minutes
TEMPORARY: Final = {1, 2, 1200, 131000, 131016}  # "try again later", also inside HTTP 400
MEDIA_TEMPORARY: Final = 131053  # this file could not be taken now; nothing is wrong with the account
LINK_NOT_FETCHED_SUBCODE: Final = 2018008  # of 100: it is our storage, or what serves its links, that is away
# Of 100, too: the file was not taken. Mostly it is none of those that the platform knows, and it never will be.
FILE_NOT_TAKEN_SUBCODE: Final = 2018047
FILE_RETRIES: Final = 5
ACCOUNT: Final = {0, 3, 10, 102, 190, 368, 131005, 131031, 131042, 131045, 133010, *range(200, 300)}
# Instagram says of one person, under 10 and 200, what else means "no permission": one person must not stop an account.
ONE_PERSON: Final[Mapping[int, str]] = {
    2018278: "the person has not written for 24 hours",
    2534022: "the person has not written for 24 hours",
    2018065: "the person has not written for 24 hours",
    2018108: "the person cannot receive messages",
    1545041: "the person is not available",
}
# The same by the code: these come as HTTP 403, by which else something is wrong with the account.
ONE_MESSAGE: Final[Mapping[int, str]] = {130497: "this business may not write to people in that country"}
MAX_TIME_MS: Final = 4_102_444_800_000  # the year 2100: whatever claims to be later is no time


def explain(status: int, body: Mapping[str, object], *, retries: int = 0) -> DeliveryError | None:
    """What the Graph API means by an error; it decides on ``code``, messages are for people and change."""
    error = as_dict(body.get("error"))
    code, subcode = as_int(error.get("code")), as_int(error.get("error_subcode"))
    if code is None or status == 504:  # a gateway's time-out stays ambiguous, whatever it says
        return None
    reason = f"platform:{code}"
    wait_s = 4.0 ** min(retries, PAIR_STEPS) if code == PAIR_LIMIT else THROTTLED_S.get(code)
    if wait_s is not None:
        return TransientDeliveryError(reason, retry_after_s=wait_s, outage=False)
    if detail := ONE_PERSON.get(subcode or 0) or ONE_MESSAGE.get(code):
        return PermanentDeliveryError(reason, detail)
    if code == MEDIA_TEMPORARY or (code == 100 and _may_be_taken(subcode, retries)):
        return TransientDeliveryError(reason, outage=False)
    if code in ACCOUNT:
        return PausedDeliveryError(reason)
    return _unlisted(status, code, error)


def _may_be_taken(subcode: int | None, retries: int) -> bool:
    """Whether a file that was refused by this may go another time."""
    return subcode == LINK_NOT_FETCHED_SUBCODE or (subcode == FILE_NOT_TAKEN_SUBCODE and retries < FILE_RETRIES)


def _unlisted(status: int, code: int, error: Mapping[str, object]) -> DeliveryError | None:
    reason = f"platform:{code}"
    if code in TEMPORARY or error.get("is_transient") is True:
        return TransientDeliveryError(reason)
    if status in {401, 403}:
        return PausedDeliveryError(reason)
    if 400 <= status < 500 and status not in {408, 425, 429}:
        return PermanentDeliveryError(reason)
    return None


class MetaConnector(Connector):
    """Base of the connectors that speak to the Graph API. Credentials as the app's dashboard names them."""

    required_credentials = ("access_token", "app_secret", "verify_token")

    def verify_signature(self, account: Account, headers: Mapping[str, str], body: bytes) -> None:
        secret = account.credentials.get("app_secret", "")
        given = next((value for name, value in headers.items() if name.lower() == "x-hub-signature-256"), "")
        expected = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        # Without a secret anybody could sign. Bytes: compare_digest refuses text that is not ASCII.
        if not secret or not hmac.compare_digest(expected.encode(), given.encode(errors="replace")):
            raise BadSignature

    def answer_challenge(self, account: Account, query: Mapping[str, str]) -> str:
        expected = account.credentials.get("verify_token", "")
        given = query.get("hub.verify_token", "")
        same = hmac.compare_digest(expected.encode(), given.encode(errors="replace"))
        if not expected or not same or query.get("hub.mode") != "subscribe":
            raise BadSignature("the verify token is wrong")
        return query.get("hub.challenge", "")

    def _url(self, account: Account, *path: str) -> str:
        return "/".join((account.base_url.rstrip("/"), API_VERSION, *(quote(part, safe="") for part in path)))

    def _explain_post(self, status: int, body: Mapping[str, object], *, retries: int = 0) -> DeliveryError | None:
        """As `explain`, for a platform where a POST can mean more by the same code."""
        return explain(status, body, retries=retries)

    def _post_message(
        self, account: Account, message: Outgoing, body: Mapping[str, object], *, read_s: float | None = None
    ) -> Mapping[str, object]:
        url = self._url(account, account.account_id, "messages")
        explained = functools.partial(self._explain_post, retries=message.retries)
        headers = bearer(account)
        return self._http.request("POST", url, headers=headers, json=body, explain=explained, read_s=read_s)


def bearer(account: Account) -> dict[str, str]:
    return {"Authorization": f"Bearer {account.credentials.get('access_token', '')}"}


def may_fetch(account: Account, url: str) -> bool:
    """Whether a link in a webhook may be followed: over TLS to a public address, or where the account talks to anyway.

    A name that has no address now is not refused: connecting to it tells the same, and may be tried again.
    """
    try:
        target, home = urlsplit(url), urlsplit(account.base_url)
        if not target.hostname:
            return False
        if _origin(target) == _origin(home):
            return True
        at_home = target.hostname == home.hostname
        return target.scheme == "https" and (at_home or _is_public(target.hostname, target.port or 443))
    except ValueError:
        return False


def _is_public(host: str, port: int) -> bool:
    """Raises ValueError for what cannot be a host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return True
    return all(_is_global(str(address[0])) for *_, address in found)


def _is_global(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast


def _origin(url: object) -> tuple[object, ...]:
    return (getattr(url, "scheme", None), getattr(url, "hostname", None), getattr(url, "port", None))


def message_id(value: object) -> str:
    """The id in an answer. Raises AmbiguousDeliveryError where there is none: the message may have been taken."""
    if isinstance(value, str) and value:
        return value
    raise AmbiguousDeliveryError("no_id", "a 2xx without a message id")


# --- reading webhooks: platforms add fields and change types, so every access checks ------------------------------


def as_dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def as_int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_time_ms(value: object, *, unit_ms: int) -> int:
    """A timestamp (number, or digits in a string) in milliseconds; 0 for what is no time."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        value = int(value)
    ms = (as_int(value) or 0) * unit_ms
    return ms if 0 < ms <= MAX_TIME_MS else 0


def first(value: object) -> dict[str, object]:
    """The first object of an array, {} where there is none."""
    return as_dict(value[0]) if isinstance(value, list) and value else {}


def each(holder: Mapping[str, object], name: str) -> Iterator[object]:
    """The items of an array that may be missing. Raises BadWebhook where something else stands."""
    value = holder.get(name)
    if value is not None and not isinstance(value, list):
        raise BadWebhook(f"{name} is not an array")
    yield from value or ()


def entries(payload: Mapping[str, object], *, object_name: str) -> Iterator[dict[str, object]]:
    """Every entry of a webhook about ``object_name``. Raises BadWebhook."""
    if payload.get("object") != object_name:
        raise BadWebhook(f"object is not {object_name}")
    if not isinstance(payload.get("entry"), list):
        raise BadWebhook("entry is not an array")
    for entry in each(payload, "entry"):
        if not isinstance(entry, dict):
            raise BadWebhook("an entry is not an object")
        yield entry
