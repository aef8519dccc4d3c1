"""Stores so many messages at once in conversations that exist, spread over the last month.

    python -m bench.fill COUNT [--bulk] [--settle] < conversations

With the environment of a system; each line has a conversation as its client named it, its sender and its recipient.
Through the store's port; or on Cassandra in bulk: the same rows by the same statements, without a look at what is there
and at members' lists, ten times as many at once, and nothing is compacted before all of it is there. Then a sample of
them is read through the port, and compared.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Final
from uuid import UUID

import django
from django.conf import settings

from bench.people import TEXT
from core.ids import derived_id, uuid7, uuid7_ms
from messaging.domain import Message
from messaging.errors import StoreUnavailable
from messaging.ports import MessageStore
from messaging.stores.cassandra import messages
from messaging.stores.cassandra.address import Address
from messaging.stores.cassandra.session import Database

BATCH: Final = 100  # of one conversation
AT_ONCE: Final = 4  # batches
TOLD_EVERY: Final = 100_000
TRIES: Final = 5
SETTLE_S: Final = 1_800.0
QUIET_S: Final = 75.0
SELECT_TABLES: Final = "SELECT table_name, compaction FROM system_schema.tables WHERE keyspace_name = '{}'"
SELECT_TASKS: Final = "SELECT keyspace_name, table_name, kind FROM system_views.sstable_tasks"
SAMPLE: Final = 1_000  # of those that are compared
MONTH_US: Final = 30 * 24 * 3600 * 1_000_000


def id_at_us(us: int) -> UUID:
    """As if it had been minted then."""
    ms, rest_us = divmod(us, 1000)
    return UUID(int=ms << 80 | 0x7 << 76 | (rest_us * 4096 // 1000) << 64 | uuid7().int & ((1 << 64) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, metavar="COUNT", help="messages")
    parser.add_argument("--bulk", action="store_true", help="into Cassandra past the store's port")
    parser.add_argument("--settle", action="store_true", help="then wait until Cassandra has no more to compact")
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
    django.setup(set_prefix=False)
    from accounts.models import DEFAULT_WORKSPACE_ID  # noqa: PLC0415 - models need the set-up
    from messaging import wiring  # noqa: PLC0415

    count, talks = options.count, [line.split() for line in sys.stdin]
    store = wiring.message_store()
    save: Callable[[Sequence[Message]], object] = store.save_messages
    database = Database(Address.parse(settings.MESSAGE_STORE_URL), timeout_s=60) if options.bulk else None
    if database:
        save = partial(_bulk, database)
    size = BATCH * (10 if options.bulk else 1)
    first_us = time.time_ns() // 1000 - MONTH_US
    sample: list[Message] = []

    def batch(start: int) -> None:
        conversation, sender, recipient = talks[start // size % len(talks)]
        numbers = range(start, min(start + size, count))
        ids = [id_at_us(first_us + MONTH_US * number // (count + 1)) for number in numbers]
        some = [
            Message(
                message_id=each,
                workspace_id=DEFAULT_WORKSPACE_ID,
                conversation_id=derived_id(DEFAULT_WORKSPACE_ID, conversation),
                conversation=conversation,
                sender_id=sender,
                recipient_id=None,
                recipients=(recipient,),
                audience=(sender, recipient),
                content=TEXT,
                accepted_at_ms=uuid7_ms(each),
            )
            for each in ids
        ]
        save(some)
        sample.append(random.choice(some))

    with _uncompacted(database) if database and count else nullcontext(), ThreadPoolExecutor(AT_ONCE) as pool:
        for done, _ in enumerate(pool.map(batch, range(0, count, size)), start=1):
            if done * size % TOLD_EVERY == 0:
                print(f"stored {done * size:,} of {count:,}", flush=True)
    if database and options.settle:
        _settle(database)
    compared = random.sample(sample, min(len(sample), SAMPLE))
    for start in range(0, len(compared), BATCH):
        _compare(store, compared[start : start + BATCH])
    if database:
        database.close()
    store.close()


@contextmanager
def _uncompacted(database: Database) -> Iterator[None]:
    """Compaction begins behind this: while it runs beside the writes it takes half of what Cassandra has, and writes
    again what it wrote a minute ago."""
    keyspace = database.address.keyspace
    with database.call() as call:
        tables = {row["table_name"]: row["compaction"] for row in call.execute(SELECT_TABLES.format(keyspace))}
    try:
        for name, compaction in tables.items():
            _alter(database, name, compaction, enabled="false")
        yield
    finally:
        for name, compaction in tables.items():
            _alter(database, name, compaction, enabled="true")


def _alter(database: Database, table: str, compaction: Mapping[str, str], *, enabled: str) -> None:
    literal = ", ".join(f"'{key}': '{value}'" for key, value in {**compaction, "enabled": enabled}.items())
    with database.call() as call:
        call.execute(f"ALTER TABLE ks.{table} WITH compaction = {{{literal}}}")


def _settle(database: Database) -> None:
    """Or for long enough: what is under way costs whatever is measured next. Cassandra looks for it once a minute."""
    until_s = time.monotonic() + SETTLE_S
    quiet_s = time.monotonic()
    while time.monotonic() < min(until_s, quiet_s + QUIET_S):
        with database.call() as call:
            if call.rows(SELECT_TASKS):
                quiet_s = time.monotonic()
        time.sleep(1)


def _bulk(database: Database, some: Sequence[Message]) -> None:
    """Tried again while Cassandra does not answer in time: it has more to do than it can, and the same is written."""
    for left in reversed(range(TRIES)):
        try:
            with database.call() as call:
                call.write([*messages.around(some), *messages.rows_of(some)])
        except StoreUnavailable:
            if not left:
                raise
        else:
            return


def _compare(store: MessageStore, some: Sequence[Message]) -> None:
    """Raises RuntimeError where one is not there as it was meant."""
    found = store.messages([each.message_id for each in some])
    for each in some:
        last = store.history(each.conversation_id, before=UUID(int=each.message_id.int + 1), limit=1)
        if found.get(each.message_id) != each or last != [each]:
            raise RuntimeError(f"{each.message_id} is not stored as it was meant")


if __name__ == "__main__":
    main()
