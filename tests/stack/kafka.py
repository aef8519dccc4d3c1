"""Kafka: one node that is broker and controller (KRaft)."""

from __future__ import annotations

import os
import shlex
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from demo.ports import HOST, free_ports
from tests.stack import downloads
from tests.stack.java import java
from tests.stack.server import Server

PROBE_TIMEOUT_S = 3.0


class Kafka(Server):
    """No credentials. Topics exist only when somebody creates them, as on a real cluster.

    ``advertised_port`` is where clients find it when they come through a proxy.
    """

    name = "kafka"
    variable = "TEST_KAFKA_URL"
    default_port = 9092

    def __init__(self, directory: Path, *, port: int | None = None, advertised_port: int | None = None) -> None:
        super().__init__(directory, port=port)
        self._advertised_port = advertised_port or self.port
        (self._controller_port,) = free_ports(1, besides=[self.port])

    @property
    def url(self) -> str:
        return f"kafka://{self.bootstrap}"

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self._advertised_port}"

    def fetch(self) -> None:
        downloads.kafka()

    def command(self) -> Sequence[str]:
        jars, config = downloads.kafka(), str(self._config)
        # 16 bytes; the first is zero, for what starts with "-" would be taken for an option.
        cluster = urlsafe_b64encode(bytes(1) + os.urandom(15)).decode().rstrip("=")
        format_once = java(jars, "kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", config)
        serve = java(jars, "kafka.Kafka", config, flags=["-Xmx512m"])
        formatted = shlex.quote(str(self.directory / "data" / "meta.properties"))
        return ("sh", "-c", f"test -e {formatted} || {shlex.join(format_once)} && exec {shlex.join(serve)}")

    def prepare(self) -> None:
        self._config.write_text(
            "\n".join(
                (
                    "process.roles=broker,controller",
                    "node.id=1",
                    f"listeners=PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self._controller_port}",
                    f"advertised.listeners=PLAINTEXT://{HOST}:{self._advertised_port}",
                    "controller.listener.names=CONTROLLER",
                    f"controller.quorum.voters=1@{HOST}:{self._controller_port}",
                    "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
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
                    # A killed broker may register again only when its old session is over: 9 s by default.
                    "broker.session.timeout.ms=3000",
                    "broker.heartbeat.interval.ms=500",
                )
            )
            + "\n"
        )

    def why_not_ready(self) -> str:
        """It has a broker that takes part, and a controller to create topics."""
        admin = AdminClient({"bootstrap.servers": f"{HOST}:{self.port}", "log_level": 0})
        try:
            found = admin.list_topics(timeout=PROBE_TIMEOUT_S)
        except KafkaException as error:
            return str(error)
        return "" if found.brokers and found.controller_id != -1 else "no broker has registered"

    @property
    def _config(self) -> Path:
        return self.directory / "server.properties"
