"""What every MessageStore promises, in the order of `ports.MessageStore`."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from django.db import connections
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import DjangoDbBlocker

from core.ids import uuid7
from messaging.domain import Contact, ExternalRef, Message, RecipientStatus, Status, StatusChange, rank
from messaging.ports import (
    DeliveryKey,
    DeliveryOutcome,
    DeliveryState,
    KeyClaim,
    KeyState,
    ListCursor,
    MessageStore,
    ParkedRecord,
    ParkScope,
    TopicPartition,
)
from tests.contracts.message_stores import (
    ALICE,
    BOB,
    CARLA,
    MALLORY,
    NOON_MS,
    ON_SERVERS,
    STORES,
    a_conversation,
    a_message,
)

T = TypeVar("T")
DAY_MS = 24 * 3600 * 1000


@pytest.fixture(
    params=[
        pytest.param(opened, id=name, marks=[pytest.mark.cluster] if name in ON_SERVERS else [])
        for name, opened in STORES.items()
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[MessageStore]:
    with django_db_blocker.unblock(), request.param(tmp_path) as opened:
        yield opened


def at_once(*calls: Callable[[], T]) -> list[T]:
    """The answers of calls that start together, each on a thread of its own, whose database connections end with it."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        start.wait(10)
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class TestConversations:
    def test_a_conversation_is_read_as_it_was_created(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, CARLA, BOB)
        assert store.create_conversation(conversation) == (conversation, True)
        assert store.conversation(conversation.conversation_id) == conversation

    def test_the_first_creation_wins_whatever_the_second_says(self, store: MessageStore) -> None:
        first = a_conversation(ALICE, BOB)
        store.create_conversation(first)
        second = replace(first, title="Mine now", members=(MALLORY,), created_by=MALLORY)
        assert store.create_conversation(second) == (first, False)
        assert store.conversation(first.conversation_id) == first

    def test_of_two_creations_at_once_one_is_new_and_both_answer_the_same(self, store: MessageStore) -> None:
        for _ in range(10):
            one = a_conversation(ALICE, BOB)
            other = replace(one, members=(BOB, MALLORY), title="Other")
            answers = at_once(partial(store.create_conversation, one), partial(store.create_conversation, other))
            assert sorted(is_new for _, is_new in answers) == [False, True]
            assert answers[0][0] == answers[1][0] == store.conversation(one.conversation_id)

    def test_an_unknown_conversation_is_none(self, store: MessageStore) -> None:
        assert store.conversation(uuid4()) is None

    def test_members_join_at_the_end_once_and_leave(self, store: MessageStore) -> None:
        conversation = a_conversation(BOB, ALICE)
        store.create_conversation(conversation)
        for _ in range(2):
            store.add_member(conversation.conversation_id, CARLA, at_ms=NOON_MS + 5)
        assert members(store, conversation.conversation_id) == (BOB, ALICE, CARLA)
        for _ in range(2):
            store.remove_member(conversation.conversation_id, BOB)
        assert members(store, conversation.conversation_id) == (ALICE, CARLA)
        store.add_member(conversation.conversation_id, BOB, at_ms=NOON_MS + 6)
        assert members(store, conversation.conversation_id) == (ALICE, CARLA, BOB)

    def test_of_changes_of_the_members_at_once_none_is_lost(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.create_conversation(conversation)
        new = [f"user_{number}" for number in range(6)]
        at_once(
            *(partial(store.add_member, conversation.conversation_id, each, at_ms=NOON_MS) for each in (*new, new[0])),
            partial(store.remove_member, conversation.conversation_id, BOB),
        )
        alice, *others = members(store, conversation.conversation_id)
        assert (alice, sorted(others)) == (ALICE, new)

    def test_the_last_member_may_leave(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE)
        store.create_conversation(conversation)
        store.remove_member(conversation.conversation_id, ALICE)
        assert members(store, conversation.conversation_id) == ()


class TestListing:
    def test_conversations_are_listed_last_active_first(self, store: MessageStore) -> None:
        workspace_id = uuid4()
        quiet, busy = (a_conversation(ALICE, BOB, workspace_id=workspace_id) for _ in range(2))
        store.create_conversation(busy)
        store.create_conversation(replace(quiet, created_at_ms=NOON_MS + 1))
        store.save_messages([a_message(busy, accepted_at_ms=NOON_MS + 2)])
        listed = store.conversations_of(ALICE, workspace_id=workspace_id, after=None, limit=10)
        assert [(each.conversation.public_id, each.last_activity_ms) for each in listed] == [
            (busy.public_id, NOON_MS + 2),
            (quiet.public_id, NOON_MS + 1),
        ]
        assert listed[0].conversation == busy

    def test_pages_meet_without_gap_or_overlap_also_at_equal_times(self, store: MessageStore) -> None:
        workspace_id = uuid4()
        for second in range(3):
            for _ in range(4):
                store.create_conversation(
                    a_conversation(ALICE, workspace_id=workspace_id, created_at_ms=NOON_MS + second)
                )
        seen: list[tuple[int, UUID]] = []
        cursor = None
        while page := store.conversations_of(ALICE, workspace_id=workspace_id, after=cursor, limit=3):
            seen += [(each.last_activity_ms, each.conversation.conversation_id) for each in page]
            cursor = ListCursor(*seen[-1])
        assert len(seen) == 12
        assert seen == sorted(set(seen), reverse=True)

    def test_only_those_who_are_members_now_see_it_in_their_workspace_only(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.create_conversation(conversation)
        store.remove_member(conversation.conversation_id, BOB)

        def listed(party: str, workspace_id: UUID = conversation.workspace_id) -> int:
            return len(store.conversations_of(party, workspace_id=workspace_id, after=None, limit=10))

        assert (listed(ALICE), listed(BOB), listed(MALLORY), listed(ALICE, uuid4())) == (1, 0, 0, 0)

    def test_the_members_of_many_are_told_at_once_and_of_none_that_does_not_exist(self, store: MessageStore) -> None:
        both, left = a_conversation(ALICE, BOB), a_conversation(BOB)
        for each in (both, left):
            store.create_conversation(each)
        store.remove_member(left.conversation_id, BOB)
        wanted = [both.conversation_id, left.conversation_id, uuid4()]
        found = {key: list(members) for key, members in store.members(wanted).items()}
        assert found == {both.conversation_id: [ALICE, BOB], left.conversation_id: []}
        assert store.members([]) == {}

    def test_many_conversations_are_read_at_once_and_none_that_does_not_exist(self, store: MessageStore) -> None:
        many = [a_conversation(ALICE, BOB) for _ in range(120)]
        for each in many:
            store.create_conversation(each)
        store.remove_member(many[0].conversation_id, BOB)
        expected = {each.conversation_id: each for each in [replace(many[0], members=(ALICE,)), *many[1:]]}
        assert store.conversations([*expected, many[1].conversation_id, uuid4()]) == expected
        assert store.conversations([]) == {}

    def test_the_last_activity_is_that_of_the_list(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.create_conversation(conversation)
        assert store.last_activity_ms(conversation.conversation_id) == conversation.created_at_ms
        store.save_messages([a_message(conversation, accepted_at_ms=NOON_MS + each) for each in (3, 9, 5)])
        assert store.last_activity_ms(conversation.conversation_id) == NOON_MS + 9

    def test_activity_never_goes_back(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.create_conversation(conversation)
        store.save_messages([a_message(conversation, accepted_at_ms=NOON_MS + each) for each in (3, 9, 5)])
        store.save_messages([a_message(conversation, accepted_at_ms=NOON_MS + 4)])
        assert last_activity(store, conversation.workspace_id, BOB) == NOON_MS + 9

    def test_who_joins_late_sees_the_last_activity(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.create_conversation(conversation)
        store.save_messages([a_message(conversation, accepted_at_ms=NOON_MS + 7)])
        store.add_member(conversation.conversation_id, MALLORY, at_ms=NOON_MS + 8)
        assert last_activity(store, conversation.workspace_id, MALLORY) == NOON_MS + 7

    def test_who_leaves_and_joins_again_sees_it_once_where_it_belongs(self, store: MessageStore) -> None:
        workspace_id = uuid4()
        left, other = (a_conversation(ALICE, BOB, workspace_id=workspace_id) for _ in range(2))
        for each in (left, other):
            store.create_conversation(each)
        for days in (1, 2, 3):
            store.save_messages([a_message(left, accepted_at_ms=NOON_MS + days * DAY_MS)])
            store.remove_member(left.conversation_id, BOB)
            assert listed(store, BOB, workspace_id) == [other.conversation_id]
            store.save_messages([a_message(other, accepted_at_ms=NOON_MS + days * DAY_MS + 1)])
            store.add_member(left.conversation_id, BOB, at_ms=NOON_MS)
            assert listed(store, BOB, workspace_id) == [other.conversation_id, left.conversation_id]

    def test_what_was_active_on_many_days_is_listed_once_whatever_the_page(self, store: MessageStore) -> None:
        workspace_id = uuid4()
        chats = [a_conversation(ALICE, BOB, workspace_id=workspace_id) for _ in range(6)]
        for chat in chats:
            store.create_conversation(chat)
        for day in range(1, 5):
            store.save_messages(
                [a_message(chat, accepted_at_ms=NOON_MS + day * DAY_MS + n) for n, chat in enumerate(chats) if n != day]
            )
        by_last_activity = [chats[n].conversation_id for n in (5, 3, 2, 1, 0, 4)]
        for limit in (1, 2, 4, 50):
            assert listed(store, BOB, workspace_id, limit=limit) == by_last_activity

    def test_messages_that_came_before_their_conversation_count_as_activity(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.save_messages([a_message(conversation, accepted_at_ms=NOON_MS + 7)])
        store.create_conversation(conversation)
        assert last_activity(store, conversation.workspace_id, ALICE) == NOON_MS + 7

    def test_a_conversation_made_while_its_first_messages_are_saved_is_listed_where_they_put_it(
        self, store: MessageStore
    ) -> None:
        for _ in range(10):
            conversation = a_conversation(ALICE, BOB)
            at_once(
                partial(store.create_conversation, conversation),
                partial(store.save_messages, [a_message(conversation, accepted_at_ms=NOON_MS + DAY_MS)]),
                partial(store.save_messages, [a_message(conversation, accepted_at_ms=NOON_MS + 3 * DAY_MS)]),
            )
            workspace_id = conversation.workspace_id
            [listing] = store.conversations_of(BOB, workspace_id=workspace_id, after=None, limit=10)
            assert listing.last_activity_ms == NOON_MS + 3 * DAY_MS

    def test_each_conversation_of_a_batch_moves_by_its_own_messages(self, store: MessageStore) -> None:
        workspace_id = uuid4()
        both = [a_conversation(ALICE, BOB, workspace_id=workspace_id) for _ in range(2)]
        for each in both:
            store.create_conversation(each)
        store.save_messages(
            [a_message(both[0], accepted_at_ms=NOON_MS + 1), a_message(both[1], accepted_at_ms=NOON_MS + 2)]
        )
        listed = store.conversations_of(BOB, workspace_id=workspace_id, after=None, limit=10)
        assert {each.conversation.conversation_id: each.last_activity_ms for each in listed} == {
            both[0].conversation_id: NOON_MS + 1,
            both[1].conversation_id: NOON_MS + 2,
        }


class TestMessages:
    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({}, id="plain"),
            pytest.param(
                {"recipient_id": CARLA, "recipients": (CARLA,), "file_id": "file_1", "reply_to": uuid7()},
                id="to one, with a file, as a reply",
            ),
            pytest.param(
                {"sender_id": CARLA, "account_id": "1055", "external_id": "wamid.HBg=", "audience": ()}, id="inbound"
            ),
            pytest.param({"content": "", "recipients": ()}, id="empty, to nobody"),
            pytest.param({"content": "x" * 65536}, id="longest"),
        ],
    )
    def test_a_message_is_read_as_it_was_saved(self, store: MessageStore, fields: dict[str, Any]) -> None:
        message = a_message(**fields)
        store.save_messages([message])
        assert store.message(message.message_id) == message
        assert store.history(message.conversation_id, limit=5) == [message]

    def test_an_unknown_message_is_none_and_nothing_is_nothing(self, store: MessageStore) -> None:
        store.save_messages([])
        assert store.message(uuid7()) is None
        assert store.messages([]) == store.messages([uuid7()]) == {}
        assert store.history(uuid4(), limit=5) == []

    def test_of_messages_to_many_conversations_each_has_what_is_its_own(self, store: MessageStore) -> None:
        conversations = [a_conversation(ALICE, BOB) for _ in range(23)]
        for each in conversations:
            store.create_conversation(each)
        some = [a_message(each) for each in conversations for _ in range(2)]
        another = a_message(conversations[0])
        early, late = some[::3], some[1::3]

        def told(which: Sequence[Message], status: Status) -> list[StatusChange]:
            return [change(message, BOB, status) for message in which]

        def stands(of: Mapping[UUID, Sequence[RecipientStatus]]) -> set[UUID]:
            """Those that were read; the others are sent."""
            assert {one.status for [one] in of.values()} == {Status.SENT, Status.READ}
            return {message_id for message_id, [one] in of.items() if one.status is Status.READ}

        assert {each.status for each in store.apply_statuses(told(early, Status.READ))} == {Status.READ}
        saved = store.save_messages(some)
        assert saved.known == set()
        assert stands(saved.statuses) == ids_of(early)
        assert store.save_messages([*some, another]).known == ids_of(some)
        store.apply_statuses(told(late, Status.READ))
        again = [*told(late, Status.READ), *told(early, Status.DELIVERED)]
        assert {each.status for each in store.apply_statuses(again)} == {Status.READ}
        assert stands(store.statuses([*some, another])) == ids_of([*early, *late])
        for message in early:
            lines = [line.change.status for line in store.transitions(message)]
            assert sorted(lines) == sorted([Status.SENT, Status.DELIVERED, Status.READ])

    def test_many_messages_are_found_at_once_and_unknown_ones_are_not(self, store: MessageStore) -> None:
        messages = [a_message() for _ in range(3)]
        store.save_messages(messages)
        wanted = [*(message.message_id for message in messages[1:]), *(uuid7() for _ in range(1_200))]
        assert store.messages(wanted) == {message.message_id: message for message in messages[1:]}
        assert store.statuses([]) == {}
        assert store.apply_statuses([]) == []

    def test_saving_again_changes_nothing(self, store: MessageStore) -> None:
        message = a_message()
        store.save_messages([message])
        store.apply_statuses([change(message, BOB, Status.READ)])
        before = everything_about(store, message)
        store.save_messages([message, message])
        store.save_messages([replace(message, content="another text")])
        assert everything_about(store, message) == before

    def test_saving_tells_what_was_stored_before(self, store: MessageStore) -> None:
        messages = [a_message() for _ in range(120)]
        assert store.save_messages([]).known == set()
        assert store.save_messages(messages[:50]).known == set()
        assert store.save_messages(messages).known == {message.message_id for message in messages[:50]}
        new = [a_message() for _ in range(600)]
        saved = store.save_messages([*new, *new])
        assert saved.known == set()
        assert saved.statuses.keys() == ids_of(new)

    def test_saving_tells_where_new_messages_stand(self, store: MessageStore) -> None:
        plain, mixed, read = (a_message(a_conversation(ALICE, *others)) for others in ([BOB], [CARLA, BOB], [BOB]))
        early = a_message(a_conversation(ALICE, BOB))
        store.apply_statuses([change(read, BOB, Status.READ), change(early, BOB, Status.ACCEPTED)])
        known = a_message()
        store.save_messages([known])
        messages = [plain, mixed, read, early, known, replace(plain, recipients=(CARLA,))]
        saved = store.save_messages(messages)
        assert saved.known == {known.message_id}
        assert saved.statuses == store.statuses([plain, mixed, read, early])
        assert [each.status for each in saved.statuses[read.message_id]] == [Status.READ]

    def test_history_is_paged_both_ways(self, store: MessageStore) -> None:
        conversation = a_conversation()
        messages = [a_message(conversation) for _ in range(7)]
        shuffled = random.Random(7).sample(messages, 7)
        store.save_messages([*shuffled, a_message()])
        here = conversation.conversation_id
        assert store.history(here, limit=3) == messages[:3:-1]
        assert store.history(here, before=messages[4].message_id, limit=3) == messages[3:0:-1]
        assert store.history(here, before=messages[0].message_id, limit=3) == []
        assert store.history(here, after=messages[2].message_id, limit=3) == messages[3:6]
        assert store.history(here, after=messages[6].message_id, limit=3) == []

    def test_a_batch_larger_than_any_statement_is_saved_whole(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, BOB, CARLA)
        messages = [a_message(conversation) for _ in range(1200)]
        store.save_messages(messages)
        assert store.history(conversation.conversation_id, limit=2000) == messages[::-1]
        assert store.messages([each.message_id for each in messages]) == {each.message_id: each for each in messages}
        assert all(len(each) == 2 for each in store.statuses(messages).values())


class TestStatuses:
    def test_a_saved_message_is_sent_to_each_recipient_in_its_order(self, store: MessageStore) -> None:
        message = a_message(a_conversation(ALICE, CARLA, BOB))
        saved = store.save_messages([message])
        sent = [RecipientStatus(each, Status.SENT, 0, NOON_MS) for each in (CARLA, BOB)]
        assert saved.statuses == store.statuses([message]) == {message.message_id: sent}
        assert {each.change for each in store.transitions(message)} == {
            change(message, CARLA, Status.SENT, at_ms=NOON_MS),
            change(message, BOB, Status.SENT, at_ms=NOON_MS),
        }

    def test_a_sent_that_is_told_by_name_moves_nothing_before_and_after_its_message(self, store: MessageStore) -> None:
        """SENT goes without saying, at the accept."""
        message = a_message()
        sent = change(message, BOB, Status.SENT, at_ms=NOON_MS - 5)
        for _ in range(2):
            [stands] = store.apply_statuses([sent])
            assert (stands.status, stands.rank, stands.reason) == (Status.SENT, 0, None)
            store.save_messages([message])
            assert standing(store, message, BOB) == RecipientStatus(BOB, Status.SENT, 0, NOON_MS)
            assert [each.change for each in store.transitions(message)] == [replace(sent, at_ms=NOON_MS)]

    def test_a_note_that_comes_before_its_message_is_a_line_of_its_history(self, store: MessageStore) -> None:
        message = a_message(a_conversation(ALICE, BOB, CARLA))
        store.apply_statuses([change(message, BOB, Status.SENT, reason="maybe_duplicate", at_ms=NOON_MS + 5)])
        first = change(message, BOB, Status.SENT, reason="at_once", at_ms=NOON_MS)
        store.apply_statuses([first])
        [saved] = store.save_messages([message]).statuses.values()
        assert saved == [RecipientStatus(each, Status.SENT, 0, NOON_MS) for each in (BOB, CARLA)]
        told = [(each.recipient, each.change.reason) for each in store.transitions(message)]
        assert told == [(BOB, None), (BOB, "at_once"), (CARLA, None), (BOB, "maybe_duplicate")]

    def test_each_change_is_answered_by_what_stands_after_it(self, store: MessageStore) -> None:
        message = a_message()
        store.save_messages([message])
        news = [change(message, BOB, each) for each in (Status.DELIVERED, Status.READ, Status.DELIVERED)]
        assert [each.status for each in store.apply_statuses(news)] == [Status.DELIVERED, Status.READ, Status.READ]
        assert standing(store, message, BOB).status is Status.READ

    def test_a_status_falls_back_for_nothing(self, store: MessageStore) -> None:
        message = a_message()
        store.save_messages([message])
        read = change(message, BOB, Status.READ)
        store.apply_statuses([read])
        for status in (Status.ACCEPTED, Status.SENT, Status.FAILED, Status.DELIVERED):
            [stands] = store.apply_statuses([change(message, BOB, status, attempt=3)])
            assert stands == RecipientStatus(BOB, Status.READ, rank(Status.READ), read.at_ms)

    def test_what_is_equal_stands_as_it_came_first(self, store: MessageStore) -> None:
        message = a_message()
        store.save_messages([message])
        first = change(message, BOB, Status.DELIVERED, at_ms=NOON_MS + 1)
        store.apply_statuses([first])
        [stands] = store.apply_statuses([replace(first, at_ms=NOON_MS + 2)])
        assert stands.at_ms == NOON_MS + 1

    def test_failure_has_a_reason_until_a_replay_or_evidence_overrides_it(self, store: MessageStore) -> None:
        message = a_message()
        store.save_messages([message])
        [failed] = store.apply_statuses([change(message, BOB, Status.FAILED, reason="platform:131026")])
        assert (failed.status, failed.reason) == (Status.FAILED, "platform:131026")
        [again] = store.apply_statuses([change(message, BOB, Status.SENT, attempt=1)])
        assert (again.status, again.reason) == (Status.SENT, None)
        [late] = store.apply_statuses([change(message, BOB, Status.DELIVERED)])
        assert late.status is Status.DELIVERED

    def test_a_status_before_its_message_waits_and_makes_no_message(self, store: MessageStore) -> None:
        conversation = a_conversation()
        message = a_message(conversation)
        [stands] = store.apply_statuses([change(message, BOB, Status.DELIVERED)])
        assert stands.status is Status.DELIVERED
        assert store.message(message.message_id) is None
        assert store.history(conversation.conversation_id, limit=5) == []
        store.save_messages([message])
        assert standing(store, message, BOB).status is Status.DELIVERED
        assert {each.change.status for each in store.transitions(message)} == {Status.SENT, Status.DELIVERED}

    def test_being_stored_outranks_accepted(self, store: MessageStore) -> None:
        message = a_message(a_conversation(ALICE, BOB, CARLA))
        store.apply_statuses([change(message, BOB, Status.ACCEPTED)])
        store.save_messages([message])
        assert {each.status for each in store.statuses([message])[message.message_id]} == {Status.SENT}

    def test_a_note_on_a_sent_is_news_once_and_moves_nothing(self, store: MessageStore) -> None:
        message = a_message()
        store.save_messages([message])
        noted = change(message, BOB, Status.SENT, reason="maybe_duplicate", at_ms=NOON_MS + 5)
        for _ in range(2):
            [standing] = store.apply_statuses([noted])
            assert (standing.status, standing.reason) == (Status.SENT, None)
        assert [each.change.reason for each in store.transitions(message)] == [None, "maybe_duplicate"]

    def test_news_of_one_recipient_is_not_news_of_another_nor_of_another_message(self, store: MessageStore) -> None:
        conversation = a_conversation(ALICE, BOB, CARLA)
        one, other = a_message(conversation), a_message(conversation)
        store.save_messages([one, other])
        store.apply_statuses([change(one, BOB, Status.READ), change(other, CARLA, Status.DELIVERED)])
        statuses = store.statuses([one, other])
        assert [each.status for each in statuses[one.message_id]] == [Status.READ, Status.SENT]
        assert [each.status for each in statuses[other.message_id]] == [Status.SENT, Status.DELIVERED]

    def test_history_keeps_news_that_moved_nothing_once_by_time_then_rank(self, store: MessageStore) -> None:
        message = a_message()
        store.save_messages([message])
        read = change(message, BOB, Status.READ, at_ms=NOON_MS + 9)
        late = change(message, BOB, Status.DELIVERED, at_ms=NOON_MS + 9, external_id="wamid.1")
        failed = change(message, BOB, Status.FAILED, at_ms=NOON_MS + 12, attempt=1, reason="timeout")
        for _ in range(2):
            store.apply_statuses([read, late, failed])
        sent = change(message, BOB, Status.SENT, at_ms=NOON_MS)
        assert [each.change for each in store.transitions(message)] == [sent, late, read, failed]
        assert {each.recipient for each in store.transitions(message)} == {BOB}

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(data=st.data())
    def test_whatever_the_order_and_however_often_told_the_end_is_the_same(
        self, store: MessageStore, data: st.DataObject
    ) -> None:
        message = a_message(a_conversation(ALICE, BOB, CARLA))
        possible = [
            change(message, recipient, status, attempt=attempt, at_ms=NOON_MS + rank(status, attempt))
            for recipient in message.recipients
            for status, attempt in [
                (Status.SENT, 0),
                (Status.FAILED, 0),
                (Status.SENT, 1),
                (Status.FAILED, 1),
                (Status.DELIVERED, 0),
                (Status.READ, 0),
            ]
        ]
        told = data.draw(st.lists(st.sampled_from(possible), max_size=12))
        steps: list[StatusChange | None] = [*told, None, *data.draw(st.sampled_from([[], [None]]))]
        for batch in data.draw(batches_of(data.draw(st.permutations(steps)))):
            apply_batch(store, message, batch)
        news = {*told, *(change(message, each, Status.SENT, at_ms=NOON_MS) for each in message.recipients)}
        assert {each.change for each in store.transitions(message)} == news
        for recipient in message.recipients:
            highest = max((each for each in news if each.recipient == recipient), key=lambda each: each.rank)
            assert standing(store, message, recipient) == RecipientStatus(
                recipient, highest.status, highest.rank, highest.at_ms, highest.reason
            )

    def test_statuses_told_at_once_end_at_the_highest(self, store: MessageStore) -> None:
        for round_ in range(5):
            message = a_message(a_conversation(ALICE, BOB, CARLA))
            news = [
                change(message, recipient, status)
                for recipient in message.recipients
                for status in (Status.DELIVERED, Status.READ, Status.FAILED)
            ]
            random.Random(round_).shuffle(news)
            at_once(
                partial(store.save_messages, [message]),
                *(partial(store.apply_statuses, news[each::3]) for each in range(3)),
            )
            assert {each.status for each in store.statuses([message])[message.message_id]} == {Status.READ}
            assert len(store.transitions(message)) == 8


def a_ref(channel: str = "whatsapp") -> ExternalRef:
    return ExternalRef(
        channel=channel,
        account_id="1055",
        external_id=f"wamid.{uuid4().hex}",
        message_id=uuid7(),
        conversation_id=uuid4(),
        party=CARLA,
    )


class TestExternalIds:
    def test_the_first_meaning_of_a_platforms_id_stays(self, store: MessageStore) -> None:
        first = ExternalRef(
            channel="whatsapp",
            account_id="1055",
            external_id=f"wamid.{uuid4().hex}",
            message_id=uuid7(),
            conversation_id=uuid4(),
            party=CARLA,
        )
        assert store.externals("whatsapp", "1055", [first.external_id]) == {}
        assert store.claim_externals([first]) == [first]
        assert store.claim_externals([replace(first, message_id=uuid7(), party=BOB)]) == [first]
        assert store.externals("whatsapp", "1055", [first.external_id]) == {first.external_id: first}

    def test_the_attempt_is_kept_with_it(self, store: MessageStore) -> None:
        refs = [replace(a_ref(), attempt=attempt) for attempt in (0, 1, 499)]
        assert store.claim_externals(refs) == refs
        ids = [ref.external_id for ref in refs]
        assert store.externals("whatsapp", "1055", ids) == dict(zip(ids, refs, strict=True))

    def test_the_same_id_elsewhere_is_another(self, store: MessageStore) -> None:
        ref = ExternalRef(
            channel="whatsapp",
            account_id="1055",
            external_id=uuid4().hex,
            message_id=uuid7(),
            conversation_id=uuid4(),
            party=CARLA,
        )
        store.claim_externals([ref])
        for other in (replace(ref, account_id="1056"), replace(ref, channel="instagram")):
            assert store.externals(other.channel, other.account_id, [other.external_id]) == {}
            assert store.claim_externals([replace(other, message_id=uuid7())])[0].message_id != ref.message_id

    def test_a_batch_is_claimed_in_order_each_id_by_its_first(self, store: MessageStore) -> None:
        known, fresh = a_ref(), a_ref(channel="instagram")
        store.claim_externals([known])
        again = [replace(each, message_id=uuid7()) for each in (known, fresh)]
        assert store.claim_externals([fresh, again[0], again[1]]) == [fresh, known, fresh]
        assert store.claim_externals([]) == []

    def test_what_a_message_of_ours_is_called_may_be_told_again_and_at_once(self, store: MessageStore) -> None:
        refs = [replace(a_ref(), attempt=attempt) for attempt in (0, 1)]
        at_once(partial(store.note_externals, refs), partial(store.note_externals, refs[::-1]))
        store.note_externals(refs[:1])
        store.note_externals([])
        assert store.externals("whatsapp", "1055", [ref.external_id for ref in refs]) == {
            ref.external_id: ref for ref in refs
        }

    def test_what_is_noted_is_claimed_by_nobody_afterwards(self, store: MessageStore) -> None:
        ref = a_ref()
        store.note_externals([ref])
        assert store.claim_externals([replace(ref, message_id=uuid7(), party=BOB)]) == [ref]

    def test_many_ids_are_found_at_once_and_unknown_ones_are_not(self, store: MessageStore) -> None:
        refs = [a_ref() for _ in range(3)]
        store.claim_externals(refs)
        many = [*(ref.external_id for ref in refs[1:]), *(uuid4().hex for _ in range(2_000))]
        assert store.externals("whatsapp", "1055", many) == {ref.external_id: ref for ref in refs[1:]}
        assert store.externals("whatsapp", "1055", []) == {}

    def test_of_two_meanings_at_once_both_callers_get_the_same(self, store: MessageStore) -> None:
        for _ in range(5):
            ref = ExternalRef(
                channel="whatsapp",
                account_id="1",
                external_id=uuid4().hex,
                message_id=uuid7(),
                conversation_id=uuid4(),
                party=CARLA,
            )
            other = replace(ref, message_id=uuid7())
            one, two = at_once(partial(store.claim_externals, [ref]), partial(store.claim_externals, [other]))
            assert one == two
            assert one in ([ref], [other])


class TestContacts:
    def test_a_contact_is_found_by_address_and_by_handle(self, store: MessageStore) -> None:
        contact = a_contact(name="Carla", handle="carla.b")
        store.bind_contacts([contact])
        assert found(store, contact) == contact
        assert by_handle(store, contact) == contact

    def test_many_contacts_are_found_at_once_and_those_of_others_are_not(self, store: MessageStore) -> None:
        workspace_id = uuid4()
        known = [a_contact(address=str(n), name=f"n{n}", workspace_id=workspace_id) for n in range(3)]
        for contact in known:
            store.bind_contacts([contact])
        store.bind_contacts([replace(known[0], address="9", account_id="other")])
        here = partial(store.contacts, channel=known[0].channel, account_id=known[0].account_id)
        many = [str(n) for n in range(1, 2_000)]
        assert here(workspace_id=workspace_id, addresses=many) == {"1": known[1], "2": known[2]}
        assert here(workspace_id=workspace_id, addresses=[]) == {}
        assert here(workspace_id=uuid4(), addresses=["0"]) == {}
        assert here(workspace_id=workspace_id, channel="telegram", addresses=["0"]) == {}

    def test_the_binding_only_moves_forward(self, store: MessageStore) -> None:
        older, newer = uuid7(), uuid7()
        contact = a_contact(last_message_id=newer)
        store.bind_contacts([contact])
        store.bind_contacts([replace(contact, last_message_id=older, conversation_id=uuid4())])
        assert found(store, contact) == contact
        moved = replace(contact, last_message_id=uuid7(), conversation_id=uuid4())
        store.bind_contacts([moved])
        assert found(store, contact) == moved

    def test_a_batch_is_bound_as_if_one_by_one(self, store: MessageStore) -> None:
        first, other = a_contact(name="Carla"), a_contact(address="2")
        older = replace(first, last_message_id=uuid7(), conversation_id=uuid4(), name="")
        newest = replace(first, last_message_id=uuid7(), conversation_id=uuid4(), name="Carla B")
        store.bind_contacts([first, other, newest, older])
        assert (found(store, first), found(store, other)) == (newest, other)
        store.bind_contacts([])

    def test_an_empty_name_or_handle_replaces_none(self, store: MessageStore) -> None:
        contact = a_contact(name="Carla", handle="carla.b")
        store.bind_contacts([contact])
        store.bind_contacts([replace(contact, name="", handle="")])
        assert found(store, contact) == contact
        store.bind_contacts([replace(contact, name="Carla Braga", handle="")])
        assert found(store, contact) == replace(contact, name="Carla Braga")
        store.bind_contacts([replace(contact, name="", handle="cbraga")])
        assert found(store, contact) == replace(contact, name="Carla Braga", handle="cbraga")

    def test_another_workspace_account_or_channel_knows_nobody(self, store: MessageStore) -> None:
        contact = a_contact(handle="carla.b")
        store.bind_contacts([contact])
        for other in (
            replace(contact, workspace_id=uuid4()),
            replace(contact, account_id="other"),
            replace(contact, channel="telegram"),
        ):
            assert found(store, other) is None
            assert by_handle(store, other) is None

    def test_a_handle_that_changed_hands_is_whose_it_was_last(self, store: MessageStore) -> None:
        workspace_id = uuid4()
        old = a_contact(handle="star", address="1", workspace_id=workspace_id)
        new = a_contact(handle="star", address="2", workspace_id=workspace_id)
        store.bind_contacts([new])
        store.bind_contacts([old])
        assert by_handle(store, new) == new

    def test_no_handle_names_nobody(self, store: MessageStore) -> None:
        contact = a_contact(handle="")
        store.bind_contacts([contact])
        assert by_handle(store, contact) is None


class TestIdempotencyKeys:
    def test_a_fresh_key_is_new_then_running_then_done(self, store: MessageStore) -> None:
        keys = Keys(store)
        first = keys.claim()
        assert first == KeyClaim(KeyState.NEW, first.message_id, NOON_MS)
        assert keys.claim(at_ms=1).state is KeyState.RUNNING
        keys.settle()
        assert keys.claim(at_ms=2) == KeyClaim(KeyState.DONE, first.message_id, NOON_MS)
        assert keys.claim(at_ms=3_600_000).state is KeyState.DONE

    @pytest.mark.parametrize("freed", ["released", "lease over"])
    def test_an_unanswered_claim_that_is_free_goes_on_with_its_first_id(self, store: MessageStore, freed: str) -> None:
        keys = Keys(store)
        first = keys.claim()
        if freed == "released":
            keys.release()
        again = keys.claim(at_ms=10 if freed == "released" else 6000)
        assert again == KeyClaim(KeyState.NEW, first.message_id, NOON_MS)
        assert keys.claim(at_ms=6005).state is KeyState.RUNNING

    def test_a_live_lease_is_held_until_its_last_millisecond(self, store: MessageStore) -> None:
        keys = Keys(store)
        keys.claim()
        assert keys.claim(at_ms=5999).state is KeyState.RUNNING
        assert keys.claim(at_ms=6000).state is KeyState.NEW

    @pytest.mark.parametrize("after", ["running", "settled", "released"])
    def test_another_body_is_a_mismatch_whatever_became_of_the_first(self, store: MessageStore, after: str) -> None:
        keys = Keys(store)
        first = keys.claim()
        {"running": lambda: None, "settled": keys.settle, "released": keys.release}[after]()
        assert keys.claim(body_hash="other").state is KeyState.MISMATCH
        assert keys.claim().message_id == first.message_id

    def test_a_release_after_the_answer_changes_nothing(self, store: MessageStore) -> None:
        keys = Keys(store)
        keys.claim()
        keys.settle()
        keys.release()
        assert keys.claim().state is KeyState.DONE

    def test_a_key_is_forgotten_after_24_hours(self, store: MessageStore) -> None:
        keys = Keys(store)
        first = keys.claim()
        keys.settle()
        day_ms = 24 * 3600 * 1000
        assert keys.claim(at_ms=day_ms - 1).state is KeyState.DONE
        anew = keys.claim(at_ms=day_ms, body_hash="other")
        assert anew.state is KeyState.NEW
        assert anew.message_id != first.message_id
        assert anew.accepted_at_ms == NOON_MS + day_ms
        assert keys.claim(at_ms=day_ms + 1, body_hash="other").state is KeyState.RUNNING

    def test_a_key_belongs_to_its_sender_in_its_workspace(self, store: MessageStore) -> None:
        keys = Keys(store)
        keys.claim()
        assert Keys(store, workspace_id=keys.workspace_id, sender_id=BOB, key=keys.key).claim().state is KeyState.NEW
        assert Keys(store, workspace_id=uuid4(), sender_id=ALICE, key=keys.key).claim().state is KeyState.NEW

    def test_an_answer_is_known_once_it_was_given_and_for_24_hours(self, store: MessageStore) -> None:
        keys = Keys(store)
        assert keys.answered() is None
        first = keys.claim()
        assert keys.answered() is None
        keys.settle()
        day_ms = 24 * 3600 * 1000
        assert keys.answered(at_ms=day_ms - 1) == first.message_id
        assert keys.answered(at_ms=day_ms) is None
        assert keys.answered(body_hash="other") is None
        assert Keys(store, workspace_id=keys.workspace_id, sender_id=BOB, key=keys.key).answered() is None

    def test_of_claims_at_once_exactly_one_is_new(self, store: MessageStore) -> None:
        for _ in range(10):
            keys = Keys(store)
            states = [each.state for each in at_once(*[keys.claim] * 4)]
            assert sorted(states) == [KeyState.NEW, *[KeyState.RUNNING] * 3]

    def test_of_sixteen_claims_at_once_exactly_one_is_new_and_all_name_its_message(self, store: MessageStore) -> None:
        for _ in range(3):
            keys = Keys(store)
            answers = at_once(*[keys.claim] * 16)
            assert sorted(each.state for each in answers) == [KeyState.NEW, *[KeyState.RUNNING] * 15]
            assert len({each.message_id for each in answers}) == 1

    def test_of_takeovers_at_once_exactly_one_is_new(self, store: MessageStore) -> None:
        for _ in range(10):
            keys = Keys(store)
            first = keys.claim()
            keys.release()
            answers = at_once(*[keys.claim] * 4)
            assert sorted(each.state for each in answers) == [KeyState.NEW, *[KeyState.RUNNING] * 3]
            assert {each.message_id for each in answers} == {first.message_id}


class TestDeliveries:
    def test_a_delivery_is_one_owners_at_a_time(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        assert claim(store, key, owner="a") == (DeliveryState.CLAIMED, 0)
        assert claim(store, key, owner="b", at_ms=999)[0] is DeliveryState.BUSY
        assert claim(store, key, owner="a", at_ms=999)[0] is DeliveryState.CLAIMED

    def test_claiming_again_renews_the_lease(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="a")
        claim(store, key, owner="a", at_ms=900)
        assert claim(store, key, owner="b", at_ms=1800)[0] is DeliveryState.BUSY

    def test_what_a_vanished_sender_began_is_ambiguous(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="a", at_ms=5)
        assert claim(store, key, owner="b", at_ms=1005) == (DeliveryState.ABANDONED, NOON_MS + 5)
        assert claim(store, key, owner="c", at_ms=1006)[0] is DeliveryState.BUSY
        assert claim(store, key, owner="b", at_ms=1007)[0] is DeliveryState.CLAIMED

    def test_the_time_since_a_sender_vanished_goes_on_whoever_looks(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="a", at_ms=5)
        for at_ms, owner in ((1005, "b"), (1500, "c"), (1600, "d")):
            assert claim(store, key, owner=owner, at_ms=at_ms) == (DeliveryState.ABANDONED, NOON_MS + 5)
            store.settle_deliveries([DeliveryOutcome(key, uncertain=True)], owner=owner)

    def test_a_superseded_senders_claim_is_abandoned_at_once_and_its_time_begins_then(
        self, store: MessageStore
    ) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="lane@1", at_ms=5)
        take = partial(store.claim_deliveries, [key], owner="lane@2", lease_ms=1000)
        [answer] = take(now_ms=NOON_MS + 9, superseded=lambda owner: owner == "other@1")
        assert answer.state is DeliveryState.BUSY
        [answer] = take(now_ms=NOON_MS + 9, superseded=lambda owner: owner == "lane@1")
        assert (answer.state, answer.since_ms) == (DeliveryState.ABANDONED, NOON_MS + 9)
        store.settle_deliveries([DeliveryOutcome(key)], owner="lane@1")  # says that it never sent: too late to count
        assert claim(store, key, owner="b", at_ms=10)[0] is DeliveryState.BUSY
        store.settle_deliveries([DeliveryOutcome(key, uncertain=True)], owner="lane@2")
        assert claim(store, key, owner="lane@3", at_ms=500) == (DeliveryState.ABANDONED, NOON_MS + 9)

    def test_sent_is_final(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="a")
        store.settle_deliveries([DeliveryOutcome(key, external_id="wamid.1")], owner="a")
        for other in (
            DeliveryOutcome(key, failed_reason="x"),
            DeliveryOutcome(key),
            DeliveryOutcome(key, uncertain=True),
            DeliveryOutcome(key, external_id="wamid.2"),
        ):
            store.settle_deliveries([other], owner="a")
        [answer] = store.claim_deliveries([key], owner="b", now_ms=NOON_MS + 99_999, lease_ms=1000)
        assert (answer.state, answer.external_id) == (DeliveryState.SENT, "wamid.1")

    def test_failed_is_final_but_for_evidence(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="a")
        store.settle_deliveries([DeliveryOutcome(key, failed_reason="undeliverable")], owner="a")
        store.settle_deliveries([DeliveryOutcome(key)], owner="a")
        [answer] = store.claim_deliveries([key], owner="a", now_ms=NOON_MS + 99_999, lease_ms=1000)
        assert (answer.state, answer.reason) == (DeliveryState.FAILED, "undeliverable")
        store.settle_deliveries([DeliveryOutcome(key, external_id="wamid.1")], owner="late")
        assert claim(store, key, owner="a")[0] is DeliveryState.SENT

    def test_surely_not_sent_may_be_claimed_by_anybody_at_once(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="a")
        store.settle_deliveries([DeliveryOutcome(key)], owner="a")
        assert claim(store, key, owner="b", at_ms=1)[0] is DeliveryState.CLAIMED

    @pytest.mark.parametrize("owner", ["a", "b"])
    def test_uncertain_is_abandoned_at_once_also_to_its_own_sender(self, store: MessageStore, owner: str) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="a", at_ms=5)
        store.settle_deliveries([DeliveryOutcome(key, uncertain=True)], owner="a")
        assert claim(store, key, owner=owner, at_ms=6) == (DeliveryState.ABANDONED, NOON_MS + 5)

    def test_who_lost_a_claim_may_only_bring_evidence(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)
        claim(store, key, owner="a")
        claim(store, key, owner="b", at_ms=1000)
        for lost in (
            DeliveryOutcome(key, failed_reason="x"),
            DeliveryOutcome(key),
            DeliveryOutcome(key, uncertain=True),
        ):
            store.settle_deliveries([lost], owner="a")
            assert claim(store, key, owner="c", at_ms=1001)[0] is DeliveryState.BUSY
        store.settle_deliveries([DeliveryOutcome(key, external_id="wamid.1")], owner="a")
        assert claim(store, key, owner="b", at_ms=1001)[0] is DeliveryState.SENT

    def test_recipients_and_attempts_are_claimed_apart_in_the_order_given(self, store: MessageStore) -> None:
        message_id = uuid7()
        taken, free, later = (
            DeliveryKey(message_id, CARLA),
            DeliveryKey(message_id, "whatsapp:+351911111111"),
            DeliveryKey(message_id, CARLA, 1),
        )
        claim(store, taken, owner="a")
        answers = store.claim_deliveries([later, taken, free], owner="b", now_ms=NOON_MS, lease_ms=1000)
        assert [each.key for each in answers] == [later, taken, free]
        assert [each.state for each in answers] == [DeliveryState.CLAIMED, DeliveryState.BUSY, DeliveryState.CLAIMED]
        assert store.claim_deliveries([], owner="b", now_ms=NOON_MS, lease_ms=1) == []

    def test_claims_that_ended_are_told_and_nothing_is_claimed(self, store: MessageStore) -> None:
        message_id = uuid7()
        sent, failed, free, doubted, begun, later, unknown = (DeliveryKey(message_id, CARLA, each) for each in range(7))
        stranger = DeliveryKey(message_id, "whatsapp:+351911111111")
        taken = [sent, failed, free, doubted, begun, later]
        store.claim_deliveries(taken, owner="a", now_ms=NOON_MS, lease_ms=1000)
        store.settle_deliveries(
            [
                DeliveryOutcome(sent, external_id="wamid.1"),
                DeliveryOutcome(failed, failed_reason="undeliverable"),
                DeliveryOutcome(free),
                DeliveryOutcome(doubted, uncertain=True),
                DeliveryOutcome(later, external_id="wamid.2"),
            ],
            owner="a",
        )
        asked = [sent, failed, free, doubted, begun, unknown, stranger]
        assert store.settled_deliveries(asked) == {sent, failed}
        assert store.settled_deliveries([]) == set()
        assert claim(store, unknown, owner="b")[0] is DeliveryState.CLAIMED

    def test_of_claims_at_once_exactly_one_is_ours(self, store: MessageStore) -> None:
        for _ in range(10):
            keys = [DeliveryKey(uuid7(), CARLA) for _ in range(3)]
            answers = at_once(
                *(
                    partial(store.claim_deliveries, order, owner=owner, now_ms=NOON_MS, lease_ms=1000)
                    for owner, order in (("a", keys), ("b", keys[::-1]), ("c", keys))
                ),
            )
            for key in keys:
                states = [each.state for answer in answers for each in answer if each.key == key]
                assert sorted(states) == [DeliveryState.BUSY, DeliveryState.BUSY, DeliveryState.CLAIMED]

    def test_of_sixteen_owners_at_once_one_sends_and_the_others_see_what_it_sent(self, store: MessageStore) -> None:
        key = DeliveryKey(uuid7(), CARLA)

        def send(owner: str) -> DeliveryState:
            state, _ = claim(store, key, owner=owner)
            if state is DeliveryState.CLAIMED:
                store.settle_deliveries([DeliveryOutcome(key, external_id=f"wamid.{owner}")], owner=owner)
            return state

        states = at_once(*(partial(send, str(number)) for number in range(16)))
        assert states.count(DeliveryState.CLAIMED) == 1
        assert set(states) <= {DeliveryState.CLAIMED, DeliveryState.BUSY, DeliveryState.SENT}
        sender = states.index(DeliveryState.CLAIMED)
        [answer] = store.claim_deliveries([key], owner="late", now_ms=NOON_MS + 9999, lease_ms=1)
        assert (answer.state, answer.external_id) == (DeliveryState.SENT, f"wamid.{sender}")


class TestParking:
    def test_what_is_parked_is_held_in_log_order_until_it_is_done(self, store: MessageStore) -> None:
        scope, source = a_scope()
        store.park(scope, [parked(source, 11), parked(source, 9)], due_at_ms=NOON_MS)
        store.park(scope, [parked(source, 12)], due_at_ms=NOON_MS)
        assert [each.offset for each in store.parked(scope, limit=10)] == [9, 11, 12]
        assert store.parked(scope, limit=1) == [parked(source, 9)]
        assert not store.unpark(scope, [(source, 9), (source, 11)], next_due_ms=NOON_MS + 50)
        assert [each.offset for each in store.parked(scope, limit=10)] == [12]
        assert store.parked_scopes([scope]) == {scope}
        elsewhere = ParkScope("instagram-outbound", scope.conversation_id)
        others = [ParkScope(scope.topic, uuid4()) for _ in range(25)]
        store.park(others[3], [parked(source, 13)], due_at_ms=NOON_MS)
        assert store.parked_scopes([elsewhere, *others, scope]) == {others[3], scope}
        assert store.unpark(scope, [(source, 12)], next_due_ms=NOON_MS + 60)
        assert store.parked(scope, limit=10) == []
        assert store.parked_scopes([scope]) == set()
        assert store.unpark(scope, [], next_due_ms=NOON_MS)

    def test_a_record_is_parked_once_as_it_was_read_first(self, store: MessageStore) -> None:
        scope, source = a_scope()
        first = replace(parked(source, 9, value=b"\x00\xff{}", attempts=3), request_id="r1")
        store.park(scope, [first], due_at_ms=NOON_MS)
        store.park(scope, [replace(first, attempts=4, parked_at_ms=NOON_MS + 9)], due_at_ms=NOON_MS)
        assert store.parked(scope, limit=10) == [first]

    def test_the_due_time_is_the_scopes_until_something_of_it_is_done(self, store: MessageStore) -> None:
        scope, source = a_scope()
        store.park(scope, [parked(source, 1)], due_at_ms=NOON_MS + 30)
        store.park(scope, [parked(source, 2)], due_at_ms=NOON_MS)
        assert due(store, scope, NOON_MS + 29) == []
        assert due(store, scope, NOON_MS + 30) == [scope]
        store.unpark(scope, [(source, 1)], next_due_ms=NOON_MS + 90)
        assert due(store, scope, NOON_MS + 89) == []
        assert due(store, scope, NOON_MS + 90) == [scope]

    def test_a_scope_that_was_emptied_opens_anew(self, store: MessageStore) -> None:
        scope, source = a_scope()
        store.park(scope, [parked(source, 1)], due_at_ms=NOON_MS + 30)
        store.unpark(scope, [(source, 1)], next_due_ms=NOON_MS)
        store.park(scope, [parked(source, 2)], due_at_ms=NOON_MS + 60)
        assert due(store, scope, NOON_MS + 59) == []
        assert due(store, scope, NOON_MS + 60) == [scope]

    def test_parking_nothing_holds_nothing_back(self, store: MessageStore) -> None:
        scope, _ = a_scope()
        store.park(scope, [], due_at_ms=NOON_MS)
        assert store.parked_scopes([scope]) == set()

    def test_scopes_are_apart_and_the_earliest_due_come_first(self, store: MessageStore) -> None:
        topic = f"whatsapp-{uuid4().hex[:8]}-outbound"
        source = TopicPartition(topic, 0)
        late, soon, other_topic = (
            ParkScope(topic, uuid4()),
            ParkScope(topic, uuid4()),
            ParkScope(f"x-{topic}", uuid4()),
        )
        store.park(late, [parked(source, 1)], due_at_ms=NOON_MS + 2)
        store.park(soon, [parked(source, 2)], due_at_ms=NOON_MS + 1)
        store.park(other_topic, [parked(source, 2)], due_at_ms=NOON_MS)
        assert store.due_scopes(topic=topic, now_ms=NOON_MS + 9, limit=9) == [soon, late]
        assert store.due_scopes(topic=topic, now_ms=NOON_MS + 9, limit=1) == [soon]
        nowhere = ParkScope(topic, other_topic.conversation_id)
        assert store.parked_scopes([late, nowhere, other_topic]) == {late, other_topic}
        store.unpark(soon, [(source, 1)], next_due_ms=NOON_MS)
        assert [each.offset for each in store.parked(late, limit=9)] == [1]

    def test_what_is_taken_is_nobody_elses_for_a_while_and_the_others_come_next(self, store: MessageStore) -> None:
        topic = f"whatsapp-{uuid4().hex[:8]}-outbound"
        scopes = [ParkScope(topic, uuid4()) for _ in range(5)]
        for number, scope in enumerate(scopes):
            store.park(scope, [parked(TopicPartition(topic, 0), number)], due_at_ms=NOON_MS + number)
        take = partial(store.take_due_scopes, topic=topic, again_at_ms=NOON_MS + 20)
        assert take(now_ms=NOON_MS + 3, limit=2) == scopes[:2]
        assert [store.due_at_ms(scope) for scope in scopes] == [NOON_MS + at for at in (20, 20, 2, 3, 4)]
        assert take(now_ms=NOON_MS + 3, limit=9) == scopes[2:4]
        assert take(now_ms=NOON_MS + 3, limit=9) == []
        assert take(now_ms=NOON_MS + 19, limit=9) == scopes[4:]
        assert take(now_ms=NOON_MS + 20, limit=9) == scopes  # whoever took them did not come to it
        assert store.take_due_scopes(topic=f"x-{topic}", now_ms=NOON_MS + 99, again_at_ms=NOON_MS, limit=9) == []

    def test_of_takers_at_once_one_gets_a_scope(self, store: MessageStore) -> None:
        topic = f"whatsapp-{uuid4().hex[:8]}-outbound"
        scopes = [ParkScope(topic, uuid4()) for _ in range(8)]
        for scope in scopes:
            store.park(scope, [parked(TopicPartition(topic, 0), 1)], due_at_ms=NOON_MS)
        take = partial(store.take_due_scopes, topic=topic, now_ms=NOON_MS, again_at_ms=NOON_MS + 20, limit=3)
        answers = at_once(take, take, take)
        taken = [scope for answer in answers for scope in answer]
        assert len(taken) == len(set(taken)) >= 3

    def test_a_scope_that_holds_nothing_is_never_due(self, store: MessageStore) -> None:
        scope, source = a_scope()
        assert store.due_at_ms(scope) is None
        store.park(scope, [parked(source, 1)], due_at_ms=NOON_MS + 5)
        assert store.due_at_ms(scope) == NOON_MS + 5
        store.unpark(scope, [(source, 1)], next_due_ms=NOON_MS)
        assert store.due_at_ms(scope) is None

    def test_what_is_parked_while_the_scope_empties_is_not_lost(self, store: MessageStore) -> None:
        for _ in range(10):
            scope, source = a_scope()
            store.park(scope, [parked(source, 1)], due_at_ms=NOON_MS)
            at_once(
                partial(store.unpark, scope, [(source, 1)], next_due_ms=NOON_MS),
                partial(store.park, scope, [parked(source, 2)], due_at_ms=NOON_MS),
            )
            assert [each.offset for each in store.parked(scope, limit=9)] == [2]
            assert due(store, scope, NOON_MS) == [scope]


class TestBeingThere:
    def test_a_store_that_is_there_answers(self, store: MessageStore) -> None:
        store.ping()

    def test_a_closed_store_opens_again_on_use(self, store: MessageStore) -> None:
        message = a_message()
        store.save_messages([message])
        store.close()
        store.close()
        assert store.message(message.message_id) == message


# --- what the tests say in short ---------------------------------------------------------------------------------


def members(store: MessageStore, conversation_id: UUID) -> tuple[str, ...]:
    conversation = store.conversation(conversation_id)
    assert conversation is not None
    return conversation.members


def last_activity(store: MessageStore, workspace_id: UUID, party: str) -> int:
    [listing] = store.conversations_of(party, workspace_id=workspace_id, after=None, limit=10)
    return listing.last_activity_ms


def listed(store: MessageStore, party: str, workspace_id: UUID, *, limit: int = 10) -> list[UUID]:
    """All of a person's conversations, page by page."""
    found: list[UUID] = []
    cursor = None
    while page := store.conversations_of(party, workspace_id=workspace_id, after=cursor, limit=limit):
        found += [each.conversation.conversation_id for each in page]
        cursor = ListCursor(page[-1].last_activity_ms, found[-1])
    return found


def change(
    message: Message,
    recipient: str,
    status: Status,
    *,
    at_ms: int = NOON_MS + 1000,
    attempt: int = 0,
    reason: str | None = None,
    external_id: str | None = None,
) -> StatusChange:
    return StatusChange(
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        recipient=recipient,
        status=status,
        at_ms=at_ms,
        attempt=attempt,
        reason=reason,
        external_id=external_id,
    )


def ids_of(messages: Iterable[Message]) -> set[UUID]:
    return {message.message_id for message in messages}


def standing(store: MessageStore, message: Message, recipient: str) -> RecipientStatus:
    [status] = [each for each in store.statuses([message])[message.message_id] if each.recipient == recipient]
    return status


def everything_about(store: MessageStore, message: Message) -> object:
    return store.message(message.message_id), store.statuses([message]), store.transitions(message)


def batches_of(steps: Sequence[T]) -> st.SearchStrategy[list[list[T]]]:
    """Every way to cut the steps into batches."""

    def cut(ends: list[bool]) -> list[list[T]]:
        batches: list[list[T]] = [[]]
        for step, ends_here in zip(steps, ends, strict=True):
            batches[-1].append(step)
            if ends_here:
                batches.append([])
        return batches

    return st.lists(st.booleans(), min_size=len(steps), max_size=len(steps)).map(cut)


def apply_batch(store: MessageStore, message: Message, batch: Sequence[StatusChange | None]) -> None:
    """None stands for saving the message; it cuts the batch."""
    changes: list[StatusChange] = []
    for step in batch:
        if step is None:
            store.apply_statuses(changes)
            store.save_messages([message])
            changes = []
        else:
            changes.append(step)
    store.apply_statuses(changes)


def a_contact(
    *,
    name: str = "",
    handle: str = "",
    address: str = "17841400000000000",
    workspace_id: UUID | None = None,
    last_message_id: UUID | None = None,
) -> Contact:
    return Contact(
        workspace_id=workspace_id or uuid4(),
        channel="instagram",
        account_id="1784",
        address=address,
        conversation_id=uuid4(),
        last_message_id=last_message_id or uuid7(),
        name=name,
        handle=handle,
    )


def found(store: MessageStore, contact: Contact) -> Contact | None:
    return store.contact(
        workspace_id=contact.workspace_id,
        channel=contact.channel,
        account_id=contact.account_id,
        address=contact.address,
    )


def by_handle(store: MessageStore, contact: Contact) -> Contact | None:
    return store.contact_by_handle(
        workspace_id=contact.workspace_id,
        channel=contact.channel,
        account_id=contact.account_id,
        handle=contact.handle,
    )


class Keys:
    """One Idempotency-Key of one sender; times are milliseconds after noon, a lease lasts 6 s."""

    def __init__(
        self, store: MessageStore, *, workspace_id: UUID | None = None, sender_id: str = ALICE, key: str = ""
    ) -> None:
        self.store = store
        self.workspace_id = workspace_id or uuid4()
        self.sender_id = sender_id
        self.key = key or uuid4().hex

    def claim(self, *, at_ms: int = 0, body_hash: str = "hash") -> KeyClaim:
        return self.store.claim_key(
            workspace_id=self.workspace_id,
            sender_id=self.sender_id,
            key=self.key,
            body_hash=body_hash,
            message_id=uuid7(),
            now_ms=NOON_MS + at_ms,
            lease_ms=6000,
        )

    def answered(self, *, at_ms: int = 0, body_hash: str = "hash") -> UUID | None:
        return self.store.answered_key(
            workspace_id=self.workspace_id,
            sender_id=self.sender_id,
            key=self.key,
            body_hash=body_hash,
            now_ms=NOON_MS + at_ms,
        )

    def settle(self) -> None:
        self.store.settle_key(workspace_id=self.workspace_id, sender_id=self.sender_id, key=self.key)

    def release(self) -> None:
        self.store.release_key(workspace_id=self.workspace_id, sender_id=self.sender_id, key=self.key)


def claim(store: MessageStore, key: DeliveryKey, *, owner: str, at_ms: int = 0) -> tuple[DeliveryState, int]:
    """The state and since when; a lease lasts 1 s."""
    [answer] = store.claim_deliveries([key], owner=owner, now_ms=NOON_MS + at_ms, lease_ms=1000)
    assert answer.key == key
    return answer.state, answer.since_ms


def a_scope() -> tuple[ParkScope, TopicPartition]:
    topic = f"whatsapp-{uuid4().hex[:8]}-outbound"
    return ParkScope(topic, uuid4()), TopicPartition(topic, 2)


def parked(source: TopicPartition, offset: int, *, value: bytes = b"{}", attempts: int = 1) -> ParkedRecord:
    return ParkedRecord(source, offset, value, NOON_MS, attempts)


def due(store: MessageStore, scope: ParkScope, now_ms: int) -> list[ParkScope]:
    return store.due_scopes(topic=scope.topic, now_ms=now_ms, limit=10)
