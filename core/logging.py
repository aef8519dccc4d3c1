"""Structured logs: one JSON object per line on stderr, with the request and the message that it is about.

Every process calls `configure`: Django does through LOGGING_CONFIG, Celery through its `setup_logging` signal.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.msgspec import MsgspecFormatter, msgspec_default

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_message_id: ContextVar[str | None] = ContextVar("message_id", default=None)

SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Django adds the request itself, whose repr shows the query string: sockets and webhooks carry tokens there.
_NEVER_LOGGED: Final = ("request", "response", "taskName", "color_message")

# Of a word; lines are looked at as they are written, where one that begins a line stands behind the n of a \n.
_BEGIN: Final = r"(?:\b|(?<=\\[nrt]))"

# What any match has in it, in lower case: most lines have none of it, and an expression takes longer to see that.
_TOKENS: Final = (
    ("bearer", re.compile(rf"{_BEGIN}Bearer\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE), "Bearer [redacted]"),
    ("eyj", re.compile(rf"{_BEGIN}eyJ[\w-]+\.[\w-]+\.[\w-]*"), "[token]"),
    (
        "token=",
        re.compile(rf"{_BEGIN}((?:access_|refresh_|verify_)?token=)[^&\s\"'\\]+", re.IGNORECASE),
        r"\1[redacted]",
    ),
)
_PHONE_MARKS: Final = ("+", "whatsapp", "sms", "tel", "wa_id")
_PHONE: Final = re.compile(rf"(?P<mark>\+|{_BEGIN}(?:whatsapp|sms|tel|wa_id)\W{{1,4}})(?P<digits>\d{{8,15}})(?!\d)")


def request_id() -> str | None:
    """The id of the request being served, None outside of one."""
    return _request_id.get()


@contextmanager
def bind(*, request_id: str | None = None, message_id: object = None) -> Iterator[None]:
    """Name the request or the message in every line logged inside; what is not given stays as it is."""
    bound = [
        (variable, variable.set(variable.get() if value is None else str(value)))
        for variable, value in ((_request_id, request_id), (_message_id, message_id))
    ]
    try:
        yield
    finally:
        for variable, token in reversed(bound):
            variable.reset(token)


def concern(message_id: object) -> None:
    """Name the message in every line from here to the end of the `bind` around this."""
    _message_id.set(str(message_id))


def redact(text: str) -> str:
    """The same text without what looks like a bearer token, and with phone numbers masked: +55119****8888."""
    lowered = text.lower()
    for part, pattern, replacement in _TOKENS:
        if part in lowered:
            text = pattern.sub(replacement, text)
    return _PHONE.sub(_masked, text) if any(mark in lowered for mark in _PHONE_MARKS) else text


def _masked(match: re.Match[str]) -> str:
    digits = match["digits"]
    shown = 5 if len(digits) >= 12 else 2
    return f"{match['mark']}{digits[:shown]}{'*' * (len(digits) - shown - 4)}{digits[-4:]}"


class _Context(logging.Filter):
    """Adds service, request_id and message_id."""

    def __init__(self, service: str = "") -> None:
        super().__init__()
        self._service = service

    def filter(self, record: logging.LogRecord) -> bool:
        record.service = self._service
        for name, variable in (("request_id", _request_id), ("message_id", _message_id)):
            if getattr(record, name, None) is None and (value := variable.get()) is not None:
                setattr(record, name, value)
        return True


def _plain(value: object) -> str:
    return str.__str__(value) if isinstance(value, str) else repr(value)


def _default(value: object) -> object:
    """What msgspec does not know by itself; str() of Django's SafeString is a SafeString again."""
    return str.__str__(value) if isinstance(value, str) else msgspec_default(value)


class JsonLines(MsgspecFormatter):
    """One JSON object per record. The whole line is redacted: extras and tracebacks leak as messages do."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, *_NEVER_LOGGED],
            json_default=_default,
        )

    def add_fields(
        self, log_data: dict[str, object], record: logging.LogRecord, message_dict: dict[str, object]
    ) -> None:
        at = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
        log_data["time"] = at.replace("+00:00", "Z")
        super().add_fields(log_data, record, message_dict)

    def jsonify_log_record(self, log_data: dict[str, object]) -> str:
        try:
            return super().jsonify_log_record(log_data)
        except Exception:  # half a character, say, which is none for msgspec: told escaped
            return json.dumps({str(name): _plain(value) for name, value in log_data.items()})

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def configure(config: Mapping[str, str]) -> None:
    """Send everything to stderr as JSON lines; ``config`` has ``service`` and ``level``. May be called again."""
    # Asked for with each line, and in none of ours.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"context": {"()": _Context, "service": config.get("service", "")}},
            "formatters": {"json": {"()": JsonLines}},
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "filters": ["context"], "formatter": "json"},
            },
            "root": {"level": config.get("level", "INFO").upper(), "handlers": ["stderr"]},
            "loggers": {
                # Django's own set-up gives these handlers of their own; one line on one stream is enough.
                "django": {"handlers": [], "propagate": True},
                "django.server": {"handlers": [], "propagate": True},
                # Repeats the access line without a request id; exceptions are logged by `core.problems.server_error`.
                "django.request": {"level": "CRITICAL"},
                "httpx": {"level": "WARNING"},  # logs whole URLs
                "httpcore": {"level": "WARNING"},
            },
        }
    )
