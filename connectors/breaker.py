"""A circuit breaker: stop asking a platform that is down, let one probe find out when it is back.

CLOSED lets everything through. Five failures in a row, a bad failure rate over a window, or one failure that stops the
whole account (authentication) open it. OPEN lets nothing through for 30 s. Then HALF_OPEN lets exactly one probe
through: its success closes, its failure opens again.

What counts is `DeliveryError.outage`. Everything else (a refused message, throttling) says nothing about the platform's
health: it neither counts nor resets the count, and a probe that ends so makes room for the next one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum

from connectors.errors import DeliveryError, PausedDeliveryError, TransientDeliveryError
from core.clock import Clock
from core.failpoints import WAITS


class BreakerState(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Rules:
    failures_in_row: int = 5
    open_s: float = 30.0 * WAITS
    window_s: float = 30.0  # a window begins with the first result after the last one ended
    window_calls: int = 20  # fewer say nothing about a rate
    failure_rate: float = 0.5
    probe_s: float = 30.0  # a probe that has not reported by then is taken for dead, another may go


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a breaker knows, for sharing and showing. ``elapsed_s``: since it opened, or since the probe went."""

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    elapsed_s: float = 0.0
    probing: bool = False


class Outcome(StrEnum):
    """What a finished call says about the platform's health."""

    SUCCESS = "success"
    FAILURE = "failure"
    FATAL = "fatal"  # opens at once
    NOTHING = "nothing"

    @classmethod
    def of(cls, error: DeliveryError) -> Outcome:
        if not error.outage:
            return cls.NOTHING
        return cls.FATAL if isinstance(error, PausedDeliveryError) else cls.FAILURE


def as_counted(error: DeliveryError, state: BreakerState, rules: Rules) -> DeliveryError:
    """What a failure means now that it was counted: where the breaker is open by then, the account is down, and the
    message has only met that."""
    if state is BreakerState.OPEN and error.outage and isinstance(error, TransientDeliveryError):
        wait_s = error.retry_after_s or rules.open_s
        return PausedDeliveryError(error.reason, error.detail, retry_after_s=wait_s, outage=False)
    return error


class CircuitBreaker:
    """One breaker in one process. Thread-safe; no I/O."""

    def __init__(self, clock: Clock, rules: Rules | None = None) -> None:
        self._clock = clock
        self._rules = rules or Rules()
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        self._failures = 0
        self._since_s = 0.0  # when it opened, or when the probe went
        self._probing = False
        self._window_start_s = 0.0
        self._window_calls = 0
        self._window_failures = 0

    def admit(self) -> float | None:
        """None: go, and report how it ended. Otherwise how many seconds to wait before asking again."""
        with self._lock:
            elapsed_s = self._clock.monotonic_s() - self._since_s
            if self._state is BreakerState.CLOSED:
                return None
            if self._state is BreakerState.OPEN and elapsed_s < self._rules.open_s:
                return self._rules.open_s - elapsed_s
            if self._probing and elapsed_s < self._rules.probe_s:
                return min(self._rules.probe_s - elapsed_s, 1.0)  # the probe will report sooner
            self._state, self._probing = BreakerState.HALF_OPEN, True
            self._since_s = self._clock.monotonic_s()
            return None

    def record(self, outcome: Outcome) -> None:
        """How an admitted call ended. Late news of calls from before it opened changes nothing while it is open."""
        with self._lock:
            if self._state is BreakerState.CLOSED:
                self._count(outcome)
            elif self._state is BreakerState.HALF_OPEN:
                self._conclude(outcome)

    def snapshot(self) -> Snapshot:
        with self._lock:
            elapsed_s = 0.0 if self._state is BreakerState.CLOSED else self._clock.monotonic_s() - self._since_s
            return Snapshot(self._state, self._failures, elapsed_s, self._probing)

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what somebody else knows; the rate is counted anew unless it was closed and stays so."""
        with self._lock:
            if not self._state is snapshot.state is BreakerState.CLOSED:
                self._window_calls = self._window_failures = 0
            self._state, self._failures, self._probing = snapshot.state, snapshot.failures, snapshot.probing
            self._since_s = self._clock.monotonic_s() - snapshot.elapsed_s

    def _count(self, outcome: Outcome) -> None:
        if outcome is Outcome.NOTHING:
            return
        if outcome is Outcome.FATAL:
            self._open()
            return
        self._count_in_window(failed=outcome is Outcome.FAILURE)
        self._failures = 0 if outcome is Outcome.SUCCESS else self._failures + 1
        rate = self._window_failures / self._window_calls
        often = self._window_calls >= self._rules.window_calls and rate >= self._rules.failure_rate
        if self._failures >= self._rules.failures_in_row or often:
            self._open()

    def _count_in_window(self, *, failed: bool) -> None:
        now_s = self._clock.monotonic_s()
        if self._window_calls == 0 or now_s - self._window_start_s >= self._rules.window_s:
            self._window_start_s, self._window_calls, self._window_failures = now_s, 0, 0
        self._window_calls += 1
        self._window_failures += failed

    def _conclude(self, outcome: Outcome) -> None:
        if outcome is Outcome.SUCCESS:
            self._reset(BreakerState.CLOSED)
        elif outcome is Outcome.NOTHING:
            self._probing = False
        else:
            self._open()

    def _open(self) -> None:
        self._reset(BreakerState.OPEN)
        self._since_s = self._clock.monotonic_s()

    def _reset(self, state: BreakerState) -> None:
        self._state, self._probing = state, False
        self._failures = self._window_calls = self._window_failures = 0
