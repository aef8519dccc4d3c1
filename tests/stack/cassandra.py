"""Cassandra: one node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cassandra import DriverException
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import RoundRobinPolicy

from demo.ports import HOST, free_ports
from tests.stack import downloads
from tests.stack.java import java
from tests.stack.server import Server

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

COMMITLOG_SYNC = {
    "batch": ["commitlog_sync: batch"],
    "group": ["commitlog_sync: group", "commitlog_sync_group_window: 5ms"],
    "periodic": ["commitlog_sync: periodic", "commitlog_sync_period: 10000ms"],
}


class Cassandra(Server):
    """No credentials.

    ``commitlog_sync`` is batch unless told: the distribution's periodic answers before the commit log is on disk, so
    that a lone node that is killed forgets up to 10 s of what it acknowledged. A cluster has replicas for that.
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
    ) -> None:
        super().__init__(directory, port=port)
        self._commitlog_sync = commitlog_sync
        (self._storage_port,) = free_ports(1, besides=[self.port])

    @property
    def url(self) -> str:
        return f"cassandra://{HOST}:{self.port}/"

    def fetch(self) -> None:
        downloads.cassandra()

    def command(self) -> Sequence[str]:
        return java(
            downloads.cassandra(),
            "org.apache.cassandra.service.CassandraDaemon",
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
            ],
        )

    def prepare(self) -> None:
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
                    "authenticator: AllowAllAuthenticator",
                    "authorizer: AllowAllAuthorizer",
                    "memtable_allocation_type: heap_buffers",
                    "auto_snapshot: false",  # tests drop and truncate a lot
                )
            )
            + "\n"
        )

    def why_not_ready(self) -> str:
        cluster = Cluster(
            [HOST],
            port=self.port,
            connect_timeout=PROBE_TIMEOUT_S,
            control_connection_timeout=PROBE_TIMEOUT_S,
            execution_profiles={EXEC_PROFILE_DEFAULT: ExecutionProfile(RoundRobinPolicy())},
            protocol_version=4,
        )
        try:
            session = cluster.connect()
            return "" if session.execute("SELECT key FROM system.local", timeout=PROBE_TIMEOUT_S).one() else "no row"
        except (NoHostAvailable, DriverException, OSError) as error:
            return str(error)
        finally:
            cluster.shutdown()

    @property
    def _config(self) -> Path:
        return self.directory / "cassandra.yaml"
