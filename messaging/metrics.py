"""Every Prometheus metric of the product in one list, explained in docs/observability.md.

Labels are bounded: topics, channels, our channel accounts, stable codes; never ids of people or messages. Whatever an
alert looks at begins at 0 (`start_at_zero`): the first increment of a series that was not there is invisible to rate().
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from core.metrics import Sampled
from messaging.domain import Status

USERS: Final = "users"  # the channel of who is no contact
OUTCOMES: Final = ("done", "retry", "paused", "poison", "not_started")
SENDS: Final = ("sent", "transient", "permanent", "paused", "ambiguous", "refused")
TAKEN_BACK: Final = ("worker_lost", "lapsed", "gone", "queued", "lost_in_queue")
_FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# API
ACCEPTED = Counter("chat4all_messages_accepted_total", "Messages answered with 202")
APPEND_SECONDS = Histogram("chat4all_append_seconds", "How long the log took to make a message durable", buckets=_FAST)

# bridge
PROCESSED = Counter("chat4all_records_processed_total", "Records by how a pass ended", ["topic", "outcome"])
REDISPATCHES = Counter("chat4all_batches_redispatched_total", "Batches taken back from the workers", ["topic", "state"])
DEAD_LETTERS = Counter("chat4all_dead_letters_total", "Records that went to the dead letters", ["topic"])
PARTITION_OWNED = Gauge(
    "chat4all_partition_owned",
    "1 where this bridge reads the partition; over all bridges each partition is owned once",
    ["topic", "partition"],
    multiprocess_mode="livesum",
)

# workers
BATCH_SECONDS = Histogram("chat4all_batch_seconds", "How long a worker takes for a batch", ["topic"], buckets=_FAST)
BATCH_RECORDS = Histogram("chat4all_batch_records", "Records in a batch", ["topic"], buckets=(1, 2, 5, 10, 20, 50, 100))
STORED = Counter("chat4all_messages_stored_total", "Messages stored, by channel of each recipient", ["channel"])
STORED_SECONDS = Histogram("chat4all_message_stored_seconds", "From 202 to stored and pushed", buckets=_FAST)
STATUSES = Counter("chat4all_statuses_applied_total", "News about recipients that counted", ["channel", "status"])
DELIVERIES = Counter("chat4all_deliveries_total", "Tries to send by how they ended", ["channel", "outcome"])
DELIVERY_SECONDS = Histogram("chat4all_delivery_seconds", "One call of a platform", ["channel"])
AMBIGUOUS = Counter("chat4all_deliveries_ambiguous_total", "Sends that may have been delivered twice", ["channel"])
PARKED = Counter("chat4all_records_parked_total", "Records set aside to be tried later", ["channel"])
RESUMED = Counter("chat4all_records_resumed_total", "Parked records that came to an end", ["channel"])
INBOUND = Counter("chat4all_inbound_events_total", "Items of webhooks by what they were", ["channel", "kind"])

# measured by the bridge and, so that it is seen without one, by the workers that should empty the topic
CONSUMER_LAG = Sampled(
    "chat4all_consumer_lag_records", "Records between committed and the end of the log", ["topic", "partition"]
)
BREAKER_STATE = Sampled("chat4all_breaker_state", "0 closed, 1 half-open, 2 open", ["channel", "account"])


def start_at_zero(topics: Iterable[str], channels: Iterable[str]) -> None:
    """Show what a process is going to count for these before it does."""
    for topic in topics:
        DEAD_LETTERS.labels(topic)
        BATCH_SECONDS.labels(topic)
        BATCH_RECORDS.labels(topic)
        for outcome in OUTCOMES:
            PROCESSED.labels(topic, outcome)
        for state in TAKEN_BACK:
            REDISPATCHES.labels(topic, state)
    for channel in channels:
        for counter in (STORED, AMBIGUOUS, PARKED, RESUMED):
            counter.labels(channel)
        DELIVERY_SECONDS.labels(channel)
        for outcome, status in itertools.product(SENDS, Status):
            DELIVERIES.labels(channel, outcome)
            STATUSES.labels(channel, status.value)
