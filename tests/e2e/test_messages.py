"""The whole way and back on the running system: from a client's POST to a person's phone, and their answer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import Counter

import httpx
import pytest

from tests.e2e.conftest import Shop
from tests.town import Resident, Socket, eventually, insta_id, numbered, phone

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8


def all_are(resident: Resident, ids: list[str], status: str, *, within_s: float = 30) -> None:
    """Wait until each message shows that status."""
    left = list(ids)

    def arrived() -> bool:
        left[:] = [each for each in left if resident.message(each)["status"] != status]
        return not left

    try:
        eventually(arrived, within_s=within_s)
    except AssertionError as error:
        raise AssertionError(f"{left[0]} is not {status}: {resident.statuses(left[0])}") from error


def assert_gapless(socket: Socket) -> None:
    places = [frame["seq"] for frame in socket.frames]
    assert places == list(range(places[0], places[0] + len(places)))
    assert len({frame["epoch"] for frame in socket.frames}) == 1


def test_messages_reach_a_phone_once_in_order_and_their_receipts_come_back(shop: Shop) -> None:
    town, alice, to = shop.town, shop.alice, phone()
    texts = list(numbered("hello", 10))
    with alice.socket() as socket:
        ids = [alice.post(f"out-{to}", text, f"whatsapp:+{to}") for text in texts]
        all_are(alice, ids, "READ")
        assert [(each["text"], each["attempts"]) for each in town.received(to)] == [(text, 1) for text in texts]
        for each in ids:
            assert alice.statuses(each) == ["ACCEPTED", "SENT", "DELIVERED", "READ"]
        eventually(lambda: [tick["status"] for tick in socket.of("status", f"out-{to}")].count("READ") == len(ids))
        assert socket.texts(f"out-{to}") == texts
        for each in ids:
            ticks = [tick["status"] for tick in socket.of("status", f"out-{to}") if tick["message_id"] == each]
            assert ticks in (["SENT", "DELIVERED", "READ"], ["DELIVERED", "READ"])  # SENT was shown before
        assert len(socket.of("conversation", f"out-{to}")) == 1
        assert_gapless(socket)
    assert [each["content"] for each in alice.history(f"out-{to}")] == texts


def test_users_talk_live_and_their_devices_acknowledge(shop: Shop) -> None:
    alice, bob, chat = shop.alice, shop.bob, f"chat-{phone()}"
    with alice.socket() as hers, bob.socket() as his:
        ids = [alice.post(chat, text, bob.user_id) for text in numbered("hi", 20)]
        all_are(alice, ids, "DELIVERED")
        assert bob.api.post(f"/v1/messages/{ids[-1]}/read").status_code == 202
        all_are(alice, ids[-1:], "READ")
        eventually(lambda: "READ" in [tick["status"] for tick in hers.of("status", chat)])
        assert his.texts(chat) == hers.texts(chat) == list(numbered("hi", 20))
        assert_gapless(hers)
        assert_gapless(his)
    assert alice.statuses(ids[0]) == ["ACCEPTED", "SENT", "DELIVERED"]


def test_a_stranger_opens_a_conversation_and_gets_an_answer(shop: Shop) -> None:
    town, alice, bob, who = shop.town, shop.alice, shop.bob, phone()
    chat = f"whatsapp:+{who}@{shop.whatsapp}"
    with alice.socket() as hers, bob.socket() as his:
        asked = town.says("whatsapp", shop.whatsapp, who, "Tem pão?", name="Zé")
        for socket in (hers, his):
            eventually(lambda socket=socket: socket.texts(chat))  # type: ignore[misc]
            [opened] = socket.of("conversation", chat)
            assert {"id": f"whatsapp:+{who}", "kind": "contact", "channel": "whatsapp", "name": "Zé"} in opened[
                "conversation"
            ]["members"]
            assert [frame["type"] for frame in socket.frames if frame["type"] != "status"] == [
                "conversation",
                "message",
            ]
    [question] = alice.history(chat)
    answer = alice.post(chat, "Temos!", f"whatsapp:+{who}", reply_to=question["message_id"])
    all_are(alice, [answer], "READ")
    [received] = town.received(who)
    assert (received["text"], received["account_id"], received["reply_to"]) == ("Temos!", shop.whatsapp, asked)
    assert bob.history(chat)[-1]["content"] == "Temos!"


def test_an_answer_comes_back_to_the_conversation_it_answers(shop: Shop) -> None:
    town, alice, who = shop.town, shop.alice, phone()
    first, second = (alice.post(f"{name}-{who}", name, f"whatsapp:+{who}") for name in ("red", "blue"))
    all_are(alice, [first, second], "READ")
    red = next(each["id"] for each in town.received(who) if each["text"] == "red")
    town.says("whatsapp", shop.whatsapp, who, "about red", reply_to=red)
    eventually(lambda: len(alice.history(f"red-{who}")) == 2)
    answer = alice.history(f"red-{who}")[-1]
    assert (answer["content"], answer["reply_to"]) == ("about red", first)
    assert [each["content"] for each in alice.history(f"blue-{who}")] == ["blue"]


@pytest.mark.parametrize("channel", ["whatsapp", "instagram"])
def test_files_go_both_ways(shop: Shop, channel: str) -> None:
    town, alice = shop.town, shop.alice
    account, who = (shop.whatsapp, phone()) if channel == "whatsapp" else (shop.instagram, insta_id())
    address = f"whatsapp:+{who}" if channel == "whatsapp" else f"instagram:{who}"
    media = {"filename": "cat.png", "content_type": "image/png", "base64": base64.b64encode(PNG).decode()}
    town.says(channel, account, who, "look", name="Zé", media=media)
    chat = f"{address}@{account}"
    eventually(lambda: alice.sees(chat))
    [message] = eventually(lambda: alice.history(chat))
    link = alice.api.get(f"/v1/files/{message['file_id']}/download").json()["download_url"]
    assert httpx.get(link).content == PNG

    back = PNG + b"back"
    stored = alice.api.post("/v1/files", files={"file": ("dog.png", back)}, data={"conversation_id": chat})
    assert stored.status_code == 201, stored.text
    sent = alice.post(chat, "", address, file_id=stored.json()["file_id"])
    all_are(alice, [sent], "READ")
    [received] = town.received(who)
    if channel == "whatsapp":
        assert received["media_sha256"] == hashlib.sha256(back).hexdigest()
    else:
        link = received["content"]["attachment"]["payload"]["url"]
        assert httpx.get(link).content == back


def test_instagram_never_says_delivered(shop: Shop) -> None:
    town, alice, who = shop.town, shop.alice, insta_id()
    town.says("instagram", shop.instagram, who, "hello", name="John", username=f"john{who}")
    chat = f"instagram:{who}@{shop.instagram}"
    eventually(lambda: alice.sees(chat) == ["hello"])  # by then the handle is known, too
    ids = [alice.post(chat, text, f"instagram:{who}") for text in ("one", "two")]
    ids.append(alice.post(f"ig-{who}", "three", f"instagram:john{who}"))
    all_are(alice, ids, "READ")
    texts = town.texts(who)
    assert [each for each in texts if each != "three"] == ["one", "two"]  # of the other conversation it may overtake
    assert sorted(texts) == ["one", "three", "two"]
    for each in ids:
        assert alice.statuses(each) == ["ACCEPTED", "SENT", "READ"]


def test_webhooks_that_come_twice_early_and_in_any_order_change_nothing(shop: Shop) -> None:
    town, alice, bob = shop.town, shop.alice, shop.bob
    people = [phone() for _ in range(3)]
    texts = list(numbered("note", 10))
    # They answer what they got: whoever writes before that opens a conversation of their own.
    ids = [alice.post(f"wild-{to}", texts[0], f"whatsapp:+{to}") for to in people]
    all_are(alice, ids, "READ")
    with (
        town.switches(duplicate_rate=0.5, duplicate_delay_ms=300, reorder_rate=0.5, early_status_rate=0.5, seed=7),
        alice.socket() as socket,
        bob.socket(),
    ):
        later = [alice.post(f"wild-{to}", text, f"whatsapp:+{to}") for text in texts[1:] for to in people]
        ids += later
        for number, text in enumerate(texts):
            town.says("whatsapp", shop.whatsapp, people[number % 3], f"re {text}")
        all_are(alice, ids, "READ")
        eventually(lambda: town.platform.get("/stats").json()["webhooks"]["pending"] == 0)
        assert town.platform.get("/stats").json()["webhooks"]["items_duplicated"] > 0
        eventually(lambda: sum(len(socket.of("status", f"wild-{to}")) for to in people) >= len(later))
        answers = {to: [f"re {text}" for text in texts[number::3]] for number, to in enumerate(people)}
        eventually(lambda: all(set(answers[to]) <= set(alice.sees(f"wild-{to}")) for to in people))
        for to in people:
            assert town.texts(to) == texts
            # Each person's own messages come in the order in which they wrote them, once.
            history = [each for each in alice.history(f"wild-{to}") if each["sender_id"] == f"whatsapp:+{to}"]
            assert [each["content"] for each in history] == answers[to]
        for each in ids:
            history_of_one = alice.statuses(each)
            assert history_of_one[0] == "ACCEPTED"
            assert set(history_of_one) <= {"ACCEPTED", "SENT", "DELIVERED", "READ"}
            assert max(Counter(history_of_one).values()) == 1
        for (message, status), times in Counter(
            (tick["message_id"], tick["status"]) for tick in socket.of("status")
        ).items():
            assert times == 1, (message, status)
        assert_gapless(socket)


def test_a_platform_that_throttles_gets_everything_in_the_end_in_order(shop: Shop) -> None:
    town, alice = shop.town, shop.alice
    people, texts = [phone() for _ in range(3)], list(numbered("slowly", 5))
    with town.switches(throttle_rate=0.3, seed=3):
        ids = [alice.post(f"slow-{to}", text, f"whatsapp:+{to}") for text in texts for to in people]
        all_are(alice, ids, "READ", within_s=60)
    for to in people:
        assert [(each["text"], each["attempts"]) for each in town.received(to)] == [(text, 1) for text in texts]


def test_a_message_that_the_platform_refuses_fails_with_the_reason_and_the_next_goes(shop: Shop) -> None:
    town, alice, nobody, unlucky, somebody = shop.town, shop.alice, phone(), phone(), phone()
    with town.switches(unknown_numbers=[nobody], fail_numbers=[unlucky]):
        refused = alice.post(f"no-{nobody}", "hi", f"whatsapp:+{nobody}")
        failed = alice.post(f"no-{unlucky}", "hi", f"whatsapp:+{unlucky}")
        fine = alice.post(f"no-{somebody}", "hi", f"whatsapp:+{somebody}")
        all_are(alice, [refused, failed], "FAILED")
        all_are(alice, [fine], "READ")
    for each in (refused, failed):
        assert "FAILED(platform:131026)" in alice.statuses(each)
    again = alice.post(f"no-{nobody}", "and now?", f"whatsapp:+{nobody}")
    all_are(alice, [again], "READ")
    assert town.texts(nobody) == ["and now?"]


def test_a_requests_id_leads_from_the_apis_log_to_the_workers(shop: Shop) -> None:
    town, alice, nobody = shop.town, shop.alice, phone()
    with town.switches(unknown_numbers=[nobody]):
        body = {"conversation_id": f"no-{nobody}", "recipient_id": f"whatsapp:+{nobody}", "content": "hi"}
        request_id = f"request-{nobody}"
        answer = alice.api.post("/v1/messages", json=body, headers={"X-Request-ID": request_id})
        message_id = answer.json()["message_id"]
        all_are(alice, [message_id], "FAILED")
    logs = [town.system.state_dir / "logs" / f"{name}.log" for name in town.system.processes]
    told = {
        line["message"]: (line["service"].rstrip("-0123456789"), line["message_id"])
        for log in logs
        for line in (json.loads(each) for each in log.read_text().splitlines() if request_id in each)
    }
    assert told == {"request": ("api", message_id), "not delivered": ("worker-whatsapp", message_id)}


@pytest.mark.parametrize("system", ["local"], indirect=True)  # half a minute; nothing of it depends on the servers
def test_an_outage_holds_a_channel_back_and_loses_nothing_while_the_other_goes_on(shop: Shop) -> None:
    town, alice = shop.town, shop.alice
    people, texts = [phone() for _ in range(4)], list(numbered("later", 4))
    who = insta_id()
    town.says("instagram", shop.instagram, who, "hello")
    chat = f"instagram:{who}@{shop.instagram}"
    eventually(lambda: alice.sees(chat))
    before = town.dead_letters()
    with town.switches(outage=True):
        ids = [alice.post(f"later-{to}", text, f"whatsapp:+{to}") for text in texts for to in people]
        eventually(lambda: town.breakers().get(f"whatsapp:{shop.whatsapp}") == "open", within_s=20)
    # For 30 s nobody asks again, and meanwhile the other channel goes on.
    live = alice.post(chat, "we go on", f"instagram:{who}")
    all_are(alice, [live], "READ", within_s=10)
    assert [town.texts(to) for to in people] == [[]] * len(people)
    all_are(alice, ids, "READ", within_s=75)
    for to in people:
        assert [(each["text"], each["attempts"]) for each in town.received(to)] == [(text, 1) for text in texts]
    assert town.dead_letters() == before


def test_workspaces_share_nothing_but_the_names_they_choose(shop: Shop) -> None:
    town, alice, who = shop.town, shop.alice, phone()
    town.system.manage(
        "shell",
        "-c",
        f"from accounts.models import Workspace; "
        f"Workspace.objects.create(slug='w{who}', name='Other', open_registration=True)",
    )
    mallory = town.resident("mallory", workspace=f"w{who}")
    theirs = town.account("whatsapp", mallory, workspace=f"w{who}")
    chat = f"same-{who}"
    with alice.socket() as hers, mallory.socket() as other:
        first = alice.post(chat, "ours", f"whatsapp:+{who}")
        second = mallory.post(chat, "theirs", f"whatsapp:+{who}")
        all_are(alice, [first], "READ")
        all_are(mallory, [second], "READ")
        town.says("whatsapp", theirs, who, "to them")
        eventually(lambda: len(mallory.history(chat)) == 2)
        assert [each["content"] for each in mallory.history(chat)] == ["theirs", "to them"]
        assert [each["content"] for each in alice.history(chat)] == ["ours"]
        assert {each["account_id"]: each["text"] for each in town.received(who)} == {
            shop.whatsapp: "ours",
            theirs: "theirs",
        }
        assert hers.texts(chat) == ["ours"]
        assert other.texts(chat) == ["theirs", "to them"]
    assert alice.api.get(f"/v1/messages/{second}").status_code == 404
    assert mallory.api.get(f"/v1/messages/{first}").status_code == 404
    answer = mallory.api.post(
        "/v1/messages", json={"conversation_id": f"x-{who}", "recipient_id": alice.user_id, "content": "psst"}
    )
    assert answer.status_code == 422
    assert answer.json()["code"] == "recipient_not_found"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param('"a\\u0000b"', "a\ufffdb", id="a NUL"),
        pytest.param('"cut \\ud83d"', "cut \ufffd", id="half an emoji"),
    ],
)
def test_odd_text_from_a_platform_arrives_cleaned_and_stops_nobody(shop: Shop, text: str, shown: str) -> None:
    town, alice = shop.town, shop.alice
    odd, plain, account = phone(), phone(), shop.whatsapp
    body = json.dumps(
        {
            "object": "whatsapp_business_account",
            "entry": [
                {
                    "changes": [
                        {
                            "value": {
                                "metadata": {"phone_number_id": account},
                                "messages": [
                                    {"id": f"wamid.{who}", "from": who, "type": "text", "text": {"body": "@@"}}
                                    for who in (odd, plain)
                                ],
                            }
                        }
                    ]
                }
            ],
        }
    ).replace('"@@"', text, 1)
    secret = town.secrets[account]["app_secret"]
    signature = hmac.new(secret.encode(), body.encode(), hashlib.sha256).hexdigest()
    answer = httpx.post(
        f"{town.system.api_url}/webhooks/whatsapp/{account}",
        content=body,
        headers={"X-Hub-Signature-256": f"sha256={signature}", "Content-Type": "application/json"},
    )
    assert answer.status_code == 200, answer.text
    for who, expected in ((odd, shown), (plain, "@@")):
        chat = f"whatsapp:+{who}@{account}"
        eventually(lambda chat=chat: alice.api.get(f"/v1/conversations/{chat}/messages").status_code == 200)  # type: ignore[misc]
        [message] = eventually(lambda chat=chat: alice.history(chat))  # type: ignore[misc]
        assert message["content"] == expected
