"""The control API under /_control: turn switches, speak as a person, see what the platform received."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from simulator.accounts import Account, Accounts, Channel, parse_accounts
from simulator.http import json_answer, read
from simulator.ledger import Received, Said
from simulator.logs import log
from simulator.media import LARGEST
from simulator.platform import Attached, Platform, Utterance
from simulator.switches import Millis, digits
from simulator.whatsapp import SCOPED_ID

T = TypeVar("T")
MAX_INBOUND_BYTES: Final = LARGEST * 4 // 3 + 64 * 1024  # base64
MAX_PAGE: Final = 10_000
_PERSON: Final = re.compile(r"[0-9]{5,20}")
_SCOPED_ID: Final = re.compile(SCOPED_ID)


class ControlError(Exception):
    """A control request that cannot be done; ``field`` names what is wrong with it."""

    def __init__(self, message: str, *, field: str = "", code: str = "invalid", status: int = 422) -> None:
        super().__init__(message)
        self.field = field
        self.code = code
        self.status = status

    def as_json(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "field": self.field, "message": str(self)}}


class MediaIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file as a person attaches it: the bytes as base64, or as text."""

    filename: Annotated[str, Meta(min_length=1, max_length=255)]
    content_type: Annotated[str, Meta(pattern=r"^[\w.+-]+/[\w.+-]+(;.*)?$", max_length=127)]
    base64: str | None = None
    text: str | None = None


class Inbound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /_control/inbound: a person writes to an account."""

    channel: Channel
    account_id: str
    sender: Annotated[str, Meta(min_length=1, max_length=64)] = msgspec.field(name="from")
    name: Annotated[str, Meta(max_length=256)] = ""
    username: Annotated[str, Meta(max_length=64)] = ""
    text: Annotated[str, Meta(max_length=65_536)] = ""
    media: MediaIn | None = None
    reply_to: str | None = None
    raw: dict[str, Any] | None = None


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PUT /_control/replies: what each person answers, one text for each message that they read."""

    replies: dict[str, list[Annotated[str, Meta(min_length=1, max_length=65_536)]]]
    delay_ms: Millis = 300


class Reset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keep_switches: bool = False


class ControlApi:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def routes(self) -> list[Route]:
        return [
            Route("/_control/switches", self.show_switches, methods=["GET"]),
            Route("/_control/switches", self.turn_switches, methods=["PUT"]),
            Route("/_control/accounts/{account_id}/switches", self.show_own_switches, methods=["GET"]),
            Route("/_control/accounts/{account_id}/switches", self.turn_own_switches, methods=["PUT"]),
            Route("/_control/accounts/{account_id}/switches", self.forget_own_switches, methods=["DELETE"]),
            Route("/_control/accounts", self.show_accounts, methods=["GET"]),
            Route("/_control/accounts", self.replace_accounts, methods=["PUT"]),
            Route("/_control/accounts", self.add_account, methods=["POST"]),
            Route("/_control/accounts/{account_id}/verify", self.verify, methods=["POST"]),
            Route("/_control/inbound", self.say, methods=["POST"]),
            Route("/_control/inbound", self.said, methods=["GET"]),
            Route("/_control/messages", self.received, methods=["GET"]),
            Route("/_control/replies", self.show_script, methods=["GET"]),
            Route("/_control/replies", self.set_script, methods=["PUT"]),
            Route("/_control/stats", self.stats, methods=["GET"]),
            Route("/_control/reset", self.reset, methods=["POST"]),
        ]

    # --- switches and accounts

    async def show_switches(self, _request: Request) -> Response:
        return json_answer(msgspec.to_builtins(self._platform.switches))

    async def turn_switches(self, request: Request) -> Response:
        """Only those named change; naming the seed starts every stream of chances anew."""
        patch = _decoded(await read(request), dict[str, Any])
        try:
            changed = self._platform.switches.changed(patch)
        except msgspec.ValidationError as error:
            raise _invalid(error) from None
        self._platform.turn(changed, reseed="seed" in patch)
        log("switches", names=",".join(sorted(patch)))
        return await self.show_switches(request)

    async def show_own_switches(self, request: Request) -> Response:
        """How this account behaves."""
        account = self._account(request.path_params["account_id"], status=404)
        return json_answer(msgspec.to_builtins(self._platform.switches_of(account.account_id)))

    async def turn_own_switches(self, request: Request) -> Response:
        """Those named are this account's own from now on; the others stay those of all."""
        account = self._account(request.path_params["account_id"], status=404)
        patch = _decoded(await read(request), dict[str, Any])
        if "seed" in patch:
            raise ControlError("all accounts share the seed", field="seed")
        try:
            self._platform.turn_own(account.account_id, patch)
        except msgspec.ValidationError as error:
            raise _invalid(error) from None
        log("switches", names=",".join(sorted(patch)), account_id=account.account_id)
        return await self.show_own_switches(request)

    async def forget_own_switches(self, request: Request) -> Response:
        """It behaves like all others again."""
        self._platform.forget_own(self._account(request.path_params["account_id"], status=404).account_id)
        return await self.show_own_switches(request)

    async def show_accounts(self, _request: Request) -> Response:
        accounts = self._platform.accounts
        return json_answer({"accounts": [_account_view(accounts, each) for each in accounts.all()]})

    async def replace_accounts(self, request: Request) -> Response:
        try:
            self._platform.accounts.replace(parse_accounts(await read(request)))
        except msgspec.ValidationError as error:
            raise _invalid(error) from None
        except msgspec.DecodeError:
            raise _broken_json() from None
        except ValueError as error:
            raise ControlError(str(error), field="account_id") from None
        self._platform.verify_all()
        return await self.show_accounts(request)

    async def add_account(self, request: Request) -> Response:
        """Add one, or replace the one with its id."""
        account = _decoded(await read(request), Account)
        self._platform.accounts.put(account)
        self._platform.verify_soon(account.account_id)
        return json_answer(_account_view(self._platform.accounts, account), 201)

    async def verify(self, request: Request) -> Response:
        """Do the subscription's GET now and tell how it went."""
        account = self._account(request.path_params["account_id"], status=404)
        if not account.webhook_url:
            raise ControlError("the account has no webhook_url", field="webhook_url", code="no_webhook", status=409)
        await self._platform.webhooks.verify(account, self._platform.accounts.subscriptions[account.account_id])
        return json_answer(_account_view(self._platform.accounts, account))

    # --- people

    async def say(self, request: Request) -> Response:
        inbound = _decoded(await read(request, MAX_INBOUND_BYTES), Inbound)
        account = self._account(inbound.account_id)
        if account.channel != inbound.channel:
            raise ControlError(f"the account is on {account.channel}", field="channel")
        said = self._platform.say(account, _utterance(inbound))
        return json_answer(said, 201)

    async def said(self, request: Request) -> Response:
        """What people sent to us, in order."""
        query = _query(request, "from", "account_id")
        since, limit = _page_of(query)
        entries: list[Said] = []
        more = False
        for each in self._platform.ledger.said.since(since):
            if query.get("from", each.sender) == each.sender and query.get("account_id", each.account_id) == (
                each.account_id
            ):
                if len(entries) == limit:
                    more = True
                    break
                entries.append(each)
            since = each.seq
        return json_answer(
            {"inbound": entries, "next": since, "more": more, "oldest": self._platform.ledger.said.oldest}
        )

    async def show_script(self, _request: Request) -> Response:
        """What is still to be said."""
        people = self._platform.people
        return json_answer({"replies": people.script(), "delay_ms": people.reply_delay_ms})

    async def set_script(self, request: Request) -> Response:
        script = _decoded(await read(request, MAX_INBOUND_BYTES), Script)
        replies = {_person(sender, field="replies"): texts for sender, texts in script.replies.items()}
        self._platform.people.set_script(replies, delay_ms=script.delay_ms)
        return await self.show_script(request)

    # --- what happened

    async def received(self, request: Request) -> Response:
        """What the platform accepted from us, in order."""
        query = _query(request, "to", "account_id", "id", "correlation", "duplicates")
        since, limit = _page_of(query)
        ledger = self._platform.ledger
        entries: list[dict[str, Any]] = []
        more = False
        for each in ledger.received.since(since):
            attempts = ledger.attempts(each.correlation)
            if _matches(each, query, attempts):
                if len(entries) == limit:
                    more = True
                    break
                entries.append({**msgspec.to_builtins(each), "attempts": attempts})
            since = each.seq
        return json_answer({"messages": entries, "next": since, "more": more, "oldest": ledger.received.oldest})

    async def stats(self, _request: Request) -> Response:
        platform = self._platform
        webhooks = {
            **msgspec.to_builtins(platform.webhooks.delivery),
            "items_queued": platform.webhooks.pending,
            "items_scheduled": platform.scheduled,
            "pending": platform.webhooks.pending + platform.scheduled + platform.busy,
        }
        return json_answer({**platform.ledger.counts(), "webhooks": webhooks})

    async def reset(self, request: Request) -> Response:
        body = await read(request)
        wish = _decoded(body, Reset) if body else Reset()
        await self._platform.reset(keep_switches=wish.keep_switches)
        log("reset")
        return json_answer({"reset": True})

    def _account(self, account_id: str, *, status: int = 422) -> Account:
        account = self._platform.accounts.get(account_id)
        if account is None:
            raise ControlError("no such account", field="account_id", code="unknown_account", status=status)
        return account


def _utterance(inbound: Inbound) -> Utterance:
    if not (inbound.text or inbound.media or inbound.raw):
        raise ControlError("one of text, media and raw is needed", field="text")
    if inbound.channel == "instagram" and _SCOPED_ID.fullmatch(inbound.sender):
        raise ControlError("an Instagram id has digits only", field="from")
    if inbound.raw is not None and (inbound.text or inbound.media):
        raise ControlError("raw stands alone", field="raw")
    return Utterance(
        contact=_person(inbound.sender, field="from"),
        name=inbound.name,
        username=inbound.username,
        text=inbound.text,
        attached=_attached(inbound.media) if inbound.media else None,
        reply_to=inbound.reply_to,
        raw=inbound.raw,
    )


def _attached(media: MediaIn) -> Attached:
    if (media.base64 is None) == (media.text is None):
        raise ControlError("exactly one of base64 and text is needed", field="media")
    try:
        data = (
            base64.b64decode(media.base64, validate=True) if media.base64 is not None else (media.text or "").encode()
        )
    except (binascii.Error, ValueError):
        raise ControlError("not valid base64", field="media.base64") from None
    if len(data) > LARGEST:
        raise ControlError("the file is larger than 100 MB", field="media", status=413)
    return Attached(filename=media.filename, content_type=media.content_type, data=data)


def _person(text: str, *, field: str) -> str:
    if _SCOPED_ID.fullmatch(text):
        return text
    person = digits(text)
    if not _PERSON.fullmatch(person):
        raise ControlError("a person is a phone number or an Instagram id: 5 to 20 digits", field=field)
    return person


def _matches(message: Received, query: Mapping[str, str], attempts: int) -> bool:
    return (
        query.get("to", message.to) == message.to
        and query.get("account_id", message.account_id) == message.account_id
        and query.get("id", message.id) == message.id
        and ("correlation" not in query or query["correlation"] == message.correlation)
        and ("duplicates" not in query or (attempts > 1) == (query["duplicates"] == "true"))
    )


def _query(request: Request, *names: str) -> dict[str, str]:
    """The query's values. A name that does not exist is refused: a filter with a typo would show everything."""
    query = dict(request.query_params)
    for name in query:
        if name not in (*names, "since", "limit"):
            raise ControlError("no such parameter", field=name)
    for name in ("to", "from"):
        if name in query and not _SCOPED_ID.fullmatch(query[name]):
            query[name] = digits(query[name])
    if query.get("duplicates", "true") not in ("true", "false"):
        raise ControlError("true or false", field="duplicates")
    return query


def _page_of(query: Mapping[str, str]) -> tuple[int, int]:
    return _number(query, "since", 0, low=0, high=10**15), _number(query, "limit", 1000, low=1, high=MAX_PAGE)


def _number(query: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and low <= int(text) <= high):
        raise ControlError(f"a whole number from {low} to {high}", field=name)
    return int(text)


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _broken_json() from None


def _invalid(error: msgspec.ValidationError) -> ControlError:
    message, _, path = str(error).partition(" - at `$")
    named = re.search(r"field `([^`]+)`", message)  # missing and unknown fields are named in the sentence
    field = ".".join(part for part in (path.strip("`."), named[1] if named else "") if part)
    return ControlError(message, field=field)


def _broken_json() -> ControlError:
    return ControlError("the body is not JSON", code="broken_json", status=400)


def _account_view(accounts: Accounts, account: Account) -> dict[str, Any]:
    """An account without its secrets, and how its subscription stands."""
    hosted = accounts.get(account.account_id) or account
    return {
        "channel": hosted.channel,
        "account_id": hosted.account_id,
        "display_phone_number": hosted.display_phone_number,
        "webhook_url": hosted.webhook_url,
        "subscription": accounts.subscriptions[hosted.account_id],
    }
