"""The cluster profile's servers, and the names under which one system lives on them.

Several systems may share the servers: each has topics, a keyspace, a database and a bucket of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode, urlsplit

from demo.private import read_private, write_private

PARTS: Final = ("EVENT_LOG_URL", "MESSAGE_STORE_URL", "DATABASE_URL", "FILES_URL")
"""Variables of docs/configuration.md: whoever sets them all has servers of their own, with names of their own."""

CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # where FILES_URL has none


class ServersMissing(RuntimeError):
    """The cluster profile has nothing to run on; the text names what, and what to do."""


def _url(variable: str, part: str) -> str:
    url: str = field(repr=False, metadata={"variable": variable, "part": part})  # it may hold a password
    return url


@dataclass(frozen=True, slots=True)
class Servers:
    """Addresses, as `make stack` prints them; credentials included."""

    kafka: str = _url("TEST_KAFKA_URL", "Kafka")
    cassandra: str = _url("TEST_CASSANDRA_URL", "Cassandra")
    postgres: str = _url("TEST_POSTGRES_URL", "PostgreSQL")
    s3: str = _url("TEST_S3_URL", "S3")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises ServersMissing."""
        missing = [f for f in fields(cls) if not environment.get(f.metadata["variable"])]
        if missing:
            raise ServersMissing(
                f"The cluster profile finds no {', '.join(f.metadata['part'] for f in missing)}: set "
                f"{', '.join(f.metadata['variable'] for f in missing)} (`make stack` starts them all and prints "
                f"the lines), or {', '.join(PARTS)} for servers of yours (docs/configuration.md)"
            )
        return cls(**{f.name: environment[f.metadata["variable"]] for f in fields(cls)})

    def parts(self, name: str) -> dict[str, str]:
        """The PARTS of a system of this name (letters, digits and underscores)."""
        s3 = urlsplit(self.s3)
        endpoint = urlencode({"endpoint": f"{s3.scheme}://{s3.hostname}:{s3.port}"})
        credentials = s3.netloc.rpartition("@")[0]  # as they are: percent-encoded
        return {
            "EVENT_LOG_URL": f"{self.kafka.rstrip('/')}/{name}",
            "MESSAGE_STORE_URL": f"{self.cassandra.rstrip('/')}/{name}",
            "DATABASE_URL": urlsplit(self.postgres)._replace(path=f"/{name}").geturl(),
            "FILES_URL": f"s3://{credentials}@{name.replace('_', '-')}?{endpoint}",
        }

    def create_database(self, name: str) -> None:
        """Unless it is there; everything else is created by the product's own commands. Raises ServersMissing."""
        import psycopg  # noqa: PLC0415 - the local profile comes without

        try:
            with psycopg.connect(self.postgres, autocommit=True, connect_timeout=5) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                    connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        except psycopg.Error as error:
            raise ServersMissing(f"PostgreSQL at {urlsplit(self.postgres).hostname}: {error}") from None


def parts(environment: Mapping[str, str], state_dir: Path) -> dict[str, str]:
    """Variables for a `LocalSystem` on the cluster that the environment describes. Raises ServersMissing.

    On `make stack`'s servers a folder's system keeps its name, so that it goes on where it was.
    """
    if all(environment.get(name) for name in PARTS):
        return {name: environment[name] for name in (*PARTS, *CREDENTIALS) if name in environment}
    servers, name = Servers.from_environment(environment), _kept_name(state_dir)
    servers.create_database(name)
    return servers.parts(name)


def fresh_name() -> str:
    return f"chat4all_{secrets.token_hex(4)}"


def _kept_name(state_dir: Path) -> str:
    path = state_dir / "cluster.json"
    kept: dict[str, Any] = read_private(path) or {"name": fresh_name()}
    write_private(path, kept)
    return str(kept["name"])
