"""Cassandra: one node."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from cassandra import DriverException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import RoundRobinPolicy

from demo.ports import HOST, free_ports
from tests.stack import downloads
from tests.stack.certificates import STORE_PASSWORD, Certificates
from tests.stack.java import java
from tests.stack.server import Server
from tests.stack.timers import late_by

PROBE_TIMEOUT_S = 5.0

# Those of the distribution's jvm17-server.options: without them it does not start on Java 11 or newer.
_EXPORTS = (
    "java.base/jdk.internal.misc", "java.base/jdk.internal.ref", "java.base/java.lang.ref",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi", "java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server",
    "java.sql/java.sql", "jdk.unsupported/sun.misc", "jdk.attach/sun.tools.attach",
)  # fmt: skip
_OPENS = (
    "java.base/java.io", "java.base/java.lang", "java.base/java.lang.module", "java.base/java.lang.reflect",
    "java.base/java.nio", "java.base/java.util", "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic", "java.base/jdk.internal.loader", "java.base/jdk.internal.math",
    "java.base/jdk.internal.module", "java.base/jdk.internal.ref", "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar", "java.base/sun.nio.ch", "java.rmi/sun.rmi.transport.tcp",
    "jdk.compiler/com.sun.tools.javac", "jdk.management/com.sun.management.internal",
)  # fmt: skip

# For 10 ms after each request its workers look for the next one every 10 µs, which Linux makes 60 or less: on a virtual
# machine that took more CPU than all else at a low rate. Late by this much they look half as often, and answer as soon.
TIMER_SLACK_US: Final = 200

COMMITLOG_SYNC = {
    "batch": ["commitlog_sync: batch"],
    "group": ["commitlog_sync: group", "commitlog_sync_group_window: 5ms"],
    "periodic": ["commitlog_sync: periodic", "commitlog_sync_period: 10000ms"],
}


class Cassandra(Server):
    """No credentials unless ``users`` (name -> password) are given: then TLS and passwords, and the first may do
    everything, the others nothing.

    ``commitlog_sync`` is batch unless told: the distribution's periodic answers before the commit log is on disk, so
    that a lone node that is killed forgets up to 10 s of what it acknowledged. A cluster has replicas for that.
    ``flags`` are more of the JVM's, such as an image's JVM_EXTRA_OPTS.
    """

    name = "cassandra"
    variable = "TEST_CASSANDRA_URL"
    default_port = 9042

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        commitlog_sync: Literal["batch", "group", "periodic"] = "batch",
        flags: Sequence[str] = (),
        users: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, port=port)
        self._users = dict(users or {})
        self._certificates: Certificates | None = None
        self._commitlog_sync = commitlog_sync
        self._flags = tuple(flags)
        (self._storage_port,) = free_ports(1, besides=[self.port])

    @property
    def url(self) -> str:
        return self.url_as(*next(iter(self._users.items()))) if self._users else f"cassandra://{HOST}:{self.port}/"

    def url_as(self, user: str, password: str, *, name: str = "", ca: Path | None = None) -> str:
        """How a server with users is spoken to; ``name`` is a keyspace."""
        assert self._certificates, "it was not started with users"
        return f"cassandra+ssl://{user}:{password}@{HOST}:{self.port}/{name}?ca={ca or self._certificates.ca}"

    def fetch(self) -> None:
        downloads.cassandra()

    def command(self) -> Sequence[str]:
        return late_by(TIMER_SLACK_US, self._java())

    def _java(self) -> Sequence[str]:
        return java(
            downloads.cassandra(),
            "org.apache.cassandra.service.CassandraDaemon",
            long_run=self.long_run,
            flags=[
                "-Xmx768m",
                *(f"--add-exports={package}=ALL-UNNAMED" for package in _EXPORTS),
                *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS),
                "-Djdk.attach.allowAttachSelf=true",
                "-Djava.security.manager=allow",  # Java 18 and newer refuse the one that Cassandra installs otherwise
                f"-Dcassandra.config=file://{self._config}",
                f"-Dlogback.configurationFile=file://{Path(__file__).with_name('jars') / 'cassandra-logback.xml'}",
                f"-Dcassandra.storagedir={self.directory / 'data'}",
                "-Dcassandra-foreground=yes",
                # There is nobody to gossip with.
                "-Dcassandra.skip_wait_for_gossip_to_settle=0",
                "-Dcassandra.ring_delay_ms=0",
                "-Dcassandra.shutdown_announce_in_ms=0",
                "-Dcassandra.superuser_setup_delay_ms=0",  # 10 s by default, for a cluster to come together
                # At each start it measures what a row takes in memory: 100,000 of them, two of a start's ten seconds.
                "-Dcassandra.memtable_row_overhead_computation_step=1000",
                *self._flags,
            ],
        )

    def prepare(self) -> None:
        if self._users and not self._certificates:
            self._certificates = Certificates.made(self.directory / "tls")
        data = self.directory / "data"
        self._config.write_text(
            "\n".join(
                (
                    "cluster_name: chat4all-tests",
                    "num_tokens: 1",
                    "partitioner: org.apache.cassandra.dht.Murmur3Partitioner",
                    *COMMITLOG_SYNC[self._commitlog_sync],
                    f"data_file_directories: ['{data}/data']",
                    f"commitlog_directory: '{data}/commitlog'",
                    f"saved_caches_directory: '{data}/saved'",
                    f"hints_directory: '{data}/hints'",
                    f"cdc_raw_directory: '{data}/cdc'",
                    "endpoint_snitch: SimpleSnitch",
                    "seed_provider:",
                    "  - class_name: org.apache.cassandra.locator.SimpleSeedProvider",
                    f"    parameters: [{{seeds: '{HOST}:{self._storage_port}'}}]",
                    f"listen_address: {HOST}",
                    f"rpc_address: {HOST}",
                    f"native_transport_port: {self.port}",
                    f"storage_port: {self._storage_port}",
                    "start_native_transport: true",
                    *self._security(),
                    "memtable_allocation_type: heap_buffers",
                    "auto_snapshot: false",  # tests drop and truncate a lot
                )
            )
            + "\n"
        )

    def why_not_ready(self) -> str:
        """It answers, and knows its users."""
        if self._users and (missing := self._asked("cassandra", "cassandra", *self._roles())):
            return missing
        user, password = next(iter(self._users.items()), ("", ""))
        return self._asked(user, password, "SELECT key FROM system.local")

    def _asked(self, user: str, password: str, *statements: str) -> str:
        """Why it does not do these, if so."""
        context = ssl.create_default_context(cafile=str(self._certificates.ca)) if self._certificates else None
        secured: dict[str, Any] = {"auth_provider": PlainTextAuthProvider(user, password), "ssl_context": context}
        cluster = Cluster(
            [HOST],
            port=self.port,
            connect_timeout=PROBE_TIMEOUT_S,
            control_connection_timeout=PROBE_TIMEOUT_S,
            execution_profiles={EXEC_PROFILE_DEFAULT: ExecutionProfile(RoundRobinPolicy())},
            protocol_version=4,
            **(secured if self._users else {}),
        )
        try:
            session = cluster.connect()
            for each in statements:
                session.execute(each, timeout=PROBE_TIMEOUT_S)
        except (NoHostAvailable, DriverException, OSError) as error:
            return str(error)
        finally:
            cluster.shutdown()
        return ""

    def _roles(self) -> Sequence[str]:
        return [
            f"CREATE ROLE IF NOT EXISTS {user} WITH PASSWORD = '{password}' AND LOGIN = true"
            f" AND SUPERUSER = {'false' if number else 'true'}"
            for number, (user, password) in enumerate(self._users.items())
        ]

    def _security(self) -> Sequence[str]:
        if not self._certificates:
            return ("authenticator: AllowAllAuthenticator", "authorizer: AllowAllAuthorizer")
        return (
            "authenticator: PasswordAuthenticator",
            "authorizer: CassandraAuthorizer",
            "role_manager: CassandraRoleManager",
            "client_encryption_options:",
            "  enabled: true",
            "  optional: false",
            f"  keystore: '{self._certificates.server_p12}'",
            f"  keystore_password: {STORE_PASSWORD}",
            "  store_type: PKCS12",
        )

    @property
    def _config(self) -> Path:
        return self.directory / "cassandra.yaml"
