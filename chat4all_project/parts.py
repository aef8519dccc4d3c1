"""URLs of parts -> what Django's settings want to know of them."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from chat4all_project.env import env

_SQLITE: Final = {
    "CONN_MAX_AGE": None,
    "OPTIONS": {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-16000;",
    },
}
_POSTGRES: Final = ("django.db.backends.postgresql", "core.postgres")
_IDLE_S: Final = 60
_RECONNECT_S: Final = 3  # psycopg's 300 s, with doubling pauses, would outlast many an outage by minutes
_IN_TRANSACTION_MS: Final = 60_000  # a client that froze must not hold its locks for ever
_CONNECT_S: Final = 2


def database(url: str) -> dict[str, object]:
    """Django's settings for a database. Options in the URL's query win over ours (``?sslmode=verify-full``)."""
    config: dict[str, Any] = dict(env.db_url_config(url))
    if config["ENGINE"] == "django.db.backends.sqlite3":
        return {**config, **_SQLITE}
    if config["ENGINE"] in _POSTGRES:
        return {
            **config,
            "ENGINE": "core.postgres",
            "CONN_MAX_AGE": 0,  # back to the pool after each request
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {**_postgres_options(), **config.get("OPTIONS", {})},
        }
    raise ImproperlyConfigured(
        "DATABASE_URL and MESSAGES_DATABASE_URL name SQLite or PostgreSQL. Hint: postgres://user:password@host:5432/name"
    )


def _postgres_options() -> dict[str, object]:
    from core.postgres.base import BoundedConnection  # noqa: PLC0415 - the local profile has no psycopg

    statement_s = env.float("DATABASE_STATEMENT_TIMEOUT_S", default=10.0)
    return {
        "connect_timeout": _CONNECT_S,
        "application_name": f"chat4all {env.str('SERVICE', default='manage')}",
        "options": f"-c statement_timeout={int(statement_s * 1000)} "
        f"-c idle_in_transaction_session_timeout={_IN_TRANSACTION_MS}",
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 5_000,  # ms that sent bytes may stay without a sign from the other side's kernel
        "answer_timeout_s": statement_s + 2 if statement_s else None,  # for a server that froze
        "pool": {
            "min_size": 0,
            "max_size": env.int("DATABASE_POOL_SIZE", default=16),
            "timeout": env.float("DATABASE_POOL_TIMEOUT_S", default=3.0),
            "max_idle": _IDLE_S,
            "reconnect_timeout": _RECONNECT_S,
            "connection_class": BoundedConnection,
        },
    }


# --- files -------------------------------------------------------------------------------------------------------

_S3_OPTIONS: Final = ("endpoint", "public_endpoint", "region", "timeout")
_FILES_HINT: Final = (
    "Hint: FILES_URL=file:///srv/files or FILES_URL=s3://key:secret@bucket?endpoint=https://s3.example.com "
    "(percent-encode what is special in key and secret)"
)


def file_storage(url: str) -> dict[str, object]:
    """STORAGES["default"] for FILES_URL. What is wrong is told without quoting it: it holds a secret."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc and not parts.query:
        return {"BACKEND": "files.storage.LocalStorage", "OPTIONS": {"location": unquote(parts.path)}}
    if parts.scheme == "s3":
        return {"BACKEND": "files.s3.BucketStorage", "OPTIONS": _bucket(parts)}
    raise ImproperlyConfigured(f"FILES_URL is neither a folder (file:///…) nor a bucket (s3://…). {_FILES_HINT}")


def _bucket(parts: SplitResult) -> dict[str, str]:
    keys, _, bucket = parts.netloc.rpartition("@")
    access_key, _, secret_key = keys.partition(":")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not bucket or ":" in bucket or parts.path.strip("/") or parts.fragment:
        raise ImproperlyConfigured(f"FILES_URL must name a bucket and nothing behind it. {_FILES_HINT}")
    if bool(access_key) != bool(secret_key):
        raise ImproperlyConfigured(f"FILES_URL has a key or a secret without the other. {_FILES_HINT}")
    if unknown := options.keys() - set(_S3_OPTIONS):
        raise ImproperlyConfigured(f"FILES_URL has unknown options: {', '.join(sorted(unknown))}. {_FILES_HINT}")
    for name in ("endpoint", "public_endpoint"):
        if name in options and not _is_http(options[name]):
            raise ImproperlyConfigured(f"FILES_URL: {name} must begin with http:// or https://. {_FILES_HINT}")
    if not _is_seconds(options.get("timeout", "1")):
        raise ImproperlyConfigured(f"FILES_URL: timeout is in seconds, more than 0. {_FILES_HINT}")
    return {"bucket": bucket, "access_key": unquote(access_key), "secret_key": unquote(secret_key), **options}


def _is_http(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _is_seconds(text: str) -> bool:
    try:
        return 0 < float(text) < 3600
    except ValueError:
        return False
