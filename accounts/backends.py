"""Signing in to the admin."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.backends import ModelBackend
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from accounts import services
from accounts.errors import InvalidCredentials, TooManyAttempts
from accounts.models import User, split_login
from core.addresses import client_address


class WorkspaceBackend(ModelBackend):
    """By ``username`` in the default workspace, or ``workspace/username``; guarded like POST /auth/token."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **_: Any
    ) -> User | None:
        if not username or password is None:
            return None
        slug, name = split_login(username)
        given = services.Credentials(username=name, password=password, workspace=slug)
        try:
            address = client_address(request) if request else "local"
            return services.sign_in(given, address=address, door="admin")
        except InvalidCredentials:
            return None
        except TooManyAttempts as error:
            raise PermissionDenied(error.detail) from error  # no other backend is asked

    async def aauthenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        return await sync_to_async(self.authenticate)(request, username, password, **kwargs)
