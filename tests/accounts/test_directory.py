"""Who is who while the accounts' database is away."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from django.db import OperationalError

from accounts import directory
from accounts.models import DEFAULT_WORKSPACE_ID, User
from core.clock import ManualClock

pytestmark = pytest.mark.django_db
STRANGER = f"user_{'0' * 32}"


class Away:
    """In place of the database's answers, from when it is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        monkeypatch.setattr(directory, "_read", self._read)

    def _read(self, _: Collection[str]) -> None:
        self.asked += 1
        raise OperationalError("nobody is there")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock()
    monkeypatch.setattr(directory, "cache", directory.new_cache(clock))
    return clock


def test_of_many_who_ask_for_somebody_unknown_one_waits_for_a_database_that_is_away(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway asks on one thread: each who waited for a time-out held up everybody behind."""
    away = Away(monkeypatch)
    for _ in range(3):
        with pytest.raises(OperationalError):
            directory.user(DEFAULT_WORKSPACE_ID, STRANGER)
    assert away.asked == 1
    clock.advance(2)
    with pytest.raises(OperationalError):
        directory.user(DEFAULT_WORKSPACE_ID, STRANGER)
    assert away.asked == 2, "after two seconds somebody looks again"


def test_who_is_known_goes_on_beside_them(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = User.objects.create_user("alice", "correct horse battery")
    known = directory.user(DEFAULT_WORKSPACE_ID, alice.public_id)
    assert known is not None
    Away(monkeypatch)
    clock.advance(directory.MAX_AGE_S)
    assert directory.user(DEFAULT_WORKSPACE_ID, alice.public_id) == known
    with pytest.raises(OperationalError):
        directory.users(DEFAULT_WORKSPACE_ID, [alice.public_id, STRANGER])
    assert directory.user(DEFAULT_WORKSPACE_ID, alice.public_id) == known


def test_a_database_that_is_back_is_asked_again(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = User.objects.create_user("alice", "correct horse battery")
    with monkeypatch.context() as meanwhile:
        Away(meanwhile)
        with pytest.raises(OperationalError):
            directory.user(DEFAULT_WORKSPACE_ID, alice.public_id)
    clock.advance(2)
    found = directory.user(DEFAULT_WORKSPACE_ID, alice.public_id)
    assert found is not None
    assert found.username == "alice"
