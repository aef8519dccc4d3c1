"""Records that nobody can read, or that kill whoever works on them: set apart, while their neighbours go on."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from confluent_kafka import Producer

from demo.supervisor import ROOT
from messaging import topics
from messaging.bridge import BridgeLimits
from messaging.bridge.core import MAX_CRASHES
from messaging.eventlog.kafka_link import KafkaUrl
from messaging.eventlog.kafka_producer import MAX_MESSAGE_BYTES
from messaging.ports import NewRecord, Record, TopicPartition
from messaging.topics import MAX_RECORD_BYTES
from tests.faults.checker import Report
from tests.faults.collect import CHANNELS, GROUP, sources
from tests.faults.history import History
from tests.faults.kinds.aftermath import NOWHERE
from tests.faults.kinds.combined import one_by_one
from tests.faults.kinds.onlookers import Log, all_arrive
from tests.faults.kinds.processes import names_of
from tests.faults.kinds.servers import ACCOUNTS_AND_FILES, accounts_and_files_away
from tests.faults.patience import eventually
from tests.faults.rounds import Fault
from tests.faults.world import CLUSTER, LOCAL, Pace, World

KIND: Final = "killer"
WORKS: Final = topics.work_topics(CHANNELS)
MOST: Final = BridgeLimits().dead_letters_per_minute
Place = tuple[TopicPartition, int]


def poison(world: World, _pace: Pace) -> None:
    """On every topic bytes that are no record, a record of a version to come, and the largest that the log takes; one
    larger where another producer can write it; and a message that kills each worker that touches it."""
    load, log = world.load, world.town.log
    line = next(each for each in load.lines if each.kind == "user")
    killer = f"{line.conversation} kills its worker"
    ends = {each: log.end_offset(each) for each in _graves()}
    keys = _busy_keys(world)
    with core_workers_that_die_of(world, killer):
        records = [_record(topic, keys, value) for topic in WORKS for value in _unreadable()]
        written = dict(zip(log.append(records), records, strict=True))
        load.write(line.conversation, [killer], line.to, kind=KIND)
        expected = len(records) + 1 + _write_larger(world, keys)
        letters = eventually(lambda: _letters(world, ends, at_least=expected), within_s=240)
        all_arrive(world, load.texts("user", *CHANNELS, *(f"from {each}" for each in CHANNELS)))
    assert len(letters) == expected
    _tell_where_and_why(letters, written, killer.encode())
    told = world.system.manage("replay_dead_letters", "--dry-run")
    for each in letters:
        assert f"{_id(each)}\t{each.headers['dl-error']}\t" in told
    _replay_once(world, next(_id(each) for each in letters if killer.encode() in each.value))
    all_arrive(world, load.texts(KIND))


def _id(letter: Record) -> str:
    return f"{letter.headers['dl-topic']}:{letter.source.partition}:{letter.offset}"


def _replay_once(world: World, letter: str) -> None:
    """What killed its workers is replayed where it kills nobody, and no more than once."""
    said = [world.system.manage("replay_dead_letters", "--id", letter).splitlines()[-1] for _ in range(2)]
    assert said == ["1 replayed", "0 replayed, 1 already replayed"], said


def nothing_differs(world: World, _history: History, _report: Report) -> None:
    """Exit code 0: of all that is on the log, what is neither stored and sent on nor a dead letter would be told."""
    minutes = math.ceil((time.monotonic() - world.began_s) / 60)
    world.system.manage("verify_log", "--since", f"{minutes}m", "--grace", "0")


def broken_release(world: World, _pace: Pace) -> None:
    """More unreadable records on one partition than may become dead letters in a minute: the others wait, the partition
    is not committed beyond them, and what is behind them goes on."""
    load, log = world.load, world.town.log
    grave = TopicPartition(topics.dead_letters(topics.MESSAGES), 0)
    begin, key = log.end_offset(grave), _busy_keys(world)[topics.MESSAGES]
    places = log.append([NewRecord(topics.MESSAGES, key, b"of a broken release")] * (MOST + 10))
    [source] = {source for source, _ in places}
    eventually(lambda: log.end_offset(grave) - begin >= MOST, within_s=90)  # the last minute may have had some
    since_s = time.monotonic()
    all_arrive(world, load.texts("user", *CHANNELS))
    if time.monotonic() - since_s < 30:  # on a machine so busy that a minute went by, nothing can be told
        assert log.end_offset(grave) - begin == MOST, "dead letters go on above the limit"
        assert log.committed(GROUP, source) <= places[MOST][1]
    eventually(lambda: log.end_offset(grave) - begin == len(places), within_s=150)
    eventually(lambda: log.committed(GROUP, source) > places[-1][1], within_s=30)


@contextmanager
def core_workers_that_die_of(world: World, text: str) -> Iterator[None]:
    """Instead of the core's workers, one whose children die of a message that says this."""
    system, names = world.system, names_of(world, ["worker-core"])
    command = [sys.executable, "-m", "celery", "-A", "tests.faults.killer_app", "worker", "-Q", "core", "-c", "2"]
    env = {**system.env, "SERVICE": "worker-core", "KILLER_TEXT": text, "PYTHONPATH": str(ROOT)}
    with (system.state_dir / "logs" / "killer.log").open("ab") as printed:
        says = Log.of(system, "killer").says
        worker = subprocess.Popen(command, cwd=ROOT, env=env, stdout=printed, stderr=printed)
        try:
            eventually(lambda: says(" ready."), within_s=120)
            for name in names:
                system.end(name)
            yield
        finally:
            with ThreadPoolExecutor(len(names)) as starting:
                list(starting.map(world.restart, names))
            worker.terminate()
            worker.wait(60)


def _unreadable() -> list[bytes]:
    to_come = b'{"v":99,"kind":"message","body":{}}'
    return [b"\xff\x00 no record at all", to_come, b"x" * MAX_RECORD_BYTES]


def _record(topic: str, keys: dict[str, str], value: bytes) -> NewRecord:
    return NewRecord(topic, keys[topic], value, {"trace": "poison"})


def _busy_keys(world: World) -> dict[str, str]:
    """By topic, the key of a conversation that goes on: what is behind the poison in its lane shall arrive."""
    keys = {}
    for topic in WORKS:
        found = (
            world.town.log.read(each, start=max(0, world.town.log.end_offset(each) - 20), limit=20)
            for each in sources(world.town, topic)
        )
        keys[topic] = next((record.key for records in found for record in records[-1:]), "nobody yet")
    return keys


def _write_larger(world: World, keys: dict[str, str]) -> int:
    """How many were written as a producer that is not ours would."""
    if world.profile == "local":
        return 0
    url = KafkaUrl.parse(world.system.env["EVENT_LOG_URL"])
    producer = Producer({"bootstrap.servers": url.servers, "message.max.bytes": MAX_MESSAGE_BYTES})
    producer.produce(url.prefix + topics.MESSAGES, b"y" * (MAX_RECORD_BYTES + 1_000), key=keys[topics.MESSAGES])
    assert producer.flush(30) == 0
    return 1


def _graves() -> list[TopicPartition]:
    return [TopicPartition(topics.dead_letters(topic), 0) for topic in WORKS]


def _letters(world: World, ends: dict[TopicPartition, int], *, at_least: int) -> list[Record]:
    """Those since then, once there are so many."""
    if sum(map(world.town.log.end_offset, ends)) - sum(ends.values()) < at_least:
        return []
    return [each for grave, end in ends.items() for each in world.town.log.read(grave, start=end, limit=100)]


def _tell_where_and_why(letters: Sequence[Record], written: dict[Place, NewRecord], killer: bytes) -> None:
    """Each letter is its record, with its origin, reason, attempts and times; each record has one."""
    places = []
    for each in letters:
        headers = each.headers
        place = TopicPartition(headers["dl-topic"], int(headers["dl-partition"])), int(headers["dl-offset"])
        places.append(place)
        assert 0 < int(headers["dl-first-ms"]) <= int(headers["dl-last-ms"])
        if record := written.get(place):
            assert (each.key, each.value) == (record.key, record.value)
            assert (headers["trace"], headers["dl-error"]) == ("poison", "undecodable")
        elif killer in each.value:
            assert headers["dl-error"] == "worker_lost"
            assert int(headers["dl-attempts"]) >= MAX_CRASHES  # more where a death was told late, as the next one died
        else:
            assert (len(each.value), headers["dl-cut"]) == (MAX_RECORD_BYTES, str(MAX_RECORD_BYTES + 1_000))
    assert set(places) >= written.keys()
    assert len(set(places)) == len(places)


POISON: Final = (
    Fault(
        f"{ACCOUNTS_AND_FILES}, then records are poison",
        one_by_one(accounts_and_files_away, poison),
        profiles=CLUSTER,
        short=CLUSTER,
        afterwards=nothing_differs,
        apart=False,
    ),
    Fault("records are poison", poison, short=NOWHERE, joined=LOCAL, afterwards=nothing_differs),
    Fault("a broken release writes what nobody can read", broken_release, short=NOWHERE, joined=LOCAL | CLUSTER),
)
