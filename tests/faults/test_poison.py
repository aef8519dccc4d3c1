"""A record that kills its worker each time, through real prefork workers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from demo.supervisor import ROOT, LocalSystem

KILLER = "this one kills its worker"
pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults"), pytest.mark.timeout(180)]


def test_a_record_that_kills_its_worker_is_dead_lettered_and_its_neighbours_arrive(tmp_path: Path) -> None:
    parts = ("redis-log", "redis-bus", "api", "bridge")
    with LocalSystem(tmp_path, processes=parts) as system, (tmp_path / "killer.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.faults.killer_app", "worker", "-Q", "core", "-c", "2"],
            cwd=ROOT,
            env={**system.env, "SERVICE": "worker-core", "KILLER_TEXT": KILLER},
            stdout=log,
            stderr=log,
        )
        try:
            _neighbours_arrive(system)
        finally:
            worker.terminate()
            worker.wait(30)


def _neighbours_arrive(system: LocalSystem) -> None:
    with httpx.Client(base_url=system.api_url, timeout=10) as http:
        alice, bob = (_user(http, name) for name in ("alice", "bob"))
        http.headers["Authorization"] = f"Bearer {alice['access_token']}"
        ids = {
            text: _send(http, f"c{number % 10}", bob["user_id"], text)
            for number, text in enumerate([*(f"neighbour {n}" for n in range(20)), KILLER, "after", "and after"])
        }
        killer = ids.pop(KILLER)
        _until(lambda: all(_status(http, each) == "SENT" for each in ids.values()), "the neighbours are stored")
        _until(lambda: _dead_letters(system) == ["worker_lost"], "the killer alone is a dead letter")
        assert http.get(f"/v1/messages/{killer}").json().get("status") in (None, "ACCEPTED")


def _user(http: httpx.Client, name: str) -> dict[str, str]:
    given = {"username": name, "password": "correct horse battery"}
    http.post("/auth/register", json=given).raise_for_status()
    answer: dict[str, str] = http.post("/auth/token", json=given).raise_for_status().json()
    return answer


def _send(http: httpx.Client, conversation: str, recipient: str, text: str) -> str:
    body = {"conversation_id": conversation, "recipient_id": recipient, "content": text}
    message_id: str = http.post("/v1/messages", json=body).raise_for_status().json()["message_id"]
    return message_id


def _status(http: httpx.Client, message_id: str) -> str:
    status: str = http.get(f"/v1/messages/{message_id}").raise_for_status().json()["status"]
    return status


def _dead_letters(system: LocalSystem) -> list[str]:
    """Why each dead letter of `messages` is one."""
    code = (
        "import django; django.setup()\n"
        "from messaging import wiring; from messaging.ports import TopicPartition\n"
        "for record in wiring.event_log().read(TopicPartition('messages-dead-letters', 0), start=0, limit=100):\n"
        "    print(record.headers['dl-error'])"
    )
    env = {**system.env, "DJANGO_SETTINGS_MODULE": "chat4all_project.settings"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
