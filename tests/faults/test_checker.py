"""The checker itself: it passes what is right, and catches what breaks a promise by that promise's rule alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.domain import Status, rank
from tests.faults.checker import RULES, Rule, check, report
from tests.faults.history import (
    Client,
    Commit,
    DeadLetter,
    Frame,
    Heard,
    History,
    Level,
    Logged,
    Request,
    Row,
    Sent,
    Told,
)

CARLA = "whatsapp:+5511999998888"
MESSAGES = ("messages", 0)
OUTBOUND = ("whatsapp-outbound", 0)
INBOUND = ("inbound", 0)
RESYNCED = frozenset({0})  # before the first frame
READ, FAILED, RETRIED = rank(Status.READ), rank(Status.FAILED), rank(Status.SENT, 1)


def id_of(chat: str, number: int) -> str:
    return f"{number:04d}-{chat}"


def right(chats: int = 2, each: int = 4) -> History:
    """Alice writes to Carla in some conversations; everything arrives and is read."""
    names = [f"chat {number}" for number in range(chats)]
    sent = [(name, number) for number in range(each) for name in names]
    ids = {(name, number): id_of(name, number) for name, number in sent}
    frames = [Frame("e1", seq + 1, name, ids[name, number]) for seq, (name, number) in enumerate(sent)]
    ticks = [
        Frame("e1", len(sent) + seq + 1, name, ids[name, number], CARLA, READ)
        for seq, (name, number) in enumerate(sent)
    ]
    rows = {
        name: [Row(ids[name, number], name, "alice", f"{name} {number}", {CARLA: READ}) for number in range(each)]
        for name in names
    }
    return History(
        requests=[Request(name, "alice", f"{name} {number}", ids[name, number]) for name, number in sent],
        log=[Logged(MESSAGES, offset, name, ids[name, number]) for offset, (name, number) in enumerate(sent)],
        told=[Told(ids[key], CARLA, READ) for key in sent],
        dead=[],
        stored=rows,
        sent=[Sent(name, CARLA, ids[name, number], READ) for name, number in sent],
        clients=[Client("alice", [*frames, *ticks], dict.fromkeys(names, frozenset()))],
        commits=[Commit(MESSAGES, offset, offset) for offset in range(len(sent))],
        levels=[Level("bridge RSS, MB", 80, 256)],
        external=frozenset({CARLA}),
    )


RIGHT = right()
FIRST = RIGHT.requests[0].message_id or ""
[CLIENT] = RIGHT.clients
TICK = next(each for each in CLIENT.frames if each.message_id == FIRST and each.rank is not None)
TRIED_AGAIN = [Frame("e1", 0, "chat 0", FIRST, CARLA, 0), Frame("e1", 0, "chat 0", FIRST, CARLA, 0, "maybe_duplicate")]
NEWS_OF_OLD = Frame("e1", 17, "long ago", "0000-long ago")
UNTOLD = DeadLetter(("inbound", 0), 7, None, receipts=frozenset({"0000-another"}))
ALL = {name: frozenset(row.message_id for row in rows) for name, rows in RIGHT.stored.items()}


def but(**changes: Any) -> History:
    return replace(RIGHT, **changes)


def swapped(items: Any, one: int, other: int) -> list[Any]:
    found = list(items)
    found[one], found[other] = found[other], found[one]
    return found


def stored(change: Callable[[list[Row]], list[Row]]) -> dict[str, list[Row]]:
    """The first conversation's rows changed."""
    return {name: change(list(rows)) if name == "chat 0" else list(rows) for name, rows in RIGHT.stored.items()}


def client(**changes: Any) -> list[Client]:
    return [replace(CLIENT, **changes)]


def renumbered(frames: Any) -> list[Frame]:
    return [frame._replace(seq=seq) for seq, frame in enumerate(frames)]


def seeing(rows: dict[str, list[Row]]) -> list[Client]:
    """A client to which all of these were pushed or fetched, and nothing else."""
    fetched = {name: frozenset(row.message_id for row in each) for name, each in rows.items()}
    ids = frozenset().union(*fetched.values())
    return client(frames=renumbered(f for f in CLIENT.frames if f.message_id in ids), fetched=fetched)


def without_first(rows: list[Row]) -> list[Row]:
    return rows[1:]


def one_more(rows: list[Row]) -> list[Row]:
    return [*rows, Row("9999-nobody's", "chat 0", "alice", "who said that?")]


def standing(value: int) -> dict[str, list[Row]]:
    return stored(lambda rows: [replace(rows[0], ranks={CARLA: value}), *rows[1:]])


def twice_sent(**changes: Any) -> History:
    return but(sent=[RIGHT.sent[0], *RIGHT.sent], **changes)


def hearing(
    *order: int, heard: int = 3, rows: tuple[int, ...] = (0, 1, 2), extra: tuple[Row, ...] = (), **changes: Any
) -> History:
    """Carla says three things as well, and everything arrives: ``order`` is that of the log, ``rows`` are stored, and
    the last of three was not answered with 200 where ``heard`` is 2."""
    chat = "carla@us"
    logged = [
        Logged(MESSAGES, 100 + at, chat, id_of(chat, number), f"wamid {number}")
        for at, number in enumerate(order or (0, 1, 2))
    ]
    told = [Row(id_of(chat, number), chat, CARLA, f"says {number}", {"alice": 0}) for number in rows]
    stored = {**RIGHT.stored, chat: [*told, *extra]}
    return but(
        log=[*RIGHT.log, *logged],
        heard=[Heard(CARLA, f"says {number}", f"wamid {number}", taken=number < heard) for number in range(3)],
        stored=stored,
        clients=client(fetched={name: frozenset(row.message_id for row in each) for name, each in stored.items()}),
        **changes,
    )


# --- right ---------------------------------------------------------------------------------------------------------

RIGHT_HISTORIES = {
    "everything arrives": RIGHT,
    "nothing happens": History([], [], [], [], {}, []),
    "a message is a dead letter": but(
        stored=stored(without_first),
        sent=RIGHT.sent[1:],
        told=RIGHT.told[1:],
        dead=[DeadLetter(MESSAGES, 0, None)],
        clients=seeing(stored(without_first)),
    ),
    "a dead letter was replayed behind what followed it": but(
        log=[*RIGHT.log, RIGHT.log[0]._replace(offset=99)],
        dead=[DeadLetter(MESSAGES, 0, None)],
        sent=[*RIGHT.sent[1:], RIGHT.sent[0]],
        clients=client(frames=renumbered([*CLIENT.frames[1:8], CLIENT.frames[0], *CLIENT.frames[8:]])),
    ),
    "the same id is on the log twice": but(log=[*RIGHT.log, RIGHT.log[0]._replace(offset=99)]),
    "an undecided request appeared": but(
        requests=[*RIGHT.requests, Request("chat 0", "alice", "who said that?", undecided=True)],
        stored=stored(one_more),
        clients=seeing(stored(one_more)),
    ),
    "an undecided request did not appear": but(requests=[*RIGHT.requests, Request("chat 0", "alice", "x", None, True)]),
    "a client hears of a second try": but(clients=client(frames=renumbered([*TRIED_AGAIN, *CLIENT.frames]))),
    "a send is doubled and says so": twice_sent(told=[Told(FIRST, CARLA, 0, "maybe_duplicate"), *RIGHT.told]),
    "a failed send was replayed, and arrived twice": twice_sent(
        told=[Told(FIRST, CARLA, FAILED), Told(FIRST, CARLA, RETRIED), *RIGHT.told],
        dead=[DeadLetter(OUTBOUND, 0, FIRST)],
    ),
    "a failed send was replayed, behind what followed it": but(
        sent=[*RIGHT.sent[1:], RIGHT.sent[0]],
        told=[Told(FIRST, CARLA, FAILED), Told(FIRST, CARLA, RETRIED), *RIGHT.told],
        dead=[DeadLetter(OUTBOUND, 0, FIRST)],
    ),
    "a send that died with its worker was replayed, behind what followed it": but(
        sent=[*RIGHT.sent[1:], RIGHT.sent[0]], dead=[DeadLetter(OUTBOUND, 0, FIRST)]
    ),
    "a send failed": but(
        sent=RIGHT.sent[1:],
        told=[Told(FIRST, CARLA, FAILED), *RIGHT.told[1:]],
        stored=standing(FAILED),
        clients=client(frames=[each._replace(rank=FAILED) if each == TICK else each for each in CLIENT.frames]),
    ),
    "a status went from failed to a new attempt": but(
        clients=client(
            frames=[
                *CLIENT.frames[:8],
                Frame("e1", 9, "chat 0", FIRST, CARLA, FAILED),
                Frame("e1", 10, "chat 0", FIRST, CARLA, RETRIED),
                *(frame._replace(seq=frame.seq + 2) for frame in CLIENT.frames[8:]),
            ]
        )
    ),
    "a client missed frames, was told to resync and fetched them": but(
        clients=client(frames=CLIENT.frames[3:], resyncs=RESYNCED, fetched=ALL)
    ),
    "a client missed frames in the middle, was told to resync and fetched them": but(
        clients=client(frames=[*CLIENT.frames[:3], *CLIENT.frames[5:]], resyncs=frozenset({3}), fetched=ALL)
    ),
    "a bus that forgot everything told an event again": but(
        clients=client(
            frames=[*CLIENT.frames, CLIENT.frames[-1]._replace(epoch="e2", seq=1)],
            resyncs=frozenset({len(CLIENT.frames)}),
            fetched=ALL,
        )
    ),
    "a client missed news of a status, was told to resync and fetched it": but(
        clients=client(frames=CLIENT.frames[9:], resyncs=RESYNCED, fetched=ALL, ranks={(FIRST, CARLA): READ})
    ),
    "a status was there before its message, and came with it": but(
        clients=client(frames=renumbered(each for each in CLIENT.frames if each != TICK), ranks={(FIRST, CARLA): READ})
    ),
    "a client is told of a conversation that it had before": but(
        clients=client(frames=[*CLIENT.frames, NEWS_OF_OLD], older=frozenset({"long ago"}))
    ),
    "a client is told of what is no message": but(clients=client(frames=[*CLIENT.frames, Frame("e1", 17, "", "x 17")])),
    "a person says something": hearing(),
    "what a person said was stored, and our answer got lost": hearing(heard=2),
    "what a person said was not taken, and is nowhere": hearing(heard=2, rows=(0, 1)),
    "what a person said is a dead letter before it got an id": hearing(
        rows=(0, 1), dead=[DeadLetter(INBOUND, 7, None, "wamid 2")]
    ),
    "a dead letter held receipts": but(
        told=RIGHT.told[1:], stored=standing(0), clients=[], dead=[UNTOLD._replace(receipts=frozenset({FIRST}))]
    ),
    "a message was told further than by its platform": but(sent=[each._replace(receipt=1000) for each in RIGHT.sent]),
    "what a person said is a dead letter": hearing(rows=(0, 1), dead=[DeadLetter(MESSAGES, 102, id_of("carla@us", 2))]),
    "what a person said is on the log twice": hearing(0, 1, 2, 0),
}


@pytest.mark.parametrize("history", RIGHT_HISTORIES.values(), ids=RIGHT_HISTORIES)
def test_what_is_right_passes(history: History) -> None:
    assert check(history) == []


# --- wrong ---------------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, Rule, History]] = [
    (
        "an acknowledged message is nowhere",
        Rule.LOST,
        but(stored=stored(without_first), clients=seeing(stored(without_first))),
    ),
    (
        "a dead send does not excuse a message that is not stored",
        Rule.LOST,
        but(
            stored=stored(without_first),
            clients=seeing(stored(without_first)),
            dead=[DeadLetter(OUTBOUND, 0, FIRST)],
        ),
    ),
    (
        "two requests are one message, and one of them is lost",
        Rule.SAME_ID,
        but(requests=[*RIGHT.requests, Request("chat 0", "alice", "chat 0 0", FIRST)]),
    ),
    ("a message is listed twice", Rule.STORED_TWICE, but(stored=stored(lambda rows: [rows[0], *rows]))),
    (
        "a message is stored with another text",
        Rule.STORED_WRONG,
        but(stored=stored(lambda rows: [replace(rows[0], content="other"), *rows[1:]])),
    ),
    ("nobody sent what is stored", Rule.PHANTOM, but(stored=stored(one_more), clients=seeing(stored(one_more)))),
    (
        "a refused request is stored",
        Rule.PHANTOM,
        but(
            requests=[*RIGHT.requests, Request("chat 0", "alice", "who said that?")],
            stored=stored(one_more),
            clients=seeing(stored(one_more)),
        ),
    ),
    (
        "one undecided request made two rows",
        Rule.PHANTOM,
        but(
            requests=[*RIGHT.requests, Request("chat 0", "alice", "who said that?", undecided=True)],
            stored=stored(lambda rows: [*one_more(rows), replace(one_more(rows)[-1], message_id="9999-twice")]),
            clients=[],
        ),
    ),
    ("what a person said is nowhere", Rule.HEARD_LOST, hearing(rows=(0, 1))),
    (
        "a dead letter of somebody else does not excuse what a person said",
        Rule.HEARD_LOST,
        hearing(rows=(0, 1), dead=[DeadLetter(INBOUND, 7, None, "wamid 1")]),
    ),
    (
        "what a person said once is stored under two ids",
        Rule.STORED_TWICE,
        hearing(extra=(Row("9999-carla", "carla@us", CARLA, "says 1"),)),
    ),
    (
        "a person's word is stored under another name",
        Rule.PHANTOM,
        hearing(extra=(Row("9999-carla", "carla@us", "whatsapp:+1", "says 1"),)),
    ),
    ("a person never said that", Rule.PHANTOM, hearing(extra=(Row("9999-carla", "carla@us", CARLA, "says 3"),))),
    ("a person's messages swapped places on the log", Rule.HEARD_ORDER, hearing(1, 0, 2)),
    (
        "a message was never pushed, and nobody said resync",
        Rule.CLIENT_DIFFERS,
        but(clients=client(frames=renumbered(CLIENT.frames[1:]))),
    ),
    (
        "a message is pushed to somebody who has no part in its conversation",
        Rule.SHOWN_WRONG,
        but(clients=[CLIENT, Client("mallory", [Frame("e1", 1, "chat 0", FIRST)], {})]),
    ),
    (
        "a message is pushed to somebody else, in a conversation of theirs",
        Rule.SHOWN_WRONG,
        but(clients=[CLIENT, Client("mallory", [Frame("e1", 1, "mine", FIRST)], {}, older=frozenset({"mine"}))]),
    ),
    (
        "somebody who has no part in its conversation hears that a message was read",
        Rule.SHOWN_WRONG,
        but(clients=[CLIENT, Client("mallory", [TICK], {})]),
    ),
    (
        "a message that is not stored is pushed, in a conversation that nobody knows",
        Rule.SHOWN_WRONG,
        but(clients=client(frames=[*CLIENT.frames, NEWS_OF_OLD])),
    ),
    (
        "a message that is not stored is pushed, in a conversation where nothing is",
        Rule.SHOWN_WRONG,
        but(
            stored={**RIGHT.stored, "refused": []},
            clients=client(frames=[*CLIENT.frames, NEWS_OF_OLD._replace(conversation="refused")]),
        ),
    ),
    (
        "two messages are pushed in the wrong order",
        Rule.PUSH_ORDER,
        but(clients=client(frames=renumbered(swapped(CLIENT.frames, 0, 2)))),
    ),
    ("two messages are sent in the wrong order", Rule.SEND_ORDER, but(sent=swapped(RIGHT.sent, 0, 2))),
    (
        "a send that failed reached its platform, and not in its place",
        Rule.SEND_ORDER,
        but(
            sent=swapped(RIGHT.sent, 0, 2),
            told=[Told(FIRST, CARLA, FAILED), *RIGHT.told],
            dead=[DeadLetter(OUTBOUND, 0, FIRST)],
        ),
    ),
    ("history is not by id", Rule.HISTORY_ORDER, but(stored=stored(lambda rows: swapped(rows, 0, 1)))),
    (
        "READ turned back into DELIVERED",
        Rule.STATUS_BACK,
        but(clients=client(frames=[*CLIENT.frames, Frame("e1", 17, "chat 0", FIRST, CARLA, rank(Status.DELIVERED))])),
    ),
    ("the store never heard of READ", Rule.STATUS_LOST, but(stored=standing(0), clients=[])),
    (
        "a receipt went no further than our webhook",
        Rule.RECEIPT_LOST,
        but(told=RIGHT.told[1:], stored=standing(0), clients=[]),
    ),
    (
        "a receipt was lost, and others are dead letters",
        Rule.RECEIPT_LOST,
        but(told=RIGHT.told[1:], stored=standing(0), clients=[], dead=[UNTOLD]),
    ),
    (
        "the platform's refusal of an attempt went no further than our webhook",
        Rule.RECEIPT_LOST,
        but(
            sent=[RIGHT.sent[0]._replace(receipt=FAILED), *RIGHT.sent[1:]],
            told=RIGHT.told[1:],
            stored=standing(0),
            clients=[],
        ),
    ),
    (
        "a client never heard of READ",
        Rule.STATUS_DIFFERS,
        but(clients=client(frames=renumbered(each for each in CLIENT.frames if each != TICK))),
    ),
    (
        "a client that resynced was told of an older status",
        Rule.STATUS_DIFFERS,
        but(clients=client(frames=CLIENT.frames[9:], resyncs=RESYNCED, fetched=ALL, ranks={(FIRST, CARLA): 0})),
    ),
    ("a message never reached the platform", Rule.NOT_SENT, but(sent=RIGHT.sent[1:])),
    (
        "a message reached another person as well",
        Rule.SENT_WRONG,
        but(sent=[*RIGHT.sent, RIGHT.sent[-1]._replace(recipient="whatsapp:+5511000000000")]),
    ),
    ("a platform got what nobody wrote", Rule.SENT_WRONG, but(sent=[*RIGHT.sent, Sent("", CARLA, "")])),
    ("a message reached the platform twice", Rule.SENT_TWICE, twice_sent()),
    (
        "a message reached the platform three times, marked once",
        Rule.SENT_TWICE,
        but(
            sent=[RIGHT.sent[0], RIGHT.sent[0], *RIGHT.sent],
            told=[Told(FIRST, CARLA, 0, "maybe_duplicate"), *RIGHT.told],
        ),
    ),
    ("an offset was committed before its work was done", Rule.COMMIT_AHEAD, but(commits=[Commit(MESSAGES, 5, 4)])),
    (
        "a committed offset went back",
        Rule.COMMIT_BACK,
        but(commits=[Commit(MESSAGES, 5, 5), Commit(MESSAGES, 4, 5)]),
    ),
    (
        "a frame has a number that was there",
        Rule.FRAME_ORDER,
        but(clients=client(frames=[*CLIENT.frames, Frame("e1", 3, "chat 0", FIRST, "user_bob", READ)])),
    ),
    (
        "a frame is missing, and nobody said resync",
        Rule.FRAME_ORDER,
        but(clients=client(frames=[each._replace(seq=each.seq + (each.seq > 9)) for each in CLIENT.frames])),
    ),
    (
        "an event has two frames",
        Rule.FRAME_ORDER,
        but(clients=client(frames=[*CLIENT.frames, CLIENT.frames[-1]._replace(seq=17)])),
    ),
    (
        "a client hears of one second try twice",
        Rule.FRAME_ORDER,
        but(clients=client(frames=renumbered([*TRIED_AGAIN, TRIED_AGAIN[-1], *CLIENT.frames]))),
    ),
    (
        "a client missed a frame before it was told to resync",
        Rule.FRAME_ORDER,
        but(
            clients=client(
                frames=[*CLIENT.frames[:3], *CLIENT.frames[4:]],
                resyncs=frozenset({len(CLIENT.frames) - 1}),
                fetched=ALL,
            )
        ),
    ),
    (
        "an event has two frames in the epoch after a resync",
        Rule.FRAME_ORDER,
        but(
            clients=client(
                frames=[*CLIENT.frames, CLIENT.frames[-1]._replace(seq=17)], resyncs=RESYNCED, fetched=ALL
            )
        ),
    ),
    (
        "a new epoch begins, and nobody said resync then",
        Rule.FRAME_ORDER,
        but(
            clients=client(
                frames=[each._replace(epoch="e2") if each.seq > 9 else each for each in CLIENT.frames],
                resyncs=RESYNCED,
                fetched=ALL,
            )
        ),
    ),
    (
        "an event is told again in another epoch, and nobody said resync",
        Rule.FRAME_ORDER,
        but(clients=client(frames=[*CLIENT.frames, CLIENT.frames[-1]._replace(epoch="e2", seq=1)])),
    ),
    (
        "a client that resynced lacks a message",
        Rule.CLIENT_DIFFERS,
        but(
            clients=client(
                resyncs=RESYNCED, frames=CLIENT.frames[8:], fetched={name: ids - {FIRST} for name, ids in ALL.items()}
            )
        ),
    ),
    (
        "a client shows a message that is not stored",
        Rule.CLIENT_DIFFERS,
        but(clients=client(fetched={name: ids | {"ghost"} for name, ids in ALL.items()})),
    ),
    ("memory grew over its bound", Rule.UNBOUNDED, but(levels=[Level("bridge RSS, MB", 257, 256)])),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "history"), [pytest.param(*each[1:], id=each[0]) for each in WRONG])
def test_what_is_wrong_is_caught_by_its_rule_alone(rule: Rule, history: History) -> None:
    assert {each.rule for each in check(history)} == {rule}


def test_each_rule_has_a_history_that_breaks_it() -> None:
    assert {rule for _, rule, _ in WRONG} == set(Rule) == RULES.keys()


# --- mutations -----------------------------------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn) -> History:
    """A right history with one thing dropped, doubled or swapped: in the store, at the platform, on a socket."""
    chats, each = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    history = right(chats, each)
    [device] = history.clients
    at = draw(st.integers(0, chats * each - 1))
    row_at = draw(st.integers(0, each - 1))
    chat = draw(st.sampled_from(sorted(history.stored)))
    kind = draw(st.sampled_from(["drop", "double", "swap"]))

    def mutate(items: Any, place: int, neighbour: int) -> list[Any]:
        found = list(items)
        if kind == "drop":
            del found[place]
        elif kind == "double":
            found.insert(place, found[place])
        else:
            return swapped(found, place, neighbour)
        return found

    other = (at + chats) % (chats * each)  # the next one of the same conversation, or its first
    match draw(st.sampled_from(["store", "platform", "socket"])):
        case "store":
            rows = mutate(history.stored[chat], row_at, (row_at + 1) % each)
            return replace(history, stored={**history.stored, chat: rows})
        case "platform":
            return replace(history, sent=mutate(history.sent, at, other))
    return replace(history, clients=[replace(device, frames=mutate(device.frames, at, other))])


@given(mutated())
def test_whatever_is_dropped_doubled_or_swapped_is_caught(history: History) -> None:
    assert check(history)


@given(st.integers(0, 5), st.integers(1, 8))
def test_right_histories_of_any_size_pass(chats: int, each: int) -> None:
    assert check(right(chats, each)) == []


# --- the report ----------------------------------------------------------------------------------------------------


def test_the_report_counts() -> None:
    history = twice_sent(
        told=[Told(FIRST, CARLA, 0, "maybe_duplicate"), *RIGHT.told],
        requests=[*RIGHT.requests, *(Request("chat 0", "alice", text, None, True) for text in ("a", "who said that?"))],
        stored=stored(one_more),
        clients=seeing(stored(one_more)),
    )
    assert str(report(history)) == (
        "8 acknowledged, 0 heard, 0 lost, 0 dead letters, 1 duplicated to a platform, 1 ambiguous, "
        "1 of 2 undecided ones appeared, 0 violations"
    )


def test_the_report_counts_what_was_heard_and_lost() -> None:
    told = report(hearing(heard=2, rows=(0,)))
    assert (told.heard, told.lost) == (2, 1)


def test_a_soak_is_checked_in_seconds() -> None:
    """50,000 messages here, each rule linear: 200,000 take four times as long."""
    assert check(right(1_000, 50)) == []


def test_a_history_that_is_wrong_throughout_is_told_in_bounds() -> None:
    history = replace(right(100, 30), stored={}, clients=[])
    assert len(check(history)) == 1_000
