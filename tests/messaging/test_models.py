"""Channel accounts: one default each, credentials that nobody sees, looked up fast, added by command."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core import serializers
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, OperationalError, connection, router, transaction
from pytest_django import DjangoAssertNumQueries, Settings

from accounts.models import AuditEvent, User, Workspace
from core.cache import LastKnown, TtlCache
from core.clock import ManualClock
from core.errors import Conflict, Unavailable
from messaging import channels
from messaging.channels import ChannelConfig
from messaging.errors import SecretsUnreadable
from messaging.models import ChannelAccount
from messaging.secrets import Credentials, seal, unseal
from messaging.stores.router import STORE_MODELS
from tests.contracts.message_stores import ROOT

SECRETS = {"access_token": "EAAG-very-secret", "app_secret": "s3cr3t", "verify_token": "v3r1fy"}


@pytest.fixture(autouse=True)
def _nothing_known() -> None:
    channels.forget()


@pytest.fixture
def workspace(db: None) -> Workspace:
    return Workspace.objects.get(slug="default")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock()
    own: LastKnown[Any, Any] = LastKnown(
        ttl_s=channels.CACHED_S, outage_s=channels.CACHED_AWAY_S - channels.CACHED_S, clock=clock
    )
    monkeypatch.setattr(channels, "_recent", own)
    monkeypatch.setattr(channels, "_absent", TtlCache(ttl_s=channels.CACHED_S, clock=clock))
    return clock


def add(workspace: Workspace, account_id: str = "1055", **fields: Any) -> bool:
    values: dict[str, Any] = {"channel": "whatsapp", "credentials": SECRETS, **fields}
    return channels.register(workspace=workspace, account_id=account_id, **values)


def a_user(username: str, workspace: Workspace, **fields: object) -> User:
    return User.objects.create(username=username, workspace=workspace, password="!", **fields)


class TestSecrets:
    def test_what_is_sealed_is_read_back_and_shows_nothing(self) -> None:
        token = seal(SECRETS)
        assert unseal(token) == SECRETS
        assert not any(each in token for each in (*SECRETS, *SECRETS.values()))
        assert seal(SECRETS) != token

    def test_a_representation_names_secrets_and_holds_none(self) -> None:
        for text in (repr(Credentials(SECRETS)), str(Credentials(SECRETS)), f"{Credentials(SECRETS)}"):
            assert text == "<Credentials access_token, app_secret, verify_token>"

    def test_another_key_or_a_changed_text_reads_nothing(self, settings: Settings) -> None:
        token = seal(SECRETS)
        with pytest.raises(SecretsUnreadable):
            unseal(token[:-8] + "AAAAAAA=")
        settings.CHANNEL_SECRETS_KEY = "another key, long enough to be taken as one"
        with pytest.raises(SecretsUnreadable, match="CHANNEL_SECRETS_KEY"):
            unseal(token)

    def test_a_former_key_still_reads_and_never_writes(self, settings: Settings) -> None:
        token, former = seal(SECRETS), settings.CHANNEL_SECRETS_KEY
        settings.CHANNEL_SECRETS_KEY = "a new key, long enough to be taken as one"
        settings.CHANNEL_SECRETS_OLD_KEYS = [former]
        assert unseal(token) == SECRETS
        anew = seal(SECRETS)
        settings.CHANNEL_SECRETS_OLD_KEYS = []
        assert unseal(anew) == SECRETS

    def test_the_database_and_a_dump_hold_ciphertext_only(self, workspace: Workspace) -> None:
        add(workspace)
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM messaging_channelaccount")
            stored = str(cursor.fetchall())
        dump = serializers.serialize("json", ChannelAccount.objects.all())
        for text in (stored, dump):
            assert "1055" in text
            assert not any(each in text for each in SECRETS.values())
        [loaded] = serializers.deserialize("json", dump)
        assert loaded.object.credentials == SECRETS  # type: ignore[attr-defined]

    def test_nothing_that_prints_an_account_prints_its_secrets(self, workspace: Workspace) -> None:
        add(workspace)
        row = ChannelAccount.objects.get()
        assert row.credentials == SECRETS
        for text in (repr(row), str(row), repr(vars(row)), repr(channels.account("whatsapp", "1055"))):
            assert "1055" in text
            assert not any(each in text for each in SECRETS.values())

    @pytest.mark.parametrize("value", [{"token": 5}, {5: "x"}, ["x"], 5])
    def test_only_an_object_of_strings_is_taken(self, workspace: Workspace, value: Any) -> None:
        row = ChannelAccount(workspace=workspace, channel="whatsapp", account_id="1", credentials=value)
        with pytest.raises(ValidationError, match="object of strings"):
            row.save()

    def test_no_form_offers_them(self) -> None:
        assert not ChannelAccount._meta.get_field("credentials").editable


class TestConstraints:
    def test_an_account_of_a_channel_exists_once_whatever_its_workspace(self, workspace: Workspace) -> None:
        add(workspace)
        other = Workspace.objects.create(slug="acme", name="Acme")
        with pytest.raises(IntegrityError), transaction.atomic():
            ChannelAccount.objects.create(workspace=other, channel="whatsapp", account_id="1055")
        ChannelAccount.objects.create(workspace=other, channel="instagram", account_id="1055")

    def test_a_workspace_has_one_default_on_a_channel(self, workspace: Workspace) -> None:
        add(workspace, make_default=True)
        with pytest.raises(IntegrityError), transaction.atomic():
            ChannelAccount.objects.create(workspace=workspace, channel="whatsapp", account_id="2", is_default=True)
        ChannelAccount.objects.create(workspace=workspace, channel="instagram", account_id="2", is_default=True)
        ChannelAccount.objects.create(workspace=workspace, channel="whatsapp", account_id="3", is_default=False)

    def test_each_table_is_either_the_stores_or_known_not_to_be(self) -> None:
        names = {model._meta.model_name for model in apps.get_app_config("messaging").get_models()}
        assert names == STORE_MODELS | {"channelaccount", "explorer", "replayedletter"}

    def test_no_relation_crosses_the_databases(self) -> None:
        for model in apps.get_app_config("messaging").get_models():
            for field in model._meta.get_fields():
                if isinstance(target := field.related_model, type):
                    assert router.db_for_read(target) == router.db_for_read(model)


class TestLookup:
    def test_an_account_is_found_with_its_agents_and_workspace(self, workspace: Workspace) -> None:
        alice, bob = a_user("alice", workspace), a_user("bob", workspace)
        a_user("mallory", workspace)
        gone = a_user("gone", workspace, is_active=False)
        add(workspace, base_url="http://127.0.0.1:9", agents=[alice, bob, gone])
        config = channels.account("whatsapp", "1055")
        assert isinstance(config, ChannelConfig)
        assert (config.account.channel, config.account.account_id) == ("whatsapp", "1055")
        assert config.account.base_url == "http://127.0.0.1:9"
        assert config.account.credentials == SECRETS
        assert config.workspace_id == workspace.pk
        assert config.agents == (alice.public_id, bob.public_id)

    def test_without_an_address_it_is_the_platforms_own(self, workspace: Workspace) -> None:
        add(workspace)
        config = channels.account("whatsapp", "1055")
        assert config is not None
        assert config.account.base_url == "https://graph.facebook.com"

    def test_the_unknown_and_the_switched_off_are_none(self, workspace: Workspace) -> None:
        add(workspace, make_default=True)
        ChannelAccount.objects.update(is_active=False)
        channels.forget()
        assert channels.account("whatsapp", "1055") is None
        assert channels.default_account(workspace.pk, "whatsapp") is None
        assert channels.accounts_of(workspace.pk, "whatsapp") == ()
        assert channels.account("instagram", "1055") is None

    def test_the_default_is_the_workspaces_own(self, workspace: Workspace) -> None:
        other = Workspace.objects.create(slug="acme", name="Acme")
        add(workspace, "1")
        add(workspace, "2", make_default=True)
        add(other, "3", make_default=True)
        assert account_id(channels.default_account(workspace.pk, "whatsapp")) == "2"
        assert account_id(channels.default_account(other.pk, "whatsapp")) == "3"
        assert channels.default_account(workspace.pk, "instagram") is None
        assert [account_id(each) for each in channels.accounts_of(workspace.pk, "whatsapp")] == ["2", "1"]

    @pytest.mark.parametrize("exists", [True, False], ids=["an account", "nothing"])
    def test_an_answer_is_kept_for_five_seconds(
        self,
        workspace: Workspace,
        clock: ManualClock,
        django_assert_num_queries: DjangoAssertNumQueries,
        exists: bool,
    ) -> None:
        if exists:
            add(workspace)
        with django_assert_num_queries(2 if exists else 1):
            first = channels.account("whatsapp", "1055")
            clock.advance(4.9)
            assert channels.account("whatsapp", "1055") is first
        ChannelAccount.objects.all().delete()
        if not exists:
            ChannelAccount.objects.create(workspace=workspace, channel="whatsapp", account_id="1055")
        clock.advance(0.2)
        assert (channels.account("whatsapp", "1055") is None) is exists

    def test_what_is_asked_for_all_the_time_is_renewed_and_a_change_is_seen(
        self, workspace: Workspace, clock: ManualClock, django_assert_num_queries: DjangoAssertNumQueries
    ) -> None:
        add(workspace)
        channels.account("whatsapp", "1055")
        ChannelAccount.objects.update(base_url="https://other.example")
        for _ in range(3):
            clock.advance(4)
            channels.renew()
            with django_assert_num_queries(0):
                config = channels.account("whatsapp", "1055")
            assert config is not None
            assert config.account.base_url == "https://other.example"

    def test_that_the_database_is_away_is_found_out_before_somebody_waits_for_it(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(workspace)
        clock = ManualClock()
        monkeypatch.setattr(channels, "_recent", LastKnown(ttl_s=5, outage_s=60, clock=clock))
        known = channels.account("whatsapp", "1055")

        def away(*_args: object) -> None:
            raise OperationalError("gone")

        clock.advance(5)
        with connection.execute_wrapper(away):
            channels.renew()
            assert channels.account("whatsapp", "1055") is known

    def test_what_is_registered_is_seen_at_once_in_this_process(self, workspace: Workspace) -> None:
        assert channels.account("whatsapp", "1055") is None
        add(workspace)
        assert channels.account("whatsapp", "1055") is not None

    def test_a_database_that_is_away_is_unavailable_and_not_remembered_for_long(
        self, workspace: Workspace, clock: ManualClock
    ) -> None:
        add(workspace)

        def away(*_args: object) -> None:
            raise OperationalError("gone")

        with connection.execute_wrapper(away), pytest.raises(Unavailable, match="accounts database"):
            channels.account("whatsapp", "1055")
        clock.advance(2)
        assert channels.account("whatsapp", "1055") is not None


class TestRegistering:
    def test_registering_again_changes_what_is_there(self, workspace: Workspace) -> None:
        alice, bob = a_user("alice", workspace), a_user("bob", workspace)
        assert add(workspace, agents=[alice], make_default=True)
        ChannelAccount.objects.update(is_active=False)
        assert not add(workspace, credentials={"access_token": "new"}, agents=[bob], display_name="Shop")
        row = ChannelAccount.objects.get()
        assert (row.credentials, row.display_name, row.is_active) == ({"access_token": "new"}, "Shop", True)
        assert row.is_default
        assert list(row.agents.all()) == [bob]

    def test_a_new_default_takes_the_place_of_the_old_one(self, workspace: Workspace) -> None:
        add(workspace, "1", make_default=True)
        add(workspace, "2", make_default=True)
        defaults = ChannelAccount.objects.filter(is_default=True).values_list("account_id", flat=True)
        assert list(defaults) == ["2"]

    def test_another_workspaces_account_is_not_taken_over(self, workspace: Workspace) -> None:
        add(workspace)
        other = Workspace.objects.create(slug="acme", name="Acme")
        with pytest.raises(Conflict):
            add(other, credentials={"access_token": "stolen"})
        assert ChannelAccount.objects.get().credentials == SECRETS


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Callable[..., str]:
    """The command with three credentials in the environment, unless told otherwise."""
    a_user("alice", workspace)
    monkeypatch.setenv("WA_TOKEN", "from the environment")
    named = [
        "--credential=access_token=WA_TOKEN",
        "--credential=app_secret=WA_TOKEN",
        "--credential=verify_token=WA_TOKEN",
    ]

    def run_command(*args: str, credentials: list[str] | None = None, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        out = StringIO()
        common = ["--channel=whatsapp", "--account-id=1055"]
        call_command(
            "add_channel_account", *common, *(named if credentials is None else credentials), *args, stdout=out
        )
        return out.getvalue()

    return run_command


class TestCommand:
    def test_it_adds_then_changes(self, run: Callable[..., str], workspace: Workspace) -> None:
        assert run("--agent=alice", "--default", "--base-url=http://127.0.0.1:9/") == "added whatsapp:1055\n"
        config = channels.default_account(workspace.pk, "whatsapp")
        assert config is not None
        assert config.account.credentials["access_token"] == "from the environment"
        assert config.account.base_url == "http://127.0.0.1:9"
        assert config.agents == (User.objects.get(username="alice").public_id,)
        out = run("--display-name=Shop", credentials=["--credentials-stdin"], stdin=json.dumps(SECRETS))
        assert out == "changed whatsapp:1055\n"
        assert ChannelAccount.objects.get().credentials == SECRETS
        added, changed = AuditEvent.objects.order_by("pk")
        assert (added.action, changed.action) == ("channel_account.added", "channel_account.changed")
        assert (changed.target, changed.workspace) == ("whatsapp:1055", workspace.slug)
        assert changed.actor.startswith("manage.py (")
        assert "access_token" in changed.details
        assert not any(secret in changed.details for secret in SECRETS.values())

    def test_it_warns_of_an_account_that_nobody_answers_for(
        self, run: Callable[..., str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run()
        assert "--agent" in capsys.readouterr().err
        run("--agent=alice")
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        ("args", "credentials", "stdin", "says"),
        [
            pytest.param(["--channel=pigeon"], None, "", "no connector", id="unknown channel"),
            pytest.param(["--workspace=nowhere"], None, "", "no such workspace", id="unknown workspace"),
            pytest.param(["--agent=nobody"], None, "", "no such user", id="unknown agent"),
            pytest.param(["--base-url=graph"], None, "", "must be like https", id="no address"),
            pytest.param([], ["--credential=EAAGsecret"], "", "takes NAME=VARIABLE", id="the secret itself"),
            pytest.param([], ["--credential=access_token=UNSET_X"], "", "is not set", id="unset variable"),
            pytest.param([], ["--credential=access_token=WA_TOKEN"], "", "also needs", id="incomplete"),
            pytest.param([], ["--credentials-stdin"], "{", "no JSON", id="broken JSON"),
            pytest.param([], ["--credentials-stdin"], '{"a": 1}', "object of strings", id="not strings"),
            pytest.param([], ["--credentials-stdin"], '["a"]', "object of strings", id="no object"),
            pytest.param([], [], "", "required", id="none"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_is_stored(
        self, run: Callable[..., str], args: list[str], credentials: list[str] | None, stdin: str, says: str
    ) -> None:
        with pytest.raises(CommandError, match=says) as caught:
            run(*args, credentials=credentials, stdin=stdin)
        assert "EAAGsecret" not in str(caught.value)
        assert not ChannelAccount.objects.exists()

    def test_another_workspaces_account_is_refused(self, run: Callable[..., str]) -> None:
        run()
        Workspace.objects.create(slug="acme", name="Acme")
        with pytest.raises(CommandError, match="another workspace"):
            run("--workspace=acme")
        assert AuditEvent.objects.count() == 1  # what was refused did not happen

    def test_its_help_shows_how_to_pass_credentials(self) -> None:
        shown = subprocess.run(
            [sys.executable, "manage.py", "add_channel_account", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "--credential access_token=" in shown.stdout
        assert "--credentials-stdin" in shown.stdout


def account_id(config: ChannelConfig | None) -> str | None:
    return config.account.account_id if config else None
