"""What platforms call: verify the raw bytes, split the arrays, append. Understanding happens behind the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import ParseError
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from connectors import registry
from connectors.base import Connector, WebhookItem
from connectors.errors import BadSignature, BadWebhook, UnknownChannel
from core.clock import SYSTEM_CLOCK
from core.errors import Chat4AllError, NotFound, Unavailable
from core.text import storable
from messaging import channels, codec, topics, tracing, wiring
from messaging.channels import ChannelConfig
from messaging.domain import InboundEvent, InboundReceipts
from messaging.ports import NewRecord
from messaging.services import receipts

logger = logging.getLogger(__name__)

MAX_WEBHOOK_BYTES: Final = 4 * 1024 * 1024  # Meta sends up to 3 MB
MAX_ACCOUNTS: Final = 100  # beside the addressed one: each is a query


class WebhookTooLarge(Chat4AllError):
    code = "webhook_too_large"
    http_status = 413
    title = "The webhook is too large"


class WebhookView(APIView):
    """GET and POST /webhooks/{channel}/{account}: no token of ours, the account's secret instead."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(operation_id="verify_webhook", tags=["webhooks"], responses={(200, "text/plain"): OpenApiTypes.STR})
    def get(self, request: Request, channel: str, account: str) -> HttpResponse:
        """The platform's check of a subscription: its challenge comes back as plain text."""
        connector, ours = _addressed(channel, account)
        challenge = connector.answer_challenge(ours.account, request.query_params.dict())
        return HttpResponse(challenge, content_type="text/plain; charset=utf-8")

    @extend_schema(
        operation_id="receive_webhook",
        tags=["webhooks"],
        request=OpenApiTypes.OBJECT,
        responses={200: OpenApiTypes.OBJECT},
    )
    def post(self, request: Request, channel: str, account: str) -> Response:
        """News from a platform. 200 once all of it is on the event log."""
        connector, ours = _addressed(channel, account)
        body = _raw_body(request)
        connector.verify_signature(ours.account, request.headers, body)
        items = connector.split(ours.account, _decoded(body))
        named = _Named(connector, ours, request.headers, body)
        known = [(item, whose) for item in items if (whose := named.account(item.account_id))]
        if known:
            records = _records(channel, known, now_ms=SYSTEM_CLOCK.now_ms(), headers=tracing.of_request())
            wiring.event_log().append(records)
        if named.failure:  # it comes again as a whole: what is known by then is no news
            raise named.failure
        return Response({"received": len(known)})


def _records(
    channel: str,
    known: Sequence[tuple[WebhookItem, ChannelConfig]],
    *,
    now_ms: int,
    headers: Mapping[str, str],
) -> list[NewRecord]:
    """For each item that a person may have written one, in order; of each account one with all of its receipts."""
    records: list[NewRecord] = []
    payloads: dict[str, list[dict[str, object]]] = {}
    owners = {item.account_id: whose.workspace_id for item, whose in known}
    for item, whose in known:
        if item.receipt:
            payloads.setdefault(item.account_id, []).append(item.payload)
            continue
        event = InboundEvent(
            workspace_id=whose.workspace_id,
            channel=channel,
            account_id=item.account_id,
            contact=item.contact,
            payload=item.payload,
            received_at_ms=now_ms,
        )
        records.append(NewRecord(topics.INBOUND, f"{item.account_id}:{item.contact}", codec.encode(event), headers))
    for account_id, some in payloads.items():
        told = InboundReceipts(
            workspace_id=owners[account_id],
            channel=channel,
            account_id=account_id,
            payloads=tuple(some),
            received_at_ms=now_ms,
        )
        records += receipts.records_of(told, headers)
    return records


class _Named:
    """The accounts of ours that a webhook may tell news of: the one that was addressed, and others whose own secret
    signed it, too, as an app of Meta's has one address for all its accounts.

    ``failure`` is why something of it could not be taken that is ours, if so: an account could not be looked up, or has
    another secret than its neighbour, as while the app's is being replaced.
    """

    def __init__(self, connector: Connector, addressed: ChannelConfig, headers: Mapping[str, str], body: bytes) -> None:
        self._connector = connector
        self._workspace_id = addressed.workspace_id
        self._headers = headers
        self._body = body
        self._found: dict[str, ChannelConfig | None] = {addressed.account.account_id: addressed}
        self.failure: Unavailable | BadSignature | None = None

    def account(self, account_id: str) -> ChannelConfig | None:
        if account_id not in self._found:
            if len(self._found) > MAX_ACCOUNTS:
                raise BadWebhook(f"names more than {MAX_ACCOUNTS} accounts")
            self._found[account_id] = self._looked_up(account_id)
        return self._found[account_id]

    def _looked_up(self, account_id: str) -> ChannelConfig | None:
        if storable(account_id) != account_id:
            return None
        try:
            found = channels.account(self._connector.name, account_id)
        except Unavailable as error:
            self.failure = error
            return None
        return found if found and self._is_signed_for(found) else None

    def _is_signed_for(self, found: ChannelConfig) -> bool:
        try:
            self._connector.verify_signature(found.account, self._headers, self._body)
        except BadSignature as error:
            told = {"channel": found.account.channel, "account_id": found.account.account_id}
            logger.warning("a webhook tells news of an account that has another secret", extra=told)
            if found.workspace_id == self._workspace_id:
                self.failure = error
            return False
        return True


def _addressed(channel: str, account: str) -> tuple[Connector, ChannelConfig]:
    """Raises NotFound alike for a channel that we do not speak and an account that we do not have."""
    try:
        connector = registry.get(channel)
    except UnknownChannel:
        raise NotFound("no such channel account") from None
    ours = channels.account(channel, account)
    if ours is None:
        raise NotFound("no such channel account")
    return connector, ours


def _raw_body(request: Request) -> bytes:
    body: bytes = request._request.read(MAX_WEBHOOK_BYTES + 1)
    if len(body) > MAX_WEBHOOK_BYTES:
        raise WebhookTooLarge(f"at most {MAX_WEBHOOK_BYTES} bytes")
    return body


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError:
        raise BadWebhook("a JSON object is expected") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _with_lone_surrogates(body)
    except RecursionError:
        raise ParseError("the body is no JSON", code="malformed_json") from None


def _with_lone_surrogates(body: bytes) -> dict[str, Any]:
    """JSON that msgspec refuses for half a character: one person's cut emoji must not hold up a batch of others."""
    try:
        return msgspec.convert(_storable(json.loads(body)), type=dict[str, Any])
    except msgspec.ValidationError:
        raise BadWebhook("a JSON object is expected") from None
    except (ValueError, RecursionError):
        raise ParseError("the body is no JSON", code="malformed_json") from None


def _storable(value: Any) -> Any:
    match value:
        case str():
            return storable(value)
        case list():
            return [_storable(each) for each in value]
        case dict():
            return {storable(name): _storable(each) for name, each in value.items()}
        case _:
            return value
