"""Redis as the broker's: it may be flushed and forgets everything when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from demo.ports import HOST
from demo.redis_server import BUS_RULES, find_redis_server, redis_config
from tests.stack.server import Server

PROBE_TIMEOUT_S = 3.0


class Redis(Server):
    """No credentials. Suites that need more than one, or a durable one, start `demo.redis_server.RedisServer`."""

    name = "redis"
    variable = "TEST_REDIS_URL"
    default_port = 6379

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> Sequence[str]:
        return (find_redis_server(), str(self.directory / "redis.conf"))

    def prepare(self) -> None:
        redis_config(port=self.port, directory=self.directory, rules=BUS_RULES)

    def why_not_ready(self) -> str:
        try:
            with redis.Redis(host=HOST, port=self.port, socket_timeout=PROBE_TIMEOUT_S) as client:
                client.ping()
        except redis.RedisError as error:
            return str(error)
        return ""
