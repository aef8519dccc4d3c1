"""Every Prometheus metric of the product in one list. Labels are bounded: topics, channels, codes; never ids."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ACCEPTED = Counter("chat4all_messages_accepted_total", "Messages answered with 202")
PROCESSED = Counter("chat4all_records_processed_total", "Records finished by the bridge", ["topic"])
RETRIES = Counter("chat4all_record_retries_total", "Records held back to be tried again", ["topic", "verdict"])
REDISPATCHES = Counter("chat4all_batches_redispatched_total", "Batches taken back from the workers", ["topic", "state"])
DEAD_LETTERS = Counter("chat4all_dead_letters_total", "Records that went to the dead letters", ["topic", "reason"])
CONSUMER_LAG = Gauge(
    "chat4all_consumer_lag_records",
    "Records behind the end of the log",
    ["topic", "partition"],
    multiprocess_mode="mostrecent",
)
PARTITION_OWNED = Gauge(
    "chat4all_partition_owned",
    "1 where this bridge reads the partition; over all bridges each partition is owned once",
    ["topic", "partition"],
    multiprocess_mode="livesum",
)
BATCH_SECONDS = Histogram(
    "chat4all_batch_seconds",
    "How long a worker takes for a batch",
    ["topic"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BATCH_RECORDS = Histogram("chat4all_batch_records", "Records in a batch", ["topic"], buckets=(1, 2, 5, 10, 20, 50, 100))
DELIVERIES = Counter("chat4all_deliveries_total", "Sends to platforms by how they ended", ["channel", "outcome"])
DELIVERY_SECONDS = Histogram("chat4all_delivery_seconds", "One send to a platform", ["channel"])
AMBIGUOUS = Counter("chat4all_deliveries_ambiguous_total", "Sends that may have been delivered", ["channel"])
INBOUND = Counter("chat4all_inbound_events_total", "Items of webhooks by what they were", ["channel", "kind"])
BREAKER_STATE = Gauge(
    "chat4all_breaker_state",
    "0 closed, 1 half-open, 2 open",
    ["channel", "account"],
    multiprocess_mode="mostrecent",
)
