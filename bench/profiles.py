"""The system under test: the local profile, or the cluster profile on the servers that TEST_…_URL name.

On the cluster a benchmark meets nobody: its topics, keyspace, database and bucket are its own, and go in the end. What
it looks at beside the system it sees through the product's ports, so that both profiles are looked at alike.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Protocol, cast
from urllib.parse import urlsplit

from demo.cluster import Servers
from demo.supervisor import PROFILES, ROOT, LocalSystem
from messaging.eventlog.kafka import KafkaLog
from messaging.eventlog.redis_streams import RedisStreamsLog
from tests.rooms import room

Profile = Literal["local", "cluster"]
LogAdapter = KafkaLog | RedisStreamsLog
SERVERS: Final = {"kafka": "TEST_KAFKA_URL", "cassandra": "TEST_CASSANDRA_URL", "postgres": "TEST_POSTGRES_URL"}


def add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default="local",
        help="what to measure; cluster: on the servers in TEST_…_URL (`python -m tests.stack run -- …` starts them)",
    )


def profile_of(options: argparse.Namespace) -> Profile:
    return cast(Profile, options.profile)


class Benchmark(Protocol):
    def __call__(self, profile: Profile, directory: Path, *, scale: float) -> Iterator[object]: ...


def alone(description: str | None, benchmark: Benchmark) -> None:
    """The command line of a benchmark that runs by itself; what it finds is printed as it is found."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_profile(parser)
    parser.add_argument("--scale", type=float, default=1.0, help="of the time that each measurement takes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as folder:
        for measured in benchmark(profile_of(options), Path(folder), scale=options.scale):
            print(measured, flush=True)


@contextmanager
def place(profile: Profile) -> Iterator[dict[str, str]]:
    """The variables that a system of this profile needs: a room on the servers, or nothing. Raises ServersMissing."""
    if profile == "local":
        yield {}
        return
    with room(Servers.from_environment(os.environ)) as env:
        yield env


@contextmanager
def running(
    profile: Profile,
    directory: Path,
    *,
    env: Mapping[str, str] | None = None,
    processes: Sequence[str] | None = None,
    instances: Mapping[str, int] | None = None,
) -> Iterator[LocalSystem]:
    """A system, up; ``processes`` that the profile has none of are not asked for."""
    with place(profile) as servers:
        if processes is not None and profile == "cluster":
            processes = [name for name in processes if name != "redis-log"]
        settings = {**servers, **(env or {})}
        with LocalSystem(directory, env=settings, processes=processes, instances=instances) as system:
            yield system
            kill(system)


def kill(system: LocalSystem) -> None:
    """All of it at once, where nothing that it holds is wanted any more: to end what is under way takes ten seconds."""
    for name in reversed(system.processes):
        system.kill(name)


def event_log(system: LocalSystem) -> LogAdapter:
    """A client of the system's log of our own; to be closed."""
    url = system.env["EVENT_LOG_URL"]
    return KafkaLog(url) if urlsplit(url).scheme.startswith("kafka") else RedisStreamsLog(url)


def not_stored(system: LocalSystem, message_ids: Sequence[str]) -> list[str]:
    """Those of these that the system's message store does not have (`bench.stored`, a process with its settings)."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.stored"],
        cwd=ROOT,
        env={**system.env, "SERVICE": "manage"},
        input="\n".join(message_ids),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.split()
