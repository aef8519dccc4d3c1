"""Forking beside threads: a child never inherits a lock that background work holds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.forks import Gate

FORKS = 30

# A worker's parent: probes ask for /ready and /metrics all the time, a check and a timer use what has a lock, and
# children come and go. Each child says whether it could use that, too.
PARENT = """
import os, sys, threading, time, urllib.request

import django
django.setup()
from core import health
from messaging import sampling

lock = threading.Lock()

def use():
    with lock:
        time.sleep(0.005)

readiness = health.Readiness(keep_s=0)
readiness.register("part", use)
server = health.HealthServer(0, readiness, service="worker", host="127.0.0.1")
sampling.every(0.0001, use)

def ask():
    while True:
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/ready").read()

for _ in range(2):
    threading.Thread(target=ask, daemon=True).start()
while not lock.locked():
    time.sleep(0.0001)
stuck = 0
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if not child:
        os._exit(lock.locked())  # by a thread that it has not: for ever
    stuck += os.waitpid(child, 0)[1] != 0
    time.sleep(0.001)
print("stuck", stuck)
"""


def test_no_child_of_a_worker_inherits_a_lock_of_its_health_and_timers() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PARENT, str(FORKS)],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "chat4all_project.settings"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout == "stuck 0\n", run.stdout + run.stderr


class Worker:
    """A thread that goes through the gate and stays inside until told."""

    def __init__(self, gate: Gate, *, joins: bool = False) -> None:
        self.inside, self._over = threading.Event(), threading.Event()
        self._gate, self._joins = gate, joins
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        with self._gate.work(joins=self._joins):
            self.inside.set()
            self._over.wait(60)

    def end(self) -> None:
        self._over.set()
        self._thread.join(60)


@contextmanager
def forking(gate: Gate) -> Iterator[threading.Event]:
    """A fork on a thread of its own; the event says that it got through the gate."""
    passed, over = threading.Event(), threading.Event()

    def fork() -> None:
        gate.close()
        passed.set()
        over.wait(60)
        gate.open()

    thread = threading.Thread(target=fork, daemon=True)
    thread.start()
    yield passed
    over.set()
    thread.join(60)


def test_a_fork_waits_for_what_is_under_way_and_new_work_waits_for_the_fork() -> None:
    gate = Gate(patience_s=60)
    first = Worker(gate)
    assert first.inside.wait(60)
    with forking(gate) as passed:
        until(lambda: gate._is_closing)
        late = Worker(gate)
        assert not passed.wait(0.05)
        first.end()
        assert passed.wait(60)
        assert not late.inside.wait(0.05)
    assert late.inside.wait(60)
    late.end()


def test_what_somebody_inside_waits_for_is_let_in() -> None:
    gate = Gate(patience_s=60)
    first = Worker(gate)
    assert first.inside.wait(60)
    with forking(gate) as passed:
        until(lambda: gate._is_closing)
        helper = Worker(gate, joins=True)
        assert helper.inside.wait(60)
        first.end()
        assert not passed.wait(0.05)
        helper.end()
        assert passed.wait(60)


def test_a_fork_waits_for_what_hangs_no_longer_than_it_may() -> None:
    gate = Gate(patience_s=0.05)
    hanging = Worker(gate)
    assert hanging.inside.wait(60)
    with forking(gate) as passed:
        assert passed.wait(60)
    hanging.end()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
