"""The cache with a time to live."""

from __future__ import annotations

from core.cache import LastKnown, TtlCache
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
