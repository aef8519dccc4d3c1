"""Servers die under load: what was accepted arrives, in order; nobody hangs; what does not need them goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from demo.cluster import Servers, fresh_name
from demo.supervisor import LocalSystem
from tests.faults.conftest import Harbour
from tests.faults.test_kills import EACH, PEOPLE, Load
from tests.stack.cassandra import Cassandra
from tests.stack.kafka import Kafka
from tests.stack.minio import Minio
from tests.stack.postgres import Postgres
from tests.stack.scratch import scratch_directory
from tests.stack.server import Server
from tests.stack.servers import needed
from tests.town import Resident, Town, eventually, phone

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(400)]

LONGEST_ANSWER_S = 9.0  # append 5 s, and a look-up in the store before it


@dataclass(frozen=True)
class Port:
    """A harbour on servers of its own, which may be killed."""

    harbour: Harbour
    bob: Resident
    kafka: Kafka
    cassandra: Cassandra
    postgres: Postgres
    minio: Minio


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    for name in ("kafka", "cassandra", "postgres", "s3"):
        needed(name)  # whoever has none of them runs none of this
    with scratch_directory() as folder:
        kafka, cassandra = Kafka(folder / "kafka"), Cassandra(folder / "cassandra")
        postgres, minio = Postgres(folder / "postgres"), Minio(folder / "minio")
        with ThreadPoolExecutor(4) as starting:
            all_servers: list[Server] = [kafka, cassandra, postgres, minio]
            try:
                list(starting.map(lambda server: server.start(), all_servers))
                servers, name = Servers(kafka.url, cassandra.url, postgres.url, minio.url), fresh_name()
                servers.create_database(name)
                env = servers.parts(name)
                with LocalSystem(tmp_path_factory.mktemp("port"), env=env) as system, Town(system) as town:
                    alice = town.resident("alice")
                    harbour = Harbour(town, alice, town.account("whatsapp", alice))
                    yield Port(harbour, town.resident("bob"), kafka, cassandra, postgres, minio)
            finally:
                for server in all_servers:
                    server.close()


@dataclass
class Impatient:
    """A client that asks again and again, and notes each answer and how long it took."""

    harbour: Harbour
    conversation: str
    to: str
    answers: list[tuple[int, float]] = field(default_factory=list)

    @contextmanager
    def asking(self) -> Iterator[None]:
        enough = threading.Event()
        thread = threading.Thread(target=self._ask, args=(enough,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join(20)

    def _ask(self, enough: threading.Event) -> None:
        api = self.harbour.alice.api
        body = {"conversation_id": self.conversation, "recipient_id": self.to, "content": "now?"}
        with httpx.Client(base_url=api.base_url, headers=api.headers, timeout=30) as http:
            while not enough.wait(0.1):
                started_s = time.monotonic()
                status = http.post("/v1/messages", json=body).status_code
                self.answers.append((status, time.monotonic() - started_s))

    def answered(self, status: int) -> bool:
        return any(answer == status for answer, _ in self.answers)

    def assert_never_hung(self) -> None:
        assert {status for status, _ in self.answers} <= {202, 503}
        assert max(seconds for _, seconds in self.answers) < LONGEST_ANSWER_S


def restarts_under_load(port: Port, server: Server) -> None:
    """Kill it in the middle of a load, start it again, and see that all arrived."""
    harbour = port.harbour
    load, impatient = Load.of(harbour), Impatient(harbour, f"now-{phone()}", port.bob.user_id)
    with (
        harbour.town.switches(latency_ms=15, latency_jitter_ms=15),
        harbour.alice.socket() as socket,
        ThreadPoolExecutor(4) as clients,
        impatient.asking(),
    ):
        writing = [clients.submit(load.write, to, range(EACH)) for to in load.people]
        eventually(lambda: load.arrived() > PEOPLE, within_s=40)
        server.kill()
        try:
            eventually(lambda: impatient.answered(503), within_s=20)
        finally:
            server.start()
        for each in writing:
            each.result(timeout=240)
        load.assert_kept(socket)
        eventually(lambda: impatient.answers[-1][0] == 202)
    impatient.assert_never_hung()


def test_kafka_restarts_under_load(port: Port) -> None:
    restarts_under_load(port, port.kafka)


def test_cassandra_restarts_under_load(port: Port) -> None:
    restarts_under_load(port, port.cassandra)
