"""The audit: who did what to accounts, through every door; nothing takes it back, and no secret is in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from pytest_django import DjangoCaptureOnCommitCallbacks, Settings

from accounts import audit
from accounts.models import AuditEvent, Session, User, Workspace
from accounts.tokens import open_session
from tests.accounts.conftest import PASSWORD, Post

pytestmark = pytest.mark.django_db(databases=["default", "messages"])
NEW_PASSWORD = "staple staple horse 9"
USERS, GROUPS, WORKSPACES = "/admin/accounts/user/", "/admin/auth/group/", "/admin/accounts/workspace/"
EVENTS = "/admin/accounts/auditevent/"


@pytest.fixture
def boss(default_workspace: Workspace) -> User:
    """An operator whom no command made."""
    return User.objects.create_user("boss", PASSWORD, is_staff=True, is_superuser=True)


@pytest.fixture
def admin(boss: User) -> Client:
    client = Client(raise_request_exception=False, headers={"X-Forwarded-For": "198.51.100.77"})
    client.force_login(boss)
    return client


@pytest.fixture(autouse=True)
def _behind_a_proxy(settings: Settings) -> None:
    settings.TRUSTED_PROXIES = 1


@pytest.fixture(autouse=True)
def _no_secret(db: None, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test did: passwords and hashes are in no event and no line."""
    caplog.set_level(logging.INFO)
    yield
    written = [str(row) for row in AuditEvent.objects.values()] + [str(vars(line)) for line in caplog.records]
    hashes = User.objects.values_list("password", flat=True)
    assert not [each for each in (PASSWORD, NEW_PASSWORD, "wrong", *hashes) if any(each in text for text in written)]


def events() -> list[tuple[str, str, str, str, str]]:
    """All but their time and place, oldest first."""
    return list(AuditEvent.objects.order_by("pk").values_list("action", "actor", "workspace", "target", "details"))


def posted(client: Client, url: str, **form: Any) -> None:
    response = client.post(url, form)
    assert response.status_code == 302, response.content.decode()


# --- in the admin ------------------------------------------------------------------------------------------------


def test_a_user_who_is_added_changed_and_deleted(admin: Client, boss: User, acme: Workspace) -> None:
    passwords = {"usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
    posted(admin, f"{USERS}add/", workspace=str(acme.id), username="carol", display_name="Carol Jones", **passwords)
    carol = User.objects.get(username="carol")
    posted(admin, f"{USERS}{carol.pk}/change/", username="carol", display_name="", is_active="on", is_staff="on")
    posted(admin, f"{USERS}{carol.pk}/delete/", post="yes")
    fields = "username, display_name, password1, password2, workspace"
    added, changed, deleted = events()
    assert added[:4] == ("user.added", boss.public_id, "acme", carol.public_id)
    assert set(added[4].split("; ")[0].split(", ")) == set(fields.split(", "))
    assert added[4].endswith("; is_active=True; is_staff=False; is_superuser=False")
    said = "display_name, is_staff; is_active=True; is_staff=True; is_superuser=False"
    assert changed == ("user.changed", boss.public_id, "acme", carol.public_id, said)
    assert deleted == ("user.deleted", boss.public_id, "acme", carol.public_id, "")
    assert set(AuditEvent.objects.values_list("address", flat=True)) == {"198.51.100.0/24"}
    assert "Carol Jones" not in str(list(AuditEvent.objects.values()))


@pytest.mark.parametrize(
    "form",
    [
        {"usable_password": "true", "password1": NEW_PASSWORD, "password2": NEW_PASSWORD},
        {"usable_password": "false", "unset-password": "1"},
    ],
    ids=["set", "taken away"],
)
def test_a_password_that_an_operator_changes(admin: Client, boss: User, alice: User, form: dict[str, str]) -> None:
    posted(admin, f"{USERS}{alice.pk}/password/", **form)
    said = "password; is_active=True; is_staff=False; is_superuser=False"
    assert events() == [("user.changed", boss.public_id, "default", alice.public_id, said)]


def test_users_who_are_switched_off_or_deleted_together(admin: Client, boss: User, alice: User, bob: User) -> None:
    everybody = [str(each.pk) for each in (boss, alice, bob)]
    User.objects.filter(pk=bob.pk).update(is_active=False)
    posted(admin, USERS, action="deactivate", _selected_action=everybody)
    said = "is_active; is_active=False; is_staff=False; is_superuser=False"
    assert events() == [("user.changed", boss.public_id, "default", alice.public_id, said)]  # the others were so
    posted(admin, USERS, action="delete_selected", _selected_action=everybody[1:], post="yes")
    assert {each[:4] for each in events()[1:]} == {
        ("user.deleted", boss.public_id, "default", each.public_id) for each in (alice, bob)
    }


def test_sessions_that_an_operator_ends(admin: Client, boss: User, alice: User, bob: User) -> None:
    posted(admin, USERS, action="end_sessions", _selected_action=[str(each.pk) for each in (alice, bob)])
    said = "is_active=True; is_staff=False; is_superuser=False"
    assert set(events()) == {
        ("user.sessions_ended", boss.public_id, "default", each.public_id, said) for each in (alice, bob)
    }


def test_groups_and_workspaces(admin: Client, boss: User) -> None:
    right = Permission.objects.get(codename="view_auditevent")
    posted(admin, f"{GROUPS}add/", name="auditors")
    group = Group.objects.get()
    posted(admin, f"{GROUPS}{group.pk}/change/", name="auditors", permissions=[str(right.pk)])
    posted(admin, f"{GROUPS}{group.pk}/delete/", post="yes")
    posted(admin, f"{WORKSPACES}add/", slug="shop", name="The Shop")
    shop = Workspace.objects.get(slug="shop")
    posted(admin, f"{WORKSPACES}{shop.pk}/change/", slug="shop", name="The Shop", open_registration="on")
    by = boss.public_id
    assert events() == [
        ("group.added", by, "", "auditors", "name"),
        ("group.changed", by, "", "auditors", "permissions"),
        ("group.deleted", by, "", "auditors", ""),
        ("workspace.added", by, "shop", "shop", "slug, name; open_registration=False"),
        ("workspace.changed", by, "shop", "shop", "open_registration; open_registration=True"),
    ]


def test_what_a_form_refuses_did_not_happen(admin: Client, alice: User) -> None:
    assert admin.post(f"{USERS}{alice.pk}/change/", {"username": "no such name"}).status_code == 200
    assert events() == []


# --- by commands -------------------------------------------------------------------------------------------------


def test_operators_whom_commands_make(default_workspace: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    def create_operator() -> None:
        call_command("create_operator", "--file", str(tmp_path / "operator.json"), stdout=StringIO())

    monkeypatch.setenv("LOGNAME", "ana")
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", PASSWORD)
    call_command("createsuperuser", interactive=False, username="chief", stdout=StringIO())
    with pytest.raises(CommandError):
        call_command("createsuperuser", interactive=False, username="chief", stdout=StringIO())
    create_operator()
    create_operator()
    before = (tmp_path / "operator.json").read_text()
    (tmp_path / "operator.json").unlink()
    create_operator()
    chief, operator = (User.objects.get(username=each).public_id for each in ("chief", "operator"))
    assert events() == [
        ("operator.created", "manage.py (ana)", "default", chief, ""),
        ("operator.created", "manage.py (ana)", "default", operator, ""),
        ("operator.password_replaced", "manage.py (ana)", "default", operator, ""),
    ]
    for text in (before, (tmp_path / "operator.json").read_text()):
        assert text.split('"')[-2] not in str(list(AuditEvent.objects.values()))


# --- signing in --------------------------------------------------------------------------------------------------


def at_admin(name: str, password: str) -> bool:
    form = {"username": name, "password": password, "next": "/admin/"}
    return Client(headers={"X-Forwarded-For": "2001:db8:1:2::3"}).post("/admin/login/", form).status_code == 302


def test_operators_who_sign_in_by_either_door_and_nobody_else(post: Post, boss: User, alice: User) -> None:
    assert at_admin("boss", PASSWORD)
    assert not at_admin("boss", "wrong")
    assert not at_admin("alice", PASSWORD)
    tokens = post("/auth/token", {"username": "boss", "password": PASSWORD}).json()
    assert post("/auth/token/refresh", {"refresh_token": tokens["refresh_token"]}).status_code == 200
    assert post("/auth/token", {"username": "alice", "password": PASSWORD}).status_code == 200
    assert post("/auth/register", {"username": "carol", "password": PASSWORD}).status_code == 201
    signed_in = ("operator.signed_in", boss.public_id, "default", boss.public_id)
    assert events() == [(*signed_in, "admin"), (*signed_in, "API")]
    assert AuditEvent.objects.earliest("pk").address == "2001:db8:1::/48"


def test_operators_who_sign_out_of_the_api_once_and_nobody_else(post: Post, boss: User, alice: User) -> None:
    for user in (boss, alice):
        token = post("/auth/token", {"username": user.username, "password": PASSWORD}).json()["refresh_token"]
        answers = [post("/auth/logout", {"refresh_token": each}) for each in (token, token, "rubbish")]
        assert [each.status_code for each in answers] == [204] * 3
    by = (boss.public_id, "default", boss.public_id, "API")
    assert events() == [("operator.signed_in", *by), ("operator.signed_out", *by)]


def test_a_sign_out_that_cannot_be_written_down_is_none(post: Post, boss: User) -> None:
    token = post("/auth/token", {"username": "boss", "password": PASSWORD}).json()["refresh_token"]
    with broken("accounts_auditevent"):
        assert post("/auth/logout", {"refresh_token": token}).status_code == 500
    assert post("/auth/token/refresh", {"refresh_token": token}).status_code == 200


def test_the_guess_that_locks_a_user_by_either_door(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = 2
    guess = {"username": "ALICE", "password": "wrong"}
    assert [post("/auth/token", guess, X_Forwarded_For="203.0.113.6").status_code for _ in range(4)] == [
        401,
        401,
        429,
        429,
    ]
    assert not any(at_admin("alice", "wrong") for _ in range(4))
    locked = ("sign_in.locked", "", "default", alice.public_id)
    assert events() == [(*locked, "API: the user, from here"), (*locked, "admin: the user, from here")]
    assert set(AuditEvent.objects.values_list("address", flat=True)) == {"203.0.113.0/24", "2001:db8:1::/48"}


def test_an_address_that_tries_many_names_none_of_which_is_kept(post: Post, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_ADDRESS = 3
    guesses = [{"username": f"hunter{n}", "password": "wrong", "workspace": "secret-9"} for n in range(4)]
    assert [post("/auth/token", each).status_code for each in guesses] == [401, 401, 401, 429]
    assert events() == [("sign_in.locked", "", "", "", "API: the address")]
    assert not [word for word in ("hunter", "secret-9") if word in str(list(AuditEvent.objects.values()))]


def test_a_right_password_locks_nobody(post: Post, alice: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_PER_USER = 1
    assert [post("/auth/token", {"username": "alice", "password": PASSWORD}).status_code for _ in range(3)] == [200] * 3
    assert events() == []


# --- for good, and only what happened ----------------------------------------------------------------------------


@contextmanager
def broken(table: str) -> Iterator[None]:
    """The database refuses writes to one table."""

    def refuse(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if table in sql and sql.startswith(("INSERT", "UPDATE", "DELETE")):
            raise DatabaseError("refused")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse):
        yield


Act = Callable[[Client, User, Path], object]
ACTS: dict[str, Act] = {
    "change": lambda admin, alice, _: admin.post(f"{USERS}{alice.pk}/change/", {"username": "alicia"}),
    "delete": lambda admin, alice, _: admin.post(f"{USERS}{alice.pk}/delete/", {"post": "yes"}),
    "delete selected": lambda admin, alice, _: admin.post(
        USERS, {"action": "delete_selected", "_selected_action": [str(alice.pk)], "post": "yes"}
    ),
    "password": lambda admin, alice, _: admin.post(
        f"{USERS}{alice.pk}/password/",
        {"usable_password": "true", "password1": NEW_PASSWORD, "password2": NEW_PASSWORD},
    ),
    "deactivate": lambda admin, alice, _: admin.post(
        USERS, {"action": "deactivate", "_selected_action": [str(alice.pk)]}
    ),
    "create_operator": lambda _, __, path: call_command("create_operator", "--file", str(path), stdout=StringIO()),
}
FAILING_LATER = ("change", "delete", "delete selected", "password")  # Django's own log is written after the event


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_nothing_is_done_that_cannot_be_written_down(act: Act, admin: Client, alice: User, tmp_path: Path) -> None:
    before = list(User.objects.order_by("pk").values())
    with broken("accounts_auditevent"):
        attempt(lambda: act(admin, alice, tmp_path / "operator.json"))
    assert (list(User.objects.order_by("pk").values()), events()) == (before, [])
    act(admin, alice, tmp_path / "operator2.json")
    assert list(User.objects.order_by("pk").values()) != before  # it was the audit that kept it from happening
    assert len(events()) == 1


@pytest.mark.parametrize(
    ("act", "table"),
    [*((each, "accounts_user") for each in ACTS), *((each, "django_admin_log") for each in FAILING_LATER)],
)
def test_nothing_is_written_down_that_was_not_done(
    act: str,
    table: str,
    admin: Client,
    alice: User,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    with django_capture_on_commit_callbacks(execute=True), broken(table):
        attempt(lambda: ACTS[act](admin, alice, tmp_path / "operator.json"))
    assert events() == []
    assert "audit" not in [line.getMessage() for line in caplog.records]


def test_no_session_ends_without_an_event(admin: Client, alice: User) -> None:
    open_session(alice)
    form = {"action": "end_sessions", "_selected_action": [str(alice.pk)]}
    with broken("accounts_auditevent"):
        assert admin.post(USERS, form).status_code == 500
    assert Session.objects.count() == 1
    posted(admin, USERS, **form)
    assert Session.objects.count() == 0


@pytest.mark.parametrize("act", ["change", "deactivate"])
def test_nobody_is_switched_off_whose_sessions_would_stay(act: str, admin: Client, alice: User, tmp_path: Path) -> None:
    open_session(alice)
    with broken("accounts_session"):
        attempt(lambda: ACTS[act](admin, alice, tmp_path / "operator.json"))
    alice.refresh_from_db()
    assert (alice.is_active, events()) == (True, [])


def attempt(act: Callable[[], object]) -> None:
    """It fails: a command with an error, a page with a 500."""
    try:
        answer: Any = act()
    except DatabaseError:
        return
    assert answer.status_code == 500


def test_what_rolls_back_later_takes_its_event_and_its_line_along(
    caplog: pytest.LogCaptureFixture, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        audit.record("user.changed", actor="user_1")
        assert len(events()) == 1
        transaction.set_rollback(True)
    assert (events(), [line for line in caplog.records if line.getMessage() == "audit"]) == ([], [])


def test_each_event_is_a_log_line_as_well(
    admin: Client,
    boss: User,
    alice: User,
    caplog: pytest.LogCaptureFixture,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        posted(admin, f"{USERS}{alice.pk}/delete/", post="yes")
    [line] = [vars(line) for line in caplog.records if line.getMessage() == "audit"]
    event = AuditEvent.objects.get()
    assert (line["event"], line["action"], line["actor"]) == (event.pk, "user.deleted", boss.public_id)
    assert (line["workspace"], line["target"]) == ("default", alice.public_id)
    assert line["address"] == "198.51.100.0/24"


def test_an_event_outlives_whom_it_names(admin: Client, boss: User, post: Post) -> None:
    post("/auth/token", {"username": "boss", "password": PASSWORD})
    boss.delete()
    assert [each[1] for each in events()] == [boss.public_id]


def test_no_code_changes_or_deletes_an_event(db: None) -> None:
    audit.record("user.added", actor="user_1")
    event = AuditEvent.objects.get()
    for change in (
        event.save,
        event.delete,
        lambda: AuditEvent.objects.update(actor=""),
        AuditEvent.objects.all().delete,
        AuditEvent._default_manager.filter(pk=event.pk).delete,
        lambda: AuditEvent.objects.bulk_update([event], ["actor"]),
    ):
        with pytest.raises(audit.AppendOnly), transaction.atomic():
            change()
    assert [each[:2] for each in events()] == [("user.added", "user_1")]


def test_the_admin_shows_events_and_takes_none_back(admin: Client, boss: User) -> None:
    audit.record("user.added", actor="user_17", target="user_18", workspace="acme")
    event = AuditEvent.objects.get()
    attempts = {
        f"{EVENTS}add/": {"action": "made.up"},
        f"{EVENTS}{event.pk}/change/": {"action": "made.up", "actor": "somebody"},
        f"{EVENTS}{event.pk}/delete/": {"post": "yes"},
    }
    assert {admin.post(url, form).status_code for url, form in attempts.items()} == {403}
    form = {"action": "delete_selected", "_selected_action": [str(event.pk)], "post": "yes"}
    assert admin.post(EVENTS, form).status_code in (200, 302)
    assert [each[:2] for each in events()] == [("user.added", "user_17")]
    assert "user_17" in admin.get(f"{EVENTS}{event.pk}/change/").content.decode()


def test_the_admin_finds_events(admin: Client) -> None:
    audit.record("user.added", actor="user_17", target="user_18", workspace="acme")
    audit.record("workspace.changed", actor="user_19", target="shop", workspace="shop")

    def found(**query: str) -> list[str]:
        page = admin.get(EVENTS, query).content.decode()
        return [each for each in ("user_17", "user_19") if f">{each}<" in page]

    assert found() == ["user_17", "user_19"]
    assert found(q="user_18") == found(workspace="acme") == found(action="user.added") == ["user_17"]


@pytest.mark.parametrize("may", [True, False])
def test_is_for_those_with_the_permission(client: Client, alice: User, may: bool) -> None:
    User.objects.filter(pk=alice.pk).update(is_staff=True)
    if may:
        alice.user_permissions.add(Permission.objects.get(codename="view_auditevent"))
    client.force_login(User.objects.get(pk=alice.pk))
    assert client.get(EVENTS).status_code == (200 if may else 403)


def test_has_no_permission_to_do_more_than_look() -> None:
    assert [each.codename for each in Permission.objects.filter(content_type__model="auditevent")] == [
        "view_auditevent"
    ]


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("192.0.2.200", "192.0.2.0/24"),
        ("2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("unknown", ""),
        ("local", ""),
        ("", ""),
    ],
)
def test_of_an_address_a_place_is_kept(address: str, kept: str) -> None:
    audit.record("user.added", actor="user_1", address=address)
    assert AuditEvent.objects.get().address == kept


def test_a_machines_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 1234567)  # as in a container that is run as any user
    assert audit.command_actor() == "manage.py (1234567)"
