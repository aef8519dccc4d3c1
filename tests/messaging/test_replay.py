"""Dead letters go back where they came from: once, however often somebody asks, and changing nothing twice."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from accounts.models import AuditEvent
from messaging import codec, topics, tracing, wiring
from messaging.bridge import DeadLetters
from messaging.domain import InboundEvent, InboundReceipts, Message, Outbound, Status, StatusChange
from messaging.management.commands import replay_dead_letters
from messaging.models import ReplayedLetter
from messaging.ports import DeliveryKey, NewRecord, Record, TopicPartition
from messaging.replays import SqlMarks
from messaging.services import persist, replay, statuses
from messaging.services.deliver import MAX_AGE_MS, deliver
from messaging.services.receipts import records_of
from messaging.services.recent import RecentMessages
from messaging.services.replay import Fate, Letter, Mark, Place, Replayed, Wanted
from messaging.work import DONE, EXPIRED, Work
from tests.contracts.message_stores import CARLA
from tests.messaging.workbench import CHANNELS, EVERYWHERE, WORKSPACE, FreeLease, Fuse, Killed, Workbench, items

pytestmark = pytest.mark.django_db
OUTBOUND = topics.outbound("whatsapp")
TOPICS = {each.name: each for each in topics.all_topics(CHANNELS, 1)}
WORK = topics.work_topics(CHANNELS)
BY = Replayed("operator", 1)


def bury(bench: Workbench, records: Sequence[Record], reason: str = "ValueError") -> None:
    letters = DeadLetters(bench.log, per_minute=1_000, clock=bench.clock)
    assert all(letters.bury(Work(record, attempts=3), reason) for record in records)


def wanted(*names: str, **conditions: Any) -> Wanted:
    return Wanted([TOPICS[name] for name in names or WORK], **conditions)


def letters(bench: Workbench, which: Wanted | None = None) -> list[Letter]:
    found = replay.pages(bench.log, which or wanted(), store=bench.store)
    return [letter for page in found for letter in page.letters]


def run(bench: Workbench, which: Wanted | None = None, fuse: Fuse | None = None) -> list[Fate]:
    """A replay as the command does it; what became of each letter."""
    marks = SqlMarks()
    verdicts = replay.judge(letters(bench, which), store=bench.store, marks=marks, now_ms=bench.clock.now_ms())
    replay.carry_out(verdicts, log=(fuse or Fuse(0)).through(bench.log), marks=marks, replayed=BY)
    return [each.fate for each in verdicts]


def on(bench: Workbench, topic: str) -> list[Record]:
    return bench.log.read(TopicPartition(topic, 0), start=0, limit=10_000)


def work_off(bench: Workbench, topic: str) -> None:
    """Everything on the topic from its start, as workers do it after a replay of the log."""
    if topic == topics.MESSAGES:
        persist.persist(
            items(on(bench, topic)),
            store=bench.store,
            log=bench.log,
            notify=bench.sockets,
            lease=FreeLease(),
            recent=RecentMessages(),
        )
    elif topic == topics.STATUS_UPDATES:
        statuses.apply_statuses(
            items(on(bench, topic)),
            store=bench.store,
            notify=bench.sockets,
            lease=FreeLease(),
            recent=RecentMessages(),
        )
    else:
        assert set(
            deliver(
                items(on(bench, topic)),
                bench.delivery(),
                owner=f"worker-{uuid4()}",
                lease=FreeLease(),
                deadline_s=bench.clock.monotonic_s() + 5,
            ).values()
        ) == {DONE}


def standing(bench: Workbench, message: Message) -> list[Status]:
    return [each.status for each in bench.store.statuses([message])[message.message_id]]


# --- what is replayed ----------------------------------------------------------------------------------------------


@EVERYWHERE
def test_a_letter_goes_back_to_its_topic_as_it_was(bench: Workbench) -> None:
    message = bench.message(bench.conversation())
    [record] = bench.append(topics.MESSAGES, [message])
    bury(bench, [record])
    assert run(bench) == [Fate.REPLAYED]
    back = on(bench, topics.MESSAGES)[-1]
    assert (back.key, back.value, dict(back.headers)) == (record.key, record.value, {"replay-of": "messages:0:0"})
    work_off(bench, topics.MESSAGES)
    assert bench.store.message(message.message_id) == message


@EVERYWHERE
def test_a_second_run_replays_nothing(bench: Workbench) -> None:
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation()) for _ in range(45)]))
    assert run(bench) == [Fate.REPLAYED] * 45
    assert run(bench) == [Fate.ALREADY] * 45
    assert len(on(bench, topics.MESSAGES)) == 90


def test_what_comes_after_is_replayed_though_others_were(bench: Workbench) -> None:
    """Filters leave holes: what was not chosen then may be chosen now."""
    conversation = bench.conversation()
    one, other = bench.append(topics.MESSAGES, [bench.message(conversation) for _ in range(2)])
    bury(bench, [one], "worker_lost")
    bury(bench, [other], "ValueError")
    assert run(bench, wanted(error="ValueError")) == [Fate.REPLAYED]
    assert run(bench) == [Fate.REPLAYED, Fate.ALREADY]


@EVERYWHERE
def test_a_replay_that_dies_before_its_marks_is_repeated_and_changes_nothing(bench: Workbench) -> None:
    message = bench.message(bench.conversation())
    bury(bench, bench.append(topics.MESSAGES, [message]))
    with pytest.raises(Killed):
        run(bench, fuse=Fuse(2))  # appended, not marked
    assert run(bench) == [Fate.REPLAYED]
    work_off(bench, topics.MESSAGES)
    assert len(on(bench, topics.MESSAGES)) == 3
    assert bench.store.history(message.conversation_id, limit=10) == [message]
    assert len(bench.sockets.frames) == 1
    work_off(bench, OUTBOUND)
    assert bench.platform.texts == ["hi"]


@EVERYWHERE
def test_a_letter_that_comes_back_dead_is_a_new_one(bench: Workbench) -> None:
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation())]))
    run(bench)
    bury(bench, on(bench, topics.MESSAGES)[-1:])
    assert run(bench) == [Fate.ALREADY, Fate.REPLAYED]


@EVERYWHERE
def test_broken_bytes_go_back_too(bench: Workbench) -> None:
    """A release that can read them may be there by now."""
    [place] = bench.log.append([NewRecord(topics.MESSAGES, "k", b"\x00not ours")])
    bury(bench, bench.log.read(place[0], start=place[1], limit=1), "undecodable")
    assert run(bench) == [Fate.REPLAYED]
    assert [each.value for each in on(bench, topics.MESSAGES)] == [b"\x00not ours"] * 2


def test_what_was_too_large_to_be_kept_whole_stays_where_it_is(bench: Workbench) -> None:
    [record] = bench.append(topics.MESSAGES, [bench.message(bench.conversation())])
    bury(bench, [replace(record, value=b"x" * (topics.MAX_RECORD_BYTES + 1))], "undecodable")
    assert run(bench) == [Fate.CUT]
    assert len(on(bench, topics.MESSAGES)) == 1


def test_a_log_that_began_anew_is_not_taken_for_the_one_before(bench: Workbench) -> None:
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation())]))
    [letter] = letters(bench)
    SqlMarks().add([Mark(letter.place, letter.record.appended_at_ms - 1)], BY)
    assert run(bench) == [Fate.REPLAYED]


def test_marks_are_kept_once_and_forgotten_when_the_log_has_forgotten(bench: Workbench) -> None:
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation())]))
    bench.clock.advance(86_400 * 5)
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation())]))
    old, new = (Mark.of(each) for each in letters(bench))
    marks = SqlMarks()
    marks.add([old, new], BY)
    marks.add([new], Replayed("somebody else", 2))
    replay.forget_gone(bench.log, [TOPICS[name] for name in WORK], marks=marks)
    assert marks.known([old, new, Mark(old.place, 7)]) == {old: BY, new: BY}
    bench.clock.advance(86_400 * 3)
    bench.log.trim(bench.clock.now_ms())
    replay.forget_gone(bench.log, [TOPICS[name] for name in WORK], marks=marks)
    assert marks.known([old, new]) == {new: BY}


# --- sends ---------------------------------------------------------------------------------------------------------


def expired(bench: Workbench) -> Message:
    """A send that came too late."""
    bench.outbound(bench.conversation(), "a1")
    bench.clock.advance(MAX_AGE_MS / 1000 + 1)
    work_off(bench, OUTBOUND)
    work_off(bench, topics.STATUS_UPDATES)
    [outbound] = bench.on_log(OUTBOUND, Outbound)
    assert standing(bench, outbound.message) == [Status.FAILED]
    return outbound.message


def test_a_send_that_came_too_late_is_a_dead_letter(bench: Workbench) -> None:
    expired(bench)
    assert [letter.error for letter in letters(bench, wanted(OUTBOUND))] == [EXPIRED]


def test_too_late_sends_do_not_use_up_the_rate_of_dead_letters(bench: Workbench) -> None:
    buried = DeadLetters(bench.log, per_minute=1, clock=bench.clock)
    works = [Work(each) for each in bench.outbound(bench.conversation(), *"abcd")]
    assert [buried.bury(work, EXPIRED) for work in works[:3]] == [True] * 3
    assert [buried.bury(work, "ValueError") for work in works[2:]] == [True, False]


def test_a_topic_that_waits_says_so_once_a_minute(bench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    buried = DeadLetters(bench.log, per_minute=1, clock=bench.clock)
    [work] = [Work(each) for each in bench.outbound(bench.conversation(), "a")]
    for _ in range(2):
        assert [buried.bury(work, "ValueError") for _ in range(4)] == [True, False, False, False]
        bench.clock.advance(61)
    assert [each.message for each in caplog.records].count("too many dead letters: the topic waits") == 2


@EVERYWHERE
def test_a_failed_send_is_replayed_as_a_new_attempt_and_its_status_moves_on(bench: Workbench) -> None:
    message = expired(bench)
    assert run(bench, wanted(OUTBOUND)) == [Fate.REPLAYED]
    assert [each.attempt for each in bench.on_log(OUTBOUND, Outbound)] == [0, 1]
    work_off(bench, topics.STATUS_UPDATES)
    assert standing(bench, message) == [Status.SENT]
    work_off(bench, OUTBOUND)
    work_off(bench, OUTBOUND)
    assert bench.platform.texts == ["a1"]
    history = [(each.change.status, each.change.attempt) for each in bench.store.transitions(message)]
    assert history == [(Status.SENT, 0), (Status.FAILED, 0), (Status.SENT, 1)]


def test_a_send_that_failed_is_a_new_attempt_also_before_its_status_says_so(bench: Workbench) -> None:
    """After a long outage thousands of them lag: the same attempt again would find that it ended, and send nothing."""
    bench.outbound(bench.conversation(), "a1")
    bench.clock.advance(MAX_AGE_MS / 1000 + 1)
    work_off(bench, OUTBOUND)
    assert run(bench, wanted(OUTBOUND)) == [Fate.REPLAYED]
    assert [each.attempt for each in bench.on_log(OUTBOUND, Outbound)] == [0, 1]
    work_off(bench, OUTBOUND)
    work_off(bench, topics.STATUS_UPDATES)
    assert bench.platform.texts == ["a1"]
    [outbound, _] = bench.on_log(OUTBOUND, Outbound)
    assert standing(bench, outbound.message) == [Status.SENT]


def test_a_new_attempt_names_the_request_that_the_first_came_from(bench: Workbench) -> None:
    message, now_ms = bench.message(bench.conversation()), bench.clock.now_ms()
    bench.store.save_messages([message])
    value = codec.encode(Outbound(message=message, recipient=CARLA, channel="whatsapp", routed_at_ms=now_ms))
    bench.log.append([NewRecord(OUTBOUND, str(message.conversation_id), value, tracing.headers("r1"))])
    bench.clock.advance(MAX_AGE_MS / 1000 + 1)
    work_off(bench, OUTBOUND)
    work_off(bench, topics.STATUS_UPDATES)
    assert run(bench, wanted(OUTBOUND)) == [Fate.REPLAYED]
    for topic in (OUTBOUND, topics.STATUS_UPDATES):
        assert [each.headers.get(tracing.REQUEST_ID) for each in on(bench, topic)] == ["r1", "r1"], topic


def test_a_new_attempt_that_fails_again_shows_it_and_may_be_replayed_again(bench: Workbench) -> None:
    message = expired(bench)
    run(bench, wanted(OUTBOUND))
    bench.clock.advance(MAX_AGE_MS / 1000 + 1)
    work_off(bench, OUTBOUND)
    work_off(bench, topics.STATUS_UPDATES)
    assert standing(bench, message) == [Status.FAILED]
    assert run(bench, wanted(OUTBOUND)) == [Fate.ALREADY, Fate.REPLAYED]
    work_off(bench, OUTBOUND)
    work_off(bench, topics.STATUS_UPDATES)
    assert bench.platform.texts == ["a1"]
    assert standing(bench, message) == [Status.SENT]


def test_two_letters_of_one_send_are_one_attempt(bench: Workbench) -> None:
    """A worker that died between the dead letter and the claim's end leaves two."""
    expired(bench)
    bury(bench, on(bench, OUTBOUND)[:1], EXPIRED)
    assert run(bench, wanted(OUTBOUND)) == [Fate.REPLAYED] * 2
    work_off(bench, OUTBOUND)
    assert bench.platform.texts == ["a1"]


def test_a_dead_letter_is_written_before_the_send_ends(bench: Workbench) -> None:
    """Whatever dies in between: FAILED for its age, and no letter, would be lost to the operator."""
    for at in range(1, 60):
        [record] = bench.outbound(bench.conversation(), f"late {at}")
        bench.clock.advance(MAX_AGE_MS / 1000 + 1)
        fuse = Fuse(at)
        try:
            deliver(
                items([record]), bench.delivery(fuse), owner=f"w{at}", lease=FreeLease(),
                deadline_s=bench.clock.monotonic_s() + 5,
            )  # fmt: skip
        except Killed:
            bench.clock.advance(200)
            deliver(
                items([record]), bench.delivery(), owner=f"v{at}", lease=FreeLease(),
                deadline_s=bench.clock.monotonic_s() + 5,
            )  # fmt: skip
        places = {each.record.headers["dl-offset"] for each in letters(bench, wanted(OUTBOUND))}
        assert str(record.offset) in places, fuse.place
        if not fuse.blown:
            return
    raise AssertionError("it never came through")


@EVERYWHERE
def test_a_send_that_was_delivered_meanwhile_is_left_alone(bench: Workbench) -> None:
    message = expired(bench)
    bench.append(
        topics.STATUS_UPDATES,
        [
            StatusChange(
                message_id=message.message_id,
                conversation_id=message.conversation_id,
                recipient=CARLA,
                status=Status.DELIVERED,
                at_ms=bench.clock.now_ms(),
            )
        ],
    )
    work_off(bench, topics.STATUS_UPDATES)
    assert run(bench, wanted(OUTBOUND)) == [Fate.DELIVERED]
    assert len(on(bench, OUTBOUND)) == 1


@EVERYWHERE
def test_a_send_whose_worker_died_is_the_same_attempt_so_that_its_claim_counts(bench: Workbench) -> None:
    [record] = bench.outbound(bench.conversation(), "a1")
    key = DeliveryKey(bench.on_log(OUTBOUND, Outbound)[0].message.message_id, CARLA)
    bench.store.claim_deliveries([key], owner="the dead", now_ms=bench.clock.now_ms(), lease_ms=1)
    bury(bench, [record], "worker_lost")
    assert run(bench, wanted(OUTBOUND)) == [Fate.REPLAYED]
    assert [each.attempt for each in bench.on_log(OUTBOUND, Outbound)] == [0, 0]


# --- which are chosen ----------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(bench: Workbench) -> Workbench:
    """Three days, three topics, two workspaces, and bytes that nobody can read."""
    ours, theirs = bench.conversation(), bench.conversation(workspace_id=uuid4())
    stored = bench.message(ours)
    bench.store.save_messages([stored])
    read = StatusChange(
        message_id=stored.message_id, conversation_id=ours.conversation_id, recipient=CARLA,
        status=Status.READ, at_ms=1,
    )  # fmt: skip
    bury(bench, bench.append(topics.MESSAGES, [bench.message(ours), bench.message(theirs)]))
    bench.clock.advance(86_400)
    bury(bench, bench.outbound(ours, "a1") + bench.append(topics.STATUS_UPDATES, [read]), "worker_lost")
    bench.clock.advance(86_400)
    event = InboundEvent(
        workspace_id=WORKSPACE, channel="whatsapp", account_id="1055", contact="c", payload={}, received_at_ms=1
    )
    places = bench.log.append(
        [NewRecord(topics.INBOUND, "k", b"?"), NewRecord(topics.INBOUND, "k", codec.encode(event))]
    )
    bury(bench, [bench.log.read(source, start=offset, limit=1)[0] for source, offset in places])
    return bench


def names(found: Sequence[Letter]) -> list[str]:
    return [str(each.place) for each in found]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        pytest.param(
            lambda now: wanted(),
            ["inbound:0:0", "inbound:0:1", "messages:0:0", "messages:0:1", "status-updates:0:0", f"{OUTBOUND}:0:0"],
            id="all of them, topic by topic",
        ),
        pytest.param(lambda now: wanted(topics.MESSAGES), ["messages:0:0", "messages:0:1"], id="of a topic"),
        pytest.param(lambda now: wanted(since_ms=now), ["inbound:0:0", "inbound:0:1"], id="since a time"),
        pytest.param(
            lambda now: wanted(until_ms=now - 86_400_000), ["messages:0:0", "messages:0:1"], id="until a time"
        ),
        pytest.param(
            lambda now: wanted(error="worker_lost"), ["status-updates:0:0", f"{OUTBOUND}:0:0"], id="of an error"
        ),
        pytest.param(
            lambda now: wanted(workspace_id=WORKSPACE),
            ["inbound:0:1", "messages:0:0", "status-updates:0:0", f"{OUTBOUND}:0:0"],
            id="of a workspace: not what nobody can read",
        ),
    ],
)
def test_letters_are_chosen(mixed: Workbench, which: Callable[[int], Wanted], expected: list[str]) -> None:
    assert names(letters(mixed, which(mixed.clock.now_ms()))) == expected


def test_receipts_are_their_workspaces_and_go_back_as_they_were(bench: Workbench) -> None:
    told = InboundReceipts(
        workspace_id=WORKSPACE, channel="whatsapp", account_id="1055", payloads=({"a": 1}, {"b": 2}), received_at_ms=1
    )
    theirs = replace(told, workspace_id=uuid4())
    records = [record for each in (told, theirs) for record in records_of(each, {})]
    places = bench.log.append(records)
    bury(bench, [bench.log.read(source, start=offset, limit=1)[0] for source, offset in places])
    assert run(bench, wanted(workspace_id=WORKSPACE)) == [Fate.REPLAYED]
    back = on(bench, topics.INBOUND)[-1]
    assert (back.key, codec.decode(InboundReceipts, back.value)) == (records[0].key, told)


@pytest.mark.parametrize("limit", [1, 2, 3, 20])
def test_pages_lead_through_all_of_them_once(bench: Workbench, limit: int) -> None:
    conversation = bench.conversation()
    bury(bench, bench.append(topics.MESSAGES, [bench.message(conversation) for _ in range(45)]))
    bury(bench, bench.outbound(conversation, "a1", "a2"))
    found, start = [], None
    while True:
        page = replay.first_page(bench.log, wanted(), store=bench.store, start=start, limit=limit, look_at=40)
        assert len(page.letters) <= limit
        found += names(page.letters)
        if page.next is None:
            break
        start = page.next
    assert found == names(letters(bench))
    assert len(found) == 47


def test_a_page_looks_at_a_bounded_number(bench: Workbench) -> None:
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation()) for _ in range(90)]))
    page = replay.first_page(bench.log, wanted(error="other"), store=bench.store, start=None, limit=5, look_at=40)
    assert (page.letters, page.looked_at, page.next) == ([], 40, Place("messages", 0, 40))


@pytest.mark.parametrize(
    "text", ["", "messages", "messages:0", "messages:0:x", ":0:1", "messages:-1:1", "messages:0:²"]
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Place.parse(text)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setattr(wiring, "event_log", lambda: bench.log)
    monkeypatch.setattr(wiring, "message_store", lambda: bench.store)

    def call(*arguments: str) -> list[str]:
        out = io.StringIO()
        call_command("replay_dead_letters", *arguments, stdout=out)
        return out.getvalue().splitlines()

    return call


def test_the_command_replays_and_tells(mixed: Workbench, command: Callable[..., list[str]]) -> None:
    assert command("--topic", "messages")[-1] == "2 replayed"
    assert command()[-1] == "4 replayed, 2 already replayed"
    assert command()[-1] == "0 replayed, 6 already replayed"
    by = ReplayedLetter.objects.values_list("by", flat=True).distinct().get()
    assert by.startswith("manage.py (")
    events = AuditEvent.objects.order_by("pk")
    assert {(each.action, each.actor) for each in events} == {("dead_letters.replayed", by)}
    assert sum(len(each.details.split(", ")) for each in events) == 6
    assert (events[0].target, events[0].details) == ("dead letters", "messages:0:0, messages:0:1")


@EVERYWHERE
def test_a_dry_run_changes_nothing_and_shows_no_text(bench: Workbench, command: Callable[..., list[str]]) -> None:
    message = bench.message(bench.conversation(), "a secret")
    bury(bench, bench.append(topics.MESSAGES, [message]), "KeyError")
    assert command("--dry-run") == [
        f"messages:0:0\tKeyError\tmessage {message.message_id}\treplayed",
        "would be 1 replayed",
    ]
    assert len(on(bench, topics.MESSAGES)) == 1
    assert not ReplayedLetter.objects.exists()
    assert not AuditEvent.objects.exists()


@EVERYWHERE
def test_a_limit_counts_what_is_replayed(bench: Workbench, command: Callable[..., list[str]]) -> None:
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation()) for _ in range(30)]))
    assert command("--limit", "5")[-1] == "5 replayed"
    assert command("--limit", "22")[-1] == "22 replayed, 5 already replayed"
    assert command()[-1] == "3 replayed, 27 already replayed"


def test_single_letters_are_named_by_id(mixed: Workbench, command: Callable[..., list[str]]) -> None:
    assert command("--id", "messages:0:1", "--id", "inbound:0:0")[-1] == "2 replayed"
    assert [row.topic for row in ReplayedLetter.objects.order_by("topic")] == ["inbound", "messages"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--id", "messages:0:99"], "no dead letter messages:0:99"),
        (["--id", "nonsense"], "no dead letter's id"),
        (["--topic", "nonsense"], "no such topic: nonsense"),
        (["--since", "yesterday"], "is no time"),
        (["--limit", "0"], "at least 1"),
        (["--id", "messages:0:1", "--error", "ValueError"], "no other filter goes with it"),
        (["--id", "messages:0:1", "--topic", "messages"], "no other filter goes with it"),
    ],
)
def test_the_command_says_what_is_wrong(command: Callable[..., list[str]], arguments: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        command(*arguments)


def test_a_log_that_is_away_is_told_with_what_was_done(bench: Workbench, command: Callable[..., list[str]]) -> None:
    bench.log.set_available(False)
    with pytest.raises(CommandError, match="0 replayed so far, run it again"):
        command()


def test_the_command_tells_how_far_it_looked_though_nothing_is_chosen(
    bench: Workbench, command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_dead_letters, "PROGRESS_EVERY", 2 * replay.PAGE)
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation()) for _ in range(90)]))
    assert command("--error", "other") == ["40 looked at: 0 replayed", "80 looked at: 0 replayed", "0 replayed"]


def test_a_command_that_is_stopped_says_that_more_is_left(bench: Workbench, command: Callable[..., list[str]]) -> None:
    bury(bench, bench.append(topics.MESSAGES, [bench.message(bench.conversation()) for _ in range(45)]))
    append = bench.log.append

    def asked_meanwhile(records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return append(records, onward=onward)

    bench.log.append = asked_meanwhile  # type: ignore[method-assign]
    with pytest.raises(CommandError, match="stopped; 20 replayed so far, run it again to go on") as stopped:
        command()
    assert stopped.value.returncode == 2
    bench.log.append = append  # type: ignore[method-assign]
    assert command()[-1] == "25 replayed, 20 already replayed"
