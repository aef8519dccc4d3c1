"""POST /v1/messages at 20 closed-loop clients, against a bare DRF view with the same token check, in one run.

    python -m bench.api [--sweep]

``--sweep`` tries numbers of granian's workers and threads. Only the API and its two Redis run: nothing else takes CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.client import Answer, HttpConnection, Loop
from bench.figures import Figure, Spread
from bench.people import Talk, talks
from demo.ports import HOST
from demo.redis_server import free_port
from demo.supervisor import ROOT, LocalSystem

CLIENTS: Final = 20
WARM_UP_S: Final = 2.0
SWEEP: Final = ((1, 1), (1, 4), (2, 1), (2, 4), (2, 32), (3, 4))
ALONE: Final = ("redis-log", "redis-bus", "api")


@dataclass(frozen=True, slots=True)
class Load:
    per_s: float
    latency: Spread

    def __str__(self) -> str:
        return f"{self.per_s:,.0f}/s, {self.latency}"


@dataclass(slots=True)
class _Client:
    """Posts, waits for the answer, posts again."""

    connection: HttpConnection
    request: bytes
    took_s: list[float]
    stopped: bool = False

    def go(self) -> None:
        self.connection.send(self.request, self._answered)

    def _answered(self, answer: Answer) -> None:
        if answer.status != 202:
            raise RuntimeError(f"a POST was answered {answer.status}: {answer.body[:200]!r}")
        self.took_s.append(answer.took_s)
        if not self.stopped:
            self.go()


def closed_loop(url: str, people: Sequence[Talk], *, seconds: float) -> Load:
    loop = Loop()
    clients = [_Client(HttpConnection(loop, url), talk.request, []) for talk in people]
    for client in clients:
        client.go()
    _spin(loop, WARM_UP_S)
    for client in clients:
        client.took_s.clear()
    started_s = time.perf_counter()
    _spin(loop, seconds)
    elapsed_s = time.perf_counter() - started_s
    took_s = [each for client in clients for each in client.took_s]
    for client in clients:
        client.stopped = True
    loop.run_until(lambda: not any(client.connection.busy for client in clients), timeout_s=10)
    for client in clients:
        client.connection.close()
    return Load(len(took_s) / elapsed_s, Spread.of(took_s))


def _spin(loop: Loop, seconds: float) -> None:
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        loop.turn(0.05)


@contextmanager
def bare_view(system: LocalSystem) -> Iterator[str]:
    """The URL of a bare view under granian with the same workers and threads, keys and accounts."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "granian", "--interface", "wsgi", "bench.bare:application", "--host", HOST),
        *("--port", str(port), "--no-access-log", "--workers", system.env.get("API_WORKERS", "2")),
        *("--blocking-threads", system.env.get("API_THREADS", "32"), "--log-level", "warning"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, env={**system.env, "SERVICE": "bare", "PYTHONPATH": str(ROOT)})
    try:
        url = f"http://{HOST}:{port}"
        _wait_until_it_listens(url)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_it_listens(url: str, timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            HttpConnection(Loop(), url).close()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
        else:
            return


def against_bare(directory: Path, *, seconds: float) -> list[Figure]:
    """Ours and the bare view in turn, twice: machines drift."""
    ours, floor = [], []
    with LocalSystem(directory, processes=ALONE) as system:
        people = talks(system.api_url, CLIENTS, prefix="api")
        with bare_view(system) as bare_url:
            for _ in range(2):
                ours.append(closed_loop(system.api_url, people, seconds=seconds))
                floor.append(closed_loop(bare_url, people, seconds=seconds))
    best, bare = max(ours, key=lambda load: load.per_s), max(floor, key=lambda load: load.per_s)
    return [
        Figure(f"POST /v1/messages, {CLIENTS} clients", f"{best}", f"{best.per_s / bare.per_s:.2f} of the bare view"),
        Figure("a bare DRF view with the same token check", f"{bare}"),
    ]


def sweep(directory: Path, *, seconds: float) -> list[Figure]:
    figures = []
    for workers, threads in SWEEP:
        env = {"API_WORKERS": str(workers), "API_THREADS": str(threads)}
        with LocalSystem(directory / f"{workers}x{threads}", processes=ALONE, env=env) as system:
            load = closed_loop(system.api_url, talks(system.api_url, CLIENTS, prefix="sweep"), seconds=seconds)
            figures.append(Figure(f"{workers} workers x {threads} threads", f"{load}"))
            print(figures[-1], flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as name:
        if options.sweep:
            sweep(Path(name), seconds=options.seconds)
            return
        for figure in against_bare(Path(name), seconds=options.seconds):
            print(figure)


if __name__ == "__main__":
    main()
