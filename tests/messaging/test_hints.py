"""Hints are best effort: what is there but says nothing is as good as nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from core.clock import ManualClock
from core.ids import uuid7
from demo.redis_server import BUS_RULES, RedisServer
from messaging import codec
from messaging.domain import ExternalRef
from messaging.hints import PAUSE_S, READ_AT_ONCE, SHARE, TRUSTED_S, TTL_S, RedisHints
from tests.messaging.workbench import Workbench


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no Redis that is away."""
    monkeypatch.setattr("messaging.hints.TIMEOUT_S", 20.0)


def test_what_was_put_is_there_and_what_nobody_can_read_is_not(bench: Workbench, bus_redis: RedisServer) -> None:
    message = bench.message(bench.conversation())
    hints = RedisHints(bus_redis.url)
    assert hints.get(message.message_id) is None
    assert hints.accepted([message.message_id]) == []
    hints.put({})
    hints.put({message.message_id: codec.encode(message)})
    assert hints.get(message.message_id) == message
    unknown = uuid7()
    assert hints.accepted([unknown, message.message_id]) == [message]
    assert hints.accepted([]) == []
    with redis.Redis.from_url(bus_redis.url) as bus:
        [key] = [key for key in bus.scan_iter() if str(message.message_id) in key.decode()]
        bus.set(key, b"of another release")
    assert hints.get(message.message_id) is None
    assert hints.accepted([message.message_id]) == []


@pytest.mark.parametrize("count", [1, 2, 500])
def test_hints_last_for_a_minute(bench: Workbench, bus_redis: RedisServer, count: int) -> None:
    conversation = bench.conversation()
    messages = {each.message_id: each for each in (bench.message(conversation, f"{n}") for n in range(count))}
    hints = RedisHints(bus_redis.url)
    hints.put({message_id: codec.encode(each) for message_id, each in messages.items()})
    assert {each.message_id: each for each in hints.accepted(messages)} == messages
    with redis.Redis.from_url(bus_redis.url) as bus:
        kept_s = [bus.ttl(key) for key in bus.scan_iter() if key.decode().rpartition(":")[2] in map(str, messages)]
    assert len(kept_s) == count
    assert all(0 < each <= TTL_S for each in kept_s)


def test_a_large_one_is_there_at_once_as_well(bench: Workbench, bus_redis: RedisServer) -> None:
    hints, others = RedisHints(bus_redis.url), RedisHints(bus_redis.url)
    for size in (1, READ_AT_ONCE, 64 * 1024):
        message = bench.message(bench.conversation(), "x" * size)
        hints.put({message.message_id: codec.encode(message)})
        assert others.get(message.message_id) == message


def test_who_was_cut_off_puts_the_next_one_all_the_same(bench: Workbench, bus_redis: RedisServer) -> None:
    conversation, hints = bench.conversation(), RedisHints(bus_redis.url)
    with redis.Redis.from_url(bus_redis.url) as admin:
        for _ in range(3):
            message = bench.message(conversation)
            hints.put({message.message_id: codec.encode(message)})
            assert hints.get(message.message_id) == message
            admin.client_kill_filter(_type="normal", skipme=True)


def test_what_many_threads_put_at_once_is_all_there(bench: Workbench, bus_redis: RedisServer) -> None:
    conversation, hints = bench.conversation(), RedisHints(bus_redis.url)
    messages = {each.message_id: each for each in (bench.message(conversation, f"{n}") for n in range(200))}
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda each: hints.put({each.message_id: codec.encode(each)}), messages.values()))
    assert {each.message_id: each for each in RedisHints(bus_redis.url).accepted(messages)} == messages


def test_redis_answers_nothing_that_nobody_reads(bench: Workbench, bus_redis: RedisServer) -> None:
    message, hints = bench.message(bench.conversation()), RedisHints(bus_redis.url, ManualClock())
    with redis.Redis.from_url(bus_redis.url) as admin:
        hints.put({message.message_id: codec.encode(message)})
        before = {each["id"] for each in admin.client_list()}
        for _ in range(100):
            hints.put({message.message_id: codec.encode(message)})
        [one_way] = [each for each in admin.client_list() if each["id"] not in before]
    assert (one_way["cmd"], one_way["oll"], one_way["obl"]) == ("set", "0", "0")
    connection = hints._one_way._connection
    assert connection is not None
    assert not connection.can_read()


def test_a_redis_that_is_away_is_let_alone_for_a_while(tmp_path: Path, bench: Workbench) -> None:
    clock = ManualClock()
    server = RedisServer(tmp_path, rules=BUS_RULES).start()
    message, hints = bench.message(bench.conversation()), RedisHints(server.url, clock)
    hints.put({message.message_id: codec.encode(message)})
    server.stop()
    hints.put({message.message_id: codec.encode(message)})
    assert hints.get(message.message_id) is None
    server.start()
    hints.put({message.message_id: codec.encode(message)})
    assert hints.get(message.message_id) is None
    clock.advance(PAUSE_S)
    hints.put({message.message_id: codec.encode(message)})
    assert hints.get(message.message_id) == message
    server.stop()


def test_that_redis_takes_nothing_is_found_out_within_a_second(
    bench: Workbench, bus_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    message, clock = bench.message(bench.conversation()), ManualClock()
    hints = RedisHints(bus_redis.url, clock)
    with redis.Redis.from_url(bus_redis.url) as admin:
        hints.put({message.message_id: codec.encode(message)})
        admin.execute_command("ACL", "SETUSER", "default", "-set")
        try:
            hints.put({message.message_id: codec.encode(message)})
            assert not caplog.records, "nobody waited for an answer"
            clock.advance(TRUSTED_S)
            hints.put({message.message_id: codec.encode(message)})
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "+set")
    assert [each.getMessage() for each in caplog.records] == ["hints are away"]


@pytest.mark.parametrize("room", [0.45, 0.55], ids=["more than half is taken", "less than half is taken"])
def test_hints_leave_half_of_the_bus_to_what_must_go_on(
    bench: Workbench, bus_redis: RedisServer, caplog: pytest.LogCaptureFixture, room: float
) -> None:
    """At thousands of messages a second they alone would fill it, and then no batch is handed out."""
    one, two = bench.message(bench.conversation()), bench.message(bench.conversation())
    clock = ManualClock()
    hints = RedisHints(bus_redis.url, clock)
    with redis.Redis.from_url(bus_redis.url) as admin:
        taken = admin.info("memory")["used_memory"]
        admin.config_set("maxmemory", int(taken / (1 - room)))
        try:
            hints.put({one.message_id: codec.encode(one)})
            hints.put({two.message_id: codec.encode(two)})
            assert hints.accepted([one.message_id, two.message_id]) == ([one, two] if room > SHARE else [])
        finally:
            admin.config_set("maxmemory", 0)
    clock.advance(PAUSE_S)
    hints.put({one.message_id: codec.encode(one)})
    assert hints.get(one.message_id) == one
    said = [] if room > SHARE else ["hints are left out: the bus has no room", "the bus has room for hints"]
    assert [each.getMessage() for each in caplog.records] == said


def test_who_may_not_ask_for_the_bus_s_memory_puts_hints_all_the_same(
    bench: Workbench, bus_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    message, hints = bench.message(bench.conversation()), RedisHints(bus_redis.url)
    with redis.Redis.from_url(bus_redis.url) as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-info")
        try:
            hints.put({message.message_id: codec.encode(message)})
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "+info")
    assert hints.get(message.message_id) == message
    assert not caplog.records


def test_what_platforms_call_messages_is_there_for_whoever_gets_receipts(bus_redis: RedisServer) -> None:
    one, two = (
        ExternalRef(
            channel="whatsapp",
            account_id="1055",
            external_id=f"wamid.{uuid7()}",
            message_id=uuid7(),
            conversation_id=uuid7(),
            party="whatsapp:+5511999998888",
            attempt=attempt,
        )
        for attempt in (0, 3)
    )
    hints, elsewhere = RedisHints(bus_redis.url), replace(two, account_id="2066")
    hints.put_references([])
    hints.put_references([one, two])
    assert RedisHints(bus_redis.url).references([one.reference, elsewhere.reference, two.reference]) == [one, two]
    assert hints.references([]) == []
    with redis.Redis.from_url(bus_redis.url) as bus:
        [key] = [key for key in bus.scan_iter() if one.external_id in key.decode()]
        assert 0 < bus.ttl(key) <= TTL_S
        bus.set(key, b'{"of":"another release"}')
    assert hints.references([one.reference, two.reference]) == [two]


def test_what_comes_while_a_thread_sends_is_sent_by_that_one(
    bench: Workbench, bus_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints, conversation = RedisHints(bus_redis.url, ManualClock()), bench.conversation()
    messages = {each.message_id: each for each in (bench.message(conversation, f"{n}") for n in range(5))}
    first, *others = messages.values()
    hints.put({first.message_id: codec.encode(first)})
    one_way = hints._one_way
    send_all, sent = one_way._send_all, list[int]()

    def sends() -> None:
        sent.append(len(one_way._left))
        send_all()
        while others:  # they come while it has the lock
            each = others.pop()
            with ThreadPoolExecutor(1) as thread:
                thread.submit(hints.put, {each.message_id: codec.encode(each)}).result()

    monkeypatch.setattr(one_way, "_send_all", sends)
    hints.put({first.message_id: codec.encode(first)})
    assert sent == [1, 4]
    assert {each.message_id: each for each in hints.accepted(messages)} == messages


def test_what_is_on_its_way_is_waited_for(
    bench: Workbench, bus_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, hints = bench.message(bench.conversation()), RedisHints(bus_redis.url)
    others, wait = RedisHints(bus_redis.url), threading.Event.wait

    def waits(event: threading.Event, timeout: float | None = None) -> bool:
        others.put({message.message_id: codec.encode(message)})
        return wait(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", waits)
    assert hints.get(message.message_id) == message
