"""A system of one profile that is about to break, the servers under it, and the ways to them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from django.test import override_settings

from demo.cluster import Servers, fresh_name
from demo.ports import free_ports
from demo.supervisor import LocalSystem
from messaging import topics, wiring
from messaging.ports import MessageStore
from tests.faults.collect import CHANNELS, Mark
from tests.faults.patience import STARTS_S, eventually
from tests.stack.cassandra import Cassandra
from tests.stack.kafka import Kafka
from tests.stack.minio import Minio
from tests.stack.postgres import Postgres
from tests.stack.scratch import scratch_directory
from tests.stack.server import Server
from tests.stack.toxiproxy import Proxy, Toxiproxy
from tests.town import Resident, Town

Profile = Literal["local", "cluster"]
LOCAL: Final[frozenset[Profile]] = frozenset({"local"})
CLUSTER: Final[frozenset[Profile]] = frozenset({"cluster"})
FAR_MS: Final = 2**62  # later than whatever is due
WAITS: Final = "waits"  # a file of the failpoints' folder
SEVERAL: Final = {"bridge": 2, "worker-core": 2, "worker-whatsapp": 2}


@dataclass(frozen=True, slots=True)
class Pace:
    """How long faults last and how much is written meanwhile."""

    pause_s: float  # of a frozen process
    outage_s: float  # of a server or a platform that is away
    spell_s: float  # of platforms that misbehave, answers that come late, bridges that come and go
    per_second: float  # requests that the writers try together
    batch: int  # messages in those requests that carry several
    messages: int  # accepted in one round at least
    waits: float  # the share of our own long waits that is kept, see `core.failpoints`


SHORT: Final = Pace(pause_s=10, outage_s=15, spell_s=8, per_second=25, batch=5, messages=120, waits=0.4)
FULL: Final = Pace(pause_s=60, outage_s=150, spell_s=60, per_second=25, batch=20, messages=2_600, waits=1)
DENSE: Final = replace(FULL, per_second=32, batch=32, messages=12_500)  # about 100 messages a second


@dataclass(frozen=True, slots=True)
class Backends:
    """The cluster profile's servers; the system reaches each through its way, which can be cut or slowed."""

    kafka: Kafka
    cassandra: Cassandra
    postgres: Postgres
    minio: Minio
    ways: Mapping[str, Proxy]  # kafka, cassandra, postgres, s3


class Load(Protocol):
    """The people of the round that is on. Kinds: ``user``, a channel's name, and ``from`` a channel."""

    @property
    def lines(self) -> Sequence[Line]: ...

    def texts(self, *kinds: str) -> frozenset[str]:
        """What was accepted so far, or taken by a platform from a person, of these kinds."""

    def arrivals(self) -> Mapping[str, float]:
        """When each text was first at its reader's (monotonic seconds)."""

    def write(self, conversation: str, texts: Sequence[str], to: str, *, kind: str) -> None:
        """Have alice say these as well, in one request; judged like everything else."""


@dataclass(frozen=True, slots=True)
class Line:
    """A conversation of the round, and whom it goes to."""

    conversation: str
    to: str
    kind: str  # user, whatsapp, instagram


@dataclass
class World:
    """``alice`` writes; ``bob`` and persons on the platforms hear from her. A local world has no ``backends``."""

    profile: Profile
    town: Town
    alice: Resident
    bob: Resident
    accounts: Mapping[str, str]  # of ours, by channel
    failpoints: Path
    backends: Backends | None = None
    mended_s: float = field(default=0.0, init=False)  # monotonic
    load: Load = field(init=False)  # of the round that is on
    mark: Mark | None = field(default=None, init=False)  # where the last round began
    _store: MessageStore | None = field(default=None, init=False)  # of the cluster profile

    @property
    def system(self) -> LocalSystem:
        return self.town.system

    @property
    def servers(self) -> Backends:
        """Raises AssertionError on the local profile, where a fault that asks for them has no place."""
        assert self.backends is not None, "the local profile has no such servers"
        return self.backends

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def restart(self, name: str) -> None:
        """As the system's, with the time that a busy machine may need."""
        self.system.restart(name, STARTS_S)

    def parked(self) -> bool:
        """Whether anything waits apart to be sent again."""
        url = self.system.env.get("MESSAGE_STORE_URL")
        if url is None:
            return _parked_in(self.system.state_dir / "messages.sqlite3")
        with override_settings(MESSAGE_STORE_URL=url):
            store = self._store = self._store or wiring.message_store.__wrapped__()
        return any(store.due_scopes(topic=topics.outbound(each), now_ms=FAR_MS, limit=1) for each in CHANNELS)

    def mended(self) -> None:
        """From now on the system can do its work again: recovery is counted from here. A fault says it right before it
        kills what others replace, and right after an outage's end."""
        self.mended_s = time.monotonic()

    def arm(self, point: str, action: Literal["kill", "kill-group", "stop"] = "kill") -> None:
        """Strike the next process that comes by this failpoint."""
        (self.failpoints / f"{point}.struck").unlink(missing_ok=True)
        aside = self.failpoints / f".{point}"
        aside.write_text(action)
        aside.rename(self.failpoints / point)

    def disarm(self) -> None:
        """What nobody came by, and what was struck, is no part of the next round; nor are clocks."""
        for each in self.failpoints.iterdir():
            if each.name != WAITS:
                each.unlink(missing_ok=True)

    def struck(self, point: str) -> int:
        """The process that was struck there, once one was."""
        mark = self.failpoints / f"{point}.struck"
        eventually(mark.exists)
        return int(mark.read_text())


def _parked_in(database: Path) -> bool:
    """Read aside from Django, whose settings name another file."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as opened:
        return opened.execute("SELECT 1 FROM messaging_parkedscope LIMIT 1").fetchone() is not None


@contextmanager
def local_world(folder: Path, pace: Pace) -> Iterator[World]:
    with LocalSystem(folder, env=_failpoints(folder, pace)) as system:
        yield from _peopled("local", system)


@contextmanager
def cluster_world(folder: Path, pace: Pace) -> Iterator[World]:
    """On servers of its own. They must be installed; see `tests.stack.servers.needed`."""
    with ExitStack() as stack:
        backends = _started(stack.enter_context(scratch_directory()), stack)
        ways = backends.ways
        servers = Servers(
            f"kafka://127.0.0.1:{ways['kafka'].port}",
            f"cassandra://127.0.0.1:{ways['cassandra'].port}/",
            backends.postgres.url.replace(f":{backends.postgres.port}/", f":{ways['postgres'].port}/"),
            backends.minio.url.replace(f":{backends.minio.port}", f":{ways['s3'].port}"),
        )
        name = fresh_name()
        servers.create_database(name)
        env = {**servers.parts(name), **_failpoints(folder, pace)}
        with LocalSystem(folder / "system", env=env, instances=SEVERAL) as system:
            yield from _peopled("cluster", system, backends)


def _failpoints(folder: Path, pace: Pace) -> dict[str, str]:
    points = folder / "failpoints"
    points.mkdir(parents=True)
    (points / WAITS).write_text(str(pace.waits))
    return {"FAILPOINTS": str(points)}


def _started(folder: Path, stack: ExitStack) -> Backends:
    toxiproxy = stack.enter_context(Toxiproxy(folder / "toxiproxy"))
    ports = dict(zip(("kafka", "way"), free_ports(2), strict=True))
    kafka = Kafka(folder / "kafka", port=ports["kafka"], advertised_port=ports["way"])
    cassandra, postgres = Cassandra(folder / "cassandra"), Postgres(folder / "postgres")
    minio = Minio(folder / "minio")
    servers: dict[str, Server] = {"kafka": kafka, "cassandra": cassandra, "postgres": postgres, "s3": minio}
    for server in servers.values():
        stack.callback(server.close)
    ways = {
        name: toxiproxy.proxy(name, upstream_port=server.port, port=ports["way"] if name == "kafka" else None)
        for name, server in servers.items()
    }
    with ThreadPoolExecutor(len(servers)) as starting:
        list(starting.map(lambda server: server.start(), servers.values()))
    return Backends(kafka, cassandra, postgres, minio, ways)


def _peopled(profile: Profile, system: LocalSystem, backends: Backends | None = None) -> Iterator[World]:
    with Town(system) as town:
        alice, bob = town.resident("alice"), town.resident("bob")
        accounts = {channel: town.account(channel, alice) for channel in CHANNELS}
        world = World(profile, town, alice, bob, accounts, Path(system.env["FAILPOINTS"]), backends)
        with closing(world):
            yield world
