"""GET /v1/users, /v1/users/me, and the directory that the rest of the system asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from accounts import directory
from accounts.models import User, Workspace
from core.clock import ManualClock
from tests.accounts.conftest import PASSWORD, assert_problem

pytestmark = pytest.mark.django_db(databases=["default", "messages"])
Get = Callable[..., Any]


def test_tells_people_who_they_are(get: Get, alice: User) -> None:
    body = get("/v1/users/me", alice).json()
    assert body == {
        "user_id": alice.public_id,
        "username": "alice",
        "display_name": "Alice Souza",
        "workspace": "default",
        "created_at": body["created_at"],
    }


@pytest.mark.parametrize("name", ["bob", "BOB"])
def test_finds_a_user_by_exact_name(get: Get, alice: User, bob: User, name: str) -> None:
    body = get("/v1/users", alice, username=name).json()
    assert body == {"items": [{"user_id": bob.public_id, "username": "bob", "display_name": "bob"}]}


@pytest.mark.parametrize("name", ["bo", "bob%", "b_b", "mallory", "nobody", "' OR 1=1 --"])
def test_finds_nobody_by_half_a_name_or_in_another_workspace(
    get: Get, alice: User, bob: User, mallory: User, name: str
) -> None:
    response = get("/v1/users", alice, username=name)
    assert (response.status_code, response.json()) == (200, {"items": []})


def test_finds_no_deactivated_user(get: Get, alice: User, bob: User) -> None:
    User.objects.filter(pk=bob.pk).update(is_active=False)
    assert get("/v1/users", alice, username="bob").json() == {"items": []}


def test_keeps_workspaces_apart_for_equal_names(get: Get, bob: User, mallory: User, acme: Workspace) -> None:
    other_bob = User.objects.create_user("bob", PASSWORD, workspace=acme)
    found = get("/v1/users", mallory, username="bob").json()["items"]
    assert [each["user_id"] for each in found] == [other_bob.public_id]


@pytest.mark.parametrize(
    ("query", "field", "code"),
    [
        pytest.param({}, "username", "required", id="missing"),
        pytest.param({"username": ""}, "username", "blank", id="blank"),
        pytest.param({"username": "x" * 65}, "username", "max_length", id="too long"),
        pytest.param({"username": "b\x00b"}, "username", "null_characters_not_allowed", id="NUL"),
        pytest.param({"username": "bob", "limit": "5"}, "limit", "unknown_field", id="unknown"),
    ],
)
def test_refuses_a_bad_query(get: Get, alice: User, query: dict[str, str], field: str, code: str) -> None:
    body = assert_problem(get("/v1/users", alice, **query), 422, "invalid_request")
    assert (field, code) in [(each["field"], each["code"]) for each in body["errors"]]


def test_forgets_a_user_who_was_deleted_meanwhile(get: Get, alice: User) -> None:
    assert get("/v1/users/me", alice).status_code == 200
    User.objects.filter(pk=alice.pk).delete()
    assert_problem(get("/v1/users/me", alice), 401, "not_authenticated")


# --- the directory -----------------------------------------------------------------------------------------------


def test_knows_the_users_of_a_workspace_and_no_others(alice: User, bob: User, mallory: User) -> None:
    asked = [alice.public_id, bob.public_id, mallory.public_id, "user_" + "0" * 32, "", "\x00", "whatsapp:+5511"]
    found = directory.users(alice.workspace_id, asked)
    assert found.keys() == {alice.public_id, bob.public_id}
    assert found[alice.public_id].display_name == "Alice Souza"
    assert found[bob.public_id].username == "bob"


def test_keeps_workspaces_apart_for_users_it_remembers(alice: User, mallory: User) -> None:
    assert directory.exists(mallory.workspace_id, mallory.public_id)
    assert not directory.exists(alice.workspace_id, mallory.public_id)


def test_sees_a_new_user_at_once_though_it_was_asked_before(alice: User) -> None:
    future = User(username="carol", workspace_id=alice.workspace_id)
    assert not directory.exists(alice.workspace_id, future.public_id)
    future.save()
    assert directory.exists(alice.workspace_id, future.public_id)


def test_asks_once_for_many_users_and_not_again_for_five_seconds(
    alice: User, bob: User, django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(directory, "cache", directory.new_cache(clock))
    both = [alice.public_id, bob.public_id]
    with django_assert_num_queries(1):
        directory.users(alice.workspace_id, both)
        directory.users(alice.workspace_id, both)
    clock.advance(5)
    with django_assert_num_queries(1):
        directory.users(alice.workspace_id, both)
