"""Bearer tokens for REST views."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import NotAuthenticated
from rest_framework.request import Request

from accounts.errors import InvalidToken
from accounts.tokens import Principal, principal_from_token


def principal(request: Request) -> Principal:
    """Who sends this request, in a view that only signed-in users reach."""
    user: object = request.user
    if not isinstance(user, Principal):
        raise NotAuthenticated
    return user


class TokenAuthentication(BaseAuthentication):
    """``Authorization: Bearer <access token>``; ``request.user`` is then a Principal."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = token.strip()
        if not token.isascii() or not token:
            raise InvalidToken
        return principal_from_token(token), None

    def authenticate_header(self, request: Request) -> str:  # noqa: ARG002 - DRF's signature
        return 'Bearer realm="chat4all"'
