"""The simulated WhatsApp Cloud API answers as Meta documents: sends, refusals, media."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.simulator.harness import ALICE, BOB, INSTAGRAM, MALLORY, WHATSAPP, Receiver, Simulator, eventually, text

BUTTON = {"type": "reply", "reply": {"id": "yes", "title": "Sim"}}


def of(kind: str, content: object, **more: object) -> dict[str, Any]:
    return {"messaging_product": "whatsapp", "to": ALICE, "type": kind, kind: content, **more}


def interactive(action: object, kind: str = "button") -> dict[str, Any]:
    return of("interactive", {"type": kind, "body": {"text": "Confirma?"}, "action": action})


def button(identity: str, title: str = "Sim") -> dict[str, Any]:
    return {"type": "reply", "reply": {"id": identity, "title": title}}


def rows(count: int, **row: str) -> dict[str, Any]:
    return {"button": "Ver", "sections": [{"rows": [{"id": str(n), "title": "Row", **row} for n in range(count)]}]}


GOOD = [
    pytest.param(text("x" * 4096), "x" * 4096, id="a text of 4096 characters"),
    pytest.param(text("😀" * 4096), "😀" * 4096, id="4096 characters outside the basic plane"),
    pytest.param(text("oi", recipient_type="individual"), "oi", id="to an individual"),
    pytest.param({"messaging_product": "whatsapp", "to": ALICE, "text": {"body": "oi"}}, "oi", id="type left out"),
    pytest.param(
        of(
            "template",
            {
                "name": "order_update",
                "language": {"policy": "deterministic", "code": "pt_BR"},
                "components": [{"type": "body", "parameters": [{"type": "text", "text": "42"}]}],
            },
        ),
        "order_update",
        id="a template",
    ),
    pytest.param(interactive({"buttons": [button("a"), button("b"), button("c")]}), "Confirma?", id="three buttons"),
    pytest.param(interactive(rows(10, description="d" * 72), "list"), "Confirma?", id="a list of ten rows"),
    pytest.param(
        interactive({"name": "cta_url", "parameters": {"display_text": "Abrir", "url": "https://x.org"}}, "cta_url"),
        "Confirma?",
        id="a link button",
    ),
    pytest.param(of("reaction", {"message_id": "wamid.x", "emoji": "👍"}), "👍", id="a reaction"),
    pytest.param(of("location", {"latitude": -23.5, "longitude": -46.6, "name": "SP"}), "", id="a location"),
    pytest.param(of("contacts", [{"name": {"formatted_name": "Bob"}}]), "", id="contacts"),
]


@pytest.mark.parametrize(("body", "shown"), GOOD)
def test_a_valid_message_is_accepted_and_shown_as_received(simulator: Simulator, body: Any, shown: str) -> None:
    answer = simulator.whatsapp(body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["messaging_product"] == "whatsapp"
    assert answer.json()["contacts"] == [{"input": ALICE, "wa_id": ALICE}]
    wamid = answer.json()["messages"][0]["id"]
    assert wamid.startswith("wamid.")
    [message] = simulator.messages()
    assert (message["id"], message["to"], message["type"], message["text"]) == (
        wamid,
        ALICE,
        body.get("type", "text"),
        shown,
    )


BAD = [
    pytest.param({**text("oi"), "messaging_product": "sms"}, "messaging_product", id="another product"),
    pytest.param({"to": ALICE, "type": "text", "text": {"body": "oi"}}, "messaging_product", id="no product"),
    pytest.param({"messaging_product": "whatsapp", "text": {"body": "oi"}}, "to", id="no recipient"),
    pytest.param(text("oi", to="alice"), "Param to", id="a name as number"),
    pytest.param(text("oi", to="5" * 16), "Param to", id="a number of 16 digits"),
    pytest.param(text("oi", recipient_type="crowd"), "recipient_type", id="an unknown kind of recipient"),
    pytest.param({**text("oi"), "text": {}}, "body", id="no body"),
    pytest.param(text(""), "text.body", id="an empty text"),
    pytest.param(text("x" * 4097), "text.body", id="a text of 4097 characters"),
    pytest.param({**text("oi"), "text": "oi"}, "text", id="a text that is no object"),
    pytest.param(text("oi", biz_opaque_callback_data="x" * 513), "biz_opaque", id="too much callback data"),
    pytest.param({**text("oi"), "type": "poem"}, "type", id="an unknown type"),
    pytest.param({"messaging_product": "whatsapp", "to": ALICE, "type": "image"}, "image", id="a type without object"),
    pytest.param(of("image", {}), "exactly one of id and link", id="media without source"),
    pytest.param(of("image", {"id": "1", "link": "https://x.org/a"}), "exactly one", id="media with two sources"),
    pytest.param(of("image", {"link": "ftp://x.org/a"}), "image.link", id="a link that is not HTTP"),
    pytest.param(of("image", {"id": "404"}), "media attachment ID", id="media that was never uploaded"),
    pytest.param(of("image", {"id": "1", "caption": "c" * 1025}), "image.caption", id="a caption of 1025 characters"),
    pytest.param(of("audio", {"id": "1", "caption": "c"}), "no caption", id="audio with a caption"),
    pytest.param(of("image", {"id": "1", "filename": "a.png"}), "no filename", id="an image with a file name"),
    pytest.param(of("template", {"name": "hi"}), "language", id="a template without language"),
    pytest.param(interactive({"buttons": [button(x) for x in "abcd"]}), "buttons", id="four buttons"),
    pytest.param(interactive({"buttons": [button("a"), button("a")]}), "unique", id="two buttons with one id"),
    pytest.param(interactive({"buttons": [button("a", "t" * 21)]}), "title", id="a button title of 21 characters"),
    pytest.param(interactive(rows(11), "list"), "row count", id="eleven rows"),
    pytest.param(interactive(rows(1, title="t" * 25), "list"), "title", id="a row title of 25 characters"),
    pytest.param(interactive(rows(1, description="d" * 73), "list"), "description", id="a description of 73"),
    pytest.param(of("location", {"latitude": 91, "longitude": 0}), "latitude", id="a latitude of 91"),
    pytest.param(of("reaction", {"emoji": "👍"}), "message_id", id="a reaction to nothing"),
    pytest.param({"messaging_product": "whatsapp", "status": "delivered", "message_id": "x"}, "status", id="a receipt"),
    pytest.param([], "JSON object", id="a list"),
]


@pytest.mark.parametrize(("body", "named"), BAD)
def test_an_invalid_message_is_refused_with_code_100_naming_the_fault(
    simulator: Simulator, body: Any, named: str
) -> None:
    answer = simulator.whatsapp(body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == 100
    assert error["type"] == "OAuthException"
    assert error["error_data"]["messaging_product"] == "whatsapp"
    assert named in error["error_data"]["details"]
    assert error["fbtrace_id"]
    assert simulator.messages() == []
    assert simulator.stats()["sends"]["refused_by_code"] == {"100": 1}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'"text"', b"null"])
def test_a_body_that_is_no_json_object_is_refused(simulator: Simulator, body: bytes) -> None:
    answer = simulator.http.post(
        f"/v21.0/{WHATSAPP}/messages", content=body, headers={"Authorization": f"Bearer token-of-{WHATSAPP}"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 100)


def test_a_body_without_end_is_refused(simulator: Simulator) -> None:
    answer = simulator.whatsapp(text("x" * 2_000_000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, 100)


@pytest.mark.parametrize(
    ("path", "token", "status", "code"),
    [
        pytest.param(f"/v21.0/{WHATSAPP}/messages", "wrong", 401, 190, id="a wrong token"),
        pytest.param(f"/v21.0/{WHATSAPP}/messages", "token-of-17841400000000001", 401, 190, id="another account's"),
        pytest.param("/v21.0/999/messages", "wrong", 401, 190, id="no account, no token"),
        pytest.param("/v21.0/999/messages", f"token-of-{WHATSAPP}", 400, 100, id="an unknown account"),
        pytest.param(f"/latest/{WHATSAPP}/messages", f"token-of-{WHATSAPP}", 404, 2500, id="no version"),
        pytest.param(f"/v21.0/{WHATSAPP}/poems", f"token-of-{WHATSAPP}", 404, 2500, id="an unknown edge"),
    ],
)
def test_who_may_not_send_is_told_so(simulator: Simulator, path: str, token: str, status: int, code: int) -> None:
    answer = simulator.post(path, text("oi"), token=token)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert simulator.messages() == []


def test_a_send_without_any_token_is_refused(simulator: Simulator) -> None:
    answer = simulator.http.post(f"/v21.0/{WHATSAPP}/messages", json=text("oi"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, 190)


def test_numbers_are_written_in_one_way(simulator: Simulator) -> None:
    answer = simulator.whatsapp(text("oi", to="+55 (11) 99999-0001"))
    assert answer.json()["contacts"] == [{"input": "+55 (11) 99999-0001", "wa_id": ALICE}]
    assert [message["to"] for message in simulator.messages(to="+" + ALICE)] == [ALICE]


def refusal(answer: httpx.Response) -> tuple[int, int]:
    return answer.status_code, answer.json()["error"]["code"]


def test_an_unknown_number_is_undeliverable(simulator: Simulator) -> None:
    simulator.turn(unknown_numbers=["+" + BOB])
    assert refusal(simulator.whatsapp(text("oi", to=BOB))) == (400, 131026)
    assert simulator.whatsapp(text("oi", to=ALICE)).status_code == 200


def test_the_window_opens_when_the_person_writes(simulator: Simulator) -> None:
    simulator.turn(window_enforced=True)
    template = of("template", {"name": "hello", "language": {"code": "en_US"}})
    assert refusal(simulator.whatsapp(text("oi"))) == (400, 131047)
    assert simulator.whatsapp(template).status_code == 200
    simulator.inbound(text="hello")
    assert simulator.whatsapp(text("oi")).status_code == 200
    assert refusal(simulator.whatsapp(text("oi", to=BOB))) == (400, 131047)


def test_the_window_closes_again(simulator: Simulator) -> None:
    simulator.turn(window_enforced=True, window_s=0.2)
    simulator.inbound(text="hello")
    eventually(lambda: simulator.whatsapp(text("oi")).status_code == 400, timeout_s=3)


def test_one_person_can_be_written_to_45_times_in_a_burst(simulator: Simulator) -> None:
    simulator.turn(pair_limit=True, pair_period_s=3600)
    answers = [simulator.whatsapp(text(str(n))) for n in range(46)]
    assert [answer.status_code for answer in answers[:45]] == [200] * 45
    assert refusal(answers[45]) == (400, 131056)
    assert simulator.whatsapp(text("oi", to=BOB)).status_code == 200


def test_the_pair_limit_refills(simulator: Simulator) -> None:
    simulator.turn(pair_limit=True, pair_burst=1, pair_period_s=3600)
    assert simulator.whatsapp(text("1")).status_code == 200
    assert refusal(simulator.whatsapp(text("2"))) == (400, 131056)
    simulator.turn(pair_limit=True, pair_burst=1, pair_period_s=0.2)
    eventually(lambda: simulator.whatsapp(text("3")).status_code == 200, timeout_s=3)


def test_an_answer_quotes_a_message_of_its_chat(simulator: Simulator) -> None:
    theirs, ours = simulator.inbound(text="Tem pão?")["id"], simulator.send_text("Bom dia")
    for quoted in (theirs, ours):
        assert simulator.whatsapp(text("Tem", context={"message_id": quoted})).status_code == 200
    assert [each["reply_to"] for each in simulator.messages()] == [None, theirs, ours]


@pytest.mark.parametrize(
    "quoted",
    [
        pytest.param(lambda simulator: simulator.inbound(text="oi", **{"from": BOB})["id"], id="by another person"),
        pytest.param(lambda simulator: simulator.send_text("oi", to=BOB), id="to another person"),
        pytest.param(
            lambda simulator: simulator.inbound(channel="instagram", account_id=INSTAGRAM, text="oi")["id"],
            id="to another account",
        ),
        pytest.param(lambda _simulator: "wamid.x", id="never written"),
    ],
)
def test_a_message_of_another_chat_cannot_be_quoted(simulator: Simulator, quoted: Callable[[Simulator], str]) -> None:
    wamid = quoted(simulator)
    assert refusal(simulator.whatsapp(text("Tem", context={"message_id": wamid}))) == (400, 131009)
    assert [each for each in simulator.messages() if each["text"] == "Tem"] == []


def test_a_number_has_its_rate(simulator: Simulator) -> None:
    simulator.turn(messages_per_s=2)
    codes, began_s = [200], time.monotonic()
    while codes[-1] == 200:
        assert len(codes) < 100, "nobody was refused"
        codes.append(simulator.whatsapp(text(str(len(codes)), to=str(10**9 + len(codes)))).status_code)
    assert codes[-1] == 400
    assert 2 <= codes[1:].count(200) <= 2 + 2 * (time.monotonic() - began_s)
    assert simulator.stats()["sends"]["refused_by_code"] == {"130429": 1}


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        pytest.param({"throttle_rate": 1}, (400, 130429), id="throttled inside HTTP 400"),
        pytest.param({"throttle_rate": 1, "throttle_status": 429}, (429, 130429), id="throttled with HTTP 429"),
        pytest.param({"failure_rate": 1}, (503, 131016), id="failing"),
        pytest.param({"outage": True}, (503, 131016), id="away"),
    ],
)
def test_a_refused_send_leaves_nothing_behind(
    simulator: Simulator, receiver: Receiver, switches: dict[str, Any], expected: tuple[int, int]
) -> None:
    simulator.turn(**switches)
    assert refusal(simulator.whatsapp(text("oi", correlation="m1"))) == expected
    assert simulator.messages() == []
    assert simulator.settle()["webhooks"]["items_delivered"] == 0
    assert receiver.posts == []


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param({"throttle_rate": 1}, id="throttled"),
        pytest.param({"throttle_rate": 1, "throttle_status": 429}, id="throttled with HTTP 429"),
        pytest.param({"failure_rate": 1}, id="failing"),
        pytest.param({"outage": True}, id="away"),
        pytest.param({"busy_numbers": ["+55 11 99999-8888"]}, id="one person"),
    ],
)
def test_who_may_come_back_is_told_when(simulator: Simulator, switches: dict[str, Any]) -> None:
    simulator.turn(retry_after_s=7, **switches)
    answer = simulator.whatsapp(text("oi", to="5511999998888"))
    assert (answer.status_code >= 400, answer.headers["Retry-After"]) == (True, "7")
    assert "busy_numbers" not in switches or refusal(answer) == (400, 131056)
    assert "busy_numbers" not in switches or simulator.whatsapp(text("oi", to="5511999990000")).status_code == 200


def test_chances_repeat_with_the_seed(simulator: Simulator) -> None:
    def outcomes() -> list[int]:
        simulator.turn(seed=7, failure_rate=0.5)
        return [simulator.whatsapp(text(str(n))).status_code for n in range(24)]

    first = outcomes()
    assert set(first) == {200, 503}
    assert outcomes() == first


def test_latency_delays_the_answer(simulator: Simulator) -> None:
    simulator.turn(latency_ms=150)
    assert simulator.whatsapp(text("oi")).elapsed.total_seconds() >= 0.15


# --- media


def upload(simulator: Simulator, data: bytes, content_type: str = "image/png", **fields: str) -> httpx.Response:
    form = {"messaging_product": "whatsapp", "type": content_type, **fields}
    return simulator.http.post(
        f"/v21.0/{WHATSAPP}/media",
        data={name: value for name, value in form.items() if value},
        files={"file": ("picture.png", data, content_type)},
        headers={"Authorization": f"Bearer token-of-{WHATSAPP}"},
    )


def get(simulator: Simulator, path: str, *, token: str = f"token-of-{WHATSAPP}") -> httpx.Response:
    return simulator.http.get(path, headers={"Authorization": f"Bearer {token}"} if token else {})


def test_an_uploaded_file_can_be_sent_described_and_fetched(simulator: Simulator) -> None:
    data = bytes(range(256)) * 40
    media_id = upload(simulator, data).json()["id"]
    described = get(simulator, f"/v21.0/{media_id}").json()
    assert described["id"] == media_id
    assert described["mime_type"] == "image/png"
    assert described["file_size"] == len(data)
    assert described["sha256"] == hashlib.sha256(data).hexdigest()
    assert get(simulator, described["url"]).content == data
    assert simulator.whatsapp(of("image", {"id": media_id, "caption": "foto"})).status_code == 200
    [message] = simulator.messages()
    assert (message["media_sha256"], message["text"]) == (described["sha256"], "foto")


def test_media_needs_the_bearer_of_its_account(simulator: Simulator) -> None:
    media_id = upload(simulator, b"secret").json()["id"]
    url = get(simulator, f"/v21.0/{media_id}").json()["url"]
    for token in ("", "wrong", "token-of-17841400000000001"):
        assert refusal(get(simulator, f"/v21.0/{media_id}", token=token)) == (401, 190)
        assert refusal(get(simulator, url, token=token)) == (401, 190)


def test_a_media_url_expires_and_cannot_be_made_up(simulator: Simulator) -> None:
    media_id = upload(simulator, b"secret").json()["id"]
    url = get(simulator, f"/v21.0/{media_id}").json()["url"]
    assert get(simulator, url).status_code == 200
    assert get(simulator, url.replace("access=bearer", "access=public"), token="").status_code == 403
    assert get(simulator, f"{urlsplit(url).path}?expires=99999999999999&sig=x").status_code == 404
    assert get(simulator, urlsplit(url).path).status_code == 404
    simulator.turn(media_url_ttl_s=0)
    assert get(simulator, get(simulator, f"/v21.0/{media_id}").json()["url"]).status_code == 404


@pytest.mark.parametrize(
    ("data", "content_type", "fields", "named"),
    [
        pytest.param(b"MZ", "application/x-msdownload", {}, "one of the following types", id="a program"),
        pytest.param(b"", "image/png", {}, "empty", id="nothing"),
        pytest.param(b"x" * (100 * 1024 * 1024 + 1), "application/pdf", {}, "too large", id="a file above 100 MB"),
        pytest.param(b"x", "image/png", {"messaging_product": ""}, "messaging_product", id="no product"),
        pytest.param(b"x", "image/png", {"type": ""}, "type", id="no type"),
    ],
)
def test_an_upload_that_meta_would_not_take_is_refused(
    simulator: Simulator, data: bytes, content_type: str, fields: dict[str, str], named: str
) -> None:
    answer = upload(simulator, data, content_type, **fields)
    assert refusal(answer) == (400, 100)
    assert named in answer.json()["error"]["error_data"]["details"]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        pytest.param(b"--x\r\nbroken", "multipart/form-data; boundary=x", id="broken multipart"),
        pytest.param(b"{}", "application/json", id="JSON"),
        pytest.param(b"x", "multipart/form-data", id="no boundary"),
    ],
)
def test_an_upload_that_is_no_form_is_refused(simulator: Simulator, content: bytes, content_type: str) -> None:
    headers = {"Authorization": f"Bearer token-of-{WHATSAPP}", "Content-Type": content_type}
    answer = simulator.http.post(f"/v21.0/{WHATSAPP}/media", content=content, headers=headers)
    assert refusal(answer) == (400, 100)


def test_a_file_of_another_kind_fails_later(simulator: Simulator, receiver: Receiver) -> None:
    media_id = upload(simulator, b"%PDF", "application/pdf").json()["id"]
    wamid = simulator.whatsapp(of("image", {"id": media_id})).json()["messages"][0]["id"]
    [status] = receiver.wait_for(lambda: receiver.items("statuses"))
    assert (status["id"], status["status"], status["errors"][0]["code"]) == (wamid, "failed", 131053)


def test_a_picture_above_5_mb_goes_as_a_document_only(simulator: Simulator, receiver: Receiver) -> None:
    media_id = upload(simulator, b"x" * (5 * 1024 * 1024 + 1)).json()["id"]
    simulator.whatsapp(of("image", {"id": media_id}))
    simulator.whatsapp(of("document", {"id": media_id}))
    receiver.wait_for(lambda: sorted(receiver.statuses()) == ["delivered", "failed", "read", "sent"])


def test_old_brazilian_accounts_have_short_ids(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(short_brazilian_ids=True)
    answer = simulator.whatsapp(text("oi", to="5511999990001"))
    assert answer.json()["contacts"] == [{"input": "5511999990001", "wa_id": "551199990001"}]
    simulator.settle()
    assert {item["recipient_id"] for item in receiver.items("statuses")} == {"551199990001"}
    assert simulator.whatsapp(text("oi", to=BOB)).json()["contacts"][0]["wa_id"] == BOB
    asked = simulator.inbound(text="oi", **{"from": "551199990001"})["id"]
    assert simulator.whatsapp(text("oi", to="5511999990001", context={"message_id": asked})).status_code == 200


def test_a_person_may_hide_their_number(simulator: Simulator, receiver: Receiver) -> None:
    hidden = "BR.13491208655302741918"
    simulator.inbound(text="oi", **{"from": hidden})
    [message] = receiver.wait_for(lambda: receiver.items("messages"))
    assert (message["from_user_id"], "from" in message) == (hidden, False)
    contacts = receiver.posts[0].json["entry"][0]["changes"][0]["value"]["contacts"]
    assert contacts == [{"profile": {"name": "Alice"}, "user_id": hidden}]
    body = {"messaging_product": "whatsapp", "recipient": hidden, "type": "text", "text": {"body": "oi"}}
    assert simulator.whatsapp(body).status_code == 200
    assert [each["text"] for each in simulator.messages(to=hidden)] == ["oi"]


def test_a_link_is_fetched_before_the_message_is_sent(simulator: Simulator, receiver: Receiver) -> None:
    link = f"http://127.0.0.1:{receiver.port}/file.pdf"
    wamid = simulator.whatsapp(of("document", {"link": link, "filename": "a.pdf"})).json()["messages"][0]["id"]
    receiver.wait_for(lambda: receiver.statuses(wamid) == ["sent", "delivered", "read"])
    [message] = simulator.messages()
    assert message["media_sha256"] == hashlib.sha256(b"bytes behind a link").hexdigest()


def test_a_link_that_cannot_be_fetched_fails_later(simulator: Simulator, receiver: Receiver) -> None:
    simulator.whatsapp(of("image", {"link": f"{simulator.url}/nothing/here"}))
    [status] = receiver.wait_for(lambda: receiver.items("statuses"))
    assert (status["status"], status["errors"][0]["code"]) == ("failed", 131053)


# --- read receipts


def test_a_read_receipt_with_typing_is_taken(simulator: Simulator) -> None:
    wamid = simulator.inbound(text="oi")["id"]
    receipt = {"messaging_product": "whatsapp", "status": "read", "message_id": wamid}
    assert simulator.whatsapp(receipt).json() == {"success": True}
    assert simulator.whatsapp({**receipt, "typing_indicator": {"type": "text"}}).json() == {"success": True}
    assert simulator.control("GET", "inbound")["inbound"][0]["read_by_us"] is True
    stats = simulator.stats()
    assert (stats["read_receipts"], stats["typing_indicators"]) == (2, 1)


def test_a_read_receipt_for_what_nobody_wrote_is_refused(simulator: Simulator) -> None:
    receipt = {"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.nobody"}
    assert refusal(simulator.whatsapp(receipt)) == (400, 100)


def test_texts_numbers_and_tokens_are_not_logged(simulator: Simulator, receiver: Receiver) -> None:
    receiver.answers += [500]
    simulator.send_text("a secret that nobody should read", to=MALLORY)
    simulator.settle()
    log = simulator.log()
    assert "webhook_failed" in log
    assert all(json.loads(line)["event"] for line in log.splitlines())
    for secret in ("a secret", MALLORY, "token-of", "secret-of", "verify-"):
        assert secret not in log
