"""Synapse, a Matrix server, on PostgreSQL: 20 messages under way, each until it is in the other client's sync.

    python -m tests.stack run -- python -m bench.peers.synapse [--seconds 20]

Its package goes into an environment of its own below .cache/peers; its database is dropped in the end. Ours does the
same work on the cluster profile afterwards, and the ratio is printed: neither runs while the other is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx
import psycopg

from bench.client import Answer, HttpConnection, Loop
from bench.figures import ROOT, Figure, Spread
from bench.live import listeners_of
from bench.people import PASSWORD, TEXT, talks
from bench.profiles import running
from bench.traffic import Traffic, pushed
from demo.ports import HOST
from demo.redis_server import free_port

CLIENTS: Final = 20
REQUIREMENTS: Final = Path(__file__).with_name("synapse.txt")
ENVIRONMENT: Final = ROOT / ".cache" / "peers" / "synapse"
START_TIMEOUT_S: Final = 120.0
WARM_UP_S: Final = 3.0


def installed() -> Path:
    """The interpreter of Synapse's own environment; made once for each set of requirements."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    return python


@contextmanager
def database(url: str) -> Iterator[dict[str, Any]]:
    """What Synapse's configuration says about a new database; it insists on the collation C."""
    name, place = f"synapse_{secrets.token_hex(4)}", urlsplit(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )
        try:
            yield {
                "name": "psycopg2",
                "args": {
                    "user": place.username,
                    "password": place.password,
                    "dbname": name,
                    "host": place.hostname,
                    "port": place.port,
                },
            }
        finally:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@contextmanager
def synapse(directory: Path, database_settings: Mapping[str, Any]) -> Iterator[str]:
    """Its URL, once it answers. One process, as it comes; rates are not limited."""
    port, endless = free_port(), {"per_second": 1_000_000, "burst_count": 1_000_000}
    settings = {
        "server_name": "bench",
        "report_stats": False,
        "pid_file": str(directory / "pid"),
        "signing_key_path": str(directory / "signing.key"),
        "media_store_path": str(directory / "media"),
        "macaroon_secret_key": secrets.token_hex(16),
        "database": database_settings,
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
    with (directory / "synapse.log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
        try:
            url = f"http://{HOST}:{port}"
            _wait_until_it_answers(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            httpx.get(f"{url}/_matrix/client/versions", timeout=5).raise_for_status()
        except httpx.HTTPError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)
        else:
            return


@dataclass(slots=True)
class Pair:
    """One writes in their room, the other syncs; the next message goes out when the last one came."""

    send: HttpConnection
    sync: HttpConnection
    writer: str
    reader: str
    room: str
    since: str = ""
    sent: int = 0
    ended: int = 0  # of the two things that end a message
    sent_s: float = 0.0
    took_s: list[float] = field(default_factory=list)

    def begin(self) -> None:
        self._sync()
        self._send()

    def _send(self) -> None:
        self.sent += 1
        path = f"/_matrix/client/v3/rooms/{quote(self.room)}/send/m.room.message/{self.sent}"
        self.sent_s = time.perf_counter()
        self.send.send(request("PUT", path, self.writer, {"msgtype": "m.text", "body": TEXT}), self._answered)

    def _answered(self, answer: Answer) -> None:
        _accepted(answer)
        self._next()

    def _sync(self) -> None:
        path = f"/_matrix/client/v3/sync?timeout=30000&since={quote(self.since)}"
        self.sync.send(request("GET", path, self.reader), self._synced)

    def _synced(self, answer: Answer) -> None:
        _accepted(answer)
        found = json.loads(answer.body)
        self.since = found["next_batch"]
        room = found.get("rooms", {}).get("join", {}).get(self.room, {})
        came = [each for each in room.get("timeline", {}).get("events", ()) if each["type"] == "m.room.message"]
        self._sync()
        if came:
            self.took_s.append(time.perf_counter() - self.sent_s)
            self._next()

    def _next(self) -> None:
        """Once the message was answered and has come, in whichever order."""
        self.ended += 1
        if self.ended == 2:
            self.ended = 0
            self._send()


def _accepted(answer: Answer) -> None:
    if answer.status != 200:
        raise RuntimeError(f"Synapse answered {answer.status}: {answer.body[:200]!r}")


def request(method: str, path: str, token: str, body: object = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def pairs(url: str, loop: Loop) -> list[Pair]:
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
            tokens = writer["access_token"], reader["access_token"]
            found.append(Pair(connect(), connect(), *tokens, room, since=first.json()["next_batch"]))
        return found


def theirs(url: str, *, seconds: float) -> tuple[float, Spread]:
    loop = Loop()
    everybody = pairs(url, loop)
    for each in everybody:
        each.begin()
    loop.run_until(lambda: False, timeout_s=WARM_UP_S)
    for each in everybody:
        each.took_s.clear()
    started_s = time.perf_counter()
    loop.run_until(lambda: False, timeout_s=seconds)
    took_s = [each for pair in everybody for each in pair.took_s]
    return len(took_s) / (time.perf_counter() - started_s), Spread.of(took_s)


def ours(directory: Path, *, seconds: float) -> tuple[float, Spread]:
    with running("cluster", directory) as system:
        people = talks(system.api_url, CLIENTS, prefix="peer")
        traffic = Traffic(system, listeners_of(people), pushed)
        traffic.closed_window(people, window=CLIENTS, seconds=WARM_UP_S)
        traffic.watched.due_s.clear()
        per_s = traffic.closed_window(people, window=CLIENTS, seconds=seconds)
        traffic.close()
        return per_s, Spread.of(traffic.watched.latencies_s())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    what = f"{CLIENTS} clients with a room each, send to the other's client"
    with tempfile.TemporaryDirectory(prefix="chat4all-peers-") as name:
        folder = Path(name)
        with database(os.environ["TEST_POSTGRES_URL"]) as settings, synapse(folder, settings) as url:
            their_rate, their_spread = theirs(url, seconds=options.seconds)
        print(Figure(f"Synapse, {what}", f"{their_rate:,.0f}/s, {their_spread}"), flush=True)
        our_rate, our_spread = ours(folder / "ours", seconds=options.seconds)
        beside = f"{our_rate / their_rate:.1f} times Synapse"
        print(Figure(f"Chat4All, {what}", f"{our_rate:,.0f}/s, {our_spread}", beside), flush=True)


if __name__ == "__main__":
    main()
