"""The Cassandra store: what it costs beside the bare driver, and what a page costs in conversations of all sizes.

    TEST_CASSANDRA_URL=cassandra://host:port/ python -m bench.store [--messages 1000000] [--seconds 10]

Makes a keyspace of its own and drops it. The bare driver repeats the very statements that the store issued for such
batches, with the same number in flight, taking turns with the store. A million messages take minutes to load.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID, uuid4

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
django.setup(set_prefix=False)

from bench.figures import Figure, Spread  # noqa: E402 - set up above
from bench.fill import id_at_us  # noqa: E402
from bench.people import TEXT  # noqa: E402
from bench.profiles import SERVERS  # noqa: E402
from bench.statements import BareDriver, Recorder, Template  # noqa: E402
from core.ids import uuid7, uuid7_ms  # noqa: E402
from messaging.domain import Conversation, Message, Status, StatusChange  # noqa: E402
from messaging.stores.cassandra import CassandraStore, messages, replication, setup  # noqa: E402
from messaging.stores.cassandra.address import Address  # noqa: E402
from messaging.stores.cassandra.keys import HOUR_MS, PERIOD_HOURS, bucket  # noqa: E402
from messaging.stores.cassandra.session import Database, SamePartition, Statement  # noqa: E402

BATCH = 100  # what a lane takes at most
CONVERSATIONS = 20  # in a batch
PAGE = 50
SIZES = (100, 10_000)
ALICE, BOB = "user_alice", "user_bob"


def a_conversation() -> Conversation:
    return Conversation(uuid4(), uuid4(), "chat", "", (ALICE, BOB), ALICE, uuid7_ms(uuid7()))


def a_message(conversation: Conversation, message_id: UUID | None = None) -> Message:
    message_id = message_id or uuid7()
    return Message(
        message_id=message_id,
        workspace_id=conversation.workspace_id,
        conversation_id=conversation.conversation_id,
        conversation=conversation.public_id,
        sender_id=ALICE,
        recipient_id=None,
        recipients=(BOB,),
        audience=(ALICE, BOB),
        content=TEXT,
        accepted_at_ms=uuid7_ms(message_id),
    )


def news(batch: Sequence[Message], status: Status) -> list[StatusChange]:
    return [
        StatusChange(
            message_id=each.message_id,
            conversation_id=each.conversation_id,
            recipient=BOB,
            status=status,
            at_ms=each.accepted_at_ms + 1000,
        )
        for each in batch
    ]


def work(store: CassandraStore, batch: Sequence[Message]) -> None:
    """All that becomes of a batch: saved, delivered, read."""
    store.save_messages(batch)
    store.apply_statuses(news(batch, Status.DELIVERED))
    store.apply_statuses(news(batch, Status.READ))


def writing(store: CassandraStore, bare: BareDriver, *, seconds: float) -> Iterator[Figure]:
    """Messages a second, each with two receipts: the store, and the bare driver with what the store asked for."""
    conversations = [a_conversation() for _ in range(CONVERSATIONS)]
    for each in conversations:
        store.create_conversation(each)

    def fresh() -> list[Message]:
        return [a_message(conversations[number % CONVERSATIONS]) for number in range(BATCH)]

    work(store, fresh())
    took_s: dict[str, list[float]] = {"store": [], "bare": []}
    cpu_s: dict[str, list[float]] = {"store": [], "bare": []}
    rounds = 0
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s or rounds < 10:
        recorder, batch, recorded = Recorder(), fresh(), fresh()
        with recorder.recording():
            work(store, recorded)
        others = {each.message_id: uuid7() for each in recorded}  # as new to the server as ours
        steps = Template(recorder.steps, others).filled(others)
        turns: list[tuple[str, Callable[[], None]]] = [
            ("store", lambda batch=batch: work(store, batch)),  # type: ignore[misc]
            ("bare", lambda steps=steps: bare.run(steps)),  # type: ignore[misc]
        ]
        for name, turn in turns if rounds % 2 else turns[::-1]:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            turn()
            if rounds >= 2:  # the first ones warm up
                took_s[name].append(time.perf_counter() - began_s)
                cpu_s[name].append(time.process_time() - began_cpu_s)
        rounds += 1
    # Medians: what else the machine does in between must not decide.
    rate = {name: BATCH / statistics.median(each) for name, each in took_s.items()}
    cpu_ms = {name: statistics.median(each) * 1000 / BATCH for name, each in cpu_s.items()}
    of_bare, of_bare_cpu = rate["store"] / rate["bare"], cpu_ms["bare"] / cpu_ms["store"]
    statements = sum(map(len, steps))
    yield Figure(
        f"save, deliver and read, in batches of {BATCH} of {CONVERSATIONS} conversations",
        f"{rate['store']:,.0f} messages/s, {cpu_ms['store']:.2f} ms of CPU each",
        f"{of_bare:.2f} of the bare driver (target 0.7), {of_bare_cpu:.2f} by CPU",
        name="store",
        ratio=of_bare,
    )
    yield Figure(
        f"the bare driver with the same {statements} writes and look-ups a batch",
        f"{rate['bare']:,.0f} messages/s, {cpu_ms['bare']:.2f} ms of CPU each",
    )


def load(database: Database, conversation: Conversation, count: int) -> list[UUID]:
    """As many messages as ``count`` in one bucket, with their statuses: one partition, the worst there can be."""
    now_ms = uuid7_ms(uuid7())
    begin_ms = bucket(uuid7()) * HOUR_MS - PERIOD_HOURS * HOUR_MS  # the period that is over
    assert begin_ms + PERIOD_HOURS * HOUR_MS <= now_ms
    gap_us = PERIOD_HOURS * HOUR_MS * 1000 // (count + 1)
    ids = [id_at_us(begin_ms * 1000 + number * gap_us) for number in range(1, count + 1)]
    with database.call(24 * 3600) as call:
        call.write([Statement(messages.INSERT_BUCKET, (conversation.conversation_id, bucket(ids[0]), 1))])
        for start in range(0, count, 5_000):
            call.write(_rows(conversation, ids[start : start + 5_000]))
    return ids


def _rows(conversation: Conversation, ids: Sequence[UUID]) -> Iterator[SamePartition]:
    for start in range(0, len(ids), BATCH):
        some = [a_message(conversation, each) for each in ids[start : start + BATCH]]
        yield SamePartition([messages._insert(each) for each in some])
        read = news(some, Status.READ)
        yield from messages._mutations(read, read)


def paging(store: CassandraStore, database: Database, sizes: Sequence[int], *, seconds: float) -> Iterator[Figure]:
    """Pages as the API answers them, the newest and one in the middle, of all conversations in turn."""
    loaded: list[tuple[int, Conversation, list[UUID]]] = []
    for size in sizes:
        conversation = a_conversation()
        began_s = time.perf_counter()
        loaded.append((size, conversation, load(database, conversation, size)))
        print(f"loaded {size:,} messages in {time.perf_counter() - began_s:.0f} s", flush=True)
    took_s: dict[tuple[int, str], list[float]] = {}
    until_s = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < until_s or rounds < 40:
        rounds += 1
        for size, conversation, ids in loaded:
            for where, before in (("newest", None), ("in the middle", ids[len(ids) // 2 + PAGE // 2])):
                began_s = time.perf_counter()
                page = store.history(conversation.conversation_id, before=before, limit=PAGE + 1)
                statuses = store.statuses(page[:PAGE])
                if rounds > 10:
                    took_s.setdefault((size, where), []).append(time.perf_counter() - began_s)
                assert len(page) == PAGE + 1
                assert {one.status for each in statuses.values() for one in each} == {Status.READ}
    for (size, where), each in took_s.items():
        yield Figure(f"page of {PAGE} with statuses, {where}, of {size:,} messages", str(Spread.of(each)))


def everything(where: str, *, largest: int, seconds: float) -> Iterator[Figure]:
    """In a keyspace of its own; ``largest``: messages of the largest conversation, ``seconds``: of each measurement."""
    url = f"{where.rstrip('/')}/bench_{uuid4().hex[:8]}"
    setup.SetUp(Address.parse(url), say=print, timeout_s=60).run(replication.Replication({replication.SIMPLE: 1}))
    store, bare = CassandraStore(url, timeout_s=10), BareDriver(Database(Address.parse(url), timeout_s=10))
    try:
        yield from writing(store, bare, seconds=seconds)
        yield from paging(store, bare.database, sorted({*SIZES, largest}), seconds=seconds)
    finally:
        with bare.database.call(120) as call:
            call.execute(f"DROP KEYSPACE {bare.database.address.keyspace}")
        bare.database.close()
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000, help="in the largest conversation (default: 100000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement (default: 10)")
    options = parser.parse_args()
    where = os.environ[SERVERS["cassandra"]]
    for figure in everything(where, largest=options.messages, seconds=options.seconds):
        print(figure, flush=True)


if __name__ == "__main__":
    main()
