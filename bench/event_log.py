"""How fast the Redis Streams log appends and wakes its readers, against bare XADD on the same server in the same run.

    python -m bench.event_log

Starts a redis-server of its own with the log's rules (AOF, fsync always) and prints one line per measurement.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import redis

from demo.redis_server import RedisServer
from messaging.eventlog.redis_streams import RedisStreamsLog
from messaging.ports import EventLog, NewRecord, TopicPartition
from messaging.topics import Topic

VALUE = b"x" * 600  # about what a short text message takes on the log
SECONDS = 3.0
ROUND_TRIPS = 1000


class _Quiet:
    owned = False

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        self.owned = bool(partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


def per_second(step: Callable[[], int]) -> float:
    """Things done a second while repeating ``step`` for SECONDS; it answers how many it did."""
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < SECONDS:
        done += step()
    return done / elapsed


def appending(log: RedisStreamsLog, batch: int) -> Callable[[], int]:
    records = [NewRecord("bench", f"key-{n}", VALUE) for n in range(batch)]
    return lambda: len(log.append(records))


def bare(client: redis.Redis, batch: int) -> Callable[[], int]:
    def step() -> int:
        pipe = client.pipeline(transaction=False)
        for n in range(batch):
            pipe.xadd(f"bare:{n % 3}", {"v": VALUE})
        return len(pipe.execute())

    return step


def latencies_ms(log: EventLog) -> list[float]:
    """From before append to after the poll that returns it, one record at a time, the reader blocked meanwhile."""
    listener = _Quiet()
    subscription = log.subscribe(["latency"], group="bench", member="reader", listener=listener)
    while not listener.owned:
        subscription.poll(0.1)
    read = threading.Event()
    read_at: list[float] = []

    def follow() -> None:
        while len(read_at) < ROUND_TRIPS:
            for _ in subscription.poll(1.0):
                read_at.append(time.perf_counter())
                read.set()

    reader = threading.Thread(target=follow)
    reader.start()
    sent_at = []
    for _ in range(ROUND_TRIPS):
        sent_at.append(time.perf_counter())
        log.append([NewRecord("latency", "key", VALUE)])
        read.wait(10)
        read.clear()
    reader.join()
    subscription.close()
    return [(end - start) * 1000 for start, end in zip(sent_at, read_at, strict=True)]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory)).start()
        try:
            log = RedisStreamsLog(server.url)
            log.ensure_topics([Topic("bench"), Topic("latency")])
            client = redis.Redis.from_url(server.url)
            for batch in (1, 100):
                ours, floor = per_second(appending(log, batch)), per_second(bare(client, batch))
                print(
                    f"append in batches of {batch:3}: {ours:8,.0f}/s   bare XADD {floor:8,.0f}/s   {ours / floor:.2f}"
                )
            percentiles = statistics.quantiles(latencies_ms(log), n=100)
            print(f"append -> poll: p50 {percentiles[49]:.2f} ms   p99 {percentiles[98]:.2f} ms")
            client.close()
            log.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
