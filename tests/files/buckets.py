"""Buckets for tests, on the server that TEST_S3_URL names; each test has its own, and it goes with the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import boto3

from chat4all_project.parts import file_storage
from tests.stack.servers import needed


def new_name() -> str:
    return f"test-{uuid4().hex[:12]}"


def url_of(bucket: str, **options: str) -> str:
    """FILES_URL for a bucket; `endpoint` and keys may be given."""
    parts = urlsplit(needed("s3"))
    endpoint = options.pop("endpoint", f"{parts.scheme}://{parts.hostname}:{parts.port}")
    key, secret = options.pop("key", parts.username or ""), options.pop("secret", parts.password or "")
    query = "".join(f"&{name}={quote(value, safe='')}" for name, value in options.items())
    return f"s3://{quote(key, safe='')}:{quote(secret, safe='')}@{bucket}?endpoint={quote(endpoint, safe='')}{query}"


def client() -> Any:
    parts = urlsplit(needed("s3"))
    return boto3.client(
        "s3",
        endpoint_url=f"{parts.scheme}://{parts.hostname}:{parts.port}",
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
        region_name="us-east-1",
    )


@contextmanager
def removed_after(bucket: str) -> Iterator[str]:
    """Nothing is created here: what the test made of that name is removed."""
    try:
        yield bucket
    finally:
        s3 = client()
        try:
            for each in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
                s3.delete_object(Bucket=bucket, Key=each["Key"])
            s3.delete_bucket(Bucket=bucket)
        except s3.exceptions.NoSuchBucket:
            pass
        finally:
            s3.close()


def settings_of(url: str) -> dict[str, Any]:
    """STORAGES["default"] as the product's settings make it."""
    return dict(file_storage(url))


class Way:
    """A port that refuses until `open`, and leads to the server then."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self._sockets.append(listener)
        self._start(self._accept, listener)

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
        for thread in self._threads:
            thread.join(10)
        for each in self._sockets:
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        parts = urlsplit(needed("s3"))
        with suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection((parts.hostname, parts.port))
                self._sockets += [near, far]
                self._start(_pump, near, far)
                self._start(_pump, far, near)

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
