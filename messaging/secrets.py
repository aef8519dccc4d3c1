"""Secrets at rest: a JSON field whose column holds only ciphertext, and whose value never shows in a repr."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models

from messaging.errors import SecretsUnreadable

_PURPOSE: Final = b"chat4all channel credentials v1"


class Credentials(dict[str, str]):
    """Names to secrets. Printing it shows the names only."""

    def __repr__(self) -> str:
        return f"<Credentials {', '.join(sorted(self)) or 'none'}>"

    __str__ = __repr__


def seal(values: Mapping[str, str]) -> str:
    """Ciphertext of the values, different each time."""
    return _cipher().encrypt(json.dumps(dict(values)).encode()).decode()


def unseal(token: str) -> Credentials:
    """What was sealed. Raises SecretsUnreadable."""
    try:
        return Credentials(json.loads(_cipher().decrypt(token.encode())))
    except InvalidToken:
        raise SecretsUnreadable from None


def _cipher() -> MultiFernet:
    """Seals with the current key; unseals with that or a former one, so that a key can be changed while running."""
    return _cipher_of((settings.CHANNEL_SECRETS_KEY, *getattr(settings, "CHANNEL_SECRETS_OLD_KEYS", ())))


@lru_cache(maxsize=4)
def _cipher_of(secrets: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(_derived(secret)) for secret in secrets])


def _derived(secret: str) -> bytes:
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret.encode())
    return base64.urlsafe_b64encode(key)


if TYPE_CHECKING:
    _CredentialsField = models.TextField[Mapping[str, str], Credentials]
else:
    _CredentialsField = models.TextField


class EncryptedJSONField(_CredentialsField):
    """A flat object of strings, encrypted. It cannot be searched, and no form or admin page offers it."""

    description = "Encrypted JSON"

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("default", Credentials)
        kwargs["editable"] = False
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def from_db_value(self, value: str | None, _expression: object, _connection: object) -> Credentials | None:
        return None if value is None else unseal(value)

    def to_python(self, value: object) -> Credentials | None:
        if value is None:
            return None
        if isinstance(value, str):
            return unseal(value)
        if isinstance(value, Mapping) and all(isinstance(each, str) for pair in value.items() for each in pair):
            return Credentials(value)
        raise ValidationError("Credentials are an object of strings.", code="invalid")

    def get_prep_value(self, value: object) -> str | None:
        if value is None:
            return None
        return seal(self.to_python(value) or {}) if not isinstance(value, str) else value

    def value_to_string(self, obj: models.Model) -> str:
        """A fixture holds ciphertext too."""
        return seal(self.value_from_object(obj))
