"""Registration, tokens and users over REST."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import NotAuthenticated
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.status import HTTP_201_CREATED, HTTP_204_NO_CONTENT
from rest_framework.views import APIView

from accounts import directory, serializers, services, tokens
from accounts.authentication import principal
from accounts.models import User
from core.addresses import client_address
from core.serializers import StrictSerializer

_NO_STORE = {"Cache-Control": "no-store"}


def _parsed(serializer: type[StrictSerializer], data: object) -> dict[str, Any]:
    checked = serializer(data=data)
    checked.is_valid(raise_exception=True)
    values: dict[str, Any] = checked.validated_data
    return values


class OpenView(APIView):
    """For everybody: a token that happens to be sent along, even an expired one, is not looked at."""

    authentication_classes = ()
    permission_classes = (AllowAny,)


class RegisterView(OpenView):
    """POST /auth/register"""

    @extend_schema(
        operation_id="register",
        tags=["auth"],
        request=serializers.RegistrationSerializer,
        responses={201: serializers.AccountAnswer},
    )
    def post(self, request: Request) -> Response:
        """Register a user."""
        wanted = services.Registration(**_parsed(serializers.RegistrationSerializer, request.data))
        user = services.register(wanted, address=client_address(request))
        return Response(serializers.account_json(user), HTTP_201_CREATED)


class TokenView(OpenView):
    """POST /auth/token"""

    @extend_schema(
        operation_id="sign_in",
        tags=["auth"],
        request=serializers.CredentialsSerializer,
        responses=serializers.TokenAnswer,
    )
    def post(self, request: Request) -> Response:
        """Sign in: an access token for an hour, and a refresh token."""
        given = services.Credentials(**_parsed(serializers.CredentialsSerializer, request.data))
        user = services.sign_in(given, address=client_address(request), door="API")
        return Response(serializers.tokens_json(tokens.open_session(user)), headers=_NO_STORE)


class RefreshView(OpenView):
    """POST /auth/token/refresh"""

    @extend_schema(
        operation_id="refresh_token",
        tags=["auth"],
        request=serializers.RefreshSerializer,
        responses=serializers.TokenAnswer,
    )
    def post(self, request: Request) -> Response:
        """New tokens for a refresh token, which is used up by that."""
        given = _parsed(serializers.RefreshSerializer, request.data)
        return Response(serializers.tokens_json(tokens.refresh(given["refresh_token"])), headers=_NO_STORE)


class LogoutView(OpenView):
    """POST /auth/logout"""

    @extend_schema(operation_id="sign_out", tags=["auth"], request=serializers.RefreshSerializer, responses={204: None})
    def post(self, request: Request) -> Response:
        """Sign out: the session of this refresh token ends. An access token works until its hour is over."""
        given = _parsed(serializers.RefreshSerializer, request.data)
        tokens.close_session(given["refresh_token"], address=client_address(request))
        return Response(status=HTTP_204_NO_CONTENT, headers=_NO_STORE)


class JwksView(OpenView):
    """GET /.well-known/jwks.json"""

    @extend_schema(operation_id="jwks", tags=["auth"], responses=serializers.JwksAnswer)
    def get(self, _request: Request) -> Response:
        """The public key that our tokens are signed with (RFC 7517)."""
        return Response(tokens.jwks(), headers={"Cache-Control": "public, max-age=300"})


class MeView(APIView):
    """GET /v1/users/me"""

    @extend_schema(operation_id="me", tags=["users"], responses=serializers.AccountAnswer)
    def get(self, request: Request) -> Response:
        """Who you are."""
        user = User.objects.select_related("workspace").filter(public_id=principal(request).user_id).first()
        if user is None:  # deleted since its token was checked
            raise NotAuthenticated
        return Response(serializers.account_json(user))


class UsersView(APIView):
    """GET /v1/users?username=bob"""

    @extend_schema(
        operation_id="find_user",
        tags=["users"],
        parameters=[serializers.UserQuerySerializer],
        responses=serializers.UserListAnswer,
    )
    def get(self, request: Request) -> Response:
        """The user of that name in your workspace, if there is one."""
        wanted = _parsed(serializers.UserQuerySerializer, request.query_params)
        found = directory.named(principal(request).workspace_id, wanted["username"])
        return Response({"items": [serializers.user_json(found)] if found else []})
