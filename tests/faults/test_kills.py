"""Parts die in the middle of a small load: nothing that was accepted is lost, doubled unmarked, or out of order."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis

from tests.faults.conftest import Harbour
from tests.town import Socket, eventually, phone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

PEOPLE, EACH = 20, 6


@dataclass
class Load:
    """Messages to twenty people, written by careful clients that insist until they are accepted."""

    harbour: Harbour
    people: list[str]
    ids: dict[str, list[str]]

    @classmethod
    def of(cls, harbour: Harbour) -> Load:
        people = [phone() for _ in range(PEOPLE)]
        return cls(harbour, people, {each: [] for each in people})

    def write(self, to: str, numbers: range) -> None:
        for number in numbers:
            accepted = self.harbour.alice.insist(f"fault-{to}", f"text {number:02d}", f"whatsapp:+{to}")
            self.ids[to].append(accepted)

    def arrived(self) -> int:
        arrived = self.harbour.town.arrived(self.harbour.whatsapp)
        return sum(len({each["text"] for each in arrived.get(to, ())}) for to in self.people)

    def assert_kept(self, socket: Socket) -> None:
        """All of it arrived in order; twice only what says so; history, receipts and frames are whole."""
        town, alice, texts = self.harbour.town, self.harbour.alice, [f"text {number:02d}" for number in range(EACH)]
        everything = PEOPLE * EACH
        eventually(lambda: self.arrived() == everything, within_s=120)  # a task that hangs is ended after 60 s
        for to, received in town.arrived(self.harbour.whatsapp).items():
            if to not in self.people:
                continue  # of the load before
            assert list(dict.fromkeys(each["text"] for each in received)) == texts
            assert {each["correlation"] for each in received} == set(self.ids[to])
            for twice in {each["correlation"] for each in received if each["attempts"] > 1}:
                assert "SENT(maybe_duplicate)" in alice.statuses(twice)
        for to in self.people:
            eventually(lambda to=to: {each["status"] for each in alice.history(f"fault-{to}")} == {"READ"})  # type: ignore[misc]
            assert [each["message_id"] for each in alice.history(f"fault-{to}")] == self.ids[to]
        if not socket.resyncs:  # a flushed bus forgets frames, and says so
            eventually(lambda: all(socket.texts(f"fault-{to}") == texts for to in self.people))
        assert town.dead_letters() == 0


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def kill(name: str) -> Callable[[Harbour], None]:
    """kill -9 it and its children, and start it again."""

    def strike(harbour: Harbour) -> None:
        harbour.system.kill(name)
        harbour.system.restart(name)

    return strike


def kill_a_child(harbour: Harbour) -> None:
    os.kill(children(harbour.system.pid("worker-core"))[0], signal.SIGKILL)


def flush_the_bus(harbour: Harbour) -> None:
    with redis.Redis.from_url(harbour.system.env["BUS_URL"]) as bus:
        bus.flushall()


def freeze(name: str, topic: str) -> Callable[[Harbour], None]:
    """Stop a worker in the middle of a batch until the bridge has given it to others, then let it wake up."""

    def strike(harbour: Harbour) -> None:
        frozen = [harbour.system.pid(name), *children(harbour.system.pid(name))]
        before = _taken_back(harbour)

        def caught() -> bool:
            _signal(frozen, signal.SIGSTOP)
            if _is_at_work(harbour, topic):
                return True
            _signal(frozen, signal.SIGCONT)
            return False

        try:
            eventually(caught)
            eventually(lambda: _taken_back(harbour) > before)
        finally:
            _signal(frozen, signal.SIGCONT)

    return strike


def _signal(processes: list[int], number: signal.Signals) -> None:
    for each in processes:
        os.kill(each, number)


def _is_at_work(harbour: Harbour, topic: str) -> bool:
    """Whether a worker has begun a batch of this topic and not ended it."""
    with redis.Redis.from_url(harbour.system.env["BUS_URL"], decode_responses=True) as bus:
        lanes = [key for key in bus.scan_iter(f"chat4all:lane:{topic}:*") if not key.endswith(":lease")]
        return any(bus.hmget(key, "started") == ["1"] and bus.hexists(key, "payload") for key in lanes)


def _taken_back(harbour: Harbour) -> int:
    """How many batches of vanished workers the bridge took back so far."""
    shown = httpx.get(harbour.system.ready_url("bridge").replace("/ready", "/metrics")).text
    counts = re.findall(r'^chat4all_batches_redispatched_total\{.*state="lapsed".*\} (\S+)', shown, re.MULTILINE)
    return int(sum(map(float, counts)))


@pytest.mark.parametrize(
    "strike",
    [
        pytest.param(kill("bridge"), id="the bridge is killed"),
        pytest.param(kill("worker-core"), id="the core worker is killed"),
        pytest.param(kill_a_child, id="a child of the core worker is killed"),
        pytest.param(kill("worker-whatsapp"), id="the WhatsApp worker is killed"),
        pytest.param(kill("api"), id="the API is killed"),
        pytest.param(kill("gateway"), id="the gateway is killed"),
        pytest.param(flush_the_bus, id="the bus is flushed"),
        pytest.param(kill("redis-bus"), id="the bus is killed"),
        pytest.param(kill("redis-log"), id="the log is killed"),
        pytest.param(freeze("worker-whatsapp", "whatsapp-outbound"), id="the WhatsApp worker freezes"),
        pytest.param(freeze("worker-core", "messages"), id="the core worker freezes"),
    ],
)
def test_nothing_is_lost_when(harbour: Harbour, strike: Callable[[Harbour], None]) -> None:
    load = Load.of(harbour)
    with (
        harbour.town.switches(latency_ms=15, latency_jitter_ms=15),
        harbour.alice.socket() as socket,
        ThreadPoolExecutor(4) as clients,
    ):
        half = [clients.submit(load.write, to, range(EACH // 2)) for to in load.people]
        eventually(lambda: load.arrived() > PEOPLE)
        rest = [clients.submit(_after, before, load, to) for before, to in zip(half, load.people, strict=True)]
        strike(harbour)
        for each in rest:
            each.result(timeout=90)
        load.assert_kept(socket)


def _after(before: object, load: Load, to: str) -> None:
    """The second half, once the first was accepted."""
    before.result(timeout=60)  # type: ignore[attr-defined]
    load.write(to, range(EACH // 2, EACH))
