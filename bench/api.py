"""POST /v1/messages: the reference's own load, saturated beside bare views, and batches.

    python -m bench.api [--profile cluster] [--sweep]

``--sweep`` tries numbers of granian's workers and threads. Only the API and what it stands on run: no bridge, no
workers.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.client import Answer, HttpConnection, Loop
from bench.figures import Curve, Figure, Line, Measured, Spread
from bench.k6_run import reference_load
from bench.people import Talk, crowd, parcels, talks
from bench.profiles import Profile, add_profile, event_log, profile_of, running
from demo.ports import HOST
from demo.redis_server import free_port
from demo.supervisor import ROOT, LocalSystem
from messaging.topics import Topic

CLIENTS: Final = 20
CURVE: Final = (1, 2, 5, 10, 20, 50)
ROUNDS: Final = 3
BATCH: Final = 500
BATCH_CLIENTS: Final = 4
WARM_UP_S: Final = 0.5
SWEEP: Final = ((1, 1), (1, 4), (2, 1), (2, 4), (2, 32), (3, 4))
ALONE: Final = ("redis-log", "redis-bus", "api")
BARE_TOPIC: Final = "bench"  # as bench.bare has it, which only a process with settings may import


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


def closed_loop(url: str, requests: Sequence[bytes], *, seconds: float, warm_up_s: float = WARM_UP_S) -> Load:
    loop = Loop()
    clients = [_Client(HttpConnection(loop, url), request, []) for request in requests]
    for client in clients:
        client.go()
    _spin(loop, warm_up_s)
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
def bare_views(system: LocalSystem) -> Iterator[str]:
    """The URL of bare views under granian with the same workers and threads, keys, accounts and log."""
    log = event_log(system)
    log.ensure_topics([Topic(BARE_TOPIC)])
    log.close()
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
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_listens(url: str, timeout_s: float = 120) -> None:
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


@dataclass(frozen=True, slots=True)
class Views:
    """Ours and the bare ones, with the same clients."""

    ours_url: str
    bare_url: str
    people: Sequence[Talk]

    def ours(self, clients: int, seconds: float) -> Load:
        return closed_loop(self.ours_url, self._requests(clients), seconds=seconds)

    def producing(self, clients: int, seconds: float) -> Load:
        requests = [each.replace(b"/v1/messages", b"/v1/produce", 1) for each in self._requests(clients)]
        return closed_loop(self.bare_url, requests, seconds=seconds)

    def bare(self, clients: int, seconds: float) -> Load:
        return closed_loop(self.bare_url, self._requests(clients), seconds=seconds)

    def _requests(self, clients: int) -> list[bytes]:
        return [talk.request for talk in self.people[:clients]]


def reference(views: Views, directory: Path, *, profile: Profile, seconds: float) -> Iterator[Figure]:
    """k6, open loop, on ours and on the bare view with the same produce; its own CPU is part of the picture."""
    people = views.people[:CLIENTS]
    target = (
        "target: p95 2.39, p99 4.85 ms" if profile == "cluster" else "the reference on Kafka: p95 2.39, p99 4.85 ms"
    )
    for what, url, beside in (
        (f"k6, {len(people)} clients, {seconds:.0f} s, acks=all", f"{views.ours_url}/v1/messages", target),
        ("the same on the bare view with the same produce", f"{views.bare_url}/v1/produce", "what this machine can do"),
    ):
        reference_load(url, people, directory, seconds=3)  # warm up
        found = reference_load(url, people, directory, seconds=seconds)
        value = f"{found.per_s:.1f}/s, p50 {found.p50:.2f} · p95 {found.p95:.2f} · p99 {found.p99:.2f} ms"
        yield Figure(what, value, f"{beside}; {found.refused} refused, {found.dropped} late")


def saturated(views: Views, *, profile: Profile, seconds: float) -> Iterator[Measured]:
    """Ours and the bare views in turn, several times: machines drift. The best of each is shown, the ratio is the
    median of the rounds'."""
    turns: tuple[Callable[[int, float], Load], ...] = (views.ours, views.producing, views.bare)
    rounds = [[turn(CLIENTS, seconds) for turn in turns] for _ in range(ROUNDS)]
    ours, producing, bare = (max(loads, key=lambda load: load.per_s) for loads in zip(*rounds, strict=True))
    ratio = statistics.median(mine.per_s / theirs.per_s for mine, theirs, _ in rounds)
    beside = f"{ratio:.2f} of the bare view with the same produce (target 0.8)"
    yield Figure(f"POST /v1/messages, {CLIENTS} clients", f"{ours}", beside, name=f"api-{profile}", ratio=ratio)
    yield Figure("a bare DRF view with the same token check and produce", f"{producing}")
    yield Figure("the same view without a produce", f"{bare}", f"ours is {ours.per_s / bare.per_s:.2f} of it")


def curve(views: Views, *, profile: Profile, seconds: float) -> Iterator[Measured]:
    """Latency over throughput, from one client to many, and how ours compares for one and for twenty."""
    turns = {"ours": views.ours, "bare view with the same produce": views.producing}
    loads = {clients: [turn(clients, seconds) for turn in turns.values()] for clients in CURVE}
    for clients in (CURVE[0], CLIENTS):
        ours, producing = loads[clients]
        what = f"points of the curve, {seconds:.1f} s each, clients: {clients}"
        beside = f"{ours.per_s / producing.per_s:.2f} of the bare view with the same produce, {producing}"
        yield Figure(what, f"{ours}", beside)
    lines = tuple(
        Line(label, tuple((found[number].per_s, found[number].latency.p95) for found in loads.values()))
        for number, label in enumerate(turns)
    )
    title = f"POST /v1/messages with {CURVE[0]} to {CURVE[-1]} clients, {profile} profile"
    yield Curve(f"api-{profile}.svg", title, "requests/s", "p95, ms", lines)


def batches(system: LocalSystem, *, profile: Profile, seconds: float) -> Figure:
    """Accepted, not stored: the bridge does not run."""
    people, _ = crowd(system.api_url, BATCH_CLIENTS, CLIENTS, prefix="batch")
    load = closed_loop(system.api_url, [each.request for each in parcels(people, BATCH)], seconds=seconds)
    found = replace(load, per_s=load.per_s * BATCH)
    target = "target 8,000/s" if profile == "cluster" else ""
    what = f"POST /v1/messages/batch, {BATCH} at once, {BATCH_CLIENTS} clients"
    return Figure(what, f"{found.per_s:,.0f} messages/s, a request {found.latency}", target)


def everything(profile: Profile, directory: Path, *, scale: float, reference_s: float = 30) -> Iterator[Measured]:
    with running(profile, directory, processes=ALONE) as system:
        people = talks(system.api_url, max(CURVE), prefix="api")
        yield Figure("what runs", "the API and its servers", "no bridge, no workers: what is posted is accepted only")
        with bare_views(system) as bare_url:
            views = Views(system.api_url, bare_url, people)
            yield from reference(views, directory / "k6", profile=profile, seconds=reference_s)
            yield from saturated(views, profile=profile, seconds=6 * scale)
            yield from curve(views, profile=profile, seconds=4 * scale)
        yield batches(system, profile=profile, seconds=8 * scale)


def sweep(profile: Profile, directory: Path, *, seconds: float) -> None:
    for workers, threads in SWEEP:
        env = {"API_WORKERS": str(workers), "API_THREADS": str(threads)}
        with running(profile, directory / f"{workers}x{threads}", processes=ALONE, env=env) as system:
            requests = [talk.request for talk in talks(system.api_url, CLIENTS, prefix="sweep")]
            load = closed_loop(system.api_url, requests, seconds=seconds)
            print(Figure(f"{workers} workers x {threads} threads", f"{load}"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_profile(parser)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="of the time that each measurement takes")
    parser.add_argument("--reference-s", type=float, default=30.0, help="of k6's load (the reference: 300)")
    options = parser.parse_args()
    profile = profile_of(options)
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as name:
        if options.sweep:
            sweep(profile, Path(name), seconds=8 * options.scale)
            return
        for measured in everything(profile, Path(name), scale=options.scale, reference_s=options.reference_s):
            print(measured, flush=True)


if __name__ == "__main__":
    main()
