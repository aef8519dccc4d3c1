"""Who plays: two registered users, and two people outside."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from demo.clients import TIMEOUT_S, Refused
from demo.private import read_private, write_private

USERS: Final = ("alice", "bob")
_NAMES: Final = 5  # tries to find a free username


@dataclass(frozen=True, slots=True)
class Outsider:
    """A person on a platform: ``address`` as the platform writes it."""

    name: str
    channel: str
    address: str

    @property
    def party(self) -> str:
        """As our API writes it."""
        return f"{self.channel}:{'+' if self.channel == 'whatsapp' else ''}{self.address}"


MARIA: Final = Outsider("Maria", "whatsapp", "5511987654321")
JOHN: Final = Outsider("John", "instagram", "17841455556666777")


@dataclass(frozen=True, slots=True)
class Login:
    """A user of the hub who has signed in."""

    name: str
    username: str
    user_id: str
    password: str = field(repr=False)
    token: str = field(repr=False)


def logins_file(state_dir: Path) -> Path:
    return state_dir / "demo.json"


def sign_in_all(api_url: str, state_dir: Path) -> list[Login]:
    """Alice and Bob, registered when this folder has not seen them yet. Raises Refused.

    Their passwords are kept; where somebody else has taken a name, the demo's user gets a longer one.
    """
    path = logins_file(state_dir)
    kept: dict[str, dict[str, str]] = (read_private(path) or {}).get("users", {})
    with httpx.Client(base_url=api_url, timeout=TIMEOUT_S, trust_env=False) as http:
        logins = [_sign_in(http, name, kept.get(name)) for name in USERS]
    write_private(path, {"users": {each.name.lower(): _kept(each) for each in logins}})
    return logins


def _sign_in(http: httpx.Client, name: str, kept: dict[str, str] | None) -> Login:
    if kept and (token := _token(http, **kept)):
        return _login(name, kept, token)
    for attempt in range(_NAMES):
        username = name if attempt == 0 else f"{name}-{secrets.token_hex(2)}"
        chosen = {"username": username, "password": secrets.token_urlsafe(15)}
        answer = http.post("/auth/register", json={**chosen, "display_name": name.capitalize()})
        if answer.status_code == 201 and (token := _token(http, **chosen)):
            return _login(name, chosen, token)
        if answer.status_code != 409:
            raise Refused(f"POST /auth/register: {answer.status_code} {answer.json().get('code')}")
    raise Refused(f"POST /auth/register: {_NAMES} usernames like {name} are taken")


def _token(http: httpx.Client, *, username: str, password: str) -> dict[str, Any] | None:
    answer = http.post("/auth/token", json={"username": username, "password": password})
    return answer.json() if answer.is_success else None


def _login(name: str, chosen: dict[str, str], token: dict[str, Any]) -> Login:
    return Login(name.capitalize(), chosen["username"], token["user_id"], chosen["password"], token["access_token"])


def _kept(login: Login) -> dict[str, str]:
    return {"username": login.username, "password": login.password}
