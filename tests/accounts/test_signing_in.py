"""POST /auth/token, /auth/token/refresh and /auth/logout, and what keeps guessers out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis
from django.db import connection
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts import guard as guard_module
from accounts.guard import Attempt, Guard, Limit
from accounts.hashers import Argon2id
from accounts.models import Session, User
from accounts.tokens import access_token, principal_from_token
from demo.redis_server import BUS_RULES, RedisServer, free_port
from tests.accounts.conftest import PASSWORD, Post, assert_problem, database_away
from tests.bounds import once_within
from tests.conftest import redis_executables

TIMEOUT_S = guard_module._TIMEOUT_S  # which the fixture `bus` makes longer
pytestmark = pytest.mark.django_db(databases=["default", "messages"])
URL = "/auth/token"
REFRESH = "/auth/token/refresh"
LOGOUT = "/auth/logout"
ALICE = {"username": "alice", "password": PASSWORD}
WRONG = {"username": "alice", "password": "wrong horse battery"}


class CountingHasher(Argon2id):
    """Counts real argon2id runs."""

    runs = 0

    def encode(self, password: str, salt: str) -> str:
        type(self).runs += 1
        return super().encode(password, salt)

    def verify(self, password: str, encoded: str) -> bool:
        type(self).runs += 1
        return super().verify(password, encoded)


@pytest.fixture
def hasher(settings: Settings) -> type[CountingHasher]:
    settings.PASSWORD_HASHERS = [f"{__name__}.CountingHasher"]
    CountingHasher.runs = 0
    return CountingHasher


def test_gives_tokens_for_the_right_password(post: Post, alice: User) -> None:
    response = post(URL, ALICE)
    body = response.json()
    assert response.status_code == 200
    assert response["Cache-Control"] == "no-store"
    assert set(body) == {"access_token", "refresh_token", "token_type", "expires_in", "user_id", "token"}
    assert (body["token_type"], body["expires_in"]) == ("Bearer", 3600)
    assert body["user_id"] == alice.public_id
    assert body["token"] == body["access_token"]
    assert principal_from_token(body["access_token"]).user_id == alice.public_id


def test_says_in_the_token_who_and_where_and_until_when(post: Post, alice: User) -> None:
    token = post(URL, ALICE).json()["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["sub"] == alice.public_id
    assert claims["ws"] == str(alice.workspace_id)
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["jti"]
    assert jwt.get_unverified_header(token)["alg"] == "RS256"


def test_does_not_care_for_the_case_of_a_username(post: Post, alice: User) -> None:
    assert post(URL, {**ALICE, "username": "ALICE"}).json()["user_id"] == alice.public_id


def test_signs_in_to_a_workspace_by_its_name(post: Post, mallory: User) -> None:
    credentials = {"username": "mallory", "password": PASSWORD}
    assert post(URL, {**credentials, "workspace": "acme"}).json()["user_id"] == mallory.public_id
    assert_problem(post(URL, credentials), 401, "invalid_credentials")


@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param(WRONG, id="wrong password"),
        pytest.param({**ALICE, "password": PASSWORD + " "}, id="password with a space more"),
        pytest.param({**ALICE, "username": "nobody"}, id="unknown user"),
        pytest.param({**ALICE, "username": "alice%"}, id="wildcard"),
        pytest.param({**ALICE, "workspace": "nowhere"}, id="unknown workspace"),
    ],
)
def test_tells_nobody_what_was_wrong(post: Post, alice: User, credentials: dict[str, str]) -> None:
    response = post(URL, credentials)
    body = assert_problem(response, 401, "invalid_credentials")
    assert body["detail"] == "Wrong username or password"
    assert response["WWW-Authenticate"].startswith("Bearer")
    assert not Session.objects.exists()


def test_refuses_a_deactivated_user_like_a_wrong_password(post: Post, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert_problem(post(URL, ALICE), 401, "invalid_credentials")


@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param(ALICE, id="right"),
        pytest.param(WRONG, id="wrong password"),
        pytest.param({**ALICE, "username": "nobody"}, id="unknown user"),
        pytest.param({**ALICE, "workspace": "nowhere"}, id="unknown workspace"),
        pytest.param({"username": "ghost", "password": PASSWORD}, id="deactivated"),
        pytest.param({"username": "robot", "password": PASSWORD}, id="without a password"),
    ],
)
def test_hashes_once_whoever_asks_so_that_time_tells_nothing(
    post: Post, alice: User, hasher: type[CountingHasher], credentials: dict[str, str]
) -> None:
    User.objects.create_user("ghost", PASSWORD, is_active=False)
    User.objects.create_user("robot", None)
    before = hasher.runs
    post(URL, credentials)
    assert hasher.runs - before == 1


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        pytest.param({"password": PASSWORD}, "username", "required", id="no username"),
        pytest.param({"username": "alice"}, "password", "required", id="no password"),
        pytest.param({**ALICE, "username": 1}, "username", "invalid", id="number"),
        pytest.param({**ALICE, "username": "a" * 65}, "username", "max_length", id="long username"),
        pytest.param({**ALICE, "password": "a" * 257}, "password", "max_length", id="long password"),
        pytest.param({**ALICE, "password": ["a"]}, "password", "invalid", id="list"),
        pytest.param({**ALICE, "otp": "1"}, "otp", "unknown_field", id="unknown field"),
        pytest.param([], "", "invalid", id="a list"),
        pytest.param("alice", "", "invalid", id="a string"),
        pytest.param(None, "", "null", id="null"),
    ],
)
def test_refuses_a_bad_request_and_names_the_field(client: Client, body: Any, field: str, code: str) -> None:
    import json

    response = client.post(URL, json.dumps(body), content_type="application/json")
    problem = assert_problem(response, 422, "invalid_request")
    assert (field, code) in [(each["field"], each["code"]) for each in problem["errors"]]


@pytest.mark.parametrize("path", [URL, REFRESH, LOGOUT, "/auth/register"])
@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        pytest.param(b"{", "application/json", 400, "malformed_json", id="broken"),
        pytest.param(b" ", "application/json", 400, "malformed_json", id="blank"),
        pytest.param(b"", "application/json", 422, "invalid_request", id="empty"),
        pytest.param(b'{"username": NaN}', "application/json", 400, "malformed_json", id="NaN"),
        pytest.param(b"[" * 100_000, "application/json", 400, "malformed_json", id="deep"),
        pytest.param(b"\xff\xfe", "application/json", 400, "malformed_json", id="not UTF-8"),
        pytest.param(b'"' + b"x" * 1024 * 1024 + b'"', "application/json", 413, "payload_too_large", id="too large"),
        pytest.param(b"username=alice", "application/x-www-form-urlencoded", 415, "unsupported_media_type", id="form"),
        pytest.param(b"<a/>", "text/xml", 415, "unsupported_media_type", id="XML"),
    ],
)
def test_refuses_what_is_no_json(
    client: Client, path: str, body: bytes, content_type: str, status: int, code: str
) -> None:
    assert_problem(client.post(path, body, content_type=content_type), status, code)


@pytest.mark.parametrize("path", [URL, REFRESH, LOGOUT, "/auth/register"])
def test_answers_other_methods_with_what_is_allowed(client: Client, path: str) -> None:
    response = client.get(path)
    assert_problem(response, 405, "method_not_allowed")
    assert "POST" in response["Allow"]


def test_does_not_look_at_a_token_where_none_is_needed(post: Post, alice: User) -> None:
    assert post(URL, ALICE, Authorization="Bearer expired-rubbish").status_code == 200


# --- guessing ----------------------------------------------------------------------------------------------------


def test_stops_guessing_at_one_user_even_with_the_right_password(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = 3
    assert [post(URL, WRONG).status_code for _ in range(4)] == [401, 401, 401, 429]
    refused = post(URL, ALICE)
    assert_problem(refused, 429, "too_many_attempts")
    assert 0 < int(refused["Retry-After"]) <= settings.LOGIN_WINDOW_S


def test_hashes_nothing_for_a_refused_guess(
    post: Post, alice: User, settings: Settings, hasher: type[CountingHasher]
) -> None:
    settings.LOGIN_FAILURES_PER_USER = 1
    post(URL, WRONG)
    before = hasher.runs
    post(URL, WRONG)
    assert hasher.runs == before


def test_counts_a_user_in_one_spelling(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = 2
    statuses = [post(URL, {**WRONG, "username": name}).status_code for name in ("alice", "Alice", "ALICE")]
    assert statuses == [401, 401, 429]


def test_stops_guessing_at_a_user_who_does_not_exist_just_the_same(post: Post, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = 1
    assert [post(URL, {**WRONG, "username": "nobody"}).status_code for _ in range(2)] == [401, 429]


def test_lets_others_in_while_one_user_is_being_guessed_at(
    post: Post, alice: User, bob: User, mallory: User, settings: Settings
) -> None:
    settings.LOGIN_FAILURES_PER_USER = 1
    assert [post(URL, WRONG).status_code for _ in range(2)] == [401, 429]
    assert post(URL, {"username": "bob", "password": PASSWORD}).status_code == 200


def test_lets_a_user_in_while_somebody_elsewhere_guesses_at_them(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER, settings.TRUSTED_PROXIES = 1, 1
    mallory, home = {"X_Forwarded_For": "203.0.113.6"}, {"X_Forwarded_For": "198.51.100.7"}
    assert [post(URL, WRONG, **mallory).status_code for _ in range(2)] == [401, 429]
    assert post(URL, ALICE, **home).status_code == 200


def test_stops_guessing_at_one_user_from_very_many_addresses(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER_EVERYWHERE, settings.TRUSTED_PROXIES = 3, 1
    guesses = [post(URL, WRONG, X_Forwarded_For=f"203.0.113.{n}").status_code for n in range(4)]
    assert guesses == [401, 401, 401, 429]


def test_does_not_count_right_passwords(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = settings.LOGIN_FAILURES_PER_ADDRESS = 2
    assert [post(URL, ALICE).status_code for _ in range(4)] == [200] * 4


def test_keeps_failures_counted_when_a_right_password_comes_between(
    post: Post, alice: User, settings: Settings
) -> None:
    settings.LOGIN_FAILURES_PER_USER = 2
    assert [post(URL, body).status_code for body in (WRONG, ALICE, WRONG, ALICE)] == [401, 200, 401, 429]


def test_stops_an_address_that_tries_many_users(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_ADDRESS = 3
    statuses = [post(URL, {**WRONG, "username": f"user{n}"}).status_code for n in range(4)]
    assert statuses == [401, 401, 401, 429]


def test_believes_no_forwarded_address_that_a_client_made_up(post: Post, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_ADDRESS = 1
    statuses = [
        post(URL, {**WRONG, "username": f"user{n}"}, X_Forwarded_For=f"10.0.0.{n}").status_code for n in range(2)
    ]
    assert statuses == [401, 429]


@pytest.mark.parametrize("executable", redis_executables().values(), ids=redis_executables().keys())
def test_lets_exactly_as_many_guesses_through_as_allowed_however_many_come_at_once(
    executable: str, tmp_path: Path
) -> None:
    from accounts.errors import TooManyAttempts

    server = RedisServer(tmp_path, rules=BUS_RULES, executable=executable).start()
    try:
        guard = Guard(server.url)
        limits = [Limit("user", 7, 60), Limit("address", 100, 60)]
        passed: list[int] = []
        start = threading.Barrier(16)

        def guess() -> None:
            start.wait()
            for _ in range(5):
                try:
                    with guard.attempt(limits):
                        passed.append(1)
                except TooManyAttempts:
                    pass

        threads = [threading.Thread(target=guess) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(passed) == 7
        with redis.Redis.from_url(server.url) as client:
            assert client.get("address") == b"7"  # a refused attempt counts nowhere
            assert 0 < client.pttl("user") <= 60_000
    finally:
        server.stop()


def test_counts_nobody_whom_a_database_that_is_away_keeps_out(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = 2
    with database_away():
        assert [post(URL, body).status_code for body in (WRONG, ALICE, ALICE)] == [503, 503, 503]
    assert [post(URL, body).status_code for body in (WRONG, ALICE, WRONG, ALICE)] == [401, 200, 401, 429]


def test_asks_for_a_moment_while_attempts_under_way_fill_a_limit(post: Post, alice: User, settings: Settings) -> None:
    """Workers of one account that sign in at once: each is counted, and none has failed."""
    settings.LOGIN_FAILURES_PER_USER = 2
    with under_way() as first:
        post(URL, WRONG)
        refused = post(URL, ALICE)
        assert_problem(refused, 429, "too_many_attempts")
        assert refused["Retry-After"] == "1"
        first.counts = False
    assert post(URL, ALICE).status_code == 200


def test_asks_for_the_whole_window_once_failures_fill_a_limit(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = 2
    with under_way() as first:
        post(URL, WRONG)
        first.counts = True
    with under_way(username="bob"):
        assert int(post(URL, ALICE)["Retry-After"]) > settings.LOGIN_WINDOW_S - 60


def test_believes_no_attempt_under_way_for_ever(post: Post, alice: User, settings: Settings, bus: redis.Redis) -> None:
    """Its process may have died; it stays counted."""
    settings.LOGIN_FAILURES_PER_USER = 1
    with under_way():
        keys = list(bus.scan_iter("*:under-way"))
        assert len(keys) == 3
        assert all(0 < bus.pttl(key) <= 30_000 for key in keys)
        bus.delete(*keys)
        assert int(post(URL, ALICE)["Retry-After"]) > settings.LOGIN_WINDOW_S - 60


def under_way(username: str = "alice") -> AbstractContextManager[Attempt]:
    """Somebody else's attempt at this user from here, which nobody knows the end of yet."""
    return guard_module.guard().attempt(
        guard_module.sign_in_limits(workspace="default", username=username, address="127.0.0.1")
    )


def test_opens_again_when_the_window_ends(bus: redis.Redis, post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = 1
    assert [post(URL, WRONG).status_code for _ in range(2)] == [401, 429]
    for key in bus.scan_iter("*"):
        bus.pexpire(key, 0)
    assert post(URL, ALICE).status_code == 200


def test_lets_people_in_when_redis_is_away_and_says_so(
    post: Post, alice: User, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.BUS_URL = f"redis://127.0.0.1:{free_port()}/0"
    assert post(URL, ALICE).status_code == 200
    assert_problem(post(URL, WRONG), 401, "invalid_credentials")
    assert post("/auth/register", {"username": "carol", "password": PASSWORD}).status_code == 201
    assert "attempts are not counted" in caplog.text
    assert "alice" not in caplog.text


def test_waits_only_shortly_for_a_redis_that_hangs(
    post: Post, alice: User, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal
    import time

    monkeypatch.setattr(guard_module, "_TIMEOUT_S", TIMEOUT_S)
    server = RedisServer(tmp_path, rules=BUS_RULES).start()
    settings.BUS_URL = server.url
    try:
        assert post(URL, ALICE).status_code == 200
        server.signal(signal.SIGSTOP)

        def signed_in_s() -> float:
            started = time.monotonic()
            assert post(URL, ALICE).status_code == 200
            return time.monotonic() - started

        once_within(3, signed_in_s)  # two round trips, none of which is answered
    finally:
        server.signal(signal.SIGCONT)
        server.stop()


# --- refreshing --------------------------------------------------------------------------------------------------


def refreshed(post: Post, token: str) -> Any:
    response = post(REFRESH, {"refresh_token": token})
    assert response.status_code == 200, response.content
    return response.json()


def test_renews_both_tokens(post: Post, alice: User) -> None:
    first = post(URL, ALICE).json()
    second = refreshed(post, first["refresh_token"])
    assert set(second) == set(first)
    assert second["user_id"] == alice.public_id
    assert second["refresh_token"] != first["refresh_token"]
    assert principal_from_token(second["access_token"]).user_id == alice.public_id
    refreshed(post, second["refresh_token"])


def test_answers_a_client_that_lost_the_answer_and_asks_again(post: Post, alice: User) -> None:
    first = post(URL, ALICE).json()["refresh_token"]
    refreshed(post, first)
    again = refreshed(post, first)["refresh_token"]
    refreshed(post, again)


def test_ends_the_session_when_a_used_token_comes_back_later(post: Post, alice: User) -> None:
    first = post(URL, ALICE).json()["refresh_token"]
    second = refreshed(post, first)["refresh_token"]
    Session.objects.update(rotated_at=timezone.now() - timedelta(seconds=11))
    assert_problem(post(REFRESH, {"refresh_token": first}), 401, "invalid_token")
    assert_problem(post(REFRESH, {"refresh_token": second}), 401, "invalid_token")


def test_ends_the_session_when_a_long_used_token_comes_back_at_once(post: Post, alice: User) -> None:
    first = post(URL, ALICE).json()["refresh_token"]
    third = refreshed(post, refreshed(post, first)["refresh_token"])["refresh_token"]
    assert_problem(post(REFRESH, {"refresh_token": first}), 401, "invalid_token")
    assert_problem(post(REFRESH, {"refresh_token": third}), 401, "invalid_token")


def test_refuses_the_refresh_of_a_deactivated_user(post: Post, alice: User) -> None:
    token = post(URL, ALICE).json()["refresh_token"]
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert_problem(post(REFRESH, {"refresh_token": token}), 401, "invalid_token")


def test_ends_sessions_when_the_password_changes(post: Post, alice: User) -> None:
    token = post(URL, ALICE).json()["refresh_token"]
    alice.set_password("another horse battery")
    alice.save()
    assert_problem(post(REFRESH, {"refresh_token": token}), 401, "invalid_token")


def test_refuses_a_session_that_is_over(post: Post, alice: User) -> None:
    token = post(URL, ALICE).json()["refresh_token"]
    Session.objects.update(expires_at=timezone.now())
    assert_problem(post(REFRESH, {"refresh_token": token}), 401, "invalid_token")


def test_takes_no_access_token_for_a_refresh_token_and_none_the_other_way_round(
    post: Post, client: Client, alice: User
) -> None:
    assert_problem(post(REFRESH, {"refresh_token": access_token(alice)}), 401, "invalid_token")
    refresh_token = post(URL, ALICE).json()["refresh_token"]
    response = client.get("/v1/users/me", headers={"Authorization": f"Bearer {refresh_token}"})
    assert_problem(response, 401, "invalid_token")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({}, 422, "invalid_request", id="missing"),
        pytest.param({"refresh_token": 5}, 422, "invalid_request", id="number"),
        pytest.param({"refresh_token": "x" * 4097}, 422, "invalid_request", id="too long"),
        pytest.param({"refresh_token": "x", "user_id": "y"}, 422, "invalid_request", id="unknown field"),
        pytest.param({"refresh_token": "rubbish"}, 401, "invalid_token", id="rubbish"),
        pytest.param({"refresh_token": "ключ"}, 401, "invalid_token", id="not ASCII"),
    ],
)
def test_refuses_a_bad_refresh(post: Post, body: dict[str, Any], status: int, code: str) -> None:
    assert_problem(post(REFRESH, body), status, code)


# --- signing out -------------------------------------------------------------------------------------------------


def signed_out(post: Post, token: str) -> None:
    response = post(LOGOUT, {"refresh_token": token})
    assert (response.status_code, response.content) == (204, b"")
    assert response["Cache-Control"] == "no-store"


def test_ends_the_session_of_who_signs_out_and_no_other(post: Post, alice: User, bob: User) -> None:
    here, there = (post(URL, ALICE).json()["refresh_token"] for _ in range(2))
    bobs = post(URL, {"username": "bob", "password": PASSWORD}).json()["refresh_token"]
    signed_out(post, here)
    assert_problem(post(REFRESH, {"refresh_token": here}), 401, "invalid_token")
    refreshed(post, there)
    refreshed(post, bobs)


def test_ends_the_session_with_a_token_that_is_used_up(post: Post, alice: User) -> None:
    """Of a client that lost the answer to its refresh, say."""
    first = post(URL, ALICE).json()["refresh_token"]
    second = refreshed(post, first)["refresh_token"]
    signed_out(post, first)
    assert_problem(post(REFRESH, {"refresh_token": second}), 401, "invalid_token")


def test_lets_an_access_token_live_until_it_ends(post: Post, get: Callable[..., Any], alice: User) -> None:
    tokens = post(URL, ALICE).json()
    signed_out(post, tokens["refresh_token"])
    assert get("/v1/users/me", tokens["access_token"]).status_code == 200


def test_answers_whoever_signs_out_alike(
    post: Post, alice: User, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, theirs = (post(URL, ALICE).json()["refresh_token"] for _ in range(2))
    signed_out(post, ended)
    with monkeypatch.context() as patch:
        patch.setitem(settings.SIMPLE_JWT, "REFRESH_TOKEN_LIFETIME", -timedelta(seconds=1))
        expired = post(URL, ALICE).json()["refresh_token"]
    for token in (ended, expired, access_token(alice), theirs + "x", "rubbish", "ключ"):
        signed_out(post, token)
    refreshed(post, theirs)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="missing"),
        pytest.param({"refresh_token": 5}, id="number"),
        pytest.param({"refresh_token": "x" * 4097}, id="too long"),
        pytest.param({"refresh_token": "x", "everywhere": True}, id="unknown field"),
    ],
)
def test_refuses_a_sign_out_that_names_no_token(post: Post, body: dict[str, Any]) -> None:
    assert_problem(post(LOGOUT, body), 422, "invalid_request")


def test_finds_a_user_by_name_through_an_index(alice: User) -> None:
    rows = User.objects.filter(workspace_id=alice.workspace_id, username__lower="alice")
    if connection.vendor == "postgresql":  # for one row it would rather read the table
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
    plan = rows.explain()
    assert "username_unique_per_workspace" in plan
