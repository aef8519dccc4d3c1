"""Every failure as RFC 9457 problem JSON; docs/errors.md lists the codes.

The type of an exception decides; a client reads ``code``, a person ``detail``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgspec
from django.core import exceptions as django_errors
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.views import csrf
from rest_framework import exceptions as drf
from rest_framework.views import set_rollback

from core.errors import Chat4AllError, FieldError
from core.logging import request_id

logger = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/problem+json"
_MAX_FIELD_ERRORS: Final = 50  # a list of ten thousand wrong values needs no ten thousand explanations


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong, as a client sees it."""

    status: int
    code: str
    title: str
    detail: str = ""
    fields: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Without the request's id."""
        body: dict[str, object] = {
            "type": f"urn:chat4all:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail or self.title,
        }
        if self.fields:
            body["errors"] = [asdict(each) for each in self.fields[:_MAX_FIELD_ERRORS]]
        return body

    def response(self) -> HttpResponse:
        body = {**self.as_json(), "request_id": request_id()}
        return HttpResponse(
            msgspec.json.encode(body), status=self.status, content_type=CONTENT_TYPE, headers=dict(self.headers)
        )


def exception_handler(error: Exception, _context: Mapping[str, Any]) -> HttpResponse:
    """For REST_FRAMEWORK["EXCEPTION_HANDLER"]: answers everything, so that no view needs a ``try``."""
    set_rollback()
    return problem_of(error).response()


def problem_of(error: Exception) -> Problem:
    """What a client is told about an exception. What nobody raised on purpose is logged and told as ``internal``."""
    if isinstance(error, Chat4AllError):
        return _of_ours(error)
    if isinstance(error, drf.APIException):
        return _of_drf(error)
    return _of_django(error)


INTERNAL: Final = Problem(
    500, "internal", "Internal error", "This is our fault. Tell us the request id and we can find out why."
)


def _of_ours(error: Chat4AllError) -> Problem:
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers.setdefault("Retry-After", _seconds(error.retry_after_s))
    if error.http_status >= 500 and error.code == "internal":
        logger.error("unhandled %s", type(error).__name__, exc_info=error)
    return Problem(error.http_status, error.code, error.title, error.detail, error.fields, headers)


_DRF: Final[dict[type[drf.APIException], tuple[str, str]]] = {
    drf.NotAuthenticated: ("not_authenticated", "Sign in first"),
    drf.AuthenticationFailed: ("not_authenticated", "Sign in first"),
    drf.PermissionDenied: ("permission_denied", "Not allowed"),
    drf.NotFound: ("not_found", "Not found"),
    drf.MethodNotAllowed: ("method_not_allowed", "This address has no such method"),
    drf.NotAcceptable: ("not_acceptable", "We cannot answer in that media type"),
    drf.UnsupportedMediaType: ("unsupported_media_type", "We cannot read that media type"),
    drf.Throttled: ("rate_limited", "Too many requests"),
}


def _of_django(error: Exception) -> Problem:
    match error:
        case Http404():
            problem = Problem(404, "not_found", "Not found")
        case django_errors.PermissionDenied():
            problem = Problem(403, "permission_denied", "Not allowed")
        case django_errors.RequestDataTooBig() | django_errors.TooManyFieldsSent() | django_errors.TooManyFilesSent():
            problem = Problem(413, "payload_too_large", "The request is too large", str(error))
        case django_errors.SuspiciousOperation():
            problem = Problem(400, "bad_request", "The request is not acceptable")
        case OperationalError() | InterfaceError():
            logger.warning("the database does not answer", exc_info=error)
            problem = Problem(503, "unavailable", "Temporarily unavailable", headers={"Retry-After": "1"})
        case _:
            logger.error("unexpected %s", type(error).__name__, exc_info=error)
            problem = INTERNAL
    return problem


def _of_drf(error: drf.APIException) -> Problem:
    if isinstance(error, drf.ValidationError):
        fields = tuple(_flatten(error.get_full_details()))
        return Problem(422, "invalid_request", "The request is not valid", _first(fields), fields)
    if isinstance(error, drf.ParseError):
        code = "malformed_json" if error.get_codes() == "malformed_json" else "malformed_body"
        return Problem(400, code, "The body cannot be read", str(error.detail))
    for kind in type(error).__mro__:
        if kind in _DRF:
            code, title = _DRF[kind]
            return Problem(error.status_code, code, title, str(error.detail), headers=_drf_headers(error))
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return INTERNAL


def _drf_headers(error: drf.APIException) -> dict[str, str]:
    headers = {}
    if challenge := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = str(challenge)
    if (wait_s := getattr(error, "wait", None)) is not None:
        headers["Retry-After"] = _seconds(wait_s)
    return headers


def _seconds(duration_s: float) -> str:
    """Retry-After knows whole seconds: round up, so that nobody comes back too early."""
    return str(max(1, math.ceil(duration_s)))


def _flatten(details: Any, path: str = "") -> Iterator[FieldError]:
    """DRF's nested details as dotted fields: ``members.0``."""
    if isinstance(details, Mapping) and isinstance(details.get("message"), str) and "code" in details:
        yield FieldError(path, str(details["code"]), str(details["message"]))
        return
    if isinstance(details, Mapping):
        for name, inner in details.items():
            yield from _flatten(inner, path if name == "non_field_errors" else f"{path}.{name}".lstrip("."))
        return
    for index, inner in enumerate(details):
        leaf = isinstance(inner, Mapping) and isinstance(inner.get("message"), str)
        yield from _flatten(inner, path if leaf else f"{path}.{index}".lstrip("."))


def _first(fields: Sequence[FieldError]) -> str:
    if not fields:
        return ""
    return f"{fields[0].field}: {fields[0].message}" if fields[0].field else fields[0].message


# --- for chat4all_project/urls.py: what fails outside of a REST view -------------------------------------------------


def bad_request(_request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler400"""
    return problem_of(exception).response()


def permission_denied(_request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler403"""
    return problem_of(exception).response()


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """CSRF_FAILURE_VIEW: forms are the admin's, whose people get Django's page about cookies."""
    if request.path_info.startswith("/admin/"):
        return csrf.csrf_failure(request, reason)
    return Problem(403, "csrf_failed", "The request may be forged", "Only our own pages may send this.").response()


def not_found(_request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler404"""
    return problem_of(exception).response()


def server_error(_request: HttpRequest) -> HttpResponse:
    """handler500, called while the exception is being handled."""
    logger.error("unexpected exception", exc_info=True)
    return INTERNAL.response()
