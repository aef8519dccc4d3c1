"""Make the keyspace and its tables what this code needs: may be run twice, and by two at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import uuid4

from core.clock import SYSTEM_CLOCK
from messaging.errors import StoreUnavailable
from messaging.stores.cassandra import schema
from messaging.stores.cassandra.address import Address
from messaging.stores.cassandra.replication import SELECT_KEYSPACE, Replication, options_of
from messaging.stores.cassandra.session import Conditional, Database, Row, Statement

LOCK_TTL_S: Final = 120  # a run that died holds others up for this long; renewed before each step
STEP_TIMEOUT_S: Final = 60.0  # creating a table waits until all nodes agree on it
POLL_S: Final = 0.5

SELECT_TABLES: Final = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{}'"
INSERT_VERSION: Final = "INSERT INTO ks.schema_migrations (part, version, applied_at_ms) VALUES (?, ?, ?)"
LOCK: Final = f"INSERT INTO ks.schema_lock (part, owner) VALUES (?, ?) IF NOT EXISTS USING TTL {LOCK_TTL_S}"
RENEW: Final = f"UPDATE ks.schema_lock USING TTL {LOCK_TTL_S} SET owner = ? WHERE part = ? IF owner = ?"
UNLOCK: Final = "DELETE FROM ks.schema_lock WHERE part = ? IF owner = ?"
SELECT_OWNER: Final = "SELECT owner AS revision FROM ks.schema_lock WHERE part = ?"

Say = Callable[[str], None]


class SetUpFailed(Exception):
    """What could not be done, and how to mend it."""


class SetUp:
    """One run of ``manage.py setup_keyspace``."""

    def __init__(self, address: Address, *, say: Say, timeout_s: float) -> None:
        self._db = Database(address, timeout_s=5.0)
        self._keyspace = address.keyspace
        self._say = say
        self._until_s = time.monotonic() + timeout_s

    def run(self, replication: Replication) -> list[str]:
        """Create what is missing; what is not as it should be and is left alone (drift). Raises SetUpFailed, also
        where tables are gone that a migration made: made again they would be empty, and nobody would know."""
        try:
            self._wait()
            self._create_keyspace(replication)
            with self._locked() as owner:
                self._migrate(owner)
            self._check_tables()
            return self._drift(replication)
        except StoreUnavailable as error:
            raise SetUpFailed(error.detail) from error
        finally:
            self._db.close()

    def plan(self, replication: Replication) -> list[str]:
        """What `run` would do. Raises SetUpFailed."""
        try:
            self._wait()
            there = self._replication()
            steps = [] if there else [self._keyspace_cql(replication)]
            version = self._version() if there and self._tables() >= {"schema_migrations"} else 0
            if version >= schema.VERSION:
                self._check_tables()
            if not version:
                steps += [self._db.qualified(each) for each in schema.BOOKKEEPING]
            steps += [self._db.qualified(cql) for step in schema.MIGRATIONS[version:] for cql in step]
            drift = self._drift(replication, pending=True) if there else []
            return [*steps, *(f"-- drift, left alone: {each}" for each in drift)]
        except StoreUnavailable as error:
            raise SetUpFailed(error.detail) from error
        finally:
            self._db.close()

    # --- steps -------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until the server answers. That it refuses us is told at once: that does not mend itself."""
        told = ""
        while True:
            try:
                with self._db.call(max(0.1, min(5.0, self._left_s()))) as call:
                    call.execute("SELECT release_version FROM system.local")
            except StoreUnavailable as error:
                if self._left_s() <= 0 or not error.may_pass:
                    raise
                if told != error.detail:
                    told = error.detail
                    self._say(f"waiting: {told}")
                time.sleep(min(POLL_S, max(0.0, self._left_s())))
            else:
                return

    def _create_keyspace(self, replication: Replication) -> None:
        if self._replication() is None:
            self._say(f"creating keyspace {self._keyspace} with {replication.cql()}")
            self._execute(self._keyspace_cql(replication))
        else:
            self._say(f"keyspace {self._keyspace} is there")
        for cql in schema.BOOKKEEPING:
            self._execute(cql)

    def _keyspace_cql(self, replication: Replication) -> str:
        return f"CREATE KEYSPACE IF NOT EXISTS {self._keyspace} WITH replication = {replication.cql()}"

    def _migrate(self, owner: str) -> None:
        version = self._version()
        if version == schema.VERSION:
            self._say(f"schema version {version}: nothing to do")
        for number, step in enumerate(schema.MIGRATIONS[version:], start=version + 1):
            self._say(f"schema version {number}: {len(step)} statements")
            for cql in step:
                self._renew(owner)
                self._execute(cql)
            with self._db.call() as call:
                call.write([Statement(INSERT_VERSION, (schema.PART, number, SYSTEM_CLOCK.now_ms()))])

    def _check_tables(self) -> None:
        if missing := schema.tables() - self._tables():
            names = ", ".join(sorted(missing))
            raise SetUpFailed(f"tables are missing that a migration made: {names}; restore a backup")

    def _drift(self, replication: Replication, *, pending: bool = False) -> list[str]:
        drift = []
        is_ = self._replication()
        if is_ != replication.options():
            drift.append(
                f"replication of {self._keyspace} is {is_}, wanted {replication.options()}: ALTER KEYSPACE, then "
                f"nodetool repair --full {self._keyspace} on each node, is for you to do"
            )
        if pending:
            return drift
        version = self._version()
        if version > schema.VERSION:
            drift.append(f"schema version {version} is newer than this code's {schema.VERSION}")
        return drift

    # --- asking ------------------------------------------------------------------------------------------------------

    def _replication(self) -> dict[str, str] | None:
        rows = self._execute(SELECT_KEYSPACE.format(self._keyspace))
        return options_of(rows[0]) if rows else None

    def _tables(self) -> set[str]:
        return {row["table_name"] for row in self._execute(SELECT_TABLES.format(self._keyspace))}

    def _version(self) -> int:
        with self._db.call() as call:
            row = call.row(schema.SELECT_VERSION, schema.PART)
        return (row or {}).get("version") or 0

    def _execute(self, cql: str) -> list[Row]:
        with self._db.call(STEP_TIMEOUT_S) as call:
            return call.execute(cql)

    def _left_s(self) -> float:
        return self._until_s - time.monotonic()

    # --- one at a time -----------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[str]:
        owner = str(uuid4())
        told = False
        while not self._decided(Statement(LOCK, (schema.PART, owner)), owner):
            if self._left_s() <= 0:
                raise SetUpFailed(f"another run holds the schema lock; a dead one lets go after {LOCK_TTL_S} s")
            if not told:
                told = True
                self._say("waiting: another run is at work on the schema")
            time.sleep(POLL_S)
        try:
            yield owner
        finally:
            self._decided(Statement(UNLOCK, (schema.PART, owner)), None)

    def _renew(self, owner: str) -> None:
        if not self._decided(Statement(RENEW, (owner, schema.PART, owner)), owner):
            raise SetUpFailed("the schema lock was lost to another run; run this again")

    def _decided(self, write: Statement, owner: str | None) -> bool:
        look = Statement(SELECT_OWNER, (schema.PART,))
        with self._db.call() as call:
            return call.conditionally([Conditional(write, look, owner)]) == [True]
