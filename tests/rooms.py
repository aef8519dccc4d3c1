"""A system's own names on servers that others use at the same time: made, and cleared away in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import boto3
import psycopg
from botocore.client import Config
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import RoundRobinPolicy
from confluent_kafka.admin import AdminClient

from demo.cluster import Servers, fresh_name
from tests.stack.servers import needed

DROP_TIMEOUT_S = 30


def shared_servers() -> Servers:
    """Those of the test stack. Skips, or fails where REQUIRE names one that is missing."""
    return Servers(kafka=needed("kafka"), cassandra=needed("cassandra"), postgres=needed("postgres"), s3=needed("s3"))


@contextlib.contextmanager
def room(servers: Servers) -> Iterator[dict[str, str]]:
    """The environment of a system that nobody else meets there."""
    name = fresh_name()
    servers.create_database(name)
    try:
        yield servers.parts(name)
    finally:
        clear(servers, name)


def clear(servers: Servers, name: str) -> None:
    """Whatever has that name: a stack that stays up for days must not fill."""
    _drop_topics(servers.kafka, name)
    _drop_keyspace(servers.cassandra, name)
    with psycopg.connect(servers.postgres, autocommit=True) as connection:
        identifier = psycopg.sql.Identifier(name)
        connection.execute(psycopg.sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
    _drop_bucket(servers.s3, urlsplit(servers.parts(name)["FILES_URL"]).hostname or "")


def _drop_topics(url: str, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": urlsplit(url).netloc, "log_level": 0})
    topics = [topic for topic in admin.list_topics(timeout=DROP_TIMEOUT_S).topics if topic.startswith(name)]
    for done in admin.delete_topics(topics).values() if topics else ():
        done.result(DROP_TIMEOUT_S)


def _drop_keyspace(url: str, name: str) -> None:
    place = urlsplit(url)
    profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), request_timeout=DROP_TIMEOUT_S)
    cluster = Cluster(
        [place.hostname],
        port=place.port,
        protocol_version=4,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        schema_metadata_enabled=False,
    )
    try:
        cluster.connect().execute(f"DROP KEYSPACE IF EXISTS {name}")
    finally:
        cluster.shutdown()


def _drop_bucket(url: str, name: str) -> None:
    place = urlsplit(url)
    s3 = boto3.resource(
        "s3",
        endpoint_url=f"{place.scheme}://{place.hostname}:{place.port}",
        aws_access_key_id=place.username,
        aws_secret_access_key=place.password,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    bucket = s3.Bucket(name)
    with contextlib.suppress(s3.meta.client.exceptions.NoSuchBucket):
        bucket.objects.all().delete()
        bucket.delete()
