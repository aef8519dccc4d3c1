"""Synapse, a Matrix server, on PostgreSQL: 20 messages under way, each until it is in the other client's sync.

    python -m tests.stack run -- python -m bench.peers.synapse [--seconds 20]

Its package goes into an environment of its own below .cache/peers; its database is dropped in the end. Ours does the
same work on the cluster profile afterwards, and the ratios are printed: neither runs while the other is measured.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx

from bench.client import Answer, HttpConnection, Loop
from bench.figures import ROOT
from bench.peers.same_work import CLIENTS, Done, Pair, arguments, compare, database, serving, theirs
from bench.people import PASSWORD, TEXT
from demo.ports import HOST
from demo.redis_server import free_port

REQUIREMENTS: Final = Path(__file__).with_name("synapse.txt")
ENVIRONMENT: Final = ROOT / ".cache" / "peers" / "synapse"


def installed() -> Path:
    """The interpreter of Synapse's own environment; made once for each set of requirements."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    return python


def database_settings(url: str) -> dict[str, Any]:
    place = urlsplit(url)
    return {
        "name": "psycopg2",
        "args": {
            "user": place.username,
            "password": place.password,
            "dbname": place.path.removeprefix("/"),
            "host": place.hostname,
            "port": place.port,
        },
    }


@contextmanager
def synapse(directory: Path, *, database_url: str) -> Iterator[str]:
    """Its URL, once it answers. One process, as it comes; rates are not limited."""
    port, endless = free_port(), {"per_second": 1_000_000, "burst_count": 1_000_000}
    settings = {
        "server_name": "bench",
        "report_stats": False,
        "pid_file": str(directory / "pid"),
        "signing_key_path": str(directory / "signing.key"),
        "media_store_path": str(directory / "media"),
        "macaroon_secret_key": secrets.token_hex(16),
        "database": database_settings(database_url),
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "trusted_key_servers": [],
        "bcrypt_rounds": 4,
        "rc_message": endless,
        "rc_registration": endless,
        "rc_login": {"address": endless, "account": endless},
        "rc_joins": {"local": endless, "remote": endless},
        "rc_invites": {"per_room": endless, "per_user": endless, "per_issuer": endless},
        "rc_room_creation": endless,
        "listeners": [
            {
                "port": port,
                "bind_addresses": [HOST],
                "type": "http",
                "tls": False,
                "resources": [{"names": ["client"], "compress": False}],
            }
        ],
    }
    config = directory / "homeserver.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [str(installed()), "-m", "synapse.app.homeserver", "--config-path", str(config)]
    subprocess.run([*command, "--generate-keys"], check=True, cwd=directory)
    url = f"http://{HOST}:{port}"
    with serving(command, directory, probe=f"{url}/_matrix/client/versions"):
        yield url


class Room(Pair):
    """One writes in it, the other syncs."""

    def __init__(
        self, connect: Callable[[], HttpConnection], room: str, *, writer: str, reader: str, since: str
    ) -> None:
        super().__init__()
        self._send, self._sync = connect(), connect()
        self._room, self._writer, self._reader, self._since = room, writer, reader, since

    def begin(self) -> None:
        self._listen()
        super().begin()

    def write(self, number: int) -> None:
        path = f"/_matrix/client/v3/rooms/{quote(self._room)}/send/m.room.message/{number}"
        self._send.send(request("PUT", path, self._writer, {"msgtype": "m.text", "body": TEXT}), self._taken)

    def _taken(self, answer: Answer) -> None:
        _accepted(answer)
        self.answered()

    def _listen(self) -> None:
        path = f"/_matrix/client/v3/sync?timeout=30000&since={quote(self._since)}"
        self._sync.send(request("GET", path, self._reader), self._synced)

    def _synced(self, answer: Answer) -> None:
        _accepted(answer)
        found = json.loads(answer.body)
        self._since = found["next_batch"]
        room = found.get("rooms", {}).get("join", {}).get(self._room, {})
        came = [each for each in room.get("timeline", {}).get("events", ()) if each["type"] == "m.room.message"]
        self._listen()
        if came:
            self.came()


def _accepted(answer: Answer) -> None:
    if answer.status != 200:
        raise RuntimeError(f"Synapse answered {answer.status}: {answer.body[:200]!r}")


def request(method: str, path: str, token: str, body: object = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def rooms(url: str, loop: Loop) -> list[Room]:
    with httpx.Client(base_url=f"{url}/_matrix/client/v3", timeout=60) as http:

        def call(path: str, body: object, token: str = "") -> dict[str, Any]:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return dict(http.post(path, json=body, headers=headers).raise_for_status().json())

        def register(name: str) -> dict[str, Any]:
            return call("/register", {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}})

        found = []
        for number in range(CLIENTS):
            writer, reader = register(f"writer{number}"), register(f"reader{number}")
            invited = {"preset": "trusted_private_chat", "invite": [reader["user_id"]]}
            room = call("/createRoom", invited, writer["access_token"])["room_id"]
            call(f"/rooms/{quote(room)}/join", {}, reader["access_token"])
            first = http.get("/sync", headers={"Authorization": f"Bearer {reader['access_token']}"}).raise_for_status()
            connect = partial(HttpConnection, loop, url)
            tokens = {"writer": writer["access_token"], "reader": reader["access_token"]}
            found.append(Room(connect, room, **tokens, since=first.json()["next_batch"]))
        return found


def measured(directory: Path, *, seconds: float) -> Done:
    loop = Loop()
    with database("synapse") as database_url, synapse(directory, database_url=database_url) as url:
        return theirs(loop, rooms(url, loop), seconds=seconds)


def main() -> None:
    options = arguments(__doc__).parse_args()
    compare(
        "Synapse",
        lambda folder: measured(folder, seconds=options.seconds),
        seconds=options.seconds,
        alone=options.alone,
    )


if __name__ == "__main__":
    main()
