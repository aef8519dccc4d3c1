"""Access tokens: who is let in, and which forgeries are not."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone

from accounts import directory, tokens
from accounts.errors import InvalidToken, TokenExpired
from accounts.models import User
from accounts.tokens import access_token, principal_from_token
from core.cache import TtlCache
from core.clock import ManualClock
from tests.accounts.conftest import assert_problem

pytestmark = pytest.mark.django_db(databases=["default", "messages"])
Get = Callable[..., Any]
ME = "/v1/users/me"
PRIVATE = settings.SIMPLE_JWT["SIGNING_KEY"]
PUBLIC = settings.SIMPLE_JWT["VERIFYING_KEY"]


def claims(user: User, **changes: Any) -> dict[str, Any]:
    """The claims of a good token, changed; None leaves one out."""
    now = int(time.time())
    good = {
        "iss": "chat4all",
        "sub": user.public_id,
        "ws": str(user.workspace_id),
        "iat": now,
        "exp": now + 3600,
        "jti": "1",
        "token_type": "access",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(payload: dict[str, Any], key: Any = PRIVATE, algorithm: str = "RS256", **header: str) -> str:
    return jwt.encode(payload, key, algorithm=algorithm, headers=header)


def b64(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def with_hs256_and_the_public_key(user: User) -> str:
    """The classic confusion: the public key as the secret of a symmetric signature."""
    import hashlib
    import hmac

    signing_input = f"{b64({'alg': 'HS256', 'typ': 'JWT'})}.{b64(claims(user))}"
    digest = hmac.new(PUBLIC.encode(), signing_input.encode(), hashlib.sha256).digest()
    return f"{signing_input}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def with_changed_claims(user: User) -> str:
    head, _, signature = access_token(user).split(".")
    return f"{head}.{b64(claims(user, sub='user_' + '0' * 32))}.{signature}"


FOREIGN_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)

FORGERIES: dict[str, Callable[[User], str]] = {
    "rubbish": lambda _: "rubbish",
    "three dots": lambda _: "..",
    "not base64": lambda _: "a.b.c",
    "oversized": lambda user: signed(claims(user, note="x" * 5000)),
    "foreign key": lambda user: signed(claims(user), FOREIGN_KEY),
    "alg none": lambda user: f"{b64({'alg': 'none', 'typ': 'JWT'})}.{b64(claims(user))}.",
    "alg None, spelt otherwise": lambda user: f"{b64({'alg': 'nOnE'})}.{b64(claims(user))}.",
    "HS256 with the public key": with_hs256_and_the_public_key,
    "RS512 with our key": lambda user: signed(claims(user), algorithm="RS512"),
    "claims changed": with_changed_claims,
    "signature cut": lambda user: access_token(user)[:-10],
    "foreign kid": lambda user: signed(claims(user), kid="somebody-else"),
    "key offered in the header": lambda user: signed(claims(user), FOREIGN_KEY, jku="http://127.0.0.1/jwks.json"),
    "foreign issuer": lambda user: signed(claims(user, iss="evil")),
    "no issuer": lambda user: signed(claims(user, iss=None)),
    "no subject": lambda user: signed(claims(user, sub=None)),
    "no end": lambda user: signed(claims(user, exp=None)),
    "no workspace": lambda user: signed(claims(user, ws=None)),
    "workspace is no id": lambda user: signed(claims(user, ws="default")),
    "workspace is a number": lambda user: signed(claims(user, ws=7)),
    "another workspace": lambda user: signed(claims(user, ws=str(uuid.uuid4()))),
    "no type": lambda user: signed(claims(user, token_type=None)),
    "refresh token": lambda user: signed(claims(user, token_type="refresh")),
    "unknown user": lambda user: signed(claims(user, sub="user_" + "0" * 32)),
    "subject with NUL": lambda user: signed(claims(user, sub="user_\x00")),
    "payload is a list": lambda _: jwt.api_jws.encode(b"[1]", PRIVATE, algorithm="RS256"),
}


def test_knows_whose_token_it_is(alice: User) -> None:
    principal = principal_from_token(access_token(alice))
    assert principal.user_id == alice.public_id
    assert principal.workspace_id == alice.workspace_id
    assert principal.username == "alice"
    assert principal.is_authenticated
    assert time.time() < principal.expires_at_s <= time.time() + 3600


def test_takes_a_token_of_ours_without_a_key_id(alice: User) -> None:
    assert principal_from_token(signed(claims(alice))).user_id == alice.public_id


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_refuses_forgeries(get: Get, alice: User, forge: Callable[[User], str]) -> None:
    token = forge(alice)
    response = get(ME, token)
    body = assert_problem(response, 401, "invalid_token")
    assert response["WWW-Authenticate"] == 'Bearer realm="chat4all", error="invalid_token"'
    assert token not in json.dumps(body)
    with pytest.raises(InvalidToken):
        principal_from_token(token)


def test_tells_an_expired_token_from_a_forged_one(get: Get, alice: User) -> None:
    token = access_token(alice, now=timezone.now() - timedelta(hours=1, seconds=1))
    response = get(ME, token)
    assert_problem(response, 401, "token_expired")
    assert "WWW-Authenticate" in response
    with pytest.raises(TokenExpired):
        principal_from_token(token)


def test_checks_a_signature_once_a_minute_and_nothing_but_that_very_token_counts_as_checked(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, checked, check = ManualClock(), list[str](), jwt.decode_complete
    monkeypatch.setattr(tokens, "_checked", TtlCache(ttl_s=60, clock=clock))

    def counted(token: str, *rest: Any, **named: Any) -> Any:
        checked.append(token)
        return check(token, *rest, **named)

    monkeypatch.setattr(jwt, "decode_complete", counted)
    token = access_token(alice)
    principals = {principal_from_token(token) for _ in range(3)}
    assert ([each.user_id for each in principals], checked) == ([alice.public_id], [token])
    body, _, signature = token.rpartition(".")
    with pytest.raises(InvalidToken):
        principal_from_token(f"{body}.{signature[::-1]}")
    clock.advance(60)
    principal_from_token(token)
    assert checked.count(token) == 2


def test_a_token_that_was_checked_ends_on_time(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    token = signed(claims(alice))
    expires_at_s = principal_from_token(token).expires_at_s
    monkeypatch.setattr(time, "time", lambda: expires_at_s - 1)
    assert principal_from_token(token)
    monkeypatch.setattr(time, "time", lambda: expires_at_s)
    with pytest.raises(TokenExpired):
        principal_from_token(token)


def test_does_not_mind_a_clock_that_is_a_little_ahead(alice: User) -> None:
    assert principal_from_token(access_token(alice, now=timezone.now() + timedelta(seconds=30)))


@pytest.mark.parametrize(
    ("header", "code"),
    [
        pytest.param(None, "not_authenticated", id="none"),
        pytest.param("", "not_authenticated", id="empty"),
        pytest.param("Basic YWxpY2U6eA==", "not_authenticated", id="basic"),
        pytest.param("Bearer", "invalid_token", id="no token"),
        pytest.param("Bearer ", "invalid_token", id="blank token"),
        pytest.param("Bearer a b c", "invalid_token", id="many tokens"),
        pytest.param("Bearer \xe9", "invalid_token", id="not ASCII"),
    ],
)
@pytest.mark.parametrize("path", [ME, "/v1/users?username=bob"])
def test_refuses_a_request_without_a_good_token(client: Client, path: str, header: str | None, code: str) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = client.get(path, headers=headers)
    assert_problem(response, 401, code)
    assert response["WWW-Authenticate"].startswith('Bearer realm="chat4all"')


def test_takes_the_scheme_in_any_case(client: Client, alice: User) -> None:
    assert client.get(ME, headers={"Authorization": f"bearer {access_token(alice)}"}).status_code == 200


def test_refuses_a_deactivated_user_within_five_seconds(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    monkeypatch.setattr(directory, "cache", directory.new_cache(clock))
    token = access_token(alice)
    principal_from_token(token)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    clock.advance(directory.MAX_AGE_S - 0.1)
    assert principal_from_token(token).user_id == alice.public_id  # known from before: no look into the database
    clock.advance(0.1)
    with pytest.raises(InvalidToken):
        principal_from_token(token)


def test_asks_the_database_once_for_many_requests(alice: User, django_assert_num_queries: Any) -> None:
    token = access_token(alice)
    with django_assert_num_queries(1):
        for _ in range(20):
            principal_from_token(token)


def test_who_asks_all_the_time_waits_for_no_database_and_is_refused_in_time_all_the_same(
    alice: User, mallory: User, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(directory, "cache", directory.new_cache(clock))
    mine, hers = access_token(alice), access_token(mallory)
    for token in (mine, hers):
        principal_from_token(token)
    User.objects.filter(pk=mallory.pk).update(is_active=False)
    for _ in range(3):
        clock.advance(directory.MAX_AGE_S - 1)
        with django_assert_num_queries(1):  # for both
            directory.renew()
        with django_assert_num_queries(0):
            assert principal_from_token(mine).user_id == alice.public_id
            with pytest.raises(InvalidToken):
                principal_from_token(hers)


def test_that_the_database_is_away_is_found_out_before_somebody_waits_for_it(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(directory, "cache", directory.new_cache(clock))
    token = access_token(alice)
    principal_from_token(token)

    def away(*_: object) -> None:
        raise OperationalError("the connection is closed")

    clock.advance(directory.MAX_AGE_S)
    with connection.execute_wrapper(away):
        directory.renew()
        assert principal_from_token(token).user_id == alice.public_id


def test_publishes_the_key_that_checks_our_tokens(client: Client, alice: User) -> None:
    response = client.get("/.well-known/jwks.json")
    [key] = response.json()["keys"]
    token = access_token(alice)
    assert set(key) == {"kty", "n", "e", "kid", "use", "alg"}  # and no private part
    assert jwt.get_unverified_header(token)["kid"] == key["kid"]
    checked = jwt.decode(token, jwt.PyJWK(key).key, algorithms=["RS256"], issuer="chat4all")
    assert checked["sub"] == alice.public_id


def test_a_user_who_was_known_is_let_in_while_the_database_is_away_but_not_for_ever(
    alice: User, mallory: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(directory, "cache", directory.new_cache(clock))
    token, stranger = access_token(alice), access_token(mallory)
    assert principal_from_token(token).user_id == alice.public_id
    asked: list[object] = []

    def away(*arguments: object) -> None:
        asked.append(arguments)
        raise OperationalError("the connection is closed")

    with connection.execute_wrapper(away):
        for _ in range(3):
            clock.advance(directory.MAX_AGE_S)
            assert principal_from_token(token).user_id == alice.public_id
            assert principal_from_token(token).user_id == alice.public_id
        assert len(asked) == 3  # not everybody has to wait for a database that is away
        with pytest.raises(OperationalError):
            principal_from_token(stranger)
        clock.advance(directory.MAX_AGE_AWAY_S)
        with pytest.raises(OperationalError):
            principal_from_token(token)
    clock.advance(2)  # nobody asks a database that was away so shortly before
    assert principal_from_token(token).user_id == alice.public_id
