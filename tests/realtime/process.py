"""Start a real gateway, with an accounts database of its own: for tests and benches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import redis
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.client import ClientConnection, connect

from demo.redis_server import RedisServer, free_port
from realtime.notify import Push, RedisNotifier

ROOT = Path(__file__).resolve().parents[2]
MAKE_USERS = """
import json, sys
from accounts.models import DEFAULT_WORKSPACE_ID, User
names = json.loads(sys.stdin.read())
User.objects.bulk_create(User(username=name, workspace_id=DEFAULT_WORKSPACE_ID, display_name=name) for name in names)
users = dict(User.objects.values_list("username", "public_id"))
print(json.dumps({"workspace": str(DEFAULT_WORKSPACE_ID), "users": users}))
"""


@cache
def parsed(pem: str) -> rsa.RSAPrivateKey:
    """Once per key: parsing takes a hundred times as long as signing."""
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 20, what: str = "condition") -> Any:
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout_s} s")
        time.sleep(0.02)
    return result


@dataclass
class Accounts:
    """A database with Alice, Bob, Mallory and a crowd, and the key that signs their tokens."""

    env: dict[str, str]
    workspace_id: str
    users: dict[str, str]

    def token(self, name: str, *, lifetime_s: float = 3600, key: str | None = None, **claims: object) -> str:
        signing_key = key or (Path(self.env["STATE_DIR"]) / "keys" / "jwt_private_key.pem").read_text()
        now_s = int(time.time())
        payload = {
            "iss": "chat4all",
            "sub": self.users[name],
            "ws": self.workspace_id,
            "iat": now_s,
            "exp": int(now_s + lifetime_s),
            "jti": uuid.uuid4().hex,
            "token_type": "access",
            **claims,
        }
        return jwt.encode(payload, parsed(signing_key), algorithm="RS256")

    def manage(self, *args: str, stdin: str | None = None) -> str:
        run = subprocess.run(
            [sys.executable, "manage.py", *args],
            cwd=ROOT, env=self.env, input=stdin, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout


@dataclass
class GatewayProcess:
    """`manage.py run_gateway` as it runs in production, but for the application that records acknowledgements."""

    accounts: Accounts
    bus: RedisServer
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """A sample with its labels, as it stands in /metrics; 0 when it is not there yet."""
        lines = self.get("/metrics")[1].splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == name), 0.0)

    def rss_mib(self) -> float:
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.process.pid)])) / 1024

    def connect(self, name: str, query: str = "", **options: Any) -> connect:
        token = options.pop("token", None) or self.accounts.token(name)
        return connect(f"{self.url}?token={token}{query}", proxy=None, **options)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.bus.url, decode_responses=True)

    def push(self, *pushes: Push) -> None:
        notifier = RedisNotifier(self.bus.url, timeout_s=20)
        notifier.push(pushes)
        notifier.close()

    def user(self, name: str) -> str:
        return self.accounts.users[name]

    def message(
        self, name: str, number: int | str, *, recipient: str | None = None, text: str = "hi", **body: Any
    ) -> Push:
        """A new message for this user, sent to them unless to somebody else, as the pipeline pushes it."""
        statuses = [{"recipient_id": recipient or self.user(name), "status": "SENT"}]
        message = {"message_id": f"m{number}", "conversation_id": "c", "content": text, "statuses": statuses}
        return Push(self.user(name), f"message:m{number}", {"type": "message", "message": message, **body})


async def read(socket: ClientConnection) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(await socket.recv())
    return value


async def hello(socket: ClientConnection) -> dict[str, Any]:
    frame = await read(socket)
    assert frame["type"] == "hello"
    return frame


def ids(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["message"]["message_id"] for frame in frames]


def make_accounts(state: Path, names: Sequence[str]) -> Accounts:
    env = {**os.environ, "STATE_DIR": str(state), "DJANGO_SETTINGS_MODULE": "tests.realtime.gateway_settings"}
    accounts = Accounts(env, "", {})
    accounts.manage("migrate", "--database", "default", "--verbosity", "0")
    made = json.loads(accounts.manage("shell", "-v0", "-c", MAKE_USERS, stdin=json.dumps(names)).splitlines()[-1])
    return Accounts(env, made["workspace"], made["users"])


def start_gateway(
    accounts: Accounts, bus: RedisServer, directory: Path, *options: str, health_port: int | None = None
) -> GatewayProcess:
    port = free_port()
    log = directory / "gateway.log"
    if health_port is not None:
        options = (*options, "--health-port", str(health_port))
    command = [sys.executable, "manage.py", "run_gateway", "--port", str(port), *options]
    with log.open("ab") as output:
        env = {**accounts.env, "BUS_URL": bus.url}
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
    gateway = GatewayProcess(accounts, bus, port, process, log)
    health = replace(gateway, port=health_port or port)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return health.get("/ready")[0] == 200
        except OSError:
            return False

    wait_for(ready, timeout_s=40, what="the gateway being ready")
    return gateway
