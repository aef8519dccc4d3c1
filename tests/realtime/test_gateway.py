"""A user's live stream, through a real gateway process, a real Redis and a real client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.db import OperationalError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from accounts.tokens import Principal
from demo.redis_server import BUS_RULES, RedisServer, free_port
from realtime.auth import Session
from realtime.consumers import MAX_UNACKNOWLEDGED, UserSocket
from realtime.frames import HISTORY_FRAMES, UserKeys, frame_tail, redis_channel
from realtime.notify import PUSH_SCRIPT, Push
from realtime.replay import History
from tests.realtime.conftest import CROWD
from tests.realtime.process import Accounts, GatewayProcess, hello, ids, read, start_gateway

pytestmark = pytest.mark.xdist_group("gateway")


async def until(condition: Callable[[], Any], *, timeout_s: float = 20) -> Any:
    async with asyncio.timeout(timeout_s):
        while not (result := await asyncio.to_thread(condition)):
            await asyncio.sleep(0.02)
    return result


async def close_code(socket: connect) -> int:
    """The code with which the gateway closes, whatever it sends before."""
    async with asyncio.timeout(20), socket as connection:
        try:
            while True:
                await connection.recv()
        except ConnectionClosed:
            return connection.close_code or 0


def other_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


# --- who gets in -------------------------------------------------------------------------------------------------


async def test_a_token_in_the_query_opens_a_socket(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        frame = await hello(socket)
    assert frame["user_id"] == gateway.user("alice")
    assert frame["seq"] == 0
    assert frame["epoch"]
    assert frame["heartbeat_s"] > 0


@pytest.mark.parametrize("offer", [("chat4all", "bearer.{}"), ("bearer.{}", "chat4all"), ("access_token", "{}")])
async def test_a_token_as_a_subprotocol_opens_a_socket(gateway: GatewayProcess, offer: tuple[str, str]) -> None:
    token = gateway.accounts.token("alice")
    protocols = [Subprotocol(each.format(token)) for each in offer]
    async with connect(gateway.url + "ws", subprotocols=protocols, proxy=None) as socket:
        assert (await hello(socket))["user_id"] == gateway.user("alice")
        assert socket.subprotocol == ("access_token" if offer[0] == "access_token" else "chat4all")


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda _: "", id="none"),
        pytest.param(lambda _: "x.y.z", id="garbage"),
        pytest.param(lambda _: "é\x00" * 50, id="not ascii"),
        pytest.param(lambda accounts: accounts.token("alice", lifetime_s=-30), id="expired"),
        pytest.param(lambda accounts: accounts.token("alice", key=other_key()), id="signed by somebody else"),
        pytest.param(lambda accounts: accounts.token("alice", token_type="refresh"), id="a refresh token"),
        pytest.param(lambda accounts: accounts.token("alice", sub="user_nobody"), id="nobody"),
        pytest.param(lambda accounts: accounts.token("alice", exp=None), id="without an end"),
    ],
)
async def test_a_bad_token_is_closed_with_a_code_that_a_browser_can_read(
    gateway: GatewayProcess, forge: Callable[[Accounts], str]
) -> None:
    token = quote(forge(gateway.accounts))
    assert await close_code(connect(f"{gateway.url}?token={token}", proxy=None)) == 4401
    with gateway.client() as bus:
        assert not bus.keys("*live*")


async def test_a_bad_token_as_a_subprotocol_still_echoes_it(gateway: GatewayProcess) -> None:
    protocols = [Subprotocol("chat4all"), Subprotocol("bearer.nonsense")]
    async with connect(gateway.url, subprotocols=protocols, proxy=None) as socket:
        assert socket.subprotocol == "chat4all"
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4401


async def test_another_path_is_not_found(gateway: GatewayProcess) -> None:
    token = gateway.accounts.token("alice")
    assert await close_code(connect(f"{gateway.url}elsewhere?token={token}", proxy=None)) == 4404


async def test_a_socket_ends_with_its_token_and_says_so_before(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice", token=gateway.accounts.token("alice", lifetime_s=6)) as socket:
        await hello(socket)
        warning = await read(socket)
        assert warning["type"] == "token_expiring"
        assert 0 <= warning["expires_in_s"] <= 6
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4401


async def test_a_new_token_of_the_same_user_keeps_the_socket(gateway: GatewayProcess) -> None:
    lifetime_s = 6
    async with gateway.connect("alice", token=gateway.accounts.token("alice", lifetime_s=lifetime_s)) as socket:
        await hello(socket)
        assert (await read(socket))["type"] == "token_expiring"
        await socket.send(json.dumps({"type": "auth", "token": gateway.accounts.token("alice")}))
        deadline = time.time() + lifetime_s + 1
        while time.time() < deadline:  # past the first token's end; each pong shows that the socket is open
            await socket.send('{"type":"ping"}')
            assert (await read(socket))["type"] == "pong"
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("forge", ["mallory", "expired", "garbage"])
async def test_no_other_token_extends_a_socket(gateway: GatewayProcess, forge: str) -> None:
    accounts = gateway.accounts
    token = {"mallory": accounts.token("mallory"), "expired": accounts.token("alice", lifetime_s=-9)}.get(forge, "x")
    async with gateway.connect("alice") as socket:
        await hello(socket)
        await socket.send(json.dumps({"type": "auth", "token": token}))
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4401


async def test_a_deactivated_user_loses_the_socket(gateway: GatewayProcess) -> None:
    async with gateway.connect("user50") as socket:
        await hello(socket)
        change = "from accounts.models import User; User.objects.filter(username='user50').update(is_active=False)"
        await asyncio.to_thread(gateway.accounts.manage, "shell", "-c", change)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 20)
        assert socket.close_code == 4401


async def test_who_is_not_known_comes_back_later_while_the_accounts_are_away(gateway: GatewayProcess) -> None:
    accounts = sqlite3.connect(Path(gateway.accounts.env["STATE_DIR"]) / "accounts.sqlite3", isolation_level=None)
    logged = len(gateway.log.read_text())
    with contextlib.closing(accounts):
        accounts.execute("ALTER TABLE accounts_user RENAME TO accounts_away")
        try:
            assert await close_code(gateway.connect("user53")) == 1013
        finally:
            accounts.execute("ALTER TABLE accounts_away RENAME TO accounts_user")
    assert "Traceback" not in gateway.log.read_text()[logged:]
    async with asyncio.timeout(20):
        while not await is_let_in(gateway, "user53"):  # nobody asks a database that was away so shortly before
            pass


async def is_let_in(gateway: GatewayProcess, name: str) -> bool:
    async with gateway.connect(name) as socket:
        try:
            await hello(socket)
        except ConnectionClosed:
            assert socket.close_code == 1013
            return False
        return True


async def test_a_session_that_cannot_be_extended_now_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    async def away(_token: str) -> Session:
        raise OperationalError

    async def send(_socket: UserSocket, frame: object) -> None:
        sent.append(frame)

    monkeypatch.setattr("realtime.consumers.verify", away)
    monkeypatch.setattr(UserSocket, "_send", send)
    socket = UserSocket(acknowledge=lambda *_: None, history=lambda: History("redis://127.0.0.1:1"))
    before = socket._session = Session(Principal("user_a", uuid4(), "a", 0), "token")
    await socket._extend("another")
    assert sent == [{"type": "error", "code": "unavailable"}]
    assert socket._session is before


async def test_the_oldest_of_too_many_sockets_goes(gateway: GatewayProcess) -> None:
    sockets = []
    for _ in range(21):
        sockets.append(await gateway.connect("user51"))
        await hello(sockets[-1])
    with pytest.raises(ConnectionClosed):
        await sockets[0].recv()
    assert sockets[0].close_code == 4409
    gateway.push(gateway.message("user51", 1))
    assert ids([await read(socket) for socket in sockets[1:]]) == ["m1"] * 20
    for socket in sockets:
        await socket.close()


async def test_the_limit_holds_for_sockets_opened_at_once(gateway: GatewayProcess) -> None:
    sockets = await asyncio.gather(*(gateway.connect("user52") for _ in range(120)))
    ends = [asyncio.create_task(_close_code(socket)) for socket in sockets]
    closed: set[asyncio.Task[int | None]] = set()
    while len(closed) < 100:
        done, _ = await asyncio.wait(set(ends) - closed, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert done, f"only {len(closed)} of 120 sockets were closed"
        closed |= done
    assert {task.result() for task in closed} == {4409}
    left = [socket for socket, task in zip(sockets, ends, strict=True) if task not in closed]
    assert len(left) == 20
    for socket in left:
        await (await socket.ping())  # answered: it is open at the gateway, too
    assert not [task for task in ends if task.done() and task not in closed]
    await asyncio.gather(*(socket.close() for socket in left), *ends)


async def _close_code(socket: ClientConnection) -> int | None:
    await socket.wait_closed()
    return socket.close_code


# --- what comes through ------------------------------------------------------------------------------------------


async def test_frames_come_in_order_to_every_device_and_once(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as phone, gateway.connect("alice") as laptop:
        await hello(phone)
        await hello(laptop)
        for start in range(0, 200, 20):
            batch = [gateway.message("alice", n, text="olá ✓✓ 👍🏽") for n in range(start, start + 20)]
            gateway.push(*batch)
            gateway.push(*batch)  # a replay
        for device in (phone, laptop):
            frames = [await read(device) for _ in range(200)]
            assert [frame["seq"] for frame in frames] == list(range(1, 201))
            assert ids(frames) == [f"m{n}" for n in range(200)]
            assert frames[0]["message"]["content"] == "olá ✓✓ 👍🏽"


async def test_mallory_never_sees_a_frame_of_alice(gateway: GatewayProcess) -> None:
    async with gateway.connect("mallory") as mallory, gateway.connect("alice") as alice:
        about_mallory = await hello(mallory)
        about_alice = await hello(alice)
        gateway.push(gateway.message("alice", 1), gateway.message("mallory", 2))
        assert ids([await read(alice)]) == ["m1"]
        assert ids([await read(mallory)]) == ["m2"]
    stolen = f"&epoch={about_alice['epoch']}&since=0"
    async with gateway.connect("mallory", stolen) as mallory:
        assert (await hello(mallory))["epoch"] == about_mallory["epoch"]
        assert (await read(mallory))["type"] == "resync"
        await mallory.send('{"type":"ping"}')
        assert (await read(mallory))["type"] == "pong"


async def test_many_users_each_get_their_own(gateway: GatewayProcess) -> None:
    names = [f"user{n}" for n in range(CROWD - 10)]
    sockets = {name: await gateway.connect(name) for name in names}
    for socket in sockets.values():
        await hello(socket)
    gateway.push(*(gateway.message(name, f"{name}-{n}") for n in range(5) for name in names))
    for name, socket in sockets.items():
        assert ids([await read(socket) for _ in range(5)]) == [f"m{name}-{n}" for n in range(5)]
        await socket.close()
    assert await until(lambda: gateway.metric("chat4all_gateway_connections") == 0)


# --- coming back -------------------------------------------------------------------------------------------------


async def test_a_client_that_comes_back_gets_what_it_missed_and_then_what_is_new(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        epoch = (await hello(socket))["epoch"]
        gateway.push(gateway.message("alice", 1))
        last = await read(socket)
    gateway.push(*(gateway.message("alice", n) for n in range(2, 7)))
    async with gateway.connect("alice", f"&epoch={epoch}&since={last['seq']}") as socket:
        assert (await hello(socket))["seq"] == 6
        gateway.push(gateway.message("alice", 7))
        frames = [await read(socket) for _ in range(6)]
    assert [frame["seq"] for frame in frames] == [2, 3, 4, 5, 6, 7]
    assert ids(frames) == [f"m{n}" for n in range(2, 8)]


async def test_coming_back_under_fire_leaves_no_gap_and_no_duplicate(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        epoch = (await hello(socket))["epoch"]
    total, seen = 600, 0

    def fire() -> None:
        for n in range(1, total + 1):
            gateway.push(gateway.message("alice", n))

    firing = asyncio.ensure_future(asyncio.to_thread(fire))
    while seen < total:
        async with gateway.connect("alice", f"&epoch={epoch}&since={seen}") as socket:
            await hello(socket)
            for _ in range(min(37, total - seen)):  # then cut it, in the middle of what it is being sent
                frame = await read(socket)
                assert frame["seq"] == seen + 1
                assert frame["message"]["message_id"] == f"m{seen + 1}"
                seen += 1
            socket.transport.abort()
    await firing


async def test_a_client_away_for_too_long_is_told_to_resync(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        epoch = (await hello(socket))["epoch"]
    gateway.push(*(gateway.message("alice", n) for n in range(HISTORY_FRAMES + 1)))
    async with gateway.connect("alice", f"&epoch={epoch}&since=0") as socket:
        await hello(socket)
        assert await read(socket) == {"type": "resync", "epoch": epoch, "seq": HISTORY_FRAMES + 1}
        gateway.push(gateway.message("alice", "after"))
        assert (await read(socket))["seq"] == HISTORY_FRAMES + 2


@pytest.mark.parametrize(
    "query", ["&since=1", "&epoch=0123456789abcdef&since=0", "&epoch={}&since=99", "&epoch={}&since=x"]
)
async def test_a_place_that_never_was_is_a_resync(gateway: GatewayProcess, query: str) -> None:
    async with gateway.connect("alice") as socket:
        epoch = (await hello(socket))["epoch"]
    async with gateway.connect("alice", query.format(epoch)) as socket:
        await hello(socket)
        assert await read(socket) == {"type": "resync", "epoch": epoch, "seq": 0}


async def test_the_whole_history_fits_a_socket(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        epoch = (await hello(socket))["epoch"]
    gateway.push(*(gateway.message("alice", n, text="x" * 700) for n in range(HISTORY_FRAMES)))
    async with gateway.connect("alice", f"&epoch={epoch}&since=0", max_queue=1) as socket:
        await hello(socket)
        frames = [await read(socket) for _ in range(5)]
        await asyncio.sleep(0.3)  # a reader that takes its time
        while frames[-1]["type"] != "resync" and len(frames) < HISTORY_FRAMES:
            frames.append(await read(socket))
    assert frames[-1].get("seq") == HISTORY_FRAMES


async def test_a_flushed_redis_is_a_resync_for_those_who_stay_and_for_those_who_return(
    gateway: GatewayProcess,
) -> None:
    async with gateway.connect("alice") as staying, gateway.connect("bob") as quiet:
        before = await hello(staying)
        await hello(quiet)
        gateway.push(gateway.message("alice", 1))
        await read(staying)
        with gateway.client() as bus:
            bus.flushall()
        gateway.push(gateway.message("alice", 2))
        resync = await read(staying)
        assert resync["type"] == "resync"
        assert resync["epoch"] != before["epoch"]
        assert (await asyncio.wait_for(read(quiet), 10))["type"] == "resync"  # found by looking, without any push
        gateway.push(gateway.message("alice", 3))
        frame = await read(staying)
        assert (frame["epoch"], frame["seq"]) == (resync["epoch"], resync["seq"] + 1)
    async with gateway.connect("alice", f"&epoch={before['epoch']}&since=1") as socket:
        await hello(socket)
        assert (await read(socket))["type"] == "resync"


# --- what the channel layer loses --------------------------------------------------------------------------------


async def test_frames_lost_while_the_layer_reconnects_are_found(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        with gateway.client() as bus:
            for n in range(1, 301):
                if n % 60 == 0:
                    bus.client_kill_filter(_type="pubsub")
                gateway.push(gateway.message("alice", n))
        frames = [await asyncio.wait_for(read(socket), 20) for _ in range(300)]
    assert [frame["seq"] for frame in frames] == list(range(1, 301))
    assert ids(frames) == [f"m{n}" for n in range(1, 301)]
    assert gateway.metric("chat4all_gateway_repairs_total") > 0


async def test_a_gap_is_filled_before_the_frame_behind_it(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        gateway.push(gateway.message("alice", 1))
        await read(socket)
        push_unheard(gateway, 2, 3)
        gateway.push(gateway.message("alice", 4))
        assert ids([await read(socket) for _ in range(3)]) == ["m2", "m3", "m4"]


async def test_a_lost_last_frame_is_found_by_looking(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        push_unheard(gateway, 1)
        assert ids([await asyncio.wait_for(read(socket), 10)]) == ["m1"]


def push_unheard(gateway: GatewayProcess, *numbers: int) -> None:
    """Frames in the history that the gateway never hears of: published where nobody listens."""
    with gateway.client() as bus:
        keys = UserKeys.of(gateway.user("alice"))
        for n in numbers:
            push = gateway.message("alice", n)
            args = (push.event_id, frame_tail(push.body, at=""), "epoch", "nowhere", 3600, 1000, 1_000_000, 1000)
            bus.eval(PUSH_SCRIPT, 3, keys.state, keys.history, keys.events, *args)


# --- acknowledgements --------------------------------------------------------------------------------------------


def acknowledged(gateway: GatewayProcess) -> list[list[str]]:
    with gateway.client() as bus:
        return [json.loads(each) for each in bus.lrange("test:acknowledged", 0, -1)]


async def test_an_acknowledgement_covers_all_messages_up_to_its_seq_once(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        me = gateway.user("alice")
        status = Push(me, "status:1", {"type": "status", "message_id": "m0", "status": "SENT"})
        gateway.push(
            gateway.message("alice", 1),
            status,
            gateway.message("alice", 2, recipient="somebody else"),
            gateway.message("alice", 3),
        )
        for _ in range(4):
            await read(socket)
        await socket.send('{"type":"ack","seq":3}')
        await until(lambda: acknowledged(gateway) == [[me, "c", "m1"]])
        await socket.send('{"type":"ack","seq":3}')
        await socket.send('{"type":"ack","seq":4}')
        await until(lambda: len(acknowledged(gateway)) > 1)
    assert acknowledged(gateway) == [[me, "c", "m1"], [me, "c", "m3"]]  # no one else's, no status, none twice


async def test_an_acknowledgement_covers_more_than_the_history_holds(gateway: GatewayProcess) -> None:
    number = HISTORY_FRAMES + 500
    async with gateway.connect("alice") as socket:
        await hello(socket)
        await read_new(gateway, socket, number)
        await socket.send(json.dumps({"type": "ack", "seq": number}))
        await until(lambda: len(acknowledged(gateway)) == number)
        assert await first_acked(socket) == number


async def test_what_was_too_much_to_acknowledge_at_once_comes_again(gateway: GatewayProcess) -> None:
    number = MAX_UNACKNOWLEDGED + 3
    async with gateway.connect("alice") as socket:
        epoch = (await hello(socket))["epoch"]
        await read_new(gateway, socket, number)  # nobody is closed for acknowledging nothing
        await socket.send(json.dumps({"type": "ack", "seq": number}))
        await until(lambda: len(acknowledged(gateway)) == MAX_UNACKNOWLEDGED)
        kept = await first_acked(socket)
        assert kept == MAX_UNACKNOWLEDGED
        gateway.push(gateway.message("alice", "later"))
        later = await read(socket)
        await socket.send(json.dumps({"type": "ack", "seq": later["seq"]}))
        await until(lambda: acknowledged(gateway)[-1][2] == "mlater")
        assert await acked(socket) == kept
    async with gateway.connect("alice", f"&epoch={epoch}&since={kept}") as socket:
        await hello(socket)
        again = [await read(socket) for _ in range(4)]
        assert ids(again) == [*(f"m{n}" for n in range(kept + 1, number + 1)), "mlater"]
        await socket.send(json.dumps({"type": "ack", "seq": again[-1]["seq"]}))
        await until(lambda: [each[2] for each in acknowledged(gateway)][-4:] == ids(again))
        assert await first_acked(socket) == later["seq"]


async def read_new(gateway: GatewayProcess, socket: ClientConnection, number: int) -> None:
    """So many messages for Alice, pushed some at a time, so that none has to wait for her."""
    for first in range(1, number + 1, 500):
        batch = range(first, min(first + 500, number + 1))
        gateway.push(*(gateway.message("alice", n) for n in batch))
        assert [(await read(socket))["seq"] for _ in batch] == list(batch)


async def first_acked(socket: ClientConnection) -> int:
    """What `acked` says once it says anything: a moment after the acknowledgements are where they are kept."""
    async with asyncio.timeout(20):
        while not (seq := await acked(socket)):
            pass
    return seq


async def test_a_replayed_message_can_be_acknowledged(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        epoch = (await hello(socket))["epoch"]
    gateway.push(gateway.message("alice", 1))
    async with gateway.connect("alice", f"&epoch={epoch}&since=0") as socket:
        await hello(socket)
        await read(socket)
        await socket.send('{"type":"ack","seq":1}')
        await until(lambda: [each[2] for each in acknowledged(gateway)] == ["m1"])


async def test_an_acknowledgement_that_fails_is_handed_on_later(gateway: GatewayProcess) -> None:
    with gateway.client() as bus:
        bus.set("test:refuse-acknowledgements", 1)
        async with gateway.connect("alice") as socket:
            await hello(socket)
            gateway.push(gateway.message("alice", 1))
            await read(socket)
            await socket.send('{"type":"ack","seq":1}')
            await until(lambda: bus.get("test:refused-acknowledgements"))
            assert acknowledged(gateway) == []
            assert await acked(socket) == 0  # whoever comes back now has to be shown it again
            bus.delete("test:refuse-acknowledgements")
            await until(lambda: [each[2] for each in acknowledged(gateway)] == ["m1"])
            assert await first_acked(socket) == 1


async def acked(socket: ClientConnection) -> int:
    """Up to where a pong says that acknowledgements are kept."""
    await socket.send('{"type":"ping"}')
    pong = await read(socket)
    assert pong["type"] == "pong"
    return int(pong["acked"])


async def test_an_acknowledgement_of_another_epoch_counts_for_nothing(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        gateway.push(gateway.message("alice", 1), gateway.message("alice", 2))
        await read(socket)
        await read(socket)
        await socket.send('{"type":"ack","seq":2,"epoch":"another"}')
        await socket.send('{"type":"ack","seq":1}')
        await until(lambda: acknowledged(gateway))
    assert [each[2] for each in acknowledged(gateway)] == ["m1"]


async def test_an_acknowledgement_does_not_outlive_its_stream(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        gateway.push(*(gateway.message("alice", n) for n in range(1, 6)))
        for _ in range(5):
            await read(socket)
        await socket.send('{"type":"ack","seq":5}')
        await until(lambda: len(acknowledged(gateway)) == 5)
        with gateway.client() as bus:
            bus.flushall()
        assert (await read(socket))["type"] == "resync"
        gateway.push(gateway.message("alice", 6), gateway.message("alice", 7))
        first, _ = await read(socket), await read(socket)
        await socket.send(json.dumps({"type": "ack", "seq": first["seq"]}))
        await until(lambda: acknowledged(gateway))
    assert [each[2] for each in acknowledged(gateway)] == ["m6"]


# --- what clients may say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("{", "malformed", id="broken JSON"),
        pytest.param("[]", "malformed", id="no object"),
        pytest.param('"ping"', "malformed", id="a string"),
        pytest.param("{}", "malformed", id="no type"),
        pytest.param('{"type":7}', "malformed", id="type is no string"),
        pytest.param('{"type":"ack"}', "malformed", id="ack without seq"),
        pytest.param('{"type":"ack","seq":"1"}', "malformed", id="seq is no number"),
        pytest.param('{"type":"ack","seq":99999999999999999999999}', "unknown_seq", id="seq beyond 64 bits"),
        pytest.param('{"type":"ack","seq":1.5}', "malformed", id="seq is a fraction"),
        pytest.param('{"type":"auth"}', "malformed", id="auth without token"),
        pytest.param('{"type":"ack","seq":7}', "unknown_seq", id="ack of the future"),
        pytest.param('{"type":"ack","seq":-1}', "unknown_seq", id="negative"),
        pytest.param('{"type":"user.frame"}', "unknown_type", id="a type of the inside"),
        pytest.param('{"type":"websocket.disconnect"}', "unknown_type", id="a type of the server"),
        pytest.param("[" * 20_000, "malformed", id="deep"),
        pytest.param('{"type":"ping","x":"' + "x" * 65_536 + '"}', "too_large", id="large"),
        pytest.param(b"\x00\x01", "not_text", id="binary"),
        pytest.param(b"", "not_text", id="empty binary"),
        pytest.param("", "malformed", id="empty text"),
    ],
)
async def test_an_invalid_message_is_named_and_the_socket_lives_on(
    gateway: GatewayProcess, text: str | bytes, code: str
) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        await socket.send(text)
        assert await read(socket) == {"type": "error", "code": code}
        await socket.send('{"type":"ping"}')
        assert (await read(socket))["type"] == "pong"


async def test_a_client_that_only_talks_nonsense_is_closed(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        for _ in range(5):
            await socket.send("nonsense")
        for _ in range(5):
            assert (await read(socket))["type"] == "error"
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4400


async def test_a_client_that_talks_too_fast_is_closed(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(300):
                await socket.send('{"type":"ping"}')
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.wait_for(socket.recv(), 10)
        assert socket.close_code == 4429


async def test_a_huge_message_is_not_even_read(gateway: GatewayProcess) -> None:
    async with gateway.connect("alice") as socket:
        await hello(socket)
        with contextlib.suppress(ConnectionClosed):
            await socket.send("x" * 5_000_000)
            await socket.recv()
        assert socket.close_code in {1006, 1009}  # cut off in the middle of sending, not every client sees the reason


# --- slow readers ------------------------------------------------------------------------------------------------


async def test_a_reader_who_never_reads_is_closed_while_others_go_on(gateway: GatewayProcess) -> None:
    before, telling = gateway.metric("chat4all_gateway_outbox_overflows_total"), None
    # It sends no pings either: one that is left unread has the kernel reset the connection, and the reason is lost.
    stalled = await gateway.connect("alice", max_queue=1, ping_interval=None)

    async def told() -> None:
        """Now it reads, what was under way and then the reason: the gateway waits 10 s for that."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.wait_for(stalled.recv(), 20)

    async with gateway.connect("alice") as reader:
        await hello(reader)
        await gateway_warm(gateway)
        start_mib, sent = gateway.rss_mib(), 0
        while sent < 1_500:  # 90 MB
            gateway.push(*(gateway.message("alice", sent + n, text="x" * 60_000) for n in range(10)))
            sent += 10
            for _ in range(10):
                assert (await asyncio.wait_for(read(reader), 20))["type"] == "message"
            if telling is None and gateway.metric("chat4all_gateway_outbox_overflows_total") > before:
                telling = asyncio.create_task(told())
        grown_mib = gateway.rss_mib() - start_mib
    assert telling is not None, "it was never too slow"
    await telling
    assert gateway.metric("chat4all_gateway_outbox_overflows_total") == before + 1
    assert grown_mib < 25
    assert stalled.close_code == 4408


async def gateway_warm(gateway: GatewayProcess) -> None:
    """One large frame each way through every buffer, so that what grows afterwards grows for a reason."""
    async with gateway.connect("bob") as socket:
        await hello(socket)
        gateway.push(*(gateway.message("bob", f"warm{n}", text="x" * 60_000) for n in range(20)))
        for _ in range(20):
            await read(socket)


# --- plain HTTP and the process ----------------------------------------------------------------------------------


async def test_health_and_metrics_are_on_the_same_port(gateway: GatewayProcess) -> None:
    assert gateway.get("/health") == (200, '{"status":"ok","service":"gateway"}')
    assert gateway.get("/ready") == (200, '{"status":"ok","service":"gateway","parts":{"bus":{"status":"ok"}}}')
    assert gateway.metric('chat4all_part_state{part="bus"}') == 0
    assert 'chat4all_part_state{part="bus"}' in gateway.get("/metrics")[1]
    async with gateway.connect("alice") as socket:
        await hello(socket)
        assert await until(lambda: gateway.metric("chat4all_gateway_connections") == 1)
    assert await until(lambda: gateway.metric("chat4all_gateway_connections") == 0)
    assert {gateway.get(path)[0] for path in ("/", "/ws", "/ws/")} == {426}
    assert gateway.get("/admin/")[0] == 404


@contextlib.asynccontextmanager
async def posting(gateway: GatewayProcess, *headers: str) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    """A request whose head is sent, and nothing of its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        head = ["POST /ws HTTP/1.1", "Host: gateway", *headers]
        writer.write("".join(f"{line}\r\n" for line in [*head, ""]).encode())
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # cut off in the middle of sending
            await writer.wait_closed()


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(["Content-Length: 10000000000"], id="10 GB"),
        pytest.param(["Content-Length: 10000000000", "Expect: 100-continue"], id="10 GB, once invited"),
        pytest.param(["Content-Length: 5000"], id="a few KB"),
        pytest.param(["Transfer-Encoding: chunked", "Expect: 100-continue"], id="nobody knows how much, once invited"),
    ],
)
async def test_a_body_is_refused_before_it_comes(gateway: GatewayProcess, headers: list[str]) -> None:
    async with asyncio.timeout(20), posting(gateway, *headers) as (reader, _):
        answer = await reader.read()  # all that comes: the connection is closed behind it
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body)["code"] == "payload_too_large"


async def test_a_body_without_end_is_refused_while_sockets_are_served(gateway: GatewayProcess) -> None:
    async with (
        gateway.connect("alice") as alice,
        posting(gateway, "Transfer-Encoding: chunked") as (reader, writer),
    ):
        await hello(alice)
        status, sent = asyncio.create_task(reader.readline()), 0
        while not status.done():
            assert sent < 64 * 1024, "it is read on and on"
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            sent += 1024
            assert await acked(alice) == 0
        assert status.result().startswith(b"HTTP/1.1 413 ")


async def test_sigterm_tells_everybody_to_come_back(
    live_accounts: Accounts, realtime_bus: RedisServer, tmp_path: Path
) -> None:
    stopping = await asyncio.to_thread(start_gateway, live_accounts, realtime_bus, tmp_path)
    async with stopping.connect("alice") as alice, stopping.connect("bob") as bob:
        await hello(alice)
        await hello(bob)
        stopping.process.send_signal(signal.SIGTERM)
        for socket in (alice, bob):
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), 10)
            assert socket.close_code == 1012
    assert await asyncio.to_thread(stopping.process.wait, 10) == 0
    assert "Traceback" not in stopping.log.read_text()


async def test_a_gateway_without_redis_is_not_ready_turns_clients_away_and_recovers(
    live_accounts: Accounts, tmp_path: Path
) -> None:
    bus = RedisServer(tmp_path / "bus", rules=BUS_RULES).start()
    gateway = await asyncio.to_thread(start_gateway, live_accounts, bus, tmp_path, "--check-s", "0.5")
    try:
        async with gateway.connect("alice") as staying:
            await hello(staying)
            bus.stop()
            await until(lambda: gateway.get("/ready")[0] == 503)
            assert "BUS_URL" in gateway.get("/ready")[1]
            assert await close_code(gateway.connect("bob")) == 1013
            bus.start()
            assert (await asyncio.wait_for(read(staying), 20))["type"] == "resync"
            await until(lambda: gateway.client().pubsub_numsub(redis_channel(gateway.user("alice")))[0][1])
            gateway.push(gateway.message("alice", 1))
            assert ids([await asyncio.wait_for(read(staying), 20)]) == ["m1"]
    finally:
        gateway.process.terminate()
        await asyncio.to_thread(gateway.process.wait, 20)
        bus.stop()


def test_a_taken_port_is_told(live_accounts: Accounts, realtime_bus: RedisServer, tmp_path: Path) -> None:
    running = start_gateway(live_accounts, realtime_bus, tmp_path)
    try:
        with pytest.raises(AssertionError, match=r"cannot listen.*--port"):
            live_accounts.manage("run_gateway", "--port", str(running.port))
    finally:
        running.process.terminate()
        running.process.wait(20)


def test_a_second_port_serves_health_which_need_not_be_public(
    live_accounts: Accounts, realtime_bus: RedisServer, tmp_path: Path
) -> None:
    health_port = free_port()
    accounts = replace(live_accounts, env={**live_accounts.env, "PUBLIC_PROBES": "0"})
    running = start_gateway(accounts, realtime_bus, tmp_path, health_port=health_port)
    try:
        assert [running.get(path)[0] for path in ("/health", "/ready", "/metrics")] == [200, 404, 404]
        running.port = health_port
        assert [running.get(path)[0] for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]
    finally:
        running.process.terminate()
        running.process.wait(20)
