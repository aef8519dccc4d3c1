"""Each server's life: it starts, answers, hangs, dies, comes back with its data."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
import psycopg
import pytest
import redis
from cassandra.cluster import Cluster
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from demo.processes import StartFailed
from tests.stack.cassandra import Cassandra
from tests.stack.kafka import Kafka
from tests.stack.minio import Minio
from tests.stack.postgres import Postgres, PostgresNotFound
from tests.stack.redis import Redis
from tests.stack.scratch import scratch_directory
from tests.stack.server import Server, is_running, listens
from tests.stack.servers import needed
from tests.stack.toxiproxy import Toxiproxy

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.xdist_group("stack")]


@dataclass(frozen=True)
class Memory:
    """How a client makes a server remember something, and asks for it."""

    kind: Callable[[Path], Server]
    needs: str
    write: Callable[[Server, str], None]
    read: Callable[[Server], str]


def write_to_kafka(server: Server, text: str) -> None:
    bootstrap = urlsplit(server.url).netloc
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic("memory", 1, 1)])["memory"].result(20)
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    producer.produce("memory", text.encode())
    assert producer.flush(20) == 0


def read_from_kafka(server: Server) -> str:
    bootstrap = urlsplit(server.url).netloc
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "enable.auto.commit": False})
    consumer.assign([TopicPartition("memory", 0, 0)])
    try:
        (record,) = consumer.consume(1, timeout=30)
        assert record.error() is None
        return (record.value() or b"").decode()
    finally:
        consumer.close()


def write_to_cassandra(server: Server, text: str) -> None:
    with Cluster(["127.0.0.1"], port=server.port, protocol_version=4) as cluster:
        session = cluster.connect()
        session.execute(
            "CREATE KEYSPACE memory WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}"
        )
        session.execute("CREATE TABLE memory.memory (id int PRIMARY KEY, text text)")
        session.execute("INSERT INTO memory.memory (id, text) VALUES (1, %s)", [text])


def read_from_cassandra(server: Server) -> str:
    with Cluster(["127.0.0.1"], port=server.port, protocol_version=4) as cluster:
        return str(cluster.connect().execute("SELECT text FROM memory.memory WHERE id = 1").one().text)


def bucket(server: Server) -> Any:
    address = urlsplit(server.url)
    return boto3.resource(
        "s3",
        endpoint_url=f"http://{address.hostname}:{address.port}",
        aws_access_key_id=address.username,
        aws_secret_access_key=address.password,
        region_name="us-east-1",
    ).Bucket("memory")


def write_to_minio(server: Server, text: str) -> None:
    bucket(server).create()
    bucket(server).put_object(Key="memory", Body=text.encode())


def read_from_minio(server: Server) -> str:
    with bucket(server).Object("memory").get()["Body"] as body:
        return str(body.read().decode())


def write_to_postgres(server: Server, text: str) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE memory (text text)")
        connection.execute("INSERT INTO memory VALUES (%s)", [text])


def read_from_postgres(server: Server) -> str:
    with psycopg.connect(server.url) as connection:
        (row,) = connection.execute("SELECT text FROM memory").fetchall()
        return str(row[0])


MEMORIES = [
    pytest.param(Memory(Kafka, "kafka", write_to_kafka, read_from_kafka), id="kafka"),
    pytest.param(Memory(Cassandra, "cassandra", write_to_cassandra, read_from_cassandra), id="cassandra"),
    pytest.param(Memory(Minio, "s3", write_to_minio, read_from_minio), id="minio"),
    pytest.param(Memory(Postgres, "postgres", write_to_postgres, read_from_postgres), id="postgres"),
]


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


@pytest.mark.parametrize("memory", MEMORIES)
def test_it_hangs_dies_and_comes_back_with_its_data(memory: Memory, directory: Path) -> None:
    needed(memory.needs)
    text = uuid.uuid4().hex
    with memory.kind(directory / "server") as server:
        url = server.url
        memory.write(server, text)

        server.pause()
        assert listens(server.port), "the kernel still takes connections, as for a machine that hangs"
        assert server.why_not_ready() != ""
        server.resume()
        server.wait_ready()  # Kafka's controller fences a broker that was silent for its session, until it registers

        family = server.family()
        server.kill()
        assert not listens(server.port)
        assert not any(map(is_running, family))

        server.start()
        assert memory.read(server) == text

        server.restart()
        assert memory.read(server) == text
        assert server.url == url
        assert server.log_tail()
        server.pause()
    assert not listens(server.port)


def test_a_redis_starts_and_forgets(directory: Path) -> None:
    needed("redis")
    with Redis(directory) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", "b")
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("a") is None


def test_a_connection_through_toxiproxy_is_cut_hangs_and_is_mended(directory: Path) -> None:
    needed("s3")  # like MinIO it is compiled by Go
    with Minio(directory / "minio") as minio, Toxiproxy(directory / "toxiproxy") as toxiproxy:
        proxy = toxiproxy.proxy("files", upstream_port=minio.port)
        health = f"http://127.0.0.1:{proxy.port}/minio/health/ready"

        def status(within_s: float = 30) -> int:
            return httpx.get(health, timeout=within_s).status_code

        assert status() == 200
        proxy.cut()
        with pytest.raises(httpx.ConnectError):
            status()
        proxy.mend()
        assert status() == 200
        proxy.hang()
        with pytest.raises(httpx.ReadTimeout):
            status(within_s=2)
        proxy.mend()
        proxy.slow(latency_ms=300)
        assert httpx.get(health, timeout=5).elapsed.total_seconds() > 0.3
        toxiproxy.restart()
        with pytest.raises(httpx.ConnectError):
            status()


def test_a_server_that_cannot_start_says_why(directory: Path) -> None:
    needed("s3")
    (directory / "data").touch()
    with pytest.raises(StartFailed, match=r"minio ended(.|\n)*not directories"), Minio(directory):
        pytest.fail("a file is no folder for data")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as somebody else")
def test_a_postgres_that_may_not_enter_its_directory_says_so(directory: Path) -> None:
    needed("postgres")
    closed = directory / "closed"
    closed.mkdir(0o700)
    with pytest.raises(PostgresNotFound, match=f"cannot enter {closed}"):
        Postgres(closed).start()
