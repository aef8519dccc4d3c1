"""The root of every failure raised on purpose. The type decides what happens next; nobody reads message text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field at fault: ``field`` is the JSON name, dotted when nested (``members.0``), "" for the whole body."""

    field: str
    code: str
    message: str


class Chat4AllError(Exception):
    """Root of every failure raised on purpose; anything else is a bug (HTTP 500).

    ``code`` is stable, shown to API clients and listed in docs/errors.md. ``detail`` is a sentence for a person:
    it never holds message text, tokens or full phone numbers.
    """

    code = "internal"
    http_status = 500
    title = "Internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        fields: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.fields = tuple(fields)
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


class InvalidRequest(Chat4AllError):
    """A field is missing, of the wrong type, too long or not allowed; ``fields`` names it."""

    code = "invalid_request"
    http_status = 422
    title = "The request is not valid"

    @classmethod
    def at(cls, field: str, message: str, *, code: str = "invalid") -> InvalidRequest:
        return cls(message, fields=[FieldError(field, code, message)])


class NotFound(Chat4AllError):
    """It does not exist, or the caller may not know that it does (guarantee 10): the same answer for both."""

    code = "not_found"
    http_status = 404
    title = "Not found"


class Conflict(Chat4AllError):
    """The request contradicts what is stored."""

    code = "conflict"
    http_status = 409
    title = "Conflict"


class PermissionDenied(Chat4AllError):
    """Signed in, and not allowed to do this."""

    code = "permission_denied"
    http_status = 403
    title = "Not allowed"


class Unavailable(Chat4AllError):
    """A part that is needed does not answer (HTTP 503 with Retry-After); nothing was lost, try again."""

    code = "unavailable"
    http_status = 503
    title = "Temporarily unavailable"
    may_pass = True  # False: waiting would not help, an operator must

    def __init__(self, detail: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
