"""The servers under us hang, crawl, end or forget: what needs them waits and says so, everything else goes on."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import redis

from tests.faults.history import Request
from tests.faults.kinds.aftermath import of_all, of_soak
from tests.faults.kinds.combined import one_by_one
from tests.faults.kinds.onlookers import EVERYBODY, all_arrive, asking
from tests.faults.kinds.onlookers import KIND as ASKED
from tests.faults.patience import eventually
from tests.faults.rounds import Fault
from tests.faults.world import CLUSTER, KILLED_S, LOCAL, Pace, Profile, World
from tests.stack.server import Server
from tests.stack.toxiproxy import Proxy
from tests.town import phone

Strike = Callable[[World, Pace], None]
BACK_S: Final = {"redis-bus": 30.0, "redis-log": 30.0, "kafka": 30.0, "cassandra": 30.0}  # targets
LATENCY_MS: Final = 3_000
FILES_WAIT_S: Final = (
    120.0  # a send that waited for long is held apart for half a minute, and then for half as long again
)
PICTURE: Final = b"\x89PNG\r\n\x1a\n" + b"a dog" * 1_000
RESETS: Final = 5
UNDER_WAY: Final = 50  # messages at once, right before the bus forgets them

# --- the bus, and the local profile's log ----------------------------------------------------------------------------


def flushed(world: World, _pace: Pace) -> None:
    """FLUSHALL under load: tasks, leases, replies, hints and frames are gone at once."""
    line = next(each for each in world.load.lines if each.kind == "user")
    with _bus(world) as bus:
        world.load.write(
            line.conversation, [f"{line.conversation} under way {n}" for n in range(UNDER_WAY)], line.to, kind=line.kind
        )
        at_s = time.monotonic()
        bus.flushall()
    world.taken_over("the bus is flushed", at_s, target_s=KILLED_S)


def reset(world: World, _pace: Pace) -> None:
    """CLIENT KILL of every connection, a few times: whoever waits for an answer hears nothing."""
    with _bus(world) as bus, asking(world) as client:
        for _ in range(RESETS):
            for kind in ("normal", "pubsub"):
                bus.client_kill_filter(_type=kind, skipme=True)
            client.hears(202)
        world.mended("the bus keeps its connections", target_s=KILLED_S)
    assert client.heard == {202}, "nobody who writes needs the bus"


def redis_killed(name: str) -> Strike:
    """kill -9 a redis-server and start it again."""

    def strike(world: World, _pace: Pace) -> None:
        world.system.kill(name)
        world.restart(name)
        world.mended(f"{name} is back", target_s=BACK_S[name])

    return strike


def redis_frozen(name: str) -> Strike:
    """SIGSTOP a redis-server for a while: connections stay, answers do not come."""

    def strike(world: World, pace: Pace) -> None:
        pid = world.system.pid(name)
        with asking(world) as client:
            os.kill(pid, signal.SIGSTOP)
            try:
                with _lasting(pace.pause_s):
                    if name == "redis-log":
                        client.hears(503)
            finally:
                os.kill(pid, signal.SIGCONT)
                world.mended(f"{name} thaws", target_s=BACK_S[name])
            client.hears(202)

    return strike


# --- Kafka and Cassandra ---------------------------------------------------------------------------------------------


def killed(name: str, *, away: bool) -> Strike:
    """kill -9 a server, and start it again: at once, so that a client may wait for it, or with ``away`` after the
    outage's time."""

    def strike(world: World, pace: Pace) -> None:
        server = _server(world, name)
        with asking(world) as client:
            server.kill()
            try:
                if away:
                    with _lasting(pace.outage_s):
                        client.hears(503)
            finally:
                server.start()
                world.mended(f"{name} is back", target_s=BACK_S[name])
            client.hears(202)
        _nobody_ended(world)

    return strike


def frozen(name: str) -> Strike:
    """SIGSTOP a server for a while."""

    def strike(world: World, pace: Pace) -> None:
        server = _server(world, name)
        with asking(world) as client:
            server.pause()
            try:
                with _lasting(pace.pause_s):
                    client.hears(503)
            finally:
                server.resume()
                world.mended(f"{name} thaws", target_s=BACK_S[name])
            client.hears(202)
        _nobody_ended(world)

    return strike


def slow_then_cut(name: str) -> Strike:
    """Each answer comes 3 s late for a while; then connections break, and none is to be had."""

    def strike(world: World, pace: Pace) -> None:
        way = _way(world, name)
        with asking(world) as client:
            try:
                way.slow(LATENCY_MS)
                _lasts(pace.spell_s)
                way.cut()
                with _lasting(pace.pause_s):
                    client.hears(503)
            finally:
                way.mend()
                world.mended(f"the way to {name} is whole", target_s=BACK_S[name])
            client.hears(202)
        _nobody_ended(world)

    return strike


# --- PostgreSQL and S3 -----------------------------------------------------------------------------------------------


def accounts_and_files_away(world: World, pace: Pace) -> None:
    """Known users write, are heard live, read what was said; persons whom we know write to us. A file that was sent on
    its way just before waits, and nobody behind it but its conversation."""
    town, alice, bob, account = world.town, world.alice, world.bob, world.accounts["whatsapp"]
    person = phone()
    with alice.socket() as hers, bob.socket() as his, asking(world) as client:
        town.says("whatsapp", account, person, "before")
        eventually(lambda: _heard(hers.of("message"), "before"))
        chat = f"whatsapp:+{person}@{account}"
        stored = alice.api.post("/v1/files", files={"file": ("dog.png", PICTURE)}, data={"conversation_id": chat})
        assert stored.status_code == 201, stored.text
        try:
            world.servers.minio.kill()
            with_file = _send_file(world, chat, stored.json()["file_id"])
            world.servers.postgres.kill()
            with _lasting(pace.outage_s):
                began = len(client.answers)
                town.says("whatsapp", account, person, "meanwhile")
                eventually(lambda: _heard(hers.of("message"), "meanwhile"))
            client.hears(202)
            assert {status for status, _ in client.answers[began:]} == {202}, "a known user's message needs neither"
            text = client.accepted[-1]
            eventually(lambda: text in his.texts(client.conversation))
            assert text in alice.sees(client.conversation)
        finally:
            with ThreadPoolExecutor() as starting:
                list(starting.map(Server.start, (world.servers.postgres, world.servers.minio)))
            world.mended("PostgreSQL and S3 are back", target_s=KILLED_S, kinds=[*EVERYBODY, ASKED])
    all_arrive(world, frozenset({with_file}), within_s=FILES_WAIT_S + pace.outage_s)
    [received] = town.received(person)
    assert received["media_sha256"] == hashlib.sha256(PICTURE).hexdigest()
    _nobody_ended(world)


def _send_file(world: World, chat: str, file_id: str) -> str:
    """Alice sends it with these words, which is judged like everything else."""
    text, began_s = f"{chat} with a file", time.monotonic()
    message_id = world.alice.post(chat, text, file_id=file_id)
    world.load.note(Request(chat, world.alice.user_id, text, message_id), began_s=began_s, kind="file")
    return text


def _heard(frames: list[dict[str, object]], text: str) -> bool:
    return any(isinstance(each["message"], Mapping) and each["message"]["content"] == text for each in frames)


# --- what they share -------------------------------------------------------------------------------------------------


@contextmanager
def _bus(world: World) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(world.system.env["BUS_URL"], socket_timeout=5) as bus:
        yield bus


def _server(world: World, name: str) -> Server:
    server: Server = getattr(world.servers, name)
    return server


def _way(world: World, name: str) -> Proxy:
    return world.servers.ways[name]


def _lasts(seconds: float) -> None:
    threading.Event().wait(seconds)


@contextmanager
def _lasting(seconds: float) -> Iterator[None]:
    """What is waited for inside is a part of that time."""
    until_s = time.monotonic() + seconds
    yield
    _lasts(until_s - time.monotonic())


def _nobody_ended(world: World) -> None:
    """Waiting is what a process of ours does without a server, not ending."""
    ended = [each for each in world.system.processes if not world.system.is_running(each)]
    assert not ended, ended


ACCOUNTS_AND_FILES: Final = "PostgreSQL and S3 are away"
BUS: Final = {
    "the bus is flushed": flushed,
    "the bus resets its connections": reset,
    "the bus freezes": redis_frozen("redis-bus"),
    "the bus is killed": redis_killed("redis-bus"),
}
LOG: Final = {
    "the log's Redis freezes": redis_frozen("redis-log"),
    "the log's Redis is killed": redis_killed("redis-log"),
}
KAFKA: Final = {
    "Kafka freezes": frozen("kafka"),
    "Kafka is slow, then cut off": slow_then_cut("kafka"),
    "Kafka is killed": killed("kafka", away=False),
}
CASSANDRA: Final = {
    "Cassandra is slow, then cut off": slow_then_cut("cassandra"),
    "Cassandra is away": killed("cassandra", away=True),
}


def _in_every_way(name: str, strikes: Mapping[str, Strike], profiles: frozenset[Profile]) -> Fault:
    """One round of `make test` with all of them."""
    return of_all(name, one_by_one(*strikes.values()), profiles=profiles, apart=False)


SERVERS: Final = (
    _in_every_way("the bus, Kafka and Cassandra fail in every way", BUS | KAFKA | CASSANDRA, CLUSTER),
    _in_every_way("both Redis fail in every way", BUS | LOG, LOCAL),
    *(of_soak(name, strike) for name, strike in BUS.items()),
    *(of_soak(name, strike, profiles=LOCAL) for name, strike in LOG.items()),
    *(of_soak(name, strike, profiles=CLUSTER) for name, strike in (KAFKA | CASSANDRA).items()),
    of_soak(ACCOUNTS_AND_FILES, accounts_and_files_away, profiles=CLUSTER),
)
