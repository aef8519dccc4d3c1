"""The cache with a time to live."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pytest

from core.cache import RENEWED_FOR_S, LastKnown, TtlCache
from core.clock import ManualClock


def test_forgets_after_its_time() -> None:
    clock = ManualClock()
    cache: TtlCache[str, int] = TtlCache(ttl_s=5, clock=clock)
    cache.put("a", 1)
    clock.advance(4.9)
    assert cache.get("a") == 1
    clock.advance(0.1)
    assert cache.get("a") is None


def test_counts_the_time_anew_when_something_is_put_again() -> None:
    clock = ManualClock()
    cache: TtlCache[str, int] = TtlCache(ttl_s=5, clock=clock)
    cache.put("a", 1)
    clock.advance(4)
    cache.put("a", 2)
    clock.advance(4)
    assert cache.get("a") == 2


def test_what_is_taken_is_gone() -> None:
    clock = ManualClock()
    cache: TtlCache[str, int] = TtlCache(ttl_s=5, clock=clock)
    cache.put("a", 1)
    assert (cache.take("a"), cache.take("a")) == (1, None)
    cache.put("a", 2)
    clock.advance(5)
    assert cache.take("a") is None


def test_never_grows_past_its_size() -> None:
    cache: TtlCache[int, int] = TtlCache(ttl_s=5, size=3)
    for number in range(5):
        cache.put(number, number)
    assert [cache.get(number) for number in range(5)] == [None, None, 2, 3, 4]


def test_makes_room_by_the_oldest_entry_not_by_one_put_again() -> None:
    cache: TtlCache[str, int] = TtlCache(ttl_s=5, size=2)
    for key in ("a", "b", "a", "c"):
        cache.put(key, 1)
    assert [key for key in "abc" if cache.get(key)] == ["a", "c"]


def test_forgets_on_demand() -> None:
    cache: TtlCache[str, int] = TtlCache(ttl_s=5)
    for key in ("a", "b"):
        cache.put(key, 1)
    cache.forget("a")
    cache.forget("missing")
    assert (cache.get("a"), cache.get("b")) == (None, 1)
    cache.clear()
    assert cache.get("b") is None


def known(clock: ManualClock) -> LastKnown[str, str]:
    return LastKnown(ttl_s=5, outage_s=60, rest_s=2, clock=clock)


def test_the_last_answer_counts_while_its_part_is_away() -> None:
    clock = ManualClock()
    cache = known(clock)
    cache.put("a", "alice")
    clock.advance(6)
    assert cache.get("a") is None  # ask again, while nobody found it away
    cache.away()
    assert (cache.get("a"), cache.last("a")) == ("alice", "alice")
    clock.advance(2)
    assert (cache.get("a"), cache.last("a")) == (None, "alice")  # somebody has to look whether it is back


def test_what_was_learnt_counts_only_while_its_part_is_away() -> None:
    clock, source = ManualClock(), Source()
    cache = known(clock)
    cache.learn("a", "alice")
    cache.renew(source, most=10)
    assert source.asked == []  # nobody asked for it
    assert cache.get("a") is None
    cache.away()
    assert cache.get("a") == "alice"
    clock.advance(59)
    assert cache.last("a") == "alice"
    clock.advance(1)
    assert cache.last("a") is None


def test_what_was_learnt_takes_the_place_of_what_has_ended_alone() -> None:
    clock = ManualClock()
    cache = known(clock)
    cache.put("a", "alice")
    cache.learn("a", "adam")
    assert cache.get("a") == "alice"
    clock.advance(5)
    cache.learn("a", "adam")
    assert (cache.get("a"), cache.last("a")) == (None, "adam")


def test_the_last_answer_does_not_count_for_ever() -> None:
    clock = ManualClock()
    cache = known(clock)
    cache.put("a", "alice")
    clock.advance(65)
    cache.away()
    assert (cache.get("a"), cache.last("a")) == (None, None)


def test_that_there_was_nothing_does_not_count_while_a_part_is_away() -> None:
    clock = ManualClock()
    cache = known(clock)
    cache.put("a", "")
    assert cache.get("a") == ""
    clock.advance(6)
    cache.away()
    assert (cache.get("a"), cache.last("a")) == (None, None)


def test_what_is_cleared_is_not_known_any_more() -> None:
    cache = known(ManualClock())
    cache.put("a", "alice")
    cache.away()
    cache.clear()
    assert (cache.get("a"), cache.last("a")) == (None, None)


def keeping(clock: ManualClock, **entries: str) -> TtlCache[str, str]:
    cache: TtlCache[str, str] = TtlCache(ttl_s=5, clock=clock)
    for key, value in entries.items():
        cache.put(key, value)
    return cache


class Source:
    """What is asked when something is loaded again."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, keys: Collection[str]) -> list[tuple[str, str]]:
        self.asked.append(sorted(keys))
        return [(key, f"new {key}") for key in keys if key != "gone"]


def test_what_is_asked_for_is_renewed_before_anybody_waits_for_it() -> None:
    clock, source = ManualClock(), Source()
    cache = keeping(clock, a="old a")
    clock.advance(2.4)
    cache.renew(source, most=10)
    assert (cache.get("a"), source.asked) == ("old a", [])  # it is young
    clock.advance(0.1)
    cache.renew(source, most=10)
    clock.advance(4.9)
    assert (cache.get("a"), source.asked) == ("new a", [["a"]])


def test_what_ended_is_renewed_while_somebody_asked_for_it_lately() -> None:
    clock, source = ManualClock(), Source()
    cache = keeping(clock, a="old a")
    for _ in range(4):
        clock.advance(RENEWED_FOR_S / 4)
        cache.renew(source, most=10)
    assert source.asked == [["a"]] * 3  # to be renewed is not to be asked for
    assert cache.get("a") is None


def test_at_most_so_many_are_renewed_those_that_were_asked_for_last() -> None:
    clock, source = ManualClock(), Source()
    cache = keeping(clock, a="old", b="old", c="old")
    for key in "cab":
        clock.advance(1)
        cache.get(key)
    cache.renew(source, most=2)
    assert source.asked == [["a", "b"]]


def test_what_is_not_found_any_more_ends_when_it_would_have() -> None:
    clock, source = ManualClock(), Source()
    cache = keeping(clock, gone="old")
    clock.advance(4)
    cache.renew(source, most=10)
    assert cache.get("gone") == "old"
    clock.advance(1)
    assert cache.get("gone") is None


def test_nothing_is_not_asked_for_again() -> None:
    clock, source = ManualClock(), Source()
    cache = keeping(clock, a="")
    clock.advance(4)
    cache.renew(source, most=10)
    assert source.asked == []


def test_what_was_forgotten_or_put_while_it_was_renewed_stays_so() -> None:
    clock = ManualClock()
    cache = keeping(clock, a="old", b="old", c="old")
    clock.advance(4)

    def load(keys: Collection[str]) -> list[tuple[str, str]]:
        cache.forget("a")
        cache.put("b", "newest")
        return [(key, "new") for key in keys]

    cache.renew(load, most=10)
    assert [cache.get(key) for key in "abc"] == [None, "newest", "new"]


def test_what_is_renewed_is_as_old_as_the_question_however_long_the_answer_takes() -> None:
    clock = ManualClock()
    cache = keeping(clock, a="old", b="old")
    clock.advance(4)

    def load(keys: Collection[str]) -> Iterator[tuple[str, str]]:
        for key in sorted(keys):
            clock.advance(2)
            yield key, "new"

    cache.renew(load, most=10)
    assert [cache.get(key) for key in "ab"] == ["new", "new"]
    clock.advance(1)
    assert [cache.get(key) for key in "ab"] == [None, None]


def test_what_was_loaded_before_a_part_went_away_is_kept() -> None:
    clock = ManualClock()
    cache = keeping(clock, a="old")
    clock.advance(4)

    def load(_: Collection[str]) -> Iterator[tuple[str, str]]:
        yield "a", "new"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cache.renew(load, most=10)
    assert cache.get("a") == "new"
