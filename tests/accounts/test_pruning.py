"""Sessions that are over are deleted, so many at a time; the others are not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session as AdminSession
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Session, User
from accounts.services import prune_sessions
from accounts.tokens import open_session, refresh

SECOND = timedelta(seconds=1)


def signed_in(user: User, *, ends_in: timedelta) -> Session:
    open_session(user)
    session = Session.objects.latest("rotated_at")
    Session.objects.filter(pk=session.pk).update(expires_at=timezone.now() + ends_in)
    return session


def at_the_admin(*, ends_in: timedelta) -> str:
    store = SessionStore()
    store.create()
    key: Any = store.session_key
    AdminSession.objects.filter(pk=key).update(expire_date=timezone.now() + ends_in)
    return str(key)


def test_sessions_go_when_they_have_expired(alice: User, bob: User) -> None:
    lives = [signed_in(alice, ends_in=60 * SECOND).pk]
    admin = [at_the_admin(ends_in=60 * SECOND)]
    for user in (alice, bob):
        signed_in(user, ends_in=-SECOND)
        at_the_admin(ends_in=-SECOND)
    assert prune_sessions(10) == 4
    assert prune_sessions(10) == 0
    assert list(Session.objects.values_list("pk", flat=True)) == lives
    assert list(AdminSession.objects.values_list("pk", flat=True)) == admin


def test_so_many_of_each_go_at_a_time_the_oldest_first(alice: User) -> None:
    ended = [signed_in(alice, ends_in=-days * timedelta(days=1)).pk for days in (1, 3, 2)]
    at_the_admin(ends_in=-SECOND)
    with CaptureQueriesContext(connection) as asked:
        assert prune_sessions(1) == 2
    assert len(asked) <= 4
    assert set(Session.objects.values_list("pk", flat=True)) == {ended[0], ended[2]}
    assert [prune_sessions(1) for _ in range(3)] == [1, 1, 0]


def test_a_session_in_use_outlives_the_pruning(alice: User) -> None:
    pair = open_session(alice)
    prune_sessions(10)
    assert refresh(pair.refresh).user_id == alice.public_id


def test_an_operator_stays_signed_in(client: Client, alice: User) -> None:
    client.force_login(alice)
    prune_sessions(10)
    assert client.session["_auth_user_id"] == str(alice.pk)
