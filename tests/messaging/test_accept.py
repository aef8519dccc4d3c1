"""Accepting: whoever may not is told why, what is accepted is on the log, and a key makes it happen once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from django.db import connections

from accounts.tokens import Principal
from core.clock import ManualClock
from core.errors import Chat4AllError, InvalidRequest, Unavailable
from core.ids import derived_id, uuid7
from files.errors import FileNotFound
from messaging import codec, topics, wiring
from messaging.domain import Conversation, Message
from messaging.errors import (
    ConversationNotFound,
    IdempotencyInProgress,
    IdempotencyMismatch,
    LogUnavailable,
    MemberNotFound,
    RecipientNotFound,
    SenderMismatch,
    StoreUnavailable,
)
from messaging.eventlog.memory import MemoryLog
from messaging.ports import EventLog, MessageStore, NewRecord, TopicPartition
from messaging.services import conversations
from messaging.services.accept import KEY_LEASE_MS, Accepted, Desk, Draft, accept
from messaging.services.conversations import ConversationCache
from messaging.services.persist import persist
from messaging.services.reading import acknowledge, history, mark_read, story
from messaging.services.recent import RecentMessages
from tests.contracts.message_stores import ALICE, BOB, CARLA, MALLORY, a_conversation
from tests.messaging.workbench import WORKSPACE, FreeLease, Fuse, Killed, Workbench, every_step, items


class Directory:
    """Everybody there is: three users, and whoever has a number."""

    def normalize(self, workspace_id: UUID, party: str) -> str:
        if party in (ALICE, BOB, MALLORY):
            return party
        if party.startswith("whatsapp:"):
            return party.replace(" ", "")
        raise RecipientNotFound("there is no such user")

    def names(self, workspace_id: UUID, parties: Collection[str]) -> Mapping[str, str]:
        return {}


class Limits:
    def check_content(self, channel: str, *, content: str, media_bytes: int | None) -> None:
        if len(content) > 10:
            raise InvalidRequest.at("content", f"{channel} does not carry this", code="text_too_long")


class Cabinet:
    """Alice's file, and where it was attached."""

    def __init__(self) -> None:
        self.attached: list[tuple[str, UUID]] = []

    def size(self, file_id: str, *, workspace_id: UUID, user_id: str) -> int:
        if (file_id, user_id) != ("file_cat", ALICE):
            raise FileNotFound
        return 100

    def attach(self, file_id: str, *, conversation_id: UUID) -> None:
        self.attached.append((file_id, conversation_id))


class Notes:
    """Hints in a dict."""

    def __init__(self) -> None:
        self.known: dict[UUID, Message] = {}
        self.ended: set[tuple[UUID, str, str]] = set()

    def put(self, messages: Mapping[UUID, bytes]) -> None:
        self.known.update({message_id: codec.decode(Message, value) for message_id, value in messages.items()})

    def get(self, message_id: UUID) -> Message | None:
        return self.known.get(message_id)

    def accepted(self, message_ids: Collection[UUID]) -> list[Message]:
        return [self.known[each] for each in message_ids if each in self.known]

    def end_try(self, workspace_id: UUID, sender_id: str, key: str, *, keep_ms: int) -> None:
        self.ended.add((workspace_id, sender_id, key))

    def has_ended(self, workspace_id: UUID, sender_id: str, key: str) -> bool:
        return (workspace_id, sender_id, key) in self.ended


class DeadlyLog(MemoryLog):
    """Whoever appends to it dies before anything is written."""

    def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:
        raise Killed


class AwayAfter:
    """A store that answers until this was called, and then no more."""

    def __init__(self, last: str, store: MessageStore) -> None:
        self.asked: list[str] = []
        self._last = last
        self._store = store

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any, **named: Any) -> Any:
            away = self._last in ("", *self.asked)
            self.asked.append(name)
            if away:
                raise StoreUnavailable("away")
            return getattr(self._store, name)(*arguments, **named)

        return ask


class Counter:
    """The counter at which messages are accepted."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.files = Cabinet()
        self.hints = Notes()
        self.desk = self.with_fuse(Fuse(0))

    def with_fuse(self, fuse: Fuse) -> Desk:
        """A desk in a process of its own: nothing is cached yet."""
        return Desk(
            log=fuse.through(self.bench.log),
            store=fuse.through(self.bench.store),
            parties=Directory(),
            channels=Limits(),
            files=self.files,
            hints=self.hints,
            notify=self.bench.sockets,
            cache=ConversationCache(self.bench.clock),
            clock=self.bench.clock,
        )

    def with_log(self, log: EventLog) -> Desk:
        return replace(self.desk, log=log)

    def post(self, conversation: str, text: str = "hi", *, desk: Desk | None = None, **fields: Any) -> Accepted:
        draft = Draft(workspace_id=WORKSPACE, user_id=ALICE, conversation=conversation, content=text)
        return accept(replace(draft, **fields), desk or self.desk)

    def logged(self) -> list[Message]:
        return self.bench.on_log(topics.MESSAGES, Message)

    def store_all(self) -> None:
        source = self.bench.log.read(TopicPartition(topics.MESSAGES, 0), start=0, limit=1000)
        persist(
            items(source),
            store=self.bench.store,
            log=self.bench.log,
            notify=self.bench.sockets,
            lease=FreeLease(),
            recent=RecentMessages(),
            clock=self.bench.clock,
        )


@pytest.fixture
def counter(bench: Workbench) -> Counter:
    return Counter(bench)


# --- who, where, to whom -----------------------------------------------------------------------------------------


def test_a_first_message_opens_the_conversation_with_its_two_members(counter: Counter) -> None:
    accepted = counter.post("lunch", recipient_id=BOB)
    [message] = counter.logged()
    assert (message.message_id, message.conversation, message.sender_id) == (accepted.message_id, "lunch", ALICE)
    assert (message.recipients, message.audience) == ((BOB,), (ALICE, BOB))
    assert message.conversation_id == derived_id(WORKSPACE, "lunch")
    for user in (ALICE, BOB):
        assert len(counter.bench.sockets.of(user, "conversation")) == 1
    counter.post("lunch", "again")
    assert counter.logged()[-1].recipients == (BOB,)
    assert len(counter.bench.sockets.of(BOB, "conversation")) == 1


def test_the_answer_says_what_was_accepted_and_when(counter: Counter) -> None:
    accepted = counter.post("lunch", recipient_id=BOB)
    shown = accepted.as_json()
    assert (shown["message_id"], shown["conversation_id"], shown["status"]) == (
        str(accepted.message_id),
        "lunch",
        "ACCEPTED",
    )
    assert counter.logged()[0].accepted_at_ms == accepted.accepted_at_ms
    assert counter.hints.get(accepted.message_id) == counter.logged()[0]


def test_an_address_is_written_in_its_one_spelling(counter: Counter) -> None:
    counter.post("w", recipient_id="whatsapp:+55 11 99999 8888")
    assert counter.logged()[0].recipients == (CARLA,)
    counter.post("w", recipient_id="whatsapp:+55 11 999998888")
    assert counter.logged()[1].recipients == (CARLA,)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param({"sender_id": BOB}, SenderMismatch, id="in somebody else's name"),
        pytest.param({"user_id": MALLORY}, ConversationNotFound, id="by somebody who is not in it"),
        pytest.param({"conversation": "unknown"}, ConversationNotFound, id="to nowhere"),
        pytest.param({"conversation": "new", "recipient_id": ALICE}, RecipientNotFound, id="to oneself"),
        pytest.param({"conversation": "new", "recipient_id": "user_nobody"}, RecipientNotFound, id="to nobody"),
        pytest.param({"recipient_id": "user_nobody"}, InvalidRequest, id="to nobody in a conversation"),
        pytest.param({"recipient_id": MALLORY}, InvalidRequest, id="to somebody outside"),
        pytest.param({"recipient_id": CARLA, "conversation": "w", "content": "x" * 11}, InvalidRequest, id="too long"),
        pytest.param({"file_id": "file_dog"}, FileNotFound, id="with somebody else's file"),
        pytest.param({"reply_to": uuid4()}, InvalidRequest, id="in answer to nothing"),
        pytest.param({"workspace_id": uuid4()}, ConversationNotFound, id="in another workspace"),
    ],
)
def test_what_is_refused_changes_nothing(counter: Counter, fields: dict[str, Any], error: type[Exception]) -> None:
    counter.post("lunch", recipient_id=BOB)
    frames = len(counter.bench.sockets.pushes)
    with pytest.raises(error):
        counter.post(**{"conversation": "lunch", **fields})
    assert len(counter.logged()) == 1
    assert counter.files.attached == []
    assert len(counter.bench.sockets.pushes) == frames
    for name in ("new", "w"):
        assert counter.bench.store.conversation(derived_id(WORKSPACE, name)) is None


def test_a_file_is_shown_to_the_conversation_it_is_sent_to(counter: Counter) -> None:
    counter.post("lunch", recipient_id=BOB, file_id="file_cat")
    assert counter.files.attached == [("file_cat", derived_id(WORKSPACE, "lunch"))]


def test_an_answer_names_a_message_of_the_same_conversation(counter: Counter) -> None:
    first = counter.post("lunch", recipient_id=BOB)
    counter.store_all()
    counter.post("lunch", "re", reply_to=first.message_id)
    assert counter.logged()[-1].reply_to == first.message_id
    with pytest.raises(InvalidRequest):
        counter.post("other", "re", recipient_id=BOB, reply_to=first.message_id)


def test_of_two_first_messages_at_once_one_opens_and_both_go_there(counter: Counter) -> None:
    def post(user: str, other: str) -> None:
        try:
            counter.post("race", user_id=user, recipient_id=other)
        finally:
            connections.close_all()  # this thread's own

    with ThreadPoolExecutor(2) as both:
        for each in [both.submit(post, ALICE, BOB), both.submit(post, BOB, ALICE)]:
            each.result(20)
    assert {(each.sender_id, each.recipients) for each in counter.logged()} == {(ALICE, (BOB,)), (BOB, (ALICE,))}
    assert len(counter.bench.sockets.of(ALICE, "conversation")) == 1
    stored = counter.bench.store.conversation(derived_id(WORKSPACE, "race"))
    assert stored is not None
    assert sorted(stored.members) == [ALICE, BOB]


def test_who_comes_second_with_an_id_of_strangers_is_told_nothing(counter: Counter) -> None:
    counter.post("race", recipient_id=BOB)
    with pytest.raises(ConversationNotFound):
        counter.post("race", user_id=MALLORY, recipient_id=BOB, desk=counter.with_fuse(Fuse(0)))


def test_a_conversation_that_is_written_in_is_renewed_and_who_was_removed_is_out(counter: Counter) -> None:
    counter.post("lunch", recipient_id=BOB)
    counter.post("lunch")
    counter.bench.store.remove_member(derived_id(WORKSPACE, "lunch"), BOB)
    without_store = replace(counter.desk, store=cast(MessageStore, AwayAfter("", counter.bench.store)))
    for _ in range(3):
        counter.bench.clock.advance(conversations.KEPT_S / 2)
        counter.desk.cache.heard(counter.bench.clock.monotonic_s())
        counter.desk.cache.renew(counter.bench.store.conversation)
        counter.post("lunch", desk=without_store)
    with pytest.raises(ConversationNotFound):
        counter.post("lunch", user_id=BOB)


@pytest.mark.parametrize(("hears_s", "may_post_s"), [(-1, 5), (0, 5), (3, 8), (27, 30)])
def test_who_was_removed_unheard_may_post_for_five_seconds_and_for_thirty_where_nothing_else_was_missed(
    counter: Counter, hears_s: int, may_post_s: int
) -> None:
    counter.post("lunch", recipient_id=BOB)
    counter.post("lunch", user_id=BOB)
    counter.bench.store.remove_member(derived_id(WORKSPACE, "lunch"), BOB)  # by somebody who ended before they told
    for second in range(may_post_s):
        if second <= hears_s:
            counter.desk.cache.heard(counter.bench.clock.monotonic_s())
        counter.post("lunch", user_id=BOB)
        counter.bench.clock.advance(1)
    if may_post_s == conversations.KEPT_S:
        counter.desk.cache.heard(counter.bench.clock.monotonic_s())
    with pytest.raises(ConversationNotFound):
        counter.post("lunch", user_id=BOB)


def test_a_conversation_costs_the_store_nothing_while_changes_are_heard(counter: Counter) -> None:
    counter.post("lunch", recipient_id=BOB)
    counter.post("lunch")
    without_store = replace(counter.desk, store=cast(MessageStore, AwayAfter("", counter.bench.store)))
    for _ in range(9):
        counter.bench.clock.advance(3)
        counter.desk.cache.heard(counter.bench.clock.monotonic_s())
        counter.post("lunch", desk=without_store)


# --- once --------------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_get_the_first_answer_again(counter: Counter) -> None:
    first = counter.post("lunch", recipient_id=BOB, idempotency_key="k1")
    again = counter.post("lunch", recipient_id=BOB, idempotency_key="k1")
    assert again == replace(first, replay=True)
    assert len(counter.logged()) == 1


@pytest.mark.parametrize("change", [{"content": "other"}, {"recipient_id": None}, {"conversation": "dinner"}])
def test_the_same_key_with_another_body_is_refused(counter: Counter, change: dict[str, Any]) -> None:
    counter.post("dinner", recipient_id=BOB)
    counter.post("lunch", recipient_id=BOB, idempotency_key="k1")
    with pytest.raises(IdempotencyMismatch):
        counter.post(**{"conversation": "lunch", "recipient_id": BOB, "idempotency_key": "k1", **change})
    assert len(counter.logged()) == 2


def test_a_key_is_one_user_s_own(counter: Counter) -> None:
    first = counter.post("lunch", recipient_id=BOB, idempotency_key="k1")
    second = counter.post("lunch", user_id=BOB, idempotency_key="k1")
    assert first.message_id != second.message_id
    assert len(counter.logged()) == 2


def test_a_request_that_still_runs_is_told_apart_from_one_that_died(counter: Counter) -> None:
    counter.post("lunch", recipient_id=BOB)
    with pytest.raises(Killed):
        counter.post("lunch", idempotency_key="k1", desk=counter.with_log(DeadlyLog()))
    with pytest.raises(IdempotencyInProgress) as running:
        counter.post("lunch", idempotency_key="k1")
    assert running.value.retry_after_s == 1
    counter.bench.clock.advance(KEY_LEASE_MS / 1000)
    counter.post("lunch", idempotency_key="k1")
    assert len({each.message_id for each in counter.logged()}) == 2


def test_a_failed_append_may_be_tried_again_at_once(counter: Counter) -> None:
    counter.bench.log.set_available(False)
    with pytest.raises(LogUnavailable):
        counter.post("lunch", recipient_id=BOB, idempotency_key="k1")
    counter.bench.log.set_available(True)
    assert not counter.post("lunch", recipient_id=BOB, idempotency_key="k1").replay
    assert len(counter.logged()) == 1


def test_wherever_the_store_goes_away_the_same_key_may_be_sent_again_at_once(counter: Counter) -> None:
    """Also where its answer is lost: the claim is there and nobody works under it. The log goes away with it."""
    rounds = iter(range(100))

    def once(fuse: Fuse) -> None:
        name = f"lost-{next(rounds)}"
        with suppress(StoreUnavailable):
            counter.post(name, recipient_id=BOB, idempotency_key=name, desk=counter.with_fuse(fuse))
        again = counter.post(name, recipient_id=BOB, idempotency_key=name, desk=counter.with_fuse(Fuse(0)))
        assert {each.message_id for each in counter.logged() if each.conversation == name} == {again.message_id}

    assert every_step(once, StoreUnavailable) >= 8


def test_a_failed_append_is_told_although_the_store_is_away_by_then(counter: Counter) -> None:
    counter.post("lunch", recipient_id=BOB)
    counter.bench.log.set_available(False)
    away = AwayAfter("claim_key", counter.bench.store)
    with pytest.raises(LogUnavailable):
        counter.post("lunch", idempotency_key="k1", desk=replace(counter.desk, store=cast(MessageStore, away)))
    counter.bench.log.set_available(True)
    assert not counter.post("lunch", idempotency_key="k1").replay


def test_a_store_that_is_away_is_asked_once(counter: Counter) -> None:
    """Each question may take as long as its time limit, and the client waits."""
    away = AwayAfter("", counter.bench.store)
    desk = replace(counter.desk, store=cast(MessageStore, away), cache=ConversationCache(counter.bench.clock))
    with pytest.raises(StoreUnavailable):
        counter.post("lunch", recipient_id=BOB, idempotency_key="k1", desk=desk)
    assert away.asked == ["conversation"]


@pytest.mark.parametrize("error", [Killed, Unavailable])
def test_wherever_a_process_ends_a_retry_makes_one_message_of_it(counter: Counter, error: type[BaseException]) -> None:
    rounds = iter(range(100))

    def once(fuse: Fuse) -> None:
        name = f"{error.__name__}-{next(rounds)}"
        before = len({each.message_id for each in counter.logged()})
        answer = None
        try:
            answer = counter.post(name, recipient_id=BOB, idempotency_key=name, desk=counter.with_fuse(fuse))
        except error:
            counter.bench.clock.advance(KEY_LEASE_MS / 1000)
        again = counter.post(name, recipient_id=BOB, idempotency_key=name, desk=counter.with_fuse(Fuse(0)))
        assert answer is None or again.message_id == answer.message_id
        mine = {each.message_id for each in counter.logged()}
        assert len(mine) == before + 1
        assert again.message_id in mine

    assert every_step(once, error) >= 8


# --- conversations -----------------------------------------------------------------------------------------------


def test_a_recipient_who_was_just_added_through_another_process_is_known(counter: Counter) -> None:
    counter.post("team", recipient_id=BOB)
    conversation_id = derived_id(WORKSPACE, "team")
    counter.post("team")  # known here now
    counter.bench.store.add_member(conversation_id, CARLA, at_ms=counter.bench.clock.now_ms())
    counter.post("team", recipient_id=CARLA[:13] + " " + CARLA[13:])  # as somebody may write it
    assert counter.logged()[-1].recipients == (CARLA,)
    with pytest.raises(RecipientNotFound):
        counter.post("team", recipient_id=MALLORY)


def test_files_are_for_those_who_are_members_now(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    store, conversation_id = counter.bench.store, derived_id(WORKSPACE, "team")
    monkeypatch.setattr(wiring, "message_store", lambda: store)
    mallory = Principal(MALLORY, WORKSPACE, "mallory", 0)
    counter.post("team", recipient_id=BOB)
    for _ in range(2):  # also for who came back
        assert not wiring.is_member(mallory, [uuid4(), conversation_id])
        with pytest.raises(ConversationNotFound):
            wiring.check_conversation(mallory, conversation_id)
        store.add_member(conversation_id, MALLORY, at_ms=counter.bench.clock.now_ms())
        assert wiring.is_member(mallory, [uuid4(), conversation_id])
        wiring.check_conversation(mallory, conversation_id)
        store.remove_member(conversation_id, MALLORY)
    wiring.check_conversation(mallory, uuid4())  # which is free to be named


def test_what_is_kept_is_as_old_as_the_question_however_long_the_answer_took() -> None:
    clock = ManualClock()
    cache = ConversationCache(clock)
    before, after = a_conversation(ALICE, BOB), a_conversation(ALICE)

    def load(_: UUID) -> Conversation:
        clock.advance(20)
        return before

    cache.get(before.conversation_id, load)
    cache.heard(clock.monotonic_s())
    assert cache.get(before.conversation_id, lambda _: after) is before
    clock.advance(10)
    cache.heard(clock.monotonic_s())
    assert cache.get(before.conversation_id, lambda _: after) is after


def test_what_is_loaded_while_members_change_is_not_kept() -> None:
    told: list[UUID] = []
    cache = ConversationCache(ManualClock(), tell=told.append)
    before, after = a_conversation(ALICE, BOB), a_conversation(ALICE)

    def load(_: UUID) -> Conversation:
        cache.changed(before.conversation_id)  # on another thread, while the answer is on its way
        return before

    assert cache.get(before.conversation_id, load) is before
    assert told == [before.conversation_id]
    assert cache.get(before.conversation_id, lambda _: after) is after
    assert cache.get(before.conversation_id, lambda _: None) is after
    cache.forget_all()
    assert cache.get(before.conversation_id, lambda _: None) is None
    assert told == [before.conversation_id], "what is heard from others is not told again"


def test_a_change_that_may_have_come_to_pass_is_told(counter: Counter) -> None:
    bench, told = counter.bench, list[UUID]()
    counter.post("team", recipient_id=BOB)
    team = bench.store.conversation(derived_id(WORKSPACE, "team"))
    assert team is not None
    parts: dict[str, Any] = {
        "store": AwayAfter("", bench.store),
        "parties": counter.desk.parties,
        "notify": counter.desk.notify,
        "cache": ConversationCache(bench.clock, tell=told.append),
        "clock": bench.clock,
    }
    with pytest.raises(StoreUnavailable):
        conversations.add_member(team, CARLA, **parts)
    with pytest.raises(StoreUnavailable):
        conversations.remove_member(team, BOB, **parts, forget=lambda _: None)
    with pytest.raises(MemberNotFound):  # whoever asks again, as the first one ended before they were answered
        conversations.remove_member(team, CARLA, **parts, forget=lambda _: None)
    assert told == [team.conversation_id] * 3


def test_members_come_and_go_and_everybody_sees_it(counter: Counter) -> None:
    bench, desk = counter.bench, counter.desk
    made, new = conversations.create(
        workspace_id=WORKSPACE,
        user_id=ALICE,
        public_id="team",
        title="Team",
        members=[BOB],
        store=bench.store,
        parties=desk.parties,
        notify=desk.notify,
        clock=bench.clock,
    )
    assert (new, made.members) == (True, (ALICE, BOB))
    parts: dict[str, Any] = {
        "store": bench.store,
        "parties": desk.parties,
        "notify": desk.notify,
        "cache": desk.cache,
        "clock": bench.clock,
    }
    counter.post("team")
    grown = conversations.add_member(made, CARLA, **parts)
    assert grown.members == (ALICE, BOB, CARLA)
    counter.post("team")  # the cache of this process knows at once
    assert counter.logged()[-1].recipients == (BOB, CARLA)
    forgotten: list[str] = []
    left = conversations.remove_member(grown, BOB, **parts, forget=forgotten.append)
    assert left.members == (ALICE, CARLA)
    with pytest.raises(Chat4AllError):
        conversations.remove_member(left, BOB, **parts, forget=forgotten.append)
    assert forgotten == [BOB]
    frames = bench.sockets.of(ALICE, "conversation")
    assert [len(each["conversation"]["members"]) for each in frames] == [2, 3, 2]


def test_the_same_id_again_is_the_same_conversation_to_its_members_and_nothing_to_others(counter: Counter) -> None:
    bench, desk = counter.bench, counter.desk

    def create(user_id: str) -> tuple[Any, bool]:
        return conversations.create(
            workspace_id=WORKSPACE,
            user_id=user_id,
            public_id="team",
            title=user_id,
            members=[BOB],
            store=bench.store,
            parties=desk.parties,
            notify=desk.notify,
            clock=bench.clock,
        )

    first, _ = create(ALICE)
    assert create(BOB) == (first, False)
    with pytest.raises(ConversationNotFound):
        create(MALLORY)
    assert len(bench.sockets.of(BOB, "conversation")) == 1


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_message_is_seen_before_it_is_stored_and_after(counter: Counter) -> None:
    accepted = counter.post("lunch", recipient_id=BOB)

    def seen(user: str) -> Any:
        return story(
            accepted.message_id,
            user_id=user,
            workspace_id=WORKSPACE,
            store=counter.bench.store,
            hints=counter.hints,
        )

    assert seen(BOB).statuses is None
    with pytest.raises(Chat4AllError):
        seen(MALLORY)
    counter.store_all()
    assert [each.status for each in seen(BOB).statuses] == ["SENT"]
    with pytest.raises(Chat4AllError):
        seen(MALLORY)


def test_only_a_recipient_reads_a_message(counter: Counter) -> None:
    accepted = counter.post("lunch", recipient_id=BOB)
    parts: dict[str, Any] = {
        "workspace_id": WORKSPACE,
        "store": counter.bench.store,
        "hints": counter.hints,
        "log": counter.bench.log,
        "clock": counter.bench.clock,
    }
    for store_first in (False, True):
        if store_first:
            counter.store_all()
        mark_read(accepted.message_id, user_id=BOB, **parts)
        for other in (ALICE, MALLORY):
            with pytest.raises(Chat4AllError):
                mark_read(accepted.message_id, user_id=other, **parts)
    with pytest.raises(Chat4AllError):
        mark_read(uuid7(), user_id=BOB, **parts)
    assert counter.bench.reported() == [("READ", None)] * 2


def test_an_acknowledgement_makes_delivered(counter: Counter) -> None:
    accepted = counter.post("lunch", recipient_id=BOB)
    place = (derived_id(WORKSPACE, "lunch"), accepted.message_id)
    acknowledge(BOB, [place], log=counter.bench.log, clock=ManualClock())
    assert counter.bench.reported() == [("DELIVERED", None)]


def test_history_pages_lead_both_ways_and_end(counter: Counter) -> None:
    ids = [counter.post("lunch", str(number), recipient_id=BOB).message_id for number in range(7)]
    counter.store_all()
    conversation = counter.bench.store.conversation(derived_id(WORKSPACE, "lunch"))
    assert conversation is not None
    store = counter.bench.store
    newest = history(conversation, store=store, limit=3)
    assert [each.message_id for each in newest.messages] == ids[:3:-1]
    assert (newest.older, newest.newer) == (ids[4], None)
    middle = history(conversation, store=store, before=newest.older, limit=3)
    assert [each.message_id for each in middle.messages] == ids[3:0:-1]
    last = history(conversation, store=store, before=middle.older, limit=3)
    assert ([each.message_id for each in last.messages], last.older) == ([ids[0]], None)
    back = history(conversation, store=store, after=last.newer, limit=3)
    assert [each.message_id for each in back.messages] == ids[3:0:-1]
    assert history(conversation, store=store, after=ids[-1], limit=3).messages == []
