"""The environment, typed: every variable is read here or in settings, and named in docs/configuration.md."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import environ
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.core.exceptions import ImproperlyConfigured

BASE_DIR: Final = Path(__file__).resolve().parent.parent
env = environ.Env()

MIN_SECRET_CHARS: Final = 40
MIN_RSA_BITS: Final = 2048
PROFILES: Final = ("local", "production")
FRESH_KEY: Final = "Hint: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
FRESH_RSA_KEY: Final = "Hint: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048"

# What stands in templates and tutorials; compared without case and punctuation.
_PLACEHOLDERS: Final = (
    "insecure", "changeme", "changethis", "replace", "example", "placeholder", "yoursecret", "secretkey", "password",
)  # fmt: skip


def is_production() -> bool:
    """Whether CHAT4ALL_ENV asks for production. A misspelt one must not quietly run the open local profile."""
    profile: str = env.str("CHAT4ALL_ENV", default="local")
    if profile not in PROFILES:
        raise ImproperlyConfigured(f"CHAT4ALL_ENV is neither {' nor '.join(PROFILES)}. Hint: CHAT4ALL_ENV=production")
    return profile == "production"


def state_dir() -> Path:
    """Where the local profile keeps everything: databases, files, generated keys, logs."""
    path = Path(env.str("STATE_DIR", default=str(BASE_DIR / ".chat4all"))).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _generated(path: Path, make: str) -> str:
    """The content of a private file of the local profile, made on first use; two processes starting at once agree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.new")
    if not path.exists():
        draft.touch(mode=0o600)
        draft.write_text(make)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first: its content counts
        finally:
            draft.unlink()
    return path.read_text()


def secret(name: str, *, production: bool) -> str:
    """A secret from the environment. Local: generated into the state folder; production: no start without one."""
    value: str = env.str(name, default="")
    if not value and not production:
        return _generated(state_dir() / "keys" / name.lower(), secrets.token_urlsafe(48))
    if not value:
        raise ImproperlyConfigured(f"{name} is not set. {FRESH_KEY}")
    _refuse_weak(name, value)
    return value


def old_secrets(name: str, *, production: bool) -> list[str]:
    """Earlier values of a secret: what they protect is only as safe as they are."""
    values: list[str] = env.list(name, default=[])
    for value in values if production else ():
        _refuse_weak(name, value)
    return values


def _refuse_weak(name: str, value: str) -> None:
    plain = "".join(char for char in value.lower() if char.isalnum())
    if any(phrase in plain for phrase in _PLACEHOLDERS):
        raise ImproperlyConfigured(f"{name} is a placeholder out of a template. {FRESH_KEY}")
    repeats = value in (value + value)[1:-1]
    if len(value) < MIN_SECRET_CHARS or len(set(value)) < 10 or repeats:
        raise ImproperlyConfigured(
            f"{name} is too weak: it needs at least {MIN_SECRET_CHARS} random characters. {FRESH_KEY}"
        )


def refuse_equal(**secret_values: str) -> None:
    """Two keys of one value are one key: whoever gets hold of the one has the other."""
    if len(set(secret_values.values())) < len(secret_values):
        raise ImproperlyConfigured(f"{' and '.join(secret_values)} must differ. {FRESH_KEY}")


def allowed_hosts(*, production: bool) -> list[str]:
    """The names under which the API answers; production: named one by one."""
    hosts: list[str] = env.list("ALLOWED_HOSTS", default=[] if production else ["*"])
    if production and not hosts:
        raise ImproperlyConfigured("ALLOWED_HOSTS is not set. Hint: ALLOWED_HOSTS=chat.example.com")
    if production and any("*" in host for host in hosts):
        raise ImproperlyConfigured("ALLOWED_HOSTS must name the hosts. Hint: ALLOWED_HOSTS=chat.example.com")
    return hosts


def public_url(name: str, *, local: str, scheme: str, production: bool) -> str:
    """Where others reach a part of ours. Production: set, and over TLS, for tokens travel there."""
    url: str = env.str(name, default="" if production else local).rstrip("/")
    hint = f"Hint: {name}={scheme}://chat.example.com"
    if not url:
        raise ImproperlyConfigured(f"{name} is not set. {hint}")
    if production and (urlsplit(url).scheme != scheme or not urlsplit(url).hostname):
        raise ImproperlyConfigured(f"{name} must begin with {scheme}:// in production. {hint}")
    return url


def jwt_private_key(*, production: bool) -> rsa.RSAPrivateKey:
    """The RSA key that signs tokens: JWT_PRIVATE_KEY (PEM) or JWT_PRIVATE_KEY_FILE."""
    pem = env.str("JWT_PRIVATE_KEY", default="").replace("\\n", "\n")
    if not pem and (file := env.str("JWT_PRIVATE_KEY_FILE", default="")):
        pem = _read("JWT_PRIVATE_KEY_FILE", Path(file))
    if not pem:
        if production:
            raise ImproperlyConfigured(f"JWT_PRIVATE_KEY or JWT_PRIVATE_KEY_FILE is not set. {FRESH_RSA_KEY}")
        file_path = state_dir() / "keys" / "jwt_private_key.pem"
        pem = file_path.read_text() if file_path.exists() else _generated(file_path, _new_rsa_pem())
    return _rsa_key(pem)


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(
            f"The file that {name} names cannot be read ({type(error).__name__}). "
            f"Hint: it must exist, hold PEM and be readable for this user"
        ) from None


def _rsa_key(pem: str) -> rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the cause may quote the key: it is not shown
        raise ImproperlyConfigured(
            f"JWT_PRIVATE_KEY is no private key in PEM without password. {FRESH_RSA_KEY}"
        ) from None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < MIN_RSA_BITS:
        raise ImproperlyConfigured(
            f"JWT_PRIVATE_KEY must be an RSA key of at least {MIN_RSA_BITS} bits. {FRESH_RSA_KEY}"
        )
    return key


def _new_rsa_pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=MIN_RSA_BITS)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
