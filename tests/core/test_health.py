"""/health, /ready and /metrics, in the API and in processes without HTTP."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from django.test import Client

from core.clock import ManualClock
from core.errors import Unavailable
from core.health import Check, HealthServer, Part, Readiness, State, serve_health
from tests.town import eventually

Serve = Callable[[Mapping[str, Check]], str]


def fine() -> None:
    """A check that passes."""


def away() -> None:
    raise Unavailable("The log does not answer: start redis-server on port 1.")


class Misconfigured(Unavailable):
    may_pass = False


def misconfigured() -> None:
    raise Misconfigured("There is no bucket: run manage.py setup_storage.")


def broken() -> None:
    raise ConnectionError("redis://:hunter2@127.0.0.1")


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[HealthServer] = []

    def start(checks: Mapping[str, Check]) -> str:
        servers.append(serve_health(0, checks, optional={"files"}, service="bridge"))
        return f"http://127.0.0.1:{servers[-1].port}"

    yield start
    for server in servers:
        server.stop()


@pytest.mark.parametrize("path", ["/health", "/health?verbose=1"])
def test_says_that_it_lives_even_when_nothing_works(serve: Serve, path: str) -> None:
    answer = httpx.get(serve({"log": away}) + path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "service": "bridge"})


def test_is_ready_when_every_part_is(serve: Serve) -> None:
    answer = httpx.get(serve({"log": fine, "store": fine}) + "/ready")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "service": "bridge",
        "parts": {"log": {"status": "ok"}, "store": {"status": "ok"}},
    }


def test_names_the_part_and_the_remedy_and_no_secret(serve: Serve) -> None:
    answer = httpx.get(serve({"log": away, "store": fine, "bus": broken}) + "/ready")
    assert answer.status_code == 503
    assert answer.json()["parts"] == {
        "log": {"status": "failed", "detail": "The log does not answer: start redis-server on port 1."},
        "store": {"status": "ok"},
        "bus": {"status": "failed", "detail": "ConnectionError"},
    }


def state_metrics(base: str) -> dict[str, str]:
    """By part."""
    return dict(re.findall(r'^chat4all_part_state\{part="(\w+)"\} (\S+)$', httpx.get(base + "/metrics").text, re.M))


def test_goes_on_without_a_part_that_is_optional_and_says_which(serve: Serve) -> None:
    base = serve({"log": fine, "files": away})
    answer = httpx.get(base + "/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["parts"] == {
        "log": {"status": "ok"},
        "files": {"status": "degraded", "detail": "The log does not answer: start redis-server on port 1."},
    }


@pytest.mark.parametrize(
    ("checks", "files"),
    [
        pytest.param({"files": misconfigured}, "failed", id="misconfigured: it does not mend itself"),
        pytest.param({"files": broken}, "failed", id="a bug"),
        pytest.param({"log": away, "files": away}, "degraded", id="another part is needed"),
    ],
)
def test_an_optional_part_excuses_nothing_else(serve: Serve, checks: Mapping[str, Check], files: str) -> None:
    answer = httpx.get(serve(checks) + "/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "failed")
    assert answer.json()["parts"]["files"]["status"] == files


def test_metrics_tell_the_state_of_each_part_though_nobody_asked_whether_it_is_ready(serve: Serve) -> None:
    assert state_metrics(serve({"log": fine, "files": away, "bus": broken})) == {
        "log": "0.0",
        "files": "1.0",
        "bus": "2.0",
    }


def test_has_nothing_else(serve: Serve) -> None:
    base = serve({})
    assert httpx.get(base + "/admin").status_code == 404
    assert httpx.post(base + "/ready").status_code == 501
    head = httpx.head(base + "/ready")
    assert (head.status_code, head.content) == (200, b"")


def test_survives_clients_that_hang_or_talk_nonsense(serve: Serve) -> None:
    base = serve({})
    port = int(base.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as silent, socket.create_connection(("127.0.0.1", port)) as odd:
        odd.sendall(b"\x00\xff\r\n\r\n")
        silent.sendall(b"GET /hea")
        assert httpx.get(base + "/health").status_code == 200


def test_says_plainly_that_a_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            serve_health(taken.getsockname()[1], {}, service="bridge")


def test_does_not_keep_a_process_from_ending() -> None:
    program = """
import os, threading
os.environ["DJANGO_SETTINGS_MODULE"] = "chat4all_project.settings"
import django; django.setup()
from core.health import serve_health
import urllib.request
server = serve_health(0, {"hangs": threading.Event().wait}, service="x")
threading.Thread(target=lambda: urllib.request.urlopen(f"http://127.0.0.1:{server.port}/ready"), daemon=True).start()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "done\n"


def test_shows_its_metrics(serve: Serve) -> None:
    answer = httpx.get(serve({}) + "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "python_info" in answer.text


COUNTING = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "chat4all_project.settings"
import django; django.setup()
from prometheus_client import Counter
from core.health import metrics_page
counter = Counter("sold", "Things sold.")
counter.inc()
if os.fork() == 0:
    counter.inc(5)
    os._exit(0)
os.wait()
sys.stdout.write(metrics_page().body.decode())
"""


@pytest.mark.parametrize(("together", "sold"), [(True, "6.0"), (False, "1.0")])
def test_adds_up_the_metrics_of_all_processes_of_a_service(tmp_path: Path, together: bool, sold: str) -> None:
    environment = {**os.environ, **({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if together else {})}
    done = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, env=environment, check=True)
    assert f"sold_total {sold}" in done.stdout


# --- readiness ---------------------------------------------------------------------------------------------------


def test_runs_checks_at_the_same_time() -> None:
    """Each waits for the other: one after the other would never end."""
    together = threading.Barrier(2)
    readiness = Readiness(timeout_s=10)

    def meet() -> None:
        together.wait(10)

    readiness.register("one", meet)
    readiness.register("two", meet)
    assert readiness.failures() == {"one": "", "two": ""}


def test_gives_up_on_a_check_that_hangs_and_starts_it_no_second_time() -> None:
    clock = ManualClock()
    started, go_on = threading.Semaphore(0), threading.Event()
    starts: list[int] = []

    def hangs() -> None:
        starts.append(1)
        started.release()
        go_on.wait()

    readiness = Readiness(timeout_s=0.5, keep_s=0, clock=clock)
    readiness.register("hangs", hangs)
    readiness.register("hangs too", hangs, optional=True)
    readiness.register("fine", fine)
    assert readiness.parts()["hangs too"] == Part(State.DEGRADED, "no answer within 0.5 s")
    assert readiness.failures() == {
        "hangs": "no answer within 0.5 s",
        "hangs too": "no answer within 0.5 s",
        "fine": "",
    }
    assert readiness.failures()["hangs"]
    assert started.acquire(timeout=5)
    assert started.acquire(timeout=5)
    assert len(starts) == 2
    go_on.set()


def test_keeps_an_answer_for_a_second() -> None:
    clock = ManualClock()
    runs: list[int] = []
    readiness = Readiness(clock=clock)
    readiness.register("counted", lambda: runs.append(1))
    readiness.failures()
    clock.advance(0.9)
    readiness.failures()
    assert len(runs) == 1
    clock.advance(0.1)
    readiness.failures()
    assert len(runs) == 2


def test_says_once_that_a_part_went_away_and_once_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="core.health")
    readiness = Readiness(keep_s=0)
    outcomes = iter([away, away, fine, fine, misconfigured])
    readiness.register("log", lambda: next(outcomes)(), optional=True)  # noqa: PLW0108 - another outcome each time
    for _ in range(5):
        readiness.failures()
    assert [record.message for record in caplog.records] == ["degraded", "ready again", "not ready"]


# --- the API -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(databases=["default", "messages"])
def test_answers_for_the_api_too(client: Client) -> None:
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert "no-store" in health["Cache-Control"]
    assert client.get("/ready").json()["parts"]["accounts"] == {"status": "ok"}
    assert b"# TYPE django_http_requests_latency_seconds_by_view_method histogram" in client.get("/metrics").content
    assert client.post("/health").status_code == 405


def test_who_hangs_up_before_the_answer_leaves_no_traceback(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    asked, gone = threading.Event(), threading.Event()

    def slow() -> None:
        asked.set()
        assert gone.wait(20)

    port = int(serve({"log": slow}).rpartition(":")[2])
    before = threading.active_count()
    prober = socket.create_connection(("127.0.0.1", port))
    prober.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # to close is to reset
    prober.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert asked.wait(20)
    prober.close()
    gone.set()
    eventually(lambda: threading.active_count() <= before)
    assert "Traceback" not in capfd.readouterr().err
