"""The simulated Instagram messaging API: sends, refusals, and webhooks without any delivery event."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.simulator.harness import ALICE_ON_INSTAGRAM as ALICE
from tests.simulator.harness import INSTAGRAM, Receiver, Simulator


def message(content: object, *, to: str = ALICE, **more: object) -> dict[str, Any]:
    return {"recipient": {"id": to}, "message": content, **more}


def attachment(url: str, kind: str = "image") -> dict[str, Any]:
    return {"attachment": {"type": kind, "payload": {"url": url}}}


def test_a_text_is_echoed_and_read_and_never_delivered(simulator: Simulator, receiver: Receiver) -> None:
    answer = simulator.instagram(message({"text": "olá"}))
    assert answer.status_code == 200, answer.text
    mid = answer.json()["message_id"]
    assert answer.json() == {"recipient_id": ALICE, "message_id": mid}
    echo, read = receiver.wait_for(lambda: receiver.items("messaging")[1:] and receiver.items("messaging"))
    assert echo["sender"] == {"id": INSTAGRAM}
    assert echo["recipient"] == {"id": ALICE}
    assert (echo["message"]["mid"], echo["message"]["text"], echo["message"]["is_echo"]) == (mid, "olá", True)
    assert (read["sender"], read["recipient"], read["read"]) == ({"id": ALICE}, {"id": INSTAGRAM}, {"mid": mid})
    assert isinstance(read["timestamp"], int)
    assert read["timestamp"] >= echo["timestamp"] > 1_600_000_000_000
    post = receiver.posts[0]
    assert post.signed
    assert post.json["object"] == "instagram"
    assert post.json["entry"][0]["id"] == INSTAGRAM
    assert "delivery" not in str([each.json for each in receiver.posts])


def test_echoes_can_be_turned_off(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(echoes=False)
    simulator.instagram(message({"text": "olá"}))
    simulator.settle()
    [only] = receiver.items("messaging")
    assert "read" in only


def test_an_attachment_is_fetched_from_its_url(simulator: Simulator, receiver: Receiver) -> None:
    answer = simulator.instagram(message(attachment(f"http://127.0.0.1:{receiver.port}/file.png")))
    assert answer.status_code == 200, answer.text
    [received] = simulator.messages(account_id=INSTAGRAM)
    assert received["media_sha256"] == hashlib.sha256(b"bytes behind a link").hexdigest()
    assert received["type"] == "image"


@pytest.mark.parametrize(
    ("name", "kind"), [("file.docx", "file"), ("file.ogg", "audio"), ("file.pdf", "image"), ("file", "image")]
)
def test_an_attachment_of_another_type_is_not_taken(
    simulator: Simulator, receiver: Receiver, name: str, kind: str
) -> None:
    answer = simulator.instagram(message(attachment(f"http://127.0.0.1:{receiver.port}/{name}", kind)))
    assert (answer.status_code, answer.json()["error"]["error_subcode"]) == (400, 2018047)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        pytest.param(message({"text": "é" * 501}), "1000 bytes", id="1002 bytes in 501 characters"),
        pytest.param(message({"text": ""}), "message.text", id="an empty text"),
        pytest.param(message({}), "exactly one", id="nothing"),
        pytest.param(message({"text": "x", **attachment("https://x.org")}), "exactly one", id="both"),
        pytest.param(message(attachment("file:///etc/passwd")), "url", id="a url that is not HTTP"),
        pytest.param(message(attachment("http://127.0.0.1:1/none")), "fetch", id="a url that does not answer"),
        pytest.param(message(attachment("https://x.org", "poem")), "type", id="an unknown kind"),
        pytest.param(message({"text": "x"}, to="alice.in.wonderland"), "No matching user", id="a username"),
        pytest.param(message({"text": "x"}, tag="SALE"), "HUMAN_AGENT", id="an unknown tag"),
        pytest.param({"message": {"text": "x"}}, "recipient", id="no recipient"),
    ],
)
def test_an_invalid_message_is_refused(simulator: Simulator, body: dict[str, Any], named: str) -> None:
    answer = simulator.instagram(body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == 100
    assert error["error_data"]["messaging_product"] == "instagram"
    assert named in error["error_data"]["details"]
    assert simulator.messages() == []


def test_a_text_of_1000_bytes_is_accepted(simulator: Simulator) -> None:
    assert simulator.instagram(message({"text": "é" * 500})).status_code == 200


def test_only_the_person_can_start(simulator: Simulator) -> None:
    simulator.turn(window_enforced=True)
    assert simulator.instagram(message({"text": "x"})).json()["error"]["code"] == 10
    simulator.inbound(channel="instagram", account_id=INSTAGRAM, **{"from": ALICE}, text="oi")
    assert simulator.instagram(message({"text": "x"})).status_code == 200


def test_a_human_agent_has_seven_days(simulator: Simulator) -> None:
    simulator.turn(window_enforced=True, window_s=0.001)
    simulator.inbound(channel="instagram", account_id=INSTAGRAM, **{"from": ALICE}, text="oi")
    assert simulator.instagram(message({"text": "x"})).status_code == 400
    assert simulator.instagram(message({"text": "x"}, tag="HUMAN_AGENT")).status_code == 200


def test_people_who_are_gone_cannot_be_reached(simulator: Simulator) -> None:
    simulator.turn(unknown_numbers=[ALICE], fail_numbers=["777777"])
    assert simulator.instagram(message({"text": "x"})).json()["error"]["code"] == 100
    assert simulator.instagram(message({"text": "x"}, to="777777")).json()["error"]["code"] == 551
    assert simulator.messages() == []


@pytest.mark.parametrize(("code", "subcode"), [(551, 1545041), (200, 1545041), (10, 2018108)])
def test_a_person_who_cannot_receive_is_told_under_any_of_their_codes(
    simulator: Simulator, code: int, subcode: int
) -> None:
    simulator.turn(fail_numbers=[ALICE], not_available_code=code)
    error = simulator.instagram(message({"text": "x"})).json()["error"]
    assert (error["code"], error["error_subcode"]) == (code, subcode)


def test_an_answer_quotes_a_message_of_its_chat(simulator: Simulator) -> None:
    for_us: dict[str, Any] = {"channel": "instagram", "account_id": INSTAGRAM, "text": "oi"}
    mid, elsewhere = (simulator.inbound(**for_us, **{"from": each})["id"] for each in (ALICE, "777777"))
    assert simulator.instagram(message({"text": "x", "reply_to": {"mid": mid}})).status_code == 200
    refused = simulator.instagram(message({"text": "x", "reply_to": {"mid": elsewhere}}))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, 100)


def test_a_person_sends_text_and_pictures(simulator: Simulator, receiver: Receiver) -> None:
    for_us: dict[str, Any] = {"channel": "instagram", "account_id": INSTAGRAM, "from": ALICE}
    text_mid = simulator.inbound(**for_us, text="oi", username="alice.in.w", reply_to="mid.earlier")["id"]
    picture = {"filename": "a.png", "content_type": "image/png", "base64": "iVBORw0KGgo="}
    picture_mid = simulator.inbound(**for_us, media=picture)["id"]
    first, second = receiver.wait_for(lambda: receiver.items("messaging")[1:] and receiver.items("messaging"))
    assert (first["sender"], first["recipient"]) == ({"id": ALICE, "username": "alice.in.w"}, {"id": INSTAGRAM})
    assert second["sender"] == {"id": ALICE}
    assert first["message"] == {"mid": text_mid, "text": "oi", "reply_to": {"mid": "mid.earlier"}}
    assert second["message"]["mid"] == picture_mid
    [attached] = second["message"]["attachments"]
    assert attached["type"] == "image"
    fetched = simulator.http.get(attached["payload"]["url"])  # as on the CDN: no Bearer
    assert (fetched.content, fetched.headers["content-type"]) == (b"\x89PNG\r\n\x1a\n", "image/png")


def test_the_link_to_what_a_person_sent_is_forbidden_once_it_expired(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(media_url_ttl_s=0)
    picture = {"filename": "a.png", "content_type": "image/png", "base64": "iVBORw0KGgo="}
    simulator.inbound(channel="instagram", account_id=INSTAGRAM, **{"from": ALICE}, media=picture)
    [item] = receiver.wait_for(lambda: receiver.items("messaging"))
    assert simulator.http.get(item["message"]["attachments"][0]["payload"]["url"]).status_code == 403
