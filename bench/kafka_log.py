"""How fast the Kafka log appends, beside a bare confluent producer on the same server in the same run.

    python -m bench.kafka_log kafka://127.0.0.1:9092

Both are idempotent with acks=all and no linger, and both hear of each record by a callback. A bare program of one
thread flushes; one of many has a polling thread and waits, as the log does. Rounds alternate, so that what else the
machine does meets both.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaError, Message, Producer

from bench.event_log import VALUE, latencies_ms
from bench.figures import Figure
from messaging.eventlog.kafka import KafkaLog
from messaging.eventlog.kafka_link import KafkaUrl
from messaging.ports import NewRecord
from messaging.topics import Topic

ROUNDS: Final = 6
TARGET: Final = 0.8
THREADS: Final = 64  # requests that one API process serves at once

Step = Callable[[], int]


def bare_producer(servers: str) -> Producer:
    return Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "linger.ms": 0,
        }
    )


def bare(producer: Producer, topic: str, batch: int) -> Step:
    def step() -> int:
        done = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None
            done.append((message.partition(), message.offset()))

        for n in range(batch):
            producer.produce(topic, VALUE, b"key-%d" % n, on_delivery=delivered)
        producer.flush()
        return len(done)

    return step


def ours(log: KafkaLog, batch: int) -> Step:
    records = [NewRecord("bench", f"key-{n}", VALUE) for n in range(batch)]
    return lambda: len(log.append(records))


def per_second(step: Step, seconds: float) -> float:
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        done += step()
    return done / elapsed


def of_threads(step: Step, seconds: float) -> Step:
    """As many at once as an API process serves."""

    def all_of_them() -> int:
        until = time.perf_counter() + seconds

        def one() -> int:
            done = 0
            while time.perf_counter() < until:
                done += step()
            return done

        return sum(pool.map(lambda _: one(), range(THREADS)))

    pool = ThreadPoolExecutor(THREADS)
    return all_of_them


def waiting_producer(producer: Producer, topic: str) -> Step:
    """What a thread of a bare program does: produce, wait for the callback that its one polling thread runs."""

    def step() -> int:
        done = threading.Lock()  # the cheapest thing to wait for, in ours as well
        done.acquire()
        producer.produce(topic, VALUE, b"key", on_delivery=lambda *_: done.release())
        done.acquire()
        return 1

    return step


@contextmanager
def polled(producer: Producer) -> Iterator[None]:
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            producer.poll(0.1)

    thread = threading.Thread(target=poll)
    thread.start()
    yield
    over.set()
    thread.join()


def compared(name: str, what: str, mine: Step, floor: Step, *, seconds: float) -> Figure:
    pairs = [(per_second(mine, seconds), per_second(floor, seconds)) for _ in range(ROUNDS)]
    ratio = statistics.median(rate / beside for rate, beside in pairs)
    rate, beside = (statistics.median(each) for each in zip(*pairs, strict=True))
    beside_it = f"bare {beside:,.0f}/s; ratio {ratio:.2f}, target {TARGET}"
    return Figure(what, f"{rate:,.0f}/s", beside_it, name=f"kafka-log-{name}", ratio=ratio)


def everything(where: str, *, seconds: float) -> Iterator[Figure]:
    """On a server that may be loaded; each round of each comparison takes twice ``seconds``. Topics have names of their
    own."""
    url = f"{where.rstrip('/')}/bench-{uuid.uuid4().hex[:8]}"
    log, producer = KafkaLog(url), bare_producer(KafkaUrl.parse(url).servers)
    topic = KafkaUrl.parse(url).prefix + "bench"
    log.ensure_topics([Topic("bench"), Topic("latency")])
    for batch in (1, 100):
        mine, floor = ours(log, batch), bare(producer, topic, batch)
        mine()  # the first append fetches ids and metadata
        floor()
        what = f"append in batches of {batch}, beside one that flushes"
        yield compared(f"batch-{batch}", what, mine, floor, seconds=seconds)
    with polled(producer):
        mine, floor = ours(log, 1), waiting_producer(producer, topic)
        yield compared("waiting", "append one by one, beside one that waits", mine, floor, seconds=seconds)
        many, floors = of_threads(mine, seconds), of_threads(floor, seconds)
        yield compared("threads", f"{THREADS} threads, one each, the same", many, floors, seconds=seconds)
    cuts = statistics.quantiles(latencies_ms(log), n=100)
    yield Figure("append to poll, one at a time", f"p50 {cuts[49]:.2f} · p99 {cuts[98]:.2f} ms")
    log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a server that may be loaded; topics of this run get names of their own")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round of each, six rounds (default: 1)")
    options = parser.parse_args()
    for figure in everything(options.url, seconds=options.seconds):
        print(figure, flush=True)


if __name__ == "__main__":
    main()
