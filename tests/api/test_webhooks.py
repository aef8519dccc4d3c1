"""Webhooks of platforms: the account's secret comes before anything is parsed, and all of it or nothing is appended."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import DEFAULT_WORKSPACE_ID, Workspace
from core.clock import SYSTEM_CLOCK
from messaging import channels, codec, topics, wiring
from messaging.domain import ExternalRef, InboundEvent, InboundReceipts
from messaging.models import ChannelAccount
from messaging.services import receipts
from tests.api.conftest import APP_SECRET, SECRETS, VERIFY_TOKEN, Log, problem

pytestmark = [pytest.mark.django_db(databases=["default", "messages"]), pytest.mark.usefixtures("accounts")]

URL = "/webhooks/whatsapp/1055"


def text(number: int, account: Any = "1055") -> dict[str, object]:
    message = {"id": f"wamid.{number}", "from": f"55119999988{number:02}", "timestamp": "1700000000", "type": "text",
               "text": {"body": "hello"}}  # fmt: skip
    value = {"metadata": {"phone_number_id": account}, "contacts": [], "messages": [message]}
    return {"id": "0", "changes": [{"field": "messages", "value": value}]}


def told(number: int, account: Any = "1055") -> dict[str, object]:
    status = {"id": f"wamid.{number}", "status": "read", "timestamp": "1700000000",
              "recipient_id": f"55119999988{number:02}"}  # fmt: skip
    value = {"metadata": {"phone_number_id": account}, "statuses": [status]}
    return {"id": "0", "changes": [{"field": "messages", "value": value}]}


def webhook(*entries: object) -> bytes:
    return json.dumps({"object": "whatsapp_business_account", "entry": list(entries)}).encode()


def signature(body: bytes, secret: str = APP_SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def post(body: bytes, signed: str | None = None, url: str = URL, content_type: str = "application/json") -> Any:
    headers = {"X-Hub-Signature-256": signature(body) if signed is None else signed}
    return Client().generic("POST", url, body, content_type=content_type, headers=headers)


def test_appends_every_item_in_order(log: Log) -> None:
    answer = post(webhook(text(1), text(2), text(1)))
    assert (answer.status_code, answer.json()) == (200, {"received": 3})
    events = [codec.decode(InboundEvent, each.value) for each in log.new(topics.INBOUND)]
    assert {event.contact for event in events} == {"+5511999998801", "+5511999998802"}
    assert {each.key for each in log.new(topics.INBOUND)} == {"1055:+5511999998801", "1055:+5511999998802"}


def test_all_receipts_of_an_account_are_one_record(log: Log, elsewhere: Workspace) -> None:
    add("2066", elsewhere)
    answer = post(webhook(told(1), text(2), told(3, "2066"), told(4), told(5, "nobody's")))
    assert (answer.status_code, answer.json()) == (200, {"received": 4})
    records = log.new(topics.INBOUND)
    values = [codec.decode_inbound(each.value) for each in records]
    found = {(each.account_id, each.workspace_id): each for each in values if isinstance(each, InboundReceipts)}
    ids = {
        place: [payload["status"]["id"] for payload in each.payloads]  # type: ignore[index]
        for place, each in found.items()
    }
    assert ids == {("1055", DEFAULT_WORKSPACE_ID): ["wamid.1", "wamid.4"], ("2066", elsewhere.id): ["wamid.3"]}
    assert [each.contact for each in values if isinstance(each, InboundEvent)] == ["+5511999998802"]
    assert len(records) == len({each.key for each in records}) == 3
    assert [each.headers for each in records] == [{"request-id": answer["X-Request-ID"]}] * 3


def test_many_receipts_are_as_few_records_as_they_fit_into(log: Log) -> None:
    now_ms = SYSTEM_CLOCK.now_ms()
    assert post(webhook(*map(told, range(receipts.TOGETHER + 1)))).json() == {"received": receipts.TOGETHER + 1}
    found = [codec.decode(InboundReceipts, each.value) for each in log.new(topics.INBOUND)]
    assert sorted(len(each.payloads) for each in found) == [1, receipts.TOGETHER]
    assert all(now_ms <= each.received_at_ms <= SYSTEM_CLOCK.now_ms() for each in found)


def test_what_a_sender_stored_is_known_to_whoever_gets_its_receipts(log: Log) -> None:
    assert log.new(topics.INBOUND) == []
    ref = ExternalRef(
        channel="whatsapp",
        account_id="1055",
        external_id=f"wamid.{uuid4().hex}",
        message_id=uuid4(),
        conversation_id=uuid4(),
        party="whatsapp:+5511999998888",
    )
    wiring.delivery("whatsapp").noted([ref])  # by another process, which stored it elsewhere
    found = wiring.inbound().recent.get([ref.reference], wiring.message_store())
    assert found == {ref.reference: ref}


def test_its_records_name_the_request(log: Log) -> None:
    answer = post(webhook(text(1), text(2)))
    assert [each.headers for each in log.new(topics.INBOUND)] == [{"request-id": answer["X-Request-ID"]}] * 2


@pytest.mark.parametrize("account", ["other", "", "nul\0", "half of an emoji \ud83d", 7, None, "x" * 300])
def test_leaves_out_items_of_accounts_that_we_do_not_have(log: Log, account: Any) -> None:
    assert post(webhook(text(1, account), text(2))).json() == {"received": 1}
    assert [each.key for each in log.new(topics.INBOUND)] == ["1055:+5511999998802"]


def add(account_id: str, workspace: Workspace, app_secret: str = APP_SECRET, channel: str = "whatsapp") -> None:
    credentials = {**SECRETS, "app_secret": app_secret}
    channels.register(workspace=workspace, channel=channel, account_id=account_id, credentials=credentials)


def test_an_apps_one_address_takes_what_is_for_any_of_its_accounts(log: Log, elsewhere: Workspace) -> None:
    """Meta calls one address for an app, whichever of its numbers somebody wrote to."""
    add("2066", elsewhere)
    assert post(webhook(text(1), text(2, "2066"), text(3))).json() == {"received": 3}
    found = log.new(topics.INBOUND)
    events = {each.key: codec.decode(InboundEvent, each.value) for each in found}
    assert {key: (event.account_id, event.workspace_id) for key, event in events.items()} == {
        "1055:+5511999998801": ("1055", DEFAULT_WORKSPACE_ID),
        "2066:+5511999998802": ("2066", elsewhere.id),
        "1055:+5511999998803": ("1055", DEFAULT_WORKSPACE_ID),
    }


def test_so_does_instagrams(log: Log, elsewhere: Workspace) -> None:
    add("2888", elsewhere, channel="instagram")
    said = [
        {"sender": {"id": "2888" if echo else "999"}, "recipient": {"id": "999" if echo else "2888"},
         "timestamp": 1749416383123, "message": {"mid": f"m{echo}", "text": "hi", "is_echo": echo}}
        for echo in (False, True)
    ]  # fmt: skip
    body = json.dumps({"object": "instagram", "entry": [{"id": "2888", "messaging": said}]}).encode()
    assert post(body, url="/webhooks/instagram/1784").json() == {"received": 2}
    assert [each.key for each in log.new(topics.INBOUND)] == ["2888:999"] * 2


def test_an_account_of_another_app_is_not_spoken_for(log: Log, elsewhere: Workspace) -> None:
    """Whoever may sign for an account of theirs could else put words into the mouths of others' customers."""
    add("2066", elsewhere, app_secret="the secret of another app")
    assert post(webhook(text(1, "2066"), text(2))).json() == {"received": 1}
    assert [each.key for each in log.new(topics.INBOUND)] == ["1055:+5511999998802"]


def test_what_is_for_a_neighbour_with_another_secret_comes_again(log: Log) -> None:
    """As while the app's secret is being replaced: a 200 would say that it was taken."""
    workspace = Workspace.objects.get(id=DEFAULT_WORKSPACE_ID)
    add("2066", workspace, app_secret="the secret of before")
    body = webhook(text(1, "2066"), text(2))
    problem(post(body), 401, "bad_signature")
    assert [each.key for each in log.new(topics.INBOUND)] == ["1055:+5511999998802"]

    add("2066", workspace)
    channels.forget()
    assert post(body).json() == {"received": 2}


def test_no_more_accounts_are_looked_up_than_an_app_may_have(log: Log) -> None:
    """Whoever may sign for one account could else have the database asked for as many as fit into a body."""
    assert post(webhook(*(text(each % 100, f"n{each}") for each in range(100)), text(1))).json() == {"received": 1}
    channels.forget()
    problem(post(webhook(*(text(each % 100, f"n{each}") for each in range(101)), text(1))), 422, "bad_webhook")
    assert len(log.new(topics.INBOUND)) == 1


def test_what_is_for_an_account_that_cannot_be_looked_up_comes_again_and_holds_nobody_up(
    log: Log, elsewhere: Workspace, settings: Settings
) -> None:
    key = settings.CHANNEL_SECRETS_KEY
    settings.CHANNEL_SECRETS_KEY = "a key that was lost, and it was a long one"
    add("2066", elsewhere)
    settings.CHANNEL_SECRETS_KEY = key
    channels.forget()
    assert post(webhook(text(1, "2066"), text(2))).status_code == 503
    assert [each.key for each in log.new(topics.INBOUND)] == ["1055:+5511999998802"]


@pytest.mark.parametrize(
    "signed",
    [
        "", "sha256=", "sha256=" + "0" * 64, "sha1=" + "0" * 40, "rubbish", "x" * 10_000,
        signature(webhook(text(1)), "another secret"), signature(webhook(text(2))),
        signature(webhook(text(1))).removeprefix("sha256="), signature(webhook(text(1))) + "0",
    ],
)  # fmt: skip
def test_refuses_what_was_not_signed_with_the_secret(log: Log, signed: str) -> None:
    problem(post(webhook(text(1)), signed), 401, "bad_signature")
    assert log.new(topics.INBOUND) == []


def test_checks_the_signature_before_it_parses(log: Log) -> None:
    problem(post(b"{broken", "sha256=00"), 401, "bad_signature")
    problem(Client().post(URL, b"{broken", content_type="application/json"), 401, "bad_signature")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"", 400, "malformed_json", id="nothing"),
        pytest.param(b"{", 400, "malformed_json", id="half"),
        pytest.param(b"\xff", 400, "malformed_json", id="not UTF-8"),
        pytest.param(b'{"object": "\xff"}', 400, "malformed_json", id="not UTF-8 inside"),
        pytest.param(b"[" * 100_000, 422, "bad_webhook", id="deep"),
        pytest.param(b'{"object":' + b"[" * 100_000, 400, "malformed_json", id="deep inside"),
        pytest.param(b"[]", 422, "bad_webhook", id="list"),
        pytest.param(b"null", 422, "bad_webhook", id="null"),
        pytest.param(b"{}", 422, "bad_webhook", id="empty"),
        pytest.param(b'{"object": "page", "entry": []}', 422, "bad_webhook", id="another object"),
        pytest.param(b'{"object": "whatsapp_business_account"}', 422, "bad_webhook", id="no entry"),
        pytest.param(b'{"object": "whatsapp_business_account", "entry": {}}', 422, "bad_webhook", id="entry no list"),
        pytest.param(webhook("text"), 422, "bad_webhook", id="entry no object"),
        pytest.param(webhook({"changes": "x"}), 422, "bad_webhook", id="changes no list"),
        pytest.param(webhook(text(1), 5), 422, "bad_webhook", id="second entry wrong"),
    ],
)
def test_refuses_a_signed_body_that_is_no_webhook(log: Log, body: bytes, status: int, code: str) -> None:
    problem(post(body), status, code)
    assert log.new(topics.INBOUND) == []


@pytest.mark.parametrize(
    "change",
    [
        {}, {"value": None}, {"value": []}, {"value": {"metadata": 5}},
        {"value": {"metadata": {"phone_number_id": 1055}}},
        {"value": {"metadata": {"phone_number_id": "1055"}, "messages": [None, 5, "x", [], {}]}},
        {"value": {"metadata": {"phone_number_id": "1055"}, "messages": [{"id": 5, "from": {"a": 1}}]}},
        {"value": {"metadata": {"phone_number_id": "1055"}, "messages": [{"from": "9" * 100_000, "id": "x"}]}},
        {"value": {"metadata": {"phone_number_id": "1055"}, "statuses": [{"id": None, "recipient_id": []}]}},
        {"value": {"metadata": {"phone_number_id": "1055"}, "messages": [{"id": "x", "from": "1\ud800"}]}},
        {"value": {"metadata": {"phone_number_id": "1055"}, "messages": [{"id": "x\u0000", "from": "\u0000"}]}},
    ],
)  # fmt: skip
def test_takes_or_refuses_strange_items_and_never_breaks(change: dict[str, object]) -> None:
    assert post(webhook({"id": "0", "changes": [change]})).status_code in {200, 400, 422}


def test_refuses_more_than_four_mebibytes(log: Log) -> None:
    answer = post(webhook(text(1)) + b" " * 4 * 1024 * 1024)
    problem(answer, 413, "webhook_too_large")
    assert log.new(topics.INBOUND) == []


def test_takes_what_meta_may_send(log: Log) -> None:
    """Up to 3 MB: more than a client's JSON may hold."""
    assert post(webhook(text(1)) + b" " * 3 * 1024 * 1024).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/octet-stream", "", "multipart/form-data; boundary=x"]
)
def test_reads_the_raw_bytes_whatever_they_are_called(content_type: str, log: Log) -> None:
    assert post(webhook(text(1)), content_type=content_type).status_code == 200


@pytest.mark.parametrize(
    "url",
    ["/webhooks/pigeon/1055", "/webhooks/whatsapp/9999", "/webhooks/instagram/1055", "/webhooks/WhatsApp/1055",
     "/webhooks/whatsapp/%00", "/webhooks/whatsapp/" + "9" * 5000, "/webhooks/whatsapp/ü", "/webhooks/base/1055"],
)  # fmt: skip
def test_does_not_know_other_accounts_and_channels(url: str, log: Log) -> None:
    body = webhook(text(1))
    problem(post(body, url=url), 404, "not_found")
    problem(Client().get(url, {"hub.mode": "subscribe"}), 404, "not_found")
    assert log.new(topics.INBOUND) == []


def test_does_not_know_an_account_that_was_switched_off(log: Log) -> None:
    ChannelAccount.objects.update(is_active=False)
    channels.forget()
    problem(post(webhook(text(1))), 404, "not_found")


def test_another_accounts_secret_does_not_count(log: Log) -> None:
    row = ChannelAccount.objects.get(channel="instagram")
    row.credentials = {**row.credentials, "app_secret": "another secret"}
    row.save()
    channels.forget()
    body = json.dumps({"object": "instagram", "entry": []}).encode()
    problem(post(body, url="/webhooks/instagram/1784"), 401, "bad_signature")
    assert post(body, signature(body, "another secret"), url="/webhooks/instagram/1784").status_code == 200


def test_an_account_without_a_secret_takes_nothing(log: Log) -> None:
    ChannelAccount.objects.all().delete()
    workspace_id = "0192f0c1-a000-7000-8000-000000000001"
    ChannelAccount.objects.create(workspace_id=workspace_id, channel="whatsapp", account_id="1055", credentials={})
    channels.forget()
    body = webhook(text(1))
    problem(post(body, signature(body, "")), 401, "bad_signature")
    problem(Client().get(URL, {"hub.mode": "subscribe", "hub.verify_token": ""}), 401, "bad_signature")


# --- the platform's check of a subscription ------------------------------------------------------------------------


def test_answers_the_challenge_as_plain_text() -> None:
    query = {"hub.mode": "subscribe", "hub.verify_token": VERIFY_TOKEN, "hub.challenge": "<b>1158201444</b>"}
    answer = Client().get(URL, query)
    assert (answer.status_code, answer.content) == (200, b"<b>1158201444</b>")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"hub.mode": "subscribe"},
        {"hub.mode": "subscribe", "hub.verify_token": "wrong"},
        {"hub.mode": "subscribe", "hub.verify_token": "ü"},
        {"hub.mode": "unsubscribe", "hub.verify_token": VERIFY_TOKEN},
        {"hub.verify_token": VERIFY_TOKEN},
    ],
)
def test_refuses_a_challenge_without_the_verify_token(query: dict[str, str]) -> None:
    answer = Client().get(URL, {**query, "hub.challenge": "echo"})
    problem(answer, 401, "bad_signature")
    assert b"echo" not in answer.content


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_has_no_other_methods(method: str) -> None:
    problem(Client().generic(method, URL, webhook(text(1))), 405, "method_not_allowed")
