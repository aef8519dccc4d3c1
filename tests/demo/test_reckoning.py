"""The count is only worth something if it sees each way in which a message can go missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from demo.reckoning import Evidence, Loss, Received, Reckoning, Said, Stored, Told, Witness, reckon

ALICE, BOB, MARIA, JOHN = "user_a", "user_b", "whatsapp:+5511987654321", "instagram:17841455556666777"
AMONG, WITH_MARIA, WITH_JOHN = "among", "with-maria", "with-john"
LIMIT_S = 30.0

HELLO = Told("m1", AMONG, ALICE, BOB, "Olá", at_ms=1_000)
PLAN = Told("m2", AMONG, BOB, ALICE, "O plano", at_ms=2_000, sha256="5a")
TO_MARIA = Told("m3", WITH_MARIA, ALICE, MARIA, "Oi Maria", at_ms=3_000, sha256="7b")
TO_JOHN = Told("m4", WITH_JOHN, BOB, JOHN, "Hi John", at_ms=4_000)
FROM_MARIA = Said("wamid.1", MARIA, "Olá", at_ms=500)
FROM_JOHN = Said("mid.1", JOHN, "", at_ms=600, sha256="9c")


def stored(told: Told) -> Stored:
    return Stored(told.message_id, told.conversation_id, told.sender, told.content, "READ", told.sha256)


MARIAS = Stored("m5", WITH_MARIA, MARIA, "Olá", "READ")
JOHNS = Stored("m6", WITH_JOHN, JOHN, "", "READ", "9c")


def witness(user_id: str, *history: Stored, read_at_ms: float = 5_000) -> Witness:
    """A user who has seen all of it."""
    return Witness(
        user_id,
        history,
        frames=[each.message_id for each in history],
        read_at_ms={each.message_id: read_at_ms for each in history},
    )


EVERYTHING_ARRIVED = Evidence(
    told=[HELLO, PLAN, TO_MARIA, TO_JOHN],
    said=[FROM_MARIA, FROM_JOHN],
    received=[
        Received(MARIA, "Oi Maria", at_ms=3_100, sha256="7b", correlation="m3"),
        Received(JOHN, "Hi John", at_ms=4_100),
    ],
    witnesses=[
        witness(ALICE, stored(HELLO), stored(PLAN), stored(TO_MARIA), MARIAS),
        witness(BOB, stored(HELLO), stored(PLAN), stored(TO_JOHN), JOHNS),
    ],
    members={AMONG: [ALICE, BOB], WITH_MARIA: [ALICE], WITH_JOHN: [BOB]},
)
Damage = Callable[[Evidence], Evidence]


def seen_by(user_id: str, change: Callable[[Witness], Witness]) -> Damage:
    """What one user has seen, changed."""
    return lambda evidence: replace(
        evidence, witnesses=[change(each) if each.user_id == user_id else each for each in evidence.witnesses]
    )


def stored_otherwise(user_id: str, message_id: str, **changes: str) -> Damage:
    return seen_by(
        user_id,
        lambda witness: replace(
            witness,
            history=[replace(each, **changes) if each.message_id == message_id else each for each in witness.history],
        ),
    )


def not_stored(user_id: str, message_id: str) -> Damage:
    return seen_by(
        user_id,
        lambda witness: replace(witness, history=[each for each in witness.history if each.message_id != message_id]),
    )


def no_frame(user_id: str, message_id: str) -> Damage:
    return seen_by(
        user_id, lambda witness: replace(witness, frames=[each for each in witness.frames if each != message_id])
    )


def read_at(user_id: str, message_id: str, at_ms: float | None) -> Damage:
    def change(witness: Witness) -> Witness:
        times = {**witness.read_at_ms, **({message_id: at_ms} if at_ms is not None else {})}
        if at_ms is None:
            del times[message_id]
        return replace(witness, read_at_ms=times)

    return seen_by(user_id, change)


def at_platforms(change: Callable[[list[Received]], list[Received]]) -> Damage:
    return lambda evidence: replace(evidence, received=change(list(evidence.received)))


def losses(reckoning: Reckoning) -> dict[Loss, set[str]]:
    return {loss: messages for loss, messages in reckoning.losses.items() if messages}


def test_nothing_is_lost_when_everything_arrived() -> None:
    reckoning = reckon(EVERYTHING_ARRIVED, limit_s=LIMIT_S)
    assert (reckoning.lost, reckoning.late, reckoning.twice) == (0, set(), 0)
    assert reckoning.flawless


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        pytest.param(not_stored(ALICE, "m1"), {Loss.NOT_STORED: {"m1"}}, id="not in the sender's history"),
        pytest.param(not_stored(BOB, "m1"), {Loss.NOT_STORED: {"m1"}}, id="not in the recipient's history"),
        pytest.param(stored_otherwise(BOB, "m1", content="Ol"), {Loss.NOT_STORED: {"m1"}}, id="another text"),
        pytest.param(stored_otherwise(BOB, "m1", sender=BOB), {Loss.NOT_STORED: {"m1"}}, id="another sender"),
        pytest.param(
            stored_otherwise(ALICE, "m1", conversation_id=WITH_MARIA), {Loss.NOT_STORED: {"m1"}}, id="elsewhere"
        ),
        pytest.param(stored_otherwise(ALICE, "m2", sha256="00"), {Loss.FILE_DIFFERS: {"m2"}}, id="another file"),
        pytest.param(stored_otherwise(BOB, "m4", status="SENT"), {Loss.NO_STATUS: {"m4"}}, id="stored as SENT"),
        pytest.param(read_at(BOB, "m2", None), {Loss.NO_STATUS: {"m2"}}, id="READ never told"),
        pytest.param(no_frame(ALICE, "m1"), {Loss.NO_FRAME: {"m1"}}, id="the sender's other devices saw nothing"),
        pytest.param(no_frame(BOB, "m1"), {Loss.NO_FRAME: {"m1"}}, id="the recipient's socket saw nothing"),
        pytest.param(at_platforms(lambda got: got[1:]), {Loss.NOT_AT_PLATFORM: {"m3"}}, id="WhatsApp never got it"),
        pytest.param(at_platforms(lambda got: got[:1]), {Loss.NOT_AT_PLATFORM: {"m4"}}, id="Instagram never got it"),
        pytest.param(
            at_platforms(lambda got: [replace(got[0], sha256="00"), got[1]]),
            {Loss.NOT_AT_PLATFORM: {"m3"}},
            id="WhatsApp got another file",
        ),
        pytest.param(
            at_platforms(lambda got: [replace(got[0], recipient=JOHN), got[1]]),
            {Loss.NOT_AT_PLATFORM: {"m3"}},
            id="somebody else got it",
        ),
        pytest.param(not_stored(ALICE, "m5"), {Loss.INBOUND_NOT_STORED: {"wamid.1"}}, id="what Maria wrote is gone"),
        pytest.param(
            stored_otherwise(ALICE, "m5", status="DELIVERED"), {Loss.NO_STATUS: {"wamid.1"}}, id="Maria's was not read"
        ),
        pytest.param(read_at(BOB, "m6", None), {Loss.NO_STATUS: {"mid.1"}}, id="nobody was told that John's was read"),
        pytest.param(no_frame(BOB, "m6"), {Loss.NO_FRAME: {"mid.1"}}, id="John's picture was not pushed"),
    ],
)
def test_each_way_of_losing_a_message_is_seen(damage: Damage, found: dict[Loss, set[str]]) -> None:
    reckoning = reckon(damage(EVERYTHING_ARRIVED), limit_s=LIMIT_S)
    assert losses(reckoning) == found
    assert reckoning.lost == 1
    assert not reckoning.flawless


def test_a_person_who_was_not_heard_by_every_member_was_not_heard() -> None:
    evidence = replace(EVERYTHING_ARRIVED, members={**EVERYTHING_ARRIVED.members, WITH_MARIA: [ALICE, BOB]})
    found = losses(reckon(evidence, limit_s=LIMIT_S))
    assert found[Loss.INBOUND_NOT_STORED] == {"wamid.1"}
    assert found[Loss.NO_FRAME] == {"m3", "wamid.1"}


def test_a_message_is_counted_once_whatever_is_wrong_with_it() -> None:
    evidence = EVERYTHING_ARRIVED
    for damage in (not_stored(BOB, "m1"), no_frame(BOB, "m1"), read_at(ALICE, "m1", None), no_frame(BOB, "m6")):
        evidence = damage(evidence)
    reckoning = reckon(evidence, limit_s=LIMIT_S)
    assert reckoning.lost == 2
    assert len(losses(reckoning)) == 3


@pytest.mark.parametrize(
    ("damage", "late"),
    [
        pytest.param(read_at(ALICE, "m1", 1_000 + 30_001), {"m1"}, id="our message"),
        pytest.param(read_at(ALICE, "m1", 1_000 + 30_000), set(), id="just in time"),
        pytest.param(read_at(ALICE, "m1", None), {"m1"}, id="never"),
        pytest.param(read_at(BOB, "m6", 600 + 30_001), {"mid.1"}, id="a person's message"),
    ],
)
def test_late_is_what_was_not_read_within_the_limit(damage: Damage, late: set[str]) -> None:
    reckoning = reckon(damage(EVERYTHING_ARRIVED), limit_s=LIMIT_S)
    assert reckoning.late == late
    assert reckoning.flawless is not bool(late)


@pytest.mark.parametrize("copy", [0, 1], ids=["by our id on WhatsApp", "by its looks on Instagram"])
def test_what_a_platform_got_twice_is_counted_and_not_lost(copy: int) -> None:
    reckoning = reckon(at_platforms(lambda got: [*got, got[copy]])(EVERYTHING_ARRIVED), limit_s=LIMIT_S)
    assert (reckoning.lost, reckoning.twice_at_platform) == (0, 1)
    assert not reckoning.flawless


def test_a_copy_of_one_message_does_not_stand_for_another_that_looks_alike() -> None:
    """Two equal lines to John, one arrived: one is missing, none came twice."""
    again = replace(TO_JOHN, message_id="m7")
    evidence = replace(EVERYTHING_ARRIVED, told=[*EVERYTHING_ARRIVED.told, again])
    evidence = seen_by(BOB, lambda bob: witness(BOB, *bob.history, stored(again)))(evidence)
    reckoning = reckon(evidence, limit_s=LIMIT_S)
    assert losses(reckoning) == {Loss.NOT_AT_PLATFORM: {"m7"}}
    assert reckoning.twice == 0


def test_what_an_earlier_run_left_over_is_no_copy_of_ours() -> None:
    evidence = at_platforms(lambda got: [got[1], *got])(EVERYTHING_ARRIVED)
    left_over = replace(evidence, unfinished_earlier=[(JOHN, "Hi John", None)])
    assert reckon(left_over, limit_s=LIMIT_S).flawless


def test_a_persons_message_that_was_stored_twice_is_counted() -> None:
    evidence = seen_by(ALICE, lambda alice: witness(ALICE, *alice.history, replace(MARIAS, message_id="m8")))
    reckoning = reckon(evidence(EVERYTHING_ARRIVED), limit_s=LIMIT_S)
    assert (reckoning.lost, reckoning.twice_in_store) == (0, 1)


def test_two_equal_lines_of_a_person_are_paired_in_their_order() -> None:
    """The second was read late; told the other way round, it would be the first that took so long."""
    again, stored_again = Said("wamid.2", MARIA, "Olá", at_ms=4_000), replace(MARIAS, message_id="m8")
    evidence = replace(EVERYTHING_ARRIVED, said=[again, *EVERYTHING_ARRIVED.said])
    evidence = seen_by(ALICE, lambda alice: witness(ALICE, stored_again, *alice.history))(evidence)
    evidence = read_at(ALICE, "m8", 4_000 + 30_001)(evidence)
    assert reckon(evidence, limit_s=LIMIT_S).late == {"wamid.2"}


def test_messages_from_before_are_none_of_its_business() -> None:
    evidence = seen_by(ALICE, lambda alice: witness(ALICE, *alice.history, replace(MARIAS, message_id="m0")))
    evidence_and_past = replace(evidence(EVERYTHING_ARRIVED), earlier=frozenset({"m0"}))
    assert reckon(evidence_and_past, limit_s=LIMIT_S).flawless


def test_a_message_that_was_pushed_twice_is_counted() -> None:
    twice = seen_by(BOB, lambda bob: replace(bob, frames=[*bob.frames, "m1"]))
    reckoning = reckon(twice(EVERYTHING_ARRIVED), limit_s=LIMIT_S)
    assert (reckoning.lost, reckoning.twice_pushed) == (0, 1)
