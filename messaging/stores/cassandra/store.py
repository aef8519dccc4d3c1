"""The message store on Cassandra: its concerns put together, and whether it is there."""

from __future__ import annotations

from collections import Counter
from typing import Final

from core.cache import TtlCache
from core.clock import SYSTEM_CLOCK, Clock
from messaging.stores.cassandra import schema
from messaging.stores.cassandra.address import Address
from messaging.stores.cassandra.claims import Deliveries, Keys
from messaging.stores.cassandra.conversations import Conversations
from messaging.stores.cassandra.messages import Messages
from messaging.stores.cassandra.parking import Parking
from messaging.stores.cassandra.people import Contacts, ExternalIds
from messaging.stores.cassandra.replication import SELECT_KEYSPACE, options_of, thin
from messaging.stores.cassandra.session import Database, apart

PING_TIMEOUT_S: Final = 2.0
OWN_CLAIMS: Final = 4_096  # under way in one process
OWN_CLAIMS_S: Final = 120.0
TABLES_KEPT_S: Final = 30.0  # that all are there; that one is not is asked again


class CassandraStore(Conversations, Messages, ExternalIds, Contacts, Keys, Deliveries, Parking):
    """A `MessageStore` in the keyspace that the URL names. One session per process, opened on first use.

    Not all or nothing: a call that fails may have written a part, and repeating it writes the rest.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = Database(Address.parse(url), timeout_s=timeout_s)
        self._clock = clock
        self._own = TtlCache(ttl_s=OWN_CLAIMS_S, size=OWN_CLAIMS, clock=clock)
        self._complete: TtlCache[str, bool] = TtlCache(ttl_s=TABLES_KEPT_S, clock=clock)

    def prune(self, *, limit: int) -> int:  # noqa: ARG002 - keys and claims have a time to live
        return 0

    def ping(self) -> None:
        """On a thread of its own, since looking up a name or opening a session may take longer than a ping."""
        try:
            apart(self._check_schema, name="store-ping").result(PING_TIMEOUT_S)
        except TimeoutError as error:
            raise self._db.unavailable(error) from error

    def _check_schema(self) -> None:
        with self._db.call(PING_TIMEOUT_S) as call:
            row = call.row(schema.SELECT_VERSION, schema.PART)
            if ((row or {}).get("version") or 0) < schema.VERSION:
                raise self._db.missing()
            if self._complete.get(""):
                return
            if missing := call.missing_tables():
                raise self._db.incomplete(missing)
        self._complete.put("", True)

    def thin_replication(self) -> list[str]:
        with self._db.call() as call:
            rows = call.execute(SELECT_KEYSPACE.format(self._db.address.keyspace))
            nodes = Counter(str(host.datacenter) for host in call.cluster.metadata.all_hosts())
        return thin(options_of(rows[0]), nodes) if rows else []

    def close(self) -> None:
        """Calls under way on other threads end as they would have; the next call opens another session."""
        self._db.close()
