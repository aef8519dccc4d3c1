"""Adapters of the EventLog port: Redis Streams for the local profile, memory for tests."""
