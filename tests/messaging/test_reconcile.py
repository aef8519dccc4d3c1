"""The log and the store side by side: what differs is found, told and repaired, and nothing else is."""

from __future__ import annotations

import io
import itertools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from core.clock import ManualClock
from core.ids import uuid7_floor
from messaging import codec, topics, wiring
from messaging.bridge import DeadLetters
from messaging.domain import Message, Outbound, Status, StatusChange
from messaging.eventlog.memory import MemoryLog
from messaging.management.commands import verify_log
from messaging.ports import (
    DeliveryKey,
    DeliveryOutcome,
    NewRecord,
    ParkedRecord,
    ParkScope,
    Record,
    TopicPartition,
)
from messaging.services import persist, reconcile, statuses, unexplained, unsent
from messaging.services.deliver import MAX_AGE_MS, deliver
from messaging.services.recent import RecentMessages
from messaging.services.reconcile import Counts, Difference, Fault, Places, Span
from messaging.work import DONE, Work
from tests.contracts.message_stores import ALICE, BOB, CARLA
from tests.messaging.workbench import CHANNELS, EVERYWHERE, FreeLease, Workbench, items

TOPICS = {each.name: each for each in topics.all_topics(CHANNELS, 1)}
EVER = Span(0, 1 << 53)
OUTBOUND = topics.outbound("whatsapp")
DIEGO = "whatsapp:+351911111111"
_NUMBERS = itertools.count()
COMMITTED = (*reconcile.TOPICS, OUTBOUND)


class _Listener:
    """Of a group that owns whatever there is."""

    def __init__(self) -> None:
        self.owned: set[TopicPartition] = set()

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        self.owned |= partitions.keys()

    def revoked(self, partitions: object) -> None: ...
    def lost(self, partitions: object) -> None: ...


def commit(bench: Workbench) -> None:
    """As if the bridge had done with everything."""
    ends = {TopicPartition(name, 0): end(bench, name) for name in COMMITTED}
    listener = _Listener()
    subscription = bench.log.subscribe(COMMITTED, group="bridge", member="b", listener=listener)
    deadline_s = time.monotonic() + 60
    in_memory = isinstance(bench.log, MemoryLog)  # it gives at once what it gives
    while subscription.poll(0.0) or not (in_memory or listener.owned >= ends.keys()):
        assert time.monotonic() < deadline_s, "the group gave us nothing"
    subscription.commit(ends)
    subscription.close()


def end(bench: Workbench, topic: str) -> int:
    return bench.log.end_offset(TopicPartition(topic, 0))


def differences(bench: Workbench, span: Span = EVER, *, counts: Counts | None = None) -> list[Difference]:
    places = Places(bench.log, bench.store, "bridge")
    return [
        each
        for name in reconcile.TOPICS
        for page in reconcile.compare(TOPICS[name], span, places, counts or Counts())
        for each in page
    ]


def walk(bench: Workbench, span: Span = EVER, *, counts: Counts | None = None) -> list[tuple[Fault, int]]:
    """What differs, by place on the log; -1 where that has no record."""
    found = differences(bench, span, counts=counts)
    return [(each.fault, each.record.offset if each.record else -1) for each in found]


def write(bench: Workbench, count: int, *members: str) -> tuple[list[Message], list[Record]]:
    """On the log only; between users unless told otherwise."""
    conversation = bench.conversation(*members or (ALICE, BOB))
    messages = [bench.message(conversation, f"text {number}", message_id=now_id(bench)) for number in range(count)]
    return messages, bench.append(topics.MESSAGES, messages)


def now_id(bench: Workbench, *, in_days: int = 0) -> UUID:
    """Minted by the test's clock, or by one that is ahead of it; greater than those before."""
    floor = uuid7_floor(bench.clock.now_ms() + in_days * 86_400_000).int
    return UUID(int=floor | next(_NUMBERS) << 32 | secrets.randbits(32))


def status(message: Message, status: Status, recipient: str = BOB) -> StatusChange:
    return StatusChange(
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        recipient=recipient,
        status=status,
        at_ms=1,
    )


def work_off(bench: Workbench) -> None:
    def on(topic: str) -> Sequence[Record]:
        return bench.log.read(TopicPartition(topic, 0), start=0, limit=10_000)

    recent = RecentMessages()
    persist.persist(
        items(on(topics.MESSAGES)),
        store=bench.store,
        log=bench.log,
        notify=bench.sockets,
        lease=FreeLease(),
        recent=recent,
    )
    statuses.apply_statuses(
        items(on(topics.STATUS_UPDATES)),
        store=bench.store,
        notify=bench.sockets,
        lease=FreeLease(),
        recent=recent,
    )


# --- what differs --------------------------------------------------------------------------------------------------


@EVERYWHERE
def test_what_is_stored_and_applied_differs_in_nothing(bench: Workbench) -> None:
    messages, _ = write(bench, 250, ALICE, CARLA)
    bench.append(topics.STATUS_UPDATES, [status(each, Status.READ, CARLA) for each in messages])
    work_off(bench)
    commit(bench)
    counts = Counts()
    assert walk(bench, counts=counts) == []
    assert (counts.records, counts.pending) == (500, 0)


@EVERYWHERE
def test_a_message_that_is_not_stored_is_found(bench: Workbench) -> None:
    messages, _ = write(bench, 230)
    bench.store.save_messages([each for number, each in enumerate(messages) if number not in (7, 229)])
    commit(bench)
    assert walk(bench) == [(Fault.MISSING, 7), (Fault.MISSING, 229)]


@EVERYWHERE
def test_what_is_not_committed_is_on_its_way(bench: Workbench) -> None:
    write(bench, 3)
    counts = Counts()
    assert walk(bench, counts=counts) == []
    assert counts.pending == 3


@pytest.mark.parametrize(
    "change", [{"content": "other"}, {"sender_id": "user_bob"}, {"file_id": "file_1"}, {"conversation": "elsewhere"}]
)
def test_a_message_that_is_stored_otherwise_is_found(bench: Workbench, change: dict[str, Any]) -> None:
    [message], _ = write(bench, 1)
    bench.store.save_messages([replace(message, **change)])
    commit(bench)
    assert walk(bench) == [(Fault.DIFFERENT, 0)]


def test_a_retry_that_saw_other_members_is_no_fault(bench: Workbench) -> None:
    [message], _ = write(bench, 1)
    bench.append(topics.MESSAGES, [replace(message, audience=(ALICE, "user_new"))])
    bench.store.save_messages([message])
    commit(bench)
    assert walk(bench) == []


@EVERYWHERE
@pytest.mark.parametrize("value", [None, b"\x00not ours"], ids=["a message", "broken bytes"])
def test_a_dead_letter_is_no_fault(bench: Workbench, value: bytes | None) -> None:
    if value is None:
        _, [record] = write(bench, 1)
    else:
        [(source, offset)] = bench.log.append([NewRecord(topics.MESSAGES, "k", value)])
        [record] = bench.log.read(source, start=offset, limit=1)
    commit(bench)
    assert [fault for fault, _ in walk(bench)] == [Fault.UNREADABLE if value else Fault.MISSING]
    assert DeadLetters(bench.log, per_minute=9, clock=bench.clock).bury(Work(record), "ValueError")
    counts = Counts()
    assert walk(bench, counts=counts) == []
    assert counts.dead == 1


@EVERYWHERE
def test_a_status_that_was_not_applied_is_found(bench: Workbench) -> None:
    messages, _ = write(bench, 3)
    bench.append(topics.STATUS_UPDATES, [status(each, Status.READ) for each in messages])
    bench.store.save_messages(messages)
    bench.store.apply_statuses([status(messages[0], Status.READ), status(messages[1], Status.DELIVERED)])
    commit(bench)
    assert walk(bench) == [(Fault.NOT_APPLIED, 1), (Fault.NOT_APPLIED, 2)]


def test_a_status_that_came_too_late_to_count_is_no_fault(bench: Workbench) -> None:
    [message], _ = write(bench, 1)
    bench.store.save_messages([message])
    bench.store.apply_statuses([status(message, Status.READ)])
    bench.append(topics.STATUS_UPDATES, [status(message, Status.DELIVERED)])
    commit(bench)
    assert walk(bench) == []


def test_a_status_of_somebody_who_is_no_recipient_is_looked_up_in_the_history(bench: Workbench) -> None:
    """The sender's own second device acknowledges as well."""
    [message], _ = write(bench, 1)
    bench.store.save_messages([message])
    bench.append(topics.STATUS_UPDATES, [status(message, Status.DELIVERED, ALICE)])
    commit(bench)
    assert walk(bench) == [(Fault.NOT_APPLIED, 0)]
    bench.store.apply_statuses([status(message, Status.DELIVERED, ALICE)])
    assert walk(bench) == []


def test_a_status_whose_message_is_not_stored_waits(bench: Workbench) -> None:
    messages, _ = write(bench, 1)
    bench.append(topics.STATUS_UPDATES, [status(messages[0], Status.READ)])
    commit(bench)
    counts = Counts()
    assert walk(bench, counts=counts) == [(Fault.MISSING, 0)]
    assert counts.waiting == 1


def test_only_the_span_is_walked(bench: Workbench) -> None:
    for _ in range(4):
        write(bench, 2)
        bench.clock.advance(3600)
    commit(bench)
    now_ms = bench.clock.now_ms()
    counts = Counts()
    found = walk(bench, Span(now_ms - 3 * 3_600_000, now_ms - 3_600_000), counts=counts)
    assert [offset for _, offset in found] == [2, 3, 4, 5]
    assert counts.records == 4


@EVERYWHERE
def test_what_is_repaired_is_whole_after_the_bridge_did_the_work(bench: Workbench) -> None:
    messages, _ = write(bench, 3)
    bench.append(topics.STATUS_UPDATES, [status(each, Status.READ) for each in messages])
    bench.store.save_messages([*messages[:1], replace(messages[1], content="other")])
    commit(bench)
    places = Places(bench.log, bench.store, "bridge")
    left = []
    for name in reconcile.TOPICS:
        for page in reconcile.compare(TOPICS[name], EVER, places, Counts()):
            left += reconcile.repair(page, bench.log)
    assert [each.fault for each in left] == [Fault.DIFFERENT]
    work_off(bench)
    commit(bench)
    assert walk(bench) == [(Fault.DIFFERENT, 1)]
    assert [each.content for each in bench.store.history(messages[0].conversation_id, after=None, limit=9)][::-1] == [
        "text 0",
        "other",
        "text 2",
    ]


# --- what is sent on -----------------------------------------------------------------------------------------------


def to(message: Message, recipient: str = CARLA) -> Outbound:
    return Outbound(message=message, recipient=recipient, channel="whatsapp", routed_at_ms=1)


def deliver_all(bench: Workbench) -> None:
    records = bench.log.read(TopicPartition(OUTBOUND, 0), start=0, limit=10_000)
    outcomes = deliver(
        items(records),
        bench.delivery(),
        owner=f"worker-{uuid4()}",
        lease=FreeLease(),
        deadline_s=bench.clock.monotonic_s() + 60,
    )
    assert set(outcomes.values()) == {DONE}


@EVERYWHERE
def test_a_message_that_nobody_sends_is_found(bench: Workbench) -> None:
    """Each of these was taken in hand by somebody, except the last two: one was never, one was given back and lost."""
    pending, parked, dead, sent, refused, failed, read, never, given_back = (
        write(bench, 1, ALICE, CARLA)[0][0] for _ in range(9)
    )
    bench.store.save_messages([pending, parked, dead, sent, refused, failed, read, never, given_back])
    [record] = bench.append(OUTBOUND, [to(dead)])
    commit(bench)
    bench.append(OUTBOUND, [to(pending)])
    held = ParkedRecord(record.source, 7, b"of this or another message", 1, 1)
    bench.store.park(ParkScope(OUTBOUND, parked.conversation_id), [held], due_at_ms=1)
    assert DeadLetters(bench.log, per_minute=9, clock=bench.clock).bury(Work(record), "worker_lost")
    keys = [DeliveryKey(each.message_id, CARLA) for each in (sent, refused, given_back)]
    bench.store.claim_deliveries(keys, owner="w", now_ms=bench.clock.now_ms(), lease_ms=1)
    bench.store.settle_deliveries(
        [
            DeliveryOutcome(keys[0], external_id="wamid.1"),
            DeliveryOutcome(keys[1], failed_reason="undeliverable"),
            DeliveryOutcome(keys[2]),
        ],
        owner="w",
    )
    bench.store.apply_statuses([status(failed, Status.FAILED, CARLA), status(read, Status.READ, CARLA)])
    counts = Counts()
    found = differences(bench, counts=counts)
    assert [(each.fault, each.message_id) for each in found] == [
        (Fault.UNSENT, never.message_id),
        (Fault.UNSENT, given_back.message_id),
    ]
    assert counts.sending == 2


@EVERYWHERE
def test_what_nobody_sends_is_repaired_and_nobody_gets_it_twice(bench: Workbench) -> None:
    [message], _ = write(bench, 1, ALICE, CARLA, DIEGO, BOB)
    bench.store.save_messages([message])
    bench.append(OUTBOUND, [to(message, CARLA)])
    deliver_all(bench)
    commit(bench)
    found = differences(bench)
    assert [each.fault for each in found] == [Fault.UNSENT]
    assert reconcile.repair(found, bench.log) == []
    for _ in range(2):  # whatever is repeated
        work_off(bench)
        deliver_all(bench)
    commit(bench)
    assert walk(bench) == []
    assert [each.to for each in bench.platform.arrived] == [CARLA.partition(":")[2], DIEGO.partition(":")[2]]
    assert len(bench.sockets.of(BOB, "message")) == 1


def test_what_is_sent_while_it_is_looked_for_is_no_fault(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    [message], _ = write(bench, 1, ALICE, CARLA)
    bench.store.save_messages([message])
    commit(bench)
    key = DeliveryKey(message.message_id, CARLA)
    bench.store.claim_deliveries([key], owner="w", now_ms=bench.clock.now_ms(), lease_ms=1)
    parked_scopes = bench.store.parked_scopes

    def sent_meanwhile(scopes: Sequence[ParkScope]) -> Set[ParkScope]:
        bench.store.settle_deliveries([DeliveryOutcome(key, external_id="wamid.1")], owner="w")
        return parked_scopes(scopes)

    monkeypatch.setattr(bench.store, "parked_scopes", sent_meanwhile)
    assert walk(bench) == []


def test_a_channel_that_is_far_behind_is_not_judged(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsent, "PENDING_MOST", 2)
    [message], _ = write(bench, 1, ALICE, CARLA)
    bench.store.save_messages([message])
    commit(bench)
    bench.outbound(bench.conversation(), "a", "b")
    assert walk(bench) == [(Fault.UNSENT, 0)]
    bench.outbound(bench.conversation(), "c")
    counts = Counts()
    assert walk(bench, counts=counts) == []
    assert counts.sending == 1


def test_of_what_was_appended_again_a_day_later_no_claim_is_missed(bench: Workbench) -> None:
    """A repair, a fortnight after the send: the claim is gone, the record is not."""
    conversation = bench.conversation(ALICE, CARLA)
    message = bench.message(conversation, message_id=now_id(bench))
    bench.store.save_messages([message])
    bench.clock.advance(MAX_AGE_MS / 1000)
    bench.append(topics.MESSAGES, [message])
    commit(bench)
    assert walk(bench) == []


# --- what is stored ------------------------------------------------------------------------------------------------


@EVERYWHERE
def test_a_row_without_a_record_is_found(bench: Workbench) -> None:
    messages, _ = write(bench, 230)
    others = [replace(each, message_id=now_id(bench)) for each in messages[:150]]
    bench.store.save_messages([*messages, *others])
    commit(bench)
    counts = Counts()
    found = differences(bench, counts=counts)
    assert {(each.fault, each.record) for each in found} == {(Fault.UNEXPLAINED, None)}
    assert sorted(str(each.message_id) for each in found) == sorted(str(each.message_id) for each in others)
    assert counts.rows >= 150
    assert reconcile.repair(found, bench.log) == found


def test_a_row_whose_record_is_not_committed_is_no_fault(bench: Workbench) -> None:
    [message], _ = write(bench, 1)
    commit(bench)
    on_its_way = replace(message, message_id=now_id(bench))
    bench.append(topics.MESSAGES, [on_its_way])
    bench.store.save_messages([message, on_its_way])
    counts = Counts()
    assert walk(bench, counts=counts) == []
    assert (counts.pending, counts.rows) == (1, 2)


def test_what_nobody_can_read_hides_nothing_that_is_on_its_way(bench: Workbench) -> None:
    [stored, sending], _ = write(bench, 2, ALICE, CARLA)
    bench.append(OUTBOUND, [to(stored)])
    commit(bench)
    on_its_way = replace(stored, message_id=now_id(bench))
    for topic in (topics.MESSAGES, OUTBOUND):
        bench.log.append([NewRecord(topic, str(stored.conversation_id), b"\xff no record at all")])
    bench.append(topics.MESSAGES, [on_its_way])
    bench.append(OUTBOUND, [to(sending)])
    bench.store.save_messages([stored, sending, on_its_way])
    found = differences(bench)
    assert [(each.fault, each.message_id) for each in found] == [(Fault.UNSENT, stored.message_id)]


def test_a_row_whose_record_came_long_after_its_id_is_no_fault(bench: Workbench) -> None:
    """A request that was given up is sent again under its Idempotency-Key: the id is the first one."""
    [message], _ = write(bench, 1)
    late = replace(message, message_id=now_id(bench))
    bench.clock.advance(3600 * 10)
    bench.append(topics.MESSAGES, [late])
    bench.store.save_messages([message, late])
    commit(bench)
    counts = Counts()
    assert walk(bench, Span(0, bench.clock.now_ms() - 3_600_000), counts=counts) == []
    assert (counts.records, counts.rows) == (1, 2)


def test_a_row_whose_record_the_log_has_not_kept_is_no_fault(bench: Workbench) -> None:
    [old], _ = write(bench, 1)
    bench.clock.advance(86_400 * 8)
    fresh = replace(old, message_id=now_id(bench))
    bench.append(topics.MESSAGES, [fresh])
    bench.store.save_messages([old, fresh])
    bench.log.trim(bench.clock.now_ms())
    commit(bench)
    counts = Counts()
    assert walk(bench, counts=counts) == []
    assert (counts.records, counts.rows) == (1, 0)


def test_a_row_whose_record_goes_while_it_is_looked_for_is_no_fault(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = bench.conversation(ALICE, BOB)
    ahead = bench.message(conversation, message_id=now_id(bench, in_days=8))
    bench.append(topics.MESSAGES, [ahead])
    bench.clock.advance(86_400 * 8)
    message = bench.message(conversation, message_id=now_id(bench))
    bench.append(topics.MESSAGES, [message])
    bench.store.save_messages([ahead, message])
    commit(bench)
    history = bench.store.history

    def trimmed_meanwhile(*which: Any, **bounds: Any) -> list[Message]:
        bench.log.trim(bench.clock.now_ms())
        return history(*which, **bounds)

    monkeypatch.setattr(bench.store, "history", trimmed_meanwhile)
    counts = Counts()
    assert walk(bench, Span(bench.clock.now_ms(), 1 << 53), counts=counts) == []
    assert (counts.records, counts.rows) == (1, 2)


def test_a_row_whose_record_lies_on_another_partition_is_no_fault(bench: Workbench) -> None:
    """Partitions were added meanwhile, and keys have moved."""
    wide = Workbench(bench.store, bench.clock, partitions=2)
    conversation = bench.conversation(ALICE, BOB)
    messages = [bench.message(conversation, message_id=now_id(bench)) for _ in range(2)]
    records = [NewRecord(topics.MESSAGES, key, codec.encode(each)) for key, each in zip("ad", messages, strict=True)]
    assert {source.partition for source, _ in wide.log.append(records)} == {0, 1}
    bench.store.save_messages(messages)
    [topic] = (each for each in topics.all_topics(CHANNELS, 2) if each.name == topics.MESSAGES)
    pages = reconcile.compare(topic, EVER, Places(wide.log, bench.store, "bridge"), Counts())
    assert [each for page in pages for each in page] == []


def test_rows_are_compared_in_windows_that_are_bounded(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of two conversations, and one row in each of three windows that has none."""
    monkeypatch.setattr(unexplained, "WINDOW", reconcile.PAGE)
    first, second = bench.conversation(ALICE, BOB), bench.conversation(ALICE, BOB)
    messages, strangers = [], []
    for number in range(250):
        bench.clock.advance(1)
        messages.append(bench.message(first if number % 2 else second, message_id=now_id(bench)))
        bench.append(topics.MESSAGES, messages[-1:])
        if number in (50, 150, 249):
            strangers.append(replace(messages[-1], message_id=now_id(bench)))
    bench.store.save_messages([*messages, *strangers])
    commit(bench)
    counts = Counts()
    found = differences(bench, counts=counts)
    assert [each.message_id for each in found] == [each.message_id for each in strangers]
    assert (counts.records, counts.rows) == (250, 253)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr(wiring, "event_log", lambda: bench.log)
    monkeypatch.setattr(wiring, "message_store", lambda: bench.store)
    monkeypatch.setattr(wiring, "all_topics", lambda: tuple(TOPICS.values()))
    monkeypatch.setattr(verify_log, "SYSTEM_CLOCK", bench.clock)

    def call(*arguments: str) -> str:
        out = io.StringIO()
        try:
            call_command("verify_log", "--since", "2001-01-01", *arguments, stdout=out)
        except CommandError as error:
            return f"{out.getvalue()}exit {error.returncode}: {error}"
        return out.getvalue()

    return call


def test_the_command_tells_that_all_is_well(bench: Workbench, command: Callable[..., str]) -> None:
    write(bench, 2)
    work_off(bench)
    commit(bench)
    bench.clock.advance(61)
    assert command() == (
        "2 records and 2 rows compared: nothing differs "
        "(0 on their way, 0 being sent, 0 dead letters, 0 statuses wait for their message)\n"
    )


def test_the_command_names_what_differs_without_its_text(bench: Workbench, command: Callable[..., str]) -> None:
    [message], _ = write(bench, 1)
    commit(bench)
    bench.clock.advance(61)
    told = command()
    assert told.splitlines()[0] == f"messages/0@0\tmessage {message.message_id}\tnot stored"
    assert told.endswith("exit 1: 1 differences")
    assert message.content not in told


def test_the_command_names_what_has_no_record(bench: Workbench, command: Callable[..., str]) -> None:
    [message], _ = write(bench, 1)
    stranger = replace(message, message_id=now_id(bench))
    bench.store.save_messages([message, stranger])
    commit(bench)
    bench.clock.advance(61)
    told = command("--repair")
    assert told.splitlines()[0] == f"-\tmessage {stranger.message_id}\tstored, and no record tells of it"
    assert told.endswith("exit 1: 1 differences")


def test_the_command_leaves_out_what_is_young(bench: Workbench, command: Callable[..., str]) -> None:
    write(bench, 1)
    commit(bench)
    bench.clock.advance(59)
    assert "0 records and 0 rows compared: nothing differs" in command()
    assert "1 records and 0 rows compared: 1 not stored" in command("--grace", "10")


@EVERYWHERE
def test_the_command_repairs(bench: Workbench, command: Callable[..., str]) -> None:
    write(bench, 2)
    commit(bench)
    bench.clock.advance(61)
    assert "exit" not in command("--repair")
    work_off(bench)
    commit(bench)
    bench.clock.advance(61)
    told = command()
    assert told.startswith("4 records and ")
    assert "compared: nothing differs" in told


@EVERYWHERE
def test_the_command_stops_at_its_limit(bench: Workbench, command: Callable[..., str]) -> None:
    write(bench, 300)
    commit(bench)
    bench.clock.advance(61)
    told = command("--limit", "50", "--topic", "messages")
    assert "100 records and 0 rows compared: 100 not stored" in told
    assert told.endswith("exit 1: stopped after 100 differences: --limit")


@EVERYWHERE
def test_what_is_repaired_up_to_the_limit_is_not_all(bench: Workbench, command: Callable[..., str]) -> None:
    write(bench, 300)
    commit(bench)
    bench.clock.advance(61)
    told = command("--repair", "--limit", "50", "--topic", "messages")
    assert told.endswith("exit 1: stopped after 100 differences: --limit")


def test_a_part_that_is_away_is_exit_2(bench: Workbench, command: Callable[..., str]) -> None:
    bench.log.set_available(False)
    assert "exit 2: The event log (in memory) is away" in command()


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_a_limit_is_a_positive_number(command: Callable[..., str], text: str) -> None:
    assert "at least 1" in command("--limit", text)


def test_a_time_is_a_date_or_an_age(monkeypatch: pytest.MonkeyPatch) -> None:
    from messaging.management import arguments

    clock = ManualClock(10_000_000)
    monkeypatch.setattr(arguments, "SYSTEM_CLOCK", clock)
    assert [arguments.moment_ms(each) for each in ("90s", "2h", "1970-01-01T00:01", "1970-01-01T01:00+01:00")] == [
        9_910_000,
        2_800_000,
        60_000,
        0,
    ]
