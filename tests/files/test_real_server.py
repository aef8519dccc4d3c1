"""Large files through the server that production runs, and what its memory does meanwhile."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
CHUNK = bytes(range(256)) * 4096  # 1 MiB


class Server(NamedTuple):
    url: str
    pid: int
    state: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """granian with the real application, as the local profile starts it, with one worker to measure."""
    state = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = {**os.environ, "STATE_DIR": str(state), "API_URL": url, "MAX_FILE_BYTES": str(64 * MIB)}
    migrations = (f"migrate -v0 --database {database}" for database in ("default", "messages"))
    subprocess.run([sys.executable, "-m", "demo.commands", *migrations], cwd=ROOT, env=env, check=True)
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "chat4all_project.wsgi:application"]
    with (state / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--blocking-threads", "2"],
            cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _wait_until_up(url, process)
            yield Server(url, process.pid, state)
        finally:
            process.terminate()
            process.wait(timeout=15)


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            httpx.get(f"{url}/health", timeout=5)
        except httpx.TransportError:
            time.sleep(0.1)  # a poll for a process that starts
        else:
            return
    raise AssertionError("the server did not start")


@pytest.fixture(scope="module")
def alice(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        name = {"username": "alice", "password": "correct horse battery"}
        assert client.post("/auth/register", json=name).status_code == 201
        token = client.post("/auth/token", json=name).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


class Generated:
    """A file of so many MiB that exists nowhere."""

    def __init__(self, mib: int) -> None:
        self.left = mib * MIB
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = CHUNK[: min(self.left, size if size > 0 else MIB, MIB)]
        self.left -= len(chunk)
        self.digest.update(chunk)
        return chunk


def _multipart(mib: int) -> tuple[Iterator[bytes], dict[str, str], Generated]:
    """httpx would read a file of unknown length whole, to know its length."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
    tail = b"\r\n--b--\r\n"
    source = Generated(mib)

    def body() -> Iterator[bytes]:
        yield head
        yield from iter(source.read, b"")
        yield tail

    length = str(len(head) + mib * MIB + len(tail))
    return body(), {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": length}, source


def _peak_rss(server: Server) -> int:
    """The most memory that any process of the server ever had, in bytes."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert children, "the worker is where the memory is"
    peaks = []
    for pid in [server.pid, *children]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peaks.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
    return max(peaks)


def _upload(client: httpx.Client, mib: int) -> tuple[dict[str, str], str]:
    body, headers, source = _multipart(mib)
    answer = client.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json(), source.digest.hexdigest()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure peak memory")
def test_50_mib_go_up_and_down_without_being_held_in_memory(server: Server, alice: httpx.Client) -> None:
    _upload(alice, 1)  # everything is imported and warm
    before = _peak_rss(server)
    stored, checksum = _upload(alice, 50)
    assert stored["checksum"] == checksum
    link = alice.get(f"/v1/files/{stored['file_id']}/download").json()["download_url"]
    received = hashlib.sha256()
    with httpx.stream("GET", link, timeout=60) as answer:
        assert answer.headers["Content-Length"] == str(50 * MIB)
        for chunk in answer.iter_bytes():
            received.update(chunk)
    assert received.hexdigest() == checksum
    assert _peak_rss(server) - before < 16 * MIB
    part = httpx.get(link, headers={"Range": f"bytes={MIB - 2}-{MIB + 1}"})
    assert (part.status_code, part.content) == (206, b"\xfe\xff\x00\x01")


def test_too_large_a_file_is_refused_though_the_client_keeps_sending(alice: httpx.Client) -> None:
    body, headers, _ = _multipart(80)
    try:
        answer = alice.post("/v1/files", content=body, headers=headers)
    except httpx.WriteError:
        return  # the connection was closed on us while we were still sending, after the answer
    assert (answer.status_code, answer.json()["code"]) == (413, "file_too_large")


def test_a_client_that_vanishes_halfway_leaves_nothing(server: Server, alice: httpx.Client) -> None:
    parts = urlsplit(server.url)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: {alice.headers['Authorization']}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 5000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    )
    incoming = server.state / "incoming"
    stored_before = sorted((server.state / "files").rglob("*"))
    with socket.create_connection((parts.hostname, parts.port)) as client:
        client.sendall(head.encode() + CHUNK)
        _wait_for(lambda: any(incoming.iterdir()), "the upload begins")
    _wait_for(lambda: not any(incoming.iterdir()), "the leftovers are removed")
    assert sorted((server.state / "files").rglob("*")) == stored_before
    assert "Traceback" not in (server.state / "server.log").read_text()


def _wait_for(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within 15 s"
        time.sleep(0.02)
