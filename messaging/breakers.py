"""Circuit breakers per channel account, shared by all processes through Redis.

Redis decides while it answers, and every answer is copied; when it is away, what this process knows decides. A flushed
Redis starts closed: at worst five more failures, or one more probe, reach the platform.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from connectors.breaker import BreakerState, CircuitBreaker, Outcome, Rules, Snapshot, as_counted
from connectors.errors import DeliveryError, PausedDeliveryError
from core.clock import SYSTEM_CLOCK, Clock
from core.rest import Rest

logger = logging.getLogger(__name__)

REDIS_TIMEOUT_S: Final = 0.25
REDIS_PAUSE_S: Final = 1.0  # after a failure, how long to do without asking: an outage must not slow every send down
FORGET_S: Final = 24 * 3600
_PREFIX: Final = "chat4all:breaker:"
_INDEX: Final = "chat4all:breakers"

# The rules of connectors.breaker.CircuitBreaker, atomically for all processes; a test runs both side by side. Redis's
# own clock counts, the only one that all processes share.
_SCRIPT: Final = """
local key, event, now = KEYS[1], ARGV[1], tonumber(ARGV[2])
local in_row, open_ms, window_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local window_calls, rate, probe_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local names = {'state', 'failures', 'since', 'probing', 'start', 'calls', 'failed'}
local raw, b = redis.call('HMGET', key, unpack(names)), {}
for i, name in ipairs(names) do b[name] = i == 1 and (raw[1] or 'closed') or tonumber(raw[i] or 0) end

local function reset(state)
  b.state, b.probing, b.failures, b.calls, b.failed = state, 0, 0, 0, 0
end
local function open() reset('open'); b.since = now end
if b.since > now then b.since = now end  -- the clock was set back: wait the full time, not until then

local wait, changed = -1, false
if event == 'admit' then
  local elapsed = now - b.since
  if b.state == 'closed' then
    wait = -1
  elseif b.state == 'open' and elapsed < open_ms then
    wait = open_ms - elapsed
  elseif b.probing == 1 and elapsed < probe_ms then
    wait = math.min(probe_ms - elapsed, 1000)
  else
    b.state, b.probing, b.since, changed = 'half_open', 1, now, true
  end
elseif b.state == 'closed' and event == 'fatal' then
  open(); changed = true
elseif b.state == 'closed' and event ~= 'nothing' then
  if b.calls == 0 or now - b.start >= window_ms then b.start, b.calls, b.failed = now, 0, 0 end
  b.calls, changed = b.calls + 1, true
  if event == 'success' then b.failures = 0 else b.failures, b.failed = b.failures + 1, b.failed + 1 end
  if b.failures >= in_row or (b.calls >= window_calls and b.failed / b.calls >= rate) then open() end
elseif b.state == 'half_open' then
  changed = true
  if event == 'success' then reset('closed') elseif event == 'nothing' then b.probing = 0 else open() end
end
if changed then
  redis.call('HSET', key, 'state', b.state, 'failures', b.failures, 'since', b.since, 'probing', b.probing,
             'start', b.start, 'calls', b.calls, 'failed', b.failed)
  redis.call('EXPIRE', key, ARGV[9])
  redis.call('SADD', KEYS[2], ARGV[10])
end
local elapsed = 0
if b.state ~= 'closed' then elapsed = now - b.since end
return {wait, b.state, b.failures, elapsed, b.probing}
"""


def key_of(channel: str, account_id: str) -> str:
    """What `SharedBreakers.states` and metrics call a breaker: ``whatsapp:10855…``."""
    return f"{channel}:{account_id}"


class SharedBreakers:
    """A breaker for each channel account. Thread-safe; connects on first use; never raises for Redis.

    ``clock`` is for tests; without one Redis counts by its own clock and this process by the system's.
    """

    def __init__(self, redis_url: str, *, rules: Rules | None = None, clock: Clock | None = None) -> None:
        self._rules = rules or Rules()
        self._shared_clock = clock
        self._clock = clock or SYSTEM_CLOCK
        self._local: dict[str, CircuitBreaker] = {}
        self._lock = threading.Lock()
        self._rest = Rest(REDIS_PAUSE_S, self._clock)
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            # No second try: an `admit` whose answer was lost may have handed out the only probe.
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._script = self._redis.register_script(_SCRIPT)

    @contextmanager
    def guard(self, channel: str, account_id: str) -> Iterator[None]:
        """Around one call to the platform. Raises PausedDeliveryError instead of calling while the breaker is open, and
        in place of a failure after which it is."""
        self.before(channel, account_id)
        try:
            yield
        except DeliveryError as error:
            self.failure(channel, account_id, error)
            state = self._breaker(key_of(channel, account_id)).snapshot().state  # what was asked last is known here
            if (meant := as_counted(error, state, self._rules)) is error:
                raise
            raise meant from error
        except BaseException:
            self._record(key_of(channel, account_id), Outcome.NOTHING)  # a bug of ours: the next probe learns more
            raise
        self.success(channel, account_id)

    def before(self, channel: str, account_id: str) -> None:
        """Return if a call may go now: then say how it ended. Raises PausedDeliveryError with ``retry_after_s``."""
        key = key_of(channel, account_id)
        answer = self._ask(key, "admit")
        wait_s = self._breaker(key).admit() if answer is None else answer
        if wait_s is not None and wait_s >= 0:
            raise PausedDeliveryError("breaker_open", retry_after_s=wait_s, outage=False)

    def success(self, channel: str, account_id: str) -> None:
        self._record(key_of(channel, account_id), Outcome.SUCCESS)

    def failure(self, channel: str, account_id: str, error: DeliveryError) -> None:
        """Count it as far as it says something about the platform's health (`DeliveryError.outage`)."""
        self._record(key_of(channel, account_id), Outcome.of(error))

    def states(self) -> dict[str, BreakerState]:
        """Every account that was heard of in the last day, for metrics and health."""
        shared = self.shared_states()
        return (
            shared if shared is not None else {key: each.snapshot().state for key, each in self._local.copy().items()}
        )

    def close(self) -> None:
        self._redis.close()

    def _record(self, key: str, outcome: Outcome) -> None:
        if self._ask(key, outcome.value) is None:
            self._breaker(key).record(outcome)

    def _ask(self, key: str, event: str) -> float | None:
        """What Redis says: seconds to wait, negative for go. None when it is away."""
        if self._rest.is_on:
            return None
        now_ms = -1 if self._shared_clock is None else int(self._shared_clock.monotonic_s() * 1000)
        rules = self._rules
        timings = (rules.failures_in_row, int(rules.open_s * 1000), int(rules.window_s * 1000))
        rates = (rules.window_calls, rules.failure_rate, int(rules.probe_s * 1000))
        try:
            wait_ms, state, failures, elapsed_ms, probing = self._script(
                keys=[_PREFIX + key, _INDEX], args=[event, now_ms, *timings, *rates, FORGET_S, key]
            )
        except redis.RedisError as error:
            self._do_without(error)
            return None
        self._breaker(key).restore(Snapshot(BreakerState(state), failures, elapsed_ms / 1000, bool(probing)))
        return float(wait_ms) / 1000

    def shared_states(self) -> dict[str, BreakerState] | None:
        """As `states`, None when Redis is away."""
        if self._rest.is_on:
            return None
        try:
            keys = sorted(str(key) for key in self._redis.smembers(_INDEX))
            with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hget(_PREFIX + key, "state")
                states = pipeline.execute()
        except redis.RedisError as error:
            self._do_without(error)
            return None
        return {key: BreakerState(state) for key, state in zip(keys, states, strict=True) if state}

    def _do_without(self, error: redis.RedisError) -> None:
        self._rest.begin()
        logger.warning("breakers: Redis is away, this process decides alone", extra={"error": type(error).__name__})

    def _breaker(self, key: str) -> CircuitBreaker:
        with self._lock:
            return self._local.setdefault(key, CircuitBreaker(self._clock, self._rules))
