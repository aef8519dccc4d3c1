"""Breakers shared through a real Redis: one probe among all, and what goes on when Redis is away."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.breaker import BreakerState, CircuitBreaker, Outcome, Rules
from connectors.errors import PausedDeliveryError, PermanentDeliveryError, TransientDeliveryError
from core.clock import ManualClock
from demo.redis_server import BUS_RULES, RedisServer
from messaging import breakers as breakers_module
from messaging.breakers import REDIS_PAUSE_S, REDIS_TIMEOUT_S, SharedBreakers
from tests.bounds import once_within
from tests.conftest import redis_executables

REDIS = redis_executables()
DOWN = TransientDeliveryError("http_503")
A = ("whatsapp", "106540352242922")
B = ("instagram", "17841405822304914")
PATIENCE_S = 20.0
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


@pytest.fixture(scope="module", params=list(REDIS.values()), ids=list(REDIS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path_factory.mktemp("breakers"), rules=BUS_RULES, executable=request.param).start()
    yield started
    started.stop()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def process(
    server: RedisServer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], SharedBreakers]]:
    """Makes breakers as another process would: with a connection and a memory of its own. They wait for a Redis that a
    busy machine keeps from answering."""
    monkeypatch.setattr(breakers_module, "REDIS_TIMEOUT_S", PATIENCE_S)
    if not server.answers():
        server.start()
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    made: list[SharedBreakers] = []

    def make() -> SharedBreakers:
        made.append(SharedBreakers(server.url, clock=clock))
        return made[-1]

    yield make
    for each in made:
        each.close()


def admitted(breakers: SharedBreakers, account: tuple[str, str] = A) -> bool:
    try:
        breakers.before(*account)
    except PausedDeliveryError:
        return False
    return True


def fail(breakers: SharedBreakers, times: int) -> None:
    for _ in range(times):
        breakers.before(*A)
        breakers.failure(*A, DOWN)


def test_failures_of_all_processes_count_together(process: Callable[[], SharedBreakers]) -> None:
    one, other, third = process(), process(), process()
    fail(one, 3)
    fail(other, 2)
    with pytest.raises(PausedDeliveryError) as caught:
        third.before(*A)
    assert (caught.value.reason, caught.value.retry_after_s, caught.value.outage) == ("breaker_open", 30, False)
    assert admitted(third, B)  # another account goes on


def test_among_all_processes_one_probe_goes(process: Callable[[], SharedBreakers], clock: ManualClock) -> None:
    processes = [process() for _ in range(6)]
    fail(processes[0], 5)
    clock.advance(30)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(admitted, processes)).count(True) == 1
    processes[3].success(*A)
    assert all(admitted(each) for each in processes)


def test_a_guard_records_how_a_call_ended(process: Callable[[], SharedBreakers]) -> None:
    breakers = process()
    for _ in range(4):
        with pytest.raises(TransientDeliveryError), breakers.guard(*A):
            raise DOWN
    with pytest.raises(PausedDeliveryError, match="503") as opened, breakers.guard(*A):
        raise DOWN  # whoever meets this one knows that it is not about their message
    assert (opened.value.reason, opened.value.retry_after_s) == (DOWN.reason, Rules().open_s)
    called = False
    with pytest.raises(PausedDeliveryError), breakers.guard(*A):
        called = True
    assert not called


def test_a_probe_that_fails_is_told_how_long_the_next_one_waits(
    process: Callable[[], SharedBreakers], clock: ManualClock
) -> None:
    breakers = process()
    fail(breakers, 5)
    clock.advance(Rules().open_s)
    with pytest.raises(PausedDeliveryError) as probed, breakers.guard(*A):
        raise DOWN
    assert (probed.value.reason, probed.value.retry_after_s) == (DOWN.reason, Rules().open_s)


def test_a_guard_that_ends_well_starts_the_count_anew(process: Callable[[], SharedBreakers]) -> None:
    breakers = process()
    fail(breakers, 4)
    with breakers.guard(*A):
        pass
    fail(breakers, 4)
    assert admitted(breakers)


def test_a_bug_during_a_probe_makes_room_for_the_next(
    process: Callable[[], SharedBreakers], clock: ManualClock
) -> None:
    breakers = process()
    fail(breakers, 5)
    clock.advance(30)
    with pytest.raises(ZeroDivisionError), breakers.guard(*A):
        raise ZeroDivisionError
    assert breakers.states() == {"whatsapp:106540352242922": HALF_OPEN}
    assert admitted(breakers)
    assert not admitted(breakers)


def test_what_concerns_one_message_only_does_not_count(process: Callable[[], SharedBreakers]) -> None:
    breakers = process()
    for _ in range(50):
        breakers.failure(*A, PermanentDeliveryError("platform:131026"))
        breakers.failure(*A, TransientDeliveryError("platform:130429", outage=False))
    assert admitted(breakers)


def test_a_refused_token_opens_at_once_for_every_process(process: Callable[[], SharedBreakers]) -> None:
    process().failure(*A, PausedDeliveryError("platform:190"))
    assert not admitted(process())


def test_states_are_those_of_all_accounts_and_processes(process: Callable[[], SharedBreakers]) -> None:
    one, other = process(), process()
    one.success(*B)
    fail(one, 5)
    assert other.states() == {"whatsapp:106540352242922": OPEN, "instagram:17841405822304914": CLOSED}


def test_redis_and_one_process_follow_the_same_rules(
    process: Callable[[], SharedBreakers], server: RedisServer
) -> None:
    """The Lua script and `CircuitBreaker` side by side, over any sequence of events."""
    rules = Rules(failures_in_row=3, open_s=30, window_s=20, window_calls=6, failure_rate=0.5, probe_s=15)
    events = st.lists(st.sampled_from([0.5, 14.5, 15.0, 29.5, 30.0, "admit", *Outcome]), max_size=60)
    process()  # flushed
    number = 0

    @given(events=events)
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def agree(events: list[float | str]) -> None:
        nonlocal number
        number += 1
        clock = ManualClock()
        alone, shared = CircuitBreaker(clock, rules), SharedBreakers(server.url, rules=rules, clock=clock)
        key = f"whatsapp:{number}"
        for event in events:
            if isinstance(event, float):
                clock.advance(event)
            elif event == "admit":
                wait_s, shared_s = alone.admit(), shared._ask(key, "admit")
                assert shared_s == pytest.approx(-0.001 if wait_s is None else wait_s)
            else:
                alone.record(Outcome(event))
                assert shared._ask(key, str(event)) is not None
            assert vars(shared)["_local"].get(key, alone).snapshot() == alone.snapshot()  # the copy is faithful, too
        shared.close()

    agree()


def test_redis_counts_by_its_own_clock(server: RedisServer, process: Callable[[], SharedBreakers]) -> None:
    process()  # flushed
    breakers = SharedBreakers(server.url, rules=Rules(open_s=0.2, probe_s=0.2))
    fail(breakers, 4)
    began_s = time.monotonic()
    fail(breakers, 1)
    while not admitted(breakers):
        assert time.monotonic() < began_s + PATIENCE_S
    assert time.monotonic() >= began_s + 0.199  # Redis counts whole milliseconds
    breakers.success(*A)
    assert breakers.states() == {"whatsapp:106540352242922": CLOSED}
    breakers.close()


def test_a_clock_set_back_waits_the_full_time_and_not_until_then(
    process: Callable[[], SharedBreakers], clock: ManualClock
) -> None:
    breakers = process()
    fail(breakers, 5)
    clock.advance(-600)
    with pytest.raises(PausedDeliveryError) as caught:
        breakers.before(*A)
    assert caught.value.retry_after_s == 30


def test_when_redis_is_killed_each_process_goes_on_with_what_it_knows(
    process: Callable[[], SharedBreakers], server: RedisServer, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    knows, knows_not = process(), process()
    fail(knows, 5)
    server.kill()
    with caplog.at_level(logging.WARNING):
        assert not admitted(knows)
        assert admitted(knows_not)
    assert "Redis is away" in caplog.text
    clock.advance(0.25)
    fail(knows_not, 5)
    assert not admitted(knows_not)  # it learnt by itself
    assert knows_not.states() == {"whatsapp:106540352242922": OPEN}
    clock.advance(30)
    assert admitted(knows)  # its probe
    assert not admitted(knows)
    knows.success(*A)
    assert admitted(knows)


def test_when_redis_comes_back_it_decides_again(
    process: Callable[[], SharedBreakers], server: RedisServer, clock: ManualClock
) -> None:
    one, other = process(), process()
    one.success(*A)
    server.kill()
    one.success(*A)
    server.start()
    fail(one, 2)  # still alone, for a second
    clock.advance(REDIS_PAUSE_S)
    fail(one, 3)
    fail(other, 2)  # the fifth that Redis heard of
    assert not admitted(one)
    assert not admitted(other)


def test_a_flushed_redis_forgets_and_breaks_nothing(process: Callable[[], SharedBreakers], server: RedisServer) -> None:
    breakers = process()
    fail(breakers, 5)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.script_flush()
    assert admitted(breakers)
    fail(breakers, 5)
    assert not admitted(breakers)


def test_a_redis_that_hangs_costs_a_moment_once_and_not_for_every_call(
    process: Callable[[], SharedBreakers], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakers_module, "REDIS_TIMEOUT_S", REDIS_TIMEOUT_S)
    breakers = process()
    breakers.success(*A)
    server.signal(signal.SIGSTOP)

    def thousand_s() -> float:
        begun_s = time.monotonic()
        for _ in range(1000):
            with breakers.guard(*A):
                pass
        return time.monotonic() - begun_s

    try:
        once_within(2, thousand_s)
    finally:
        server.signal(signal.SIGCONT)


def test_nothing_is_connected_before_it_is_used(tmp_path: Path) -> None:
    breakers = SharedBreakers("redis://127.0.0.1:1/0")
    assert breakers.states() == {}  # and nobody there is no error
    assert admitted(breakers)
    breakers.close()
