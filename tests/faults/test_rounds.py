"""What a round makes of what it saw: recovery from a blow, and answers that nobody should have heard."""

from __future__ import annotations

import httpx
import pytest

from tests.faults.collect import Writer
from tests.faults.rounds import Begun, Recovery, recovery
from tests.faults.world import Blow
from tests.town import Resident

KILLED = Blow("a bridge is killed", at_s=100.0, target_s=10.0, taken_over=True)
BACK = Blow("Kafka is back", at_s=100.0, target_s=30.0)
BEGAN = {
    "was there before": Begun(90, "user", "chat 1"),
    "under way": Begun(99, "user", "chat 1"),
    "said soon after": Begun(103, "user", "chat 1"),
    "said later": Begun(120, "user", "chat 1"),
    "under way elsewhere": Begun(98, "whatsapp", "chat 2"),
    "never there": Begun(99, "user", "chat 3"),
}
ARRIVED = {
    "was there before": 91.0,
    "under way": 104.0,
    "said soon after": 112.0,
    "said later": 160.0,
    "under way elsewhere": 107.0,
}


@pytest.mark.parametrize(
    ("blow", "strikes_s", "went_on_s", "caught_up_s"),
    [
        pytest.param(KILLED, [], 9, 9, id="all that was under way counts where others take over"),
        pytest.param(BACK, [], 7, 9, id="each conversation goes on once what broke is whole"),
        pytest.param(KILLED, [95, 110], 7, 7, id="from the next strike on it is that one's"),
        pytest.param(Blow("", 100, 10, kinds=frozenset({"whatsapp"})), [], 7, 7, id="only whom it is about"),
        pytest.param(Blow("", 300, 10), [], 0, 0, id="nobody waited"),
    ],
)
def test_recovery_is_that_of_the_slowest_conversation(
    blow: Blow, strikes_s: list[float], went_on_s: float, caught_up_s: float
) -> None:
    found = recovery(blow, BEGAN, ARRIVED, strikes_s)
    assert found == Recovery(blow.what, went_on_s, blow.target_s, caught_up_s)


def writer(*answers: httpx.Response) -> Writer:
    """Alice, who hears these."""
    told = iter(answers)
    api = httpx.Client(base_url="http://api", transport=httpx.MockTransport(lambda _: next(told)))
    return Writer(Resident("user_alice", "alice", api, "token", "ws://gateway"))


def test_each_item_of_a_batch_has_its_own_answer_and_a_refusal_is_told() -> None:
    items = [{"message_id": "1"}, {"error": {"code": "invalid"}}]
    alice = writer(httpx.Response(207, json={"items": items}))
    assert not alice.write("chat", ["one", "two"], "user_bob")
    assert [(each.message_id, each.undecided) for each in alice.requests] == [("1", False), (None, False)]
    assert alice.accepted == 1
    assert "207" in alice.strange[0]


def test_an_answer_that_nothing_explains_is_told_and_leaves_it_open_what_came_of_it() -> None:
    alice = writer(httpx.Response(500, text="oops"), httpx.Response(202, json={"message_id": "1"}))
    assert alice.write("chat", ["one"], "user_bob")
    assert alice.strange == ["/v1/messages: 500 oops"]
    alice = writer(httpx.Response(403, text="no"))
    assert not alice.write("chat", ["one"], "user_bob")
    assert [(each.message_id, each.undecided) for each in alice.requests] == [(None, False)]


def test_what_a_careful_client_expects_is_not_strange() -> None:
    alice = writer(httpx.Response(503), httpx.Response(409), httpx.Response(202, json={"message_id": "1"}))
    assert alice.write("chat", ["one"], "user_bob")
    assert alice.strange == []
