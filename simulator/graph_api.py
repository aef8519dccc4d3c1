"""The endpoints that our connectors call, as on graph.facebook.com."""

from __future__ import annotations

import hmac
from typing import Final

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from simulator import instagram, whatsapp
from simulator.accounts import Account
from simulator.graph import GraphError, ReadReceipt, bad_token, decode_body, invalid, no_such_object
from simulator.http import Withheld, bounded, json_answer, read
from simulator.media import LARGEST, check_upload
from simulator.platform import Accepted, Platform

_MULTIPART_OVERHEAD_BYTES: Final = 64 * 1024


class GraphVersion(StringConvertor):
    """``v21.0`` in a path; whatever does not start so is none of Graph's paths."""

    regex = r"v[0-9]{1,3}\.[0-9]{1,2}"


register_url_convertor("graph_version", GraphVersion())


class GraphApi:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def send_route(self) -> Route:
        return Route("/{version:graph_version}/{account_id}/messages", self.messages, methods=["POST"])

    def routes(self) -> list[Route]:
        return [
            Route("/media/{media_id}", self.download, methods=["GET"]),
            Route("/{version:graph_version}/{account_id}/media", self.upload, methods=["POST"]),
            Route("/{version:graph_version}/{media_id}", self.media, methods=["GET"]),
        ]

    async def messages(self, request: Request) -> Response:
        """Send a message, or say that we have read one."""
        try:
            return await self._send(request)
        except GraphError as error:
            self._platform.ledger.refused[str(error.code)] += 1
            raise

    async def _send(self, request: Request) -> Response:
        await self._platform.call(request.path_params["account_id"])
        account = self._authenticated(request)
        body = decode_body(await read(request))
        parsed = whatsapp.parse_send(body) if account.channel == "whatsapp" else instagram.parse_send(body)
        if isinstance(parsed, ReadReceipt):
            self._platform.take_receipt(account, parsed)
            return json_answer({"success": True})
        return self._answer(await self._platform.send(account, parsed))

    def _answer(self, accepted: Accepted) -> Response:
        match accepted.how:
            case "answer":
                return json_answer(accepted.answer)
            case "garbage":
                return PlainTextResponse("<html>OK</html>")
            case "close":
                return Withheld()
            case "hang":
                return Withheld(hang_until=self._platform.closing)

    async def upload(self, request: Request) -> Response:
        await self._platform.call(request.path_params["account_id"])
        account = self._authenticated(request)
        if account.channel != "whatsapp":
            raise no_such_object()
        bounded_request = bounded(request, LARGEST + _MULTIPART_OVERHEAD_BYTES)
        try:
            async with bounded_request.form(max_files=1, max_fields=8) as form:
                if form.get("messaging_product") != "whatsapp":
                    raise invalid("The parameter messaging_product is required.")
                file, content_type = form.get("file"), form.get("type")
                if not isinstance(file, UploadFile):
                    raise invalid("The parameter file is required.")
                if not isinstance(content_type, str) or not content_type:
                    raise invalid("The parameter type is required.")
                data = await file.read()
                filename = file.filename or "file"
        except (MultiPartException, HTTPException):  # starlette raises the latter inside an application
            raise invalid("The request body is not valid multipart/form-data") from None
        check_upload(content_type, len(data))
        stored = self._platform.shelf.put(
            account_id=account.account_id, content_type=content_type, filename=filename, data=data
        )
        self._platform.ledger.media_uploaded += 1
        return json_answer({"id": stored.id})

    async def media(self, request: Request) -> Response:
        """Where a file is, for five minutes."""
        file = self._platform.shelf.get(request.path_params["media_id"])
        await self._platform.call(file.account_id if file else "")
        owner = self._platform.accounts.get(file.account_id) if file else None
        if file is None or owner is None:
            raise no_such_object() if self._platform.accounts.knows_token(_bearer(request)) else bad_token()
        _check_token(request, owner)
        path = self._platform.shelf.signed_path(file, ttl_s=self._platform.switches_of(file.account_id).media_url_ttl_s)
        return json_answer(
            {
                "messaging_product": "whatsapp",
                "url": str(request.base_url).rstrip("/") + path,
                "mime_type": file.content_type,
                "sha256": file.sha256,
                "file_size": len(file.data),
                "id": file.id,
            }
        )

    async def download(self, request: Request) -> Response:
        """The bytes. Needs the Bearer, but for what people sent on Instagram."""
        query = request.query_params
        media_id, access = request.path_params["media_id"], query.get("access", "")
        file = self._platform.shelf.get(media_id)
        await self._platform.call(file.account_id if file else "")
        valid = self._platform.shelf.opens(
            media_id, access=access, expires=query.get("expires", ""), signature=query.get("sig", "")
        )
        owner = self._platform.accounts.get(file.account_id) if file else None
        if file is None or owner is None or not valid:
            # Instagram's CDN forbids what Graph does not find.
            return PlainTextResponse("URL signature expired", 403 if access == "public" else 404)
        if access != "public":
            _check_token(request, owner)
        return Response(file.data, headers={"Content-Type": file.content_type})

    def _authenticated(self, request: Request) -> Account:
        """The account in the path, if the Bearer is its own."""
        account = self._platform.accounts.get(request.path_params["account_id"])
        if account is None:
            raise no_such_object() if self._platform.accounts.knows_token(_bearer(request)) else bad_token()
        _check_token(request, account)
        return account


def _check_token(request: Request, account: Account) -> None:
    if not hmac.compare_digest(_bearer(request).encode(), account.access_token.encode()):
        raise bad_token()


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
