"""The topics, declared once: adapters create them, `setup_topics` verifies them, the bridge reads them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

MAX_RECORD_BYTES: Final = 1024 * 1024
PARTITIONS: Final = 3
RETENTION: Final = timedelta(days=7)
CLAIM_LIFETIME: Final = timedelta(days=14)  # what is on the log finds its delivery claim, or it could be sent twice
SEGMENT: Final = timedelta(days=1)  # Kafka deletes whole segments, by their newest record
MAX_RETENTION: Final = CLAIM_LIFETIME - 2 * SEGMENT
PARTITION_BYTES: Final = 64 * 1024 * 1024

INBOUND: Final = "inbound"  # key account:contact, value InboundEvent; or account:receipts:…, InboundReceipts
MESSAGES: Final = "messages"  # key conversation id, value Message
STATUS_UPDATES: Final = "status-updates"  # key conversation id, value StatusChange
OUTBOUND_SUFFIX: Final = "-outbound"
DEAD_LETTER_SUFFIX: Final = "-dead-letters"

CORE_TOPICS: Final = (INBOUND, MESSAGES, STATUS_UPDATES)


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    partitions: int = PARTITIONS
    retention: timedelta = RETENTION
    max_bytes: int | None = PARTITION_BYTES  # per partition, None for any; Redis trims by it, never past the watermark
    replicas: int | None = None  # where the log has any; None: as many as it keeps by itself


def outbound(channel: str) -> str:
    """``whatsapp-outbound``: key conversation id, value Outbound."""
    return channel + OUTBOUND_SUFFIX


def dead_letters(topic: str) -> str:
    return topic + DEAD_LETTER_SUFFIX


def channel_of(topic: str) -> str | None:
    """The channel of an outbound topic, None for a core one."""
    return topic.removesuffix(OUTBOUND_SUFFIX) if topic.endswith(OUTBOUND_SUFFIX) else None


def work_topics(channels: tuple[str, ...]) -> tuple[str, ...]:
    """What bridges read."""
    return CORE_TOPICS + tuple(outbound(channel) for channel in channels)


def all_topics(
    channels: tuple[str, ...],
    partitions: int = PARTITIONS,
    max_bytes: int = PARTITION_BYTES,
    retention: timedelta = RETENTION,
) -> tuple[Topic, ...]:
    """Every topic of a system with these channels. Dead letters have one partition, as people read them, and go by age
    alone: nobody has done with them."""
    work = work_topics(channels)
    return (
        *(Topic(name, partitions, retention, max_bytes) for name in work),
        *(Topic(dead_letters(name), 1, retention, max_bytes=None) for name in work),
    )
