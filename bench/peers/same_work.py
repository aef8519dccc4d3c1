"""The work that a peer and ours both do: 20 clients' messages under way, each until it is in the other client's feed.

A peer's module starts its server, says how its clients write and read, and calls `compare`.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import psycopg

from bench.client import Loop
from bench.figures import Figure, Spread
from bench.live import listeners_of
from bench.people import talks
from bench.profiles import running
from bench.traffic import Traffic, pushed

CLIENTS: Final = 20
START_TIMEOUT_S: Final = 120.0
WARM_UP_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Done:
    """How many came a second, and after how long."""

    per_s: float
    spread: Spread

    def __str__(self) -> str:
        return f"{self.per_s:,.0f}/s, {self.spread}"

    def beside(self, name: str, peer: Done) -> str:
        """The ratios: more than 1 is better of throughput, less of latencies."""
        p50, p95 = self.spread.p50 / peer.spread.p50, self.spread.p95 / peer.spread.p95
        return (
            f"{self.per_s / peer.per_s:.2f} times {name}'s throughput, {p50:.2f} times its p50, {p95:.2f} times its p95"
        )


class Pair(ABC):
    """One writes to the other; the next message goes out when the last one was answered and came, in either order."""

    def __init__(self) -> None:
        self.took_s: list[float] = []
        self._number = 0
        self._sent_s = 0.0
        self._ended = 0  # of the two things that end a message

    @abstractmethod
    def write(self, number: int) -> None:
        """Send the message of this number; ``answered`` and ``came`` are called later."""

    def begin(self) -> None:
        self._next()

    def answered(self) -> None:
        self._end()

    def came(self) -> None:
        self.took_s.append(time.perf_counter() - self._sent_s)
        self._end()

    def _end(self) -> None:
        self._ended += 1
        if self._ended == 2:
            self._next()

    def _next(self) -> None:
        self._number += 1
        self._ended = 0
        self._sent_s = time.perf_counter()
        self.write(self._number)


def theirs(loop: Loop, pairs: Sequence[Pair], *, seconds: float) -> Done:
    for each in pairs:
        each.begin()
    loop.run_until(lambda: False, timeout_s=WARM_UP_S)
    for each in pairs:
        each.took_s.clear()
    started_s = time.perf_counter()
    loop.run_until(lambda: False, timeout_s=seconds)
    took_s = [each for pair in pairs for each in pair.took_s]
    return Done(len(took_s) / (time.perf_counter() - started_s), Spread.of(took_s))


def ours(directory: Path, *, seconds: float) -> Done:
    with running("cluster", directory) as system:
        people = talks(system.api_url, CLIENTS, prefix="peer")
        traffic = Traffic(system, listeners_of(people), pushed)
        traffic.closed_window(people, window=CLIENTS, seconds=WARM_UP_S)
        traffic.watched.due_s.clear()
        per_s = traffic.closed_window(people, window=CLIENTS, seconds=seconds)
        traffic.close()
        return Done(per_s, Spread.of(traffic.watched.latencies_s()))


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--alone", action="store_true", help="not ours: needs PostgreSQL only (`run --only postgres`)")
    return parser


def compare(name: str, peer: Callable[[Path], Done], *, seconds: float, alone: bool) -> None:
    """Neither runs while the other is measured. ``peer`` gets a folder of its own."""
    what = f"{CLIENTS} clients with a room each, send to the other's client"
    with tempfile.TemporaryDirectory(prefix="chat4all-peers-") as folder:
        their = peer(Path(folder))
        print(Figure(f"{name}, {what}", str(their)), flush=True)
        if not alone:
            our = ours(Path(folder) / "ours", seconds=seconds)
            print(Figure(f"Chat4All, {what}", str(our), our.beside(name, their)), flush=True)


@contextmanager
def database(name: str) -> Iterator[str]:
    """The URL of a new database with the collation C (Synapse insists on it), dropped in the end."""
    url, name = os.environ["TEST_POSTGRES_URL"], f"{name}_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )
        try:
            yield urlsplit(url)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@contextmanager
def serving(command: Sequence[str], directory: Path, *, probe: str) -> Iterator[None]:
    """A peer's server, once it answers at the URL ``probe``. Raises RuntimeError with its last words."""
    log = directory / "server.log"
    with log.open("w") as output, subprocess.Popen(command, cwd=directory, stdout=output, stderr=output) as process:
        try:
            _wait_until_it_answers(probe, process, log)
            yield
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            httpx.get(url, timeout=5).raise_for_status()
        except httpx.HTTPError as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the peer's server does not answer: {error}\n{log.read_text()[-2000:]}") from error
            time.sleep(0.2)
        else:
            return
