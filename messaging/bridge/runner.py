"""Runs the decisions: one thread polls the log, one waits for completions, one loop decides."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from core.clock import SYSTEM_CLOCK, Clock
from core.errors import Unavailable
from core.failpoints import failpoint
from core.rest import Rest
from messaging.bridge.core import BridgeCore, BridgeLimits
from messaging.bridge.dead_letters import DeadLetters
from messaging.errors import LeaseLost
from messaging.ports import EventLog, TopicPartition
from messaging.work import Batch, Dispatcher

logger = logging.getLogger(__name__)

GRAVES_REST_S: Final = 1.0
"""After a dead letter that may not be written yet: there may be thousands, and each wake would ask for all of them."""


class Bridge:
    """Runs a `BridgeCore` over a log and a dispatcher until `stop`.

    ``member`` must be unique among live bridges of the group. `run` blocks; `stop` may be called from a signal handler.
    """

    def __init__(
        self,
        log: EventLog,
        dispatcher: Dispatcher,
        *,
        topics: Sequence[str],
        group: str,
        member: str,
        limits: BridgeLimits | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._limits = limits or BridgeLimits()
        self._log = log
        self._dispatcher = dispatcher
        self._topics = topics
        self._group = group
        self._member = member
        self._clock = clock
        self._graves = DeadLetters(log, per_minute=self._limits.dead_letters_per_minute, clock=clock)
        self._graves_rest = Rest(GRAVES_REST_S, clock)
        self._core = BridgeCore(limits=self._limits, clock=clock)
        self._lock = threading.RLock()  # guards the core
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._polled_s = clock.monotonic_s()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Move records until `stop`; then drain, commit and leave the group. Raises what killed a thread of ours."""
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=loop.__name__, daemon=True)
            for loop in (self._poll_loop, self._completion_loop)
        ]
        for thread in threads:
            thread.start()
        self._guarded(self._decide_loop)
        for thread in threads:
            thread.join(self._limits.drain_s + 5)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        self._stopping.set()
        self._wake.put(None)

    def check(self) -> None:
        """Readiness: raises Unavailable when the log was not polled lately."""
        silent_s = self._clock.monotonic_s() - self._polled_s
        if silent_s > 10:
            raise Unavailable(f"the bridge has not polled the log for {silent_s:.0f} s; is the event log up?")

    # the three loops
    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            logger.critical("bridge loop died", exc_info=error)
            self._failure = error
        finally:
            self.stop()

    def _poll_loop(self) -> None:
        subscription = self._log.subscribe(
            self._topics, group=self._group, member=self._member, listener=_Listener(self)
        )
        self._subscription = subscription
        committed_s = 0.0
        while not self._stopping.is_set():
            try:
                records = subscription.poll(0.1)
                self._polled_s = self._clock.monotonic_s()
                with self._lock:
                    self._core.records(records)
                    pause, resume = self._core.to_pause(), self._core.to_resume()
                if records:
                    self._wake.put(None)
                if pause:
                    subscription.pause(pause)
                if resume:
                    subscription.resume(resume)
                if self._clock.monotonic_s() - committed_s >= self._limits.commit_every_s:
                    committed_s = self._clock.monotonic_s()
                    self._commit()
            except Unavailable as error:
                logger.warning("event log away", extra={"error": error.detail})
                self._stopping.wait(0.5)
        try:
            subscription.close()  # revokes what is owned: drains and commits
        except Unavailable as error:
            logger.warning("left the group without a word", extra={"error": error.detail})

    def _completion_loop(self) -> None:
        while not self._stopping.is_set() or self._has_flight():
            try:
                completions = self._dispatcher.completions(0.5)
            except Unavailable as error:
                logger.warning("bus away", extra={"error": error.detail})
                if self._stopping.wait(0.5):
                    return
                continue
            with self._lock:
                for completion in completions:
                    self._core.completed(completion)
            if completions:
                self._wake.put(None)

    def _decide_loop(self) -> None:
        inspected_s = self._clock.monotonic_s()
        while not self._stopping.is_set():
            self._dispatch_ready()
            self._bury()
            now_s = self._clock.monotonic_s()
            if now_s - inspected_s >= self._limits.inspect_every_s:
                inspected_s = now_s
                self._inspect()
            with self._lock:
                due_s = self._core.next_due_s()
            rest_s = self._limits.inspect_every_s if due_s is None else due_s - self._clock.monotonic_s()
            try:
                self._wake.get(timeout=min(max(rest_s, 0.001), self._limits.inspect_every_s))
                while True:
                    self._wake.get_nowait()
            except queue.Empty:
                continue

    # what they do
    def _dispatch_ready(self) -> None:
        with self._lock:
            batches = self._core.next_batches()
        for batch in batches:
            self._send(self._dispatcher.dispatch, batch)

    def _send(self, how: Callable[[Batch], None], batch: Batch) -> None:
        try:
            how(batch)
        except Unavailable as error:
            # It counts as in flight; the next inspection finds out and it is dispatched again.
            logger.warning("not dispatched", extra={"lane": str(batch.lane), "error": error.detail})

    def _inspect(self) -> None:
        with self._lock:
            batches = self._core.to_inspect()
        if not batches:
            return
        try:
            states = self._dispatcher.inspect(batches)
        except Unavailable:
            return  # known again once the bus is back
        with self._lock:
            again = [batch for batch, state in zip(batches, states, strict=True) if self._core.observed(batch, state)]
        for batch in again:
            self._send(self._dispatcher.send_again, batch)

    def _bury(self) -> None:
        """Outside the lock: an append may take seconds, and nothing may hold up the polling thread."""
        if self._graves_rest.is_on:
            return
        with self._lock:
            dead = self._core.take_dead()
        for each in dead:
            is_buried = self._graves.bury(each.work, each.reason)
            if not is_buried:
                self._graves_rest.begin()
            with self._lock:
                (self._core.buried if is_buried else self._core.not_buried)(each)

    def _has_flight(self) -> bool:
        with self._lock:
            return bool(self._core.in_flight())

    def _commit(self, only: Sequence[TopicPartition] | None = None) -> None:
        with self._lock:
            offsets = self._core.to_commit(only)
        if not offsets:
            return
        failpoint("bridge.uncommitted")
        try:
            self._subscription.commit(offsets)
        except LeaseLost as error:
            logger.warning("commit refused", extra={"error": error.detail})
        else:
            with self._lock:
                self._core.committed(offsets)

    def _drain(self, partitions: Sequence[TopicPartition]) -> None:
        """Let what is in flight end (bounded), commit, forget."""
        failpoint("bridge.revoking")
        with self._lock:
            self._core.stop(partitions)
        deadline_s = self._clock.monotonic_s() + self._limits.drain_s
        pause = threading.Event()
        while self._clock.monotonic_s() < deadline_s:
            with self._lock:
                if self._core.idle(partitions):
                    break
            pause.wait(0.01)
        try:
            self._commit(partitions)
        except Unavailable as error:
            logger.warning("not committed on revoke: the next owner repeats it", extra={"error": error.detail})
        with self._lock:
            self._core.forget(partitions)


@dataclass(frozen=True)
class _Listener:
    """Ownership news, told on the polling thread."""

    bridge: Bridge

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        with self.bridge._lock:
            self.bridge._core.assigned(partitions)
        logger.info("partitions assigned", extra={"partitions": [f"{p.topic}:{p.partition}" for p in partitions]})

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.bridge._drain(partitions)
        logger.info("partitions revoked", extra={"partitions": [f"{p.topic}:{p.partition}" for p in partitions]})

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        with self.bridge._lock:
            self.bridge._core.forget(partitions)
        logger.warning("partitions lost", extra={"partitions": [f"{p.topic}:{p.partition}" for p in partitions]})
