"""Addresses that are no REST views: probes, the console's page, the reference, redirects for those who type."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.test import Client
from pytest_django import Settings

from core.health import OWN, serve_own_health
from tests.realtime.process import wait_for

pytestmark = pytest.mark.django_db(databases=["default", "messages"])

PROBES = ["/health", "/ready", "/metrics"]
PAGES = ["/console", "/", "/admin", "/docs/", "/docs/redoc/", "/schema/", "/console/"]
DESCRIBED = ["/docs", "/docs/redoc", "/schema"]
UNSAFE = ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"]


@pytest.fixture
def strict() -> Client:
    """Checks CSRF tokens, as browsers meet it."""
    return Client(enforce_csrf_checks=True)


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("path", [*PROBES, *PAGES, *DESCRIBED])
def test_refuses_to_change_what_is_only_read(strict: Client, path: str, method: str) -> None:
    answer = strict.generic(method, path)
    assert (answer.status_code, answer["Content-Type"]) == (405, "application/problem+json")
    assert answer.json()["code"] == "method_not_allowed"
    assert {"GET", "HEAD", "OPTIONS"} == {each.strip() for each in answer["Allow"].split(",")}


@pytest.mark.parametrize("path", [*PROBES, *PAGES, *DESCRIBED])
def test_says_what_methods_there_are(strict: Client, path: str) -> None:
    answer = strict.options(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert {"GET", "HEAD", "OPTIONS"} == {each.strip() for each in answer["Allow"].split(",")}


def test_names_the_methods_of_a_rest_view_to_whoever_invents_one(client: Client) -> None:
    answer = client.generic("TRACE", "/v1/messages")
    assert (answer.status_code, set(answer["Allow"].split(", "))) == (405, {"POST", "OPTIONS"})
    assert client.generic("TRACE", "/no/such/page").status_code == 404


def test_refuses_a_forged_form_outside_of_the_admin_as_a_problem(strict: Client, settings: Settings) -> None:
    form = strict.post("/admin/login/")
    assert (form.status_code, form["Content-Type"]) == (403, "text/html; charset=utf-8")
    settings.ROOT_URLCONF = "tests.core.urls"
    answer = strict.post("/form")
    assert (answer.status_code, answer["Content-Type"]) == (403, "application/problem+json")
    assert answer.json()["code"] == "csrf_failed"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/", "/console"),
        ("/admin", "/admin/"),
        ("/console/", "/console"),
        ("/docs/", "/docs"),
        ("/docs/redoc/", "/docs/redoc"),
        ("/schema/?format=json", "/schema?format=json"),
    ],
)
def test_leads_on_whoever_types_an_address(client: Client, path: str, place: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer["Location"]) == (302, place)
    assert client.get(place, follow=True).status_code == 200


# --- probes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROBES)
def test_answers_probes_by_address_and_without_tls(client: Client, settings: Settings, path: str) -> None:
    settings.ALLOWED_HOSTS, settings.SECURE_SSL_REDIRECT = ["chat.example.com"], True
    assert client.get(path, headers={"Host": "10.1.2.3:8082"}).status_code in {200, 503}
    assert client.get("/console", headers={"Host": "10.1.2.3:8082"}).status_code == 400


@pytest.mark.parametrize("path", ["/ready", "/metrics"])
def test_hides_its_insides_from_the_world(client: Client, settings: Settings, path: str) -> None:
    settings.PUBLIC_PROBES = False
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert client.get("/health").status_code == 200


def test_serves_the_same_on_a_port_that_its_processes_share(client: Client, settings: Settings) -> None:
    settings.PUBLIC_PROBES = False
    first = serve_own_health(0)
    second = serve_own_health(first.port)
    try:
        answer = httpx.get(f"http://127.0.0.1:{first.port}/ready", trust_env=False)
        assert answer.json()["parts"].keys() == OWN.failures().keys()
    finally:
        second.stop()
        first.stop()


def test_is_alive_while_slow_clients_hold_all_its_threads(tmp_path: Path) -> None:
    """As its supervisor sees it: two threads, and more connections than that which never send their body."""
    ports = [_free_port(), _free_port()]
    with _api(tmp_path, *ports) as process:
        wait_for(lambda: _answers(process, ports[1]), timeout_s=60, what="the API's health port")
        wait_for(lambda: _answers(process, ports[0]), timeout_s=60, what="the API")
        slow = [socket.create_connection(("127.0.0.1", ports[0])) for _ in range(4)]
        try:
            for each in slow:
                each.sendall(b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
                each.sendall(b"Content-Length: 1000\r\n\r\n{")
            wait_for(lambda: not _answers(process, ports[0], timeout_s=0.5), what="all threads being held")
            assert _answers(process, ports[1])
        finally:
            for each in slow:
                each.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class _api:  # noqa: N801 - used as a context
    """granian with the real application and two threads."""

    def __init__(self, state: Path, port: int, health_port: int) -> None:
        self._log = (state / "api.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "granian", "--interface", "wsgi", "chat4all_project.wsgi:application",
             "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--blocking-threads", "2"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "STATE_DIR": str(state), "API_HEALTH_PORT": str(health_port)},
            stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: Any) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # its workers outlive it otherwise
        self._process.wait(timeout=15)
        self._log.close()


def _answers(process: subprocess.Popen[bytes], port: int, *, timeout_s: float = 5) -> bool:
    assert process.poll() is None, "the server ended"
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=timeout_s, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
