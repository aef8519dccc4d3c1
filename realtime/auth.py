"""Who opens a socket: the access token from the handshake, and until when it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from channels.db import database_sync_to_async

from accounts.tokens import Principal, principal_from_token

SUBPROTOCOL = "chat4all"
BEARER = "bearer."
ACCESS_TOKEN = "access_token"  # noqa: S105 - the name of a subprotocol


@dataclass(frozen=True, slots=True)
class Handshake:
    """What the client asked for. ``subprotocol`` must be echoed, or browsers drop the connection."""

    token: str = field(repr=False)
    subprotocol: str | None
    epoch: str
    since: int | None  # None: a new client, nothing to resume; -1: unreadable, so resync

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Handshake:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        token, subprotocol = _from_subprotocols(scope.get("subprotocols", ()))
        since = query.get("since", [None])[0]
        return cls(
            token=token or query.get("token", [""])[0],
            subprotocol=subprotocol,
            epoch=query.get("epoch", [""])[0],
            since=None if since is None else _sequence(since),
        )


def _sequence(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else -1


def _from_subprotocols(offered: Sequence[str]) -> tuple[str, str | None]:
    """``chat4all, bearer.<token>`` or ``access_token, <token>``: the only header that a browser lets a page choose."""
    if len(offered) >= 2 and offered[0] == ACCESS_TOKEN:
        return offered[1], ACCESS_TOKEN
    bearer = next((each.removeprefix(BEARER) for each in offered if each.startswith(BEARER)), "")
    return bearer, SUBPROTOCOL if SUBPROTOCOL in offered else None


@dataclass(frozen=True, slots=True)
class Session:
    """A verified token. It is kept to be asked again whether the user is still active."""

    principal: Principal
    token: str = field(repr=False)


async def verify(token: str) -> Session:
    """Raises accounts.errors.InvalidToken or TokenExpired."""
    return Session(await database_sync_to_async(principal_from_token)(token), token)
