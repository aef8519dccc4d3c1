"""What can go wrong with accounts; see docs/errors.md."""

from __future__ import annotations

from core.errors import Chat4AllError, Conflict

_CHALLENGE = 'Bearer realm="chat4all"'


class InvalidToken(Chat4AllError):
    """Not a token of ours, tampered with, or of a user who is gone or deactivated: the same answer for all."""

    code = "invalid_token"
    http_status = 401
    title = "The token is not valid"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'})


class TokenExpired(InvalidToken):
    """It was ours once: refresh it or sign in again."""

    code = "token_expired"
    title = "The token has expired"


class InvalidCredentials(Chat4AllError):
    """Wrong password, unknown user, unknown workspace or deactivated user: nobody learns which."""

    code = "invalid_credentials"
    http_status = 401
    title = "Wrong username or password"

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": _CHALLENGE})


class TooManyAttempts(Chat4AllError):
    """Somebody is guessing, or registering in bulk: 429 with Retry-After."""

    code = "too_many_attempts"
    http_status = 429
    title = "Too many attempts"


class UsernameTaken(Conflict):
    code = "username_taken"
    title = "This username is taken"


class RegistrationClosed(Chat4AllError):
    """The workspace takes no registrations, or does not exist: one answer, so that nobody can list workspaces."""

    code = "registration_closed"
    http_status = 403
    title = "This workspace takes no registrations"
