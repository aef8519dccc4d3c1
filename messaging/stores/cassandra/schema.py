"""The tables, as numbered steps that are each applied once. A step that was released is never changed: add another.

No counters, no secondary indexes; every query names its partition.

Compaction. TWCS where rows are written once around their own time: the write times come from message ids, so a window
holds the messages of that time even after a replay, old windows are never rewritten, and what has a TTL is dropped as
whole files. STCS where rows are found by a random key or written again for years: their age says nothing about them.
"""

from __future__ import annotations

from typing import Final

_BY_TIME: Final = (
    "compaction = {{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': '{unit}', "
    "'compaction_window_size': {size}}}"
)
_TEN_DAYS: Final = _BY_TIME.format(unit="DAYS", size=10)  # a bucket's length: a page of history meets one or two files
_ONE_DAY: Final = _BY_TIME.format(unit="DAYS", size=1)
_BY_SIZE: Final = "compaction = {'class': 'SizeTieredCompactionStrategy'}"
# Rows that come and go within minutes: their tombstones are swept early. Nothing breaks when a row comes back from a
# replica that missed a delete: an index entry counts only where the scope names it, a parked record has its claim.
_SHORT_LIVED: Final = (
    "compaction = {'class': 'SizeTieredCompactionStrategy', 'tombstone_compaction_interval': '600', "
    "'unchecked_tombstone_compaction': 'true'} AND gc_grace_seconds = 600 AND memtable_flush_period_in_ms = 600000"
)
KEY_TTL_S: Final = 25 * 3600  # an Idempotency-Key counts for 24 h by its own time, this only sweeps
CLAIM_TTL_S: Final = 14 * 24 * 3600  # topics.CLAIM_LIFETIME

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        # A conversation is one row, so that who creates it first decides about all of it at once; members are kept in
        # the order in which they joined. Written by light-weight transactions only.
        f"""CREATE TABLE IF NOT EXISTS ks.conversations (
            conversation_id uuid PRIMARY KEY, workspace_id uuid, public_id text, title text, members frozen<list<text>>,
            created_by text, created_at_ms bigint, revision uuid
        ) WITH {_BY_SIZE}""",
        # The newest message's time (or creation), USING TIMESTAMP of itself: the largest stands, however they arrive.
        f"""CREATE TABLE IF NOT EXISTS ks.conversation_activity (
            conversation_id uuid PRIMARY KEY, last_activity_ms bigint
        ) WITH {_BY_SIZE}""",
        # A person's conversations by day of activity: an entry counts when it is that conversation's last activity.
        # Entries are never moved or deleted; a day's slice is what is sorted at once.
        f"""CREATE TABLE IF NOT EXISTS ks.party_activity (
            party text, workspace_id uuid, day int, conversation_id uuid, last_activity_ms bigint,
            PRIMARY KEY ((party, workspace_id), day, conversation_id)
        ) WITH CLUSTERING ORDER BY (day DESC, conversation_id DESC) AND {_BY_SIZE}""",
        # bucket: the hour (since the epoch) in which the message's period begins, see `keys.bucket`.
        f"""CREATE TABLE IF NOT EXISTS ks.messages (
            conversation_id uuid, bucket int, message_id uuid, workspace_id uuid, conversation text, sender_id text,
            recipient_id text, recipients frozen<list<text>>, audience frozen<list<text>>, content text, file_id text,
            reply_to uuid, accepted_at_ms bigint, account_id text, external_id text,
            PRIMARY KEY ((conversation_id, bucket), message_id)
        ) WITH CLUSTERING ORDER BY (message_id DESC) AND {_TEN_DAYS}""",
        # Which buckets there are, so that sparse histories are not searched.
        f"""CREATE TABLE IF NOT EXISTS ks.conversation_buckets (
            conversation_id uuid, bucket int, PRIMARY KEY (conversation_id, bucket)
        ) WITH CLUSTERING ORDER BY (bucket DESC) AND {_BY_SIZE}""",
        f"""CREATE TABLE IF NOT EXISTS ks.message_places (
            message_id uuid PRIMARY KEY, conversation_id uuid
        ) WITH {_BY_SIZE}""",
        # One cell, written USING TIMESTAMP id_us + rank: of all writes the highest rank stands. One write with the
        # plain clock would beat them all for ever. At equal rank Cassandra keeps the greater bytes: hence minus_at_ms,
        # by which the earlier report stands. By day, so that a large group's receipts do not pile up in one partition.
        f"""CREATE TABLE IF NOT EXISTS ks.message_statuses (
            conversation_id uuid, day int, message_id uuid, recipient text,
            standing frozen<tuple<int, bigint, text, text>>,
            PRIMARY KEY ((conversation_id, day), message_id, recipient)
        ) WITH {_ONE_DAY}""",
        # What makes news equal is the key (`StatusChange.event_id`); of two writers at once the earlier report stands.
        f"""CREATE TABLE IF NOT EXISTS ks.status_transitions (
            conversation_id uuid, day int, message_id uuid, recipient text, rank int, note text, status text,
            attempt int, at_ms bigint, reason text, external_id text,
            PRIMARY KEY ((conversation_id, day), message_id, recipient, rank, note)
        ) WITH {_ONE_DAY}""",
        # What a platform's id means: the first says it, by a light-weight transaction.
        f"""CREATE TABLE IF NOT EXISTS ks.external_ids (
            channel text, account_id text, external_id text, message_id uuid, conversation_id uuid, party text,
            revision uuid, PRIMARY KEY ((channel, account_id, external_id))
        ) WITH {_BY_SIZE}""",
        # heard: (last_message_id, conversation_id) as one cell, USING TIMESTAMP of the message.
        f"""CREATE TABLE IF NOT EXISTS ks.contacts (
            workspace_id uuid, channel text, account_id text, shard int, address text,
            heard frozen<tuple<uuid, uuid>>, name text, handle text,
            PRIMARY KEY ((workspace_id, channel, account_id, shard), address)
        ) WITH {_BY_SIZE}""",
        # Everybody who ever had the handle; whose it is now their contact tells.
        f"""CREATE TABLE IF NOT EXISTS ks.contact_handles (
            workspace_id uuid, channel text, account_id text, handle text, address text,
            PRIMARY KEY ((workspace_id, channel, account_id, handle), address)
        ) WITH {_BY_SIZE}""",
        # Light-weight transactions only, from here to parked_scopes. `revision` is new with each write.
        f"""CREATE TABLE IF NOT EXISTS ks.idempotency_keys (
            workspace_id uuid, sender_id text, key text, body_hash text, message_id uuid, accepted_at_ms bigint,
            lease_until_ms bigint, is_settled boolean, revision uuid,
            PRIMARY KEY ((workspace_id, sender_id, key))
        ) WITH {_BY_TIME.format(unit="HOURS", size=3)} AND default_time_to_live = {KEY_TTL_S}""",
        f"""CREATE TABLE IF NOT EXISTS ks.delivery_claims (
            message_id uuid, recipient text, attempt int, stage text, owner text, since_ms bigint,
            lease_until_ms bigint, external_id text, reason text, revision uuid,
            PRIMARY KEY ((message_id, recipient, attempt))
        ) WITH {_ONE_DAY} AND default_time_to_live = {CLAIM_TTL_S}""",
        f"""CREATE TABLE IF NOT EXISTS ks.parked_scopes (
            topic text, conversation_id uuid, due_at_ms bigint, opened uuid, entry uuid, entered_us bigint,
            revision uuid, PRIMARY KEY ((topic, conversation_id))
        ) WITH {_BY_SIZE} AND gc_grace_seconds = 86400""",
        # By due time: an entry is written once and deleted once, and counts where its scope names it.
        f"""CREATE TABLE IF NOT EXISTS ks.parked_due (
            topic text, shard int, due_at_ms bigint, opened uuid, entry uuid, conversation_id uuid, entered_us bigint,
            PRIMARY KEY ((topic, shard), due_at_ms, opened, entry)
        ) WITH {_SHORT_LIVED}""",
        f"""CREATE TABLE IF NOT EXISTS ks.parked_records (
            topic text, conversation_id uuid, source_topic text, partition int, offset bigint, value blob,
            parked_at_ms bigint, attempts int,
            PRIMARY KEY ((topic, conversation_id), source_topic, partition, offset)
        ) WITH {_BY_SIZE} AND gc_grace_seconds = 86400""",
    ),
    # Which attempt the platform took; rows from before have none: the first.
    ("ALTER TABLE ks.external_ids ADD IF NOT EXISTS attempt int",),
    ("ALTER TABLE ks.parked_records ADD IF NOT EXISTS request_id text",),
)
VERSION: Final = len(MIGRATIONS)

BOOKKEEPING: Final = (
    "CREATE TABLE IF NOT EXISTS ks.schema_migrations (part text, version int, applied_at_ms bigint, "
    "PRIMARY KEY (part, version))",
    "CREATE TABLE IF NOT EXISTS ks.schema_lock (part text PRIMARY KEY, owner text)",
)
PART: Final = "message store"
SELECT_VERSION: Final = "SELECT max(version) AS version FROM ks.schema_migrations WHERE part = ?"


def tables() -> set[str]:
    """Every table that the migrations make."""
    return {cql.split("ks.", 1)[1].split()[0] for step in MIGRATIONS for cql in step if cql.startswith("CREATE TABLE")}
