"""Sending: in order, once as far as physics allows, and nothing of one conversation holds up another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from connectors.errors import (
    AmbiguousDeliveryError,
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)
from connectors.http import Limits
from core.errors import Unavailable
from files.errors import StorageUnavailable
from messaging import tasks, topics
from messaging.dispatch import HARD_LIMIT_S
from messaging.domain import ExternalRef, Message, Outbound, Party, Status, StatusChange, correlated
from messaging.errors import LeaseLost, SecretsUnreadable
from messaging.ports import DeliveryKey, NewRecord, ParkedRecord, ParkScope, Record, TopicPartition
from messaging.services.deliver import (
    CLAIM_LEASE_MS,
    MAX_AGE_MS,
    PARK_AFTER_MS,
    PARK_FIRST_MS,
    PARK_LONGEST_MS,
    PARK_PAUSED_AFTER_MS,
    PARK_PAUSED_MS,
    POST_WITHIN_S,
    RESUME_WITHIN_MS,
    Delivery,
    deliver,
    resume_parked,
)
from messaging.work import DONE, Outcome, Verdict
from tests.contracts.message_stores import ALICE, CARLA, NOON_MS
from tests.messaging.workbench import (
    WORKSPACE,
    CarefulPlatform,
    FreeLease,
    Fuse,
    Killed,
    Workbench,
    every_step,
    items,
)

OUTBOUND = topics.outbound("whatsapp")
DIEGO, JOHN = "whatsapp:+5511977776666", "instagram:17841400000000000"
_owners = itertools.count()


def send(
    bench: Workbench,
    records: Sequence[Record],
    *,
    fuse: Fuse | None = None,
    checks: int | None = None,
    attempts: int = 0,
    failing_for_ms: int = 0,
    deadline_s: float | None = None,
    owner: str = "",
) -> list[Outcome | None]:
    """One batch by a worker of its own; the outcome of each record."""
    first_failed_ms = bench.clock.now_ms() - failing_for_ms if failing_for_ms else 0
    outcomes = deliver(
        items(records, attempts=attempts, first_failed_ms=first_failed_ms),
        bench.delivery(fuse),
        owner=owner or f"worker-{next(_owners)}",
        lease=FreeLease(checks),
        deadline_s=bench.clock.monotonic_s() + 5 if deadline_s is None else deadline_s,
    )
    return [outcomes.get(record.offset) for record in records]


def resume(
    bench: Workbench, scope: ParkScope, *, delivery: Delivery | None = None, again_at_ms: int | None = None
) -> None:
    """As a bridge with the same clock has it done, unless that moved the scope's time to another one."""
    resume_parked(
        scope,
        delivery or bench.delivery(),
        again_at_ms=bench.clock.now_ms() + RESUME_WITHIN_MS if again_at_ms is None else again_at_ms,
        owner=f"resumer-{next(_owners)}",
        lease=FreeLease(),
        deadline_s=bench.clock.monotonic_s() + 5,
    )


def verdicts(outcomes: Sequence[Outcome | None]) -> list[Verdict | None]:
    return [outcome.verdict if outcome else None for outcome in outcomes]


def scope_of(record: Record) -> ParkScope:
    return ParkScope(OUTBOUND, UUID(record.key))


def due(bench: Workbench) -> list[ParkScope]:
    return bench.store.due_scopes(topic=OUTBOUND, now_ms=bench.clock.now_ms(), limit=10)


def tell_delivered(bench: Workbench) -> None:
    """The platform's word about the only message, as `status-updates` stores it."""
    [outbound] = bench.on_log(OUTBOUND, Outbound)
    bench.store.apply_statuses(
        [
            StatusChange(
                message_id=outbound.message.message_id,
                conversation_id=outbound.message.conversation_id,
                recipient=CARLA,
                status=Status.DELIVERED,
                at_ms=bench.clock.now_ms(),
                external_id="wamid.evidence",
            )
        ]
    )


def tell(
    bench: Workbench, message: Message, recipient: str, status: Status, external_id: str, *, account_id: str = "1055"
) -> None:
    """The platform's word about a message that it has from that account, stored."""
    about: dict[str, Any] = {
        "message_id": message.message_id,
        "conversation_id": message.conversation_id,
        "external_id": external_id,
    }
    bench.store.claim_externals([ExternalRef(channel="whatsapp", account_id=account_id, party=recipient, **about)])
    change = StatusChange(**about, recipient=recipient, status=status, at_ms=bench.clock.now_ms())
    bench.store.apply_statuses([change])


def buried(bench: Workbench) -> list[str]:
    """Why each dead letter is one."""
    source = TopicPartition(topics.dead_letters(OUTBOUND), 0)
    return [record.headers["dl-error"] for record in bench.log.read(source, start=0, limit=100)]


# --- order and waves -------------------------------------------------------------------------------------------------


def test_sends_each_conversation_in_order_and_conversations_together(bench: Workbench) -> None:
    one, other = bench.conversation(), bench.conversation()
    records = bench.outbound(one, "a1", "a2", "a3") + bench.outbound(other, "b1", "b2")
    assert send(bench, records) == [DONE] * 5
    assert [text for text in bench.platform.texts if text[0] == "a"] == ["a1", "a2", "a3"]
    assert [text for text in bench.platform.texts if text[0] == "b"] == ["b1", "b2"]
    assert set(bench.platform.texts[:2]) == {"a1", "b1"}


def test_sends_what_the_platform_needs_and_remembers_its_answer(bench: Workbench) -> None:
    conversation = bench.conversation()
    asked = bench.message(conversation, "?", external_id="wamid.question", sender_id=CARLA, account_id="1055")
    answer = bench.message(conversation, "!", reply_to=asked.message_id)
    bench.store.save_messages([asked, answer])
    outbound = Outbound(message=answer, recipient=CARLA, channel="whatsapp", routed_at_ms=0)
    assert send(bench, bench.append(OUTBOUND, [outbound])) == [DONE]
    [arrived] = bench.platform.arrived
    assert (arrived.correlation_id, arrived.to, arrived.text) == (str(answer.message_id), "+5511999998888", "!")
    assert arrived.reply_to_external_id == "wamid.question"
    external = bench.store.externals("whatsapp", "1055", [f"wamid.{answer.message_id}.1"]).get(
        f"wamid.{answer.message_id}.1"
    )
    assert external is not None
    assert (external.message_id, external.party) == (answer.message_id, CARLA)
    contact = bench.store.contact(
        workspace_id=answer.workspace_id, channel="whatsapp", account_id="1055", address="+5511999998888"
    )
    assert contact is not None
    assert contact.conversation_id == conversation.conversation_id


def test_what_the_platform_calls_a_message_is_told_once_it_is_stored(bench: Workbench) -> None:
    """Before that it would be believed of a send that nobody recorded, and evidence would not be looked for."""

    def run(fuse: Fuse) -> None:
        before = len(bench.noted)
        with suppress(Killed):
            send(bench, bench.outbound(bench.conversation(), "a1"), fuse=fuse)
        told = bench.noted[before:]
        assert told or fuse.blown
        stored = bench.store.externals("whatsapp", "1055", [each.external_id for each in told])
        assert list(stored.values()) == told

    assert every_step(run) >= 8
    assert bench.noted


def test_a_transient_failure_holds_back_its_conversation_only(bench: Workbench) -> None:
    one, other = bench.conversation(), bench.conversation()
    bench.platform.will("a1", TransientDeliveryError("refused", retry_after_s=7))
    records = bench.outbound(one, "a1", "a2") + bench.outbound(other, "b1", "b2")
    outcomes = send(bench, records)
    assert outcomes == [Outcome(Verdict.RETRY, after_s=7, reason="refused"), None, DONE, DONE]
    assert bench.platform.texts == ["b1", "b2"]
    assert send(bench, records[:2], attempts=1) == [DONE, DONE]
    assert bench.platform.texts == ["b1", "b2", "a1", "a2"]
    assert [message.retries for message in bench.platform.arrived] == [0, 0, 1, 1]


def test_a_refused_message_fails_with_the_reason_and_the_next_one_goes(bench: Workbench) -> None:
    bench.platform.will("a1", PermanentDeliveryError("platform:131026"))
    records = bench.outbound(bench.conversation(), "a1", "a2")
    assert send(bench, records) == [DONE, DONE]
    assert bench.platform.texts == ["a2"]
    assert bench.reported() == [("FAILED", "platform:131026")]
    assert send(bench, records) == [DONE, DONE]
    assert bench.platform.texts == ["a2"]


def test_a_paused_account_burns_no_attempt(bench: Workbench) -> None:
    bench.platform.will("a1", PausedDeliveryError("platform:190"))
    records = bench.outbound(bench.conversation(), "a1", "a2")
    [first, second] = send(bench, records, failing_for_ms=PARK_PAUSED_AFTER_MS)
    assert first is not None
    assert (first.verdict, first.reason, second) == (Verdict.PAUSED, "platform:190", None)
    assert not bench.store.parked_scopes([scope_of(records[0])])


@pytest.mark.parametrize(
    ("error", "failing_for_ms"),
    [
        pytest.param(PausedDeliveryError("platform:190"), PARK_PAUSED_AFTER_MS + 1, id="for long"),
        pytest.param(PausedDeliveryError("platform:190", retry_after_s=900), 0, id="as the platform asks"),
    ],
)
def test_an_account_that_is_paused_for_long_pins_no_partition(
    bench: Workbench, error: DeliveryError, failing_for_ms: int
) -> None:
    bench.platform.will("a1", error)
    records = bench.outbound(bench.conversation(), "a1", "a2")
    assert send(bench, records, failing_for_ms=failing_for_ms) == [DONE, DONE]
    assert len(bench.store.parked(scope_of(records[0]), limit=9)) == 2


def test_credentials_that_nobody_can_read_stop_their_account_alone(bench: Workbench) -> None:
    one, other = bench.conversation(), bench.conversation()
    records = bench.outbound(one, "a1", "a2") + bench.outbound(other, "b1")

    def account_for(outbound: Outbound) -> Any:
        if outbound.message.conversation_id == one.conversation_id:
            raise SecretsUnreadable
        return bench.account

    delivery = replace(bench.delivery(), account_for=account_for)
    outcomes = deliver(items(records), delivery, owner="worker", lease=FreeLease(), deadline_s=math.inf)
    first, second, third = (outcomes.get(record.offset) for record in records)
    assert first is not None
    assert (first.verdict, first.reason, second, third) == (Verdict.PAUSED, "secrets_unreadable", None, DONE)
    assert bench.platform.texts == ["b1"]


def test_an_open_breaker_stops_the_account_until_its_time_has_come(bench: Workbench) -> None:
    conversations = [bench.conversation() for _ in range(8)]
    records = [bench.outbound(each, f"m{number}")[0] for number, each in enumerate(conversations)]
    for number in range(8):
        bench.platform.will(f"m{number}", TransientDeliveryError("unreachable"))
    for record in records[:4]:
        assert verdicts(send(bench, [record])) == [Verdict.RETRY]
    [opening] = send(bench, records[4:5])
    assert opening == Outcome(Verdict.PAUSED, after_s=30.0, reason="unreachable")
    calls = bench.platform.calls
    [outcome] = send(bench, records[5:6])
    assert outcome is not None
    assert (outcome.verdict, outcome.reason, outcome.after_s) == (Verdict.PAUSED, "breaker_open", 30.0)
    assert bench.platform.calls == calls
    bench.clock.advance(30)
    assert send(bench, records[:1]) == [DONE]
    assert verdicts(send(bench, records[1:5])) == [Verdict.DONE] * 4


def test_who_probes_a_platform_that_is_away_is_not_parked_for_it(bench: Workbench) -> None:
    """It would wait apart for a minute each time, while those who did not probe go on at once."""
    records = bench.outbound(bench.conversation(), "a1")
    bench.platform.will("a1", *[TransientDeliveryError("unreachable")] * 8)
    for _ in range(5):
        send(bench, records)
    for seconds in (30, 60, 90):  # of failing
        bench.clock.advance(30)
        assert verdicts(send(bench, records, failing_for_ms=seconds * 1000)) == [Verdict.PAUSED]
    assert not bench.store.parked_scopes([scope_of(records[0])])
    bench.clock.advance(30)
    assert send(bench, records, failing_for_ms=120_000) == [DONE]


def test_what_was_not_started_by_the_deadline_has_no_outcome(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1", "a2")
    assert send(bench, records, deadline_s=bench.clock.monotonic_s()) == [None, None]
    assert bench.platform.calls == 0
    assert send(bench, records) == [DONE, DONE]


def test_a_poisonous_record_is_named_and_its_neighbours_go(bench: Workbench) -> None:
    conversation = bench.conversation()
    first = bench.outbound(conversation, "a1")
    [place] = bench.log.append([NewRecord(OUTBOUND, str(conversation.conversation_id), b"\x00not ours")])
    broken = bench.log.read(place[0], start=place[1], limit=1)
    last = bench.outbound(conversation, "a2")
    assert verdicts(send(bench, first + broken + last)) == [Verdict.DONE, Verdict.POISON, Verdict.DONE]
    assert bench.platform.texts == ["a1", "a2"]


def test_the_same_message_twice_in_a_batch_is_sent_once(bench: Workbench) -> None:
    [record] = bench.outbound(bench.conversation(), "a1")
    again = bench.append(OUTBOUND, bench.on_log(OUTBOUND, Outbound))
    assert send(bench, [record, *again]) == [DONE, DONE]
    assert bench.platform.texts == ["a1"]


# --- what an answer quotes ---------------------------------------------------------------------------------------


def quoted(bench: Workbench, asked: Message) -> list[str | None]:
    """How the platform is asked to show what a message to Carla answers."""
    answer = bench.message(bench.conversation(), "!", reply_to=asked.message_id)
    bench.store.save_messages([asked, answer])
    outbound = Outbound(message=answer, recipient=CARLA, channel="whatsapp", routed_at_ms=0)
    assert send(bench, bench.append(OUTBOUND, [outbound])) == [DONE]
    return [arrived.reply_to_external_id for arrived in bench.platform.arrived if arrived.text == "!"]


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"sender_id": JOHN}, id="somebody else wrote it"),
        pytest.param({"sender_id": CARLA, "account_id": "1056"}, id="another account of ours heard it"),
    ],
)
def test_an_answer_quotes_nothing_of_another_chat(bench: Workbench, asked: dict[str, str]) -> None:
    """A platform refuses ids that it does not know there: the answer would never arrive."""
    known = {"external_id": "mid.question", "account_id": "1055", **asked}
    assert quoted(bench, bench.message(bench.conversation(), "?", **known)) == [None]


def test_an_answer_quotes_our_own_message_as_its_recipient_has_it(bench: Workbench) -> None:
    conversation = bench.conversation(ALICE, CARLA, DIEGO)
    ours = bench.message(conversation, "first")
    for recipient, external_id in ((DIEGO, "wamid.diego"), (CARLA, "wamid.carla")):
        tell(bench, ours, recipient, Status.DELIVERED, external_id)
    assert quoted(bench, ours) == ["wamid.carla"]


def test_an_answer_does_not_quote_what_never_arrived(bench: Workbench) -> None:
    ours = bench.message(bench.conversation(), "first")
    tell(bench, ours, CARLA, Status.FAILED, "wamid.failed")
    assert quoted(bench, ours) == [None]


def test_an_answer_does_not_quote_what_another_account_of_ours_sent(bench: Workbench) -> None:
    ours = bench.message(bench.conversation(), "first")
    tell(bench, ours, CARLA, Status.DELIVERED, "wamid.carla", account_id="1056")
    assert quoted(bench, ours) == [None]


# --- what is refused before it is sent ---------------------------------------------------------------------------


def test_a_message_older_than_a_day_is_not_sent(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    bench.clock.advance(MAX_AGE_MS / 1000)
    bench.platform.will("a1", TransientDeliveryError("refused"))
    assert verdicts(send(bench, records)) == [Verdict.RETRY]
    bench.clock.advance(0.001)
    assert send(bench, records) == [DONE]
    assert bench.reported() == [("FAILED", "expired")]
    assert bench.platform.texts == []


def test_without_an_account_a_message_fails(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    bench.account = None
    assert send(bench, records) == [DONE]
    assert bench.reported() == [("FAILED", "no_channel_account")]


@pytest.mark.parametrize("gone", ["too old", "no account"])
def test_what_was_sent_once_does_not_fail_when_the_log_is_read_again_too_late(bench: Workbench, gone: str) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    send(bench, records)
    if gone == "too old":
        bench.clock.advance(MAX_AGE_MS / 1000 + 1)
    else:
        bench.account = None
    assert send(bench, records) == [DONE]
    assert bench.reported() == []


# --- perhaps delivered -------------------------------------------------------------------------------------------


def test_an_ambiguous_message_waits_ten_seconds_and_goes_once_more_marked(bench: Workbench) -> None:
    bench.platform.will("a1", AmbiguousDeliveryError("read_timeout"))
    records = bench.outbound(bench.conversation(), "a1", "a2")
    [first, second] = send(bench, records)
    assert (first, second) == (Outcome(Verdict.RETRY, after_s=10.0, reason="read_timeout"), None)
    bench.clock.advance(10)
    assert send(bench, records, attempts=1) == [DONE, DONE]
    assert bench.platform.texts == ["a1", "a1", "a2"]
    assert bench.reported() == [("SENT", "maybe_duplicate")]


def test_what_is_ambiguous_twice_fails_with_a_dead_letter_and_the_next_message_goes(bench: Workbench) -> None:
    bench.platform.will("a1", *[AmbiguousDeliveryError("read_timeout")] * 2)
    records = bench.outbound(bench.conversation(), "a1", "a2")
    send(bench, records)
    bench.clock.advance(10)
    assert send(bench, records) == [Outcome(Verdict.RETRY, after_s=10.0, reason="read_timeout"), None]
    bench.clock.advance(4)
    assert send(bench, records) == [Outcome(Verdict.PAUSED, after_s=2.0, reason="ambiguous"), None]
    bench.clock.advance(6)
    assert send(bench, records) == [DONE, DONE]
    assert bench.platform.texts == ["a1", "a1", "a2"]
    assert bench.reported() == [("SENT", "maybe_duplicate"), ("FAILED", "unknown_delivery")]
    assert buried(bench) == ["unknown_delivery"]
    assert send(bench, records) == [DONE, DONE]  # and stays so
    assert bench.platform.texts == ["a1", "a1", "a2"]


def test_evidence_after_the_second_try_keeps_it_from_failing(bench: Workbench) -> None:
    bench.platform.will("a1", *[AmbiguousDeliveryError("read_timeout")] * 2)
    [record] = bench.outbound(bench.conversation(), "a1")
    send(bench, [record])
    bench.clock.advance(10)
    send(bench, [record])
    tell_delivered(bench)
    bench.clock.advance(10)
    assert send(bench, [record]) == [DONE]
    assert bench.reported() == [("SENT", "maybe_duplicate")]
    assert buried(bench) == []


def test_a_sender_that_died_twice_while_sending_is_not_repeated(bench: Workbench) -> None:
    """Whether or not what was told about the first death has been stored by then."""
    bench.platform.will("a1", Killed(), Killed())
    [record] = bench.outbound(bench.conversation(), "a1")
    for epoch in ("0001", "0002", "0003"):
        with suppress(Killed):
            while send(bench, [record], owner=f"whatsapp-outbound:0:1@{epoch}") != [DONE]:
                bench.clock.advance(1)
    assert bench.platform.texts == ["a1", "a1"]
    assert bench.reported() == [("SENT", "maybe_duplicate"), ("FAILED", "unknown_delivery")]
    assert buried(bench) == ["unknown_delivery"]


def test_a_second_try_that_never_left_us_is_no_second_doubt(bench: Workbench) -> None:
    """Called off before the platform was asked, again and again: it still goes, once."""
    bench.platform.will("a1", AmbiguousDeliveryError("read_timeout"))
    bench.platform.will_not_come_to("a1", *[TransientDeliveryError("refused", outage=False)] * 3)
    bench.platform._early_fates["a1"].appendleft(AmbiguousDeliveryError("read_timeout"))
    [record] = bench.outbound(bench.conversation(), "a1")
    send(bench, [record])
    bench.clock.advance(10)
    for _ in range(3):
        assert verdicts(send(bench, [record])) == [Verdict.RETRY]
    assert verdicts(send(bench, [record])) == [Verdict.RETRY]  # ambiguous: the second doubt
    bench.clock.advance(10)
    assert send(bench, [record]) == [DONE]
    assert bench.reported()[-1] == ("FAILED", "unknown_delivery")


def test_what_is_unknown_waits_while_no_more_may_become_dead_letters(bench: Workbench) -> None:
    bench.platform.will("a1", *[AmbiguousDeliveryError("read_timeout")] * 2)
    [record] = bench.outbound(bench.conversation(), "a1")
    send(bench, [record])
    bench.clock.advance(10)
    send(bench, [record])
    bench.clock.advance(10)
    no_room = replace(bench.delivery(), bury=lambda work, reason: False)
    outcomes = deliver(items([record]), no_room, owner="w", lease=FreeLease(), deadline_s=bench.clock.monotonic_s() + 5)
    assert outcomes == {record.offset: Outcome(Verdict.PAUSED, after_s=10.0, reason="dead_letters_wait")}
    assert bench.reported() == [("SENT", "maybe_duplicate")]
    assert send(bench, [record]) == [DONE]
    assert buried(bench) == ["unknown_delivery"]


def test_a_replay_of_what_is_unknown_is_an_attempt_with_two_tries_of_its_own(bench: Workbench) -> None:
    bench.platform.will("a1", *[AmbiguousDeliveryError("read_timeout")] * 3)
    [record] = bench.outbound(bench.conversation(), "a1")
    for _ in range(3):
        send(bench, [record])
        bench.clock.advance(10)
    [outbound] = bench.on_log(OUTBOUND, Outbound)
    [again] = bench.append(OUTBOUND, [replace(outbound, attempt=1, routed_at_ms=bench.clock.now_ms())])
    assert verdicts(send(bench, [again])) == [Verdict.RETRY]
    bench.clock.advance(10)
    assert send(bench, [again]) == [DONE]
    assert bench.platform.texts == ["a1"] * 4
    assert bench.reported()[2:] == [("SENT", "maybe_duplicate")]


def replayed(bench: Workbench, *, told: Status) -> Record:
    """The second attempt of a message, of whose first one the platform told this."""
    bench.outbound(bench.conversation(), "a1")
    [outbound] = bench.on_log(OUTBOUND, Outbound)
    tell(bench, outbound.message, CARLA, told, "wamid.first")
    [again] = bench.append(OUTBOUND, [replace(outbound, attempt=1, routed_at_ms=bench.clock.now_ms())])
    return again


def test_the_failure_of_the_attempt_before_is_no_evidence_of_this_one(bench: Workbench) -> None:
    bench.platform.will_not_come_to("a1", AmbiguousDeliveryError("read_timeout"))
    again = replayed(bench, told=Status.FAILED)
    assert verdicts(send(bench, [again])) == [Verdict.RETRY]
    bench.clock.advance(10)
    assert send(bench, [again]) == [DONE]
    assert bench.platform.texts == ["a1"]
    assert bench.reported() == [("SENT", "maybe_duplicate")]


def test_the_arrival_of_the_attempt_before_is_evidence_enough(bench: Workbench) -> None:
    bench.platform.will_not_come_to("a1", AmbiguousDeliveryError("read_timeout"))
    again = replayed(bench, told=Status.DELIVERED)
    assert verdicts(send(bench, [again])) == [Verdict.RETRY]
    assert send(bench, [again]) == [DONE]
    assert bench.platform.texts == []
    assert bench.reported() == []


def test_the_platform_is_told_the_attempt_and_its_id_is_kept_with_it(bench: Workbench) -> None:
    assert send(bench, [replayed(bench, told=Status.FAILED)]) == [DONE]
    [arrived] = bench.platform.arrived
    message_id, attempt = correlated(arrived.correlation_id)
    [ref] = bench.store.externals("whatsapp", "1055", [f"wamid.{arrived.correlation_id}.1"]).values()
    assert (ref.message_id, ref.attempt) == (message_id, attempt) == (message_id, 1)


def test_evidence_that_comes_meanwhile_settles_it(bench: Workbench) -> None:
    bench.platform.will("a1", AmbiguousDeliveryError("read_timeout"))
    [record] = bench.outbound(bench.conversation(), "a1")
    send(bench, [record])
    tell_delivered(bench)
    assert send(bench, [record], attempts=1) == [DONE]
    assert bench.platform.texts == ["a1"]
    assert bench.store.externals("whatsapp", "1055", ["wamid.evidence"]).get("wamid.evidence") is not None
    assert bench.reported() == []


def test_a_channel_that_leaves_it_alone_says_so(bench: Workbench) -> None:
    bench.platform = CarefulPlatform()
    bench.platform.will("a1", AmbiguousDeliveryError("read_timeout"))
    records = bench.outbound(bench.conversation(), "a1", "a2")
    send(bench, records)
    bench.clock.advance(10)
    assert send(bench, records) == [DONE, DONE]
    assert bench.platform.texts == ["a1", "a2"]
    assert bench.reported() == [("FAILED", "unknown_delivery")]
    assert buried(bench) == ["unknown_delivery"]


def test_one_looks_for_evidence_every_two_seconds_for_the_rest_of_the_time_and_no_longer(bench: Workbench) -> None:
    bench.platform.will("a1", AmbiguousDeliveryError("read_timeout"))
    records = bench.outbound(bench.conversation(), "a1")
    send(bench, records)
    for later_s, again_s in ((4, 2.0), (5, 1.0)):
        bench.clock.advance(later_s)
        assert send(bench, records) == [Outcome(Verdict.PAUSED, after_s=again_s, reason="ambiguous")]
    bench.clock.advance(1)
    assert send(bench, records) == [DONE]
    assert bench.platform.texts == ["a1", "a1"]


def test_a_second_try_that_surely_failed_is_made_again_without_another_wait(bench: Workbench) -> None:
    bench.platform.will("a1", AmbiguousDeliveryError("read_timeout"), TransientDeliveryError("refused"))
    records = bench.outbound(bench.conversation(), "a1")
    send(bench, records)
    bench.clock.advance(10)
    assert verdicts(send(bench, records)) == [Verdict.RETRY]
    bench.clock.advance(1)
    assert send(bench, records) == [DONE]
    assert bench.platform.texts == ["a1", "a1"]


def test_evidence_counts_after_a_second_try_that_surely_failed_too(bench: Workbench) -> None:
    bench.platform.will("a1", AmbiguousDeliveryError("read_timeout"), TransientDeliveryError("refused"))
    [record] = bench.outbound(bench.conversation(), "a1")
    send(bench, [record])
    bench.clock.advance(10)
    assert verdicts(send(bench, [record])) == [Verdict.RETRY]
    tell_delivered(bench)
    assert send(bench, [record]) == [DONE]
    assert bench.platform.texts == ["a1"]


def test_a_sender_that_died_while_sending_is_looked_after(bench: Workbench) -> None:
    bench.platform.will("a1", Killed())
    records = bench.outbound(bench.conversation(), "a1")
    with pytest.raises(Killed):
        send(bench, records)
    bench.clock.advance(3)
    assert verdicts(send(bench, records)) == [Verdict.PAUSED]  # its claim's lease still runs
    assert bench.platform.texts == ["a1"]
    bench.clock.advance(CLAIM_LEASE_MS / 1000)
    assert send(bench, records) == [DONE]
    assert bench.platform.texts == ["a1", "a1"]
    assert bench.reported() == [("SENT", "maybe_duplicate")]


def test_a_message_does_not_wait_for_the_claim_of_a_worker_whose_batch_was_taken_back(bench: Workbench) -> None:
    bench.platform.will("a1", Killed())
    records = bench.outbound(bench.conversation(), "a1")
    with pytest.raises(Killed):
        send(bench, records, owner="whatsapp-outbound:0:1@0001-0001")
    bench.clock.advance(4)
    assert send(bench, records, owner="whatsapp-outbound:0:2@0001-0002") == [
        Outcome(Verdict.PAUSED, after_s=1.0, reason="busy")  # another lane's number says nothing about it
    ]
    later = "whatsapp-outbound:0:1@0001-0002"
    assert send(bench, records, owner=later) == [Outcome(Verdict.PAUSED, after_s=2.0, reason="ambiguous")]
    bench.clock.advance(10)
    assert send(bench, records, owner="whatsapp-outbound:0:1@0001-0003") == [DONE]
    assert bench.platform.texts == ["a1", "a1"]
    assert bench.reported() == [("SENT", "maybe_duplicate")]


def test_a_worker_that_wakes_up_late_takes_no_claim_from_its_successor(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    bench.platform.will("a1", Killed())
    with pytest.raises(Killed):
        send(bench, records, owner="whatsapp-outbound:0:1@0002-0001")
    assert send(bench, records, owner="whatsapp-outbound:0:1@0001-0009") == [
        Outcome(Verdict.PAUSED, after_s=1.0, reason="busy")
    ]


def test_a_file_that_takes_too_long_to_upload_is_not_sent_any_more(bench: Workbench) -> None:
    """Whoever sends must be done before its claim ends, and before its task is killed."""
    records = bench.outbound(bench.conversation(), "a1", "a2")
    bench.platform.upload = lambda: bench.clock.advance(POST_WITHIN_S + 1)
    [first, second] = send(bench, records)
    assert first is not None
    assert (first.verdict, first.reason, second) == (Verdict.RETRY, "too_slow", None)
    bench.platform.upload = lambda: bench.clock.advance(POST_WITHIN_S)
    assert send(bench, records, deadline_s=bench.clock.monotonic_s() + 100) == [DONE, DONE]
    assert bench.platform.texts == ["a1", "a2"]
    assert bench.reported() == []


def test_no_claim_ends_before_the_task_that_sends_under_it(bench: Workbench) -> None:
    limits = Limits()
    upload_s = limits.connect_s + limits.upload_s + limits.write_s + limits.read_s
    post_s = limits.total_s + limits.read_s
    assert tasks.BATCH_DEADLINE_S + max(upload_s, POST_WITHIN_S + post_s) < HARD_LIMIT_S
    assert HARD_LIMIT_S * 1000 < CLAIM_LEASE_MS


def test_two_workers_never_send_the_same_message_at_once(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    [outbound] = bench.on_log(OUTBOUND, Outbound)
    bench.store.claim_deliveries(
        [DeliveryKey(outbound.message.message_id, CARLA)],
        owner="another",
        now_ms=bench.clock.now_ms(),
        lease_ms=CLAIM_LEASE_MS,
    )
    assert send(bench, records) == [Outcome(Verdict.PAUSED, after_s=1.0, reason="busy")]
    assert bench.platform.calls == 0


# --- parts that are away, workers that die -----------------------------------------------------------------------


@pytest.mark.parametrize("checks", [pytest.param(2, id="before the send"), pytest.param(3, id="before its POST")])
def test_a_lost_lease_stops_the_sending_at_once(bench: Workbench, checks: int) -> None:
    records = bench.outbound(bench.conversation(), "a1", "a2")
    outcomes = send(bench, records, checks=checks)
    assert bench.platform.texts == ["a1"]
    assert verdicts(outcomes) == [Verdict.DONE, Verdict.PAUSED]
    assert send(bench, records) == [DONE, DONE]  # the claim was given back: nothing is ambiguous
    assert bench.platform.texts == ["a1", "a2"]
    assert bench.reported() == []


def test_a_lease_lost_before_a_report_raises_and_the_next_worker_reports(bench: Workbench) -> None:
    bench.platform.will("a1", PermanentDeliveryError("platform:131026"))
    records = bench.outbound(bench.conversation(), "a1")
    with pytest.raises(LeaseLost):
        send(bench, records, checks=2)
    assert send(bench, records) == [DONE]
    assert bench.reported() == [("FAILED", "platform:131026")]


def test_a_part_that_is_away_before_the_send_makes_nothing_ambiguous(bench: Workbench) -> None:
    """A claim that no send followed must not look like a sender that vanished."""
    conversation, other = bench.conversation(), bench.conversation()
    asked = bench.message(conversation, "?", external_id="wamid.question", sender_id=CARLA, account_id="1055")
    bench.store.save_messages([asked])

    def run(fuse: Fuse) -> None:
        answer = bench.message(conversation, "!", reply_to=asked.message_id)
        bench.store.save_messages([answer])
        outbound = Outbound(message=answer, recipient=CARLA, channel="whatsapp", routed_at_ms=0)
        old = bench.message(other, "old", accepted_at_ms=bench.clock.now_ms() - MAX_AGE_MS - 1)
        late = Outbound(message=old, recipient=CARLA, channel="whatsapp", routed_at_ms=0)
        records = bench.append(OUTBOUND, [outbound, late])
        calls = bench.platform.calls
        try:
            send(bench, records, fuse=fuse)
        except Unavailable:
            if bench.platform.calls == calls and fuse.place != "after claim_deliveries":
                assert send(bench, records) == [DONE, DONE]
        assert ("SENT", "maybe_duplicate") not in bench.reported()

    assert every_step(run, Unavailable) >= 10


def test_whatever_step_a_worker_dies_at_the_next_one_completes_it(bench: Workbench) -> None:
    def run(fuse: Fuse) -> None:
        bench.platform.arrived.clear()
        bench.platform.will("no", PermanentDeliveryError("platform:131026"))
        records = bench.outbound(bench.conversation(), "one", "no", "two")
        before = len(bench.reported())
        try:
            send(bench, records, fuse=fuse)
        except Killed:
            while None in (outcomes := send(bench, records)) or {*verdicts(outcomes)} != {Verdict.DONE}:
                bench.clock.advance(16)
        marked = ("SENT", "maybe_duplicate") in bench.reported()[before:]
        assert list(dict.fromkeys(bench.platform.texts)) in (["one", "two"], ["one", "no", "two"])
        assert len(bench.platform.texts) == len(set(bench.platform.texts)) or marked
        assert ("FAILED", "platform:131026") in bench.reported()[before:] or "no" in bench.platform.texts
        for fates in bench.platform._fates.values():
            fates.clear()

    assert every_step(run) >= 10


@pytest.mark.parametrize("error", [Unavailable, LeaseLost])
def test_whatever_part_is_away_the_next_try_completes_it(bench: Workbench, error: type[Exception]) -> None:
    def run(fuse: Fuse) -> None:
        bench.platform.arrived.clear()
        records = bench.outbound(bench.conversation(), "one", "two")
        before = len(bench.reported())
        try:
            send(bench, records, fuse=fuse)
        except error:
            while {*verdicts(send(bench, records))} != {Verdict.DONE}:
                bench.clock.advance(16)
        marked = ("SENT", "maybe_duplicate") in bench.reported()[before:]
        assert list(dict.fromkeys(bench.platform.texts)) == ["one", "two"]
        assert len(bench.platform.texts) == 2 or marked

    assert every_step(run, error) >= 10


# --- what breaks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("a bug"), StorageUnavailable("away"), KeyError("messages")])
@pytest.mark.parametrize("early", [True, False])
def test_what_breaks_one_send_leaves_no_neighbour_unsettled(bench: Workbench, error: Exception, early: bool) -> None:
    conversations = [bench.conversation() for _ in range(3)]
    records = [bench.outbound(each, text)[0] for each, text in zip(conversations, ("a", "b", "c"), strict=True)]
    if early:
        bench.platform.will_not_come_to("b", error)
    else:
        bench.platform.will("b", error)
    first = verdicts(send(bench, records))
    waits = Verdict.PAUSED if early and isinstance(error, Unavailable) else Verdict.RETRY
    assert first == [Verdict.DONE, waits, Verdict.DONE]
    bench.clock.advance(10)
    assert send(bench, records, attempts=1) == [DONE] * 3
    assert sorted(bench.platform.texts) == (["a", "b", "c"] if early else ["a", "b", "b", "c"])
    assert bench.reported() == ([] if early else [("SENT", "maybe_duplicate")])


def test_a_send_that_breaks_again_and_again_fails_and_is_poison(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1", "a2")
    bench.platform.will_not_come_to("a1", *[ValueError("a bug")] * 3)
    for attempts in (0, 1):
        [outcome, behind] = send(bench, records, attempts=attempts)
        assert outcome is not None
        assert (outcome.verdict, outcome.reason, behind) == (Verdict.RETRY, "ValueError", None)
    [outcome, behind] = send(bench, records, attempts=2)
    assert (outcome, behind) == (Outcome(Verdict.POISON, reason="ValueError"), None)
    assert bench.reported() == [("FAILED", "internal_error")]
    assert send(bench, records[1:]) == [DONE]
    assert bench.platform.texts == ["a2"]


def test_the_dead_letter_of_what_broke_is_asked_for_again_until_somebody_writes_it(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    bench.platform.will_not_come_to("a1", *[ValueError("a bug")] * 3)
    for attempts in (0, 1, 2):
        send(bench, records, attempts=attempts)
    assert bench.reported() == [("FAILED", "internal_error")]
    assert send(bench, records) == [Outcome(Verdict.POISON, reason="internal_error")]  # its bridge died with the first
    assert bench.platform.texts == []


def test_a_file_that_cannot_be_read_just_now_is_waited_for(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    bench.platform.will_not_come_to("a1", *[OSError("the storage failed")] * 5)
    for attempts in range(5):
        [outcome] = send(bench, records, attempts=attempts)
        assert outcome is not None
        assert (outcome.verdict, outcome.reason) == (Verdict.PAUSED, "unavailable")  # which burns no attempt
    assert send(bench, records, attempts=5) == [DONE]
    assert bench.reported() == []


def test_a_part_that_breaks_before_the_send_leaves_no_claim_behind(bench: Workbench) -> None:
    [record] = bench.outbound(bench.conversation(), "a1")
    bench.platform.will("a1", AmbiguousDeliveryError("read_timeout"))
    send(bench, [record])
    bench.clock.advance(10)
    broken = Fuse(5, ValueError("a bug"))  # in the look at what became of it
    with pytest.raises(ValueError, match="a bug"):
        send(bench, [record], fuse=broken)
    assert broken.place == "before transitions"
    assert send(bench, [record]) == [DONE]  # and not "busy"


# --- parking -----------------------------------------------------------------------------------------------------


def test_what_fails_for_long_is_parked_with_all_that_follows_it(bench: Workbench) -> None:
    one, other = bench.conversation(), bench.conversation()
    records = bench.outbound(one, "a1", "a2") + bench.outbound(other, "b1")
    bench.platform.will("a1", *[TransientDeliveryError("throttled", outage=False)] * 3)
    assert verdicts(send(bench, records, failing_for_ms=PARK_AFTER_MS)) == [Verdict.RETRY, None, Verdict.DONE]
    assert send(bench, records[:2], failing_for_ms=PARK_AFTER_MS + 1) == [DONE, DONE]
    later = bench.outbound(one, "a3")
    assert send(bench, later) == [DONE]
    assert bench.platform.texts == ["b1"]
    held = bench.store.parked(scope_of(records[0]), limit=10)
    assert [each.offset for each in held] == [records[0].offset, records[1].offset, later[0].offset]


def test_a_long_wait_that_the_platform_asks_for_is_spent_parked(bench: Workbench) -> None:
    bench.platform.will("a1", TransientDeliveryError("throttled", retry_after_s=600, outage=False))
    records = bench.outbound(bench.conversation(), "a1")
    assert send(bench, records) == [DONE]
    assert bench.store.due_at_ms(scope_of(records[0])) == bench.clock.now_ms() + 600_000


def test_what_the_platform_asks_of_the_parked_is_heeded_up_to_an_hour(bench: Workbench) -> None:
    asked_s = (600, 86_400)
    bench.platform.will(
        "a1", *[TransientDeliveryError("throttled", retry_after_s=each, outage=False) for each in (60, *asked_s)]
    )
    records = bench.outbound(bench.conversation(), "a1")
    scope = scope_of(records[0])
    send(bench, records)
    bench.clock.advance(60)
    for wanted_s in (600, 3600):
        resume(bench, scope)
        assert bench.store.due_at_ms(scope) == bench.clock.now_ms() + wanted_s * 1000
        bench.clock.advance(wanted_s)
    resume(bench, scope)
    assert bench.platform.texts == ["a1"]


def test_what_is_parked_goes_in_order_when_it_is_due_and_the_conversation_is_free_again(bench: Workbench) -> None:
    conversation = bench.conversation()
    records = bench.outbound(conversation, "a1", "a2")
    scope = scope_of(records[0])
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False))
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    send(bench, bench.outbound(conversation, "a3"))
    assert due(bench) == []
    bench.clock.advance(PARK_FIRST_MS / 1000)
    assert due(bench) == [scope]
    resume(bench, scope)
    assert bench.platform.texts == ["a1", "a2", "a3"]
    assert not bench.store.parked_scopes([scope])
    assert send(bench, bench.outbound(conversation, "a4")) == [DONE]
    assert bench.platform.texts[-1] == "a4"


def test_what_still_fails_stays_parked_and_is_tried_ever_more_rarely(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1", "a2")
    scope = scope_of(records[0])
    bench.platform.will("a1", *[TransientDeliveryError("throttled", outage=False)] * 100)
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    waits = []
    while True:
        waited_s = 0.0
        while due(bench) == []:
            bench.clock.advance(10)
            waited_s += 10
        waits.append(waited_s)
        resume(bench, scope)
        if bench.reported():
            break
    assert waits[0] * 1000 == PARK_FIRST_MS
    assert waits == sorted(waits)
    assert max(waits) * 1000 <= PARK_LONGEST_MS
    # After a day it is too old, and so is what waited behind it.
    assert bench.reported() == [("FAILED", "expired")] * 2
    assert not bench.store.parked_scopes([scope])
    assert bench.platform.texts == []


def test_the_platform_hears_that_what_is_parked_was_tried_before(bench: Workbench) -> None:
    """What it never takes must not stay a first try for ever, and hold up the others for a day."""
    records = bench.outbound(bench.conversation(), "a1", "a2")
    scope = scope_of(records[0])
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False))
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(5 * PARK_FIRST_MS / 1000)
    resume(bench, scope)
    assert [message.retries for message in bench.platform.arrived] == [5, 5]


def test_a_resumer_that_died_while_sending_leaves_a_mark(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    scope = scope_of(records[0])
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False), Killed())
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(PARK_FIRST_MS / 1000)
    with pytest.raises(Killed):
        resume(bench, scope)
    for _ in range(4):
        bench.clock.advance(PARK_FIRST_MS / 1000)
        resume(bench, scope)
    assert bench.platform.texts == ["a1", "a1"]
    assert bench.reported() == [("SENT", "maybe_duplicate")]
    assert not bench.store.parked_scopes([scope])


def test_what_is_poisonous_among_the_parked_does_not_stay(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    scope = scope_of(records[0])
    source = TopicPartition(OUTBOUND, 0)
    now_ms = bench.clock.now_ms()
    bench.store.park(
        scope,
        [
            ParkedRecord(source, records[0].offset, records[0].value, now_ms, 1),
            ParkedRecord(source, records[0].offset + 1, b"\x00", now_ms, 1),
        ],
        due_at_ms=now_ms,
    )
    resume(bench, scope)
    assert bench.platform.texts == ["a1"]
    assert not bench.store.parked_scopes([scope])
    [dead] = dead_letters(bench)
    assert (dead.value, dead.key, dead.headers["dl-offset"]) == (b"\x00", str(scope.conversation_id), "1")
    assert dead.headers["dl-error"] == "undecodable"


def test_what_is_poisonous_stays_parked_until_its_dead_letter_is_written(bench: Workbench) -> None:
    scope = ParkScope(OUTBOUND, bench.conversation().conversation_id)
    bench.store.park(scope, [ParkedRecord(TopicPartition(OUTBOUND, 0), 1, b"\x00", NOON_MS, 1)], due_at_ms=0)
    away = replace(bench.delivery(), bury=lambda work, reason: False)
    resume(bench, scope, delivery=away)
    assert len(bench.store.parked(scope, limit=9)) == 1
    assert due(bench) == []
    bench.clock.advance(PARK_FIRST_MS / 1000)
    resume(bench, scope)
    assert not bench.store.parked_scopes([scope])
    assert len(dead_letters(bench)) == 1


def test_what_breaks_again_while_it_is_parked_fails_and_holds_nothing_back(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1", "a2")
    scope = scope_of(records[0])
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False), ValueError("a bug"))
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(PARK_FIRST_MS / 1000)
    resume(bench, scope)
    assert bench.reported() == [("FAILED", "internal_error")]
    assert [dead.headers["dl-error"] for dead in dead_letters(bench)] == ["ValueError"]
    assert due(bench) == [scope]
    resume(bench, scope)
    assert bench.platform.texts[-1] == "a2"
    assert not bench.store.parked_scopes([scope])


def test_what_breaks_while_it_is_parked_stays_until_its_dead_letter_is_written(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    scope = scope_of(records[0])
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False), ValueError("a bug"))
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(PARK_FIRST_MS / 1000)
    full = replace(bench.delivery(), bury=lambda work, reason: False)
    resume(bench, scope, delivery=full)
    assert bench.store.parked_scopes([scope])
    bench.clock.advance(PARK_FIRST_MS / 1000)
    resume(bench, scope)
    assert [dead.headers["dl-error"] for dead in dead_letters(bench)] == ["internal_error"]
    assert not bench.store.parked_scopes([scope])


def test_what_breaks_before_it_is_sent_does_not_stay_parked_for_ever(bench: Workbench) -> None:
    scope = _parked(bench, "a1", "a2")
    broken = replace(bench.delivery(), media_for=_break_once(ValueError("a bug")))
    resume(bench, scope, delivery=broken)
    assert [dead.headers["dl-error"] for dead in dead_letters(bench)] == ["ValueError"]
    resume(bench, scope)
    assert bench.platform.texts[-1] == "a2"
    assert not bench.store.parked_scopes([scope])


def test_what_waits_for_a_part_that_is_away_stays_parked(bench: Workbench) -> None:
    scope = _parked(bench, "a1")
    away = replace(bench.delivery(), media_for=_break_once(Unavailable("away")))
    with pytest.raises(Unavailable):
        resume(bench, scope, delivery=away)
    assert dead_letters(bench) == []
    resume(bench, scope)
    assert bench.platform.texts == ["a1"]
    assert not bench.store.parked_scopes([scope])


@pytest.mark.parametrize("parked", [False, True])
def test_who_sends_a_file_waits_for_the_storage_and_nobody_else_does(bench: Workbench, parked: bool) -> None:
    with_file = bench.outbound(bench.conversation(), "a file", "behind it")
    others = bench.outbound(bench.conversation(), "no file")

    def media_for(outbound: Outbound) -> None:
        if outbound.message.content == "a file":
            raise StorageUnavailable("away")

    away = replace(bench.delivery(), media_for=media_for)
    if parked:
        bench.store.park(
            scope_of(with_file[0]),
            [ParkedRecord(each.source, each.offset, each.value, NOON_MS, 1) for each in with_file],
            due_at_ms=0,
        )
        scope = scope_of(with_file[0])
        resume(bench, scope, delivery=away)
        assert bench.store.parked_scopes([scope])
        assert due_in_ms(bench, scope) == PARK_PAUSED_MS
        return
    found = deliver(
        items([*with_file, *others]),
        away,
        owner="sender",
        lease=FreeLease(),
        deadline_s=bench.clock.monotonic_s() + 5,
    )
    assert [found[each.offset].verdict for each in (with_file[0], others[0])] == [Verdict.PAUSED, Verdict.DONE]
    assert with_file[1].offset not in found
    assert bench.platform.texts == ["no file"]
    assert send(bench, with_file) == [DONE, DONE]


def due_in_ms(bench: Workbench, scope: ParkScope) -> int:
    due_ms = bench.store.due_at_ms(scope)
    assert due_ms is not None
    return due_ms - bench.clock.now_ms()


def _parked(bench: Workbench, first: str, *behind: str) -> ParkScope:
    """One conversation's messages, held back and due."""
    records = bench.outbound(bench.conversation(), first, *behind)
    bench.platform.will(first, TransientDeliveryError("throttled", outage=False))
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(PARK_FIRST_MS / 1000)
    return scope_of(records[0])


def _break_once(error: Exception) -> Callable[[Outbound], None]:
    errors = [error]

    def media_for(_outbound: Outbound) -> None:
        if errors:
            raise errors.pop()

    return media_for


def test_a_scope_that_was_just_tried_is_left_alone(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    scope = scope_of(records[0])
    bench.platform.will("a1", *[TransientDeliveryError("throttled", outage=False)] * 9)
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    calls = bench.platform.calls
    resume(bench, scope)  # parked 30 s, and not over yet
    assert bench.platform.calls == calls
    bench.clock.advance(PARK_FIRST_MS / 1000)
    for _ in range(5):  # five bridges, or one that sent a task each second while the queue was long
        resume(bench, scope)
    assert bench.platform.calls == calls + 1


def test_a_scope_that_was_taken_is_tried_although_it_is_due_later_by_then(bench: Workbench) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False))
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(PARK_FIRST_MS / 1000)
    now_ms = bench.clock.now_ms()
    [scope] = bench.store.take_due_scopes(topic=OUTBOUND, now_ms=now_ms, again_at_ms=now_ms + RESUME_WITHIN_MS, limit=9)
    resume(bench, scope)
    assert bench.platform.texts == ["a1"]


@pytest.mark.parametrize("ahead_ms", [-2_000, 2_000])
def test_it_is_tried_whatever_the_clock_of_the_bridge_that_took_it(bench: Workbench, ahead_ms: int) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False))
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(PARK_FIRST_MS / 1000 + 2)
    now_ms = bench.clock.now_ms() + ahead_ms
    again_at_ms = now_ms + RESUME_WITHIN_MS
    [scope] = bench.store.take_due_scopes(topic=OUTBOUND, now_ms=now_ms, again_at_ms=again_at_ms, limit=9)
    resume(bench, scope, again_at_ms=again_at_ms)
    assert bench.platform.texts == ["a1"]


def test_a_scope_is_tried_however_long_its_task_waits_in_the_queue(bench: Workbench) -> None:
    """A bridge takes it again each time that it is due, and each task finds it moved by the next one."""
    records = bench.outbound(bench.conversation(), "a1")
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False))
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(PARK_FIRST_MS / 1000)
    queue = []
    for wait_s in (RESUME_WITHIN_MS / 1000 + 1, 6):
        now_ms = bench.clock.now_ms()
        queue.append(now_ms + RESUME_WITHIN_MS)
        [scope] = bench.store.take_due_scopes(topic=OUTBOUND, now_ms=now_ms, again_at_ms=queue[-1], limit=9)
        bench.clock.advance(wait_s)
    for again_at_ms in queue:  # already the first one, or each would leave it to the next
        resume(bench, scope, again_at_ms=again_at_ms)
        assert bench.platform.texts == ["a1"]


def test_a_scope_of_which_nothing_is_left_is_no_work(bench: Workbench) -> None:
    resume(bench, ParkScope(OUTBOUND, bench.conversation().conversation_id))
    assert bench.platform.calls == 0


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(PausedDeliveryError("platform:190", outage=False), id="account paused"),
        pytest.param(TransientDeliveryError("unreachable"), id="platform down"),
    ],
)
def test_while_the_account_is_away_the_parked_are_tried_each_minute(bench: Workbench, error: DeliveryError) -> None:
    records = bench.outbound(bench.conversation(), "a1")
    scope = scope_of(records[0])
    bench.platform.will("a1", TransientDeliveryError("throttled", outage=False), *[error] * 50)
    send(bench, records, failing_for_ms=PARK_AFTER_MS + 1)
    bench.clock.advance(PARK_FIRST_MS / 1000)
    for _ in range(20):
        resume(bench, scope)
        assert bench.store.due_at_ms(scope) == bench.clock.now_ms() + PARK_PAUSED_MS
        bench.clock.advance(PARK_PAUSED_MS / 1000)


def test_parked_records_of_a_partition_that_was_added_later_keep_their_turn(bench: Workbench) -> None:
    """Offsets of two partitions may be equal; what is done of one says nothing of the other."""
    conversation = bench.conversation()
    [first], [second] = bench.outbound(conversation, "a1"), bench.outbound(conversation, "a2")
    scope = scope_of(first)
    places = [(TopicPartition(OUTBOUND, 0), first), (TopicPartition(OUTBOUND, 7), second)]
    held = [ParkedRecord(source, 0, record.value, NOON_MS, 1) for source, record in places]
    bench.store.park(scope, held, due_at_ms=0)
    bench.platform.will("a2", TransientDeliveryError("throttled", outage=False))
    for _ in range(3):
        resume(bench, scope)
        bench.clock.advance(60)
    assert bench.platform.texts == ["a1", "a2"]


def dead_letters(bench: Workbench) -> list[Record]:
    return bench.log.read(TopicPartition(topics.dead_letters(OUTBOUND), 0), start=0, limit=99)


def test_the_persons_next_message_comes_to_the_conversation_that_wrote_last(bench: Workbench) -> None:
    first, second = bench.conversation(), bench.conversation()
    for conversation in (first, second):
        send(bench, bench.outbound(conversation, "hi"))
        assert bound(bench) == conversation.conversation_id


def test_who_is_no_agent_draws_nobody_away_from_another_conversation(bench: Workbench) -> None:
    with_agent, other = bench.conversation(), bench.conversation()
    send(bench, bench.outbound(with_agent, "hello Carla"))
    bench.agents = set()
    send(bench, bench.outbound(other, "."))
    assert bound(bench) == with_agent.conversation_id


def test_who_is_no_agent_hears_those_whom_nobody_else_wrote_to(bench: Workbench) -> None:
    bench.agents = set()
    conversation = bench.conversation()
    send(bench, bench.outbound(conversation, "hello Carla"))
    assert bound(bench) == conversation.conversation_id


def test_who_an_agent_writes_to_is_not_looked_up(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = bench.conversation()
    records = bench.outbound(conversation, "hello Carla")
    with monkeypatch.context() as patched:
        patched.delattr(type(bench.store), "contacts")
        assert send(bench, records) == [DONE]
    assert bound(bench) == conversation.conversation_id


def bound(bench: Workbench) -> UUID | None:
    """Where Carla's next message comes to."""
    account = bench.account
    assert account is not None
    contact = bench.store.contact(
        workspace_id=WORKSPACE,
        channel="whatsapp",
        account_id=account.account_id,
        address=Party.parse(CARLA).address,
    )
    return contact.conversation_id if contact else None
