"""Hints are best effort: what is there but says nothing is as good as nothing."""

from __future__ import annotations

import redis

from core.ids import uuid7
from demo.redis_server import RedisServer
from messaging.hints import RedisHints
from tests.messaging.workbench import Workbench


def test_what_was_put_is_there_and_what_nobody_can_read_is_not(bench: Workbench, bus_redis: RedisServer) -> None:
    message = bench.message(bench.conversation())
    hints = RedisHints(bus_redis.url)
    assert hints.get(message.message_id) is None
    assert hints.accepted([message.message_id]) == []
    hints.put([message])
    assert hints.get(message.message_id) == message
    unknown = uuid7()
    assert hints.accepted([unknown, message.message_id]) == [message]
    assert hints.accepted([]) == []
    with redis.Redis.from_url(bus_redis.url) as bus:
        [key] = [key for key in bus.scan_iter() if str(message.message_id) in key.decode()]
        bus.set(key, b"of another release")
    assert hints.get(message.message_id) is None
    assert hints.accepted([message.message_id]) == []
