"""Against guessing: counts attempts in Redis, atomically, and says when it is enough.

An attempt is counted before its password is checked, so that a hundred guesses sent at once are a hundred counted ones,
and given back when it was right or we could not tell. When Redis is away nobody is kept out: a warning is logged and
the attempt goes on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from accounts.errors import TooManyAttempts
from core.errors import Chat4AllError

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 0.25
_HOUR_S: Final = 3600
_UNDER_WAY_MS: Final = 30_000  # longer than the database and the hash take; after that their process has died
_SHORT_WAIT_MS: Final = 1_000

# KEYS: of each limit what counts and, as a part of it, what is still under way. ARGV: limit and window in ms of each;
# then how long what is under way is believed to be, and the wait when it is what fills a limit.
# Answers how many ms to wait, or 0 and the numbers of those that this attempt used up.
_COUNT: Final = """
local wait = 0
for i = 1, #KEYS, 2 do
  local count, limit = tonumber(redis.call('GET', KEYS[i]) or '0'), tonumber(ARGV[i])
  if count >= limit then
    local under_way = tonumber(redis.call('GET', KEYS[i + 1]) or '0')
    local over = count - under_way < limit and tonumber(ARGV[#KEYS + 2]) or redis.call('PTTL', KEYS[i])
    wait = math.max(wait, over, 1)
  end
end
if wait > 0 then return {wait} end
local answer = {0}
for i = 1, #KEYS, 2 do
  local count = redis.call('INCR', KEYS[i])
  if count == 1 then redis.call('PEXPIRE', KEYS[i], ARGV[i + 1]) end
  if count == tonumber(ARGV[i]) then table.insert(answer, (i + 1) / 2) end
  redis.call('INCR', KEYS[i + 1])
  redis.call('PEXPIRE', KEYS[i + 1], ARGV[#KEYS + 1])
end
return answer
"""

# KEYS: counters of one or both kinds. DECR keeps the time to live; one that ended meanwhile is not opened again.
_TAKE_OFF: Final = """
for _, key in ipairs(KEYS) do
  if tonumber(redis.call('GET', key) or '0') > 0 then redis.call('DECR', key) end
end
return 0
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """So many attempts on one counter within the window that the first of them opens."""

    key: str
    attempts: int
    window_s: int
    whom: str = ""  # has to wait when it is used up

    @property
    def under_way(self) -> str:
        """The key of those attempts whose end nobody knows yet."""
        return f"{self.key}:under-way"


@dataclass(slots=True)
class Attempt:
    """One that is under way; the limits that it used up, so that the next has to wait; whether it counts in the end."""

    used_up: Sequence[Limit]
    counts: bool = True


class Guard:
    """Counters in one Redis. Connects on first use; safe to share between threads and to build before a fork."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._count = self._redis.register_script(_COUNT)
        self._take_off = self._redis.register_script(_TAKE_OFF)

    @contextmanager
    def attempt(self, limits: Sequence[Limit]) -> Iterator[Attempt]:
        """Count one attempt on each limit; it is given back when it does not count after all.

        Raises TooManyAttempts, and counts nothing, when one of them is used up already: until the window ends, or for a
        second where some that use it up are still under way and may be given back. What ends in a failure of ours, such
        as a database that is away, does not count: whoever is told to come again may.
        """
        attempt = Attempt(self._counted(limits))
        try:
            yield attempt
        except BaseException as error:
            attempt.counts = isinstance(error, Chat4AllError) and error.http_status < 500
            raise
        finally:
            self._over(limits, counts=attempt.counts)

    def _counted(self, limits: Sequence[Limit]) -> Sequence[Limit]:
        keys = [key for limit in limits for key in (limit.key, limit.under_way)]
        numbers = [number for limit in limits for number in (limit.attempts, limit.window_s * 1000)]
        try:
            wait_ms, *used_up = map(int, self._count(keys=keys, args=[*numbers, _UNDER_WAY_MS, _SHORT_WAIT_MS]))
        except redis.RedisError as error:
            logger.warning("attempts are not counted: Redis at BUS_URL does not answer (%s)", type(error).__name__)
            return ()
        if wait_ms:
            raise TooManyAttempts("Too many attempts. Try again later.", retry_after_s=wait_ms / 1000)
        return [limits[number - 1] for number in used_up]

    def _over(self, limits: Sequence[Limit], *, counts: bool) -> None:
        keys = [limit.under_way for limit in limits] + ([] if counts else [limit.key for limit in limits])
        try:
            self._take_off(keys=keys)
        except redis.RedisError as error:
            logger.warning("an attempt may stay counted: Redis at BUS_URL does not answer (%s)", type(error).__name__)


@cache
def _guard_at(url: str) -> Guard:
    return Guard(url)


def guard() -> Guard:
    """The guard of this process, on the Redis at BUS_URL."""
    return _guard_at(settings.BUS_URL)


def sign_in_limits(*, workspace: str, username: str, address: str) -> tuple[Limit, ...]:
    """Few guesses at one user from one address: nobody locks out others. Very many at one user from everywhere.

    The last one bounds guessing from a great many addresses, and only those can use it up.
    """
    window_s = settings.LOGIN_WINDOW_S
    user = f"{workspace}/{username.lower()}"
    return (
        Limit(
            _key("user-here", f"{address} {user}"), settings.LOGIN_FAILURES_PER_USER, window_s, "the user, from here"
        ),
        Limit(_key("address", address), settings.LOGIN_FAILURES_PER_ADDRESS, window_s, "the address"),
        Limit(_key("user", user), settings.LOGIN_FAILURES_PER_USER_EVERYWHERE, window_s, "the user, from anywhere"),
    )


def registration_limits(*, address: str) -> tuple[Limit]:
    return (Limit(_key("registration", address), settings.REGISTRATIONS_PER_ADDRESS, _HOUR_S),)


def _key(kind: str, subject: str) -> str:
    """Hashed: of one length whatever a client sends, and no names lie about in Redis."""
    return f"{{guard}}:{kind}:{hashlib.sha256(subject.encode()).hexdigest()[:32]}"
