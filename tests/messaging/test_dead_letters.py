"""Whatever lies on a topic can become a dead letter, also what this release would not have appended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from core.clock import SYSTEM_CLOCK, ManualClock
from messaging import topics, tracing
from messaging.bridge.dead_letters import AWAY_S, DeadLetters
from messaging.errors import LogUnavailable
from messaging.eventlog.kafka_producer import OVERHEAD_BYTES
from messaging.eventlog.memory import MemoryLog
from messaging.ports import NewRecord, Record, TopicPartition
from messaging.topics import MAX_RECORD_BYTES
from messaging.work import Work
from tests.lines import Lines

SOURCE = TopicPartition(topics.MESSAGES, 1)


@pytest.mark.parametrize(
    ("key", "size", "header", "cut"),
    [
        pytest.param("chat", 10, "trace", False, id="an ordinary record"),
        pytest.param("chat", MAX_RECORD_BYTES, "trace", False, id="the largest value"),
        pytest.param("chat", MAX_RECORD_BYTES + 1, "trace", True, id="a larger value"),
        pytest.param("k" * OVERHEAD_BYTES, 10, "trace", True, id="a key too long to keep"),
        pytest.param("é" * OVERHEAD_BYTES, 10, "trace", True, id="which counts in bytes"),
        pytest.param("chat", 10, "t" * OVERHEAD_BYTES, True, id="headers too long to keep"),
    ],
)
def test_what_another_producer_wrote_too_large_is_buried_cut_and_says_so(
    key: str, size: int, header: str, cut: bool
) -> None:
    log = MemoryLog()
    log.ensure_topics(topics.all_topics(()))
    record = Record(SOURCE, 7, key, b"x" * size, {"trace": header}, appended_at_ms=1)
    assert DeadLetters(log, per_minute=1, clock=SYSTEM_CLOCK).bury(Work(record), "undecodable")
    [letter] = log.read(TopicPartition(topics.dead_letters(topics.MESSAGES), 0), start=0, limit=9)
    assert (letter.headers["dl-partition"], letter.headers["dl-offset"]) == ("1", "7")
    assert letter.headers.get("dl-cut") == (str(size) if cut else None)
    assert letter.value == record.value[:MAX_RECORD_BYTES]
    assert key.startswith(letter.key)
    beside = (letter.key, *letter.headers, *letter.headers.values())
    assert sum(len(each.encode()) for each in beside) <= OVERHEAD_BYTES // 2, "Kafka takes no more"
    assert cut or (letter.key, letter.headers["trace"]) == (key, header)


def test_a_topic_that_is_away_is_not_tried_for_each_of_a_hundred_records() -> None:
    """To find out takes seconds, in which the bridge would hand out nothing of any other topic."""

    class Away(MemoryLog):
        asked = 0

        def append(self, records: Sequence[NewRecord], *, onward: bool = False) -> list[tuple[TopicPartition, int]]:
            self.asked += 1
            raise LogUnavailable("away")

    log, clock = Away(), ManualClock()
    letters = DeadLetters(log, per_minute=1_000, clock=clock)
    works = [Work(record_with({})) for _ in range(100)]
    for times in (1, 2):
        assert not any(letters.bury(each, "undecodable") for each in works)
        assert log.asked == times
        clock.advance(AWAY_S)


@pytest.mark.parametrize("size", [10, OVERHEAD_BYTES])
def test_a_dead_letter_names_the_request_it_comes_from(lines: Lines, size: int) -> None:
    """Kept beside what is cut; what another producer wrote there, and no request id is, goes on to nothing."""
    log = MemoryLog()
    log.ensure_topics(topics.all_topics(()))
    headers = {tracing.REQUEST_ID: "r1", "other": "x" * size}
    assert DeadLetters(log, per_minute=1, clock=SYSTEM_CLOCK).bury(Work(record_with(headers)), "undecodable")
    [letter] = log.read(TopicPartition(topics.dead_letters(topics.MESSAGES), 0), start=0, limit=9)
    assert letter.headers[tracing.REQUEST_ID] == "r1"
    assert [(line["message"], line["request_id"]) for line in lines()] == [("dead letter", "r1")]


@pytest.mark.parametrize("strange", ["", "x" * 129, "a b", "a\0"])
def test_what_is_no_request_id_leads_to_nothing(strange: str) -> None:
    assert tracing.onward(record_with({tracing.REQUEST_ID: strange})) == {}


def record_with(headers: Mapping[str, str]) -> Record:
    return Record(SOURCE, 7, "chat", b"x", headers, appended_at_ms=1)
