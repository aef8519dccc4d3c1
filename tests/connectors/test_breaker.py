"""The circuit breaker of one process: by example, and against a model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from connectors.breaker import BreakerState, CircuitBreaker, Outcome, Rules, Snapshot
from connectors.errors import (
    AmbiguousDeliveryError,
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)
from core.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> CircuitBreaker:
    return CircuitBreaker(clock)


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        assert breaker.admit() is None
        breaker.record(Outcome.FAILURE)


def test_five_failures_in_a_row_open_it_for_30_s(breaker: CircuitBreaker, clock: ManualClock) -> None:
    fail(breaker, 4)
    assert breaker.snapshot().state is BreakerState.CLOSED
    fail(breaker, 1)
    assert breaker.snapshot().state is BreakerState.OPEN
    assert breaker.admit() == 30
    clock.advance(29.5)
    assert breaker.admit() == pytest.approx(0.5)


def test_a_success_between_failures_starts_the_count_anew(breaker: CircuitBreaker) -> None:
    fail(breaker, 4)
    breaker.record(Outcome.SUCCESS)
    fail(breaker, 4)
    assert breaker.snapshot() == Snapshot(failures=4)


def test_a_refused_message_or_throttling_neither_counts_nor_starts_the_count_anew(breaker: CircuitBreaker) -> None:
    for _ in range(100):
        breaker.record(Outcome.NOTHING)
    fail(breaker, 4)
    breaker.record(Outcome.NOTHING)
    assert breaker.snapshot().state is BreakerState.CLOSED
    fail(breaker, 1)
    assert breaker.snapshot().state is BreakerState.OPEN


def test_a_failure_of_the_whole_account_opens_it_at_once(breaker: CircuitBreaker) -> None:
    breaker.record(Outcome.FATAL)
    assert breaker.admit() == 30


def test_after_30_s_exactly_one_probe_goes(breaker: CircuitBreaker, clock: ManualClock) -> None:
    fail(breaker, 5)
    clock.advance(30)
    with ThreadPoolExecutor(8) as pool:
        barrier = threading.Barrier(8)
        answers = list(pool.map(lambda _: (barrier.wait(10), breaker.admit())[1], range(8)))
    assert answers.count(None) == 1
    assert [wait_s for wait_s in answers if wait_s is not None] == [1.0] * 7
    assert breaker.snapshot().state is BreakerState.HALF_OPEN


def test_the_probes_success_closes_it(breaker: CircuitBreaker, clock: ManualClock) -> None:
    fail(breaker, 5)
    clock.advance(30)
    assert breaker.admit() is None
    breaker.record(Outcome.SUCCESS)
    assert breaker.snapshot() == Snapshot()
    fail(breaker, 4)  # counted from nothing
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_the_probes_failure_opens_it_for_another_30_s(breaker: CircuitBreaker, clock: ManualClock) -> None:
    fail(breaker, 5)
    clock.advance(31)
    fail(breaker, 1)
    assert breaker.admit() == 30


def test_a_probe_that_says_nothing_makes_room_for_the_next(breaker: CircuitBreaker, clock: ManualClock) -> None:
    fail(breaker, 5)
    clock.advance(30)
    assert breaker.admit() is None
    breaker.record(Outcome.NOTHING)
    assert breaker.admit() is None
    assert breaker.admit() == 1.0


def test_a_probe_that_never_reports_is_replaced(breaker: CircuitBreaker, clock: ManualClock) -> None:
    fail(breaker, 5)
    clock.advance(30)
    assert breaker.admit() is None
    clock.advance(29.75)
    assert breaker.admit() == 0.25
    clock.advance(0.25)
    assert breaker.admit() is None
    assert breaker.admit() == 1.0


def test_late_news_of_earlier_calls_changes_nothing_while_it_is_open(
    breaker: CircuitBreaker, clock: ManualClock
) -> None:
    fail(breaker, 5)
    clock.advance(10)
    breaker.record(Outcome.SUCCESS)
    breaker.record(Outcome.FATAL)
    assert breaker.admit() == 20


def test_a_bad_rate_opens_it_without_failures_in_a_row(breaker: CircuitBreaker) -> None:
    for _ in range(9):
        breaker.record(Outcome.FAILURE)
        breaker.record(Outcome.SUCCESS)
    breaker.record(Outcome.FAILURE)
    assert breaker.snapshot().state is BreakerState.CLOSED  # 10 of 19: too few calls to tell
    breaker.record(Outcome.FAILURE)
    assert breaker.snapshot().state is BreakerState.OPEN


def test_a_rate_below_a_half_does_not_open_it(breaker: CircuitBreaker) -> None:
    for _ in range(100):
        breaker.record(Outcome.SUCCESS)
        breaker.record(Outcome.FAILURE)
        breaker.record(Outcome.SUCCESS)
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_failures_of_an_earlier_window_do_not_count_in_the_rate(breaker: CircuitBreaker, clock: ManualClock) -> None:
    for _ in range(9):
        breaker.record(Outcome.FAILURE)
        breaker.record(Outcome.SUCCESS)
    clock.advance(30)
    for _ in range(10):
        breaker.record(Outcome.SUCCESS)
    breaker.record(Outcome.FAILURE)
    assert breaker.snapshot().state is BreakerState.CLOSED


def test_what_another_process_knows_can_be_taken_over(clock: ManualClock) -> None:
    here, there = CircuitBreaker(clock), CircuitBreaker(clock)
    fail(there, 5)
    clock.advance(12)
    here.restore(there.snapshot())
    assert here.admit() == 18
    clock.advance(18)
    assert there.admit() is None
    here.restore(there.snapshot())
    assert here.admit() == 1.0  # the probe is on its way over there


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        pytest.param(TransientDeliveryError("http_503"), Outcome.FAILURE, id="down"),
        pytest.param(TransientDeliveryError("unreachable"), Outcome.FAILURE, id="unreachable"),
        pytest.param(AmbiguousDeliveryError("timeout"), Outcome.FAILURE, id="silence"),
        pytest.param(PausedDeliveryError("platform:190"), Outcome.FATAL, id="authentication"),
        pytest.param(PausedDeliveryError("breaker_open", outage=False), Outcome.NOTHING, id="the breaker's own"),
        pytest.param(TransientDeliveryError("throttled", outage=False), Outcome.NOTHING, id="throttled"),
        pytest.param(PermanentDeliveryError("platform:131026"), Outcome.NOTHING, id="refused for good"),
    ],
)
def test_only_what_concerns_everybody_counts(error: DeliveryError, outcome: Outcome) -> None:
    assert Outcome.of(error) is outcome


class BreakerMachine(RuleBasedStateMachine):
    """Any sequence of calls, results and pauses, checked against what was promised rather than how it is done."""

    limits = Rules(failures_in_row=3, open_s=30, window_s=20, window_calls=6, failure_rate=0.5, probe_s=15)

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = CircuitBreaker(self.clock, self.limits)
        self.in_row = 0
        self.opened_s: float | None = None
        self.probe_s: float | None = None  # when the probe that is on its way went

    @property
    def state(self) -> BreakerState:
        return self.breaker.snapshot().state

    @rule(seconds=st.sampled_from([0.5, 5.0, 14.5, 15.0, 29.5, 30.0, 60.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def somebody_asks(self) -> None:
        before, now_s = self.state, self.clock.monotonic_s()
        wait_s = self.breaker.admit()
        if before is BreakerState.CLOSED:
            assert wait_s is None
        elif self.probe_s is not None and now_s - self.probe_s < self.limits.probe_s:
            assert wait_s is not None
            assert 0 < wait_s <= 1.0  # never a second probe
        elif before is BreakerState.OPEN and self.opened_s is not None and now_s - self.opened_s < self.limits.open_s:
            assert wait_s == pytest.approx(self.opened_s + self.limits.open_s - now_s)
        else:
            assert wait_s is None
            self.probe_s = now_s

    @precondition(lambda self: self.state is BreakerState.CLOSED)
    @rule(outcome=st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE, Outcome.NOTHING, Outcome.FATAL]))
    def a_call_ends(self, outcome: Outcome) -> None:
        self.breaker.record(outcome)
        if outcome in (Outcome.SUCCESS, Outcome.FAILURE):
            self.in_row = 0 if outcome is Outcome.SUCCESS else self.in_row + 1
        if outcome is Outcome.FATAL or self.in_row >= self.limits.failures_in_row:
            assert self.state is BreakerState.OPEN
        if outcome in (Outcome.SUCCESS, Outcome.NOTHING) and self.in_row == 0:
            assert self.state in (BreakerState.CLOSED, BreakerState.OPEN)
        if self.state is BreakerState.OPEN:
            self.opened_s, self.in_row, self.probe_s = self.clock.monotonic_s(), 0, None

    @precondition(lambda self: self.state is BreakerState.HALF_OPEN)
    @rule(outcome=st.sampled_from(list(Outcome)))
    def the_probe_ends(self, outcome: Outcome) -> None:
        self.breaker.record(outcome)
        self.probe_s = None
        if outcome is Outcome.SUCCESS:
            assert self.state is BreakerState.CLOSED
            self.opened_s = None
        elif outcome is Outcome.NOTHING:
            assert self.state is BreakerState.HALF_OPEN
        else:
            assert self.state is BreakerState.OPEN
            self.opened_s = self.clock.monotonic_s()

    @precondition(lambda self: self.state is BreakerState.OPEN)
    @rule(outcome=st.sampled_from(list(Outcome)))
    def late_news_arrives(self, outcome: Outcome) -> None:
        before = self.breaker.snapshot()
        self.breaker.record(outcome)
        assert self.breaker.snapshot() == before

    @invariant()
    def it_never_stays_closed_at_the_limit(self) -> None:
        snapshot = self.breaker.snapshot()
        assert snapshot.failures < self.limits.failures_in_row
        assert snapshot.failures == (self.in_row if snapshot.state is BreakerState.CLOSED else 0)


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
