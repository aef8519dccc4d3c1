"""What the accounts API takes and answers."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from django.utils import timezone
from rest_framework import serializers

from accounts.directory import UserInfo
from accounts.models import (
    DEFAULT_WORKSPACE_SLUG,
    MAX_DISPLAY_NAME_CHARS,
    MAX_SLUG_CHARS,
    MAX_USERNAME_CHARS,
    USERNAME_PATTERN,
    User,
)
from accounts.tokens import MAX_TOKEN_CHARS, TokenPair
from core.clock import iso_utc
from core.serializers import StrictSerializer, TextField

MAX_PASSWORD_CHARS: Final = 256


class UsernameField(TextField, serializers.RegexField):
    def __init__(self) -> None:
        super().__init__(
            regex=USERNAME_PATTERN,
            trim_whitespace=False,
            error_messages={"invalid": "3 to 64 of: letters, digits, dot, underscore, hyphen."},
        )


class RegistrationSerializer(StrictSerializer):
    username = UsernameField()
    password = TextField(max_length=MAX_PASSWORD_CHARS, trim_whitespace=False)
    display_name = TextField(max_length=MAX_DISPLAY_NAME_CHARS, required=False, allow_blank=True, default="")
    workspace = TextField(max_length=MAX_SLUG_CHARS, required=False, default=DEFAULT_WORKSPACE_SLUG)


class CredentialsSerializer(StrictSerializer):
    username = TextField(max_length=MAX_USERNAME_CHARS, trim_whitespace=False)
    password = TextField(max_length=MAX_PASSWORD_CHARS, trim_whitespace=False)
    workspace = TextField(max_length=MAX_SLUG_CHARS, required=False, default=DEFAULT_WORKSPACE_SLUG)


class RefreshSerializer(StrictSerializer):
    refresh_token = TextField(max_length=MAX_TOKEN_CHARS)


class UserQuerySerializer(StrictSerializer):
    username = TextField(max_length=MAX_USERNAME_CHARS, trim_whitespace=False)


class TokenAnswer(serializers.Serializer[None]):
    access_token = serializers.CharField()
    refresh_token = serializers.CharField()
    token_type = serializers.CharField(default="Bearer")
    expires_in = serializers.IntegerField(help_text="Seconds that the access token is good for.")
    user_id = serializers.CharField()
    token = serializers.CharField(help_text="The access token once more, for older clients.")


class AccountAnswer(serializers.Serializer[None]):
    user_id = serializers.CharField()
    username = serializers.CharField()
    display_name = serializers.CharField()
    workspace = serializers.CharField()
    created_at = serializers.DateTimeField()


class UserAnswer(serializers.Serializer[None]):
    user_id = serializers.CharField()
    username = serializers.CharField()
    display_name = serializers.CharField()


class UserListAnswer(serializers.Serializer[None]):
    items = UserAnswer(many=True)


class JwksAnswer(serializers.Serializer[None]):
    keys = serializers.ListField(child=serializers.DictField(child=serializers.CharField()))


def account_json(user: User) -> dict[str, str]:
    return {
        "user_id": user.public_id,
        "username": user.username,
        "display_name": user.display_name or user.username,
        "workspace": user.workspace.slug,
        "created_at": _iso(user.created_at),
    }


def user_json(info: UserInfo) -> dict[str, str]:
    return {"user_id": info.user_id, "username": info.username, "display_name": info.display_name}


def tokens_json(pair: TokenPair) -> dict[str, object]:
    return {
        "access_token": pair.access,
        "refresh_token": pair.refresh,
        "token_type": "Bearer",
        "expires_in": pair.expires_in_s,
        "user_id": pair.user_id,
        "token": pair.access,
    }


def _iso(moment: datetime) -> str:
    return iso_utc(int(timezone.localtime(moment).timestamp() * 1000))
