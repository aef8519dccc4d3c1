"""A wrong environment is told by the part's name and what to do, and never makes the API hang: asked from outside.

`manage.py check --deploy` tells it before the start, `/ready` after it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest

from demo.redis_server import BUS_RULES, LOG_RULES, RedisServer
from demo.supervisor import LocalSystem
from tests.files import buckets
from tests.stack.servers import needed

ROOT: Final = Path(__file__).resolve().parents[2]
LONGEST_S: Final = 12.0  # of any answer, on a busy machine; the parts' own time-outs are 2 to 5 s


@pytest.fixture(autouse=True)
def servers() -> None:
    """None in this process: everything here is asked from outside."""


@pytest.fixture(scope="module")
def hole() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def closed() -> int:
    """A port that refuses."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def everything_at(port: int) -> dict[str, str]:
    return {
        "EVENT_LOG_URL": f"redis://127.0.0.1:{port}/0",
        "BUS_URL": f"redis://127.0.0.1:{port}/0",
        "FILES_URL": f"s3://key:secret@bucket?endpoint=http://127.0.0.1:{port}",
        "DATABASE_URL": f"postgres://user:pass-word@127.0.0.1:{port}/name",
        "MESSAGES_DATABASE_URL": f"postgres://user:pass-word@127.0.0.1:{port}/name",
    }


# --- before the start ---------------------------------------------------------------------------------------------


def check(state: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """What `manage.py check --deploy` says of the parts."""
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--tag", "parts", "--fail-level", "WARNING"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "STATE_DIR": str(state), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


ALL: Final = {
    "E001": "EVENT_LOG_URL",
    "E011": "MESSAGES_DATABASE_URL",
    "E021": "DATABASE_URL",
    "E031": "FILES_URL",
    "E041": "BUS_URL",
}


@pytest.mark.cluster
@pytest.mark.parametrize("where", ["hole", "closed"])
def test_a_check_names_every_part_that_is_away(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    needed("postgres")  # or its driver may not be installed
    status, told = check(tmp_path, everything_at(request.getfixturevalue(where)))
    assert status == 1
    for number, variable in ALL.items():
        line = next(line for line in told.splitlines() if f"chat4all.{number}" in line)
        assert variable in line, line
        assert "see that" in line, line
    assert "pass-word" not in told


def test_a_check_tells_a_redis_that_would_lose_messages(tmp_path: Path) -> None:
    bus = RedisServer(tmp_path / "bus", rules=("appendonly no", "maxmemory-policy allkeys-lru")).start()
    try:
        status, told = check(tmp_path / "state", {"EVENT_LOG_URL": bus.url, "BUS_URL": bus.url})
    finally:
        bus.stop()
    assert status == 1
    for number, remedy in (
        ("E003", "set appendonly yes"),
        ("E003", "set maxmemory-policy noeviction"),
        ("W003", "set maxmemory"),
        ("E042", "set maxmemory-policy noeviction"),
        ("E043", "a redis-server of its own"),
        ("E012", "manage.py migrate --database messages"),
        ("E022", "manage.py migrate --database default"),
        ("W051", "API_URL=https://"),
    ):
        assert f"chat4all.{number}" in told, told
        assert remedy in told, told


def test_a_check_has_nothing_to_say_of_a_system_that_is_set_up(tmp_path: Path, migrated: Path) -> None:
    log = RedisServer(tmp_path / "log", rules=LOG_RULES).start()
    bus = RedisServer(tmp_path / "bus", rules=BUS_RULES).start()
    state = shutil.copytree(migrated, tmp_path / "state")
    urls = {"EVENT_LOG_URL": log.url, "BUS_URL": bus.url}
    try:
        environment = {"PATH": os.environ["PATH"], "STATE_DIR": str(state), **urls}
        subprocess.run(
            [sys.executable, "manage.py", "setup_topics"], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        public = {"API_URL": "https://chat.example.com", "GATEWAY_URL": "wss://chat.example.com"}
        assert check(state, {**urls, **public})[0] == 0
    finally:
        log.stop()
        bus.stop()


# --- while it runs ------------------------------------------------------------------------------------------------


@contextmanager
def api(folder: Path, environment: Mapping[str, str]) -> Iterator[httpx.Client]:
    """The API as production runs it, alone, with these URLs; what they do not name is the local profile's."""
    with LocalSystem(folder, processes=("redis-log", "redis-bus")) as system:
        command = [sys.executable, "-m", "granian", "--interface", "wsgi", "chat4all_project.wsgi:application"]
        command += ["--host", "127.0.0.1", "--port", str(system.ports.api), "--workers", "1"]
        with (folder / "api.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--blocking-threads", "8"],
                cwd=ROOT, env={**system.env, **environment}, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            with httpx.Client(base_url=system.api_url, timeout=60) as client:
                _until_up(client, process)
                yield client
        finally:
            process.terminate()
            process.wait(timeout=20)


def _until_up(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the API ended"
        try:
            client.get("/health")
        except httpx.TransportError:
            time.sleep(0.1)  # a poll for a process that starts
        else:
            return
    raise AssertionError("the API did not start")


def fault(client: httpx.Client, part: str) -> str:
    """What /ready says of a part that is red. A first answer may only tell that the part is still being asked."""
    began = time.monotonic()
    while True:
        answer = client.get("/ready")
        assert answer.status_code == 503
        told = answer.json()["parts"][part]
        assert told["status"] == "failed"
        assert time.monotonic() - began < LONGEST_S, told
        if not told["detail"].startswith("no answer"):
            detail: str = told["detail"]
            return detail


def sign_in(client: httpx.Client) -> httpx.Response:
    began = time.monotonic()
    answer = client.post("/auth/token", json={"username": "alice", "password": "correct horse battery"})
    assert time.monotonic() - began < LONGEST_S
    return answer


def signed_in(client: httpx.Client) -> httpx.Client:
    name = {"username": "alice", "password": "correct horse battery"}
    assert client.post("/auth/register", json=name).status_code == 201
    client.headers["Authorization"] = f"Bearer {sign_in(client).json()['access_token']}"
    return client


@pytest.mark.cluster
@pytest.mark.parametrize("case", ["hole", "closed", "no such database", "wrong credentials"])
def test_a_database_that_cannot_be_used_is_named_and_hangs_nobody(
    case: str, tmp_path: Path, hole: int, closed: int
) -> None:
    parts = urlsplit(needed("postgres"))
    place = f"{parts.hostname}:{parts.port}"
    user = f"{parts.username}:{parts.password}" if parts.password else parts.username
    url, remedy = {
        "hole": (f"postgres://a:b@127.0.0.1:{hole}/x", "see that its server runs"),
        "closed": (f"postgres://a:b@127.0.0.1:{closed}/x", "see that its server runs"),
        "no such database": (f"postgres://{user}@{place}/no_such_database", "create it"),
        "wrong credentials": (f"postgres://nobody:b@{place}/postgres", "correct"),
    }[case]
    with api(tmp_path, {"DATABASE_URL": url}) as client:
        told = fault(client, "accounts")
        assert remedy in told
        assert "DATABASE_URL" in told
        answer = sign_in(client)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["Retry-After"]
        assert client.get("/health").status_code == 200


@pytest.mark.cluster
@pytest.mark.parametrize("case", ["hole", "closed", "no such bucket", "wrong credentials"])
def test_a_storage_that_cannot_be_used_is_named_and_the_rest_goes_on(
    case: str, tmp_path: Path, hole: int, closed: int, migrated: Path
) -> None:
    name = buckets.new_name()
    url, remedy = {
        "hole": (f"s3://a:b@{name}?endpoint=http://127.0.0.1:{hole}&timeout=1", "see that it runs"),
        "closed": (f"s3://a:b@{name}?endpoint=http://127.0.0.1:{closed}", "see that it runs"),
        "no such bucket": (buckets.url_of(name), "run manage.py setup_storage"),
        "wrong credentials": (buckets.url_of(name, secret="another-secret"), "correct key and secret"),
    }[case]
    state = shutil.copytree(migrated, tmp_path / "system")
    with api(state, {"FILES_URL": url}) as client:
        told = fault(client, "files")
        assert remedy in told
        assert "FILES_URL" in told
        signed_in(client)
        began = time.monotonic()
        answer = client.post("/v1/files", files={"file": ("a.txt", b"hello")})
        assert time.monotonic() - began < LONGEST_S
        assert (answer.status_code, answer.json()["code"]) == (503, "files_unavailable")
        assert answer.headers["Retry-After"]
        assert client.get("/v1/conversations").status_code == 200


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with the local profile's databases, to be copied."""
    state = tmp_path_factory.mktemp("migrated")
    env = {"PATH": os.environ["PATH"], "STATE_DIR": str(state)}
    for database in ("default", "messages"):
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "-v0", "--database", database], cwd=ROOT, env=env, check=True
        )
    return state
