"""POST /auth/register"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis
from django.test import Client
from pytest_django import Settings

from accounts.models import User, Workspace
from tests.accounts.conftest import PASSWORD, Post, assert_problem, database_away

pytestmark = pytest.mark.django_db(databases=["default", "messages"])
URL = "/auth/register"
GOOD = {"username": "carol", "password": PASSWORD}


def test_registers_a_user_in_the_default_workspace(post: Post) -> None:
    response = post(URL, {**GOOD, "display_name": "Carol ✨"})
    body = response.json()
    assert response.status_code == 201, body
    stored = User.objects.get(username="carol")
    assert body == {
        "user_id": stored.public_id,
        "username": "carol",
        "display_name": "Carol ✨",
        "workspace": "default",
        "created_at": body["created_at"],
    }
    assert body["created_at"].endswith("Z")
    assert stored.public_id.startswith("user_")


def test_keeps_passwords_as_argon2id_only(post: Post) -> None:
    post(URL, GOOD)
    stored = User.objects.get(username="carol").password
    assert stored.startswith("argon2$argon2id$v=19$m=19456,t=2,p=1$")
    assert PASSWORD not in stored


def test_takes_the_username_as_display_name_when_there_is_none(post: Post) -> None:
    assert post(URL, GOOD).json()["display_name"] == "carol"


def test_registers_in_an_open_workspace_that_is_named(post: Post, acme: Workspace) -> None:
    Workspace.objects.filter(id=acme.id).update(open_registration=True)
    assert post(URL, {**GOOD, "workspace": "acme"}).json()["workspace"] == "acme"
    assert User.objects.get(username="carol").workspace_id == acme.id


@pytest.mark.parametrize("workspace", ["acme", "no-such-workspace", "a b/c"])
def test_answers_a_closed_and_an_unknown_workspace_alike(post: Post, acme: Workspace, workspace: str) -> None:
    body = assert_problem(post(URL, {**GOOD, "workspace": workspace}), 403, "registration_closed")
    assert workspace not in body["detail"]
    assert not User.objects.exists()


@pytest.mark.parametrize("username", ["alice", "ALICE", "aLiCe"])
def test_refuses_a_name_that_is_taken_whatever_its_case(post: Post, alice: User, username: str) -> None:
    assert_problem(post(URL, {**GOOD, "username": username}), 409, "username_taken")


def test_lets_two_workspaces_use_one_name(post: Post, mallory: User) -> None:
    assert post(URL, {**GOOD, "username": "mallory"}).status_code == 201


@pytest.mark.parametrize(
    ("password", "codes"),
    [
        pytest.param("short1!", ["password_too_short"], id="short"),
        pytest.param("1234567890", ["password_too_common", "password_entirely_numeric"], id="common and numeric"),
        pytest.param("carol.carol", ["password_too_similar"], id="like the name"),
    ],
)
def test_refuses_a_weak_password_and_says_why(post: Post, password: str, codes: list[str]) -> None:
    body = assert_problem(post(URL, {"username": "carol.carol", "password": password}), 422, "invalid_request")
    assert [(each["field"], each["code"]) for each in body["errors"]] == [("password", code) for code in codes]
    assert password not in body["detail"]
    assert not User.objects.exists()


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        pytest.param({"username": None}, "username", "null", id="null"),
        pytest.param({"username": ""}, "username", "blank", id="blank"),
        pytest.param({"username": "ab"}, "username", "invalid", id="too short"),
        pytest.param({"username": "a" * 65}, "username", "invalid", id="too long"),
        pytest.param({"username": "carol\n"}, "username", "invalid", id="newline at the end"),
        pytest.param({"username": " carol"}, "username", "invalid", id="space"),
        pytest.param({"username": "acme/carol"}, "username", "invalid", id="slash"),
        pytest.param({"username": "\u0441arol"}, "username", "invalid", id="Cyrillic look-alike"),
        pytest.param({"username": 12345}, "username", "invalid", id="number"),
        pytest.param({"username": ["carol"]}, "username", "invalid", id="list"),
        pytest.param({"username": {"$ne": ""}}, "username", "invalid", id="object"),
        pytest.param({"username": "car\x00ol"}, "username", "invalid", id="NUL"),
        pytest.param({"password": True}, "password", "invalid", id="password is true"),
        pytest.param({"password": "x" * 257}, "password", "max_length", id="password too long"),
        pytest.param({"password": "pass\x00word!!"}, "password", "null_characters_not_allowed", id="NUL in password"),
        pytest.param({"display_name": "x" * 129}, "display_name", "max_length", id="display name too long"),
        pytest.param({"display_name": 7}, "display_name", "invalid", id="display name is a number"),
        pytest.param({"workspace": "w" * 65}, "workspace", "max_length", id="workspace too long"),
        pytest.param({"workspace": None}, "workspace", "null", id="workspace is null"),
        pytest.param({"is_staff": True}, "is_staff", "unknown_field", id="unknown field"),
    ],
)
def test_refuses_a_bad_field_and_names_it(post: Post, change: dict[str, Any], field: str, code: str) -> None:
    body = assert_problem(post(URL, {**GOOD, **change}), 422, "invalid_request")
    assert (field, code) in [(each["field"], each["code"]) for each in body["errors"]]
    assert not User.objects.exists()


@pytest.mark.parametrize("missing", ["username", "password"])
def test_needs_username_and_password(post: Post, missing: str) -> None:
    body = assert_problem(
        post(URL, {name: value for name, value in GOOD.items() if name != missing}), 422, "invalid_request"
    )
    assert body["errors"] == [{"field": missing, "code": "required", "message": "This field is required."}]


def test_refuses_too_many_registrations_from_one_address(post: Post, settings: Settings) -> None:
    settings.REGISTRATIONS_PER_ADDRESS = 2
    assert [post(URL, {**GOOD, "username": f"user{n}"}).status_code for n in range(2)] == [201, 201]
    refused = post(URL, {**GOOD, "username": "user2"})
    assert_problem(refused, 429, "too_many_attempts")
    assert 0 < int(refused["Retry-After"]) <= 3600


def test_counts_no_registration_that_a_database_that_is_away_keeps_out(post: Post, settings: Settings) -> None:
    settings.REGISTRATIONS_PER_ADDRESS = 2
    with database_away():
        assert [post(URL, GOOD).status_code for _ in range(3)] == [503, 503, 503]
    assert [post(URL, GOOD).status_code for _ in range(3)] == [201, 409, 429]  # what was refused with a reason counts


def test_keeps_no_name_and_no_address_in_redis(post: Post, bus: redis.Redis) -> None:
    post(URL, GOOD)
    post("/auth/token", {**GOOD, "password": "wrong"})
    keys = b" ".join(bus.scan_iter())
    assert keys
    assert b"carol" not in keys
    assert b"127.0.0.1" not in keys


@pytest.mark.django_db(transaction=True, databases=["default", "messages"])
def test_gives_a_name_to_exactly_one_of_many_who_want_it_at_once() -> None:
    results: list[int] = []
    start = threading.Barrier(6)

    def register(spelling: str) -> None:
        client = Client()
        start.wait()
        status = 503  # the tests' database is in memory: it refuses at once what a file's would have waited for
        while status == 503:
            status = client.post(URL, {**GOOD, "username": spelling}, content_type="application/json").status_code
        results.append(status)

    threads = [threading.Thread(target=register, args=(name,)) for name in ("dave", "Dave", "DAVE") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [201, 409, 409, 409, 409, 409]
    assert User.objects.filter(username__iexact="dave").count() == 1
