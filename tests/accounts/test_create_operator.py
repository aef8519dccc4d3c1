"""`manage.py create_operator`: somebody who can sign in to the admin, without a password on any screen."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection

from accounts.models import AuditEvent, User

pytestmark = pytest.mark.django_db
CHOSEN = "staple staple horse 9"


def create_operator(path: Path) -> str:
    """What the command prints."""
    printed = StringIO()
    call_command("create_operator", "--file", str(path), stdout=printed)
    return printed.getvalue()


def test_the_operator_signs_in_with_the_password_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    printed = create_operator(path)
    credentials = json.loads(path.read_text())
    user = authenticate(**credentials)
    assert isinstance(user, User)
    assert user.is_staff
    assert user.is_superuser
    assert credentials["password"] not in printed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    create_operator(path)
    before = (path.read_text(), User.objects.get().password)
    assert create_operator(path) == ""
    assert (path.read_text(), User.objects.get().password) == before


def test_a_lost_file_gives_a_new_password(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    create_operator(path)
    old = json.loads(path.read_text())
    path.unlink()
    create_operator(path)
    assert authenticate(**old) is None
    assert authenticate(**json.loads(path.read_text())) is not None


def test_a_password_that_was_changed_since_stays(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    create_operator(path)
    before = path.read_text()
    operator = User.objects.get()
    operator.set_password(CHOSEN)
    operator.save()
    printed = create_operator(path)
    assert printed == f"operator has another password than {path} by now, and keeps it\n"
    assert authenticate(username="operator", password=CHOSEN) is not None
    assert path.read_text() == before
    assert CHOSEN not in printed
    assert not AuditEvent.objects.filter(action="operator.password_replaced").exists()


def test_a_password_that_could_not_be_replaced_is_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    create_operator(path)
    old = json.loads(path.read_text())
    path.unlink()

    def refuse(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE"):
            raise DatabaseError("refused")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse), pytest.raises(DatabaseError):
        create_operator(path)
    assert not path.exists()
    assert authenticate(**old) is not None
    create_operator(path)
    assert authenticate(**json.loads(path.read_text())) is not None


def test_a_deactivated_operator_stays_so_and_holds_nothing_up(tmp_path: Path) -> None:
    """`docker compose up` and `make run` go on behind it."""
    path = tmp_path / "operator.json"
    create_operator(path)
    User.objects.update(is_active=False)
    before = (path.read_text(), User.objects.values().get())
    printed = create_operator(path)
    assert printed.startswith("operator is deactivated and stays so; ")
    assert (path.read_text(), User.objects.values().get()) == before


def test_a_lost_database_gets_the_operator_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    create_operator(path)
    User.objects.all().delete()
    create_operator(path)
    assert authenticate(**json.loads(path.read_text())) is not None


@pytest.mark.parametrize(
    ("change", "said", "lost"),
    [
        # anybody may register that name
        pytest.param({"is_staff": False, "is_superuser": False}, "no operator: ", True, id="user, without a file"),
        pytest.param({"is_staff": False, "is_superuser": False}, "no operator: ", False, id="user, with a file"),
        # the admin is for staff
        pytest.param({"is_staff": False}, "no operator: ", True, id="superuser, without a file"),
        pytest.param({"is_staff": False}, "no operator: ", False, id="superuser, with a file"),
        pytest.param(
            {"is_active": False}, "deactivated: activate them in the admin, or ", True, id="deactivated, without a file"
        ),
    ],
)
def test_a_name_of_somebody_who_could_not_sign_in_is_refused(
    tmp_path: Path, change: dict[str, bool], said: str, lost: bool
) -> None:
    path = tmp_path / "operator.json"
    create_operator(path)
    if lost:
        path.unlink()
    User.objects.update(username="OPERATOR", **change)
    before = User.objects.values().get()
    with pytest.raises(CommandError) as refused:
        create_operator(path)
    file = "" if lost else f"remove {path} and "
    assert str(refused.value) == f"OPERATOR is {said}{file}choose another --username. Nothing was changed."
    assert (path.exists(), User.objects.values().get()) == (not lost, before)


@pytest.mark.parametrize("content", ["", "[]", '{"username": "operator"}'])
def test_a_broken_file_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "operator.json"
    path.write_text(content)
    with pytest.raises(CommandError, match=r"operator\.json holds no username and password"):
        create_operator(path)
