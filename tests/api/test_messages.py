"""POST /v1/messages, GET /v1/messages/{id} and POST /v1/messages/{id}/read: what is taken, and what is refused how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from core.clock import SYSTEM_CLOCK
from core.ids import uuid7, uuid7_ms
from demo.redis_server import RedisServer
from messaging import codec, topics, wiring
from messaging.domain import Message
from messaging.errors import ConversationNotFound
from messaging.ports import MessageStore
from messaging.services.accept import Draft, accept
from tests.api.conftest import Fault, Log, Person, missing_id, person, problem

pytestmark = pytest.mark.django_db(databases=["default", "messages"])

SEND = "/v1/messages"
KIB64 = 64 * 1024


# --- sending -----------------------------------------------------------------------------------------------------


def test_accepts_a_message_onto_the_log(alice: Person, bob: Person, chat: str, log: Log) -> None:
    answer = alice.post(SEND, {"conversation_id": chat, "content": "hi"})
    assert answer.status_code == 202
    body = answer.json()
    assert body.keys() == {"message_id", "conversation_id", "status", "accepted_at"}
    assert (body["conversation_id"], body["status"]) == (chat, "ACCEPTED")
    assert uuid7_ms(UUID(body["message_id"])) > 0
    assert len(log.new(topics.MESSAGES)) == 1


def test_opens_a_conversation_with_the_first_message(alice: Person, bob: Person) -> None:
    alice.send("fresh", recipient_id=bob.id)
    assert [each["id"] for each in bob.get("/v1/conversations/fresh").json()["members"]] == [alice.id, bob.id]


def test_takes_ones_own_id_as_the_sender(alice: Person, chat: str) -> None:
    alice.send(chat, sender_id=alice.id)


@pytest.mark.parametrize("content", ["a" * KIB64, "é" * (KIB64 // 2), " leading", "🙂", "\u202eabc", "line\nline"])
def test_takes_any_text_up_to_64_kib_as_it_is(alice: Person, chat: str, log: Log, content: str) -> None:
    message_id = alice.send(chat, content)["message_id"]
    assert alice.get(f"{SEND}/{message_id}").json()["content"] == content
    log.work_off()
    assert alice.get(f"{SEND}/{message_id}").json()["content"] == content


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        pytest.param({"conversation_id": None}, [("conversation_id", "null")], id="no conversation"),
        pytest.param({"conversation_id": ""}, [("conversation_id", "blank")], id="empty conversation"),
        pytest.param({"conversation_id": "c" * 129}, [("conversation_id", "max_length")], id="long conversation"),
        pytest.param({"conversation_id": "a/b"}, [("conversation_id", "invalid_conversation_id")], id="slash"),
        pytest.param({"conversation_id": "c1\n"}, [("conversation_id", "invalid_conversation_id")], id="newline"),
        pytest.param({"conversation_id": "ç"}, [("conversation_id", "invalid_conversation_id")], id="accent"),
        pytest.param({"conversation_id": 1}, [("conversation_id", "invalid")], id="number as conversation"),
        pytest.param({"conversation_id": ["c1"]}, [("conversation_id", "invalid")], id="list as conversation"),
        pytest.param({"conversation_id": {"id": "c1"}}, [("conversation_id", "invalid")], id="object as conversation"),
        pytest.param({"content": ""}, [("content", "required")], id="empty content"),
        pytest.param({"content": " \n\t"}, [("content", "required")], id="blank content"),
        pytest.param({"content": None}, [("content", "null")], id="null content"),
        pytest.param({"content": 7}, [("content", "invalid")], id="number as content"),
        pytest.param({"content": True}, [("content", "invalid")], id="boolean as content"),
        pytest.param({"content": ["a"]}, [("content", "invalid")], id="list as content"),
        pytest.param({"content": "a\x00b"}, [("content", "null_characters_not_allowed")], id="NUL"),
        pytest.param({"content": "a" * (KIB64 + 1)}, [("content", "too_long")], id="long content"),
        pytest.param({"content": "é" * (KIB64 // 2) + "a"}, [("content", "too_long")], id="long in bytes"),
        pytest.param({"recipient_id": 5}, [("recipient_id", "invalid")], id="number as recipient"),
        pytest.param({"recipient_id": ""}, [("recipient_id", "blank")], id="empty recipient"),
        pytest.param({"recipient_id": "r" * 301}, [("recipient_id", "max_length")], id="long recipient"),
        pytest.param({"recipient_id": "user_nobody"}, [("recipient_id", "recipient_not_found")], id="unknown user"),
        pytest.param({"recipient_id": "pigeon:1"}, [("recipient_id", "unknown_channel")], id="unknown channel"),
        pytest.param({"recipient_id": "whatsapp:12"}, [("recipient_id", "invalid_address")], id="no phone number"),
        pytest.param(
            {"recipient_id": "whatsapp:+5511999998888"}, [("recipient_id", "channel_not_configured")], id="no account"
        ),
        pytest.param({"sender_id": 5}, [("sender_id", "invalid")], id="number as sender"),
        pytest.param({"file_id": 5}, [("file_id", "invalid")], id="number as file"),
        pytest.param({"file_id": ""}, [("file_id", "blank")], id="empty file"),
        pytest.param({"file_id": "f" * 65}, [("file_id", "max_length")], id="long file"),
        pytest.param({"reply_to": "rubbish"}, [("reply_to", "invalid_message_id")], id="no message id"),
        pytest.param({"reply_to": 5}, [("reply_to", "invalid")], id="number as message id"),
        pytest.param({"reply_to": missing_id()}, [("reply_to", "message_not_found")], id="unknown message"),
        pytest.param({"surprise": 1}, [("surprise", "unknown_field")], id="unknown field"),
        pytest.param({"message_id": missing_id()}, [("message_id", "unknown_field")], id="id of one's own"),
        pytest.param({"status": "READ"}, [("status", "unknown_field")], id="status of one's own"),
    ],
)
def test_refuses_a_wrong_field_by_name(
    alice: Person, chat: str, log: Log, change: dict[str, object], faults: list[Fault]
) -> None:
    answer = alice.post(SEND, {"conversation_id": chat, "content": "hi", **change})
    body = answer.json()
    problem(answer, 422, body["code"], *faults)
    assert body["code"] in {"invalid_request", *(code for _, code in faults)}
    assert log.new(topics.MESSAGES) == []


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({}, [("conversation_id", "required")]),
        ({"conversation_id": "c1"}, [("content", "required")]),
        ({"content": "hi"}, [("conversation_id", "required")]),
        (
            {"content": 1, "conversation_id": 2, "x": 3},
            [("conversation_id", "invalid"), ("content", "invalid"), ("x", "unknown_field")],
        ),
    ],
)
def test_names_every_field_at_fault_at_once(alice: Person, body: object, faults: list[Fault]) -> None:
    problem(alice.post(SEND, body), 422, "invalid_request", *faults)


def test_refuses_a_foreign_sender(alice: Person, bob: Person, chat: str, log: Log) -> None:
    answer = alice.post(SEND, {"conversation_id": chat, "content": "hi", "sender_id": bob.id})
    problem(answer, 403, "sender_mismatch", ("sender_id", "sender_mismatch"))
    assert log.new(topics.MESSAGES) == []


def test_refuses_to_open_a_conversation_without_or_with_oneself(alice: Person) -> None:
    problem(alice.post(SEND, {"conversation_id": "new", "content": "hi"}), 404, "conversation_not_found")
    answer = alice.post(SEND, {"conversation_id": "new", "content": "hi", "recipient_id": alice.id})
    problem(answer, 422, "recipient_not_found", ("recipient_id", "recipient_is_sender"))
    problem(alice.get("/v1/conversations/new"), 404, "conversation_not_found")


def test_refuses_a_recipient_who_is_no_member(alice: Person, mallory: Person, chat: str) -> None:
    answer = alice.post(SEND, {"conversation_id": chat, "content": "hi", "recipient_id": mallory.id})
    problem(answer, 422, "recipient_not_found", ("recipient_id", "recipient_not_a_member"))


def test_hides_users_of_other_workspaces(alice: Person, eve: Person) -> None:
    answer = alice.post(SEND, {"conversation_id": "new", "content": "hi", "recipient_id": eve.id})
    problem(answer, 422, "recipient_not_found", ("recipient_id", "recipient_not_found"))


def test_lets_nobody_from_outside_in(mallory: Person, eve: Person, bob: Person, chat: str, log: Log) -> None:
    for body in ({}, {"recipient_id": bob.id}):
        for stranger in (mallory, eve):
            answer = stranger.post(SEND, {"conversation_id": chat, "content": "hi", **body})
            assert answer.status_code in {404, 422}
    problem(mallory.post(SEND, {"conversation_id": chat, "content": "hi"}), 404, "conversation_not_found")
    assert log.new(topics.MESSAGES) == []


def test_equal_names_in_two_workspaces_are_two_conversations(
    alice: Person, eve: Person, chat: str, elsewhere: Any, log: Log
) -> None:
    frank = person("frank", elsewhere)
    eve.send(chat, "ours", recipient_id=frank.id)
    alice.send(chat, "theirs")
    log.work_off()
    assert [each["content"] for each in eve.get(f"/v1/conversations/{chat}/messages").json()["items"]] == ["ours"]
    assert [each["content"] for each in alice.get(f"/v1/conversations/{chat}/messages").json()["items"]] == ["theirs"]


@pytest.mark.parametrize(
    ("recipient", "content", "code"),
    [
        ("whatsapp:+5511999998888", "x" * 4097, "text_too_long"),
        ("instagram:17841400000000000", "é" * 501, "text_too_long"),
    ],
)
def test_a_refused_first_message_opens_no_conversation(
    alice: Person, accounts: None, recipient: str, content: str, code: str
) -> None:
    answer = alice.post(SEND, {"conversation_id": "new", "content": content, "recipient_id": recipient})
    problem(answer, 422, "invalid_request", ("content", code))
    problem(alice.get("/v1/conversations/new"), 404, "conversation_not_found")
    assert alice.get("/v1/conversations").json()["items"] == []


def test_a_first_message_joins_the_conversation_that_a_member_opened_meanwhile(
    alice: Person, bob: Person, mallory: Person, log: Log
) -> None:
    """What the check saw is not what is stored: the one that was stored counts."""
    store = wiring.message_store()
    desk = replace(wiring.desk(), store=_Blind(store))
    both = Draft(
        workspace_id=alice.workspace_id, user_id=alice.id, conversation="new", content="x", recipient_id=bob.id
    )
    members = [bob.id, mallory.id]
    assert alice.post("/v1/conversations", {"conversation_id": "new", "members": members}).status_code == 201
    accepted = accept(both, desk)
    [record] = log.new(topics.MESSAGES)
    message = codec.decode(Message, record.value)
    assert (message.message_id, set(message.audience)) == (accepted.message_id, {alice.id, bob.id, mallory.id})
    outsider = replace(both, user_id=person("trent").id)
    with pytest.raises(ConversationNotFound):
        accept(outsider, desk)


class _Blind:
    """The store, a moment before somebody opened the conversation."""

    def __init__(self, store: MessageStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return (lambda _: None) if name == "conversation" else getattr(self._store, name)


@pytest.mark.parametrize("field", ["file_id", "reply_to"])
def test_a_first_message_with_a_foreign_reference_opens_no_conversation(alice: Person, bob: Person, field: str) -> None:
    value = {"file_id": "file_" + "0" * 32, "reply_to": missing_id()}[field]
    answer = alice.post(SEND, {"conversation_id": "new", "content": "x", "recipient_id": bob.id, field: value})
    assert answer.status_code in {404, 422}
    problem(bob.get("/v1/conversations/new"), 404, "conversation_not_found")


def test_replies_only_within_the_conversation(alice: Person, bob: Person, mallory: Person, chat: str, log: Log) -> None:
    ours = alice.send(chat)["message_id"]
    theirs = mallory.send("theirs", recipient_id=bob.id)["message_id"]
    log.work_off()
    assert bob.send(chat, reply_to=ours)
    answer = bob.post(SEND, {"conversation_id": chat, "content": "x", "reply_to": theirs})
    problem(answer, 422, "invalid_request", ("reply_to", "message_not_found"))


def test_replies_to_a_message_that_is_not_stored_yet(alice: Person, bob: Person, chat: str, log: Log) -> None:
    message_id = alice.send(chat)["message_id"]
    assert bob.send(chat, reply_to=message_id)
    log.work_off()


@pytest.mark.parametrize(("conversation", "status"), [("c1", 201), ("new", 201), ("a b", 422)])
def test_takes_an_upload_for_ones_own_conversation(alice: Person, chat: str, conversation: str, status: int) -> None:
    form = {"file": SimpleUploadedFile("a.txt", b"hello"), "conversation_id": conversation}
    assert alice._client.post("/v1/files", form).status_code == status


def test_refuses_an_upload_for_a_conversation_of_others(mallory: Person, eve: Person, chat: str) -> None:
    form = {"file": SimpleUploadedFile("a.txt", b"hello"), "conversation_id": chat}
    problem(mallory._client.post("/v1/files", form), 404, "conversation_not_found")
    form["file"] = SimpleUploadedFile("a.txt", b"hello")
    assert eve._client.post("/v1/files", form).status_code == 201  # hers, in a workspace of her own


def test_carries_only_files_that_the_sender_may_see(alice: Person, bob: Person, mallory: Person, chat: str) -> None:
    uploaded = alice._client.post("/v1/files", {"file": SimpleUploadedFile("a.txt", b"hello")}).json()["file_id"]
    answer = mallory.post(SEND, {"conversation_id": "m", "content": "", "recipient_id": bob.id, "file_id": uploaded})
    problem(answer, 404, "file_not_found", ("file_id", "file_not_found"))
    problem(bob.get(f"/v1/files/{uploaded}"), 404, "file_not_found")
    alice.send(chat, "", file_id=uploaded)
    assert bob.get(f"/v1/files/{uploaded}").status_code == 200


# --- one message -------------------------------------------------------------------------------------------------


def test_shows_a_message_before_and_after_it_is_stored(alice: Person, bob: Person, chat: str, log: Log) -> None:
    message_id = alice.send(chat)["message_id"]
    before = alice.get(f"{SEND}/{message_id}").json()
    log.work_off()
    after = alice.get(f"{SEND}/{message_id}").json()
    assert before.keys() == after.keys()
    assert (before["status"], after["status"]) == ("ACCEPTED", "SENT")
    assert [each["status"] for each in after["history"]] == ["ACCEPTED", "SENT"]
    assert [each["recipient_id"] for each in after["statuses"]] == [bob.id]


@pytest.mark.parametrize("stored", [False, True])
def test_hides_a_message_from_everybody_else(
    alice: Person, mallory: Person, eve: Person, chat: str, log: Log, stored: bool
) -> None:
    message_id = alice.send(chat)["message_id"]
    if stored:
        log.work_off()
    for stranger in (mallory, eve):
        problem(stranger.get(f"{SEND}/{message_id}"), 404, "message_not_found")
        problem(stranger.post(f"{SEND}/{message_id}/read"), 404, "message_not_found")
    assert log.new(topics.STATUS_UPDATES) == []


@pytest.mark.parametrize(
    "message_id", [missing_id(), "rubbish", "0", "%00", "a" * 3000, "..", "%2e%2e", "{}", "ü", "1-2"]
)
def test_does_not_know_other_ids(alice: Person, message_id: str) -> None:
    for answer in (alice.get(f"{SEND}/{message_id}"), alice.post(f"{SEND}/{message_id}/read")):
        body = answer.json()
        assert (answer.status_code, body["status"]) == (404, 404)
        assert body["code"] in {"message_not_found", "not_found"}


def test_marks_a_message_read_once_it_was_sent_to_you(alice: Person, bob: Person, chat: str, log: Log) -> None:
    message_id = alice.send(chat)["message_id"]
    log.work_off()
    answer = bob.post(f"{SEND}/{message_id}/read")
    assert answer.status_code == 202
    assert answer.json().keys() == {"message_id", "status", "at"}
    assert bob.post(f"{SEND}/{message_id}/read", {}).status_code == 202
    log.work_off()
    shown = alice.get(f"{SEND}/{message_id}").json()
    assert shown["status"] == "READ"
    assert [each["status"] for each in shown["history"]] == ["ACCEPTED", "SENT", "READ"]


def test_the_sender_of_a_message_cannot_have_it_read(alice: Person, chat: str, log: Log) -> None:
    message_id = alice.send(chat)["message_id"]
    problem(alice.post(f"{SEND}/{message_id}/read"), 422, "not_a_recipient")
    log.work_off()
    problem(alice.post(f"{SEND}/{message_id}/read"), 422, "not_a_recipient")
    assert log.new(topics.STATUS_UPDATES) == []


def test_a_former_member_sees_and_sends_nothing_more(alice: Person, bob: Person, chat: str, log: Log) -> None:
    message_id = alice.send(chat)["message_id"]
    log.work_off()
    assert alice.delete(f"/v1/conversations/{chat}/members/{bob.id}").status_code == 200
    problem(bob.get(f"{SEND}/{message_id}"), 404, "message_not_found")
    problem(bob.post(SEND, {"conversation_id": chat, "content": "hi"}), 404, "conversation_not_found")
    problem(bob.get(f"/v1/conversations/{chat}/messages"), 404, "conversation_not_found")


# --- Idempotency-Key ---------------------------------------------------------------------------------------------


def test_the_same_request_again_gets_the_first_answer(alice: Person, chat: str, log: Log) -> None:
    body = {"conversation_id": chat, "content": "once"}
    first, second = (alice.post(SEND, body, Idempotency_Key="k1") for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json() == first.json()
    assert (first.get("Idempotency-Replay"), second["Idempotency-Replay"]) == (None, "true")
    assert len(log.new(topics.MESSAGES)) == 1


@pytest.mark.parametrize(
    "change",
    [{"content": "other"}, {"conversation_id": "c2"}, {"recipient_id": "bob"}, {"reply_to": "ours"}],
    ids=lambda change: next(iter(change)),
)
def test_another_request_with_the_key_is_refused(
    alice: Person, bob: Person, chat: str, log: Log, change: dict[str, str]
) -> None:
    ours = alice.send(chat, "before")["message_id"]
    log.work_off()
    named = {"bob": bob.id, "ours": ours}
    body = {"conversation_id": chat, "content": "once"}
    assert alice.post(SEND, body, Idempotency_Key="k1").status_code == 202
    other = {**body, **{name: named.get(value, value) for name, value in change.items()}}
    if change.get("conversation_id"):
        other["recipient_id"] = bob.id
    problem(alice.post(SEND, other, Idempotency_Key="k1"), 422, "idempotency_mismatch")
    assert len(log.new(topics.MESSAGES)) == 1
    problem(alice.get("/v1/conversations/c2"), 404, "conversation_not_found")


def test_an_answer_once_given_stays_the_answer_after_leaving(alice: Person, chat: str, log: Log) -> None:
    body = {"conversation_id": chat, "content": "once"}
    first = alice.post(SEND, body, Idempotency_Key="k1")
    assert alice.delete(f"/v1/conversations/{chat}/members/{alice.id}").status_code == 200
    again = alice.post(SEND, body, Idempotency_Key="k1")
    assert (again.status_code, again["Idempotency-Replay"], again.json()) == (202, "true", first.json())
    problem(alice.post(SEND, body, Idempotency_Key="k2"), 404, "conversation_not_found")
    assert len(log.new(topics.MESSAGES)) == 1


def test_who_is_outside_is_told_the_same_of_a_conversation_that_exists_and_one_that_does_not(
    mallory: Person, chat: str
) -> None:
    answers = [mallory.post(SEND, {"conversation_id": each, "content": "hi"}).json() for each in (chat, "nothing")]
    assert answers[0]["detail"] == answers[1]["detail"]


def test_nobody_opens_the_conversation_that_a_persons_first_message_will_open(alice: Person, bob: Person) -> None:
    taken = "whatsapp:+5511988887777@1055"
    for answer in (
        alice.post(SEND, {"conversation_id": taken, "content": "hi", "recipient_id": bob.id}),
        alice.post("/v1/conversations", {"conversation_id": taken, "members": [bob.id]}),
    ):
        problem(answer, 422, "invalid_request", ("conversation_id", "reserved_conversation_id"))


def test_each_user_has_keys_of_their_own(alice: Person, bob: Person, chat: str, log: Log) -> None:
    body = {"conversation_id": chat, "content": "once"}
    answers = [each.post(SEND, body, Idempotency_Key="k1").json() for each in (alice, bob)]
    assert answers[0]["message_id"] != answers[1]["message_id"]
    assert len(log.new(topics.MESSAGES)) == 2


def test_a_refused_request_uses_no_key_up(alice: Person, chat: str) -> None:
    problem(
        alice.post(SEND, {"conversation_id": chat}, Idempotency_Key="k"),
        422,
        "invalid_request",
        ("content", "required"),
    )
    assert alice.post(SEND, {"conversation_id": chat, "content": "now"}, Idempotency_Key="k").status_code == 202


def test_waits_for_a_request_that_still_runs(alice: Person, chat: str, log: Log) -> None:
    body = {"conversation_id": chat, "content": "once"}
    draft = Draft(workspace_id=alice.workspace_id, user_id=alice.id, conversation=chat, content="once")
    wiring.message_store().claim_key(
        workspace_id=alice.workspace_id, sender_id=alice.id, key="k1", body_hash=draft.body_hash, message_id=uuid7(),
        now_ms=SYSTEM_CLOCK.now_ms(), lease_ms=6_000,
    )  # fmt: skip
    answer = alice.post(SEND, body, Idempotency_Key="k1")
    problem(answer, 409, "idempotency_in_progress")
    assert answer["Retry-After"] == "1"
    assert log.new(topics.MESSAGES) == []
    # Unless that one could not say in the store that it has ended: then nobody need wait for the rest of its lease.
    wiring.hints().end_try(alice.workspace_id, alice.id, "k1", keep_ms=6_000)
    assert alice.post(SEND, body, Idempotency_Key="k1").status_code == 202
    assert len(log.new(topics.MESSAGES)) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "schlüssel", "tab\there", " " * 300])
def test_refuses_a_key_that_is_none(alice: Person, chat: str, log: Log, key: str) -> None:
    answer = alice.post(SEND, {"conversation_id": chat, "content": "x"}, Idempotency_Key=key)
    problem(answer, 422, "invalid_request", ("Idempotency-Key", "invalid_idempotency_key"))
    assert log.new(topics.MESSAGES) == []


def test_takes_the_longest_key(alice: Person, chat: str) -> None:
    assert alice.post(SEND, {"conversation_id": chat, "content": "x"}, Idempotency_Key="k" * 255).status_code == 202


# --- many at once ------------------------------------------------------------------------------------------------

BATCH = "/v1/messages/batch"


def test_a_batch_is_accepted_in_order_and_answered_in_place(alice: Person, chat: str, log: Log) -> None:
    messages = [{"conversation_id": chat, "content": f"text {number}"} for number in range(500)]
    answer = alice.post(BATCH, {"messages": messages})
    assert answer.status_code == 202
    body = answer.json()
    assert (body["accepted"], body["refused"], len(body["items"])) == (500, 0, 500)
    logged = [codec.decode(Message, record.value) for record in log.new(topics.MESSAGES)]
    assert [each.content for each in logged] == [each["content"] for each in messages]
    assert [str(each.message_id) for each in logged] == [each["message_id"] for each in body["items"]]
    assert alice.get(f"{SEND}/{body['items'][499]['message_id']}").json()["content"] == "text 499"


def test_what_is_wrong_in_a_batch_is_refused_by_itself(alice: Person, bob: Person, chat: str, log: Log) -> None:
    good = {"conversation_id": chat, "content": "hi"}
    bad = [
        {"conversation_id": chat},
        7,
        None,
        {**good, "surprise": 1},
        {**good, "content": "a\0"},
        {**good, "sender_id": bob.id},
    ]
    answer = alice.post(BATCH, {"messages": [good, *bad, good]})
    assert answer.status_code == 207
    body = answer.json()
    assert (body["accepted"], body["refused"]) == (2, 6)
    errors = [each.get("error", {}) for each in body["items"]]
    assert [each.get("code") for each in errors] == [None, *["invalid_request"] * 5, "sender_mismatch", None]
    assert errors[1]["errors"][0]["field"] == "content"
    assert len(log.new(topics.MESSAGES)) == 2


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({}, [("messages", "required")]),
        ({"messages": []}, [("messages", "min_length")]),
        ({"messages": [{}] * 501}, [("messages", "max_length")]),
        ({"messages": {"0": {}}}, [("messages", "not_a_list")]),
        ({"messages": [{}], "more": 1}, [("more", "unknown_field")]),
    ],
)
def test_a_batch_that_is_none_is_refused(alice: Person, log: Log, body: object, faults: list[Fault]) -> None:
    problem(alice.post(BATCH, body), 422, "invalid_request", *faults)
    assert log.new(topics.MESSAGES) == []


def test_a_batch_under_a_key_is_sent_once(alice: Person, chat: str, log: Log) -> None:
    body = {"messages": [{"conversation_id": chat, "content": f"{number}"} for number in range(3)]}
    first = alice.post(BATCH, body, Idempotency_Key="k1").json()
    again = alice.post(BATCH, body, Idempotency_Key="k1")
    assert (again.status_code, again.json()) == (202, first)
    assert len(log.new(topics.MESSAGES)) == 3
    problem(alice.post(BATCH, {"messages": body["messages"][:2]}, Idempotency_Key="k1"), 422, "idempotency_mismatch")


def test_a_batch_without_what_was_wrong_in_it_needs_another_key(alice: Person, chat: str, log: Log) -> None:
    good, bad = {"conversation_id": chat, "content": "hi"}, {"conversation_id": chat, "content": ""}
    assert alice.post(BATCH, {"messages": [bad, good]}, Idempotency_Key="k1").status_code == 207
    problem(alice.post(BATCH, {"messages": [good]}, Idempotency_Key="k1"), 422, "idempotency_mismatch")
    assert alice.post(BATCH, {"messages": [bad, good]}, Idempotency_Key="k1").status_code == 207
    assert len(log.new(topics.MESSAGES)) == 1


@pytest.mark.parametrize("depth", [100, 400, 600, 800, 900, 950])
def test_what_is_nested_deeply_in_a_batch_is_refused(alice: Person, chat: str, depth: int) -> None:
    """Up to where the parser gives up."""
    nested = "[" * depth + "]" * depth
    body = f'{{"messages": [{nested}, {{"conversation_id": "{chat}", "content": "hi"}}]}}'
    assert alice.post(BATCH, body, Idempotency_Key=f"k{depth}").status_code in {207, 400}


def test_a_batch_without_the_log_is_not_accepted(alice: Person, chat: str, own_log: RedisServer) -> None:
    own_log.stop()
    answer = alice.post(BATCH, {"messages": [{"conversation_id": chat, "content": "hi"}] * 2})
    problem(answer, 503, "log_unavailable")
