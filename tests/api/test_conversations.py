"""Conversations, their members and their history: who sees what, and what is refused how."""

from __future__ import annotations

import base64
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connections
from pytest_django import DjangoAssertNumQueries

from core.ids import derived_id, uuid7
from messaging import wiring
from messaging.domain import MAX_MEMBERS, Contact, Conversation
from messaging.errors import StoreUnavailable
from messaging.parties import KnownParties
from messaging.ports import MessageStore, Push
from tests.api.conftest import Fault, Log, Person, person, problem

pytestmark = pytest.mark.django_db(databases=["default", "messages"])

CHATS = "/v1/conversations"
STRANGE_IDS = ["nothing", "%00", "a" * 3000, "..%2f..", "{}", "ü", "🙂", "a b", "'; --", "-"]

NOBODYS = "5cf1b1d4-6c1f-4b3a-9d53-0d6f6f0a7c11"  # a fixed one: the names of tests must be equal in every process


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch, servers: None) -> list[Push]:
    """What is pushed, as it is pushed."""
    pushed: list[Push] = []
    monkeypatch.setattr(wiring, "notify", lambda: pushed.extend)
    return pushed


def ids(page: Any) -> list[str]:
    return [each["conversation_id"] for each in page.json()["items"]]


def contents(page: dict[str, Any]) -> list[str]:
    return [each["content"] for each in page["items"]]


# --- opening -----------------------------------------------------------------------------------------------------


def test_opens_a_conversation_once(alice: Person, bob: Person) -> None:
    body = {"conversation_id": "plans", "title": "Plans", "members": [bob.id]}
    first, again = alice.post(CHATS, body), bob.post(CHATS, {**body, "title": "Other", "members": [alice.id]})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert first.json()["members"] == [
        {"id": alice.id, "kind": "user", "channel": None, "name": "alice"},
        {"id": bob.id, "kind": "user", "channel": None, "name": "bob"},
    ]


def test_chooses_an_id_where_none_is_given(alice: Person, bob: Person) -> None:
    made = [alice.post(CHATS, {"members": [bob.id]}).json()["conversation_id"] for _ in range(2)]
    assert made[0] != made[1]
    assert alice.get(f"{CHATS}/{made[0]}").status_code == 200


def test_knows_each_member_once(alice: Person, bob: Person, accounts: None) -> None:
    numbers = ["whatsapp:+5511999998888", "whatsapp:+55 (11) 99999-8888", "whatsapp:551199998888"]
    answer = alice.post(CHATS, {"members": [bob.id, bob.id, alice.id, *numbers]})
    assert [each["id"] for each in answer.json()["members"]] == [alice.id, bob.id, "whatsapp:+5511999998888"]


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        pytest.param({}, [("members", "required")], id="no members"),
        pytest.param({"members": None}, [("members", "null")], id="null members"),
        pytest.param({"members": "bob"}, [("members", "not_a_list")], id="text as members"),
        pytest.param({"members": {"0": "bob"}}, [("members", "not_a_list")], id="object as members"),
        pytest.param({"members": [1, None]}, [("members.0", "invalid"), ("members.1", "null")], id="wrong members"),
        pytest.param({"members": [""]}, [("members.0", "blank")], id="empty member"),
        pytest.param({"members": ["x" * 301]}, [("members.0", "max_length")], id="long member"),
        pytest.param({"members": [["x"]]}, [("members.0", "invalid")], id="list as member"),
        pytest.param({"members": ["a\x00"]}, [("members", "null_characters_not_allowed")], id="NUL"),
        pytest.param({"members": ["x"] * (MAX_MEMBERS + 1)}, [("members", "max_length")], id="too many"),
        pytest.param({"members": ["user_nobody"]}, [("members.0", "recipient_not_found")], id="unknown user"),
        pytest.param({"members": ["pigeon:1"]}, [("members.0", "unknown_channel")], id="unknown channel"),
        pytest.param({"members": ["whatsapp:1"]}, [("members.0", "invalid_address")], id="bad number"),
        pytest.param({"members": ["instagram:maria"]}, [("members.0", "channel_not_configured")], id="no account"),
        pytest.param({"members": [], "title": 5}, [("title", "invalid")], id="number as title"),
        pytest.param({"members": [], "title": "t" * 201}, [("title", "max_length")], id="long title"),
        pytest.param({"members": [], "title": None}, [("title", "null")], id="null title"),
        pytest.param({"members": [], "conversation_id": "a/b"}, [("conversation_id", "invalid_conversation_id")]),
        pytest.param({"members": [], "conversation_id": ".."}, [("conversation_id", "invalid_conversation_id")]),
        pytest.param({"members": [], "conversation_id": "."}, [("conversation_id", "invalid_conversation_id")]),
        pytest.param({"members": [], "conversation_id": ""}, [("conversation_id", "blank")], id="empty id"),
        pytest.param({"members": [], "owner": "me"}, [("owner", "unknown_field")], id="unknown field"),
    ],
)
def test_refuses_a_wrong_field_by_name(alice: Person, body: dict[str, object], faults: list[Fault]) -> None:
    answer = alice.post(CHATS, body)
    code = answer.json()["code"]
    problem(answer, 422, code, *faults)
    assert code in {"invalid_request", faults[0][1]}
    assert ids(alice.get(CHATS)) == []


def test_a_handle_that_nobody_has_is_refused(alice: Person, accounts: None) -> None:
    answer = alice.post(CHATS, {"members": ["instagram:maria"]})
    problem(answer, 422, "recipient_not_found", ("members.0", "recipient_not_found"))


def test_hides_users_of_other_workspaces(alice: Person, eve: Person) -> None:
    answer = alice.post(CHATS, {"members": [eve.id]})
    problem(answer, 422, "recipient_not_found", ("members.0", "recipient_not_found"))


def test_does_not_let_a_stranger_claim_a_taken_id(mallory: Person, alice: Person, chat: str) -> None:
    problem(mallory.post(CHATS, {"conversation_id": chat, "members": [alice.id]}), 404, "conversation_not_found")


# --- looking -----------------------------------------------------------------------------------------------------


def test_lists_only_ones_own(alice: Person, bob: Person, mallory: Person, eve: Person, chat: str) -> None:
    eve.post(CHATS, {"conversation_id": chat, "members": []})
    assert [ids(each.get(CHATS)) for each in (alice, bob, mallory)] == [[chat], [chat], []]
    assert [each["id"] for each in eve.get(f"{CHATS}/{chat}").json()["members"]] == [eve.id]


def test_asks_for_all_names_at_once_however_many_people_there_are(
    alice: Person, accounts: None, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    people = [f"whatsapp:+55119999988{n:02}" for n in range(40)]
    for number, member in enumerate(people):
        alice.post(CHATS, {"members": people[number:] if number == 0 else [member]})
    contact = Contact(
        workspace_id=alice.workspace_id,
        channel="whatsapp",
        account_id="1055",
        address="+5511999998807",
        conversation_id=uuid4(),
        last_message_id=uuid7(),
        name="Carla",
    )
    wiring.message_store().bind_contacts([contact])
    alice.get(CHATS)  # settings of channels and users are known for some seconds from here on
    with django_assert_max_num_queries(4, connection=connections["messages"]):
        listed = alice.get(f"{CHATS}?limit=50").json()["items"]
    assert len(listed) == 40
    names = {member["id"]: member["name"] for each in listed for member in each["members"]}
    assert (names[people[7]], names[people[8]]) == ("Carla", "+5511999998808")


def test_shows_a_conversation_to_its_members_only(mallory: Person, eve: Person, chat: str) -> None:
    inside = str(derived_id(mallory.workspace_id, chat))
    for stranger in (mallory, eve):
        for name in (chat, inside):
            problem(stranger.get(f"{CHATS}/{name}"), 404, "conversation_not_found")
            problem(stranger.get(f"{CHATS}/{name}/messages"), 404, "conversation_not_found")
            problem(stranger.post(f"{CHATS}/{name}/members", {"member_id": stranger.id}), 404, "conversation_not_found")
            problem(stranger.delete(f"{CHATS}/{name}/members/{stranger.id}"), 404, "conversation_not_found")


def test_a_wrong_body_tells_a_stranger_nothing(mallory: Person, chat: str) -> None:
    known, unknown = (mallory.post(f"{CHATS}/{each}/members", {"x": 1}).json() for each in (chat, "nothing"))
    assert {**known, "request_id": ""} == {**unknown, "request_id": ""}


@pytest.mark.parametrize("name", STRANGE_IDS)
def test_does_not_know_strange_ids(alice: Person, name: str) -> None:
    answers = [
        alice.get(f"{CHATS}/{name}"),
        alice.get(f"{CHATS}/{name}/messages"),
        alice.post(f"{CHATS}/{name}/members", {"member_id": alice.id}),
        alice.delete(f"{CHATS}/{name}/members/{name}"),
    ]
    for answer in answers:
        assert answer.status_code == 404
        assert answer.json()["code"] in {"conversation_not_found", "not_found"}


def test_pages_through_conversations(alice: Person, bob: Person) -> None:
    names = [f"chat-{number}" for number in range(7)]
    for name in names:
        alice.post(CHATS, {"conversation_id": name, "members": [bob.id]})
    shown, cursor = [], None
    while True:
        page = alice.get(CHATS, limit=3, **({"cursor": cursor} if cursor else {}))
        shown += ids(page)
        if (cursor := page.json()["next_cursor"]) is None:
            break
    assert sorted(shown) == names


QUERIES = [
    pytest.param({"limit": "0"}, ("limit", "min_value"), id="none"),
    pytest.param({"limit": "201"}, ("limit", "max_value"), id="too many"),
    pytest.param({"limit": "-1"}, ("limit", "min_value"), id="negative"),
    pytest.param({"limit": "ten"}, ("limit", "invalid"), id="word"),
    pytest.param({"limit": "1.5"}, ("limit", "invalid"), id="fraction"),
    pytest.param({"limit": ""}, ("limit", "invalid"), id="empty limit"),
    pytest.param({"limit": "9" * 5000}, ("limit", "max_string_length"), id="huge"),
    pytest.param({"cursor": ""}, ("cursor", "blank"), id="empty cursor"),
    pytest.param({"cursor": "rubbish"}, ("cursor", "invalid_cursor"), id="rubbish"),
    pytest.param({"cursor": "\x00"}, ("cursor", "null_characters_not_allowed"), id="NUL"),
    pytest.param({"cursor": "ü"}, ("cursor", "invalid_cursor"), id="not ASCII"),
    pytest.param({"cursor": "c" * 257}, ("cursor", "max_length"), id="long cursor"),
    pytest.param({"offset": "5"}, ("offset", "unknown_field"), id="unknown parameter"),
]


@pytest.mark.parametrize(("query", "fault"), QUERIES)
def test_refuses_a_wrong_query_by_name(alice: Person, chat: str, query: dict[str, str], fault: Fault) -> None:
    for path in (CHATS, f"{CHATS}/{chat}/messages"):
        problem(alice.get(path, **query), 422, "invalid_request", fault)


def cursor(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "forged",
    [
        cursor(), cursor(1), cursor(-1, NOBODYS), cursor(2**60, NOBODYS), cursor(10**30, NOBODYS),
        cursor(1, "x"), cursor("1", NOBODYS), cursor(1.5, NOBODYS), cursor(None, None),
        cursor([1], NOBODYS),
        cursor(True, NOBODYS), cursor("before", NOBODYS), base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(), "=" * 10, "[]", base64.urlsafe_b64encode(b"[" * 150).decode(),
    ],
)  # fmt: skip
def test_refuses_forged_cursors_of_lists(alice: Person, forged: str) -> None:
    problem(alice.get(CHATS, cursor=forged), 422, "invalid_request", ("cursor", "invalid_cursor"))


@pytest.mark.parametrize(
    "forged",
    [cursor(), cursor("before"), cursor("sideways", NOBODYS), cursor("after", "x"), cursor("before", None),
     cursor(1, NOBODYS), cursor(["before"], NOBODYS), cursor("before", NOBODYS[:-1])],
)  # fmt: skip
def test_refuses_forged_cursors_of_history(alice: Person, chat: str, forged: str) -> None:
    problem(alice.get(f"{CHATS}/{chat}/messages", cursor=forged), 422, "invalid_request", ("cursor", "invalid_cursor"))


# --- history -----------------------------------------------------------------------------------------------------


def test_pages_through_history_both_ways(alice: Person, bob: Person, chat: str, log: Log) -> None:
    said = [f"line {number}" for number in range(10)]
    for line in said:
        alice.send(chat, line)
    log.work_off()
    path = f"{CHATS}/{chat}/messages"
    newest = bob.get(path, limit=4).json()
    middle = bob.get(path, limit=4, cursor=newest["next_cursor"]).json()
    oldest = bob.get(path, limit=4, cursor=middle["next_cursor"]).json()
    assert [*contents(newest), *contents(middle), *contents(oldest)] == said[::-1]
    assert oldest["next_cursor"] is None
    assert contents(bob.get(path, limit=4, cursor=middle["prev_cursor"]).json()) == contents(newest)
    alice.send(chat, "one more")
    log.work_off()
    assert contents(bob.get(path, cursor=middle["prev_cursor"]).json()) == ["one more", *contents(newest)]


def test_a_cursor_of_another_conversation_shows_nothing_of_it(
    alice: Person, bob: Person, mallory: Person, chat: str, log: Log
) -> None:
    for number in range(4):
        alice.send(chat, f"private {number}")
    mallory.send("theirs", "ours", recipient_id=bob.id)
    log.work_off()
    private = alice.get(f"{CHATS}/{chat}/messages", limit=2).json()
    page = mallory.get(f"{CHATS}/theirs/messages", cursor=private["next_cursor"]).json()
    assert contents(page) == []
    listing = alice.get(CHATS, limit=1)
    assert listing.json()["next_cursor"] is None
    assert ids(mallory.get(CHATS, cursor=cursor(2**50, str(UUID(int=2**128 - 1))))) == ["theirs"]


def test_the_history_of_a_new_conversation_is_empty(alice: Person, chat: str) -> None:
    page = alice.get(f"{CHATS}/{chat}/messages").json()
    assert page == {"items": [], "next_cursor": None, "prev_cursor": None}


# --- members -----------------------------------------------------------------------------------------------------


def test_members_come_and_go(alice: Person, bob: Person, mallory: Person, chat: str) -> None:
    added = alice.post(f"{CHATS}/{chat}/members", {"member_id": mallory.id})
    assert added.status_code == 200
    assert [each["name"] for each in added.json()["members"]] == ["alice", "bob", "mallory"]
    assert alice.post(f"{CHATS}/{chat}/members", {"member_id": mallory.id}).json() == added.json()
    assert mallory.get(f"{CHATS}/{chat}").status_code == 200
    removed = mallory.delete(f"{CHATS}/{chat}/members/{bob.id}")
    assert [each["name"] for each in removed.json()["members"]] == ["alice", "mallory"]
    problem(bob.get(f"{CHATS}/{chat}"), 404, "conversation_not_found")


def test_every_answer_tells_when_it_was_active_last(
    alice: Person, bob: Person, mallory: Person, chat: str, log: Log, frames: list[Push]
) -> None:
    """The console sorts by it: a conversation whose members changed fell to the end of everybody's list."""
    opened = alice.get(f"{CHATS}/{chat}").json()
    accepted = alice.send(chat)
    log.work_off()
    alone = alice.get(f"{CHATS}/{chat}").json()
    [listed] = alice.get(CHATS).json()["items"]
    again = alice.post(CHATS, {"conversation_id": chat, "members": [bob.id]}).json()
    joined = alice.post(f"{CHATS}/{chat}/members", {"member_id": mallory.id}).json()
    left = alice.delete(f"{CHATS}/{chat}/members/{mallory.id}").json()
    assert opened["last_activity_at"] == opened["created_at"] != accepted["accepted_at"]
    told = [each["last_activity_at"] for each in (alone, listed, again, joined, left)]
    assert told == [accepted["accepted_at"]] * 5
    changed = [push.body["conversation"] for push in frames if push.body["type"] == "conversation"]
    assert changed
    assert not any("last_activity_at" in str(each) for each in changed), "a frame does not know, and says nothing"


CARLA = "whatsapp:+5511999998888"


class _Forgetful:
    """A store that can tell of a conversation once, and of names never."""

    def __init__(self, store: MessageStore) -> None:
        self._store = store
        self._told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def conversation(self, conversation_id: UUID) -> Conversation | None:
        if self._told:
            raise StoreUnavailable("it does not answer")
        self._told = True
        return self._store.conversation(conversation_id)

    def contacts(self, **_: object) -> None:
        raise StoreUnavailable("it does not answer")


@pytest.mark.parametrize("method", ["add", "remove"])
def test_what_was_done_is_told_though_the_store_went_away_behind_it(
    alice: Person,
    bob: Person,
    mallory: Person,
    chat: str,
    accounts: None,
    frames: list[Push],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Who was told to try again would hear that there is nobody to remove, and the others nothing."""
    members = f"{CHATS}/{chat}/members"
    assert alice.post(members, {"member_id": CARLA}).status_code == 200
    frames.clear()
    away: Any = _Forgetful(wiring.message_store())
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(wiring, "message_store", lambda: away)
        meanwhile.setattr(wiring, "known_parties", lambda: KnownParties(away))
        if method == "add":
            answer, now = alice.post(members, {"member_id": mallory.id}), [alice.id, bob.id, CARLA, mallory.id]
        else:
            answer, now = alice.delete(f"{members}/{bob.id}"), [alice.id, CARLA]
    assert answer.status_code == 200
    assert [each["id"] for each in answer.json()["members"]] == now
    assert [push.user_id for push in frames if push.body["type"] == "conversation"] == [
        each for each in now if each != CARLA
    ]
    assert [each["id"] for each in alice.get(f"{CHATS}/{chat}").json()["members"]] == now


def test_addresses_are_removed_as_they_are_shown(alice: Person, chat: str, accounts: None) -> None:
    added = alice.post(f"{CHATS}/{chat}/members", {"member_id": "whatsapp:5511999998888"}).json()
    shown = added["members"][-1]
    assert (shown["id"], shown["kind"], shown["channel"]) == ("whatsapp:+5511999998888", "contact", "whatsapp")
    assert alice.delete(f"{CHATS}/{chat}/members/whatsapp:%2B5511999998888").status_code == 200
    assert len(alice.get(f"{CHATS}/{chat}").json()["members"]) == 2


def test_a_member_may_leave_and_then_sees_nothing(bob: Person, chat: str) -> None:
    left = bob.delete(f"{CHATS}/{chat}/members/{bob.id}")
    assert [each["name"] for each in left.json()["members"]] == ["alice"]
    problem(bob.get(f"{CHATS}/{chat}"), 404, "conversation_not_found")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({}, ("member_id", "required")),
        ({"member_id": None}, ("member_id", "null")),
        ({"member_id": ""}, ("member_id", "blank")),
        ({"member_id": 1}, ("member_id", "invalid")),
        ({"member_id": ["x"]}, ("member_id", "invalid")),
        ({"member_id": "m" * 301}, ("member_id", "max_length")),
        ({"member_id": "user_nobody"}, ("member_id", "recipient_not_found")),
        ({"member_id": "pigeon:1"}, ("member_id", "unknown_channel")),
        ({"member_id": "whatsapp:1"}, ("member_id", "invalid_address")),
        ({"member_id": "whatsapp:+5511999998888"}, ("member_id", "channel_not_configured")),
    ],
)
def test_refuses_a_wrong_member_by_name(alice: Person, chat: str, body: object, fault: Fault) -> None:
    answer = alice.post(f"{CHATS}/{chat}/members", body)
    problem(answer, 422, answer.json()["code"], fault)
    assert len(alice.get(f"{CHATS}/{chat}").json()["members"]) == 2


def test_refuses_unknown_fields(alice: Person, chat: str, mallory: Person) -> None:
    answer = alice.post(f"{CHATS}/{chat}/members", {"member_id": mallory.id, "role": "admin"})
    problem(answer, 422, "invalid_request", ("role", "unknown_field"))


def test_hides_users_of_other_workspaces_from_members(alice: Person, eve: Person, chat: str) -> None:
    answer = alice.post(f"{CHATS}/{chat}/members", {"member_id": eve.id})
    problem(answer, 422, "recipient_not_found", ("member_id", "recipient_not_found"))


@pytest.mark.parametrize("member", ["user_nobody", "whatsapp:+5511999998888", "%20", "x" * 3000])
def test_removes_only_members(alice: Person, chat: str, member: str) -> None:
    problem(alice.delete(f"{CHATS}/{chat}/members/{member}"), 404, "member_not_found")


def test_a_conversation_is_full_at_its_limit(alice: Person, chat: str, accounts: None) -> None:
    crowd = [f"instagram:178414{number:011}" for number in range(MAX_MEMBERS - 1)]
    assert alice.post(CHATS, {"conversation_id": "crowd", "members": crowd}).status_code == 201
    answer = alice.post(f"{CHATS}/crowd/members", {"member_id": person("carol").id})
    problem(answer, 422, "invalid_request", ("member_id", "too_many"))
    answer = alice.post(CHATS, {"members": [*crowd, person("dave").id]})
    problem(answer, 422, "invalid_request", ("members", "too_many"))
