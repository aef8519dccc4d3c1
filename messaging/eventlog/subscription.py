"""A member's share of a group, built on leases: when to renew, hand over, fetch, pause. Knows no Redis."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from core.clock import Clock
from messaging.errors import LeaseLost, LogUnavailable
from messaging.eventlog.ledger import Beat, Ledger, share
from messaging.eventlog.records import weight
from messaging.ports import RebalanceListener, Record, TopicPartition

LEASE_TTL_S: Final = 3.0
DRAIN_S: Final = 5.0  # how long `revoked` may take before the lease is no longer renewed
POLL_RECORDS: Final = 1000
POLL_BYTES: Final = 4 * 1024 * 1024
FETCH_PER_SOURCE: Final = 256  # bounds what one fetch can bring when records suddenly grow
TRIM_EVERY_S: Final = 30.0
TRIM_BUDGET_S: Final = 0.05  # of each beat: trimming never delays a renewal


@dataclass(slots=True)
class _Owned:
    """A partition of ours: where to fetch next, and what was fetched and not returned yet."""

    epoch: int
    position: int
    fetched: deque[Record] = field(default_factory=deque)
    paused: bool = False


class LeasedSubscription:
    """`messaging.ports.Subscription` over a `Ledger`.

    The lease counts from before the renewal was sent, by this process's monotonic clock: a process that was stopped
    notices by itself that its lease may be over, and returns nothing until the ledger said that it is not.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        member: str,
        listener: RebalanceListener,
        clock: Clock,
        lease_ttl_s: float = LEASE_TTL_S,
    ) -> None:
        self._ledger = ledger
        self._member = member
        self._listener = listener
        self._clock = clock
        self._lease_ttl_s = lease_ttl_s
        self._owned: dict[TopicPartition, _Owned] = {}
        self._lease_until_s = self._next_beat_s = float("-inf")
        self._next_trim_s = clock.monotonic_s() + TRIM_EVERY_S
        self._to_trim: deque[TopicPartition] = deque()
        self._largest = 64 * 1024  # bytes of a recent record; sizes the next fetch
        self._turn = 0
        self._closed = False

    def poll(self, timeout_s: float) -> list[Record]:
        deadline = time.monotonic() + timeout_s  # real time even under a test's clock: it is how long we block
        while True:
            self._tend()
            if not self._lapsed() and (records := self._take()):
                return records
            remaining = deadline - time.monotonic()
            self._fetch(wait_s=max(0.0, min(remaining, self._next_beat_s - self._clock.monotonic_s())))
            if not self._lapsed() and (records := self._take()):
                return records
            if remaining <= 0:
                return []

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._set_paused(partitions, paused=True)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._set_paused(partitions, paused=False)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """The ledger compares the epochs, so that not even a process that slept through its lease can go wrong."""
        ours = {each: (self._owned[each].epoch, offset) for each, offset in offsets.items() if each in self._owned}
        refused = self._ledger.commit(ours) if ours else []
        if refused:
            self._next_beat_s = self._lease_until_s = float("-inf")  # ask at once what else is gone
        if gone := sorted([*refused, *(offsets.keys() - ours.keys())]):
            raise LeaseLost("not ours any more: " + ", ".join(f"{each.topic}/{each.partition}" for each in gone))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(LogUnavailable):  # what cannot be released lapses by itself
            try:
                self._hand_over(self._owned.keys())
            finally:
                self._ledger.leave()

    # --- ownership ---

    def _tend(self) -> None:
        """Renew, and follow what changed in the group; nothing to do most of the time."""
        now_s = self._clock.monotonic_s()
        if now_s < self._next_beat_s:
            return
        beat = self._ledger.beat(self._epochs())
        self._renewed_at(now_s)
        try:
            self._follow(beat)
        except LogUnavailable:
            self._next_beat_s = float("-inf")  # the change is half made: go on with it as soon as the log is back
            raise
        self._trim_a_little()

    def _follow(self, beat: Beat) -> None:
        target = share(self._member, beat)
        self._forget(beat.lost)
        self._hand_over(self._owned.keys() - target)
        self._claim(target - self._owned.keys())

    def _renewed_at(self, now_s: float) -> None:
        self._lease_until_s = now_s + self._lease_ttl_s
        self._next_beat_s = now_s + self._lease_ttl_s / 3

    def _lapsed(self) -> bool:
        """Whether the lease may be over; the next `_tend` finds out."""
        return self._clock.monotonic_s() >= self._lease_until_s

    def _epochs(self) -> dict[TopicPartition, int]:
        return {source: owned.epoch for source, owned in self._owned.items()}

    def _forget(self, lost: Collection[TopicPartition]) -> None:
        gone = sorted(source for source in lost if self._owned.pop(source, None))
        if gone:
            self._listener.lost(gone)

    def _hand_over(self, leaving: Collection[TopicPartition]) -> None:
        """Let the listener drain, then release explicitly: the next owner need not wait for the lease to lapse."""
        if not leaving:
            return
        epochs = {source: self._owned[source].epoch for source in sorted(leaving)}
        try:
            with self._kept_alive():
                self._listener.revoked(list(epochs))
        finally:
            for source in epochs:
                del self._owned[source]
            self._ledger.release(epochs)

    def _claim(self, wanted: Collection[TopicPartition]) -> None:
        if not wanted:
            return
        claims = self._ledger.acquire(sorted(wanted))
        for source, claim in claims.items():
            self._owned[source] = _Owned(claim.epoch, claim.position)
        if claims:
            self._listener.assigned({source: claims[source].epoch for source in sorted(claims)})

    @contextmanager
    def _kept_alive(self) -> Iterator[None]:
        """Renew from a thread meanwhile: the polling thread is inside the listener."""
        done = threading.Event()
        keeper = threading.Thread(target=self._renew_until, args=(done, self._epochs()), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()

    def _renew_until(self, done: threading.Event, epochs: Mapping[TopicPartition, int]) -> None:
        give_up = time.monotonic() + DRAIN_S
        while not done.wait(self._lease_ttl_s / 3) and time.monotonic() < give_up:
            with suppress(LogUnavailable):
                self._ledger.beat(epochs)

    # --- records ---

    def _set_paused(self, partitions: Sequence[TopicPartition], *, paused: bool) -> None:
        for source in partitions:
            if source in self._owned:
                self._owned[source].paused = paused

    def _fetch(self, *, wait_s: float) -> None:
        """Ask for more of everything unpaused; called when nothing fetched before is left to return."""
        positions = {source: owned.position for source, owned in self._in_turn() if not owned.paused}
        fetched = self._ledger.fetch(positions, wait_s=wait_s, per_source=self._fair_count(len(positions)))
        if fetched.stirred:
            self._next_beat_s = float("-inf")
        for source, records in fetched.records.items():
            owned = self._owned[source]
            owned.fetched.extend(records)
            owned.position = records[-1].offset + 1
            self._largest = max(self._largest // 2, *(weight(record) for record in records))

    def _fair_count(self, sources: int) -> int:
        """How many records to ask of each source so that all of them together fit one poll."""
        share_of_each = min(POLL_RECORDS, POLL_BYTES // max(self._largest, 1)) // max(sources, 1)
        return max(1, min(share_of_each, FETCH_PER_SOURCE))

    def _take(self) -> list[Record]:
        """What was fetched and may be returned, within the bounds of one poll."""
        taken: list[Record] = []
        size = 0
        for _, owned in self._in_turn():
            while owned.fetched and not owned.paused:
                size += weight(owned.fetched[0])
                if taken and (len(taken) == POLL_RECORDS or size > POLL_BYTES):
                    return taken
                taken.append(owned.fetched.popleft())
        self._turn += 1
        return taken

    def _in_turn(self) -> list[tuple[TopicPartition, _Owned]]:
        """Our partitions, beginning with another one each time: a busy one does not starve the others."""
        owned = sorted(self._owned.items(), key=lambda item: item[0])
        start = self._turn % len(owned) if owned else 0
        return owned[start:] + owned[:start]

    # --- retention ---

    def _trim_a_little(self) -> None:
        """Work down a round of trimming, a few steps each beat."""
        started_s = self._clock.monotonic_s()
        if not self._to_trim and started_s >= self._next_trim_s:
            self._next_trim_s = started_s + TRIM_EVERY_S
            self._to_trim.extend([*sorted(self._owned), *self._ledger.unread_sources()])
        stop = time.monotonic() + TRIM_BUDGET_S
        while self._to_trim and time.monotonic() < stop:
            if not self._ledger.trim(self._clock.now_ms(), self._to_trim[0]):
                self._to_trim.popleft()
