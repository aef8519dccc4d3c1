"""Pushing: numbered once, remembered within bounds, in order, and never in the way of the pipeline."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.conf import settings

from core.clock import ManualClock
from demo.redis_server import BUS_RULES, RedisServer
from realtime import notify
from realtime.frames import HISTORY_BYTES, HISTORY_FRAMES, HISTORY_TTL_S, UserKeys, group
from realtime.notify import Push, RedisNotifier
from realtime.replay import History, Missed
from tests.conftest import redis_executables

ALICE = "user_a11ce"
BOB = "user_b0b"


@pytest.fixture(scope="module", params=redis_executables())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    executable = redis_executables()[request.param]
    running = RedisServer(tmp_path_factory.mktemp("bus"), rules=BUS_RULES, executable=executable).start()
    yield running
    running.stop()


@pytest.fixture
def bus(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.flushall()
        client.script_flush()
        yield client


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def notifier(server: RedisServer, bus: redis.Redis, clock: ManualClock) -> Iterator[RedisNotifier]:
    made = RedisNotifier(server.url, clock, timeout_s=20)
    yield made
    made.close()


def news(number: int, user_id: str = ALICE, **body: Any) -> Push:
    return Push(user_id, f"event{number}", {"type": "message", "n": number, **body})


def history(bus: redis.Redis, user_id: str = ALICE) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in bus.lrange(UserKeys.of(user_id).history, 0, -1)]


def missed(server: RedisServer, *, epoch: str, seq: int, user_id: str = ALICE) -> Missed:
    async def ask() -> Missed:
        reader = History(server.url)
        try:
            return await reader.since(user_id, epoch=epoch, seq=seq)
        finally:
            await reader.close()

    return asyncio.run(ask())


def test_frames_are_numbered_from_one_in_the_order_given(notifier: RedisNotifier, bus: redis.Redis) -> None:
    notifier.push([news(1), news(2, BOB), news(3)])
    notifier.push([news(4)])
    frames = history(bus)
    assert [(frame["seq"], frame["n"]) for frame in frames] == [(1, 1), (2, 3), (3, 4)]
    assert len({frame["epoch"] for frame in frames}) == 1
    assert [frame["seq"] for frame in history(bus, BOB)] == [1]
    assert frames[0]["epoch"] != history(bus, BOB)[0]["epoch"]


def test_a_frame_says_when_unless_its_body_does(notifier: RedisNotifier, bus: redis.Redis) -> None:
    notifier.push([news(1), news(2, at="2020-01-01T00:00:00.000Z")])
    assert [frame["at"] for frame in history(bus)] == ["2023-11-14T22:13:20.000Z", "2020-01-01T00:00:00.000Z"]


def test_a_body_cannot_bring_its_own_number(notifier: RedisNotifier) -> None:
    with pytest.raises(ValueError, match="epoch or seq"):
        notifier.push([news(1, seq=7)])


def test_a_replayed_event_makes_no_second_frame(notifier: RedisNotifier, bus: redis.Redis) -> None:
    notifier.push([news(1), news(2), news(1)])
    notifier.push([news(2), news(1), news(3)])
    assert [frame["n"] for frame in history(bus)] == [1, 2, 3]
    notifier.push([news(1, BOB)])  # the same news for somebody else
    assert len(history(bus, BOB)) == 1


def test_of_many_events_the_newest_are_known_whatever_the_clock_says(
    notifier: RedisNotifier, bus: redis.Redis, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "DEDUPE_EVENTS", 3)
    notifier.push([news(number) for number in range(5)])
    clock.advance(-600)
    notifier.push([news(5), news(5), news(4), news(3)])
    assert [frame["n"] for frame in history(bus)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "text", ['a/b\\c"d\n\t\x00\x7f', "olá, tudo bem? 👍🏽", "\u2028\u2029", "[[nested]] {} %s %d", "x" * 65_536]
)
async def test_the_real_channel_layer_delivers_what_the_script_publishes(server: RedisServer, text: str) -> None:
    """channels_redis does not document its wire form: this is the test that an upgrade has to pass."""
    configured: dict[str, Any] = settings.CHANNEL_LAYERS["default"]
    assert configured["BACKEND"] == "channels_redis.pubsub.RedisPubSubChannelLayer"
    config = {**configured["CONFIG"], "hosts": [server.url]}
    layer = RedisPubSubChannelLayer(**config)
    channel = await layer.new_channel()
    await layer.group_add(group(ALICE), channel)
    await layer.group_add(group(BOB), await layer.new_channel())
    with redis.Redis.from_url(server.url) as client:
        while not client.pubsub_numsub(f"chat4all__group__{group(ALICE)}")[0][1]:
            await asyncio.sleep(0.01)
    notifier = RedisNotifier(server.url)
    await asyncio.to_thread(
        notifier.push, [Push(BOB, text[:50], {"type": "message"}), Push(ALICE, text[:50], {"t": text})]
    )
    event = await asyncio.wait_for(layer.receive(channel), 10)
    assert event["type"] == "user.frame"
    assert json.loads(event["frame"])["t"] == text
    notifier.close()
    await layer.flush()


def test_the_history_is_bounded_by_number(notifier: RedisNotifier, bus: redis.Redis) -> None:
    notifier.push([news(n) for n in range(1, HISTORY_FRAMES + 51)])
    frames = history(bus)
    assert [frame["seq"] for frame in frames] == list(range(51, HISTORY_FRAMES + 51))


def test_the_history_is_bounded_by_bytes_and_keeps_the_newest(notifier: RedisNotifier, bus: redis.Redis) -> None:
    for n in range(30):
        notifier.push([news(n, text="x" * 65_000)])
    keys = UserKeys.of(ALICE)
    held = sum(len(frame) for frame in bus.lrange(keys.history, 0, -1))
    assert HISTORY_BYTES - 66_000 < held <= HISTORY_BYTES
    assert bus.hget(keys.state, "bytes") == str(held)
    assert history(bus)[-1]["seq"] == 30


def test_everything_about_a_user_expires(notifier: RedisNotifier, bus: redis.Redis) -> None:
    notifier.push([news(1)])
    keys = UserKeys.of(ALICE)
    for key in (keys.state, keys.history, keys.events):
        assert HISTORY_TTL_S - 60 < bus.ttl(key) <= HISTORY_TTL_S
    assert len(bus.keys("*")) == 3


def test_the_memory_of_events_is_bounded(
    notifier: RedisNotifier, bus: redis.Redis, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "DEDUPE_EVENTS", 5)
    for n in range(20):
        clock.advance(1)
        notifier.push([news(n)])
    assert bus.zrange(UserKeys.of(ALICE).events, 0, -1) == [f"event{n}" for n in range(15, 20)]


def test_a_batch_is_one_round_trip_without_a_loaded_script(notifier: RedisNotifier, bus: redis.Redis) -> None:
    notifier.push([news(0)])
    bus.script_flush()
    before = bus.info("stats")["total_reads_processed"]
    notifier.push([news(n) for n in range(1, 101)])
    reads = bus.info("stats")["total_reads_processed"] - before
    assert [frame["seq"] for frame in history(bus)] == list(range(1, 102))
    assert reads < 10  # a round trip per push would be 100; a large batch may take the server several reads


def test_a_flush_begins_a_new_epoch(notifier: RedisNotifier, bus: redis.Redis) -> None:
    notifier.push([news(1), news(2)])
    epoch = history(bus)[0]["epoch"]
    bus.flushall()
    notifier.push([news(2)])
    assert history(bus)[0]["seq"] == 1
    assert history(bus)[0]["epoch"] != epoch


def test_a_reader_gets_exactly_what_it_missed(notifier: RedisNotifier, bus: redis.Redis, server: RedisServer) -> None:
    notifier.push([news(n) for n in range(1, 11)])
    epoch = history(bus)[0]["epoch"]
    found = missed(server, epoch=epoch, seq=7)
    assert (found.epoch, found.seq) == (epoch, 10)
    assert [json.loads(frame)["seq"] for frame in found.frames or []] == [8, 9, 10]
    assert missed(server, epoch=epoch, seq=10).frames == []
    assert len(missed(server, epoch=epoch, seq=0).frames or []) == 10


def test_a_reader_whose_past_is_gone_is_told_so(notifier: RedisNotifier, bus: redis.Redis, server: RedisServer) -> None:
    notifier.push([news(n) for n in range(HISTORY_FRAMES + 2)])
    epoch = history(bus)[0]["epoch"]
    assert missed(server, epoch=epoch, seq=1).frames is None  # frame 2 is not there any more
    assert len(missed(server, epoch=epoch, seq=2).frames or []) == HISTORY_FRAMES
    assert missed(server, epoch="another", seq=5).frames is None
    assert missed(server, epoch=epoch, seq=5000).frames is None  # never was
    assert missed(server, epoch=epoch, seq=-1).frames is None
    bus.delete(UserKeys.of(ALICE).history)
    assert missed(server, epoch=epoch, seq=HISTORY_FRAMES).frames is None


def test_reading_gives_a_new_user_an_epoch_that_the_first_frame_keeps(
    notifier: RedisNotifier, bus: redis.Redis, server: RedisServer
) -> None:
    first = missed(server, epoch="", seq=0)
    assert (first.seq, first.frames) == (0, None)
    notifier.push([news(1)])
    assert history(bus)[0]["epoch"] == first.epoch
    assert len(missed(server, epoch=first.epoch, seq=0).frames or []) == 1


def test_a_redis_that_is_away_costs_a_warning_and_its_users_a_resync(
    server: RedisServer, bus: redis.Redis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = RedisNotifier(server.url, clock, timeout_s=2)
    notifier.push([news(1), news(1, BOB)])
    epoch, bobs = history(bus)[0]["epoch"], history(bus, BOB)[0]["epoch"]
    server.signal(signal.SIGSTOP)
    try:
        with caplog.at_level(logging.WARNING):
            notifier.push([news(2, text="a secret")])
            notifier.push([news(3)])  # at once: no second time-out, no second warning
    finally:
        server.signal(signal.SIGCONT)
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text
    bus.ping()  # it is awake
    clock.advance(notify.QUIET_S)
    notifier.push([news(4), news(4, BOB)])
    frames = history(bus)
    assert frames[-1]["n"] == 4
    assert frames[-1]["epoch"] != epoch
    assert missed(server, epoch=epoch, seq=1).frames is None
    assert {frame["epoch"] for frame in history(bus, BOB)} == {bobs}  # he lost nothing
    notifier.close()


def test_a_process_that_has_nothing_more_to_push_tells_all_the_same(
    server: RedisServer, bus: redis.Redis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = RedisNotifier(server.url, clock, timeout_s=2)
    notifier.settle()
    assert notifier._client is None  # nothing is owed, nobody is asked
    notifier.push([news(1)])
    epoch = history(bus)[0]["epoch"]
    server.signal(signal.SIGSTOP)
    try:
        notifier.push([news(2)])
        notifier.settle()  # at once: it does not wait again
        clock.advance(notify.QUIET_S)
        notifier.settle()
        assert [each.levelname for each in caplog.records] == ["WARNING"]
    finally:
        server.signal(signal.SIGCONT)
    bus.ping()  # it is awake
    clock.advance(notify.QUIET_S)
    notifier.settle()
    assert missed(server, epoch=epoch, seq=1).frames is None
    assert bus.hget(UserKeys.of(ALICE).state, "epoch") != epoch
    notifier.close()


def test_what_is_forgotten_cannot_be_asked_for_again(
    server: RedisServer, bus: redis.Redis, notifier: RedisNotifier
) -> None:
    notifier.push([news(1), news(2)])
    epoch = history(bus)[0]["epoch"]
    assert missed(server, epoch=epoch, seq=1).frames
    notifier.forget(ALICE)
    assert missed(server, epoch=epoch, seq=1).frames is None
    assert history(bus) == []


def test_a_restarted_redis_is_used_at_once(tmp_path: Path, clock: ManualClock) -> None:
    server = RedisServer(tmp_path, rules=BUS_RULES).start()
    notifier = RedisNotifier(server.url, clock)
    notifier.push([news(1)])
    server.stop()
    server.start()
    notifier.push([news(2)])
    with redis.Redis.from_url(server.url, decode_responses=True) as bus:
        assert [frame["n"] for frame in history(bus)] == [2]
    server.stop()
    notifier.push([news(3)])  # refused: no error
    notifier.close()


def test_threads_push_at_once_without_a_gap(notifier: RedisNotifier, bus: redis.Redis) -> None:
    def work(thread: int) -> None:
        for n in range(50):
            notifier.push([Push(ALICE, f"{thread}:{n}", {"thread": thread, "n": n})])

    threads = [threading.Thread(target=work, args=(each,)) for each in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    frames = history(bus)
    assert [frame["seq"] for frame in frames] == list(range(1, 201))
    for thread in range(4):
        assert [frame["n"] for frame in frames if frame["thread"] == thread] == list(range(50))


def _push_forked(notifier: RedisNotifier, number: int) -> None:
    notifier.push([news(number)])


def test_it_is_built_before_a_fork_and_used_after(notifier: RedisNotifier, bus: redis.Redis) -> None:
    notifier.push([news(0)])
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_push_forked, args=(notifier, n)) for n in range(1, 5)]
    for each in children:
        each.start()
    notifier.push([news(5)])
    for each in children:
        each.join(20)
        assert each.exitcode == 0
    assert sorted(frame["n"] for frame in history(bus)) == [0, 1, 2, 3, 4, 5]
