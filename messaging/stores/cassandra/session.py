"""Sessions on Cassandra: opened on first use, after a fork anew; each call of the store against one deadline.

The connection is django-cassandra-engine's (credentials, lazy connect, cqlengine's registry), used as an object of our
own and not as an entry of DATABASES: docs/adr/0014-cassandra-store.md says why.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from uuid import UUID

from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    DriverException,
    InvalidRequest,
    RequestValidationException,
    Unauthorized,
)
from cassandra.cluster import EXEC_PROFILE_DEFAULT, ExecutionProfile, NoHostAvailable
from cassandra.connection import ConnectionBusy, ConnectionException
from cassandra.io import libevreactor
from cassandra.io.libevreactor import LibevConnection  # without libev there is no start: the others are slow or gone
from cassandra.policies import ConstantReconnectionPolicy, DCAwareRoundRobinPolicy, TokenAwarePolicy
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import ErrorMessage
from cassandra.query import BatchStatement, BatchType, BoundStatement
from django_cassandra_engine.connection import CassandraConnection

from messaging.errors import StoreRefused, StoreUnavailable
from messaging.stores.cassandra import schema
from messaging.stores.cassandra.address import Address

logger = logging.getLogger(__name__)
logging.getLogger("cassandra").setLevel(logging.ERROR)  # it tells of each try to reconnect; /ready tells of the outage

WINDOW: Final = 128  # statements of one call in flight: bounds memory, and what a slow server is burdened with
BATCH_ROWS: Final = 200  # of one partition: one mutation, far below the 16 MiB that it may have
BATCH_BYTES: Final = 512 * 1024
# Of several partitions with the same replicas: the server warns of more than 10, or of more than 5 KiB.
PACK_PARTITIONS: Final = 10
PACK_BYTES: Final = 4 * 1024
ROWS_SOUGHT: Final = 100  # in one request: those that are named, in each of its partitions (a name may be 256 rows)
LWT_SHARE: Final = 0.6  # of the time that is left: the rest is for looking what became of it
HEARTBEAT_S: Final = 5
SELECT_TABLES: Final = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s"

Row = dict[str, Any]
Values = Sequence[Any]
AWAY: Final = (DriverException, NoHostAvailable, ConnectionException, ConnectionBusy, NoConnectionsAvailable)


@dataclass(frozen=True, slots=True)
class Statement:
    """CQL with its values; ``ks.`` before a table stands for the keyspace."""

    cql: str
    values: Values

    def __iter__(self) -> Iterator[Statement]:
        yield self


@dataclass(frozen=True, slots=True)
class SamePartition:
    """Writes of one partition key: an unlogged batch of these is one mutation, which is applied whole or not at all."""

    statements: Sequence[Statement]

    def __iter__(self) -> Iterator[Statement]:
        return iter(self.statements)


Write = Statement | SamePartition


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT, and the values of each time that it is asked."""

    cql: str
    many: Sequence[Values]


@dataclass(frozen=True, slots=True)
class Lookup:
    """A SELECT of partitions' rows, and the values of each partition: ``WHERE``'s first column, a part of their key, is
    compared by ``IN ?``, and has one value here.

    Partitions with the same replicas that differ in nothing else are asked together. So the rows come in no order, and
    say themselves where they belong. A value that is a list names rows (``AND message_id IN ?``): each partition is
    asked for those of its neighbours as well, so a name must be of one partition only.
    """

    cql: str
    many: Sequence[Values]

    def __post_init__(self) -> None:
        if not is_lookup(self.cql):
            raise ValueError(f"no look-up of partitions: {self.cql}")

    @property
    def of_one(self) -> str:
        """The same, of one partition."""
        return self.cql.replace(" IN ?", " = ?", 1)


def is_lookup(cql: str) -> bool:
    """Whether it is written for a `Lookup`."""
    return re.search(r"^SELECT .* WHERE \w+ IN \?", cql) is not None


@dataclass(frozen=True, slots=True)
class Conditional:
    """A light-weight transaction whose effect can be told afterwards: by the revision that it leaves (None: no row)."""

    write: Statement
    look: Statement  # SELECT revision … of the same row
    leaves: UUID | str | None


@dataclass(frozen=True, slots=True)
class Mutation:
    """Bound statements of one partition, and their size, roughly, in bytes."""

    statements: Sequence[Any]
    size: int


@dataclass(slots=True)
class _Opened:
    """What one process has open. ``users``: calls under way; retired, it is shut down when the last of them ends."""

    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    connection: Future[CassandraConnection] | None = None
    prepared: dict[str, Any] = field(default_factory=dict)
    users: int = 0
    retired: bool = False


class Database:
    """Hands out calls. Connects on the first one; a forked child opens its own and leaves the parent's alone."""

    _names = itertools.count()

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._opened = self._fresh()
        self._inherited: list[_Opened] = []  # kept: to collect them would close the parent's sockets

    @contextmanager
    def call(self, timeout_s: float | None = None) -> Iterator[Call]:
        """One method's work. What the server or the way to it fails at is StoreUnavailable with a remedy."""
        until_s = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        opened = self._enter()
        try:
            connection = self._connected(opened, until_s)
            yield Call(self, opened, connection.session, until_s)
        except AWAY as error:
            if isinstance(error, RequestValidationException) and not isinstance(error, Unauthorized):
                raise  # a value that can never be stored, or our fault: it would fail again
            raise self.unavailable(error) from error
        except ErrorMessage as error:  # overloaded, bootstrapping, a server's own fault
            raise self.unavailable(error) from error
        finally:
            self._leave(opened)

    def close(self) -> None:
        """Calls under way end as they would have; the next one opens a session of its own."""
        opened = self._mine()
        with opened.lock:
            opened.retired = True
            idle = not opened.users
        self._opened = self._fresh()
        if idle:
            _shut_down(opened)

    def unavailable(self, error: Exception) -> StoreUnavailable:
        """What is wrong and how to mend it."""
        causes = list(error.errors.values()) if isinstance(error, NoHostAvailable) else [error]
        first = causes[0] if causes and isinstance(causes[0], Exception) else error
        if any(isinstance(each, AuthenticationFailed | Unauthorized) for each in (*causes, error)):
            return StoreRefused(
                f"Cassandra at {self.address} refuses the user {self.address.user or '(none)'!r}: check the user and "
                f"password in MESSAGE_STORE_URL and what the user may do in keyspace {self.address.keyspace!r}"
            )
        if wrong := next(filter(None, map(_tls_fault, (*causes, error))), ""):
            return StoreRefused(
                f"Cassandra at {self.address} cannot be spoken to over TLS ({wrong}): "
                f"check that it does, and that ca in MESSAGE_STORE_URL names the authority of its certificate"
            )
        return StoreUnavailable(
            f"Cassandra at {self.address} does not answer ({type(first).__name__}): check that it is up and that "
            f"MESSAGE_STORE_URL names its address"
        )

    def missing(self, error: Exception | None = None) -> StoreUnavailable:
        """Server there, tables not."""
        missing = StoreUnavailable(
            f"Cassandra at {self.address} has no keyspace {self.address.keyspace!r} with our tables, or an older one: "
            f"check MESSAGE_STORE_URL, and run: manage.py setup_keyspace"
        )
        missing.__cause__ = error
        return missing

    def incomplete(self, tables: Iterable[str]) -> StoreUnavailable:
        """Made by our migrations, and gone."""
        return StoreUnavailable(
            f"Cassandra at {self.address} lost tables of keyspace {self.address.keyspace!r} "
            f"({', '.join(sorted(tables))}): restore them from a backup, or check MESSAGE_STORE_URL"
        )

    def qualified(self, cql: str) -> str:
        return cql.replace("ks.", f"{self.address.keyspace}.")

    # --- connecting --------------------------------------------------------------------------------------------------

    def _mine(self) -> _Opened:
        if self._opened.pid != os.getpid():
            self._inherited.append(self._opened)
            self._opened = self._fresh()
        return self._opened

    def _fresh(self) -> _Opened:
        """Shut down with its owner, at the latest when the process ends."""
        opened = _Opened()
        weakref.finalize(self, _shut_down, opened)
        return opened

    def _enter(self) -> _Opened:
        while True:
            opened = self._mine()
            with opened.lock:
                if not opened.retired:
                    opened.users += 1
                    return opened

    def _leave(self, opened: _Opened) -> None:
        with opened.lock:
            opened.users -= 1
            over = opened.retired and not opened.users
        if over:
            _shut_down(opened)

    def _connected(self, opened: _Opened, until_s: float) -> CassandraConnection:
        """One thread connects, all wait for it; no longer than they may. A failure is told once and tried anew."""
        with opened.lock:
            if opened.connection is None:
                opened.connection = Future()
                threading.Thread(
                    target=self._connect, args=(opened.connection,), name="cassandra-connect", daemon=True
                ).start()
            connecting = opened.connection
        try:
            return connecting.result(max(0.0, until_s - time.monotonic()))
        except TimeoutError as error:
            raise self.unavailable(error) from error
        except Exception:
            with opened.lock:
                if opened.connection is connecting:
                    opened.connection = None
            raise

    def _connect(self, answer: Future[CassandraConnection]) -> None:
        connection = None
        try:
            connection = CassandraConnection(f"chat4all-{os.getpid()}-{next(self._names)}", **self._engine_settings())
            assert connection.session is not None  # noqa: S101 - opened here, by looking at it
        except BaseException as error:  # raised where the answer is awaited
            if connection is not None:
                _unregister(connection)  # else the engine hands out what it failed to open
            answer.set_exception(error)
        else:
            answer.set_result(connection)

    def _engine_settings(self) -> dict[str, Any]:
        """As an entry of DATABASES has them."""
        address = self.address
        nearby = TokenAwarePolicy(DCAwareRoundRobinPolicy(local_dc=address.local_dc))
        return {
            "HOST": ",".join(address.hosts),
            "NAME": address.keyspace,
            "USER": address.user,
            "PASSWORD": address.password,
            "OPTIONS": {
                "connection": {
                    "lazy_connect": True,
                    "port": address.port,
                    "connection_class": LibevConnection,
                    "compression": False,  # of some hundred bytes: it costs more than it saves
                    "ssl_context": _tls(address) if address.tls else None,
                    "connect_timeout": self._timeout_s,
                    "control_connection_timeout": self._timeout_s,
                    # Back within a second of the server, not after the default's up to ten minutes.
                    "reconnection_policy": ConstantReconnectionPolicy(1.0, None),
                    "idle_heartbeat_interval": HEARTBEAT_S,
                    "idle_heartbeat_timeout": HEARTBEAT_S,
                    "execution_profiles": {
                        EXEC_PROFILE_DEFAULT: ExecutionProfile(
                            load_balancing_policy=nearby,
                            # With one replica this is that one, with three it is two: right for every replication.
                            consistency_level=ConsistencyLevel.LOCAL_QUORUM,
                            serial_consistency_level=ConsistencyLevel.LOCAL_SERIAL,
                            request_timeout=self._timeout_s,
                        )
                    },
                }
            },
        }


_inherited_loops: Final[list[object]] = []  # kept, as what they hold is the parent's


def _forget_parents_loop() -> None:
    """In a child: the driver would close what it inherits, under locks that threads of the parent may have held."""
    _inherited_loops.append(libevreactor._global_loop)
    libevreactor._global_loop = None


os.register_at_fork(after_in_child=_forget_parents_loop)


def _tls_fault(error: object) -> str:
    """What is wrong with TLS, if that is what failed. The driver keeps no more of it than the text."""
    found = re.search(r"\[SSL: (\w+)\]", str(error)) if isinstance(error, OSError) else None
    return found[1] if found else ""


def _tls(address: Address) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=address.ca or None)
    context.check_hostname = address.names_verified
    return context


class Call:
    """What one method of the store does, until its deadline."""

    def __init__(self, database: Database, opened: _Opened, session: Any, until_s: float) -> None:
        self._database = database
        self._opened = opened
        self._session = session
        self._until_s = until_s

    def rows(self, cql: str, *values: Any) -> list[Row]:
        return self.each(cql, [values])[0]

    def row(self, cql: str, *values: Any) -> Row | None:
        return next(iter(self.rows(cql, *values)), None)

    def each(self, cql: str, many: Iterable[Values]) -> list[list[Row]]:
        """The rows for each, in the order given, asked for at once."""
        [found] = self.at_once([Query(cql, list(many))])
        return found

    def found(self, cql: str, many: Iterable[Values]) -> list[Row]:
        """The rows of a `Lookup`."""
        [found] = self.at_once([Lookup(cql, list(many))])
        return [row for rows in found for row in rows]

    def write(self, writes: Iterable[Write]) -> None:
        """All of these, at once and in no order. Those whose partitions have the same replicas travel together."""
        self.at_once([], writes)

    def at_once(self, queries: Sequence[Query | Lookup], writes: Iterable[Write] = ()) -> list[list[list[Row]]]:
        """As `each` for every query, `found` for every lookup (some rows at a time) and `write`, under way together and
        in no order: one wait for all of them."""
        asked = [list(self._asked(query)) for query in queries]
        sent = packed((bound for write in writes for bound in self._mutations(write)), self._replicas)
        results = iter(self._run(itertools.chain(*asked, sent)))
        return [[self._all(each, next(results)) for each in some] for some in asked]

    def conditionally(self, writes: Sequence[Conditional]) -> list[bool | None]:
        """Which of these took effect; None: no answer came and it has not, but it may yet.

        Raises StoreUnavailable when there is nothing to be learned of one: repeat the call.
        """
        for cql in {each.look.cql for each in writes}:
            self._prepared(cql)  # while the server answers: when it is needed it may not
        bound = [self._prepared(each.write.cql).bind(each.write.values) for each in writes]
        return [
            self._told(write, outcome)
            for write, outcome in zip(writes, self._outcomes(bound, share=LWT_SHARE), strict=True)
        ]

    def _told(self, write: Conditional, outcome: Any) -> bool | None:
        if not isinstance(outcome, Exception):
            # Refused, it may stand already: the driver sends it again where a connection or a node breaks under it.
            return bool(outcome.was_applied) or _standing(outcome.one()) == write.leaves
        if isinstance(outcome, InvalidRequest):
            self._check_tables(outcome)
        if isinstance(outcome, RequestValidationException):
            raise outcome
        # A time-out says nothing about a transaction. A serial read ends what is unfinished and tells.
        look = self._prepared(write.look.cql).bind(write.look.values)
        look.consistency_level = ConsistencyLevel.LOCAL_SERIAL
        [result] = self._run([look])
        found = next(iter(result), None)
        return (_standing(found) if found else None) == write.leaves or None

    def execute(self, cql: str) -> list[Row]:
        """Unprepared: for a schema."""
        return list(self._session.execute(self._database.qualified(cql), timeout=self._left_s()))

    def missing_tables(self) -> set[str]:
        found = self._session.execute(SELECT_TABLES, (self._database.address.keyspace,), timeout=self._left_s())
        return schema.tables() - {row["table_name"] for row in found}

    @property
    def cluster(self) -> Any:
        return self._session.cluster

    # --- inside ------------------------------------------------------------------------------------------------------

    def _mutations(self, write: Write) -> Iterator[Mutation]:
        """What is applied whole or not at all."""
        return bounded(self._prepared(each.cql).bind(each.values) for each in write)

    def _asked(self, query: Query | Lookup) -> Iterator[Any]:
        """What is sent."""
        if isinstance(query, Query):
            yield from (self._prepared(query.cql).bind(values) for values in query.many)
            return
        if not query.many:
            return
        alone = self._prepared(query.of_one)
        asked = [(values, alone.bind(values)) for values in query.many]
        for pack in gathered(asked, self._replicas) if len(asked) > 1 else [asked]:
            [(values, first), *others] = pack
            if not others:
                yield first
                continue
            together = _Together(self._prepared(query.cql), routing_key=first.routing_key, fetch_size=None)
            together.bind(_united(values, [each for each, _ in pack]))
            yield together

    def _replicas(self, statement: Any) -> Hashable:
        nodes = self.cluster.metadata.get_replicas(self._database.address.keyspace, statement.routing_key)
        return frozenset(node.host_id for node in nodes)

    def _prepared(self, cql: str) -> Any:
        """On a thread of its own: the driver asks each node in turn, and waits for each as long as for a whole call."""
        if cql not in self._opened.prepared:
            try:
                apart(partial(self._prepare, cql), name="cassandra-prepare").result(self._left_s())
            except InvalidRequest as error:
                raise self._database.missing(error) from error
            except TimeoutError as error:
                raise self._database.unavailable(error) from error
        return self._opened.prepared[cql]

    def _prepare(self, cql: str) -> None:
        self._opened.prepared[cql] = self._session.prepare(self._database.qualified(cql))

    def _run(self, statements: Iterable[Any]) -> list[Any]:
        """Results in the order given, up to WINDOW under way. Raises the first failure; the others may have landed."""
        flight: deque[Any] = deque()
        results = []
        try:
            for statement in statements:
                if len(flight) >= WINDOW:
                    results.append(flight.popleft().result())
                flight.append(self._session.execute_async(statement, timeout=self._left_s()))
            return results + [future.result() for future in flight]
        except InvalidRequest as error:
            self._check_tables(error)
            raise

    def _all(self, asked: Any, result: Any) -> list[Row]:
        """A long answer comes in pages; the driver itself would ask for the second one and on without any time-out."""
        rows = list(result.current_rows)
        while result.has_more_pages:
            further = self._session.execute_async(asked, timeout=self._left_s(), paging_state=result.paging_state)
            result = further.result()
            rows += result.current_rows
        return rows

    def _check_tables(self, error: InvalidRequest) -> None:
        """Raises StoreUnavailable when it is no value that was refused: a table is gone that was there before."""
        if self.missing_tables():
            raise self._database.missing(error) from error

    def _outcomes(self, statements: Sequence[Any], *, share: float) -> list[Any]:
        """Results, or the errors in their places."""
        outcomes: list[Any] = []
        for start in range(0, len(statements), WINDOW):
            flight = [
                self._session.execute_async(each, timeout=self._left_s() * share)
                for each in statements[start : start + WINDOW]
            ]
            for future in flight:
                try:
                    outcomes.append(future.result())
                except (*AWAY, ErrorMessage) as error:
                    outcomes.append(error)
        return outcomes

    def _left_s(self) -> float:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise self._database.unavailable(TimeoutError())
        return left_s


def _standing(refusal: Row) -> UUID | str | None:
    """The revision for which a transaction was refused (the schema's lock has its owner for one), None: no row."""
    standing: UUID | str | None = refusal.get("revision", refusal.get("owner"))
    return standing


def packed(mutations: Iterable[Mutation], replicas: Callable[[Any], Hashable]) -> Iterator[Any]:
    """What is sent for these: small ones of the same ``replicas`` in one unlogged batch, a large one by itself.

    A request costs a server and a driver more than a small row does. Who coordinates such a batch is a node that has
    all of it, as for each row by itself; a batch of just any partitions would burden one node with rows of others.
    DataStax's Spark connector groups the same way (its BatchGroupingKey.ReplicaSet).
    """
    open_: dict[Hashable, _Pack] = {}
    for each in mutations:
        if each.size > PACK_BYTES:
            yield _together([each])
            continue
        pack = open_.setdefault(where := replicas(each.statements[0]), _Pack())
        if len(pack.mutations) == PACK_PARTITIONS or pack.size + each.size > PACK_BYTES:
            yield _together(pack.mutations)
            pack = open_[where] = _Pack()
        pack.mutations.append(each)
        pack.size += each.size
    yield from (_together(pack.mutations) for pack in open_.values())


Asked = tuple[Values, Any]  # of a partition, and its statement


def gathered(asked: Iterable[Asked], replicas: Callable[[Any], Hashable]) -> Iterator[list[Asked]]:
    """What goes into one request each: those of the same ``replicas`` that differ in their partition and rows alone."""
    open_: dict[Hashable, list[Asked]] = {}
    for each in asked:
        values, statement = each
        where = replicas(statement), *(value for value in values[1:] if not isinstance(value, list))
        pack = open_.setdefault(where, [])
        if pack and not _fits([*pack, each]):
            yield pack
            pack = open_[where] = []
        pack.append(each)
    yield from open_.values()


def _fits(pack: Sequence[Asked]) -> bool:
    rows = sum(len(value) for values, _ in pack for value in values if isinstance(value, list))
    return len(pack) <= PACK_PARTITIONS and len(pack) * rows <= ROWS_SOUGHT


def _united(values: Values, many: Sequence[Values]) -> list[Any]:
    """Values for all of these, of which ``values`` are the first."""
    return [
        [each[place] for each in many]
        if place == 0
        else [row for each in many for row in each[place]]
        if isinstance(value, list)
        else value
        for place, value in enumerate(values)
    ]


class _Together(BoundStatement):  # type: ignore[misc] # the driver has no types
    """With a key to find its nodes by: of what asks for several partitions the driver knows none.

    To be sent without a size of pages: with one, a server reads the partitions one after the other
    (`MultiPartitionPager`), and else all at once.
    """

    @property
    def routing_key(self) -> Any:
        return self._routing_key


@dataclass(slots=True)
class _Pack:
    mutations: list[Mutation] = field(default_factory=list)
    size: int = 0


def _together(mutations: Sequence[Mutation]) -> Any:
    statements = [statement for each in mutations for statement in each.statements]
    if len(statements) == 1:
        return statements[0]
    batch = BatchStatement(BatchType.UNLOGGED)
    for statement in statements:
        batch.add(statement)
    return batch


def bounded(statements: Iterable[Any]) -> Iterator[Mutation]:
    """Bound writes of one partition in as few mutations as they may be."""
    some: list[Any] = []
    size = 0
    for each in statements:
        more = size_of(each)
        if some and (len(some) >= BATCH_ROWS or size + more > BATCH_BYTES):
            yield Mutation(some, size)
            some, size = [], 0
        some.append(each)
        size += more
    if some:
        yield Mutation(some, size)


def size_of(statement: Any) -> int:
    """Of what a bound statement writes, in bytes: the values, and about what a row and its cells need besides."""
    values = statement.values
    return 60 + 12 * len(values) + sum([len(each) for each in values if each.__class__ is bytes])


def apart(work: Callable[[], None], *, name: str) -> Future[None]:
    """Do it on a thread that nobody has to wait for."""
    answer: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised where the answer is awaited
            answer.set_exception(error)
        else:
            answer.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer


def _shut_down(opened: _Opened) -> None:
    """A connection that is still being opened goes when it is there."""
    if opened.connection is not None and opened.pid == os.getpid():
        opened.connection.add_done_callback(_shut_down_when_open)


def _shut_down_when_open(connecting: Future[CassandraConnection]) -> None:
    if connecting.exception() is None:
        _unregister(connecting.result())


def _unregister(connection: CassandraConnection) -> None:
    try:
        connection.unregister()
    except Exception:  # it goes in any case
        logger.warning("a Cassandra session did not close cleanly", exc_info=True)
