"""Messages posted and watched until they arrive: on time (open loop), or so many under way at once (closed window)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final, Self

import msgspec

from bench.client import Answer, Loop, Pool, WebSocket
from bench.people import Parcel, Post, User
from bench.profiles import event_log
from demo.supervisor import LocalSystem, channel_names
from messaging.ports import TopicPartition
from messaging.topics import PARTITIONS, work_topics

CONNECTIONS: Final = 64
LATE_S: Final = 120.0
SAMPLE_S: Final = 1.0


class Head(msgspec.Struct):
    """A message as an answer or a frame names it."""

    message_id: str = ""  # empty: it was refused
    sender_id: str = ""


class Heads(msgspec.Struct):
    """The answer to a batch."""

    items: list[Head]


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
_heads: Final = msgspec.json.Decoder(Heads).decode


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

    def unheard(self) -> int:
        return len(self.due_s.keys() - self.arrived_s.keys())

    def latencies_s(self) -> list[float]:
        return [self.arrived_s[each] - due_s for each, due_s in self.due_s.items() if each in self.arrived_s]


class Traffic:
    """Posts on a system, with a socket for each of ``listeners``."""

    def __init__(
        self,
        system: LocalSystem,
        listeners: Iterable[User],
        arrival: Arrival,
        *,
        acknowledge: bool = False,
        connections: int = CONNECTIONS,
    ) -> None:
        self._loop = Loop()
        self._pool = Pool(self._loop, system.api_url, connections)
        self._arrival = arrival
        self._acknowledge = acknowledge
        self._arrive: Callable[[str], None] = self._note
        self._system = system
        self.watched = Watched()
        self._greeted: set[User] = set()
        self._sockets = {user: self._socket(system, user) for user in listeners}
        if not self._loop.run_until(lambda: len(self._greeted) == len(self._sockets), timeout_s=LATE_S):
            raise TimeoutError("not every socket was greeted")

    def open_loop(self, posts: Sequence[Post], *, per_s: float, seconds: float) -> list[int]:
        """Post ``per_s`` a second whatever happens, then wait for the rest; the lag each second while posting."""
        end_s = time.perf_counter() + seconds
        return self.open_until(posts, per_s=per_s, over=lambda _: time.perf_counter() >= end_s)

    def open_until(
        self, posts: Sequence[Post], *, per_s: float, over: Callable[[Sequence[int]], bool], late_s: float = LATE_S
    ) -> list[int]:
        """The same until ``over``, which is shown the lags so far."""
        turns = cycle(posts)
        with LagSamples(self._system) as samples:
            started_s = time.perf_counter()
            count = 0
            while not over(samples.found):
                now_s = time.perf_counter()
                while (due_s := started_s + count / per_s) <= now_s:
                    self._post(next(turns), due_s)
                    count += 1
                self._loop.turn(due_s - time.perf_counter())
        self.settle(late_s)
        return samples.found

    def rest(self, seconds: float) -> None:
        """Post nothing, and answer the gateway's pings: who does not for half a minute loses the socket."""
        self._loop.run_until(lambda: False, timeout_s=seconds)

    def post(self, posts: Sequence[Post], count: int) -> None:
        """So many as fast as they are accepted; returns once all were."""
        turns = cycle(posts)
        for _ in range(count):
            self._post(next(turns), time.perf_counter())
        self._loop.run_until(lambda: not self._pool.under_way, timeout_s=LATE_S)
        if self.watched.refused or self._pool.under_way:
            raise RuntimeError(f"of {count} posts {self.watched.refused} were refused, {self._pool.under_way} hang")

    def closed_window(
        self, posts: Sequence[Post], *, window: int, seconds: float, when_full: Callable[[], None] = lambda: None
    ) -> float:
        """Keep ``window`` messages under way: the next post goes out when as many as it holds arrived. How many arrived
        a second, from when the first ``window`` had (``when_full`` is called then): until then the stages fill."""
        turns, before = cycle(posts), len(self.watched.arrived_s)
        posting, room = True, window

        def fill() -> None:
            nonlocal room
            while posting and room >= (size := _size(posts[0])):
                room -= size
                self._post(next(turns), time.perf_counter())

        def arrive(message_id: str) -> None:
            nonlocal room
            self._note(message_id)
            room += 1
            fill()

        self._arrive = arrive
        fill()
        if not self._loop.run_until(lambda: len(self.watched.arrived_s) >= before + window, timeout_s=LATE_S):
            raise TimeoutError(f"of the first {window} messages {len(self.watched.arrived_s) - before} arrived")
        when_full()
        full_s, full = time.perf_counter(), len(self.watched.arrived_s)
        self._loop.run_until(lambda: False, timeout_s=seconds)
        elapsed_s, arrived = time.perf_counter() - full_s, len(self.watched.arrived_s) - full
        posting = False
        self.settle()
        self._arrive = self._note
        return arrived / elapsed_s

    def settle(self, late_s: float = LATE_S) -> None:
        """Wait until all that was accepted has arrived, for so long at most."""
        self._loop.run_until(lambda: not self._pool.under_way and not self.watched.unheard(), timeout_s=late_s)

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
        self._pool.close()

    def _socket(self, system: LocalSystem, user: User) -> WebSocket:
        headers = {"Sec-WebSocket-Protocol": f"chat4all, bearer.{user.token}"}
        return WebSocket(self._loop, system.gateway_url, lambda text: self._got(user, text), headers=headers)

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

    def _post(self, post: Post, due_s: float) -> None:
        many = isinstance(post, Parcel)
        self._pool.send(post.request, lambda answer: self._answered(answer, due_s, many=many), due_s=due_s)

    def _answered(self, answer: Answer, due_s: float, *, many: bool) -> None:
        self.watched.answer_s.append(answer.took_s)
        if answer.status not in (202, 207):
            self.watched.refused += 1
            return
        for head in _heads(answer.body).items if many else (_head(answer.body),):
            if head.message_id:
                self.watched.due_s[head.message_id] = due_s
            else:
                self.watched.refused += 1

    def _note(self, message_id: str) -> None:
        if message_id in self.watched.arrived_s:
            self.watched.twice += 1
        else:
            self.watched.arrived_s[message_id] = time.perf_counter()


def _size(post: Post) -> int:
    return post.messages if isinstance(post, Parcel) else 1


class Lag:
    """How many records wait between the log's end and what the bridge finished, over all topics."""

    def __init__(self, system: LocalSystem) -> None:
        self._log = event_log(system)
        topics = work_topics(channel_names())
        partitions = int(system.env.get("PARTITIONS", PARTITIONS))
        self._sources = [TopicPartition(topic, number) for topic in topics for number in range(partitions)]

    def __call__(self) -> int:
        return sum(max(0, self._log.end_offset(each) - self._log.committed("bridge", each)) for each in self._sources)

    def wait_for_none(self, timeout_s: float) -> None:
        deadline_s = time.perf_counter() + timeout_s
        while left := self():
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"{left} records still wait")
            time.sleep(0.1)

    def close(self) -> None:
        self._log.close()


class LagSamples:
    """The lag each second, seen from a thread: to ask Kafka for it takes longer than messages may be late."""

    def __init__(self, system: LocalSystem) -> None:
        self._lag = Lag(system)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.found: list[int] = []

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.found.append(self._lag())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._lag.close()
