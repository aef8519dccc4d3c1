"""Statuses: forward only, told once, and told even when the worker died before it could."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import pytest

from core.errors import Unavailable
from messaging import topics
from messaging.domain import Message, Status, StatusChange
from messaging.errors import LeaseLost
from messaging.ports import NewRecord, Record
from messaging.services.recent import RecentMessages
from messaging.services.statuses import apply_statuses
from messaging.work import DONE, Outcome
from tests.contracts.message_stores import ALICE, BOB, CARLA
from tests.messaging.workbench import FreeLease, Fuse, Killed, Workbench, every_step, items


def run(
    bench: Workbench,
    records: list[Record],
    fuse: Fuse | None = None,
    checks: int | None = None,
    recent: RecentMessages | None = None,
) -> list[Outcome | None]:
    fuse = fuse or Fuse(0)
    outcomes = apply_statuses(
        items(records),
        store=fuse.through(bench.store),
        notify=fuse.around(bench.sockets, "notify"),
        lease=FreeLease(checks),
        recent=recent or RecentMessages(),
    )
    return [outcomes.get(record.offset) for record in records]


def news(bench: Workbench, message: Message, *statuses: Status, recipient: str = CARLA) -> list[Record]:
    changes = [
        StatusChange(
            message_id=message.message_id,
            conversation_id=message.conversation_id,
            recipient=recipient,
            status=status,
            at_ms=bench.clock.now_ms() + number,
            reason="platform:1" if status is Status.FAILED else None,
        )
        for number, status in enumerate(statuses)
    ]
    return bench.append(topics.STATUS_UPDATES, changes)


def stored(bench: Workbench, *members: str) -> Message:
    message = bench.message(bench.conversation(*members))
    bench.store.save_messages([message])
    return message


def status(bench: Workbench, message: Message) -> list[Status]:
    return [each.status for each in bench.store.statuses([message])[message.message_id]]


def told(bench: Workbench, user: str = ALICE) -> list[str]:
    return [str(each["status"]) for each in bench.sockets.of(user, "status")]


def test_a_status_moves_forward_and_the_sender_sees_it(bench: Workbench) -> None:
    message = stored(bench)
    assert run(bench, news(bench, message, Status.DELIVERED, Status.READ)) == [DONE, DONE]
    assert status(bench, message) == [Status.READ]
    assert told(bench) == ["DELIVERED", "READ"]
    frame = bench.sockets.of(ALICE, "status")[-1]
    assert (frame["recipient_id"], frame["overall"], frame["message_id"]) == (CARLA, "READ", str(message.message_id))


def test_a_status_never_goes_back(bench: Workbench) -> None:
    message = stored(bench)
    run(bench, news(bench, message, Status.READ))
    run(bench, news(bench, message, Status.DELIVERED, Status.SENT, Status.FAILED))
    assert status(bench, message) == [Status.READ]
    assert told(bench) == ["READ"]
    history = [each.change.status for each in bench.store.transitions(message)]
    assert sorted(history) == sorted([Status.SENT, Status.READ, Status.DELIVERED, Status.FAILED])


def test_late_evidence_overrides_a_failure(bench: Workbench) -> None:
    message = stored(bench)
    run(bench, news(bench, message, Status.FAILED))
    [frame] = bench.sockets.of(ALICE, "status")
    assert frame["reason"] == "platform:1"
    run(bench, news(bench, message, Status.DELIVERED))
    assert status(bench, message) == [Status.DELIVERED]
    assert told(bench) == ["FAILED", "DELIVERED"]


def test_the_whole_message_shows_the_lowest_of_its_recipients(bench: Workbench) -> None:
    message = stored(bench, ALICE, BOB, CARLA)
    run(bench, news(bench, message, Status.READ))
    assert bench.sockets.of(ALICE, "status")[-1]["overall"] == "SENT"
    run(bench, news(bench, message, Status.DELIVERED, recipient=BOB))
    assert bench.sockets.of(ALICE, "status")[-1]["overall"] == "DELIVERED"


@pytest.mark.parametrize("members", [(ALICE, CARLA), (ALICE, BOB, CARLA)])
def test_a_process_that_stored_a_message_tells_of_its_receipts_without_reading_it_again(
    bench: Workbench, members: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    message, recent = stored(bench, *members), RecentMessages()
    recent.remember([message])
    monkeypatch.delattr(type(bench.store), "messages")
    run(bench, news(bench, message, Status.READ), recent=recent)
    [frame] = bench.sockets.of(ALICE, "status")
    assert (frame["status"], frame["overall"]) == ("READ", "READ" if len(members) == 2 else "SENT")


def test_receipts_of_what_a_neighbour_stored_a_moment_ago_are_told_without_reading_it(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, asked = stored(bench), list[Any]()

    def hinted(message_ids: Collection[UUID]) -> list[Message]:
        asked.extend(message_ids)
        return [message]

    recent = RecentMessages(hinted)
    monkeypatch.delattr(type(bench.store), "messages")
    for status in (Status.DELIVERED, Status.READ):
        run(bench, news(bench, message, status), recent=recent)
    assert told(bench, ALICE) == ["DELIVERED", "READ"]
    assert asked == [message.message_id], "what it was told once it remembers"


def test_of_what_is_not_stored_yet_a_group_is_told_nothing(bench: Workbench) -> None:
    """Where it stands for the others, nobody knows before."""
    conversation = bench.conversation(ALICE, BOB, CARLA)
    message = bench.message(conversation)
    recent = RecentMessages(lambda _: [message])
    run(bench, news(bench, message, Status.READ, recipient=BOB), recent=recent)
    assert bench.sockets.of(ALICE, "status") == []


def test_what_a_process_remembers_of_messages_is_bounded(bench: Workbench) -> None:
    many = stored(bench, ALICE, *(f"user_{number}" for number in range(20)))
    recent = RecentMessages()
    recent.remember([many])
    assert recent.get([many.message_id], bench.store) == {many.message_id: many}
    few = stored(bench)
    recent.remember([few])
    assert recent.get([few.message_id], bench.store)[few.message_id].content == "", "its text is not kept"


def test_the_reader_s_other_devices_see_it_too_and_nobody_else(bench: Workbench) -> None:
    message = stored(bench, ALICE, BOB, CARLA)
    run(bench, news(bench, message, Status.READ, recipient=BOB))
    assert told(bench, BOB) == ["READ"]
    run(bench, news(bench, message, Status.READ, recipient=CARLA))
    assert told(bench, BOB) == ["READ"]
    assert {push.user_id for push in bench.sockets.pushes} == {ALICE, BOB}


def test_a_status_before_its_message_is_kept_and_makes_no_message(bench: Workbench) -> None:
    message = bench.message(bench.conversation())
    assert run(bench, news(bench, message, Status.DELIVERED)) == [DONE]
    assert bench.sockets.pushes == []
    assert bench.store.message(message.message_id) is None
    bench.store.save_messages([message])
    assert status(bench, message) == [Status.DELIVERED]


@pytest.mark.parametrize("error", [Killed, Unavailable, LeaseLost])
def test_whatever_step_it_ends_at_a_repeat_still_tells(bench: Workbench, error: type[BaseException]) -> None:
    def once(fuse: Fuse) -> None:
        message = stored(bench)
        records = news(bench, message, Status.DELIVERED, Status.READ)
        before = len(told(bench))
        try:
            run(bench, records, fuse)
        except error:
            run(bench, records)
        assert status(bench, message) == [Status.READ]
        assert len(bench.store.transitions(message)) == 3
        assert told(bench)[before:][-1] == "READ"
        assert len(set(told(bench)[before:])) == len(told(bench)[before:])

    assert every_step(once, error) >= 6


@pytest.mark.parametrize("checks", [0, 1])
def test_who_lost_the_lease_has_no_further_effect(bench: Workbench, checks: int) -> None:
    message = stored(bench)
    with pytest.raises(LeaseLost):
        run(bench, news(bench, message, Status.READ), checks=checks)
    assert status(bench, message) == [Status.READ if checks else Status.SENT]
    assert bench.sockets.pushes == []


def test_a_batch_of_nothing_but_poison_is_named(bench: Workbench) -> None:
    [(source, offset)] = bench.log.append([NewRecord(topics.STATUS_UPDATES, "k", b"{}")])
    [outcome] = run(bench, bench.log.read(source, start=offset, limit=1))
    assert outcome is not None
    assert outcome.reason == "undecodable"
