"""What messaging.ports promises of every EventLog and Subscription, sentence by sentence."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar

import pytest

from messaging.errors import LeaseLost, LogUnavailable, RecordTooLarge
from messaging.ports import EventLog, NewRecord, Record, Subscription, TopicPartition
from messaging.topics import MAX_RECORD_BYTES, Topic
from tests.bounds import once_within, refused_s
from tests.contracts.event_logs import EVENT_LOG_PARAMS, EVENT_LOGS, LogUnderTest

PATIENCE_S = 60.0
TOPIC = Topic("messages", partitions=3)
SOURCES = [TopicPartition("messages", each) for each in range(3)]


@pytest.fixture(scope="module", params=EVENT_LOG_PARAMS)
def fresh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], LogUnderTest]]:
    with EVENT_LOGS[request.param](tmp_path_factory.mktemp("event-log")) as make:
        yield make


@pytest.fixture
def under_test(fresh: Callable[[], LogUnderTest]) -> Iterator[LogUnderTest]:
    log = fresh()
    yield log
    log.start()  # a failed test leaves the next one a log that answers
    while Member.living:
        Member.living.pop().leave()
    log.close()


@pytest.fixture
def log(under_test: LogUnderTest) -> EventLog:
    log = under_test.open()
    log.ensure_topics([TOPIC])
    return log


class Member:
    """A listener that keeps what it was told, and the subscription that tells it."""

    living: ClassVar[list[Member]] = []

    def __init__(
        self, log: EventLog, name: str, *, topics: Sequence[str] = ("messages",), group: str = "bridge"
    ) -> None:
        self.told: list[tuple[str, list[TopicPartition]]] = []
        self.owned: set[TopicPartition] = set()
        self.seen: list[Record] = []
        self.on_revoked: Callable[[Sequence[TopicPartition]], None] = lambda partitions: None
        self.subscription: Subscription = log.subscribe(topics, group=group, member=name, listener=self)
        self.living.append(self)

    def leave(self) -> None:
        self.on_revoked = lambda partitions: None
        self.subscription.close()

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        self.told.append(("assigned", list(partitions)))
        assert not self.owned & set(partitions), "assigned twice"
        self.owned |= set(partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(("revoked", list(partitions)))
        self.on_revoked(partitions)
        self.owned -= set(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(("lost", list(partitions)))
        self.owned -= set(partitions)

    def poll(self, timeout_s: float = 0.02) -> list[Record]:
        got = self.subscription.poll(timeout_s)
        self.seen += got
        return got

    def joined(self) -> Member:
        """Once it owns something; fails after PATIENCE_S."""
        poll_until(lambda: bool(self.owned), self)
        return self

    def collect(self, count: int) -> list[Record]:
        """Exactly as many records; fails after PATIENCE_S."""
        found: list[Record] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} records"
            found += self.poll(0.2)
        assert len(found) == count
        return found


def poll_until(condition: Callable[[], bool], *members: Member) -> list[Record]:
    """Let members poll in turn until the condition holds; what they read meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    found: list[Record] = []
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        for member in members:
            found += member.poll()
    return found


def records(count: int, *, key: str | None = None, topic: str = "messages", first: int = 0) -> list[NewRecord]:
    return [NewRecord(topic, key or f"key-{n}", f"{n}".encode()) for n in range(first, first + count)]


def after(found: Sequence[Record]) -> dict[TopicPartition, int]:
    """The offsets to commit once these are done."""
    return {record.source: record.offset + 1 for record in found}


def numbers(found: Sequence[Record]) -> list[int]:
    return [int(record.value) for record in found]


def took_s(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def away_within(call: Callable[[], object], seconds: float) -> None:
    once_within(seconds, lambda: refused_s(call, LogUnavailable))


def key_of(log: EventLog, source: TopicPartition) -> str:
    """A key that lands on this partition; leaves a record on some of them."""
    for n in range(1000):
        [(place, _)] = log.append([NewRecord(source.topic, f"probe-{n}", b"0")])
        if place == source:
            return f"probe-{n}"
    raise AssertionError("no key lands there")


# --- appending and reading ---------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_appended(log: EventLog) -> None:
    before_ms = time.time() * 1000 - 1000
    value, headers = bytes(range(256)), {"trace": "4bf9", "ünïcode": "ção 😀"}
    [(source, offset)] = log.append([NewRecord("messages", "conversação", value, headers)])
    [record] = log.read(source, start=offset, limit=10)
    assert (record.source, record.offset, record.key) == (source, offset, "conversação")
    assert (record.value, record.headers) == (value, headers)
    assert before_ms < record.appended_at_ms < time.time() * 1000 + 1000


@pytest.mark.parametrize("onward", [False, True])
def test_append_answers_with_each_records_place_in_the_order_given(log: EventLog, onward: bool) -> None:
    batch = records(50)
    places = log.append(batch, onward=onward)
    for new, (source, offset) in zip(batch, places, strict=True):
        [record] = log.read(source, start=offset, limit=1)
        assert (record.offset, record.key, record.value) == (offset, new.key, new.value)


def test_records_go_to_all_partitions_and_equal_keys_to_one(under_test: LogUnderTest, log: EventLog) -> None:
    first = log.append(records(60))
    second = under_test.open().append(records(60))  # another process agrees on the place of a key
    assert {source for source, _ in first} == set(SOURCES)
    assert [source for source, _ in first] == [source for source, _ in second]


def test_records_of_one_call_that_share_a_key_keep_the_order_given(log: EventLog) -> None:
    [(source, start), *_] = log.append(records(2500, key="same"))
    found = log.read(source, start=start, limit=3000)
    assert numbers(found) == list(range(2500))


def test_an_empty_append_does_nothing(log: EventLog) -> None:
    assert log.append([]) == []
    assert [log.end_offset(source) for source in SOURCES] == [0, 0, 0]


def test_a_value_of_the_maximum_is_taken_and_one_more_byte_refuses_the_whole_call(log: EventLog) -> None:
    largest = NewRecord("messages", "key", b"x" * MAX_RECORD_BYTES)
    [(source, offset)] = log.append([largest])
    assert log.read(source, start=offset, limit=1)[0].value == largest.value
    with pytest.raises(RecordTooLarge):
        log.append([NewRecord("messages", "key", b"small"), NewRecord("messages", "key", largest.value + b"x")])
    assert log.end_offset(source) == offset + 1


def test_a_topic_that_was_never_made_is_said_with_the_remedy(log: EventLog) -> None:
    with pytest.raises(LogUnavailable, match="setup_topics"):
        log.append([*records(1), NewRecord("nowhere", "key", b"1")])
    assert [log.end_offset(source) for source in SOURCES] == [0, 0, 0]


def test_ensuring_topics_again_keeps_what_is_there(log: EventLog) -> None:
    places = log.append(records(20))
    log.ensure_topics([TOPIC, Topic("inbound", partitions=1)])
    assert log.append(records(20)) == [(source, log_offset) for source, log_offset in _shifted(places)]
    assert log.append([NewRecord("inbound", "key", b"1")]) == [(TopicPartition("inbound", 0), 0)]


def _shifted(places: Sequence[tuple[TopicPartition, int]]) -> Iterator[tuple[TopicPartition, int]]:
    """Where the same records land when they are appended once more."""
    counts: dict[TopicPartition, int] = defaultdict(int)
    for source, _ in places:
        counts[source] += 1
    return ((source, offset + counts[source]) for source, offset in places)


def test_threads_that_append_at_once_leave_no_hole_and_keep_their_own_order(log: EventLog) -> None:
    def append_some(thread: int) -> list[tuple[TopicPartition, int]]:
        places = []
        for n in range(40):
            places += log.append([NewRecord("messages", f"thread-{thread}", f"{n}".encode())])
        return places

    with ThreadPoolExecutor(8) as pool:
        places = [place for each in pool.map(append_some, range(8)) for place in each]
    assert len(set(places)) == 320
    for source in SOURCES:
        offsets = sorted(offset for each, offset in places if each == source)
        assert offsets == list(range(log.end_offset(source)))
    by_key: dict[str, list[int]] = defaultdict(list)
    for source in SOURCES:
        for record in log.read(source, start=0, limit=1000):
            by_key[record.key].append(int(record.value))
    assert by_key == {f"thread-{thread}": list(range(40)) for thread in range(8)}


def test_reading_for_people_starts_where_told_stops_at_the_limit_and_moves_no_group(log: EventLog) -> None:
    [(source, start), *_] = log.append(records(10, key="same"))
    assert numbers(log.read(source, start=start + 3, limit=4)) == [3, 4, 5, 6]
    assert log.read(source, start=start + 10, limit=4) == []
    assert log.read(TopicPartition("nowhere", 0), start=0, limit=4) == []
    assert log.committed("bridge", source) == 0


def test_a_time_is_found_among_many_records(log: EventLog) -> None:
    found: list[Record] = []
    while len({each.appended_at_ms for each in found}) < 20:
        [(source, start), *_] = log.append(records(5, key="same"))
        found += log.read(source, start=start, limit=5)
    times = [each.appended_at_ms for each in found]
    for at_ms in {times[0], times[1], times[-1], *times[::37]}:
        assert log.offset_since(source, at_ms) == found[times.index(at_ms)].offset
        assert log.offset_since(source, at_ms - 1) <= found[times.index(at_ms)].offset
    assert log.offset_since(source, 0) == log.offset_since(source, -1) == found[0].offset
    assert log.offset_since(source, times[-1] + 1) == log.end_offset(source)
    assert log.offset_since(source, 1 << 53) == log.end_offset(source)
    assert log.offset_since(TopicPartition("nowhere", 0), times[0]) == 0


def test_the_end_offset_is_what_the_next_record_gets(log: EventLog) -> None:
    [(source, _), *_] = log.append(records(7, key="same"))
    expected = log.end_offset(source)
    assert log.append(records(1, key="same")) == [(source, expected)]


def _append_in_child(log: EventLog) -> None:
    log.append(records(5, key="child"))


def test_a_log_built_and_used_before_a_fork_is_usable_on_both_sides(under_test: LogUnderTest, log: EventLog) -> None:
    if type(log).__name__ == "MemoryLog":
        pytest.skip("memory is not shared over a fork")
    log.append(records(5, key="child"))
    child = multiprocessing.get_context("fork").Process(target=_append_in_child, args=(log,))
    child.start()
    [(source, _), *_] = log.append(records(5, key="child"))
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    assert log.end_offset(source) == 15


# --- groups ------------------------------------------------------------------------------------------------------


def test_a_lone_member_owns_everything_and_reads_all_in_order_per_partition(log: EventLog) -> None:
    places = log.append(records(200))
    member = Member(log, "a")
    found = member.collect(200)
    assert member.told == [("assigned", SOURCES)]
    assert sorted((record.source, record.offset) for record in found) == sorted(places)
    for source in SOURCES:
        offsets = [record.offset for record in found if record.source == source]
        assert offsets == sorted(offsets)


def test_poll_waits_for_the_first_record_and_no_longer(log: EventLog) -> None:
    member = Member(log, "a").joined()

    def idle_s() -> float:
        started = time.monotonic()
        assert member.poll(0.3) == []
        took_s = time.monotonic() - started
        assert took_s > 0.28
        return took_s

    def woken_s() -> float:
        appender = threading.Timer(0.2, log.append, [records(1)])
        appender.start()
        started = time.monotonic()
        assert numbers(member.poll(10)) == [0]
        took_s = time.monotonic() - started
        appender.join()
        return took_s

    once_within(1.0, idle_s)
    once_within(2.0, woken_s)


def test_poll_without_time_returns_what_is_there(log: EventLog) -> None:
    member = Member(log, "a").joined()
    log.append(records(3, key="same"))
    started = time.monotonic()
    while len(member.seen) < 3:
        assert time.monotonic() - started < PATIENCE_S
        member.poll(0)
    assert numbers(member.seen) == [0, 1, 2]
    once_within(0.5, lambda: took_s(lambda: member.poll(0)))


def test_a_poll_brings_at_most_a_thousand_records(log: EventLog) -> None:
    member = Member(log, "a").joined()
    log.append(records(3000))
    counts: list[int] = []
    found: list[Record] = []
    while len(found) < 3000:
        got = member.poll(5)
        assert got, "the log ran dry too early"
        counts.append(len(got))
        found += got
    assert max(counts) <= 1000
    assert sorted(numbers(found)) == list(range(3000))


def test_a_poll_brings_at_most_four_mebibytes_and_never_less_than_one_record(log: EventLog) -> None:
    member = Member(log, "a").joined()
    log.append(records(500))  # small ones first: what was seen so far says nothing about what comes
    for n in range(12):
        log.append([NewRecord("messages", f"large-{n}", b"x" * MAX_RECORD_BYTES)])
    left = 512
    while left:
        got = member.poll(5)
        assert got
        assert len(got) == 1 or sum(len(record.value) for record in got) <= 4 * 1024 * 1024
        left -= len(got)


def test_what_was_read_but_not_committed_is_read_again_after_a_restart(log: EventLog) -> None:
    [(source, _), *_] = log.append(records(10, key="same"))
    member = Member(log, "a")
    found = member.collect(10)
    member.subscription.commit({source: found[5].offset + 1})
    member.subscription.close()
    assert numbers(Member(log, "a").collect(4)) == [6, 7, 8, 9]


def test_committed_is_what_the_group_reads_next_and_each_group_has_its_own(log: EventLog) -> None:
    [(source, _), *_] = log.append(records(10, key="same"))
    member = Member(log, "a")
    found = member.collect(10)
    assert log.committed("bridge", source) == 0
    member.subscription.commit(after(found))
    assert log.committed("bridge", source) == log.end_offset(source) == 10
    assert log.committed("audit", source) == 0
    assert numbers(Member(log, "a", group="audit").collect(10)) == list(range(10))


def test_a_commit_never_goes_back(log: EventLog) -> None:
    [(source, _), *_] = log.append(records(10, key="same"))
    member = Member(log, "a")
    member.collect(10)
    member.subscription.commit({source: 8})
    member.subscription.commit({source: 3})
    assert log.committed("bridge", source) == 8


def test_a_member_reads_only_the_topics_that_it_asked_for(log: EventLog) -> None:
    log.ensure_topics([Topic("inbound", partitions=2)])
    log.append([NewRecord("inbound", "key", b"1"), NewRecord("messages", "key", b"2")])
    member = Member(log, "a", topics=["inbound"])
    assert numbers(member.collect(1)) == [1]
    assert member.poll() == []
    assert member.owned == {TopicPartition("inbound", 0), TopicPartition("inbound", 1)}


def test_a_topic_made_later_is_found(log: EventLog) -> None:
    member = Member(log, "a", topics=["late"])
    assert member.poll() == []
    log.ensure_topics([Topic("late", partitions=1)])
    log.append([NewRecord("late", "key", b"7")])
    assert numbers(member.collect(1)) == [7]


# --- pause and resume --------------------------------------------------------------------------------------------


def test_a_paused_partition_returns_nothing_until_resumed_and_then_goes_on_where_it_stopped(log: EventLog) -> None:
    keys = {source: key_of(log, source) for source in SOURCES[:2]}
    member = Member(log, "a")
    member.collect(sum(log.end_offset(source) for source in SOURCES))
    member.subscription.pause([SOURCES[0], TopicPartition("nowhere", 3)])
    log.append(records(5, key=keys[SOURCES[0]]) + records(5, key=keys[SOURCES[1]], first=5))
    assert numbers(member.collect(5)) == [5, 6, 7, 8, 9]
    assert member.poll(0.1) == []
    member.subscription.resume([SOURCES[0], TopicPartition("nowhere", 3)])
    assert numbers(member.collect(5)) == [0, 1, 2, 3, 4]
    assert member.told == [("assigned", SOURCES)]


def test_ownership_is_kept_while_everything_is_paused(under_test: LogUnderTest, log: EventLog) -> None:
    member, rival = Member(log, "a"), Member(log, "a-rival", topics=["other"])
    poll_until(lambda: member.owned == set(SOURCES), member)
    member.subscription.pause(SOURCES)
    log.append(records(10))
    deadline = time.monotonic() + 2 * under_test.lease_ttl_s
    while time.monotonic() < deadline:
        assert member.poll(0.2) == []
        rival.poll(0)
    assert member.told == [("assigned", SOURCES)]
    member.subscription.resume(SOURCES)
    member.collect(10)


def test_pausing_in_the_middle_of_a_backlog_loses_and_doubles_nothing(log: EventLog) -> None:
    places = log.append(records(4000))
    member = Member(log, "a")
    found: list[Record] = []
    for turn in range(200):
        paused = SOURCES[turn % 3]
        member.subscription.pause([paused])
        got = member.poll(0)
        assert all(record.source != paused for record in got) or turn == 0  # nothing is owned before the first poll
        found += got
        member.subscription.resume([paused])
    found += member.collect(4000 - len(found))
    assert sorted((record.source, record.offset) for record in found) == sorted(places)
    for source in SOURCES:
        offsets = [record.offset for record in found if record.source == source]
        assert offsets == sorted(offsets)


# --- rebalancing -------------------------------------------------------------------------------------------------


def test_a_second_member_gets_its_share_at_once_after_the_first_was_asked_to_let_go(
    under_test: LogUnderTest, log: EventLog
) -> None:
    log.append(records(60))
    first = Member(log, "a")
    done = after(first.collect(60))
    first.on_revoked = lambda partitions: first.subscription.commit({each: done[each] for each in partitions})
    seconds: list[Member] = []

    def share_s() -> float:
        if seconds:
            seconds[-1].leave()
            poll_until(lambda: first.owned == set(SOURCES), first)
        seconds.append(Member(log, "b"))
        started = time.monotonic()
        found = poll_until(lambda: len(seconds[-1].owned) > 0, seconds[-1], first)
        took_s = time.monotonic() - started
        assert found == []  # the handover committed: nothing is read again
        return took_s

    once_within(2 * under_test.lease_ttl_s, share_s)
    second = seconds[-1]
    assert {how for how, _ in first.told} == {"assigned", "revoked"}
    assert first.owned | second.owned == set(SOURCES)
    assert not first.owned & second.owned
    log.append(records(60))
    poll_until(lambda: len(first.seen) + len(second.seen) == 120, first, second)


def test_a_partition_that_comes_back_is_read_although_it_was_paused_as_it_went(log: EventLog) -> None:
    """A bridge that is behind has its partitions paused most of the time, also when another one comes and goes."""
    keys = {source: key_of(log, source) for source in SOURCES}
    stays, guest = Member(log, "a"), Member(log, "b")
    poll_until(lambda: stays.owned == set(SOURCES), stays)
    stays.subscription.pause(SOURCES)
    poll_until(lambda: bool(guest.owned) and not guest.owned & stays.owned, stays, guest)
    moved = set(guest.owned)
    guest.leave()
    poll_until(lambda: stays.owned == set(SOURCES), stays)
    log.append([NewRecord("messages", keys[source], b"77") for source in SOURCES])
    poll_until(lambda: moved <= {each.source for each in stays.seen if each.value == b"77"}, stays)
    assert {each.source for each in stays.seen if each.value == b"77"} == moved  # the others were not resumed


def test_shares_are_fair_and_nobody_shares_a_partition(under_test: LogUnderTest, log: EventLog) -> None:
    log.ensure_topics([Topic("inbound", partitions=4)])
    members = [Member(under_test.open(), name, topics=["messages", "inbound"]) for name in "abc"]
    poll_until(lambda: sorted(len(member.owned) for member in members) == [2, 2, 3], *members)
    assert len(set.union(*(member.owned for member in members))) == 7


def test_a_member_that_leaves_hands_over_at_once(under_test: LogUnderTest, log: EventLog) -> None:
    first = Member(log, "a")

    def handover_s() -> float:
        second = Member(log, "b")
        poll_until(lambda: len(first.owned | second.owned) == 3 and bool(second.owned), first, second)
        second.subscription.close()
        second.subscription.close()  # once more does nothing
        assert second.told[-1][0] == "revoked"
        assert not second.owned
        started = time.monotonic()
        poll_until(lambda: first.owned == set(SOURCES), first)
        return time.monotonic() - started

    once_within(under_test.lease_ttl_s, handover_s)


def test_a_drain_longer_than_the_lease_keeps_it_and_may_commit(under_test: LogUnderTest, log: EventLog) -> None:
    log.append(records(30))
    first = Member(log, "a")
    first.collect(30)
    stop_rival = threading.Event()
    rival = Member(under_test.open(), "0")
    taken_while_draining: list[set[TopicPartition]] = []

    def drain(partitions: Sequence[TopicPartition]) -> None:
        stop_rival.wait(2 * under_test.lease_ttl_s)  # longer than an unrenewed lease lasts
        taken_while_draining.append(set(rival.owned))
        first.subscription.commit({each: log.end_offset(each) for each in partitions})

    first.on_revoked = drain

    def poll_rival() -> None:
        while not stop_rival.is_set():
            rival.poll(0.1)

    polling = threading.Thread(target=poll_rival)
    polling.start()
    try:
        poll_until(lambda: any(told[0] == "revoked" for told in first.told), first)
    finally:
        stop_rival.set()
        polling.join()
    assert taken_while_draining == [set()]
    poll_until(lambda: first.owned | rival.owned == set(SOURCES), first, rival)
    assert rival.seen == []
    assert all(log.committed("bridge", each) == log.end_offset(each) for each in rival.owned)
    assert rival.owned


def test_a_member_that_stopped_polling_loses_its_partitions_and_cannot_commit(
    under_test: LogUnderTest, log: EventLog
) -> None:
    places = log.append(records(30))
    zombie = Member(log, "a")
    done = after(zombie.collect(30))
    heir = Member(under_test.open(), "b")
    poll_until(lambda: heir.owned == set(SOURCES), heir)  # the zombie's lease lapses meanwhile
    poll_until(lambda: len(heir.seen) == 30, heir)
    assert sorted((record.source, record.offset) for record in heir.seen) == sorted(places)

    log.append(records(30))
    with pytest.raises(LeaseLost):
        zombie.subscription.commit(done)
    assert [log.committed("bridge", source) for source in SOURCES] == [0, 0, 0]
    before = len(zombie.seen)
    assert zombie.poll(0) == zombie.seen[before:]
    assert ("lost", SOURCES) in zombie.told
    poll_until(lambda: len(zombie.owned) > 0, zombie, heir)


def test_one_lost_partition_is_refused_and_the_others_are_committed(under_test: LogUnderTest, log: EventLog) -> None:
    log.append(records(30))
    first, second = Member(log, "a"), Member(under_test.open(), "b")
    poll_until(lambda: bool(second.owned) and first.owned | second.owned == set(SOURCES), first, second)
    foreign, [own, *_] = next(iter(second.owned)), sorted(first.owned)
    with pytest.raises(LeaseLost, match=f"{foreign.topic}/{foreign.partition}"):
        first.subscription.commit({foreign: 1, own: 1})
    assert log.committed("bridge", own) == 1
    assert log.committed("bridge", foreign) == 0


def test_a_member_that_slept_goes_on_when_nobody_took_its_place(under_test: LogUnderTest, log: EventLog) -> None:
    member = Member(log, "a")
    log.append(records(10))
    found = member.collect(10)
    threading.Event().wait(1.5 * under_test.lease_ttl_s)  # the nap itself
    member.subscription.commit(after(found))
    log.append(records(10, first=10))
    assert sorted(numbers(member.collect(10))) == list(range(10, 20))
    assert [told[0] for told in member.told] == ["assigned"]


def test_a_restart_under_the_same_name_takes_over_at_once_and_shuts_the_run_before_it_out(
    under_test: LogUnderTest, log: EventLog
) -> None:
    log.append(records(10))
    before = Member(log, "a")
    done = after(before.collect(10))
    again = Member(under_test.open(), "a")
    again.collect(10)
    assert again.owned == set(SOURCES)
    with pytest.raises(LeaseLost):
        before.subscription.commit(done)
    poll_until(lambda: ("lost", SOURCES) in before.told, before)
    poll_until(lambda: not before.owned, before, again)
    assert again.owned == set(SOURCES)
    again.subscription.close()
    poll_until(lambda: before.owned == set(SOURCES), before)  # and waits for its turn


def test_records_fetched_ahead_are_not_returned_while_paused_nor_once_the_partition_is_gone(
    under_test: LogUnderTest, log: EventLog
) -> None:
    zombie = Member(log, "a")
    log.append(records(2000, key="same"))  # small ones: the adapter comes to fetch many at a time
    zombie.collect(2000)
    for n in range(10):
        log.append([NewRecord("messages", "same", b"%08d" % n + b"x" * 900_000)])
    ahead = [int(record.value[:8]) for record in zombie.poll(5)]
    assert ahead == list(range(len(ahead)))
    assert 1 <= len(ahead) <= 4
    zombie.subscription.pause(SOURCES)
    assert zombie.poll(0) == []
    zombie.subscription.resume(SOURCES)
    assert int(zombie.poll(5)[0].value[:8]) == len(ahead)
    heir = Member(under_test.open(), "b")
    heir.poll(0)
    heir.subscription.pause(SOURCES)
    poll_until(lambda: heir.owned == set(SOURCES), heir)
    assert zombie.poll(0) == []
    assert ("lost", SOURCES) in zombie.told


def test_order_and_completeness_survive_members_coming_and_going(under_test: LogUnderTest, log: EventLog) -> None:
    """Every record is seen, and those of a key in order but for what a handover reads again."""
    stop = threading.Event()
    appended: list[NewRecord] = []

    def append() -> None:
        while not stop.wait(0.002):
            batch = [NewRecord("messages", f"key-{n}", f"{len(appended)}".encode()) for n in range(5)]
            log.append(batch)
            appended.append(batch[0])

    appender = threading.Thread(target=append)
    appender.start()
    first = Member(log, "a")
    history: dict[str, list[int]] = defaultdict(list)

    def follow(member: Member, until: Callable[[], bool], *others: Member) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < deadline
            for each in (member, *others):
                got = each.poll()
                for record in got:
                    history[record.key].append(int(record.value))
                with suppress(LeaseLost):  # on a busy machine it polled too late: whoever has it now reads it again
                    each.subscription.commit(after(got))

    try:
        follow(first, lambda: len(first.seen) > 100)
        second = Member(under_test.open(), "b")
        follow(first, lambda: len(second.seen) > 100, second)
        first.subscription.close()
        follow(second, lambda: second.owned == set(SOURCES))
    finally:
        stop.set()
        appender.join()
    follow(second, lambda: all(log.committed("bridge", each) == log.end_offset(each) for each in SOURCES))
    first_time = {key: list(dict.fromkeys(numbers)) for key, numbers in history.items()}
    assert first_time == {f"key-{n}": list(range(len(appended))) for n in range(5)}


# --- when the log is away ----------------------------------------------------------------------------------------


def test_every_call_says_so_in_time_when_the_log_is_away(under_test: LogUnderTest, log: EventLog) -> None:
    member = Member(log, "a")
    log.append(records(3))
    found = member.collect(3)
    asked = [under_test.open() for _ in range(5)]  # a process each: to wait one after the other takes long
    for each in asked:
        each.ping()
    under_test.stop()
    bound_s = under_test.append_timeout_s + 0.5
    away_within(lambda: member.subscription.commit(after(found)), bound_s)
    calls: list[tuple[Callable[[], object], float]] = [
        (lambda: log.append(records(1)), bound_s),
        (lambda: asked[0].committed("bridge", SOURCES[0]), bound_s),
        (lambda: asked[1].end_offset(SOURCES[0]), bound_s),
        (lambda: asked[2].read(SOURCES[0], start=0, limit=1), bound_s),
        (lambda: asked[3].offset_since(SOURCES[0], 0), bound_s),
        (lambda: asked[4].ensure_topics([TOPIC]), bound_s),
        (under_test.open().ping, 2.5),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(lambda each: away_within(*each), calls))
    away_within(log.ping, 2.5)
    with pytest.raises(LogUnavailable, match=r"(?i)event log.*(runs|set_available)"):  # the part and the remedy
        log.ping()
    away_within(lambda: member.poll(0.1), bound_s)
    member.subscription.close()  # what cannot be released lapses: leaving never fails


def test_a_subscription_stays_usable_and_nothing_is_lost_over_an_outage(
    under_test: LogUnderTest, log: EventLog
) -> None:
    member = Member(log, "a")
    log.append(records(20))
    found = member.collect(20)
    member.subscription.commit(after(found))
    polling = threading.Timer(0.2, under_test.stop)
    polling.start()
    away_within(lambda: [member.poll(1) for _ in range(10)], 15)  # it goes in the middle of a poll
    polling.join()
    away_within(lambda: member.poll(0), 5)
    under_test.start()
    log.append(records(20, first=20))
    assert sorted(numbers(member.collect(20))) == list(range(20, 40))
    member.subscription.commit({source: log.end_offset(source) for source in SOURCES})
    assert [log.committed("bridge", source) for source in SOURCES] == [log.end_offset(source) for source in SOURCES]


def test_what_was_acknowledged_survives_the_end_of_the_log_without_warning(
    under_test: LogUnderTest, log: EventLog
) -> None:
    """Guarantee 1: four threads append until the log dies under them; each acknowledged record is there afterwards."""
    acknowledged: list[tuple[TopicPartition, int, bytes]] = []
    enough = threading.Event()

    def append_until_it_dies(thread: int) -> None:
        for n in range(1_000_000):
            value = f"{thread}:{n}".encode()
            try:
                [(source, offset)] = log.append([NewRecord("messages", f"{thread}", value)])
            except LogUnavailable:
                return
            acknowledged.append((source, offset, value))
            if len(acknowledged) > 300:
                enough.set()

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(append_until_it_dies, thread) for thread in range(4)]
        assert enough.wait(PATIENCE_S)
        under_test.stop()
        for run in runs:
            run.result(PATIENCE_S)
    under_test.start()
    kept: Mapping[tuple[TopicPartition, int], bytes] = {
        (record.source, record.offset): record.value
        for source in SOURCES
        for record in log.read(source, start=0, limit=1_000_000)
    }
    lost = [place for place in acknowledged if kept.get((place[0], place[1])) != place[2]]
    assert lost == []
