"""What a worker's parent holds of the broker's Redis may break at any moment."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from celery import current_app
from kombu import Consumer, Queue

from demo.redis_server import BUS_RULES, RedisServer
from messaging.ports import TopicPartition
from messaging.tasks import send_batch
from messaging.work import LaneId


def test_a_broker_that_goes_before_a_task_is_acknowledged_stops_no_worker(tmp_path: Path, monkeypatch: Any) -> None:
    """It has taken one task, as many as it may hold, and says so to nobody: with the task in Redis until then it would
    never ask for another, and not even notice that its connections are gone."""
    server = RedisServer(tmp_path, rules=BUS_RULES).start()
    monkeypatch.setattr(current_app.conf, "broker_url", server.url)
    # An earlier test of this process may have sent something: the pool of its broker is kept for as long as the app.
    monkeypatch.setattr(current_app.amqp, "_producer_pool", None)
    try:
        send_batch(LaneId(TopicPartition("messages", 0), 0), "1", "nobody")
        connection = current_app.connection_for_read(server.url)
        channel: Any = connection.default_channel
        channel.basic_qos(0, 1, False)
        taken: list[Any] = []
        Consumer(channel, [Queue("core")], accept=["json"], on_message=taken.append).consume()
        connection.drain_events(timeout=5)
        [task] = taken
        assert not channel.qos.can_consume()
    finally:
        server.kill()
    task.ack_log_error(logging.getLogger(), errors=connection.connection_errors)
    assert channel.qos.can_consume()
