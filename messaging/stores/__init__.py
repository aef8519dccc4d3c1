"""Adapters of the MessageStore port: the ORM for SQLite and PostgreSQL, Cassandra for the cluster."""
