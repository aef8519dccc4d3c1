"""Who changes members tells all other processes, and who may have missed it forgets everything."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis

from demo.redis_server import BUS_RULES, RedisServer
from messaging import member_news
from messaging.member_news import RedisMemberNews
from tests.bounds import once_within
from tests.conftest import redis_executables

WAIT_S = 30.0


@pytest.fixture(scope="module", params=redis_executables())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    executable = redis_executables()[request.param]
    with_rules = RedisServer(tmp_path_factory.mktemp("bus"), rules=BUS_RULES, executable=executable)
    running = with_rules.start()
    yield running
    running.stop()


class Process:
    """One that keeps conversations."""

    def __init__(self, server: RedisServer) -> None:
        self.forgotten: list[UUID] = []
        self.forgot_everything = 0
        self.heard_s = 0.0  # until when, monotonic
        self.news = RedisMemberNews(server.url)
        self._enough: threading.Event | None = None

    def listens(self) -> None:
        self._enough = self.news.listen(self)
        until(lambda: self.forgot_everything == 1)

    def ends(self) -> None:
        if self._enough:
            self._enough.set()

    def forget(self, conversation_id: UUID) -> None:
        self.forgotten.append(conversation_id)

    def forget_all(self) -> None:
        self.forgot_everything += 1

    def heard(self, until_s: float) -> None:
        assert self.forgot_everything, "what may have been missed is forgotten first"
        self.heard_s = until_s


@pytest.fixture
def process(server: RedisServer) -> Iterator[Process]:
    made = Process(server)
    yield made
    made.ends()


def until(holds: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def told(process: Process, server: RedisServer) -> None:
    """Another process's news arrive, by now or in a moment."""
    conversation_id = uuid4()
    other = RedisMemberNews(server.url)

    def arrives() -> bool:
        other.tell(conversation_id)
        return conversation_id in process.forgotten

    until(arrives)


def test_others_hear_which_conversation_it_is(process: Process, server: RedisServer) -> None:
    process.listens()
    changed = [uuid4() for _ in range(3)]
    other = RedisMemberNews(server.url)
    for each in changed:
        other.tell(each)
    until(lambda: len(process.forgotten) == 3)
    assert process.forgotten == changed
    assert process.forgot_everything == 1


def test_who_hears_says_until_when_nothing_was_missed(
    process: Process, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_news, "LOOK_S", 0.1)
    began_s = time.monotonic()
    process.listens()
    until(lambda: process.heard_s >= began_s)
    for _ in range(3):  # also while there is news all the time
        now_s = time.monotonic()
        while process.heard_s < now_s:
            assert time.monotonic() - now_s < WAIT_S
            told(process, server)
    server.signal(signal.SIGSTOP)
    try:
        frozen_s = time.monotonic()
        time.sleep(0.5)  # in which it would have said so
        assert process.heard_s <= frozen_s
    finally:
        server.signal(signal.SIGCONT)
    until(lambda: process.heard_s > frozen_s)


def test_who_was_cut_off_forgets_everything_and_hears_again(process: Process, server: RedisServer) -> None:
    process.listens()
    with redis.Redis.from_url(server.url) as admin:
        admin.client_kill_filter(_type="pubsub")
    until(lambda: process.forgot_everything == 2)
    told(process, server)


def test_who_was_not_answered_for_long_forgets_everything_and_hears_again(
    process: Process, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_news, "SILENCE_S", 0.5)
    monkeypatch.setattr(member_news, "LOOK_S", 0.1)
    process.listens()
    server.signal(signal.SIGSTOP)
    with_silence = process.forgot_everything
    time.sleep(1.5)  # the silence itself
    server.signal(signal.SIGCONT)
    until(lambda: process.forgot_everything > with_silence)
    told(process, server)


def test_what_could_not_be_told_is_made_good(
    process: Process, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others hear again before whoever had found Redis away asks it again."""
    process.listens()
    telling, forgot = RedisMemberNews(server.url), process.forgot_everything
    monkeypatch.setattr(member_news, "LOOK_S", 0.1)
    server.signal(signal.SIGSTOP)
    telling.tell(uuid4())
    server.signal(signal.SIGCONT)
    telling.tell(uuid4())  # it does not ask again so soon
    until(lambda: process.forgot_everything > forgot)
    until(lambda: not telling._is_at_it)
    forgot = process.forgot_everything
    telling.tell(known := uuid4())
    until(lambda: known in process.forgotten)
    assert process.forgot_everything == forgot, "nothing is owed any more, and Redis is asked again"


def test_what_comes_to_be_owed_while_others_are_made_good_is_made_good_too(
    process: Process, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_news, "LOOK_S", 0.01)
    process.listens()
    telling, forgot = RedisMemberNews(server.url), process.forgot_everything
    publish, late = telling._publish, iter([telling._owe])

    def published(news: bytes) -> bool:
        told = publish(news)
        if owe := next(late, None):
            owe()
        return told

    monkeypatch.setattr(telling, "_publish", published)
    telling._owe()
    until(lambda: process.forgot_everything >= forgot + 2)


def test_what_is_no_conversation_means_all_of_them(process: Process, server: RedisServer) -> None:
    process.listens()
    with redis.Redis.from_url(server.url) as other:
        other.publish(member_news.CHANNEL, b"of another release")
    until(lambda: process.forgot_everything == 2)
    told(process, server)


def test_to_tell_holds_nobody_up_when_redis_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer(tmp_path, rules=BUS_RULES).start()
    server.signal(signal.SIGSTOP)
    try:

        def tells() -> float:
            news = RedisMemberNews(server.url)
            began_s = time.monotonic()
            for _ in range(100):
                news.tell(uuid4())
            return time.monotonic() - began_s

        once_within(2 * member_news.TIMEOUT_S, tells)
    finally:
        server.signal(signal.SIGCONT)
        server.stop()
    assert {each.levelname for each in caplog.records} == {"WARNING"}
