"""PostgreSQL pools: what Django leaves open (`core.postgres`), on a real server and through a proxy that can freeze."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from django.db import OperationalError, connections
from pytest_django import DjangoDbBlocker

from chat4all_project.parts import database
from core.database import release_pooled, remedy, unpooled
from messaging import sampling
from tests.bounds import once_within, refused_s
from tests.stack.servers import needed

pytestmark = pytest.mark.cluster

POOL = 2


@contextmanager
def alias_of(url: str, monkeypatch: pytest.MonkeyPatch, *, patience_s: float = 60, **options: Any) -> Iterator[str]:
    """A database alias with the product's settings and a small pool, which is waited for so long."""
    monkeypatch.setenv("DATABASE_POOL_SIZE", str(POOL))
    monkeypatch.setenv("DATABASE_POOL_TIMEOUT_S", str(patience_s))
    alias = f"pool_{uuid4().hex[:8]}"
    config: dict[str, Any] = {**connections.settings["default"], **database(url)}
    config["OPTIONS"] = {**config["OPTIONS"], **options}
    connections.settings[alias] = config
    try:
        yield alias
    finally:
        wrapper: Any = connections[alias]
        wrapper.close()
        wrapper.close_pool()
        del connections[alias]
        del connections.settings[alias]


@pytest.fixture
def alias(monkeypatch: pytest.MonkeyPatch, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    with django_db_blocker.unblock(), alias_of(needed("postgres"), monkeypatch) as name:
        yield name


def ask(alias: str, sql: str = "SELECT 1") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def backend(alias: str) -> int:
    return int(ask(alias, "SELECT pg_backend_pid()"))


def test_answers(alias: str) -> None:
    assert ask(alias) == 1
    assert ask(alias, "SHOW statement_timeout") == "10s"


def test_a_thread_that_forgets_its_connection_keeps_no_place(alias: str) -> None:
    """Those of a batch's senders end with the batch: after a few batches there would be none left."""
    answers: list[Any] = []
    for _ in range(5 * POOL):
        thread = threading.Thread(target=lambda: answers.append(ask(alias)))
        thread.start()
        thread.join()
    assert answers == [1] * 5 * POOL


def test_no_more_connections_than_the_pool_has_and_no_longer_wait_than_its_own(
    monkeypatch: pytest.MonkeyPatch, django_db_blocker: DjangoDbBlocker
) -> None:
    full, enough = threading.Barrier(POOL + 1, timeout=60), threading.Event()
    with django_db_blocker.unblock(), alias_of(needed("postgres"), monkeypatch, patience_s=1) as alias:

        def hold() -> None:
            _until(lambda: ask(alias) == 1, "has a connection")
            full.wait()
            enough.wait()
            connections[alias].close()

        threads = [threading.Thread(target=hold) for _ in range(POOL)]
        for thread in threads:
            thread.start()
        full.wait()
        try:
            once_within(2.5, partial(refused_s, partial(ask, alias), OperationalError))
        finally:
            enough.set()
            for thread in threads:
                thread.join()
        _until(lambda: ask(alias) == 1, "works again")


def test_a_connection_is_given_back_before_a_long_wait(alias: str) -> None:
    mine = backend(alias)
    release_pooled()
    theirs: list[int] = []
    thread = threading.Thread(target=lambda: theirs.append(backend(alias)))
    thread.start()
    thread.join()
    assert theirs == [mine]


def test_a_timer_works_again_after_its_connection_was_cut(alias: str) -> None:
    """As a restart of the server does."""
    answers: list[Any] = []

    def look() -> None:
        answers.append(ask(alias))
        ask(alias, "SELECT pg_terminate_backend(pg_backend_pid())")

    sampling.attempt(look)
    sampling.attempt(look)
    assert answers == [1, 1]


def test_a_child_starts_with_a_pool_of_its_own(alias: str) -> None:
    """And leaves its parent's connection, which it has inherited, usable."""
    parents = backend(alias)
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(writing, str(backend(alias)).encode())
            connections.close_all()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    childs = os.read(reading, 100)
    os.close(reading)
    assert childs.isdigit()
    assert int(childs) != parents
    assert backend(alias) == parents


class Proxy:
    """Between us and the server; frozen, it takes what comes and passes nothing on."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def close(self) -> None:
        self.thaw()
        for each in [self._listener, *self._sockets]:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


def test_a_server_that_freezes_holds_nobody_longer_than_a_query_may_take(
    monkeypatch: pytest.MonkeyPatch, django_db_blocker: DjangoDbBlocker
) -> None:
    parts = urlsplit(needed("postgres"))
    proxy = Proxy(parts.hostname or "", parts.port or 5432)
    url = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()
    with django_db_blocker.unblock(), alias_of(url, monkeypatch, patience_s=1, answer_timeout_s=1.0) as alias:
        _until(lambda: ask(alias) == 1, "answers")
        proxy.freeze()
        began = time.monotonic()
        with pytest.raises(OperationalError):
            ask(alias)
        connections[alias].close()
        with pytest.raises(OperationalError):  # the pool has none that answers
            ask(alias)
        assert time.monotonic() - began < 30
        proxy.thaw()
        _until(lambda: ask(alias) == 1, "works again once it is back")
        proxy.close()


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if condition():
                return
        except OperationalError:
            pass
        assert time.monotonic() < deadline, what


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        pytest.param({"path": "/no_such_database"}, "has no such database or role", id="no database"),
        pytest.param({"user": "nobody_of_that_name"}, "database or role|refuses our user", id="wrong credentials"),
        pytest.param({"port": 1}, "see that its server runs", id="refused"),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(
    change: dict[str, Any], cure: str, monkeypatch: pytest.MonkeyPatch, django_db_blocker: DjangoDbBlocker
) -> None:
    url = needed("postgres")
    parts = urlsplit(url)
    user, port = change.get("user", parts.username), change.get("port", parts.port)
    netloc = f"{user}:{parts.password or 'x'}@{parts.hostname}:{port}"
    changed = parts._replace(netloc=netloc, path=change.get("path", parts.path)).geturl()
    with django_db_blocker.unblock(), alias_of(changed, monkeypatch) as alias:
        with pytest.raises(OperationalError) as failure:
            unpooled(alias).ensure_connection()
        told = remedy("The database", failure.value, "DATABASE_URL")
    assert re.search(cure, told), told
    assert "DATABASE_URL" in told
    assert (parts.password or "no password") not in told
