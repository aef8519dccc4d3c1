"""Channel accounts as processes know them, and while the accounts' database is away."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from core.cache import LastKnown, TtlCache
from core.clock import ManualClock
from core.errors import Unavailable
from messaging import channels
from messaging.errors import SecretsUnreadable
from messaging.models import ChannelAccount

pytestmark = pytest.mark.django_db

NONE_KEPT = 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock()
    own: LastKnown[Any, Any] = LastKnown(
        ttl_s=channels.CACHED_S, outage_s=channels.CACHED_AWAY_S - channels.CACHED_S, clock=clock
    )
    monkeypatch.setattr(channels, "_recent", own)
    monkeypatch.setattr(channels, "_absent", TtlCache(ttl_s=channels.CACHED_S, size=NONE_KEPT, clock=clock))
    return clock


def add(account_id: str, *agents: User, channel: str = "whatsapp", make_default: bool = False) -> UUID:
    """An account of the default workspace, whose id this is."""
    workspace = Workspace.objects.get(id=DEFAULT_WORKSPACE_ID)
    channels.register(
        workspace=workspace,
        channel=channel,
        account_id=account_id,
        credentials={"access_token": "t", "app_secret": "s", "verify_token": "v"},
        agents=agents,
        make_default=make_default,
    )
    return workspace.pk


def seen(workspace_id: UUID) -> list[object]:
    """What the pipeline asks for."""
    return [
        *(channels.account("whatsapp", each) for each in ("111", "222")),
        channels.account("instagram", "333"),
        *(channels.accounts_of(workspace_id, each) for each in ("whatsapp", "instagram")),
        *(channels.default_account(workspace_id, each) for each in ("whatsapp", "instagram")),
    ]


def goes_away(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What it is asked for from now on, in vain."""
    asked: list[object] = []

    def nobody(known: object, **_: object) -> None:
        asked.append(known)
        raise Unavailable("The accounts database does not answer: OperationalError")

    monkeypatch.setattr(channels, "_rows", nobody)
    return asked


def some() -> UUID:
    agents = [User.objects.create_user(name, "correct horse battery") for name in ("bea", "abe")]
    gone = User.objects.create_user("gone", "correct horse battery")
    User.objects.filter(pk=gone.pk).update(is_active=False)
    add("111")
    add("222", *agents, gone, make_default=True)
    return add("333", channel="instagram", make_default=True)


def test_what_was_learnt_is_what_is_read_and_lasts_while_the_database_is_away(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace_id = some()
    read = seen(workspace_id)
    channels.forget()
    channels.learn()
    goes_away(monkeypatch)
    for wait_s in (0, channels.CACHED_S + 1, channels.CACHED_AWAY_S - 2 * channels.CACHED_S - 2):
        clock.advance(wait_s)
        assert seen(workspace_id) == read
    clock.advance(2)
    with pytest.raises(Unavailable):
        channels.account("whatsapp", "111")


def test_what_was_learnt_hides_no_change_from_who_asks_for_the_first_time(clock: ManualClock) -> None:
    """`make demo` gave Maria's account to Alice right after the workers had learnt it with nobody's name on it."""
    add("111")
    channels.learn()
    alice = User.objects.create_user("alice", "correct horse battery")
    ChannelAccount.objects.get(account_id="111").agents.add(alice)
    ours = channels.account("whatsapp", "111")
    assert ours is not None
    assert ours.agents == (alice.public_id,)


def test_what_nobody_learnt_is_not_known(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace_id = some()
    channels.forget()
    monkeypatch.setattr(channels, "LEARNED", 2)  # there are three
    channels.learn()
    goes_away(monkeypatch)
    with pytest.raises(Unavailable):
        channels.accounts_of(workspace_id, "whatsapp")


def test_of_many_who_ask_for_an_account_one_waits_for_a_database_that_is_away(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = goes_away(monkeypatch)
    for account_id in ("111", "222", "333"):
        with pytest.raises(Unavailable):
            channels.account("whatsapp", account_id)
    assert len(asked) == 1
    clock.advance(2)
    with pytest.raises(Unavailable):
        channels.account("whatsapp", "111")
    assert len(asked) == 2


def test_secrets_that_nobody_can_read_cost_only_what_needs_them(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    key = settings.CHANNEL_SECRETS_KEY
    settings.CHANNEL_SECRETS_KEY = "a key that was lost, and it was a long one"
    add("111")
    settings.CHANNEL_SECRETS_KEY = key
    workspace_id = add("333", channel="instagram", make_default=True)
    ChannelAccount.objects.create(
        workspace_id=workspace_id, channel="gone", account_id="9", credentials={"access_token": "t"}
    )
    channels.forget()
    channels.learn()
    goes_away(monkeypatch)
    assert channels.account("instagram", "333") == channels.default_account(workspace_id, "instagram")
    with pytest.raises(Unavailable):
        channels.account("whatsapp", "111")


def test_agents_are_those_who_may_sign_in_and_many_accounts_take_no_more_queries(
    clock: ManualClock, django_assert_num_queries: object
) -> None:
    workspace_id = some()
    channels.forget()
    with django_assert_num_queries(2):  # type: ignore[operator]
        ours = channels.accounts_of(workspace_id, "whatsapp")
    names = {each.public_id: each.username for each in User.objects.all()}
    assert [(each.account.account_id, [names[agent] for agent in each.agents]) for each in ours] == [
        ("222", ["bea", "abe"]),
        ("111", []),
    ]


def test_secrets_that_nobody_can_read_make_no_database_look_away(clock: ManualClock, settings: Settings) -> None:
    key = settings.CHANNEL_SECRETS_KEY
    settings.CHANNEL_SECRETS_KEY = "a key that was lost, and it was a long one"
    add("111")
    settings.CHANNEL_SECRETS_KEY = key
    add("333", channel="instagram")
    assert channels.account("instagram", "333") is not None
    clock.advance(channels.CACHED_S + 1)
    with pytest.raises(SecretsUnreadable):
        channels.account("whatsapp", "111")
    ChannelAccount.objects.filter(account_id="333").update(is_active=False)
    assert channels.account("instagram", "333") is None


def test_secrets_that_nobody_can_read_keep_no_others_from_being_renewed(clock: ManualClock, settings: Settings) -> None:
    for account_id in ("111", "222", "333"):
        add(account_id)
    assert all(channels.account("whatsapp", account_id) for account_id in ("111", "222", "333"))
    ours = {each.account_id: each for each in ChannelAccount.objects.all()}
    key = settings.CHANNEL_SECRETS_KEY
    settings.CHANNEL_SECRETS_KEY = "a key that was lost, and it was a long one"
    ours["222"].save()  # as nobody can read it
    settings.CHANNEL_SECRETS_KEY = key
    clock.advance(channels.CACHED_S - 1)
    channels.renew()
    clock.advance(2)
    with CaptureQueriesContext(connection) as asked:
        assert all(channels.account("whatsapp", account_id) for account_id in ("111", "333"))
        assert len(asked) == 0
        with pytest.raises(SecretsUnreadable):
            channels.account("whatsapp", "222")


def test_asking_for_what_does_not_exist_drives_out_nothing_that_does(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_recent", LastKnown(ttl_s=5, outage_s=295, size=1, clock=clock))
    add("111")
    known = channels.account("whatsapp", "111")
    assert known
    for number in range(2 * NONE_KEPT):
        assert channels.account("whatsapp", f"guess {number}") is None
    clock.advance(60)
    goes_away(monkeypatch)
    assert channels.account("whatsapp", "111") == known


def test_what_does_not_exist_is_asked_for_once_in_a_while(clock: ManualClock) -> None:
    with CaptureQueriesContext(connection) as asked:
        for _ in range(3):
            assert channels.account("whatsapp", "a guess") is None
            assert channels.account("whatsapp", "x" * 129) is None
    assert len(asked) == 1
    clock.advance(channels.CACHED_S)
    add("a guess")
    assert channels.account("whatsapp", "a guess")


def test_an_account_that_is_gone_is_not_what_was_known_last(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("111")
    assert channels.account("whatsapp", "111")
    ChannelAccount.objects.all().delete()
    clock.advance(channels.CACHED_S)
    assert channels.account("whatsapp", "111") is None
    clock.advance(channels.CACHED_S)
    goes_away(monkeypatch)
    with pytest.raises(Unavailable):
        channels.account("whatsapp", "111")
