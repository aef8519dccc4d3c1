"""Tinode on PostgreSQL: 20 messages under way, each until it is {data} on the other client's websocket.

    python -m tests.stack run -- python -m bench.peers.tinode --server PATH --init PATH [--seconds 20]

The programs are Tinode's server and its tinode-db, for PostgreSQL; its database is dropped in the end. Ours does the
same work on the cluster profile afterwards, and the ratios are printed: neither runs while the other is measured.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import os
import secrets
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from bench.client import Loop, WebSocket
from bench.peers.same_work import CLIENTS, Done, Pair, arguments, compare, database, serving, theirs
from bench.people import PASSWORD, TEXT
from demo.ports import HOST
from demo.redis_server import free_port

VERSION: Final = "0.22"  # of the protocol
ANSWER_S: Final = 60.0
DATABASE_CONNECTIONS: Final = 50  # as many as the configuration that comes with it asks for
REMEDY: Final = (
    "The programs are those of a release for PostgreSQL, or built with the tag `postgres` as Tinode's INSTALL.md says"
)


def programs(given: argparse.Namespace, environment: Mapping[str, str]) -> tuple[str, str]:
    """Paths of the server and of what makes its database. Raises ValueError with what to do."""
    return (
        _program(given.server or environment.get("TINODE_SERVER", ""), "--server (or TINODE_SERVER): Tinode's server"),
        _program(given.init or environment.get("TINODE_DB", ""), "--init (or TINODE_DB): its tinode-db"),
    )


def _program(path: str, what: str) -> str:
    if not path:
        raise ValueError(f"{what} is not given. {REMEDY}")
    found = shutil.which(str(Path(path).absolute()))
    if found is None:
        raise ValueError(f"{what} is no program: {path}. {REMEDY}")
    return found


def api_key(salt: bytes) -> str:
    """A client's key, signed with the server's salt: scheme 1, application 0, number 1, not of root."""
    key = struct.pack("<BIHB", 1, 0, 1, 0)
    return base64.urlsafe_b64encode(key + hmac.digest(salt, key, "md5")).decode()


@contextmanager
def tinode(directory: Path, server: str, init: str, *, database_url: str) -> Iterator[tuple[str, str]]:
    """Its URL and a client's key, once it answers. One process, as it comes; without what it has only where it is
    configured: gRPC, pushes, plugins, files, calls, validation of accounts. It limits no rates."""
    port, salt = free_port(), secrets.token_bytes(32)
    postgres = {"dsn": f"{database_url}?sslmode=disable&pool_max_conns={DATABASE_CONNECTIONS}"}
    settings = {
        "listen": f"{HOST}:{port}",
        "grpc_listen": "",
        "expvar": "/debug/vars",
        "api_key_salt": _base64(salt),
        "auth_config": {"basic": {}, "token": {"expire_in": 86400, "key": _base64(secrets.token_bytes(32))}},
        "store_config": {
            "uid_key": _base64(secrets.token_bytes(16)),
            "use_adapter": "postgres",
            "adapters": {"postgres": postgres},
        },
        "push": [],
    }
    config = directory / "tinode.conf"
    config.write_text(json.dumps(settings))
    _make_resettable(database_url)
    subprocess.run([init, f"--config={config}", "--reset"], check=True, cwd=directory)
    url = f"{HOST}:{port}"
    with serving([server, f"--config={config}", "--static_data=-"], directory, probe=f"http://{url}/debug/vars"):
        yield f"ws://{url}/v0/channels", api_key(salt)


def _make_resettable(database_url: str) -> None:
    """tinode-db refuses an empty database, and where there is none wants one of its user's name to connect to. One of
    an older version it drops and makes anew."""
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE kvmeta (key text, value text)")
        connection.execute("INSERT INTO kvmeta VALUES ('version', '1')")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def opened(frame: bytes) -> tuple[str, dict[str, Any]]:
    """What kind of message a frame holds, and the message. Raises RuntimeError for a refusal."""
    [(kind, message)] = json.loads(frame).items()
    if kind == "ctrl" and message["code"] >= 400:
        raise RuntimeError(f"Tinode answered {message['code']}: {message['text']}")
    return kind, message


class Session:
    """A new user on a websocket. ``hear`` has what to do about a kind of message; others are passed over."""

    def __init__(self, loop: Loop, url: str, key: str, name: str) -> None:
        self._loop = loop
        self.hear: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._socket = WebSocket(loop, url, self._got, headers={"X-Tinode-APIKey": key})
        self.ask("hi", ver=VERSION)
        secret = _base64(f"{name}:{PASSWORD}".encode())
        made = self.ask("acc", user="new", scheme="basic", secret=secret, login=True)
        self.user_id: str = made["params"]["user"]

    def ask(self, kind: str, **message: object) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []
        self.hear["ctrl"] = answers.append
        self.tell(kind, **message)
        if not self._loop.run_until(lambda: bool(answers), timeout_s=ANSWER_S):
            raise TimeoutError(f"Tinode did not answer {{{kind}}}")
        del self.hear["ctrl"]
        return answers[0]

    def tell(self, kind: str, **message: object) -> None:
        self._socket.send_text(json.dumps({kind: {"id": kind, **message}}).encode())

    def _got(self, frame: bytes) -> None:
        kind, message = opened(frame)
        if kind in self.hear:
            self.hear[kind](message)


class Topic(Pair):
    """Of two users; the writer's socket is spared what it wrote, as ours has none."""

    def __init__(self, writer: Session, reader: Session) -> None:
        super().__init__()
        self._writer, self._reader_id = writer, reader.user_id
        writer.ask("sub", topic=reader.user_id)
        reader.ask("sub", topic=writer.user_id)
        writer.hear["ctrl"] = lambda _: self.answered()
        reader.hear["data"] = lambda _: self.came()

    def write(self, number: int) -> None:
        self._writer.tell("pub", id=str(number), topic=self._reader_id, noecho=True, content=TEXT)


def measured(directory: Path, server: str, init: str, *, seconds: float) -> Done:
    loop = Loop()
    with database("tinode") as database_url, tinode(directory, server, init, database_url=database_url) as (url, key):

        def user(name: str) -> Session:
            return Session(loop, url, key, name)

        topics = [Topic(user(f"writer{number}"), user(f"reader{number}")) for number in range(CLIENTS)]
        return theirs(loop, topics, seconds=seconds)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--server", metavar="PATH", help="Tinode's server (default: $TINODE_SERVER)")
    parser.add_argument("--init", metavar="PATH", help="its tinode-db (default: $TINODE_DB)")
    options = parser.parse_args()
    try:
        server, init = programs(options, os.environ)
    except ValueError as error:
        parser.error(str(error))
    compare(
        "Tinode",
        lambda folder: measured(folder, server, init, seconds=options.seconds),
        seconds=options.seconds,
        alone=options.alone,
    )


if __name__ == "__main__":
    main()
