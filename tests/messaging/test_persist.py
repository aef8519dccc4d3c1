"""Storing: stored, pushed, handed on, in this order, and the same again from wherever it was cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from core.clock import ManualClock, iso_utc
from core.errors import Unavailable
from messaging import codec, topics
from messaging.domain import Message, Outbound, Status, StatusChange
from messaging.errors import LeaseLost, LogUnavailable
from messaging.eventlog.memory import MemoryLog
from messaging.ports import NewRecord, Record, TopicPartition
from messaging.services.batches import AWAY
from messaging.services.persist import LATE_MS, persist
from messaging.services.recent import RecentMessages
from messaging.work import DONE, Outcome, Verdict
from tests.contracts.message_stores import ALICE, BOB, CARLA
from tests.messaging.workbench import FreeLease, Fuse, Killed, Workbench, every_step, items

IRIS = "instagram:17841400000000000"


def run(
    bench: Workbench,
    records: list[Record],
    fuse: Fuse | None = None,
    lease: FreeLease | None = None,
    within_s: float = math.inf,
) -> list[Outcome | None]:
    fuse = fuse or Fuse(0)
    outcomes = persist(
        items(records),
        store=fuse.through(bench.store),
        log=fuse.through(bench.log),
        notify=fuse.around(bench.sockets, "notify"),
        lease=lease or FreeLease(),
        recent=RecentMessages(),
        clock=bench.clock,
        deadline_s=bench.clock.monotonic_s() + within_s,
    )
    return [outcomes.get(record.offset) for record in records]


def test_a_message_is_stored_shown_and_routed_to_each_channel(bench: Workbench) -> None:
    conversation = bench.conversation(ALICE, BOB, CARLA, IRIS)
    message = bench.message(conversation, "Olá")
    assert run(bench, bench.append(topics.MESSAGES, [message])) == [DONE]
    assert bench.store.message(message.message_id) == message
    for user in (ALICE, BOB):
        [frame] = bench.sockets.of(user, "message")
        assert (frame["message"]["content"], frame["message"]["status"]) == ("Olá", "SENT")
    for channel, recipient in (("whatsapp", CARLA), ("instagram", IRIS)):
        [outbound] = bench.on_log(topics.outbound(channel), Outbound)
        assert (outbound.message, outbound.recipient) == (message, recipient)


def test_messages_of_a_conversation_are_shown_and_routed_in_order(bench: Workbench) -> None:
    conversation = bench.conversation()
    messages = [bench.message(conversation, f"{number}") for number in range(20)]
    run(bench, bench.append(topics.MESSAGES, messages))
    expected = [each.content for each in messages]
    assert [each["message"]["content"] for each in bench.sockets.of(ALICE, "message")] == expected
    assert [each.message.content for each in bench.on_log(topics.outbound("whatsapp"), Outbound)] == expected


def test_a_message_between_users_goes_to_no_channel(bench: Workbench) -> None:
    message = bench.message(bench.conversation(ALICE, BOB))
    run(bench, bench.append(topics.MESSAGES, [message]))
    assert bench.on_log(topics.outbound("whatsapp"), Outbound) == []


@pytest.mark.parametrize(("late_ms", "shown"), [(0, 1), (LATE_MS + 1, 0)])
def test_who_left_is_not_shown_what_was_held_up_meanwhile(bench: Workbench, late_ms: int, shown: int) -> None:
    conversation = bench.conversation(ALICE, BOB)
    message = bench.message(conversation)
    bench.store.remove_member(conversation.conversation_id, BOB)
    bench.clock.advance(late_ms / 1000)
    assert run(bench, bench.append(topics.MESSAGES, [message])) == [DONE]
    assert [len(bench.sockets.of(user, "message")) for user in (ALICE, BOB)] == [1, shown]


def test_what_is_read_anew_into_an_empty_store_is_shown_to_whom_it_was_for(bench: Workbench) -> None:
    """Then the log has messages of conversations that the store lost."""
    unknown = replace(bench.conversation(ALICE, BOB), conversation_id=uuid4())
    message = bench.message(unknown)
    bench.clock.advance(LATE_MS / 1000 + 1)
    assert run(bench, bench.append(topics.MESSAGES, [message])) == [DONE]
    assert [len(bench.sockets.of(user, "message")) for user in (ALICE, BOB)] == [1, 1]


def read_by(recipient: str, message: Message, bench: Workbench) -> StatusChange:
    return StatusChange(
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        recipient=recipient,
        status=Status.READ,
        at_ms=bench.clock.now_ms(),
    )


def test_a_frame_shows_a_status_that_came_before_its_message(bench: Workbench) -> None:
    message = bench.message(bench.conversation(ALICE, BOB))
    bench.store.apply_statuses([read_by(BOB, message, bench)])
    run(bench, bench.append(topics.MESSAGES, [message]))
    [frame] = bench.sockets.of(ALICE, "message")
    assert frame["message"]["status"] == "READ"


def test_where_new_messages_stand_need_not_be_looked_up(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    message = bench.message(bench.conversation(ALICE, BOB, CARLA, IRIS))
    records = bench.append(topics.MESSAGES, [message])
    with monkeypatch.context() as patched:
        patched.delattr(type(bench.store), "statuses")
        run(bench, records)
    [frame] = bench.sockets.of(ALICE, "message")
    stored = bench.store.statuses([message])[message.message_id]
    assert frame["message"]["statuses"] == [
        {"recipient_id": each.recipient, "status": "SENT", "at": iso_utc(each.at_ms), "reason": None} for each in stored
    ]


def test_a_repeat_shows_what_came_meanwhile(bench: Workbench) -> None:
    message = bench.message(bench.conversation())
    records = bench.append(topics.MESSAGES, [message])
    bench.store.save_messages([message])  # by a worker that died then
    bench.store.apply_statuses([read_by(CARLA, message, bench)])
    run(bench, records)
    [frame] = bench.sockets.of(ALICE, "message")
    assert frame["message"]["status"] == "READ"


@pytest.mark.parametrize("error", [Killed, Unavailable, LeaseLost])
def test_whatever_step_it_ends_at_a_repeat_ends_the_same(bench: Workbench, error: type[BaseException]) -> None:
    def once(fuse: Fuse) -> None:
        conversation = bench.conversation(ALICE, BOB, CARLA)
        messages = [bench.message(conversation, text) for text in ("one", "two")]
        records = bench.append(topics.MESSAGES, messages)
        try:
            run(bench, records, fuse)
        except error:
            assert run(bench, records) == [DONE, DONE]
        assert bench.store.history(conversation.conversation_id, limit=10) == messages[::-1]
        for message in messages:
            transitions = bench.store.transitions(message)
            assert [(each.recipient, each.change.status) for each in transitions] == [
                (BOB, Status.SENT),
                (CARLA, Status.SENT),
            ]
        ids = {str(each.message_id): each.content for each in messages}
        for user in (ALICE, BOB):
            frames = [each["message"]["message_id"] for each in bench.sockets.of(user, "message")]
            assert [ids[each] for each in frames if each in ids] == ["one", "two"]
        routed = [each.message for each in bench.on_log(topics.outbound("whatsapp"), Outbound)]
        assert list(dict.fromkeys(each for each in routed if each in messages)) == messages

    assert every_step(once, error) == 6


@pytest.mark.parametrize("checks", [0, 1, 2])
def test_who_lost_the_lease_has_no_further_effect(bench: Workbench, checks: int) -> None:
    message = bench.message(bench.conversation())
    records = bench.append(topics.MESSAGES, [message])
    with pytest.raises(LeaseLost):
        run(bench, records, lease=FreeLease(checks))
    assert (bench.store.message(message.message_id) is not None) == (checks > 0)
    assert bool(bench.sockets.pushes) == (checks > 1)
    assert bench.on_log(topics.outbound("whatsapp"), Outbound) == []


@pytest.mark.parametrize("asked", ["save_messages", "members"])
def test_who_loses_the_lease_while_the_store_answers_shows_nobody(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    records = bench.append(topics.MESSAGES, [bench.message(bench.conversation(ALICE, BOB))])
    bench.clock.advance(LATE_MS / 1000 + 1)
    lease, answer = FreeLease(), getattr(bench.store, asked)

    def slowly(*arguments: Any) -> Any:
        lease.lose()
        return answer(*arguments)

    monkeypatch.setattr(bench.store, asked, slowly)
    with pytest.raises(LeaseLost):
        run(bench, records, lease=lease)
    assert bench.sockets.pushes == []


GROUP = [f"whatsapp:+55119{number:08}" for number in range(100)]


class TakesSome(MemoryLog):
    """Each try so many records; what goes beyond is not acknowledged in time, though a part of it is there."""

    left = 0

    def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:
        taken = records[: self.left]
        self.left -= len(taken)
        places = super().append(taken, onward=onward)
        if len(taken) < len(records):
            raise LogUnavailable("did not acknowledge in time")
        return places


class TakesTime(MemoryLog):
    """Three seconds for each append."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.clock = clock

    def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:
        self.clock.advance(3)
        return super().append(records, onward=onward)


def to_groups(bench: Workbench, log: MemoryLog, *, count: int, chars: int) -> tuple[list[Message], list[Record]]:
    """Messages in turn to two groups of a hundred people, each some ``chars`` a hundred times on the way to them."""
    log.ensure_topics(topics.all_topics(("whatsapp",), 1))
    groups = [bench.conversation(ALICE, *GROUP) for _ in range(2)]
    messages = [bench.message(groups[number % 2], f"{number} {'x' * chars}") for number in range(count)]
    return messages, bench.append(topics.MESSAGES, messages)


def routed(log: MemoryLog, recipient: str) -> list[UUID]:
    """What goes to somebody, each once."""
    records = log.read(TopicPartition(topics.outbound("whatsapp"), 0), start=0, limit=10_000)
    found = [codec.decode(Outbound, each.value) for each in records]
    return list(dict.fromkeys(each.message.message_id for each in found if each.recipient == recipient))


def test_what_is_too_much_for_the_log_at_once_gets_on_from_try_to_try(bench: Workbench) -> None:
    log = TakesSome(clock=bench.clock)
    messages, left = to_groups(bench, log, count=12, chars=8_000)
    bench.log, tries = log, 0
    while left:
        assert (tries := tries + 1) < 6
        log.left = 500
        outcomes = run(bench, left)
        done = outcomes.count(DONE)
        assert done
        assert outcomes == [DONE] * done + [AWAY] * (len(left) - done)
        left = left[done:]
    assert tries > 2
    for recipient in (GROUP[0], GROUP[-1]):
        assert routed(log, recipient) == [each.message_id for each in messages]
    log.left = 0
    with pytest.raises(LogUnavailable):
        run(bench, to_groups(bench, MemoryLog(), count=1, chars=1)[1])


def test_who_loses_the_lease_between_two_portions_appends_no_more(bench: Workbench) -> None:
    log = MemoryLog(clock=bench.clock)
    messages, records = to_groups(bench, log, count=12, chars=8_000)
    bench.log = log
    with pytest.raises(LeaseLost):
        run(bench, records, lease=FreeLease(3))
    assert 0 < len(routed(log, GROUP[0])) < len(messages)


def test_a_slow_log_leaves_the_rest_to_the_next_batch_and_finishes_one_message_at_least(bench: Workbench) -> None:
    log = TakesTime(bench.clock)
    messages, records = to_groups(bench, log, count=3, chars=60_000)
    bench.log = log
    assert run(bench, records, within_s=1) == [DONE, None, None]
    assert run(bench, records[1:], within_s=1) == [DONE, None]
    assert run(bench, records[2:], within_s=1) == [DONE]
    assert routed(log, GROUP[-1]) == [each.message_id for each in messages]


def test_a_poisonous_record_is_named_and_its_neighbours_are_stored(bench: Workbench) -> None:
    conversation = bench.conversation()
    [first] = bench.append(topics.MESSAGES, [bench.message(conversation, "one")])
    [(source, offset)] = bench.log.append([NewRecord(topics.MESSAGES, first.key, b'{"v":99,"kind":"message"}')])
    [last] = bench.append(topics.MESSAGES, [bench.message(conversation, "two")])
    [broken] = bench.log.read(source, start=offset, limit=1)
    assert run(bench, [first, broken, last]) == [DONE, Outcome(Verdict.POISON, reason="undecodable"), DONE]
    assert [each.content for each in bench.store.history(conversation.conversation_id, limit=9)] == ["two", "one"]
    assert run(bench, [broken]) == [Outcome(Verdict.POISON, reason="undecodable")]


@pytest.mark.parametrize("batches", [1, 2], ids=["in one batch", "after it was stored"])
def test_a_repeat_goes_to_nobody_who_joined_meanwhile(bench: Workbench, batches: int) -> None:
    """A request whose answer was lost is sent again under its Idempotency-Key when Carla is a member, too."""
    first = bench.message(bench.conversation(ALICE, BOB))
    again = replace(first, recipients=(BOB, CARLA))
    for some in ([first, again],) if batches == 1 else ([first], [again]):
        assert set(run(bench, bench.append(topics.MESSAGES, some))) == {DONE}
    assert bench.on_log(topics.outbound("whatsapp"), Outbound) == []
    assert bench.store.message(first.message_id) == first


def test_a_message_saved_under_an_id_that_exists_stays_as_it_was(bench: Workbench) -> None:
    conversation = bench.conversation()
    message: Message = bench.message(conversation, "first")
    run(bench, bench.append(topics.MESSAGES, [message]))
    run(bench, bench.append(topics.MESSAGES, [bench.message(conversation, "other", message_id=message.message_id)]))
    stored = bench.store.message(message.message_id)
    assert stored is not None
    assert stored.content == "first"
