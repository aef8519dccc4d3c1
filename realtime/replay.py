"""Reads what a user's sockets missed, and finds the point at which a subscription became effective."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final

from redis import asyncio as aioredis

from realtime.frames import HISTORY_TTL_S, UserKeys, redis_channel

# Frames behind ARGV[4] in the epoch ARGV[3]. A user who was never pushed to, or whose keys a flush took, gets an epoch
# here: the client then has something to come back with. Reading keeps the epoch of an open but quiet socket alive.
_READ: Final = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local epoch, seq = state[1], tonumber(state[2]) or 0
if not epoch then
  epoch, seq = ARGV[1], 0
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', 0, 'bytes', 0)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
local since = tonumber(ARGV[4])
if epoch ~= ARGV[3] or since > seq or seq - since > redis.call('LLEN', KEYS[2]) then return {epoch, seq, 0} end
if since == seq then return {epoch, seq, 1} end
return {epoch, seq, 1, unpack(redis.call('LRANGE', KEYS[2], since - seq, -1))}
"""

_MARK: Final = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local epoch, seq = state[1], tonumber(state[2]) or 0
if not epoch then
  epoch, seq = ARGV[1], 0
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', 0, 'bytes', 0)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], '{"type":"user.mark","mark":"' .. ARGV[4] .. '","epoch":"' .. epoch ..
  '","seq":' .. string.format('%d', seq) .. '}')
return 1
"""


@dataclass(frozen=True, slots=True)
class Missed:
    """Where a user's stream stands, and the frames up to there; None when the history does not reach back that far."""

    epoch: str
    seq: int
    frames: list[str] | None


class History:
    """A user's recent frames. One per process and event loop; connects on first use."""

    def __init__(self, bus_url: str, *, timeout_s: float = 5.0) -> None:
        self._redis: aioredis.Redis = aioredis.Redis.from_url(
            bus_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, decode_responses=True
        )

    async def since(self, user_id: str, *, epoch: str, seq: int) -> Missed:
        """The frames behind ``seq``, in order. Raises redis' errors."""
        reply = await self._call(_READ, user_id, epoch, seq)
        return Missed(reply[0], int(reply[1]), reply[3:] if int(reply[2]) else None)

    async def mark(self, user_id: str, mark: str) -> None:
        """Publish where the stream stands to the user's group.

        SUBSCRIBE is not confirmed to its caller: only a socket that sees its own mark knows that every later frame
        will reach it, and that all earlier ones are in the history.
        """
        await self._call(_MARK, user_id, redis_channel(user_id), mark)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _call(self, script: str, user_id: str, *args: str | int) -> Any:
        keys = UserKeys.of(user_id)
        return await self._redis.eval(script, 2, keys.state, keys.history, secrets.token_hex(8), HISTORY_TTL_S, *args)
