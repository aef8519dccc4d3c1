"""Adapters of the EventLog port: Redis Streams for the local profile, Kafka for the cluster, memory for tests."""
