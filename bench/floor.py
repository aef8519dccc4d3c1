"""The floor: what the same statements and pushes cost a program that is written for nothing else.

One process, one loop: the SQLite statements that storing a message takes, in batches and with the same durability, and
one RPUSH and PUBLISH for the frame. No log, no workers, no leases, no ORM: what the system costs beyond it is the price
of losing nothing.

    python -m bench.floor
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
import uuid
from pathlib import Path
from typing import Final

import redis

from bench.people import TEXT
from core.ids import uuid7
from demo.redis_server import BUS_RULES, RedisServer

CONVERSATIONS: Final = 50
BATCH: Final = 20  # about what the workers get under load
_PRAGMAS: Final = ("journal_mode=WAL", "synchronous=FULL", "cache_size=-16000")
_TABLES: Final = """
CREATE TABLE message (message_id char(32) PRIMARY KEY, conversation_id char(32), workspace_id char(32),
  conversation text, sender_id text, recipients text, audience text, content text, accepted_at_ms bigint);
CREATE INDEX message_history ON message (conversation_id, message_id);
CREATE TABLE status (id integer PRIMARY KEY AUTOINCREMENT, message_id char(32), recipient text, rank smallint,
  status text, at_ms bigint, UNIQUE (message_id, recipient));
CREATE TABLE conversation (conversation_id char(32) PRIMARY KEY, last_activity_ms bigint);
CREATE TABLE membership (id integer PRIMARY KEY AUTOINCREMENT, conversation_id char(32), party text,
  last_activity_ms bigint, UNIQUE (conversation_id, party));
CREATE INDEX membership_recent ON membership (party, last_activity_ms DESC, conversation_id DESC);
"""


def per_s(directory: Path, *, seconds: float) -> tuple[float, float]:
    """Messages a second, and CPU milliseconds each of this process."""
    server = RedisServer(directory / "floor", rules=BUS_RULES).start()
    try:
        with sqlite3.connect(directory / "floor.sqlite3", isolation_level=None) as database:
            return _run(database, redis.Redis.from_url(server.url), seconds=seconds)
    finally:
        server.stop()


def _run(database: sqlite3.Connection, client: redis.Redis, *, seconds: float) -> tuple[float, float]:
    for pragma in _PRAGMAS:
        database.execute(f"PRAGMA {pragma}")
    database.executescript(_TABLES)
    conversations = [uuid.uuid4().hex for _ in range(CONVERSATIONS)]
    database.executemany("INSERT INTO conversation VALUES (?, 0)", [(each,) for each in conversations])
    members = [(each, f"user_{number}{each}") for each in conversations for number in (1, 2)]
    database.executemany("INSERT INTO membership (conversation_id, party, last_activity_ms) VALUES (?, ?, 0)", members)
    count, started_s, cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < started_s + seconds:
        batch = [conversations[(count + number) % CONVERSATIONS] for number in range(BATCH)]
        _store_and_push(database, client, batch)
        count += BATCH
    return count / (time.perf_counter() - started_s), 1000 * (time.process_time() - cpu_s) / count


def _store_and_push(database: sqlite3.Connection, client: redis.Redis, batch: list[str]) -> None:
    now_ms = time.time_ns() // 1_000_000
    new = [(uuid7().hex, conversation_id, f"user_2{conversation_id}") for conversation_id in batch]
    database.execute("BEGIN IMMEDIATE")
    database.executemany(
        "INSERT OR IGNORE INTO message VALUES (?, ?, '', '', '', ?, '[]', ?, ?)",
        [(id_, conversation_id, json.dumps([recipient]), TEXT, now_ms) for id_, conversation_id, recipient in new],
    )
    for table in ("conversation", "membership"):
        database.executemany(
            f"UPDATE {table} SET last_activity_ms = ? WHERE conversation_id = ? AND last_activity_ms < ?",
            [(now_ms, conversation_id, now_ms) for conversation_id in batch],
        )
    database.execute("COMMIT")
    marks = ", ".join("?" * len(new))
    told = f"SELECT message_id, recipient, rank, status, at_ms FROM status WHERE message_id IN ({marks})"
    database.execute(told, [id_ for id_, _, _ in new]).fetchall()
    pipeline = client.pipeline(transaction=False)
    for id_, conversation_id, recipient in new:
        frame = json.dumps({"type": "message", "message": {"message_id": id_, "in": conversation_id, "content": TEXT}})
        pipeline.rpush(f"history:{recipient}", frame)
        pipeline.publish(recipient, frame)
    pipeline.execute()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as name:
        rate, cpu_ms = per_s(Path(name), seconds=5)
        print(f"{rate:,.0f} messages/s, {cpu_ms:.3f} ms of CPU each")


if __name__ == "__main__":
    main()
