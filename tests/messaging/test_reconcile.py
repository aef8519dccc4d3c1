"""The log and the store side by side: what differs is found, told and repaired, and nothing else is."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from core.clock import ManualClock
from messaging import topics, wiring
from messaging.bridge import DeadLetters
from messaging.domain import Message, Status, StatusChange
from messaging.eventlog.memory import MemoryLog
from messaging.management.commands import verify_log
from messaging.ports import NewRecord, Record, TopicPartition
from messaging.services import persist, reconcile, statuses
from messaging.services.recent import RecentMessages
from messaging.services.reconcile import Counts, Fault, Places, Span
from messaging.work import Work
from tests.contracts.message_stores import ALICE, CARLA
from tests.messaging.workbench import CHANNELS, EVERYWHERE, FreeLease, Workbench, items

TOPICS = {each.name: each for each in topics.all_topics(CHANNELS, 1)}
EVER = Span(0, 1 << 53)


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
    ends = {TopicPartition(name, 0): end(bench, name) for name in reconcile.TOPICS}
    listener = _Listener()
    subscription = bench.log.subscribe(reconcile.TOPICS, group="bridge", member="b", listener=listener)
    deadline_s = time.monotonic() + 60
    in_memory = isinstance(bench.log, MemoryLog)  # it gives at once what it gives
    while subscription.poll(0.0) or not (in_memory or listener.owned >= ends.keys()):
        assert time.monotonic() < deadline_s, "the group gave us nothing"
    subscription.commit(ends)
    subscription.close()


def end(bench: Workbench, topic: str) -> int:
    return bench.log.end_offset(TopicPartition(topic, 0))


def walk(bench: Workbench, span: Span = EVER, *, counts: Counts | None = None) -> list[tuple[Fault, int]]:
    """What differs, by place on the log."""
    places = Places(bench.log, bench.store, "bridge")
    pages = [
        page for name in reconcile.TOPICS for page in reconcile.compare(TOPICS[name], span, places, counts or Counts())
    ]
    return [(each.fault, each.record.offset) for page in pages for each in page]


def write(bench: Workbench, count: int) -> tuple[list[Message], list[Record]]:
    """On the log only."""
    conversation = bench.conversation()
    messages = [bench.message(conversation, f"text {number}") for number in range(count)]
    return messages, bench.append(topics.MESSAGES, messages)


def status(message: Message, status: Status, recipient: str = CARLA) -> StatusChange:
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
    messages, _ = write(bench, 250)
    bench.append(topics.STATUS_UPDATES, [status(each, Status.READ) for each in messages])
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
        "2 records compared: nothing differs (0 on their way, 0 dead letters, 0 statuses wait for their message)\n"
    )


def test_the_command_names_what_differs_without_its_text(bench: Workbench, command: Callable[..., str]) -> None:
    [message], _ = write(bench, 1)
    commit(bench)
    bench.clock.advance(61)
    told = command()
    assert told.splitlines()[0] == f"messages/0@0\tmessage {message.message_id}\tnot stored"
    assert told.endswith("exit 1: 1 differences")
    assert message.content not in told


def test_the_command_leaves_out_what_is_young(bench: Workbench, command: Callable[..., str]) -> None:
    write(bench, 1)
    commit(bench)
    bench.clock.advance(59)
    assert "0 records compared: nothing differs" in command()
    assert "1 records compared: 1 not stored" in command("--grace", "10")


@EVERYWHERE
def test_the_command_repairs(bench: Workbench, command: Callable[..., str]) -> None:
    write(bench, 2)
    commit(bench)
    bench.clock.advance(61)
    assert "exit" not in command("--repair")
    work_off(bench)
    commit(bench)
    bench.clock.advance(61)
    assert "4 records compared: nothing differs" in command()


@EVERYWHERE
def test_the_command_stops_at_its_limit(bench: Workbench, command: Callable[..., str]) -> None:
    write(bench, 300)
    commit(bench)
    bench.clock.advance(61)
    told = command("--limit", "50", "--topic", "messages")
    assert "100 records compared: 100 not stored" in told
    assert "stopped after 100 differences: --limit" in told


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
