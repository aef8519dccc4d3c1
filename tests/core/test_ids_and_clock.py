"""Identifiers and times."""

from __future__ import annotations

import threading
import time
import uuid

from core import ids
from core.clock import ManualClock, iso_utc


def test_mints_message_ids_that_only_grow_from_many_threads() -> None:
    minted: list[list[uuid.UUID]] = [[] for _ in range(4)]

    def mint(into: list[uuid.UUID]) -> None:
        into.extend(ids.uuid7() for _ in range(2000))

    threads = [threading.Thread(target=mint, args=(into,)) for into in minted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(row == sorted(row) for row in minted)
    assert len({value for row in minted for value in row}) == 8000


def test_writes_the_time_into_a_message_id() -> None:
    before = time.time_ns()
    minted = ids.uuid7()
    assert minted.version == 7
    assert minted.variant == uuid.RFC_4122
    assert before // 1_000_000 <= ids.uuid7_ms(minted) <= time.time_ns() // 1_000_000 + 1
    assert before // 1000 - 1 <= ids.uuid7_us(minted) <= time.time_ns() // 1000 + 1000


def test_the_floor_of_a_millisecond_lies_below_what_is_minted_in_it_and_above_what_was_before() -> None:
    minted = ids.uuid7()
    ms = ids.uuid7_ms(minted)
    assert ids.uuid7_floor(ms) < minted < ids.uuid7_floor(ms + 1)
    assert ids.uuid7_floor(ms).version == 7, "Cassandra sorts by the version first"


def test_derives_one_id_from_a_name_and_another_in_another_workspace() -> None:
    here, there = uuid.uuid4(), uuid.uuid4()
    assert ids.derived_id(here, "team") == ids.derived_id(here, "team")
    assert ids.derived_id(here, "team") != ids.derived_id(there, "team")
    assert ids.derived_id(here, "x" * 65_536) == uuid.uuid5(here, "x" * 65_536)


def test_keeps_no_name_that_is_too_long_to_be_one() -> None:
    before = ids._kept_id.cache_info().currsize
    ids.derived_id(uuid.uuid4(), "x" * (ids.KEPT_CHARS + 1))
    assert ids._kept_id.cache_info().currsize == before


def test_writes_times_in_utc_with_milliseconds() -> None:
    assert iso_utc(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"
    assert iso_utc(0) == "1970-01-01T00:00:00.000Z"


def test_moves_a_manual_clock_only_by_hand() -> None:
    clock = ManualClock(now_ms=1000)
    before = clock.monotonic_s()
    clock.advance(1.5)
    assert (clock.now_ms(), clock.monotonic_s() - before) == (2500, 1.5)
