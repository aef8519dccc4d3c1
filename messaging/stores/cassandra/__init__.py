"""The message store on Cassandra: one concern a module, see docs/adr/0014-cassandra-store.md."""

from messaging.stores.cassandra.store import CassandraStore

__all__ = ["CassandraStore"]
