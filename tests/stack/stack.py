"""The servers of the cluster profile as one: started side by side, found by tests through the environment."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.stack import downloads
from tests.stack.cassandra import Cassandra
from tests.stack.kafka import Kafka
from tests.stack.minio import Minio
from tests.stack.postgres import Postgres
from tests.stack.redis import Redis
from tests.stack.server import Server

KINDS: Final[Mapping[str, type[Server]]] = {kind.name: kind for kind in (Kafka, Cassandra, Minio, Postgres, Redis)}
PROMETHEUS: Final = "TEST_PROMETHEUS"


class Stack:
    """Servers with a folder each below ``directory``; ``port_of`` chooses ports, None leaves it to the server.

    ``long_run``: they are to be fast after minutes, and not after seconds.
    """

    def __init__(
        self,
        directory: Path,
        names: Iterable[str],
        *,
        port_of: Callable[[type[Server]], int | None] = lambda kind: None,
        long_run: bool = False,
    ) -> None:
        self.servers = [KINDS[name](directory / name, port=port_of(KINDS[name])) for name in names]
        for server in self.servers:
            server.long_run = long_run

    def start(self, on_ready: Callable[[Server], None] = lambda server: None) -> Self:
        """Start all and wait until all answer. Raises the first failure, with nothing left running."""

        def start(server: Server) -> None:
            server.start()
            on_ready(server)

        with ThreadPoolExecutor(max(1, len(self.servers))) as threads:
            try:
                for outcome in [threads.submit(start, server) for server in self.servers]:
                    outcome.result()
            except BaseException:
                downloads.abort()
                self.close()  # those who still wait see their server gone
                raise
        return self

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def environment(self) -> dict[str, str]:
        """Each server's URL under its variable, and where Prometheus is if there is one."""
        urls = {server.variable: server.url for server in self.servers}
        prometheus = shutil.which("prometheus")
        return {**urls, **({PROMETHEUS: prometheus} if prometheus else {})}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
