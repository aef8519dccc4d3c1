"""Operators in the admin: channel accounts whose secrets go in and never out, files, and the message explorer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission
from django.db import connections
from django.test import Client
from pytest_django import DjangoDbBlocker, Settings

from accounts.models import DEFAULT_WORKSPACE_ID, AuditEvent, User, Workspace
from connectors.errors import PausedDeliveryError
from core.ids import derived_id, uuid7, uuid7_ms
from demo.redis_server import LOG_RULES, RedisServer
from files.models import FileGrant, StoredFile
from messaging import channels, checks, codec, topics, wiring
from messaging.domain import Conversation, Message, Status, StatusChange
from messaging.models import ChannelAccount
from messaging.ports import NewRecord, TopicPartition
from messaging.stores.orm import OrmStore
from tests.contracts.message_stores import sqlite_alias
from tests.hub import forget, hub

# The explorer may only read through the port: the tables of the ORM store are out of reach here, the store that
# `wiring` opens is another database.
pytestmark = pytest.mark.django_db(databases=["default"])

SECRETS = {
    "credential_access_token": "EAAG-very-secret",
    "credential_app_secret": "app-very-secret",
    "credential_verify_token": "verify-very-secret",
}
ADD = "/admin/messaging/channelaccount/add/"
EXPLORER = "/admin/messaging/explorer/"

NOBODYS = "5cf1b1d4-6c1f-4b3a-9d53-0d6f6f0a7c11"  # a fixed one: the names of tests must be equal in every process


@pytest.fixture(autouse=True)
def store(
    tmp_path: Path,
    settings: Settings,
    bus_redis: RedisServer,
    log_redis: RedisServer,
    django_db_blocker: DjangoDbBlocker,
) -> Iterator[OrmStore]:
    """The hub with a message store in a database that no Django model is routed to."""
    with django_db_blocker.unblock(), sqlite_alias(tmp_path) as alias:
        settings.MESSAGE_STORE_URL = f"orm://{alias}"
        with hub(settings, log_url=log_redis.url, bus_url=bus_redis.url):
            found = wiring.message_store()
            assert isinstance(found, OrmStore)
            yield found


@pytest.fixture
def workspace(db: None) -> Workspace:
    return Workspace.objects.get(id=DEFAULT_WORKSPACE_ID)


@pytest.fixture
def acme(db: None) -> Workspace:
    return Workspace.objects.create(slug="acme", name="Acme")


def user(name: str, **fields: Any) -> User:
    person = User(
        username=name, **({"workspace_id": DEFAULT_WORKSPACE_ID} if "workspace" not in fields else {}), **fields
    )
    person.set_unusable_password()
    person.save()
    return person


@pytest.fixture
def alice(db: None) -> User:
    return user("alice", display_name="Alice Souza")


@pytest.fixture
def bob(db: None) -> User:
    return user("bob")


@pytest.fixture
def admin(client: Client) -> Client:
    client.force_login(user("operator", is_staff=True, is_superuser=True))
    return client


def text_of(response: Any) -> str:
    return unescape(response.content.decode())


# --- channel accounts --------------------------------------------------------------------------------------------


def account_form(**changes: object) -> dict[str, object]:
    form = {
        "workspace": str(DEFAULT_WORKSPACE_ID),
        "channel": "whatsapp",
        "account_id": "1055",
        "display_name": "Support",
        "base_url": "",
        "is_active": "on",
        **SECRETS,
        **changes,
    }
    return {name: value for name, value in form.items() if value is not None}


def add_account(admin: Client, **changes: object) -> ChannelAccount:
    response = admin.post(ADD, account_form(**changes))
    assert response.status_code == 302, response.context["adminform"].form.errors
    return ChannelAccount.objects.latest("id")


def change_url(account: ChannelAccount) -> str:
    return f"/admin/messaging/channelaccount/{account.pk}/change/"


def test_adds_an_account_with_its_credentials_and_agents(admin: Client, alice: User) -> None:
    account = add_account(admin, agents=[str(alice.pk)], base_url="http://127.0.0.1:9/", is_default="on")
    assert account.credentials == {name.removeprefix("credential_"): value for name, value in SECRETS.items()}
    assert list(account.agents.all()) == [alice]
    assert (account.base_url, account.is_default) == ("http://127.0.0.1:9", True)


def test_warns_of_an_account_that_nobody_answers_for(admin: Client, alice: User) -> None:
    def warned(**changes: object) -> bool:
        response = admin.post(ADD, account_form(**changes), follow=True)
        return channels.UNATTENDED in text_of(response)

    assert warned()
    assert not warned(account_id="1056", agents=[str(alice.pk)])
    assert not warned(account_id="1057", is_active=None)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    told = [each.msg for each in checks.agents_are_there()]
    assert [("whatsapp:1055" in each, "whatsapp:1056" in each) for each in told] == [(True, False), (False, True)]


@pytest.mark.parametrize("channel", ["whatsapp", "instagram"])
@pytest.mark.parametrize("missing", SECRETS)
def test_names_the_credential_that_a_channel_lacks(admin: Client, channel: str, missing: str) -> None:
    response = admin.post(ADD, account_form(channel=channel, **{missing: ""}))
    assert response.context["adminform"].form.errors == {missing: [f"{channel} needs it."]}
    assert not ChannelAccount.objects.exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"channel": "pigeon"}, "channel"),
        ({"channel": ""}, "channel"),
        ({"account_id": "10/55"}, "account_id"),
        ({"account_id": "10 55"}, "account_id"),
        ({"account_id": ""}, "account_id"),
        ({"account_id": "1" * 129}, "account_id"),
        ({"base_url": "graph.facebook.com"}, "base_url"),
        ({"base_url": "file:///etc/passwd"}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"),
        ({"workspace": str(uuid4())}, "workspace"),
        ({"agents": ["999999"]}, "agents"),
    ],
)
def test_explains_what_is_wrong_at_its_field(admin: Client, changes: dict[str, object], field: str) -> None:
    response = admin.post(ADD, account_form(**changes))
    assert response.status_code == 200
    assert list(response.context["adminform"].form.errors) == [field]


def test_refuses_an_account_that_another_workspace_has(admin: Client, acme: Workspace) -> None:
    add_account(admin)
    response = admin.post(ADD, account_form(workspace=str(acme.id)))
    assert "already exists" in str(response.context["adminform"].form.errors)
    assert ChannelAccount.objects.count() == 1


def test_has_one_default_on_a_channel_and_says_which(admin: Client, acme: Workspace) -> None:
    add_account(admin, is_default="on")
    response = admin.post(ADD, account_form(account_id="1056", is_default="on"))
    assert "whatsapp:1055" in response.context["adminform"].form.errors["is_default"][0]
    add_account(admin, account_id="1057", is_default="on", workspace=str(acme.id))
    add_account(admin, account_id="1058", is_default="on", channel="instagram")


def test_refuses_agents_of_another_workspace(admin: Client, acme: Workspace) -> None:
    stranger = user("mallory", workspace=acme)
    response = admin.post(ADD, account_form(agents=[str(stranger.pk)]))
    assert list(response.context["adminform"].form.errors) == ["agents"]


def test_never_shows_a_credential_again(admin: Client) -> None:
    account = add_account(admin)
    pages = [
        admin.get(change_url(account)),
        admin.get("/admin/messaging/channelaccount/"),
        admin.get(f"/admin/messaging/channelaccount/{account.pk}/history/"),
        admin.post(ADD, account_form(account_id="")),
        admin.post(change_url(account), {**SECRETS, "base_url": "nonsense"}),
    ]
    for page in pages:
        assert page.status_code == 200
        for secret in SECRETS.values():
            assert secret not in text_of(page)
    assert text_of(pages[0]).count("Set. Enter a new one to replace it.") == len(SECRETS)


def test_writes_down_who_did_what_to_an_account_and_no_secret(admin: Client) -> None:
    account = add_account(admin)
    entered = {**dict.fromkeys(SECRETS, ""), "credential_app_secret": "another-very-secret"}
    changed = account_form(is_default="on", **entered)
    assert admin.post(change_url(account), changed).status_code == 302
    url = "/admin/messaging/channelaccount/"
    form = {"action": "delete_selected", "_selected_action": [str(account.pk)], "post": "yes"}
    assert admin.post(url, form).status_code == 302
    events = list(AuditEvent.objects.order_by("pk"))
    actor = User.objects.get(username="operator").public_id
    assert {(each.actor, each.workspace, each.target) for each in events} == {(actor, "default", "whatsapp:1055")}
    assert [each.action for each in events] == [f"channel_account.{what}" for what in ("added", "changed", "deleted")]
    assert set(SECRETS) <= set(events[0].details.split("; ")[0].split(", "))
    assert events[0].details.endswith("; is_active=True; is_default=False")
    assert events[1].details == "is_default, credential_app_secret; is_active=True; is_default=True"
    assert "very-secret" not in str(list(AuditEvent.objects.values()))


def test_replaces_one_credential_and_keeps_the_others(admin: Client) -> None:
    account = add_account(admin)
    form = {"display_name": "Support", "is_active": "on", "credential_app_secret": "rotated"}
    assert admin.post(change_url(account), form).status_code == 302
    account.refresh_from_db()
    assert account.credentials["app_secret"] == "rotated"
    assert account.credentials["access_token"] == SECRETS["credential_access_token"]


def test_keeps_an_account_where_it_is(admin: Client, acme: Workspace) -> None:
    account = add_account(admin)
    form = account_form(workspace=str(acme.id), channel="instagram", account_id="9", display_name="Renamed")
    assert admin.post(change_url(account), form).status_code == 302
    account.refresh_from_db()
    assert (account.workspace_id, str(account)) == (DEFAULT_WORKSPACE_ID, "whatsapp:1055")
    assert account.display_name == "Renamed"


def test_puts_an_account_right_whose_key_was_lost(admin: Client, settings: Settings) -> None:
    account = add_account(admin)
    settings.CHANNEL_SECRETS_KEY = "another key, because the first one was lost"
    assert admin.get("/admin/messaging/channelaccount/").status_code == 200
    assert "not readable any more" in text_of(admin.get(change_url(account)))
    refused = admin.post(change_url(account), {"is_active": "on", "credential_app_secret": "new"})
    assert set(refused.context["adminform"].form.errors) == {"credential_access_token", "credential_verify_token"}
    assert admin.post(change_url(account), {"is_active": "on", **SECRETS}).status_code == 302
    assert ChannelAccount.objects.get(pk=account.pk).credentials["app_secret"] == SECRETS["credential_app_secret"]


@pytest.mark.django_db(databases=["default"], transaction=True)
def test_a_change_counts_at_once(admin: Client) -> None:
    assert channels.account("whatsapp", "1055") is None
    account = add_account(admin)
    assert channels.account("whatsapp", "1055") is not None
    admin.post(change_url(account), {"display_name": "", **SECRETS})  # no longer active
    assert channels.account("whatsapp", "1055") is None


def test_shows_the_webhook_url_to_copy(admin: Client, settings: Settings) -> None:
    settings.API_URL = "https://chat.example.com"
    account = add_account(admin)
    assert "https://chat.example.com/webhooks/whatsapp/1055" in text_of(admin.get(change_url(account)))


def test_shows_what_the_circuit_breaker_says(admin: Client) -> None:
    account = add_account(admin, account_id="2077")
    assert wiring.breakers().states().get("whatsapp:2077") is None
    wiring.breakers().failure("whatsapp", "2077", PausedDeliveryError("platform:190"))
    assert 'field-breaker">open<' in text_of(admin.get("/admin/messaging/channelaccount/"))
    assert "whatsapp:2077" in text_of(admin.get(EXPLORER + "lag/"))
    assert admin.get(change_url(account)).status_code == 200


def test_offers_agents_by_name(admin: Client, alice: User) -> None:
    query = {"app_label": "messaging", "model_name": "channelaccount", "field_name": "agents", "term": "souza"}
    assert [each["text"] for each in admin.get("/admin/autocomplete/", query).json()["results"]] == ["alice"]


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(workspace: Workspace, alice: User) -> StoredFile:
    file = StoredFile.objects.create(
        public_id="file_1", workspace=workspace, uploader_id=alice.public_id, filename="plan.pdf",
        content_type="application/pdf", size=7, sha256="0" * 64, path="a/b", created_at_ms=1_700_000_000_000,
    )  # fmt: skip
    FileGrant.objects.create(file=file, conversation_id=derived_id(DEFAULT_WORKSPACE_ID, "c1"))
    return file


def test_shows_files_and_where_they_were_sent(admin: Client, stored: StoredFile) -> None:
    assert "plan.pdf" in text_of(admin.get("/admin/files/storedfile/", {"q": "file_1"}))
    page = text_of(admin.get(f"/admin/files/storedfile/{stored.pk}/change/"))
    assert str(derived_id(DEFAULT_WORKSPACE_ID, "c1")) in page
    assert "2023-11-14T22:13:20" in page


@pytest.mark.parametrize("what", ["add/", "{pk}/delete/", "{pk}/change/"])
def test_lets_nobody_change_files(admin: Client, stored: StoredFile, what: str) -> None:
    response = admin.post(f"/admin/files/storedfile/{what.format(pk=stored.pk)}", {"filename": "x", "post": "yes"})
    assert response.status_code == 403
    stored.refresh_from_db()
    assert stored.filename == "plan.pdf"


# --- the explorer ------------------------------------------------------------------------------------------------


class Chat:
    """A conversation of the default workspace that is stored already."""

    def __init__(self, store: OrmStore, members: tuple[str, ...], public_id: str = "c1") -> None:
        self.store = store
        self.id = derived_id(DEFAULT_WORKSPACE_ID, public_id)
        self.members = members
        self.public_id = public_id
        store.create_conversation(
            Conversation(self.id, DEFAULT_WORKSPACE_ID, public_id, "Plans", members, members[0], 1_700_000_000_000)
        )

    def draft(self, content: str = "hello", **fields: Any) -> Message:
        message_id = uuid7()
        return Message(**{
            "message_id": message_id,
            "workspace_id": DEFAULT_WORKSPACE_ID,
            "conversation_id": self.id,
            "conversation": self.public_id,
            "sender_id": self.members[0],
            "recipient_id": None,
            "recipients": self.members[1:],
            "audience": self.members,
            "content": content,
            "accepted_at_ms": uuid7_ms(message_id),
            **fields,
        })  # fmt: skip

    def say(self, content: str = "hello", **fields: Any) -> Message:
        message = self.draft(content, **fields)
        self.store.save_messages([message])
        return message

    @property
    def url(self) -> str:
        return f"{EXPLORER}conversations/{self.id}/"


@pytest.fixture
def chat(store: OrmStore, alice: User, bob: User) -> Chat:
    return Chat(store, (alice.public_id, bob.public_id))


def find(admin: Client, query: str, workspace: str = "default") -> Any:
    return admin.get(EXPLORER, {"q": query, "workspace": workspace})


def test_is_in_the_menu(admin: Client) -> None:
    assert f'href="{EXPLORER}"' in text_of(admin.get("/admin/"))
    assert admin.get(EXPLORER).status_code == 200


@pytest.mark.parametrize("kind", ["conversation", "conversation_inside", "message", "username", "user_id"])
def test_goes_straight_to_the_one_thing_of_that_name(admin: Client, chat: Chat, alice: User, kind: str) -> None:
    message = chat.say()
    person = f"{EXPLORER}people/?workspace={DEFAULT_WORKSPACE_ID}&party={alice.public_id}"
    query, url = {
        "conversation": ("c1", chat.url),
        "conversation_inside": (str(chat.id), chat.url),
        "message": (str(message.message_id), f"{EXPLORER}messages/{message.message_id}/"),
        "username": ("ALICE", person),
        "user_id": (alice.public_id, person),
    }[kind]
    response = find(admin, query)
    assert (response.status_code, response["Location"]) == (302, url)
    assert admin.get(url).status_code == 200


def test_finds_an_external_person_however_the_number_is_written(admin: Client, store: OrmStore, alice: User) -> None:
    Chat(store, (alice.public_id, "whatsapp:+5511999998888"), "with-carla")
    response = find(admin, "whatsapp:+55 (11) 99999-8888")
    assert "with-carla" in text_of(admin.get(response["Location"]))


def test_lets_choose_where_a_name_means_several_things(admin: Client, store: OrmStore, alice: User, bob: User) -> None:
    Chat(store, (alice.public_id, bob.public_id), "bob")
    page = find(admin, "bob")
    assert page.status_code == 200
    assert [hit.kind for hit in page.context["hits"]] == ["conversation", "person"]


def test_looks_only_into_the_workspace_that_was_chosen(admin: Client, chat: Chat, acme: Workspace) -> None:
    assert "Nothing in the workspace acme" in text_of(find(admin, "c1", "acme"))


@pytest.mark.parametrize("query", ["nobody", NOBODYS, "whatsapp:rubbish", "pigeon:1", "%00", "x" * 5000, "<b>"])
def test_says_so_when_it_finds_nothing(admin: Client, query: str) -> None:
    response = find(admin, query)
    assert response.status_code == 200
    assert "Nothing in the workspace" in text_of(response)
    assert b"<b>" not in response.content


@pytest.mark.parametrize("query", ["workspace=nowhere&q=c1", "workspace=&q=c1", "q="])
def test_takes_any_query(admin: Client, query: str) -> None:
    assert admin.get(f"{EXPLORER}?{query}").status_code == 200


def test_shows_a_conversation_with_members_and_statuses_by_recipient(admin: Client, chat: Chat, bob: User) -> None:
    message = chat.say("see you <i>there</i>")
    change = StatusChange(
        message_id=message.message_id, conversation_id=chat.id, recipient=bob.public_id, status=Status.FAILED,
        at_ms=message.accepted_at_ms + 5, reason="platform:131026", external_id="wamid.7",
    )  # fmt: skip
    chat.store.apply_statuses([change])
    response = admin.get(chat.url)
    page = text_of(response)
    assert "Alice Souza" in page
    assert "Members (2)" in page
    assert re.search(rf"{bob.public_id}: <span[^>]*>FAILED</span> \(platform:131026\)", page)
    assert b"<i>there" not in response.content
    assert page.count("see you") == 1  # not among the messages that Django shows on top of its pages


def test_pages_through_history_both_ways(admin: Client, chat: Chat) -> None:
    said = [f"line {number:03}" for number in range(120)]
    for line in said:
        chat.say(line)

    def lines(query: str) -> tuple[list[str], Any]:
        response = admin.get(chat.url + query)
        return [each["message"].content for each in response.context["lines"]], response.context

    newest, at_end = lines("")
    middle, between = lines(f"?before={at_end['older']}")
    oldest, at_start = lines(f"?before={between['older']}")
    assert (oldest + middle + newest, at_start["older"], at_end["newer"]) == (
        [*said[:20][::-1], *said[20:70][::-1], *said[70:][::-1]],
        None,
        None,
    )
    assert lines(f"?after={at_start['newer']}")[0] == middle


@pytest.mark.parametrize("query", ["before=rubbish", "after=rubbish", f"before={NOBODYS}&after={NOBODYS}", "before="])
def test_takes_forged_cursors(admin: Client, chat: Chat, query: str) -> None:
    assert admin.get(f"{chat.url}?{query}").status_code == 200


def test_shows_a_message_with_everything_that_happened_to_it(admin: Client, chat: Chat, bob: User) -> None:
    message = chat.say("the whole text", file_id="file_1")
    told = StatusChange(
        message_id=message.message_id, conversation_id=chat.id, recipient=bob.public_id, status=Status.DELIVERED,
        at_ms=message.accepted_at_ms + 5, external_id="wamid.7",
    )  # fmt: skip
    chat.store.apply_statuses([told])
    page = text_of(admin.get(f"{EXPLORER}messages/{message.message_id}/"))
    assert "the whole text" in page
    assert "wamid.7" in page
    assert page.index("ACCEPTED</td>") < page.index("SENT</td>") < page.index("DELIVERED</td>")
    assert "?q=file_1" in page


def test_finds_a_message_on_the_log(admin: Client, chat: Chat) -> None:
    message = chat.say("on the log")
    others = [chat.draft() for _ in range(250)]
    records = [NewRecord(topics.MESSAGES, str(each.conversation_id), codec.encode(each)) for each in [*others, message]]
    source, offset = wiring.event_log().append(records)[-1]
    page = text_of(admin.get(f"{EXPLORER}messages/{message.message_id}/?log=1"))
    assert f"{topics.MESSAGES}, partition {source.partition}, offset {offset}" in page
    absent = chat.say("not on the log")
    assert "not found" in text_of(admin.get(f"{EXPLORER}messages/{absent.message_id}/?log=1"))


def test_shows_a_note_to_oneself(admin: Client, store: OrmStore, alice: User) -> None:
    note = Chat(store, (alice.public_id,), "notes").say()
    assert "A note to oneself" in text_of(admin.get(f"{EXPLORER}messages/{note.message_id}/"))


def test_pages_through_a_persons_conversations(admin: Client, store: OrmStore, alice: User, bob: User) -> None:
    names = {f"chat-{number:02}" for number in range(55)}
    for name in names:
        Chat(store, (alice.public_id, bob.public_id), name)
    first = admin.get(find(admin, "bob")["Location"])
    second = admin.get(first.context["older"])
    shown = [each.conversation.public_id for page in (first, second) for each in page.context["listings"]]
    assert len(shown) == 55
    assert set(shown) == names
    assert second.context["older"] is None


@pytest.mark.parametrize(
    "page",
    [
        f"conversations/{NOBODYS}/",
        f"messages/{NOBODYS}/",
        "people/",
        "people/?workspace=x&party=y",
        f"people/?workspace={NOBODYS}&party=y",
    ],
)
def test_says_what_does_not_exist(admin: Client, page: str) -> None:
    response = admin.get(EXPLORER + page)
    assert response.status_code == 404
    assert "There is no such" in text_of(response)


# the log


@pytest.fixture
def own_log(tmp_path: Path, settings: Settings) -> Iterator[RedisServer]:
    """A log that holds what this test wrote and nothing else."""
    server = RedisServer(tmp_path / "log", rules=LOG_RULES).start()
    with hub(settings, log_url=server.url, bus_url=settings.BUS_URL, append_timeout_s=20):
        yield server
    server.stop()


def bury(value: bytes, **headers: str) -> None:
    topic = topics.dead_letters(topics.MESSAGES)
    wiring.event_log().append([NewRecord(topic, "key-1", value, {"dl-error": "undecodable", **headers})])


def test_shows_dead_letters_by_their_headers_and_never_by_their_text(
    admin: Client, own_log: RedisServer, chat: Chat
) -> None:
    message = chat.draft("very private words")
    bury(b"{broken private words", **{"dl-offset": "4711"})
    bury(codec.encode(message))
    page = text_of(admin.get(EXPLORER + "dead-letters/"))
    assert "messages-dead-letters</strong> (2)" in page
    assert "dl-offset: 4711" in page
    assert "unreadable" in page
    assert f"{EXPLORER}messages/{message.message_id}/" in page
    assert "private words" not in page


def test_pages_through_dead_letters(admin: Client, own_log: RedisServer) -> None:
    for _ in range(120):
        bury(b"x")

    def offsets(query: str) -> tuple[list[int], Any]:
        response = admin.get(EXPLORER + "dead-letters/?topic=messages-dead-letters" + query)
        return [each["record"].offset for each in response.context["letters"]], response.context

    newest, page = offsets("")
    assert (newest, page["newer"]) == (list(range(119, 69, -1)), None)
    middle, page = offsets(f"&before={page['older']}")
    oldest, last = offsets(f"&before={page['older']}")
    assert (middle, oldest, last["older"]) == (list(range(69, 19, -1)), list(range(19, -1, -1)), None)
    assert offsets(f"&before={page['newer']}")[0] == newest


@pytest.mark.parametrize("query", ["topic=messages", "topic=nothing", "before=-1", "before=x", "before=" + "9" * 40])
def test_takes_forged_places_in_the_dead_letters(admin: Client, own_log: RedisServer, query: str) -> None:
    response = admin.get(f"{EXPLORER}dead-letters/?{query}")
    assert response.status_code == 200
    assert "everything could be processed" in text_of(response)


def test_shows_the_lag_of_each_partition(admin: Client, own_log: RedisServer, chat: Chat) -> None:
    message = chat.draft()
    record = NewRecord(topics.MESSAGES, str(message.conversation_id), codec.encode(message))
    source, _ = wiring.event_log().append([record, record])[-1]
    response = admin.get(EXPLORER + "lag/")
    waiting = {row["source"]: row["lag"] for row in response.context["rows"] if row["lag"]}
    assert waiting == {source: 2}
    assert "2 records waiting" in text_of(response)
    assert {row["source"].topic for row in response.context["rows"]} == set(wiring.work_topics())
    assert TopicPartition("whatsapp-outbound", 2) in {row["source"] for row in response.context["rows"]}


# when parts are away


@pytest.mark.parametrize("page", ["dead-letters/", "lag/"])
def test_says_which_part_is_away_when_the_log_is_down(admin: Client, own_log: RedisServer, page: str) -> None:
    own_log.kill()
    response = admin.get(EXPLORER + page)
    assert (response.status_code, response["Retry-After"]) == (503, "5")
    assert "The event log (redis-server at" in text_of(response)
    own_log.start()
    assert admin.get(EXPLORER + page).status_code == 200


def test_says_that_the_store_is_away(
    admin: Client, chat: Chat, tmp_path: Path, settings: Settings, django_db_blocker: DjangoDbBlocker
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    pages = [chat.url, f"{EXPLORER}messages/{uuid4()}/", f"{EXPLORER}?q=c1", find(admin, "alice")["Location"]]
    original = settings.MESSAGE_STORE_URL
    connections.settings["store_gone"] = {**connections.settings["store_sqlite"], "NAME": str(gone / "x.sqlite3")}
    shutil.rmtree(gone)
    settings.MESSAGE_STORE_URL = "orm://store_gone"
    forget()
    answers = [admin.get(page) for page in pages]
    settings.MESSAGE_STORE_URL = original
    del connections.settings["store_gone"]
    for answer in answers:
        assert answer.status_code == 503
        assert "A part of the system is away" in text_of(answer)


# who may


def page_urls(chat: Chat) -> list[str]:
    return [EXPLORER, chat.url, f"{EXPLORER}people/", f"{EXPLORER}dead-letters/", f"{EXPLORER}lag/"]


def test_is_closed_to_everybody_but_operators_with_the_permission(client: Client, chat: Chat, alice: User) -> None:
    colleague = user("colleague", is_staff=True)
    for person, status in ((None, 302), (alice, 302), (colleague, 403)):
        if person:
            client.force_login(person)
        assert {client.get(url).status_code for url in page_urls(chat)} == {status}
    colleague.user_permissions.add(Permission.objects.get(codename="view_explorer"))
    assert [client.get(url).status_code for url in page_urls(chat)] == [200, 200, 404, 200, 200]


def test_keeps_a_record_of_who_looked_without_saying_what_was_read(
    admin: Client, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    message = chat.say("private words")
    admin.get(f"{EXPLORER}messages/{message.message_id}/")
    operator = User.objects.get(username="operator").public_id
    seen = [each for each in caplog.records if each.getMessage() == "an operator looked at messages"]
    assert [(each.__dict__["operator"], each.__dict__["at"]) for each in seen] == [(operator, str(message.message_id))]
    assert "private words" not in caplog.text


def test_takes_no_form(admin: Client, chat: Chat) -> None:
    assert {admin.post(url, {"q": "c1"}).status_code for url in page_urls(chat)} == {405}
