"""Many messages in one request: each is judged by itself, the good ones are appended at once, a key sends them once."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import pytest

from core.errors import Chat4AllError, InvalidRequest, Unavailable
from core.ids import BATCH_IDS, batch_id, uuid7, uuid7_ms
from messaging.domain import Conversation, Message
from messaging.errors import IdempotencyMismatch, LogUnavailable, SenderMismatch, StoreUnavailable
from messaging.ports import MessageStore
from messaging.services.accept import KEY_LEASE_MS, MAX_BATCH, Accepted, Draft, NoDraft, accept_many
from tests.contracts.message_stores import ALICE, BOB, MALLORY
from tests.messaging.test_accept import AwayAfter, Counter, DeadlyLog
from tests.messaging.workbench import WORKSPACE, Fuse, Killed, Workbench, every_step


@pytest.fixture
def counter(bench: Workbench) -> Counter:
    counter = Counter(bench)
    counter.post("lunch", recipient_id=BOB)
    return counter


def draft(text: str, conversation: str = "lunch", **fields: Any) -> Draft:
    return replace(Draft(workspace_id=WORKSPACE, user_id=ALICE, conversation=conversation, content=text), **fields)


def texts(counter: Counter) -> list[str]:
    return [each.content for each in counter.logged()][1:]


def ids(answers: list[Accepted | Chat4AllError]) -> list[object]:
    return [each.message_id for each in answers if isinstance(each, Accepted)]


def test_all_are_on_the_log_in_their_order_and_each_is_answered(counter: Counter) -> None:
    answers = accept_many([draft(f"text {number}") for number in range(MAX_BATCH)], counter.desk)
    assert texts(counter) == [f"text {number}" for number in range(MAX_BATCH)]
    assert ids(answers) == [each.message_id for each in counter.logged()[1:]]
    assert ids(answers) == sorted(set(ids(answers)))  # type: ignore[type-var]
    assert all(counter.hints.get(each.message_id) for each in answers if isinstance(each, Accepted))


def test_what_is_wrong_is_refused_by_itself(counter: Counter) -> None:
    refused = InvalidRequest("no draft at all")
    answers = accept_many(
        [
            draft("one"),
            NoDraft(None, refused),
            draft("two", sender_id=MALLORY),
            draft("three", "nowhere"),
            draft("four"),
        ],
        counter.desk,
    )
    assert texts(counter) == ["one", "four"]
    assert [getattr(each, "code", "accepted") for each in answers] == [
        "accepted",
        "invalid_request",
        "sender_mismatch",
        "conversation_not_found",
        "accepted",
    ]
    assert isinstance(answers[2], SenderMismatch)
    assert answers[1] is refused


def test_the_first_to_a_new_conversation_opens_it_for_the_others(counter: Counter) -> None:
    answers = accept_many([draft("one", "new", recipient_id=BOB), draft("two", "new")], counter.desk)
    assert len(ids(answers)) == 2
    assert {each.recipients for each in counter.logged()} == {(BOB,)}


def test_under_a_key_the_same_request_again_sends_nothing_twice(counter: Counter) -> None:
    drafts = [draft("one"), draft("two", "not yet"), draft("three")]
    first = accept_many(drafts, counter.desk, key="k")
    again = accept_many(drafts, counter.desk, key="k")
    assert ids(again) == ids(first)
    assert all(each.replay for each in again if isinstance(each, Accepted))
    assert texts(counter) == ["one", "three"]
    counter.post("not yet", recipient_id=BOB)
    later = accept_many(drafts, counter.desk, key="k")
    assert [each.replay for each in later if isinstance(each, Accepted)] == [True, False, True]
    assert sorted(texts(counter)) == ["hi", "one", "three", "two"]
    with pytest.raises(IdempotencyMismatch):
        accept_many(drafts[1:], counter.desk, key="k")


def test_under_a_key_a_request_without_what_was_wrong_in_it_is_another_one(counter: Counter) -> None:
    def wrong(body: object) -> NoDraft:
        return NoDraft(body, InvalidRequest("no draft at all"))

    drafts: list[Draft | NoDraft] = [wrong({"content": ""}), draft("one"), wrong(5)]
    first = accept_many(drafts, counter.desk, key="k")
    for other in (drafts[1:], drafts[:2], [draft("one"), *drafts], [wrong({"content": 1}), *drafts[1:]], drafts[::-1]):
        with pytest.raises(IdempotencyMismatch):
            accept_many(other, counter.desk, key="k")
    assert ids(accept_many(drafts, counter.desk, key="k")) == ids(first)
    assert texts(counter) == ["one"]


def test_what_was_stored_meanwhile_is_known_without_hints(counter: Counter) -> None:
    first = accept_many([draft("one"), draft("two")], counter.desk, key="k")
    counter.store_all()
    counter.hints.known.clear()
    assert ids(accept_many([draft("one"), draft("two")], counter.desk, key="k")) == ids(first)
    assert texts(counter) == ["one", "two"]


def test_what_nobody_knows_of_any_more_is_appended_under_the_same_ids(counter: Counter) -> None:
    first = accept_many([draft("one"), draft("two")], counter.desk, key="k")
    counter.hints.known.clear()
    assert ids(accept_many([draft("one"), draft("two")], counter.desk, key="k")) == ids(first)
    assert len({each.message_id for each in counter.logged()[1:]}) == 2


@pytest.mark.parametrize("error", [Killed, Unavailable])
def test_wherever_a_process_ends_a_retry_sends_each_once(counter: Counter, error: type[BaseException]) -> None:
    rounds = itertools.count()

    def once(fuse: Fuse) -> None:
        name = f"{error.__name__}-{next(rounds)}"
        drafts = [draft("one"), draft("two", name, recipient_id=BOB)]
        before = len({each.message_id for each in counter.logged()})
        with suppress(error):
            accept_many(drafts, counter.with_fuse(fuse), key=name)
        counter.bench.clock.advance(KEY_LEASE_MS / 1000)
        accept_many(drafts, counter.with_fuse(Fuse(0)), key=name)
        assert len({each.message_id for each in counter.logged()}) == before + 2

    assert every_step(once, error) >= 8


@pytest.mark.parametrize(("part", "error"), [("log", LogUnavailable), ("store", StoreUnavailable)])
def test_a_part_that_is_away_refuses_the_whole_request(counter: Counter, part: str, error: type[Exception]) -> None:
    class AwayLog(DeadlyLog):
        def append(self, records: Any, **options: Any) -> Any:
            raise LogUnavailable("away")

    away = AwayAfter("", counter.bench.store)
    without = {
        "log": counter.with_log(AwayLog()),
        "store": replace(counter.with_fuse(Fuse(0)), store=cast(MessageStore, away)),
    }
    with pytest.raises(error):
        accept_many([draft("one")], without[part])


def test_ids_of_a_batch_sort_among_those_around_it() -> None:
    before, base, after = uuid7(), uuid7(), uuid7()
    minted = [batch_id(base, number) for number in range(BATCH_IDS)]
    assert [before, *minted, after] == sorted({before, *minted, after})
    assert {uuid7_ms(each) for each in minted} == {uuid7_ms(base)}
    assert {each.version for each in minted} == {7}
    assert batch_id(minted[7], 3) == minted[3]
    for number in (-1, BATCH_IDS):
        with pytest.raises(ValueError, match="no number"):
            batch_id(base, number)


def test_conversations_of_many_are_looked_up_once(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, 200 conversations that a process does not know took their requests' time-out, if 50 came at once."""
    names = [f"lunch {number}" for number in range(20)]
    accept_many([draft("first", name, recipient_id=BOB) for name in names], counter.desk)
    counter.desk.cache.forget_all()
    asked: list[int] = []
    conversations = counter.bench.store.conversations

    def counted(conversation_ids: Collection[UUID]) -> dict[UUID, Conversation]:
        asked.append(len(conversation_ids))
        return conversations(conversation_ids)

    def never(_: UUID) -> None:
        raise AssertionError("one by one")

    monkeypatch.setattr(counter.bench.store, "conversations", counted)
    monkeypatch.setattr(counter.bench.store, "conversation", never)
    for text in ("second", "third"):
        assert len(ids(accept_many([draft(text, name) for name in names], counter.desk))) == len(names)
    assert asked == [len(names)]


def test_what_many_answer_is_looked_up_once(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """To wait for each that may be on its way would take a batch of unknown ones seconds."""
    counter.store_all()
    [stored] = counter.logged()
    [hinted] = ids(accept_many([draft("not stored yet")], counter.desk))
    assert isinstance(hinted, UUID)
    counter.hints.known = {hinted: counter.hints.known[hinted]}
    asked: list[list[UUID]] = []
    messages = counter.bench.store.messages

    def counted(message_ids: Collection[UUID]) -> dict[UUID, Message]:
        asked.append(list(message_ids))
        return messages(message_ids)

    def never(_: UUID) -> None:
        raise AssertionError("one by one")

    monkeypatch.setattr(counter.bench.store, "messages", counted)
    monkeypatch.setattr(counter.hints, "get", never)
    drafts = [draft(f"{number}", reply_to=each) for number, each in enumerate((stored.message_id, hinted, uuid7()))]
    *good, refused = accept_many(drafts, counter.desk)
    assert len(ids(good)) == 2
    assert isinstance(refused, InvalidRequest)
    assert len(asked) == 1
