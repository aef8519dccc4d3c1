"""What docker/compose.yml tells the servers, asked of the same versions as programs: they know it, and obey."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cassandra.cluster import Cluster

from demo.ports import HOST
from tests.deploy.test_docker import services
from tests.stack import downloads
from tests.stack.cassandra import Cassandra
from tests.stack.java import java
from tests.stack.scratch import scratch_directory
from tests.stack.servers import needed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.xdist_group("stack")]

IMAGES_OWN = {"CLUSTER_ID": "5L6g3nShT-eMCtK--X86sw"}  # its scripts set one where nobody does


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


def run_java(directory: Path, main: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    command = java(downloads.kafka(), main, *arguments)
    done = subprocess.run(
        command,
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def kafka_properties(directory: Path, environment: dict[str, str]) -> dict[str, str]:
    """What the image makes of its environment, by the image's own program; it also formats the storage with it."""
    for folder in ("default", "mounted", "final"):
        (directory / folder).mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (directory / "default" / name).touch()
    folders = ("--default-configs-dir=default", "--mounted-configs-dir=mounted", "--final-configs-dir=final")
    run_java(directory, "kafka.docker.KafkaDockerWrapper", "setup", *folders, env={**environment, **IMAGES_OWN})
    lines = (directory / "final" / "server.properties").read_text().splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines if line)}


def test_the_programs_are_those_of_the_images() -> None:
    assert services()["kafka"]["image"] == f"apache/kafka:{downloads.KAFKA}"
    assert services()["cassandra"]["image"] == f"cassandra:{downloads.CASSANDRA}"


def test_kafka_knows_every_property_and_flushes_each_record(directory: Path) -> None:
    needed("kafka")
    environment = {**services()["kafka"]["environment"], "KAFKA_LOG_DIRS": str(directory / "data")}
    told = kafka_properties(directory, environment)
    known = set(re.findall(r'id="brokerconfigs_([^"]+)"', run_java(directory, "kafka.server.KafkaConfig")))
    assert len(known) > 200
    assert set(told) - known == set()
    heap = {"KAFKA_HEAP_OPTS"}
    assert len(told) == len(environment.keys() - heap), "the image understood each of them"
    assert told["log.flush.interval.messages"] == "1"


def test_cassandra_answers_after_its_disk(directory: Path) -> None:
    """Against what the distribution's cassandra.yaml says, which the image starts from."""
    needed("cassandra")
    flags = shlex.split(services()["cassandra"]["environment"]["JVM_EXTRA_OPTS"])
    with (
        Cassandra(directory / "server", commitlog_sync="periodic", flags=flags) as server,
        Cluster([HOST], port=server.port, protocol_version=4) as cluster,
    ):
        rows = cluster.connect().execute("SELECT name, value FROM system_views.settings")
        settings = {row.name: row.value for row in rows}
    assert settings["commitlog_sync"] == "group"
    assert settings["commitlog_sync_group_window"] == "5ms"
    assert settings["commitlog_sync_period"] == "0ms"
