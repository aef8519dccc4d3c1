"""One request's id goes with all that it leads to: its records, what is parked, its dead letters and the log lines."""

from __future__ import annotations

from uuid import UUID

import pytest

from connectors.errors import PermanentDeliveryError, TransientDeliveryError
from core.logging import bind
from messaging import codec, tasks, topics, tracing
from messaging.domain import Message
from messaging.ports import NewRecord, ParkScope, Record, TopicPartition
from messaging.services.accept import Draft, accept_many
from messaging.services.deliver import MAX_AGE_MS, PARK_AFTER_MS, deliver, resume_parked
from messaging.services.persist import persist
from messaging.services.reading import acknowledge, mark_read
from messaging.services.recent import RecentMessages
from messaging.work import Outcome
from tests.contracts.message_stores import ALICE, BOB
from tests.lines import Lines
from tests.messaging.test_accept import Counter
from tests.messaging.workbench import EVERYWHERE, WORKSPACE, FreeLease, Workbench, items

OUTBOUND = topics.outbound("whatsapp")


def on(bench: Workbench, topic: str) -> list[Record]:
    return bench.log.read(TopicPartition(topic, 0), start=0, limit=100)


def requests(bench: Workbench, topic: str) -> list[str | None]:
    return [record.headers.get(tracing.REQUEST_ID) for record in on(bench, topic)]


def routed(bench: Workbench, *requests: str | None) -> list[Message]:
    """A message of each of these requests, in conversations of their own, on their way to WhatsApp."""
    messages = [bench.message(bench.conversation(), f"of {request}") for request in requests]
    bench.log.append(
        [
            NewRecord(topics.MESSAGES, str(each.conversation_id), codec.encode(each), tracing.headers(request))
            for each, request in zip(messages, requests, strict=True)
        ]
    )
    arrived = items(on(bench, topics.MESSAGES))
    persist(
        arrived,
        store=bench.store,
        log=bench.log,
        notify=bench.sockets,
        lease=FreeLease(),
        recent=RecentMessages(),
        clock=bench.clock,
    )
    return messages


def send_all(bench: Workbench, *, failing_for_ms: int = 1) -> dict[int, Outcome]:
    return deliver(
        items(on(bench, OUTBOUND), first_failed_ms=bench.clock.now_ms() - failing_for_ms),
        bench.delivery(),
        owner="worker",
        lease=FreeLease(),
        deadline_s=bench.clock.monotonic_s() + 5,
    )


@EVERYWHERE
def test_it_goes_through_parking_into_the_dead_letters(bench: Workbench, lines: Lines) -> None:
    [message] = routed(bench, "r1")
    bench.platform.will("of r1", TransientDeliveryError("throttled", outage=False))
    send_all(bench, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(MAX_AGE_MS / 1000 + 60)
    resume_parked(
        ParkScope(OUTBOUND, message.conversation_id),
        bench.delivery(),
        again_at_ms=bench.clock.now_ms(),
        owner="resumer",
        lease=FreeLease(),
        deadline_s=bench.clock.monotonic_s() + 5,
    )
    for topic in (topics.MESSAGES, OUTBOUND, topics.dead_letters(OUTBOUND), topics.STATUS_UPDATES):
        assert requests(bench, topic) == ["r1"], topic
    told = [(line["message"], line.get("request_id"), line.get("message_id")) for line in lines()]
    assert told == [(what, "r1", str(message.message_id)) for what in ("parked", "dead letter", "not delivered")]


def test_each_message_of_a_batch_has_its_own(bench: Workbench, lines: Lines) -> None:
    refused, broken, plain = routed(bench, "r1", "r2", None)
    bench.platform.will_not_come_to("of r1", PermanentDeliveryError("platform:131026"))
    bench.platform.will_not_come_to("of r2", ValueError("a bug"))
    bench.platform.will_not_come_to("of None", PermanentDeliveryError("platform:131026"))
    send_all(bench)
    assert requests(bench, OUTBOUND) == ["r1", "r2", None]
    assert requests(bench, topics.STATUS_UPDATES) == ["r1", None]
    told = {(line["message"], line.get("request_id"), UUID(line["message_id"])) for line in lines()}
    assert told == {
        ("not delivered", "r1", refused.message_id),
        ("a send broke", "r2", broken.message_id),
        ("not delivered", None, plain.message_id),
    }


def test_whatever_a_request_appends_names_it(bench: Workbench) -> None:
    counter = Counter(bench)
    with bind(request_id="r1"):
        counter.post("lunch", recipient_id=BOB)
    with bind(request_id="r2"):
        draft = Draft(workspace_id=WORKSPACE, user_id=ALICE, conversation="lunch", content="hi")
        accept_many([draft, draft], counter.desk)
    counter.post("lunch")
    assert requests(bench, topics.MESSAGES) == ["r1", "r2", "r2", None]
    counter.store_all()
    last = counter.logged()[-1]
    with bind(request_id="r3"):
        mark_read(
            last.message_id,
            user_id=BOB,
            workspace_id=WORKSPACE,
            store=bench.store,
            hints=counter.hints,
            log=bench.log,
        )
    acknowledge(BOB, [(last.conversation_id, last.message_id)], log=bench.log)
    assert requests(bench, topics.STATUS_UPDATES) == ["r3", None]


@pytest.mark.parametrize(("count", "named"), [(1, "r1"), (2, None)])
def test_a_batch_that_breaks_names_the_request_of_a_record_that_stands_alone(
    lines: Lines, count: int, named: str | None
) -> None:
    source = TopicPartition("a topic that nobody knows", 0)
    records = [Record(source, number, "k", b"", tracing.headers("r1"), 1) for number in range(count)]
    tasks._outcomes(source.topic, items(records), owner="worker", lease=FreeLease())  # type: ignore[arg-type]
    [line] = lines()
    assert (line["message"], line.get("request_id")) == ("a batch failed", named)
