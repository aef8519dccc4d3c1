"""Hints are best effort: what is there but says nothing is as good as nothing."""

from __future__ import annotations

import pytest
import redis

from core.ids import uuid7
from demo.redis_server import RedisServer
from messaging import codec
from messaging.hints import TTL_S, RedisHints
from tests.messaging.workbench import Workbench


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no Redis that is away."""
    monkeypatch.setattr("messaging.hints.TIMEOUT_S", 20.0)


def test_what_was_put_is_there_and_what_nobody_can_read_is_not(bench: Workbench, bus_redis: RedisServer) -> None:
    message = bench.message(bench.conversation())
    hints = RedisHints(bus_redis.url)
    assert hints.get(message.message_id) is None
    assert hints.accepted([message.message_id]) == []
    hints.put({})
    hints.put({message.message_id: codec.encode(message)})
    assert hints.get(message.message_id) == message
    unknown = uuid7()
    assert hints.accepted([unknown, message.message_id]) == [message]
    assert hints.accepted([]) == []
    with redis.Redis.from_url(bus_redis.url) as bus:
        [key] = [key for key in bus.scan_iter() if str(message.message_id) in key.decode()]
        bus.set(key, b"of another release")
    assert hints.get(message.message_id) is None
    assert hints.accepted([message.message_id]) == []


@pytest.mark.parametrize("count", [1, 2, 500])
def test_hints_last_for_a_minute(bench: Workbench, bus_redis: RedisServer, count: int) -> None:
    conversation = bench.conversation()
    messages = {each.message_id: each for each in (bench.message(conversation, f"{n}") for n in range(count))}
    hints = RedisHints(bus_redis.url)
    hints.put({message_id: codec.encode(each) for message_id, each in messages.items()})
    assert {each.message_id: each for each in hints.accepted(messages)} == messages
    with redis.Redis.from_url(bus_redis.url) as bus:
        kept_s = [bus.ttl(key) for key in bus.scan_iter() if key.decode().rpartition(":")[2] in map(str, messages)]
    assert len(kept_s) == count
    assert all(0 < each <= TTL_S for each in kept_s)
