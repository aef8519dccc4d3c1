"""The control API says what happened, does what it is told, and refuses clearly what it cannot do."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.simulator.conftest import ACCOUNTS
from tests.simulator.harness import ALICE, BOB, INSTAGRAM, WHATSAPP, Receiver, Simulator, account, text

INBOUND = {"channel": "whatsapp", "account_id": WHATSAPP, "from": ALICE, "text": "oi"}
FILE = {"filename": "a.txt", "content_type": "text/plain", "text": "x"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        pytest.param("PUT", "switches", {"failure_rate": 1.5}, 422, "failure_rate", id="a rate above 1"),
        pytest.param("PUT", "switches", {"failure_rate": -0.1}, 422, "failure_rate", id="a rate below 0"),
        pytest.param("PUT", "switches", {"failure_rate": "high"}, 422, "failure_rate", id="a rate in words"),
        pytest.param("PUT", "switches", {"latency_ms": -1}, 422, "latency_ms", id="a negative delay"),
        pytest.param("PUT", "switches", {"outage": 1}, 422, "outage", id="a number for a bool"),
        pytest.param("PUT", "switches", {"turbo": True}, 422, "turbo", id="an unknown switch"),
        pytest.param("PUT", "switches", {"status_delay_ms": {"sent": -5}}, 422, "status_delay_ms.sent", id="nested"),
        pytest.param(
            "PUT", "switches", {"status_delay_ms": {"seen": 5}}, 422, "status_delay_ms.seen", id="nested typo"
        ),
        pytest.param("PUT", "switches", {"status_delay_ms": 5}, 422, "status_delay_ms", id="a number for an object"),
        pytest.param("PUT", "switches", {"ambiguous_mode": "vanish"}, 422, "ambiguous_mode", id="an unknown mode"),
        pytest.param("PUT", "switches", {"fail_numbers": [5511]}, 422, "fail_numbers[0]", id="numbers as numbers"),
        pytest.param("PUT", "switches", {"webhook_max_batch": 0}, 422, "webhook_max_batch", id="empty batches"),
        pytest.param("PUT", "switches", [], 422, "", id="a list of switches"),
        pytest.param("PUT", f"accounts/{WHATSAPP}/switches", {"turbo": True}, 422, "turbo", id="of one account"),
        pytest.param("PUT", f"accounts/{WHATSAPP}/switches", {"seed": 7}, 422, "seed", id="a seed of one account"),
        pytest.param("PUT", "accounts/4711/switches", {}, 404, "account_id", id="of no account"),
        pytest.param("DELETE", "accounts/4711/switches", None, 404, "account_id", id="of no account, forgotten"),
        pytest.param("POST", "inbound", {}, 422, "channel", id="an empty person"),
        pytest.param("POST", "inbound", {**INBOUND, "channel": "sms"}, 422, "channel", id="an unknown channel"),
        pytest.param("POST", "inbound", {**INBOUND, "channel": "instagram"}, 422, "channel", id="the other channel"),
        pytest.param("POST", "inbound", {**INBOUND, "account_id": "1"}, 422, "account_id", id="an unknown account"),
        pytest.param("POST", "inbound", {**INBOUND, "from": "alice"}, 422, "from", id="a name as number"),
        pytest.param(
            "POST",
            "inbound",
            {**INBOUND, "channel": "instagram", "account_id": INSTAGRAM, "from": "BR.1"},
            422,
            "from",
            id="a WhatsApp id on Instagram",
        ),
        pytest.param("POST", "inbound", {**INBOUND, "text": ""}, 422, "text", id="nothing to say"),
        pytest.param("POST", "inbound", {**INBOUND, "text": 5}, 422, "text", id="a number as text"),
        pytest.param("POST", "inbound", {**INBOUND, "raw": {"type": "x"}}, 422, "raw", id="raw and text"),
        pytest.param("POST", "inbound", {**INBOUND, "form": 1}, 422, "form", id="an unknown field"),
        pytest.param(
            "POST", "inbound", {**INBOUND, "media": {**FILE, "base64": "eA=="}}, 422, "media", id="two contents"
        ),
        pytest.param(
            "POST",
            "inbound",
            {**INBOUND, "media": {"filename": "a", "content_type": "text/plain", "base64": "%"}},
            422,
            "media.base64",
            id="broken base64",
        ),
        pytest.param(
            "POST",
            "inbound",
            {**INBOUND, "media": {**FILE, "content_type": "x"}},
            422,
            "media.content_type",
            id="no type",
        ),
        pytest.param("PUT", "replies", {"replies": {"alice": ["x"]}}, 422, "replies", id="a name in the script"),
        pytest.param("PUT", "replies", {"replies": {ALICE: "x"}}, 422, "replies[...]", id="a text for a list"),
        pytest.param("PUT", "replies", {ALICE: ["x"]}, 422, ALICE, id="a script without its key"),
        pytest.param("POST", "reset", {"everything": True}, 422, "everything", id="an unknown wish"),
        pytest.param("POST", "accounts", {"channel": "whatsapp"}, 422, "account_id", id="an account without id"),
        pytest.param("PUT", "accounts", [ACCOUNTS[0], ACCOUNTS[0]], 422, "account_id", id="an account twice"),
        pytest.param("PUT", "accounts", {}, 422, "", id="no list of accounts"),
        pytest.param("POST", "accounts/1/verify", None, 404, "account_id", id="verify nothing"),
        pytest.param("POST", "accounts", account("whatsapp", "1", webhook_url="x"), 422, "webhook_url", id="no url"),
        pytest.param("GET", "messages?since=-1", None, 422, "since", id="since before the start"),
        pytest.param("GET", "messages?since=x", None, 422, "since", id="since a word"),
        pytest.param("GET", "messages?limit=0", None, 422, "limit", id="an empty page"),
        pytest.param("GET", "messages?limit=10001", None, 422, "limit", id="a page too large"),
        pytest.param("GET", "messages?too=1", None, 422, "too", id="a filter with a typo"),
        pytest.param("GET", "messages?duplicates=maybe", None, 422, "duplicates", id="maybe"),
        pytest.param("GET", "poems", None, 404, "", id="an unknown path"),
        pytest.param("DELETE", "stats", None, 405, "", id="a wrong method"),
    ],
)
def test_a_bad_control_request_is_refused_naming_the_field(
    simulator: Simulator, method: str, path: str, body: Any, status: int, field: str
) -> None:
    switches = simulator.control("GET", "switches")
    answer = simulator.http.request(method, f"/_control/{path}", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["field"] == field
    assert error["code"]
    assert error["message"]
    assert simulator.control("GET", "switches") == switches
    assert simulator.stats()["inbound"]["sent"] == 0
    assert len(simulator.control("GET", "accounts")["accounts"]) == len(ACCOUNTS)


@pytest.mark.parametrize("path", ["switches", "replies", "accounts"])
@pytest.mark.parametrize("body", [b"", b"nul", b"\xff"])
def test_broken_json_is_refused(simulator: Simulator, path: str, body: bytes) -> None:
    answer = simulator.http.put(f"/_control/{path}", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "broken_json")


def test_a_body_without_end_is_refused(simulator: Simulator) -> None:
    answer = simulator.http.put("/_control/switches", content=b" " * 2_000_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_only_the_named_switches_turn(simulator: Simulator) -> None:
    before = simulator.control("GET", "switches")
    after = simulator.turn(latency_ms=5, status_delay_ms={"read": 77})
    assert after == {**before, "latency_ms": 5, "status_delay_ms": {**before["status_delay_ms"], "read": 77}}
    assert simulator.control("GET", "switches") == after


def test_an_account_may_behave_otherwise_than_the_others(simulator: Simulator) -> None:
    own = f"accounts/{WHATSAPP}/switches"
    simulator.control("PUT", own, {"outage": True, "status_delay_ms": {"sent": 7}})
    simulator.control("PUT", own, {"latency_ms": 3, "status_delay_ms": {"read": 700}})
    assert simulator.whatsapp(text("oi")).status_code == 503
    assert simulator.instagram({"recipient": {"id": BOB}, "message": {"text": "oi"}}).status_code == 200
    after = simulator.turn(outage=False, early_status_rate=1)
    delays = {**after["status_delay_ms"], "sent": 7, "read": 700}
    assert simulator.control("GET", own) == {**after, "outage": True, "latency_ms": 3, "status_delay_ms": delays}
    assert simulator.control("DELETE", own) == after
    assert simulator.whatsapp(text("oi")).status_code == 200
    simulator.control("PUT", own, {"outage": True})
    simulator.control("POST", "reset")
    assert simulator.control("GET", own) == simulator.control("GET", "switches")


def test_messages_are_paged_and_filtered_in_order(simulator: Simulator) -> None:
    sent = [simulator.send_text(str(n), to=(ALICE, BOB)[n % 2], correlation=f"m{n}") for n in range(10)]
    simulator.instagram({"recipient": {"id": "6212345"}, "message": {"text": "x"}})
    seen: list[str] = []
    page: dict[str, Any] = {"next": 0, "more": True}
    while page["more"]:
        page = simulator.control("GET", f"messages?account_id={WHATSAPP}&limit=4&since={page['next']}")
        assert len(page["messages"]) <= 4
        seen += [message["id"] for message in page["messages"]]
    assert seen == sent
    assert [m["text"] for m in simulator.messages(to=BOB)] == ["1", "3", "5", "7", "9"]
    assert [m["channel"] for m in simulator.messages(account_id=INSTAGRAM)] == ["instagram"]
    assert [m["correlation"] for m in simulator.messages(id=sent[3])] == ["m3"]
    assert simulator.messages(since=page["next"], account_id=WHATSAPP) == []


def test_what_people_said_is_paged(simulator: Simulator) -> None:
    said = [simulator.inbound(text=str(n), **{"from": (ALICE, BOB)[n % 2]})["id"] for n in range(6)]
    first = simulator.control("GET", "inbound?limit=4")
    rest = simulator.control("GET", f"inbound?limit=4&since={first['next']}")
    assert [each["id"] for each in first["inbound"] + rest["inbound"]] == said
    assert (first["more"], rest["more"]) == (True, False)
    assert [each["text"] for each in simulator.control("GET", f"inbound?from={BOB}")["inbound"]] == ["1", "3", "5"]


def test_stats_count_what_happened(simulator: Simulator) -> None:
    simulator.send_text(correlation="a")
    simulator.send_text(correlation="a")
    simulator.instagram({"recipient": {"id": "6212345"}, "message": {"text": "x"}})
    simulator.whatsapp({})
    simulator.whatsapp({}, token="wrong")
    simulator.inbound(text="oi")
    stats = simulator.settle()
    assert stats["sends"] == {
        "accepted": 3,
        "accepted_by_channel": {"whatsapp": 2, "instagram": 1},
        "refused": 2,
        "refused_by_code": {"100": 1, "190": 1},
        "unanswered": 0,
        "duplicates": 1,
        "duplicated_correlations": 1,
    }
    assert stats["inbound"]["sent_by_channel"] == {"whatsapp": 1}
    webhooks = stats["webhooks"]
    assert webhooks["items_delivered"] == 2 * 3 + 2 + 1
    assert (webhooks["posts_failed"], webhooks["items_given_up"], webhooks["pending"]) == (0, 0, 0)
    assert stats["kept"] == {"messages": 3, "inbound": 1}


def test_reset_forgets_what_happened_and_what_was_to_come(simulator: Simulator, receiver: Receiver) -> None:
    simulator.turn(status_delay_ms={"sent": 200, "delivered": 200, "read": 200}, failure_rate=0.25)
    simulator.control("PUT", "replies", {"replies": {ALICE: ["um"]}})
    simulator.turn(failure_rate=0)
    receiver.gate.clear()
    simulator.inbound(text="oi")
    receiver.wait_for(lambda: receiver.posts)
    simulator.send_text()
    simulator.control("POST", "reset", {"keep_switches": True})
    receiver.gate.set()
    stats = simulator.stats()
    assert (stats["sends"]["accepted"], stats["inbound"]["sent"], stats["webhooks"]["pending"]) == (0, 0, 0)
    assert simulator.messages() == []
    assert simulator.control("GET", "replies")["replies"] == {}
    assert simulator.control("GET", "switches")["status_delay_ms"]["sent"] == 200
    simulator.control("POST", "reset")
    assert simulator.control("GET", "switches")["status_delay_ms"]["sent"] != 200
    simulator.send_text("afterwards")  # its statuses come later than those forgotten would have
    simulator.settle()
    assert receiver.statuses() == ["sent", "delivered", "read"]


def test_accounts_are_shown_without_secrets(simulator: Simulator) -> None:
    answer = simulator.http.get("/_control/accounts")
    assert [each["account_id"] for each in answer.json()["accounts"]] == [WHATSAPP, INSTAGRAM]
    for secret in ("token-of", "secret-of", "verify-"):
        assert secret not in answer.text


def test_an_account_may_change_its_token(simulator: Simulator) -> None:
    def status(token: str) -> int:
        body = {"messaging_product": "whatsapp", "to": ALICE, "text": {"body": "x"}}
        return simulator.whatsapp(body, account_id="777", token=token).status_code

    simulator.control("POST", "accounts", account("whatsapp", "777", access_token="old"), status=201)
    assert (status("old"), status("new")) == (200, 401)
    simulator.control("POST", "accounts", account("whatsapp", "777", access_token="new"), status=201)
    assert (status("old"), status("new")) == (401, 200)
    simulator.control("PUT", "accounts", ACCOUNTS)
    assert status("new") == 401


def test_an_account_without_webhook_has_nothing_to_verify(tmp_path_factory: pytest.TempPathFactory) -> None:
    simulator = Simulator(log_path=tmp_path_factory.mktemp("alone") / "log")
    try:
        simulator.control("POST", "accounts", account("whatsapp", "1"), status=201)
        assert simulator.control("POST", "accounts/1/verify", status=409)["error"]["code"] == "no_webhook"
        body = {"messaging_product": "whatsapp", "to": ALICE, "text": {"body": "x"}}
        assert simulator.whatsapp(body, account_id="1").status_code == 200
        assert simulator.settle()["webhooks"]["items_delivered"] == 0
    finally:
        assert simulator.close() == 0


def test_health_is_plain(simulator: Simulator) -> None:
    answer = httpx.get(f"{simulator.url}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "accounts": len(ACCOUNTS)})
