"""Which environment variables the code reads, taken from its syntax: a name that nothing reads is a typo."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from tests.deploy.programs import ROOT

PACKAGES = (
    "chat4all_project", "core", "accounts", "messaging", "connectors", "files", "realtime", "web", "simulator",
)  # fmt: skip
SIMULATOR_PREFIX = "SIMULATOR_"
READERS = {"secret", "old_secrets", "public_url"}  # functions of chat4all_project.env that take a variable's name

OF_IMAGES: Mapping[str, frozenset[str]] = {
    # Its entrypoint writes the first ones into cassandra.yaml; cassandra-env.sh of the distribution reads the others.
    "cassandra": frozenset({
        "CASSANDRA_BROADCAST_ADDRESS", "CASSANDRA_BROADCAST_RPC_ADDRESS", "CASSANDRA_CLUSTER_NAME", "CASSANDRA_DC",
        "CASSANDRA_ENDPOINT_SNITCH", "CASSANDRA_LISTEN_ADDRESS", "CASSANDRA_NUM_TOKENS", "CASSANDRA_RACK",
        "CASSANDRA_RPC_ADDRESS", "CASSANDRA_SEEDS", "CASSANDRA_START_RPC",
        "HEAP_NEWSIZE", "JVM_EXTRA_OPTS", "MAX_HEAP_SIZE",
    }),
    "postgres": frozenset({
        "PGDATA", "POSTGRES_DB", "POSTGRES_HOST_AUTH_METHOD", "POSTGRES_INITDB_ARGS", "POSTGRES_INITDB_WALDIR",
        "POSTGRES_PASSWORD", "POSTGRES_USER",
    }),
    "redis": frozenset({"REDISCLI_AUTH"}),
    "ghcr.io/versity/versitygw": frozenset({"ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"}),
    # GF_<section>_<key> of its ini file: of hundreds those that we use.
    "grafana/grafana": frozenset({
        "GF_ANALYTICS_CHECK_FOR_UPDATES", "GF_ANALYTICS_REPORTING_ENABLED", "GF_SECURITY_ADMIN_PASSWORD",
        "GF_SECURITY_ADMIN_USER", "GF_USERS_ALLOW_SIGN_UP",
    }),
    "nginxinc/nginx-unprivileged": frozenset({"NGINX_ENVSUBST_FILTER"}),
}  # fmt: skip
"""What the documentation of other people's images names; what Kafka's makes of it, `test_servers` asks Kafka itself."""


@cache
def read_by_us() -> frozenset[str]:
    """By the hub and by the simulator."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return frozenset(name for path in files for name in names_in(path))


def names_in(path: Path) -> Iterator[str]:
    prefix = SIMULATOR_PREFIX if "simulator" in path.parts else ""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if _reads(function):
                yield (prefix if isinstance(function, ast.Name) and function.id == "env" else "") + name
            case ast.Subscript(value=source, slice=ast.Constant(value=str(name))) if _is_environ(source):
                yield name
            case ast.Compare(left=ast.Constant(value=str(name)), comparators=[source]) if _is_environ(source):
                yield name


def _reads(function: ast.expr) -> bool:
    match function:
        case ast.Name(id=name):
            return name == "env" or name in READERS
        case ast.Attribute(value=ast.Name(id="env" | "ENV" | "environment")):
            return True
        case ast.Attribute(value=source, attr="get"):
            return _is_environ(source)
        case ast.Attribute(value=ast.Name(id="os"), attr="getenv"):
            return True
    return False


def _is_environ(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"
