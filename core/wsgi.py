"""Between a WSGI server and Django."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.utils.http import parse_header_parameters

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class TextCharsetsOnly:
    """Hides content types from Django whose requests cannot even be built with them: a charset that is no text encoding
    (rot13 is a codec, too), or a parameter in an encoding that nobody knows. A client could cause a 500 that no
    middleware sees. RequestIdMiddleware then refuses the request."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        content_type = environ.get("CONTENT_TYPE", "")
        if ";" in content_type and not _is_text(content_type):
            environ["CONTENT_TYPE"] = "application/octet-stream; charset=unknown"
        return self._application(environ, start_response)


def _is_text(content_type: str) -> bool:
    try:
        charset = parse_header_parameters(content_type)[1].get("charset", "utf-8")
        b"x".decode(charset)  # of no bytes, any codec would do
    except (LookupError, ValueError):  # ValueError: a NUL in the name, or x is not enough: UTF-16
        return False
    return True
