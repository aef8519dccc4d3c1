"""Which servers PROFILE=cluster runs on, and what a person is told when there are none."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from demo import cluster
from demo.cluster import PARTS, Servers, ServersMissing, fresh_name
from tests.stack.servers import needed

SERVERS = Servers(
    "kafka://k:9092", "cassandra://c:9042/", "postgres://me:p%40ss@p:5432/postgres", "http://key:s%2Fs@m:9000"
)
STACK = {
    "TEST_KAFKA_URL": SERVERS.kafka,
    "TEST_CASSANDRA_URL": SERVERS.cassandra,
    "TEST_POSTGRES_URL": SERVERS.postgres,
    "TEST_S3_URL": SERVERS.s3,
}


def test_a_system_has_names_of_its_own_on_every_server() -> None:
    assert SERVERS.parts("hub_1") == {
        "EVENT_LOG_URL": "kafka://k:9092/hub_1",
        "MESSAGE_STORE_URL": "cassandra://c:9042/hub_1",
        "DATABASE_URL": "postgres://me:p%40ss@p:5432/hub_1",
        "FILES_URL": "s3://key:s%2Fs@hub-1?endpoint=http%3A%2F%2Fm%3A9000",
    }
    assert "p%40ss" not in repr(SERVERS)


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServersMissing, match=r"no Cassandra, S3: set TEST_CASSANDRA_URL, TEST_S3_URL .*make stack"):
        cluster.parts({**STACK, "TEST_CASSANDRA_URL": "", "TEST_S3_URL": ""}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_servers_of_ones_own_are_taken_as_they_are_told(tmp_path: Path) -> None:
    own = {name: f"own:{name}" for name in PARTS}
    assert cluster.parts({**STACK, **own, "AWS_ACCESS_KEY_ID": "key", "HOME": "/"}, tmp_path) == {
        **own,
        "AWS_ACCESS_KEY_ID": "key",
    }


@pytest.mark.cluster
def test_a_folder_keeps_its_names_and_another_has_others(tmp_path: Path) -> None:
    environment = {**STACK, "TEST_POSTGRES_URL": needed("postgres")}
    first, again, other = (cluster.parts(environment, tmp_path / folder) for folder in ("a", "a", "b"))
    assert first == again
    assert {name for name in PARTS if first[name] == other[name]} == set()
    for each in (first, other):
        with psycopg.connect(each["DATABASE_URL"]):
            pass  # it is there
        _drop(urlsplit(each["DATABASE_URL"]).path.strip("/"))


@pytest.mark.cluster
def test_a_database_that_refuses_us_is_told_without_the_password() -> None:
    place = urlsplit(needed("postgres"))
    stranger = place._replace(netloc=f"nobody:hunter2@{place.hostname}:{place.port}").geturl()
    with pytest.raises(ServersMissing, match="PostgreSQL at ") as told:
        Servers("", "", stranger, "").create_database(fresh_name())
    assert "hunter2" not in str(told.value)


def _drop(name: str) -> None:
    with psycopg.connect(needed("postgres"), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP DATABASE {}").format(psycopg.sql.Identifier(name)))
