"""What the simulator sends to the webhook: signed, in order, batched, again after failures, and disturbed on demand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.simulator.harness import (
    ALICE,
    BOB,
    INSTAGRAM,
    WHATSAPP,
    Receiver,
    Simulator,
    account,
    eventually,
    free_port,
    text,
)

LIFE = ["sent", "delivered", "read"]


def test_a_message_is_sent_delivered_and_read(simulator: Simulator, receiver: Receiver) -> None:
    wamid = simulator.send_text(correlation="message-1")
    receiver.wait_for(lambda: receiver.statuses() == LIFE)
    for item in receiver.items("statuses"):
        assert item["id"] == wamid
        assert item["recipient_id"] == ALICE
        assert item["biz_opaque_callback_data"] == "message-1"
        assert isinstance(item["timestamp"], str)
        assert abs(int(item["timestamp"]) - time.time()) < 60
        assert item["conversation"]["id"]
        assert "category" in item["pricing"]
    post = receiver.posts[0]
    assert post.path == f"/hook/whatsapp/{WHATSAPP}"
    assert post.json["object"] == "whatsapp_business_account"
    assert post.json["entry"][0]["id"] != WHATSAPP
    value = post.json["entry"][0]["changes"][0]["value"]
    assert value["metadata"] == {"display_phone_number": "15550000000", "phone_number_id": WHATSAPP}
    assert [message["status"] for message in simulator.messages()] == ["read"]


def test_every_body_is_signed_as_it_travels(simulator: Simulator, receiver: Receiver) -> None:
    simulator.inbound(text="ação / 😀")
    receiver.wait_for(lambda: receiver.items("messages"))
    [post] = receiver.posts
    assert post.signed
    assert post.body.isascii(), "Meta escapes what is outside ASCII"
    assert rb"\/" in post.body
    assert receiver.items("messages")[0]["text"] == {"body": "ação / 😀"}


def test_a_message_without_correlation_gets_none_back(simulator: Simulator, receiver: Receiver) -> None:
    simulator.send_text()
    receiver.wait_for(lambda: receiver.statuses() == LIFE)
    assert all("biz_opaque_callback_data" not in item for item in receiver.items("statuses"))


def test_a_number_that_fails_is_accepted_then_failed(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(fail_numbers=[ALICE])
    simulator.send_text(correlation="m")
    simulator.settle()
    [status] = receiver.items("statuses")
    [error] = status["errors"]
    assert (status["status"], status["biz_opaque_callback_data"]) == ("failed", "m")
    assert error["code"] == 131026
    assert {"title", "message"} <= error.keys()
    assert error["error_data"]["details"]
    assert "pricing" not in status


def test_nobody_reads_when_told_not_to(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(auto_read=False)
    simulator.send_text()
    simulator.settle()
    assert receiver.statuses() == ["sent", "delivered"]


def test_a_person_writes_to_us(simulator: Simulator, receiver: Receiver) -> None:
    wamid = simulator.inbound(text="oi", name="Alice Prado", reply_to="wamid.earlier")["id"]
    [message] = receiver.wait_for(lambda: receiver.items("messages"))
    assert message["timestamp"].isdigit()
    del message["timestamp"]
    assert message == {
        "from": ALICE,
        "id": wamid,
        "type": "text",
        "text": {"body": "oi"},
        "context": {"from": "15550000000", "id": "wamid.earlier"},
    }
    value = receiver.posts[0].json["entry"][0]["changes"][0]["value"]
    assert value["contacts"] == [{"profile": {"name": "Alice Prado"}, "wa_id": ALICE}]
    eventually(lambda: simulator.control("GET", "inbound")["inbound"][0]["delivered_at"])


@pytest.mark.parametrize(
    ("content_type", "kind", "has"),
    [
        ("image/png", "image", {"caption": "foto"}),
        ("video/mp4", "video", {"caption": "foto"}),
        ("audio/ogg; codecs=opus", "audio", {}),
        ("application/pdf", "document", {"caption": "foto", "filename": "a.bin"}),
        ("application/x-unheard-of", "document", {"caption": "foto", "filename": "a.bin"}),
    ],
)
def test_a_person_sends_a_file(
    simulator: Simulator, receiver: Receiver, content_type: str, kind: str, has: dict[str, str]
) -> None:
    media = {"filename": "a.bin", "content_type": content_type, "text": "conteúdo"}
    said = simulator.inbound(text="foto", media=media)
    [message] = receiver.wait_for(lambda: receiver.items("messages"))
    assert message["type"] == kind
    described = message[kind]
    assert described["mime_type"] == content_type
    assert described["sha256"] == said["media_sha256"]
    assert {name: described[name] for name in ("caption", "filename") if name in described} == has
    bearer = {"Authorization": f"Bearer token-of-{WHATSAPP}"}
    url = simulator.http.get(f"/v21.0/{described['id']}", headers=bearer).json()["url"]
    assert simulator.http.get(url, headers=bearer).content == "conteúdo".encode()


def test_what_has_no_field_of_its_own_goes_out_raw(simulator: Simulator, receiver: Receiver) -> None:
    simulator.inbound(raw={"type": "unsupported", "errors": [{"code": 131051}]})
    [message] = receiver.wait_for(lambda: receiver.items("messages"))
    assert (message["type"], message["errors"]) == ("unsupported", [{"code": 131051}])


# --- order and batches


def test_each_contact_is_told_in_order(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(webhook_max_batch=7)
    people = [str(5511900000000 + n) for n in range(10)]
    sent: dict[str, list[str]] = {person: [] for person in people}
    for n in range(200):
        person = people[n % 10]
        sent[person].append(simulator.send_text(str(n), to=person))
    simulator.settle()
    items = receiver.items("statuses")
    assert len(items) == 600
    for person in people:
        mine = [item for item in items if item["recipient_id"] == person]
        for wamid in sent[person]:
            assert [item["status"] for item in mine if item["id"] == wamid] == LIFE
        assert [item["id"] for item in mine if item["status"] == "sent"] == sent[person]
    assert all(post.signed for post in receiver.posts)


def test_what_people_write_arrives_in_order_through_failures(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(webhook_max_batch=5)
    receiver.answers += [500, 200, 503, 302, 404, 200, 500]
    said = [simulator.inbound(text=str(n))["id"] for n in range(40)]
    receiver.wait_for(lambda: len(receiver.items("messages")) == 40)
    assert [item["id"] for item in receiver.items("messages")] == said


def test_news_is_batched_over_all_arrays_up_to_the_maximum(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(webhook_max_batch=200, auto_read=False)
    receiver.gate.clear()
    simulator.send_text("first")
    receiver.wait_for(lambda: len(receiver.posts) == 1)
    for n in range(150):
        simulator.send_text(str(n))
    eventually(lambda: simulator.stats()["webhooks"]["items_scheduled"] == 0)
    receiver.gate.set()
    simulator.settle()
    sizes = [sum(len(c["value"]["statuses"]) for e in p.json["entry"] for c in e["changes"]) for p in receiver.posts]
    assert max(sizes) == 200
    largest = receiver.posts[sizes.index(200)].json
    assert len(largest["entry"]) > 1
    assert len(largest["entry"][0]["changes"]) > 1
    assert len(receiver.statuses()) == 302
    assert simulator.stats()["webhooks"]["largest_batch"] == 200


def test_a_batch_mixes_messages_and_statuses_in_order(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(auto_read=False, status_delay_ms={"sent": 0, "delivered": 0})
    receiver.gate.clear()
    simulator.inbound(text="first")
    receiver.wait_for(lambda: len(receiver.posts) == 1)
    simulator.send_text("a")
    eventually(lambda: simulator.stats()["webhooks"]["items_scheduled"] == 0)
    simulator.inbound(text="second")
    simulator.inbound(text="third", name="Alice P.")
    receiver.gate.set()
    receiver.wait_for(lambda: len(receiver.posts) == 2)
    [entry] = receiver.posts[1].json["entry"]
    assert [next(kind for kind in ("messages", "statuses") if kind in c["value"]) for c in entry["changes"]] == [
        "statuses",
        "messages",
    ]
    assert [m["text"]["body"] for m in entry["changes"][1]["value"]["messages"]] == ["second", "third"]
    assert len(entry["changes"][1]["value"]["contacts"]) == 1


def test_lingering_gathers_a_batch(simulator: Simulator, receiver: Receiver) -> None:
    for linger_ms in (400, 2_000, 10_000):  # on a busy machine five take longer
        simulator.turn(webhook_linger_ms=linger_ms)
        receiver.posts.clear()
        for n in range(5):
            simulator.inbound(text=str(n))
        receiver.wait_for(lambda: len(receiver.items("messages")) == 5)
        if len(receiver.posts) == 1:
            return
    raise AssertionError("five never came together")


def test_what_the_webhook_took_of_a_message_is_known(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(status_delay_ms={"sent": 0, "delivered": 0, "read": 0})
    receiver.gate.clear()
    simulator.send_text()
    eventually(lambda: simulator.messages()[0]["status"] == "read")
    assert simulator.messages()[0]["told"] == "accepted"
    receiver.gate.set()
    eventually(lambda: simulator.messages()[0]["told"] == "read")


# --- failures of the webhook


def test_a_refused_webhook_comes_again_with_the_same_bytes(simulator: Simulator, receiver: Receiver) -> None:
    receiver.answers += [500, 401, 204, 301]
    simulator.inbound(text="oi")
    receiver.wait_for(lambda: len(receiver.posts) == 5)
    assert len({post.body for post in receiver.posts}) == 1
    assert [post.status for post in receiver.posts] == [500, 401, 204, 301, 200]
    gaps = [after.at - before.at for before, after in zip(receiver.posts, receiver.posts[1:], strict=False)]
    for attempt, gap in enumerate(gaps):
        assert gap >= 0.02 * 2**attempt * 0.5, "half of the full pause at least, doubling"
    stats = simulator.settle()["webhooks"]
    assert (stats["posts_failed"], stats["posts_delivered"], stats["items_delivered"]) == (4, 1, 1)


def test_a_webhook_is_given_up_in_the_end_and_counted(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(redeliver_attempts=3, redeliver_base_ms=1)
    receiver.answers += [500] * 3
    simulator.inbound(text="lost")
    stats = simulator.settle()["webhooks"]
    assert (stats["items_given_up"], stats["items_delivered"], stats["posts_failed"]) == (1, 0, 3)
    simulator.inbound(text="found")
    receiver.wait_for(lambda: [item["text"]["body"] for item in receiver.items("messages")] == ["found"])


def test_a_webhook_that_never_answers_is_tried_again(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(webhook_timeout_ms=50)
    receiver.gate.clear()
    simulator.inbound(text="oi")
    receiver.wait_for(lambda: len(receiver.posts) >= 2)
    receiver.gate.set()
    assert simulator.settle()["webhooks"]["items_delivered"] == 1


def test_nothing_is_lost_while_nobody_listens(simulator: Simulator) -> None:
    port = free_port()
    simulator.turn(redeliver_max_ms=100)
    elsewhere = account("whatsapp", "555", webhook_url=f"http://127.0.0.1:{port}/0/hook/whatsapp/555")
    simulator.control("POST", "accounts", elsewhere, status=201)
    said = [simulator.inbound(account_id="555", text=str(n))["id"] for n in range(10)]
    eventually(lambda: simulator.stats()["webhooks"]["posts_failed"] >= 2)
    assert simulator.stats()["webhooks"]["pending"] == 10
    late = Receiver(port)
    try:
        late.wait_for(lambda: len(late.items("messages")) == 10)
        assert [item["id"] for item in late.items("messages")] == said
    finally:
        late.close()


# --- disturbances


def test_duplicates_come_with_the_same_content(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(duplicate_rate=1, duplicate_delay_ms=50)
    wamid = simulator.inbound(text="oi")["id"]
    simulator.send_text()
    stats = simulator.settle()
    assert [item["id"] for item in receiver.items("messages")] == [wamid, wamid]
    assert sorted(receiver.statuses()) == sorted(LIFE * 2)
    assert stats["webhooks"]["items_duplicated"] == 4
    assert stats["inbound"]["sent"] == 1


def test_read_may_come_before_delivered(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(reorder_rate=1)
    simulator.send_text()
    receiver.wait_for(lambda: receiver.statuses() == ["sent", "read", "delivered"])
    assert simulator.messages()[0]["status"] == "read"
    assert simulator.stats()["webhooks"]["items_reordered"] == 1


def test_some_are_reordered_at_half_the_rate(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(seed=3, reorder_rate=0.5)
    wamids = [simulator.send_text(str(n)) for n in range(30)]
    simulator.settle()
    lives = {tuple(receiver.statuses(wamid)) for wamid in wamids}
    assert lives == {("sent", "delivered", "read"), ("sent", "read", "delivered")}


def test_sent_may_come_before_the_send_call_returns(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(early_status_rate=1, status_delay_ms={"sent": 60_000, "delivered": 60_000, "read": 60_000})
    for n in range(5):
        wamid = simulator.send_text(str(n))
        assert receiver.statuses(wamid) == ["sent"], "already here when the call returned"
    assert simulator.stats()["webhooks"]["items_early"] == 5


def test_an_early_status_is_not_sent_twice(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(early_status_rate=1)
    simulator.send_text()
    simulator.settle()
    assert receiver.statuses() == LIFE


@pytest.mark.parametrize(
    ("mode", "error", "patience_s"),
    [
        pytest.param("close", httpx.RemoteProtocolError, 30, id="the connection breaks off"),
        pytest.param("hang", httpx.ReadTimeout, 0.5, id="no answer comes"),
    ],
)
def test_an_ambiguous_send_counts_and_is_reported_but_not_answered(
    simulator: Simulator, receiver: Receiver, mode: str, error: type[Exception], patience_s: float
) -> None:
    simulator.turn(ambiguous_rate=1, ambiguous_mode=mode)
    bearer = {"Authorization": f"Bearer token-of-{WHATSAPP}"}
    with httpx.Client(base_url=simulator.url, headers=bearer, timeout=patience_s) as impatient, pytest.raises(error):
        impatient.post(f"/v21.0/{WHATSAPP}/messages", json=text("oi", correlation="m1"))
    eventually(lambda: simulator.stats()["sends"]["unanswered"] == 1)
    simulator.settle()
    assert [item["biz_opaque_callback_data"] for item in receiver.items("statuses")] == ["m1"] * 3
    simulator.turn(ambiguous_rate=0)
    simulator.send_text("oi", correlation="m1")
    sends = simulator.stats()["sends"]
    assert (sends["accepted"], sends["unanswered"], sends["duplicates"]) == (2, 1, 1)
    assert [(message["attempt"], message["attempts"]) for message in simulator.messages()] == [(1, 2), (2, 2)]


def test_an_ambiguous_answer_may_be_garbage(simulator: Simulator) -> None:
    simulator.turn(ambiguous_rate=1, ambiguous_mode="garbage")
    answer = simulator.whatsapp(text("oi"))
    assert answer.status_code == 200
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()
    assert len(simulator.messages()) == 1


def test_a_duplicated_send_is_visible(simulator: Simulator) -> None:
    for correlation in ("a", "b", "a", "c", "a"):
        simulator.send_text(correlation=correlation)
    assert [m["attempt"] for m in simulator.messages(correlation="a")] == [1, 2, 3]
    assert [m["correlation"] for m in simulator.messages(duplicates="true")] == ["a", "a", "a"]
    sends = simulator.stats()["sends"]
    assert (sends["accepted"], sends["duplicates"], sends["duplicated_correlations"]) == (5, 2, 1)


# --- people who answer


def test_a_person_answers_with_the_next_text_after_reading(simulator: Simulator, receiver: Receiver) -> None:
    simulator.control("PUT", "replies", {"replies": {"+" + ALICE: ["um", "dois"]}, "delay_ms": 10})
    for n in range(3):
        simulator.send_text(str(n))
        simulator.send_text(str(n), to=BOB)
    simulator.settle()
    assert [(item["from"], item["text"]["body"]) for item in receiver.items("messages")] == [
        (ALICE, "um"),
        (ALICE, "dois"),
    ]
    order = [
        "message" if "from" in item else item["status"] for post in receiver.posts for item in _all(post.json, ALICE)
    ]
    assert order.index("read") < order.index("message")
    assert simulator.stats()["inbound"] == {"sent": 2, "sent_by_channel": {"whatsapp": 2}, "scripted_replies": 2}
    assert simulator.control("GET", "replies") == {"replies": {ALICE: []}, "delay_ms": 10}


def _all(body: dict[str, Any], person: str) -> list[dict[str, Any]]:
    values = [change["value"] for entry in body["entry"] for change in entry["changes"]]
    items = [item for value in values for item in (*value.get("statuses", []), *value.get("messages", []))]
    return [item for item in items if person in (item.get("from"), item.get("recipient_id"))]


def test_a_person_answers_on_instagram_too(simulator: Simulator, receiver: Receiver) -> None:
    simulator.control("PUT", "replies", {"replies": {"6212345678901234": ["oi!"]}, "delay_ms": 0})
    simulator.instagram({"recipient": {"id": "6212345678901234"}, "message": {"text": "oi?"}})
    simulator.settle()
    assert [item["message"].get("text") for item in receiver.items("messaging") if "message" in item] == ["oi?", "oi!"]


# --- the subscription


def test_a_webhook_is_verified_when_its_account_is_set_up(simulator: Simulator, receiver: Receiver) -> None:
    def states() -> list[str]:
        accounts = simulator.control("GET", "accounts")["accounts"]
        return [each["subscription"]["state"] for each in accounts]

    eventually(lambda: states() == ["verified", "verified"])
    asked = {query["path"]: query for query in receiver.gets}
    query = asked[f"/hook/instagram/{INSTAGRAM}"]
    assert (query["hub.mode"], query["hub.verify_token"]) == ("subscribe", f"verify-{INSTAGRAM}")
    assert query["hub.challenge"]


@pytest.mark.parametrize(
    ("answer", "http_status"),
    [
        pytest.param((403, "no"), 403, id="refused"),
        pytest.param((200, "something else"), 200, id="not the challenge"),
    ],
)
def test_a_wrong_answer_to_the_challenge_is_reported(
    simulator: Simulator, receiver: Receiver, answer: tuple[int, str], http_status: int
) -> None:
    receiver.verify_answer, before = (lambda query: answer), receiver.verify_answer
    try:
        reported = simulator.control("POST", f"accounts/{WHATSAPP}/verify")["subscription"]
    finally:
        receiver.verify_answer = before
    assert (reported["state"], reported["http_status"]) == ("refused", http_status)
    assert simulator.control("POST", f"accounts/{WHATSAPP}/verify")["subscription"]["state"] == "verified"


def test_a_hub_that_starts_later_is_verified_then(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "accounts.json"
    file.write_text(json.dumps([account("whatsapp", "1", webhook_url=f"http://127.0.0.1:{port}/0/hook/whatsapp/1")]))
    simulator = Simulator("--accounts-file", str(file), log_path=tmp_path / "log")

    def state() -> str:
        return str(simulator.control("GET", "accounts")["accounts"][0]["subscription"]["state"])

    try:
        eventually(lambda: state() == "unreachable")
        hub = Receiver(port)
        try:
            eventually(lambda: state() == "verified")
        finally:
            hub.close()
    finally:
        assert simulator.close() == 0
