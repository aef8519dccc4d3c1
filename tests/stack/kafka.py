"""Kafka: one node that is broker and controller (KRaft)."""

from __future__ import annotations

import os
import shlex
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from demo.ports import HOST, free_ports
from tests.stack import downloads
from tests.stack.certificates import Certificates
from tests.stack.java import java
from tests.stack.server import Server

PROBE_TIMEOUT_S = 3.0
SECURED = "SASL_SSL"


class Kafka(Server):
    """No credentials unless ``users`` (name -> password) are given: then TLS and SCRAM, and the first may do all, the
    others nothing. Topics exist only when somebody creates them, as on a real cluster.

    ``advertised_port`` is where clients find it when they come through a proxy.
    """

    name = "kafka"
    variable = "TEST_KAFKA_URL"
    default_port = 9092

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        advertised_port: int | None = None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, port=port)
        self._users = dict(users or {})
        self._certificates: Certificates | None = None
        self._advertised_port = advertised_port or self.port
        (self._controller_port,) = free_ports(1, besides=[self.port])

    @property
    def url(self) -> str:
        return self.url_as(*next(iter(self._users.items()))) if self._users else f"kafka://{self.bootstrap}"

    def url_as(self, user: str, password: str, *, name: str = "", ca: Path | None = None) -> str:
        """How a server with users is spoken to."""
        assert self._certificates, "it was not started with users"
        return f"kafka+ssl://{user}:{password}@{self.bootstrap}/{name}?ca={ca or self._certificates.ca}"

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self._advertised_port}"

    def fetch(self) -> None:
        downloads.kafka()

    def command(self) -> Sequence[str]:
        jars, config = downloads.kafka(), str(self._config)
        # 16 bytes; the first is zero, for what starts with "-" would be taken for an option.
        cluster = urlsafe_b64encode(bytes(1) + os.urandom(15)).decode().rstrip("=")
        scram = [f"SCRAM-SHA-512=[name={user},password={password}]" for user, password in self._users.items()]
        format_once = java(
            jars, "kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", config,
            *(argument for each in scram for argument in ("--add-scram", each)),
        )  # fmt: skip
        serve = java(jars, "kafka.Kafka", config, flags=["-Xmx512m"], long_run=self.long_run)
        formatted = shlex.quote(str(self.directory / "data" / "meta.properties"))
        return ("sh", "-c", f"test -e {formatted} || {shlex.join(format_once)} && exec {shlex.join(serve)}")

    def prepare(self) -> None:
        if self._users and not self._certificates:
            self._certificates = Certificates.made(self.directory / "tls")
        clients = SECURED if self._users else "PLAINTEXT"
        self._config.write_text(
            "\n".join(
                (
                    "process.roles=broker,controller",
                    "node.id=1",
                    f"listeners={clients}://{HOST}:{self.port},CONTROLLER://{HOST}:{self._controller_port}",
                    f"advertised.listeners={clients}://{HOST}:{self._advertised_port}",
                    "controller.listener.names=CONTROLLER",
                    f"controller.quorum.voters=1@{HOST}:{self._controller_port}",
                    f"listener.security.protocol.map=CONTROLLER:PLAINTEXT,{clients}:{clients}",
                    *self._security(),
                    f"log.dirs={self.directory / 'data'}",
                    "auto.create.topics.enable=false",
                    "offsets.topic.replication.factor=1",
                    "offsets.topic.num.partitions=3",  # 50 by default, and each costs files and a start's time
                    "transaction.state.log.replication.factor=1",
                    "transaction.state.log.min.isr=1",
                    "transaction.state.log.num.partitions=3",
                    "share.coordinator.state.topic.replication.factor=1",
                    "share.coordinator.state.topic.min.isr=1",
                    "group.initial.rebalance.delay.ms=0",
                    # What dials meanwhile waits while it is frozen. Past the 50 by default TCP tries again after a
                    # minute, and a proxy that dials for one client at a time holds up all others for so long.
                    "socket.listen.backlog.size=4096",
                    # A killed broker may register again only when its old session is over: 9 s by default.
                    "broker.session.timeout.ms=3000",
                    "broker.heartbeat.interval.ms=500",
                )
            )
            + "\n"
        )

    def why_not_ready(self) -> str:
        """It has a broker that takes part, and a controller to create topics."""
        admin = AdminClient({"bootstrap.servers": f"{HOST}:{self.port}", "log_level": 0, **self._credentials()})
        try:
            found = admin.list_topics(timeout=PROBE_TIMEOUT_S)
        except KafkaException as error:
            return str(error)
        return "" if found.brokers and found.controller_id != -1 else "no broker has registered"

    def _security(self) -> Sequence[str]:
        if not self._certificates:
            return ()
        user, password = next(iter(self._users.items()))
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        return (
            f"inter.broker.listener.name={SECURED}",
            "sasl.enabled.mechanisms=SCRAM-SHA-512",
            "sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512",
            f'listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={login} username="{user}" password="{password}";',
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={self._certificates.server_pem}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self._certificates.ca}",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            f"super.users=User:{user};User:ANONYMOUS",  # nobody: the controller's listener, which is not for clients
        )

    def _credentials(self) -> Mapping[str, str]:
        if not self._certificates:
            return {}
        user, password = next(iter(self._users.items()))
        return {
            "security.protocol": SECURED,
            "ssl.ca.location": str(self._certificates.ca),
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": password,
        }

    @property
    def _config(self) -> Path:
        return self.directory / "server.properties"
