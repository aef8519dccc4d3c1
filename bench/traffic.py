"""Messages posted and watched until they arrive: on time (open loop), or so many under way at once (closed window)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from bench.client import Answer, Loop, Pool, WebSocket
from bench.people import Talk, User
from demo.supervisor import LocalSystem
from messaging.eventlog.redis_streams import RedisStreamsLog
from messaging.ports import TopicPartition
from messaging.topics import PARTITIONS, work_topics

CONNECTIONS: Final = 64
LATE_S: Final = 30.0
SAMPLE_S: Final = 1.0


class Head(msgspec.Struct):
    """A message as an answer or a frame names it."""

    message_id: str
    sender_id: str = ""


class Frame(msgspec.Struct):
    """The part of a frame that a benchmark looks at."""

    type: str
    seq: int = 0
    message: Head | None = None
    message_id: str = ""
    status: str = ""


Arrival = Callable[[User, Frame], str]
"""The id of the message that a frame to this user completes, or an empty string."""

_frame: Final = msgspec.json.Decoder(Frame).decode
_head: Final = msgspec.json.Decoder(Head).decode


def pushed(user: User, frame: Frame) -> str:
    """Somebody else's message came to this user."""
    return frame.message.message_id if frame.message and frame.message.sender_id != user.user_id else ""


def read(_: User, frame: Frame) -> str:
    """The sender learnt that the message was read: the last that becomes of it."""
    return frame.message_id if frame.status == "READ" else ""


@dataclass(slots=True)
class Watched:
    """When each accepted message was due, and when it arrived, by message id."""

    due_s: dict[str, float] = field(default_factory=dict)
    arrived_s: dict[str, float] = field(default_factory=dict)
    answer_s: list[float] = field(default_factory=list)
    refused: int = 0
    twice: int = 0

    def lost(self) -> int:
        return len(self.due_s.keys() - self.arrived_s.keys())

    def latencies_s(self) -> list[float]:
        return [self.arrived_s[each] - due_s for each, due_s in self.due_s.items() if each in self.arrived_s]


class Traffic:
    """Posts on a system, with a socket for each of ``listeners``."""

    def __init__(
        self, system: LocalSystem, listeners: Iterable[User], arrival: Arrival, *, acknowledge: bool = False
    ) -> None:
        self._loop = Loop()
        self._pool = Pool(self._loop, system.api_url, CONNECTIONS)
        self._arrival = arrival
        self._acknowledge = acknowledge
        self._arrive: Callable[[str], None] = self._note
        self._lag = Lag(system)
        self.watched = Watched()
        self._greeted: set[User] = set()
        self._sockets = {user: self._socket(system, user) for user in listeners}
        if not self._loop.run_until(lambda: len(self._greeted) == len(self._sockets), timeout_s=LATE_S):
            raise TimeoutError("not every socket was greeted")

    def open_loop(self, talks: Sequence[Talk], *, per_s: float, seconds: float) -> list[int]:
        """Post ``per_s`` a second whatever happens, then wait for the rest; the lag each second while posting."""
        turns, lags = cycle(talks), []
        started_s = time.perf_counter()
        sample_s, count = started_s, 0
        while count < per_s * seconds:
            now_s = time.perf_counter()
            while (due_s := started_s + count / per_s) <= now_s:
                self._post(next(turns), due_s)
                count += 1
            if now_s >= sample_s:
                sample_s += SAMPLE_S
                lags.append(self._lag())
            self._loop.turn(min(due_s, sample_s) - time.perf_counter())
        self._settle()
        return lags

    def closed_window(self, talks: Sequence[Talk], *, window: int, seconds: float) -> float:
        """Keep ``window`` messages under way: the next goes out when one arrives. How many arrived a second, from when
        the first ``window`` had: until then the stages fill."""
        turns, before = cycle(talks), len(self.watched.arrived_s)
        posting = True

        def arrive(message_id: str) -> None:
            self._note(message_id)
            if posting:
                self._post(next(turns), time.perf_counter())

        self._arrive = arrive
        for _ in range(window):
            self._post(next(turns), time.perf_counter())
        self._loop.run_until(lambda: len(self.watched.arrived_s) >= before + window, timeout_s=LATE_S)
        full_s, full = time.perf_counter(), len(self.watched.arrived_s)
        self._loop.run_until(lambda: False, timeout_s=seconds)
        elapsed_s, arrived = time.perf_counter() - full_s, len(self.watched.arrived_s) - full
        posting = False
        self._settle()
        self._arrive = self._note
        return arrived / elapsed_s

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
        self._pool.close()
        self._lag.close()

    def _socket(self, system: LocalSystem, user: User) -> WebSocket:
        return WebSocket(self._loop, system.gateway_url, user.token, lambda text: self._got(user, text))

    def _got(self, user: User, text: bytes) -> None:
        frame = _frame(text)
        if frame.type == "hello":
            self._greeted.add(user)
        elif frame.type == "resync":
            raise RuntimeError("a socket was told to resync: frames were lost")
        if message_id := self._arrival(user, frame):
            self._arrive(message_id)
            if self._acknowledge:
                self._sockets[user].send_text(b'{"type":"ack","seq":%d}' % frame.seq)

    def _post(self, talk: Talk, due_s: float) -> None:
        self._pool.send(talk.request, lambda answer: self._answered(answer, due_s), due_s=due_s)

    def _answered(self, answer: Answer, due_s: float) -> None:
        self.watched.answer_s.append(answer.took_s)
        if answer.status == 202:
            self.watched.due_s[_head(answer.body).message_id] = due_s
        else:
            self.watched.refused += 1

    def _note(self, message_id: str) -> None:
        if message_id in self.watched.arrived_s:
            self.watched.twice += 1
        else:
            self.watched.arrived_s[message_id] = time.perf_counter()

    def _settle(self) -> None:
        self._loop.run_until(lambda: not self._pool.under_way and not self.watched.lost(), timeout_s=LATE_S)


class Lag:
    """How many records wait between the log's end and what the bridge finished, over all topics."""

    def __init__(self, system: LocalSystem) -> None:
        self._log = RedisStreamsLog(system.env["EVENT_LOG_URL"])
        topics = work_topics(("whatsapp", "instagram"))
        self._sources = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]

    def __call__(self) -> int:
        return sum(self._log.end_offset(each) - self._log.committed("bridge", each) for each in self._sources)

    def wait_for_none(self, timeout_s: float) -> None:
        deadline_s = time.perf_counter() + timeout_s
        while left := self():
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"{left} records still wait")
            time.sleep(0.1)

    def close(self) -> None:
        self._log.close()


def stored_ids(state_dir: Path) -> set[str]:
    """The messages that the store holds, read beside the system."""
    with sqlite3.connect(f"file:{state_dir}/messages.sqlite3?mode=ro", uri=True) as database:
        return {str(UUID(each)) for (each,) in database.execute("SELECT message_id FROM messaging_message")}
