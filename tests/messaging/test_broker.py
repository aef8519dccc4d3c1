"""What a worker's parent holds of the broker's Redis may break at any moment."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis
from celery.fixups.django import DjangoWorkerFixup  # type: ignore[attr-defined] # the stubs know no worker
from celery.signals import task_postrun, task_prerun
from celery.worker import WorkController
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from kombu import Consumer, Queue

from chat4all_project.celery import app
from demo.ports import HOST, free_ports
from demo.redis_server import BUS_RULES, RedisServer
from demo.supervisor import ROOT
from messaging.ports import ParkScope, TopicPartition
from messaging.tasks import RUN_BATCH, batch_task, run_batch, send_resume
from messaging.work import LaneId
from tests.messaging.test_metrics_of_processes import children
from tests.town import eventually


@pytest.fixture
def celerys_own() -> Iterator[None]:
    """What Celery does around the tasks of a worker, beside what we do."""
    fixup = DjangoWorkerFixup(app)
    receivers = {task_prerun: fixup.on_task_prerun, task_postrun: fixup.on_task_postrun}
    for signal, receiver in receivers.items():
        signal.connect(receiver)
    yield
    for signal, receiver in receivers.items():
        signal.disconnect(receiver)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[BaseDatabaseWrapper]:
    """In a file: the tests' own is in memory, and closing it does nothing."""
    usual = connections["default"]
    ours = type(usual)({**usual.settings_dict, "NAME": tmp_path / "database"}, "default")
    connections["default"] = ours
    yield ours
    connections["default"] = usual
    ours.close()


@pytest.mark.usefixtures("celerys_own")
@pytest.mark.django_db
def test_a_task_finds_the_database_open_and_one_that_broke_opened_anew(
    database: BaseDatabaseWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.ensure_connection()
    opened = database.connection
    _run_nothing()
    assert database.connection is opened
    monkeypatch.setattr(database, "is_usable", lambda: False)
    with pytest.raises(Error), database.cursor() as cursor:
        cursor.execute("SELECT nonsense")
    _run_nothing()
    assert database.connection is None
    with database.cursor() as cursor:
        assert cursor.execute("SELECT 1").fetchone() == (1,)


def _run_nothing() -> None:
    task_prerun.send(sender=run_batch, task_id="1", task=run_batch)
    task_postrun.send(sender=run_batch, task_id="1", task=run_batch)


def test_a_broker_that_goes_before_a_task_is_acknowledged_stops_no_worker(tmp_path: Path, monkeypatch: Any) -> None:
    """It has taken one task, as many as it may hold, and says so to nobody: with the task in Redis until then it would
    never ask for another, and not even notice that its connections are gone."""
    server = RedisServer(tmp_path, rules=BUS_RULES).start()
    monkeypatch.setattr(app.conf, "broker_url", server.url)
    # An earlier test of this process may have sent something: the pool of its broker is kept for as long as the app.
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    try:
        send_resume([ParkScope("whatsapp-outbound", uuid4())], again_at_ms=1)
        connection = app.connection_for_read(server.url)
        channel: Any = connection.default_channel
        channel.basic_qos(0, 1, False)
        taken: list[Any] = []
        Consumer(channel, [Queue("whatsapp")], accept=["json"], on_message=taken.append).consume()
        connection.drain_events(timeout=5)
        [task] = taken
        assert not channel.qos.can_consume()
    finally:
        server.kill()
    task.ack_log_error(logging.getLogger(), errors=connection.connection_errors)
    assert channel.qos.can_consume()


def test_a_batch_s_task_is_one_of_celerys(bus_redis: RedisServer) -> None:
    """As a worker's consumer reads it off the list, it says what `send_task` would."""
    client = redis.Redis.from_url(bus_redis.url)
    queue, lane = f"q{uuid4().hex}", LaneId(TopicPartition("messages", 2), 1)
    client.lpush(queue, batch_task(lane, "a-7", "bridge-1"))
    with app.connection_for_write(bus_redis.url) as connection:
        app.send_task(RUN_BATCH, args=("messages", 2, 1, "a-7", "bridge-1"), queue=queue, connection=connection)
        taken: list[Any] = []
        Consumer(connection.default_channel, [Queue(queue)], accept=["json"], on_message=taken.append).consume()
        while len(taken) < 2:
            connection.drain_events(timeout=5)
    ours, theirs = taken
    assert ours.decode() == theirs.decode()
    assert {name: theirs.headers[name] for name in ("lang", "task")} == {"lang": "py", "task": ours.headers["task"]}
    assert ours.delivery_info == theirs.delivery_info | {"routing_key": "core"}


def test_a_worker_s_children_are_forked_before_its_parent_has_threads() -> None:
    """A thread that looks up an address at a fork leaves a lock of the C library behind that nobody opens any more."""
    blueprint: Any = WorkController.Blueprint(steps=app.steps["worker"])
    blueprint.steps = blueprint.claim_steps()
    order = [step.name.rpartition(".")[2] for step in blueprint._finalize_steps(blueprint.steps)]
    assert order.index("Pool") < order.index("health") < order.index("Consumer")


def test_a_worker_without_a_broker_tells_how_it_is(tmp_path: Path) -> None:
    port, away = free_ports(2)
    env = {"STATE_DIR": str(tmp_path), "HEALTH_PORT": str(port), "BUS_URL": f"redis://{HOST}:{away}/0"}
    command = [sys.executable, "manage.py", "run_worker", "core"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stderr=subprocess.DEVNULL) as worker:
        try:
            answer = eventually(lambda: _answer(f"http://{HOST}:{port}/health"), within_s=60)
            assert answer.json() == {"status": "ok", "service": "manage"}
            assert httpx.get(f"http://{HOST}:{port}/ready", timeout=20).json()["status"] == "failed"
        finally:
            worker.kill()


# As when the kernel closed the dead child's pipe, and has not its end to tell yet: the pool finds nobody dead.
ASKED_TOO_EARLY = """
from celery.concurrency.asynpool import AsynPool
AsynPool._event_process_exit = lambda self, hub, proc: self._untrack_child_process(proc, hub)
AsynPool.timers = {}
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "run_worker", "core"])
"""


def test_a_child_s_death_is_found_although_celery_asked_too_early(bus_redis: RedisServer, tmp_path: Path) -> None:
    env = {"STATE_DIR": str(tmp_path), "BUS_URL": bus_redis.url, "DJANGO_SETTINGS_MODULE": "chat4all_project.settings"}
    command, said = [sys.executable, "-c", ASKED_TOO_EARLY], tmp_path / "said"
    with said.open("w") as out, subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stderr=out) as worker:
        try:
            eventually(lambda: "ready." in said.read_text(), within_s=60)
            [first] = children(worker.pid)
            os.kill(first, SIGKILL)
            eventually(lambda: children(worker.pid) not in ([], [first]))
        finally:
            worker.terminate()


def _answer(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, timeout=20)
    except httpx.TransportError:
        return None
