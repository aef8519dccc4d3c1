"""A system of one profile that is about to break, the servers under it, and the ways to them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

from demo.cluster import Servers, fresh_name
from demo.ports import free_ports
from demo.supervisor import LocalSystem
from tests.faults.collect import CHANNELS, Mark
from tests.faults.history import Request
from tests.faults.parking import Parking
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
KILLED_S: Final = 10.0  # the target of work that others take over
SHAKEN_S: Final = 30.0  # after processes of ours are back, the longest that somebody may still wait by it
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
    slack: float  # how many times its target a recovery may take: the machine does everything else as well


SHORT: Final = Pace(pause_s=10, outage_s=15, spell_s=8, per_second=4, batch=5, messages=80, waits=0.4, slack=6)
FULL: Final = Pace(pause_s=60, outage_s=150, spell_s=60, per_second=25, batch=20, messages=2_600, waits=1, slack=1)
# Most messages in batches: about 30 a second on the cluster, whose servers share the machine; 80 on the local profile.
# With more what waits for a fault's end takes longer to work off than a recovery may.
DENSE: Final = replace(FULL, per_second=3.4, batch=64, messages=12_000)
DENSE_LOCAL: Final = replace(DENSE, per_second=9.2, messages=20_000)


@dataclass(frozen=True, slots=True)
class Backends:
    """The cluster profile's servers; the system reaches each through its way, which can be cut or slowed."""

    kafka: Kafka
    cassandra: Cassandra
    postgres: Postgres
    minio: Minio
    ways: Mapping[str, Proxy]  # kafka, cassandra, postgres, s3


@dataclass(frozen=True, slots=True)
class Blow:
    """A moment from which recovery is counted: monotonic seconds.

    ``taken_over``: somebody ended then whose work others do, so that whatever was under way shall be there after
    ``target_s``. Else something is whole again, and each conversation that waited for it shall have gone on by then.
    ``kinds`` are the ones that it is about; none: all.
    """

    what: str
    at_s: float
    target_s: float
    taken_over: bool = False
    kinds: frozenset[str] = frozenset()


class Struck(NamedTuple):
    """Who was struck at a failpoint, and when; monotonic."""

    pid: int
    at_s: float


class Load(Protocol):
    """The people of the round that is on. Kinds: ``user``, a channel's name, and ``from`` a channel."""

    @property
    def lines(self) -> Sequence[Line]: ...

    def texts(self, *kinds: str) -> frozenset[str]:
        """What was accepted so far, or taken by a platform from a person, of these kinds."""

    def arrivals(self) -> Mapping[str, float]:
        """When each text was first at its reader's (monotonic seconds)."""

    def delays(self, *kinds: str, since_s: float, until_s: float) -> Mapping[str, float]:
        """How long each text took that was accepted and begun in that time, infinity when it is not there; seconds."""

    def write(self, conversation: str, texts: Sequence[str], to: str, *, kind: str) -> None:
        """Have alice say these as well, in one request; judged like everything else."""

    def note(self, request: Request, *, began_s: float, kind: str) -> None:
        """What alice said to bob by another way, and heard; judged like everything else."""


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
    parking: Parking
    backends: Backends | None = None
    load: Load = field(init=False)  # of the round that is on
    mark: Mark | None = field(default=None, init=False)  # where the last round began
    began_s: float = field(default=0.0, init=False)  # and when; monotonic
    blows: list[Blow] = field(default_factory=list, init=False)  # of the round that is on
    strikes_s: list[float] = field(default_factory=list, init=False)  # of the same, when each began; monotonic
    shaken_s: list[tuple[float, float]] = field(default_factory=list, init=False)  # see `shaking`

    @property
    def system(self) -> LocalSystem:
        return self.town.system

    @property
    def servers(self) -> Backends:
        """Raises AssertionError on the local profile, where a fault that asks for them has no place."""
        assert self.backends is not None, "the local profile has no such servers"
        return self.backends

    def restart(self, name: str) -> None:
        """As the system's, with the time that a busy machine may need."""
        self.system.restart(name, STARTS_S)

    def new_round(self) -> None:
        """What nobody came by, and what was struck, is no part of it; nor are clocks."""
        self.began_s = time.monotonic()
        for each in self.failpoints.iterdir():
            if each.name != WAITS:
                each.unlink(missing_ok=True)
        for noted in (self.blows, self.strikes_s, self.shaken_s):
            noted.clear()

    def begins(self) -> None:
        """A strike begins that is not the round's only one: who is late from here on may be so by this one."""
        self.strikes_s.append(time.monotonic())

    def mended(self, what: str, *, target_s: float, kinds: Iterable[str] = ()) -> None:
        """It is whole from now on."""
        self.blows.append(Blow(what, time.monotonic(), target_s, kinds=frozenset(kinds)))

    def taken_over(self, what: str, at_s: float, *, target_s: float, kinds: Iterable[str] = ()) -> None:
        """It ended then, or was emptied, and nobody waited for its return."""
        self.blows.append(Blow(what, at_s, target_s, taken_over=True, kinds=frozenset(kinds)))

    @contextmanager
    def shaking(self) -> Iterator[None]:
        """Inside something breaks that whoever is under way may notice, until that has recovered."""
        began_s = time.monotonic()
        self.shaken_s.append((began_s, math.inf))
        try:
            yield
        finally:
            self.shaken_s[self.shaken_s.index((began_s, math.inf))] = began_s, time.monotonic() + SHAKEN_S

    def arm(self, point: str, action: Literal["kill", "kill-group", "stop"] = "kill") -> None:
        """Strike the next process that comes by this failpoint."""
        (self.failpoints / f"{point}.struck").unlink(missing_ok=True)
        aside = self.failpoints / f".{point}"
        aside.write_text(action)
        aside.rename(self.failpoints / point)

    def struck(self, point: str) -> Struck:
        """Who was struck there, once somebody was."""
        mark = self.failpoints / f"{point}.struck"
        eventually(mark.exists)
        return Struck(int(mark.read_text()), mark.stat().st_mtime - time.time() + time.monotonic())


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


def world_of(profile: Profile, folder: Path, pace: Pace) -> AbstractContextManager[World]:
    return local_world(folder, pace) if profile == "local" else cluster_world(folder, pace)


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
        failpoints = Path(system.env["FAILPOINTS"])
        with closing(Parking(system, CHANNELS)) as parking:
            yield World(profile, town, alice, bob, accounts, failpoints, parking, backends)
        for name in system.processes:  # nobody needs what they would end in peace
            system.kill(name)
