"""Operators in the admin: signing in, creating users, switching them off; and `createsuperuser`."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import aauthenticate, authenticate
from django.contrib.auth.models import Group, Permission
from django.core.management import CommandError, call_command
from django.test import Client
from pytest_django import Settings

from accounts.admin import RIGHTS
from accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from accounts.tokens import open_session
from tests.accounts.conftest import PASSWORD, Post

pytestmark = pytest.mark.django_db(databases=["default", "messages"])
LOGIN, USERS = "/admin/login/", "/admin/accounts/user/"


@pytest.fixture
def operator(default_workspace: Workspace) -> User:
    return User.objects.create_superuser("operator", PASSWORD)


@pytest.fixture
def admin(client: Client, operator: User) -> Client:
    client.force_login(operator)
    return client


def staff(user: User, *rights: str) -> User:
    """An operator who may do that and no more."""
    user.is_staff = True
    user.save()
    user.user_permissions.set(Permission.objects.filter(codename__in=rights))
    return User.objects.get(pk=user.pk)


def sign_in(client: Client, username: str, password: str = PASSWORD) -> bool:
    response = client.post(LOGIN, {"username": username, "password": password, "next": "/admin/"})
    return response.status_code == 302


@pytest.mark.parametrize("name", ["operator", "OPERATOR", "default/operator"])
def test_lets_an_operator_in(client: Client, operator: User, name: str) -> None:
    assert sign_in(client, name)
    assert client.get("/admin/").status_code == 200


def test_lets_an_operator_of_another_workspace_in_by_workspace_and_name(client: Client, acme: Workspace) -> None:
    User.objects.create_superuser("chief", PASSWORD, workspace=acme)
    assert not sign_in(client, "chief")
    assert sign_in(client, "acme/chief")


@pytest.mark.parametrize(
    ("name", "password"),
    [("operator", "wrong"), ("nobody", PASSWORD), ("alice", PASSWORD), ("nowhere/operator", PASSWORD), ("/", "x")],
)
def test_keeps_everybody_else_out(client: Client, operator: User, alice: User, name: str, password: str) -> None:
    assert not sign_in(client, name, password)
    assert client.get("/admin/").status_code == 302


def test_stops_guessing_at_an_operator_through_either_door(
    client: Client, post: Post, operator: User, settings: Settings
) -> None:
    settings.LOGIN_FAILURES_PER_USER = 2
    assert not sign_in(client, "operator", "wrong")
    assert post("/auth/token", {"username": "operator", "password": "wrong"}).status_code == 401
    assert not sign_in(client, "operator")
    assert post("/auth/token", {"username": "operator", "password": PASSWORD}).status_code == 429


@pytest.mark.django_db(transaction=True, databases=["default", "messages"])
async def test_authenticates_from_async_code_alike(operator: User) -> None:
    found = await aauthenticate(None, username="operator", password=PASSWORD)
    assert found == operator
    assert await aauthenticate(None, username="operator", password="wrong") is None


def test_authenticates_nobody_without_credentials(operator: User) -> None:
    assert authenticate(None) is None
    assert authenticate(None, username="operator") is None


def test_creates_a_user_with_a_password_in_the_chosen_workspace(admin: Client, acme: Workspace, post: Post) -> None:
    form = {
        "workspace": str(acme.id),
        "username": "carol",
        "display_name": "Carol",
        "usable_password": "true",
        "password1": PASSWORD,
        "password2": PASSWORD,
    }
    assert admin.post("/admin/accounts/user/add/", form).status_code == 302
    assert User.objects.get(username="carol").workspace_id == acme.id
    credentials = {"username": "carol", "password": PASSWORD, "workspace": "acme"}
    assert post("/auth/token", credentials).status_code == 200


@pytest.mark.parametrize("name", ["alice", "ALICE"])
def test_explains_that_a_name_is_taken(admin: Client, alice: User, name: str) -> None:
    form = {
        "workspace": str(DEFAULT_WORKSPACE_ID),
        "username": name,
        "usable_password": "true",
        "password1": PASSWORD,
        "password2": PASSWORD,
    }
    response = admin.post("/admin/accounts/user/add/", form)
    assert response.status_code == 200
    assert "This username is taken." in response.content.decode()
    assert User.objects.filter(username__iexact="alice").count() == 1


@pytest.mark.parametrize("name", ["alice", "ALICE"])
def test_explains_that_a_name_is_taken_by_somebody_else_of_the_workspace(admin: Client, alice: User, name: str) -> None:
    bobby = User.objects.create_user("bobby", PASSWORD, workspace=alice.workspace)
    address = f"/admin/accounts/user/{bobby.pk}/change/"
    response = admin.post(address, {"username": name, "display_name": "", "is_active": "on"})
    assert response.status_code == 200
    assert "This username is taken." in response.content.decode()
    assert admin.post(address, {"username": "Bobby", "display_name": "", "is_active": "on"}).status_code == 302


def test_the_name_with_which_a_workspace_signs_in_stays(admin: Client, acme: Workspace) -> None:
    admin.post(f"/admin/accounts/workspace/{acme.pk}/change/", {"slug": "other", "name": "Renamed"})
    acme.refresh_from_db()
    assert (acme.slug, acme.name) == ("acme", "Renamed")


def test_takes_a_name_again_in_another_workspace(admin: Client, alice: User, acme: Workspace) -> None:
    form = {
        "workspace": str(acme.id),
        "username": "alice",
        "usable_password": "true",
        "password1": PASSWORD,
        "password2": PASSWORD,
    }
    assert admin.post("/admin/accounts/user/add/", form).status_code == 302
    assert User.objects.filter(username="alice").count() == 2


@pytest.mark.parametrize("query", ["alice", "Souza", "user_"])
def test_finds_users_by_name_and_id(admin: Client, alice: User, query: str) -> None:
    page = admin.get("/admin/accounts/user/", {"q": query}).content.decode()
    assert alice.public_id in page


def test_switches_users_off_and_on_but_never_oneself(admin: Client, operator: User, alice: User) -> None:
    everybody = [str(operator.pk), str(alice.pk)]

    def run(action: str) -> None:
        admin.post("/admin/accounts/user/", {"action": action, "_selected_action": everybody})
        operator.refresh_from_db()
        alice.refresh_from_db()

    run("deactivate")
    assert (operator.is_active, alice.is_active) == (True, False)
    run("activate")
    assert alice.is_active


def switched_by_action(admin: Client, user: User, *, on: bool) -> None:
    form = {"action": "activate" if on else "deactivate", "_selected_action": [str(user.pk)]}
    assert admin.post(USERS, form).status_code == 302


def switched_by_form(admin: Client, user: User, *, on: bool) -> None:
    rights = {"is_staff": "on", "is_superuser": "on", **({"is_active": "on"} if on else {})}
    assert admin.post(f"{USERS}{user.pk}/change/", {"username": user.username, **rights}).status_code == 302


def is_over(post: Post, refresh_token: str) -> bool:
    return bool(post("/auth/token/refresh", {"refresh_token": refresh_token}).status_code == 401)


@pytest.mark.parametrize("switch", [switched_by_action, switched_by_form])
def test_whoever_is_switched_off_and_on_again_has_to_sign_in_again(
    switch: Callable[..., None], admin: Client, post: Post
) -> None:
    chief = User.objects.create_superuser("chief", PASSWORD)
    token, browser = open_session(chief).refresh, Client()
    browser.force_login(chief)
    switch(admin, chief, on=False)
    switch(admin, chief, on=True)
    assert sign_in(Client(), "chief")
    assert is_over(post, token)
    assert browser.get("/admin/").status_code == 302


@pytest.mark.parametrize("switch", [switched_by_action, switched_by_form])
def test_a_session_that_outlived_its_user_being_switched_off_ends_with_being_switched_on(
    switch: Callable[..., None], admin: Client, alice: User, post: Post
) -> None:
    """As in a release that ended none, or where something else than the admin switched."""
    token = open_session(alice).refresh
    User.objects.filter(pk=alice.pk).update(is_active=False)
    switch(admin, alice, on=True)
    assert is_over(post, token)


def test_ends_the_sessions_of_those_who_are_chosen_but_not_the_one_that_asks(
    admin: Client, operator: User, alice: User, bob: User, post: Post
) -> None:
    ended, going_on = [open_session(alice).refresh for _ in range(2)], open_session(bob).refresh
    elsewhere = Client()
    elsewhere.force_login(operator)
    form = {"action": "end_sessions", "_selected_action": [str(each.pk) for each in (operator, alice)]}
    assert "Sessions ended: 3" in admin.post(USERS, form, follow=True).content.decode()
    assert all(is_over(post, token) for token in ended)
    assert elsewhere.get("/admin/").status_code == 302
    assert admin.get("/admin/").status_code == 200
    assert not is_over(post, going_on)


@pytest.mark.parametrize(("right", "may"), [("change_user", True), ("view_user", False)])
def test_whoever_may_change_users_may_end_sessions(
    client: Client, alice: User, bob: User, post: Post, right: str, may: bool
) -> None:
    token = open_session(bob).refresh
    client.force_login(staff(alice, right))
    client.post(USERS, {"action": "end_sessions", "_selected_action": [str(bob.pk)]})
    assert is_over(post, token) is may


# --- operators who are no superusers -----------------------------------------------------------------------------


@pytest.fixture
def helper(client: Client, alice: User) -> Client:
    """Alice, who may do to users whatever a permission allows."""
    client.force_login(staff(alice, "add_user", "view_user", "change_user", "delete_user"))
    return client


EVERY_RIGHT = {"is_active": "on", "is_staff": "on", "is_superuser": "on"}


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_nobody_gives_rights_but_a_superuser(helper: Client, alice: User, bob: User, name: str) -> None:
    group = Group.objects.create(name="auditors")
    every = {"groups": [str(group.pk)], "user_permissions": [str(each.pk) for each in Permission.objects.all()]}
    user, before = User.objects.get(username=name), rights_of(name)
    form: dict[str, Any] = {"username": name, "display_name": "Changed", **EVERY_RIGHT, **every}
    assert helper.post(f"{USERS}{user.pk}/change/", form).status_code == 302
    user.refresh_from_db()
    assert (user.display_name, rights_of(name)) == ("Changed", before)


def test_nobody_adds_an_operator_but_a_superuser(helper: Client) -> None:
    passwords = {"usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
    names = {"workspace": str(DEFAULT_WORKSPACE_ID), "username": "carol"}
    assert helper.post(f"{USERS}add/", {**names, **passwords, **EVERY_RIGHT}).status_code == 302
    assert rights_of("carol") == (False, False, [], [])
    carol = User.objects.get(username="carol")
    page = helper.get(f"{USERS}{carol.pk}/change/").content.decode()  # where adding leads to
    assert 'name="display_name"' in page
    assert not [each for each in RIGHTS if f'name="{each}"' in page]


def test_a_superuser_gives_rights(admin: Client, bob: User) -> None:
    right = Permission.objects.get(codename="view_auditevent")
    form: dict[str, Any] = {"username": "bob", **EVERY_RIGHT, "user_permissions": [str(right.pk)]}
    assert admin.post(f"{USERS}{bob.pk}/change/", form).status_code == 302
    assert rights_of("bob") == (True, True, [], [right.pk])


def rights_of(name: str) -> tuple[bool, bool, list[int], list[int]]:
    user = User.objects.get(username=name)
    groups, permissions = user.groups.values_list("pk", flat=True), user.user_permissions.values_list("pk", flat=True)
    return user.is_staff, user.is_superuser, list(groups), list(permissions)


@pytest.mark.parametrize(
    ("page", "form"),
    [
        pytest.param("change", {"username": "mine", **EVERY_RIGHT}, id="change"),
        pytest.param("change", {"username": "operator", "is_staff": "on", "is_superuser": "on"}, id="switch off"),
        pytest.param("delete", {"post": "yes"}, id="delete"),
        pytest.param(
            "password", {"usable_password": "true", "password1": PASSWORD * 2, "password2": PASSWORD * 2}, id="password"
        ),
        pytest.param("password", {"usable_password": "false", "unset-password": "1"}, id="no password"),
    ],
)
def test_nobody_lays_hands_on_a_superuser_but_another_one(
    helper: Client, operator: User, page: str, form: dict[str, str]
) -> None:
    before = User.objects.values().get(pk=operator.pk)
    assert helper.post(f"{USERS}{operator.pk}/{page}/", form).status_code == 403
    assert User.objects.values().get(pk=operator.pk) == before
    shown = helper.get(f"{USERS}{operator.pk}/change/")
    assert shown.status_code == 200  # to look at
    assert operator.password.rpartition("$")[2] not in shown.content.decode()


@pytest.mark.parametrize("action", ["activate", "deactivate", "end_sessions"])
def test_what_is_done_to_many_leaves_superusers_out_and_says_so(
    helper: Client, operator: User, bob: User, post: Post, action: str
) -> None:
    token, ended = open_session(operator).refresh, open_session(bob).refresh
    User.objects.exclude(username="alice").update(is_active=action != "activate")
    form = {"action": action, "_selected_action": [str(operator.pk), str(bob.pk)]}
    page = helper.post(USERS, form, follow=True).content.decode()
    assert "1 left as they were: only superusers change superusers" in page
    operator.refresh_from_db()
    bob.refresh_from_db()
    assert operator.is_active == (action != "activate")
    assert bob.is_active == (action != "deactivate")
    User.objects.update(is_active=True)
    assert (is_over(post, token), is_over(post, ended)) == (False, True)


def test_superusers_are_not_deleted_among_others(helper: Client, operator: User, bob: User) -> None:
    everybody = [str(operator.pk), str(bob.pk)]
    form = {"action": "delete_selected", "_selected_action": everybody, "post": "yes"}
    assert helper.post(USERS, form).status_code == 403
    assert User.objects.filter(pk__in=everybody).count() == 2


@pytest.mark.parametrize("page", ["user", "user/add", "workspace", "workspace/add", "user/{user}/change"])
def test_shows_every_page(admin: Client, alice: User, page: str) -> None:
    response = admin.get(f"/admin/accounts/{page.format(user=alice.pk)}/")
    assert response.status_code == 200


def test_never_shows_a_password_hash(admin: Client, alice: User) -> None:
    page = admin.get(f"/admin/accounts/user/{alice.pk}/change/").content.decode()
    assert alice.password.rpartition("$")[2] not in page


def test_keeps_a_user_in_their_workspace(admin: Client, alice: User, acme: Workspace) -> None:
    form = {"workspace": str(acme.id), "username": "alice", "display_name": "Renamed", "is_active": "on"}
    assert admin.post(f"/admin/accounts/user/{alice.pk}/change/", form).status_code == 302
    alice.refresh_from_db()
    assert (alice.display_name, alice.workspace_id) == ("Renamed", DEFAULT_WORKSPACE_ID)


def test_never_deletes_a_workspace(admin: Client, acme: Workspace) -> None:
    response = admin.post(f"/admin/accounts/workspace/{acme.id}/delete/", {"post": "yes"})
    assert response.status_code == 403
    assert Workspace.objects.filter(id=acme.id).exists()


# --- manage.py createsuperuser -----------------------------------------------------------------------------------

Create = Callable[..., str]


@pytest.fixture
def create(default_workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Create:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", PASSWORD)

    def run(**options: Any) -> str:
        out = io.StringIO()
        call_command("createsuperuser", interactive=False, stdout=out, **options)
        return out.getvalue()

    return run


def test_creates_an_operator_from_the_command_line(create: Create) -> None:
    create(username="boss")
    boss = User.objects.get(username="boss")
    assert (boss.is_staff, boss.is_superuser, boss.workspace_id) == (True, True, DEFAULT_WORKSPACE_ID)
    assert boss.check_password(PASSWORD)


@pytest.mark.parametrize(
    ("name", "why"),
    [("alice", "taken"), ("Alice", "taken"), ("acme/boss", "letters"), ("a b", "letters"), ("", "blank")],
)
def test_explains_why_it_creates_no_operator(create: Create, alice: User, name: str, why: str) -> None:
    with pytest.raises(CommandError, match=why):
        create(username=name)


def test_has_a_default_workspace_that_is_open(default_workspace: Workspace) -> None:
    assert (default_workspace.slug, default_workspace.open_registration) == ("default", True)
