"""Processes of the system that are started with some environment and asked from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from demo.ports import free_ports
from demo.redis_server import BUS_RULES, LOG_RULES, RedisServer
from tests.bounds import TRIES

ROOT: Final = Path(__file__).resolve().parents[2]
TIMEOUT_S: Final = 2.0  # APPEND_TIMEOUT_S and STORE_TIMEOUT_S of every API here
PROBE_S: Final = 2.0  # in which each part ends its own check
SLACK_S: Final = 1.0
COMES_S: Final = 60.0  # whatever takes seconds on a machine that has nothing else to do
LONGEST_S: Final = 12.0  # of any answer, on a busy machine; the parts' own time-outs are 2 to 5 s
PASSWORD: Final = "correct horse battery"


@dataclass(frozen=True)
class World:
    """What is right: a case changes some of it."""

    log: RedisServer
    environment: Mapping[str, str]

    def run(self, *command: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return self._run("manage.py", *command, **changed)

    def set_up(self) -> None:
        """Its databases and topics, in one process."""
        migrations = (f"migrate -v0 --database {alias}" for alias in ("default", "messages"))
        done = self._run("-m", "demo.commands", *migrations, "setup_topics")
        assert done.returncode == 0, done.stdout + done.stderr

    def _run(self, *command: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT, env={**self.environment, **changed}, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip


@contextmanager
def local_world(folder: Path, **databases: str) -> Iterator[World]:
    """The local profile, set up; ``databases`` by their variables, in place of SQLite's."""
    with ExitStack() as stack:
        log = RedisServer(folder / "log", rules=LOG_RULES).start()
        stack.callback(log.stop)
        bus = RedisServer(folder / "bus", rules=BUS_RULES).start()
        stack.callback(bus.stop)
        world = World(
            log,
            {
                "PATH": os.environ["PATH"],
                "STATE_DIR": str(folder / "state"),
                "EVENT_LOG_URL": log.url,
                "BUS_URL": bus.url,
                "APPEND_TIMEOUT_S": str(TIMEOUT_S),
                "STORE_TIMEOUT_S": str(TIMEOUT_S),
                **databases,
            },
        )
        world.set_up()
        yield world


def check(world: World, **changed: str) -> tuple[int, str]:
    """What `manage.py check --deploy` says of the parts."""
    done = world.run("check", "--deploy", "--tag", "parts", "--fail-level", "WARNING", **changed)
    return done.returncode, done.stdout + done.stderr


API: Final = (
    "-m", "granian", "--interface", "wsgi", "chat4all_project.wsgi:application",
    "--host", "127.0.0.1", "--workers", "1", "--blocking-threads", "8", "--port",
)  # fmt: skip
BRIDGE: Final = ("manage.py", "run_bridge", "--health-port")
GATEWAY: Final = ("manage.py", "run_gateway", "--port")


def apis(
    folder: Path, environments: Mapping[str, Mapping[str, str]]
) -> AbstractContextManager[dict[str, httpx.Client]]:
    """The API as production runs it, once with each of these environments; they start together."""
    return started(folder, {name: (API, environment) for name, environment in environments.items()})


@contextmanager
def started(
    folder: Path, wanted: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]
) -> Iterator[dict[str, httpx.Client]]:
    """Each of these commands, which ends with the option for its port, in its environment; they start together."""
    with ExitStack() as stack:
        clients, processes = {}, {}
        for (name, (command, environment)), port in zip(wanted.items(), free_ports(len(wanted)), strict=True):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, *command, str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
            stack.callback(process.wait, timeout=60)
            processes[name] = process
            clients[name] = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
        stack.callback(_terminate, processes.values())
        for name, client in clients.items():
            _until_up(client, processes[name])
        yield clients


def _terminate(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()


def _until_up(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended"
        try:
            client.get("/health")
        except httpx.TransportError:
            time.sleep(0.1)  # a poll for a process that starts
        else:
            return
    raise AssertionError("it did not start")


def fault(client: httpx.Client, part: str) -> str:
    """What /ready says of a part that is red."""
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "failed")
    return detail(client, part, "failed", answer)


def detail(client: httpx.Client, part: str, status: str, answer: httpx.Response | None = None) -> str:
    """What /ready says of a part, in an ``answer`` that there is or in one to come. A first one may only tell that the
    part is still being asked."""
    began = time.monotonic()
    while True:
        told = (answer or client.get("/ready")).json()["parts"][part]
        answer = None
        assert told["status"] == status or told["detail"].startswith("no answer"), told
        assert time.monotonic() - began < LONGEST_S, told
        if not told["detail"].startswith("no answer"):
            said: str = told["detail"]
            return said


def prompt(client: httpx.Client, method: str, path: str, *, within_s: float, **sent: Any) -> httpx.Response:
    """The answer, which never hangs; of a few, at least one is there in time (this machine may be busy)."""
    took = []
    for _ in range(TRIES):
        began = time.monotonic()
        answer = client.request(method, path, **sent)
        took.append(time.monotonic() - began)
        assert took[-1] < LONGEST_S
        if took[-1] < within_s:
            return answer
    raise AssertionError(f"{method} {path} took {took}")


def refused(answer: httpx.Response, code: str) -> None:
    """503 as problem JSON that says when to come again."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text[:300]
    assert (answer.status_code, answer.json()["code"]) == (503, code), answer.text
    assert int(answer.headers["Retry-After"]) >= 1


def register(client: httpx.Client, name: str) -> str:
    """The id of a new user; its client is signed in."""
    who = {"username": f"{name}-{uuid.uuid4().hex[:8]}", "password": PASSWORD}
    answer = client.post("/auth/register", json=who)
    assert answer.status_code == 201, answer.text
    client.headers["Authorization"] = f"Bearer {client.post('/auth/token', json=who).json()['access_token']}"
    found: str = client.get("/v1/users/me").json()["user_id"]
    return found


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + COMES_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)  # a poll of another process
