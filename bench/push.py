"""Live pushes: how many a second, and how long from the notifier to a client's frame.

Run ``python -m bench.push``; every number stands beside plain ``group_send`` in the same run, because machines differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from channels_redis.pubsub import RedisPubSubChannelLayer
from websockets.asyncio.client import ClientConnection

from demo.redis_server import BUS_RULES, RedisServer
from realtime.frames import LAYER_PREFIX, Push, group
from realtime.notify import RedisNotifier
from tests.realtime.process import GatewayProcess, make_accounts, start_gateway

TEXT = "Olá, tudo bem? " * 8
Place = tuple[ClientConnection, str, str, int]  # socket, user id, epoch, seq


def body(number: int) -> dict[str, object]:
    message = {"message_id": f"m{number}", "conversation_id": "c", "sender_id": "someone", "content": TEXT}
    return {"type": "message", "message": message}


def frame(epoch: str, seq: int, number: int) -> dict[str, str]:
    return {"type": "user.frame", "frame": json.dumps({"epoch": epoch, "seq": seq, **body(number)})}


def layer_at(url: str) -> RedisPubSubChannelLayer:
    return RedisPubSubChannelLayer(hosts=[url], prefix=LAYER_PREFIX, serializer_format="json")


def notifier_rate(url: str, *, batch: int, total: int) -> float:
    notifier = RedisNotifier(url)
    start = time.perf_counter()
    for first in range(0, total, batch):
        numbers = range(first, first + batch)
        notifier.push([Push(f"user_{n % 50}", f"{batch}:{n}", body(n)) for n in numbers])
    return total / (time.perf_counter() - start)


async def group_send_rate(url: str, *, total: int) -> float:
    layer = layer_at(url)
    start = time.perf_counter()
    for n in range(total):
        await layer.group_send(group(f"user_{n % 50}"), frame("e", n, n))
    elapsed_s = time.perf_counter() - start
    await layer.flush()
    return total / elapsed_s


async def latencies_ms(
    places: list[Place], send: Callable[[Place, int], Awaitable[None]], *, total: int
) -> list[float]:
    """One push at a time, each to another socket; measured until that socket's client has the text."""
    found = []
    for n in range(total):
        socket, user_id, epoch, seq = places[n % len(places)]
        start = time.perf_counter()
        await send((socket, user_id, epoch, seq + 1), n)
        got = json.loads(await asyncio.wait_for(socket.recv(), 10))
        found.append((time.perf_counter() - start) * 1000)
        if got["seq"] != seq + 1:
            raise RuntimeError(f"frame {got['seq']} where {seq + 1} was due")
        places[n % len(places)] = (socket, user_id, epoch, seq + 1)
    return found


async def open_sockets(gateway: GatewayProcess, count: int) -> list[Place]:
    places = []
    for n in range(count):
        socket = await gateway.connect(f"user{n}", open_timeout=30)
        hello = json.loads(await socket.recv())
        places.append((socket, hello["user_id"], hello["epoch"], hello["seq"]))
    return places


def percentiles(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49]:6.2f} ms   p99 {cuts[98]:6.2f} ms"


async def measure(gateway: GatewayProcess, sockets: int, *, total: int) -> None:
    url = gateway.bus.url
    notifier, layer = RedisNotifier(url), layer_at(url)

    async def plain(place: Place, n: int) -> None:
        _, user_id, epoch, seq = place
        await layer.group_send(group(user_id), frame(epoch, seq, n))

    async def numbered(place: Place, n: int) -> None:
        await asyncio.to_thread(notifier.push, [Push(place[1], f"{sockets}:{n}", body(n))])

    places = await open_sockets(gateway, sockets)
    print(f"{sockets:5} sockets, notifier     {percentiles(await latencies_ms(places, numbered, total=total))}")
    # last: it takes numbers that Redis does not know of, which the gateway's next look answers with a resync
    print(f"{sockets:5} sockets, group_send   {percentiles(await latencies_ms(places, plain, total=total))}")
    print(f"{sockets:5} sockets, gateway RSS  {gateway.rss_mib():6.1f} MiB")
    for socket, *_ in places:
        await socket.close()
    with gateway.client() as bus:
        bus.flushdb()
    await layer.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pushes", type=int, default=20_000, help="for the rates (default %(default)s)")
    parser.add_argument("--samples", type=int, default=500, help="for each latency (default %(default)s)")
    parser.add_argument("--sockets", type=int, nargs="+", default=[1, 100, 1000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chat4all-bench-") as name:
        directory = Path(name)
        bus = RedisServer(directory / "bus", rules=BUS_RULES).start()
        try:
            run(options, directory, bus)
        finally:
            bus.stop()


def run(options: argparse.Namespace, directory: Path, bus: RedisServer) -> None:
    print(f"group_send, one by one        {asyncio.run(group_send_rate(bus.url, total=options.pushes)):9,.0f} pushes/s")
    for batch in (1, 10, 100):
        rate = notifier_rate(bus.url, batch=batch, total=options.pushes)
        print(f"notifier, batches of {batch:4}     {rate:9,.0f} pushes/s")
    accounts = make_accounts(directory, [f"user{n}" for n in range(max(options.sockets))])
    gateway = start_gateway(accounts, bus, directory, "--check-s", "600")
    try:
        for sockets in options.sockets:
            asyncio.run(measure(gateway, sockets, total=options.samples))
    finally:
        gateway.process.terminate()
        gateway.process.wait(20)


if __name__ == "__main__":
    main()
