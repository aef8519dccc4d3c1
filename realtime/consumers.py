"""One user's socket: signs in, replays what was missed, passes live frames on, repairs gaps, takes acknowledgements."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec
from channels.consumer import AsyncConsumer, get_handler_name
from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from django.conf import settings
from django.db import InterfaceError, OperationalError
from redis.exceptions import RedisError

from accounts.errors import InvalidToken, TokenExpired
from accounts.tokens import Principal
from core.clock import SYSTEM_CLOCK, Clock
from core.errors import Chat4AllError
from realtime import metrics, outbox
from realtime.auth import Handshake, Session, verify
from realtime.frames import FrameHead, group, head, to_json
from realtime.replay import History, Missed

log = logging.getLogger(__name__)

PATHS: Final = frozenset({"/", "/ws", "/ws/"})
MarkedMessage = tuple[str, str]  # conversation id, message id: as in the frame
Acknowledge = Callable[[Principal, Sequence[MarkedMessage]], Awaitable[None] | None]

CLOSE_BAD_REQUEST: Final = 4400
CLOSE_UNAUTHORIZED: Final = 4401
CLOSE_NOT_FOUND: Final = 4404
CLOSE_TOO_MANY_SOCKETS: Final = 4409
CLOSE_RATE_LIMITED: Final = 4429
CLOSE_TRY_AGAIN: Final = 1013
CLOSE_FAILED: Final = 1011

# Messages that a socket keeps for their acknowledgement, which may never come: nobody has to send one. Twice what the
# outbox holds, for what is still in there cannot be acknowledged yet.
MAX_UNACKNOWLEDGED: Final = 2 * outbox.MAX_FRAMES

_acknowledgers: Final = ThreadPoolExecutor(4, "acknowledge")  # of their own: a slow event log must not hold up sign-ins


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and rhythms of a socket; the gateway's command may move them."""

    check_s: float = 15.0  # how long a lost last frame, or a deactivated user, goes unnoticed
    mark_retry_s: float = 0.25
    heartbeat_s: float = 20.0
    expiry_notice_s: float = 60.0
    client_bytes: int = 64 * 1024
    client_rate_per_s: float = 50.0
    client_burst: float = 100.0
    strikes: int = 5  # invalid messages until the socket closes
    sockets_per_user: int = 20  # per gateway process


class Bucket:
    """A token bucket: ``take`` is False once the burst is used up and the rate is exceeded."""

    def __init__(self, rate_per_s: float, burst: float, clock: Clock) -> None:
        self._rate, self._burst, self._clock = rate_per_s, burst, clock
        self._left, self._at_s = burst, clock.monotonic_s()

    def take(self) -> bool:
        now_s = self._clock.monotonic_s()
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class ClientMessage(msgspec.Struct):
    type: str
    seq: int | None = None
    epoch: str | None = None
    token: str | None = None


_client_message: Final = msgspec.json.Decoder(ClientMessage)


class Refused(Exception):
    """Close the socket with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class UserSocket(AsyncConsumer):  # type: ignore[misc] # channels has no types
    """The protocol is in docs/sockets.md. All handlers and timers take turns, so a frame is never sent out of order."""

    _open: ClassVar[dict[str, dict[UserSocket, None]]] = {}  # by user, oldest first

    def __init__(
        self,
        *,
        acknowledge: Acknowledge,
        history: Callable[[], History],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._acknowledge = acknowledge
        self._history_of_process = history
        self._clock = clock
        self._turn = asyncio.Lock()
        self._accepted = False
        self._session: Session | None = None
        self._joined = False
        self._mark = secrets.token_hex(8)
        self._epoch, self._last = "", 0
        self._unacknowledged: deque[tuple[int, MarkedMessage]] = deque()
        self._first_not_kept: int | None = None  # the seq of the first message that was one too many
        self._acked_seq = 0
        self._acking: asyncio.Task[None] | None = None
        self._strikes = 0
        self._closing = False
        self._wake = asyncio.Event()
        self._notified_expiry_s = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the socket's life -------------------------------------------------------------------------------------

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self._limits: Limits = scope.get("state", {}).get("limits") or Limits()
        self._bucket = Bucket(self._limits.client_rate_per_s, self._limits.client_burst, self._clock)
        self._handshake = Handshake.of(scope)
        try:
            await super().__call__(scope, receive, send)
        except (RedisError, OSError, OperationalError, InterfaceError) as error:
            log.warning("a socket is turned away: a part does not answer (%s)", type(error).__name__)
            self.base_send = send
            await self._close(Refused(CLOSE_TRY_AGAIN, "try again"), accept=not self._accepted)
        finally:
            await self._leave()

    async def dispatch(self, message: dict[str, Any]) -> None:
        # not the parent's: that one asks a thread to close old database connections, for each single frame
        async with self._turn:
            if self._closing and message["type"] != "websocket.disconnect":
                return
            try:
                await getattr(self, get_handler_name(message))(message)
            except Refused as refused:
                await self._close(refused)

    async def websocket_connect(self, _message: dict[str, Any]) -> None:
        # accepted in any case: a browser shows its page the code of a close, but nothing of a refused handshake
        await self.send({"type": "websocket.accept", "subprotocol": self._handshake.subprotocol})
        self._accepted = True
        if self.scope["path"] not in PATHS:
            raise Refused(CLOSE_NOT_FOUND, "no such path")
        self._session = await self._verified(self._handshake.token)
        await self._register()
        await self.channel_layer.group_add(group(self._user_id), self.channel_name)
        await self._history.mark(self._user_id, self._mark)
        self._spawn(self._mark_again())

    async def websocket_disconnect(self, _message: dict[str, Any]) -> None:
        raise StopConsumer

    async def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._session is None:
            return
        sockets = self._open.get(self._user_id, {})
        if self in sockets:
            del sockets[self]
            metrics.CONNECTIONS.dec()
            if not sockets:
                del self._open[self._user_id]
        with contextlib.suppress(RedisError, OSError):  # then the layer has forgotten us anyway
            await self.channel_layer.group_discard(group(self._user_id), self.channel_name)

    async def _register(self) -> None:
        sockets = self._open.setdefault(self._user_id, {})
        sockets[self] = None
        metrics.CONNECTIONS.inc()
        while len(sockets) > self._limits.sockets_per_user:
            oldest = next(iter(sockets))
            del sockets[oldest]  # before it hears of it: others that register meanwhile must find the next one
            metrics.CONNECTIONS.dec()
            await oldest._close(Refused(CLOSE_TOO_MANY_SOCKETS, "too many sockets"))

    async def _close(self, refused: Refused, *, accept: bool = False) -> None:
        if self._closing:
            return
        self._closing = True
        metrics.REFUSED.labels(str(refused.code)).inc()
        if accept:
            await self.send({"type": "websocket.accept", "subprotocol": self._handshake.subprotocol})
        await self.send({"type": "websocket.close", "code": refused.code, "reason": refused.reason})

    # --- frames to the client ------------------------------------------------------------------------------------

    async def user_mark(self, event: dict[str, Any]) -> None:
        """Our own mark came through the group: from here on nothing passes us by."""
        if event["mark"] != self._mark or self._joined:
            return
        self._joined = True
        self._epoch, self._last = event["epoch"], event["seq"]
        hello = {"type": "hello", "user_id": self._user_id, "epoch": self._epoch, "seq": self._last}
        await self._send({**hello, "heartbeat_s": self._limits.heartbeat_s})
        if self._handshake.since is not None:
            self._epoch, self._last = self._handshake.epoch, self._handshake.since
            await self._catch_up()
        self._spawn(self._tend())

    async def user_frame(self, event: dict[str, Any]) -> None:
        if not self._joined:
            return  # older than our mark: part of the replay, or of the history over REST
        frame: str = event["frame"]
        about = head(frame)
        if about.epoch == self._epoch and about.seq <= self._last:
            return
        if about.epoch == self._epoch and about.seq == self._last + 1:
            await self._pass_on(frame, about, source="live")
            return
        await self._catch_up_if_possible()

    async def user_look(self, _event: dict[str, Any]) -> None:
        """Something happened to this user's stream that has no number."""
        if self._joined:
            await self._catch_up_if_possible()

    async def _catch_up(self) -> None:
        missed = await self._history.since(self._user_id, epoch=self._epoch, seq=self._last)
        if missed.frames is None:
            await self._resync(missed)
            return
        for frame in missed.frames:
            await self._pass_on(frame, head(frame), source="history")

    async def _catch_up_if_possible(self) -> None:
        last = self._last
        try:
            await self._catch_up()
            metrics.REPAIRS.inc(self._last != last)
        except (RedisError, OSError) as error:  # the next look repairs it
            log.warning("missed frames cannot be read: the bus does not answer (%s)", type(error).__name__)

    async def _resync(self, missed: Missed) -> None:
        metrics.RESYNCS.inc()
        self._epoch, self._last = missed.epoch, missed.seq
        self._unacknowledged.clear()
        self._first_not_kept = None
        self._acked_seq = 0
        await self._send({"type": "resync", "epoch": missed.epoch, "seq": missed.seq})

    async def _pass_on(self, frame: str, about: FrameHead, *, source: str) -> None:
        self._last = about.seq
        message = about.message
        if message is not None and message.is_for(self._user_id):
            self._keep(about.seq, (message.conversation_id, message.message_id))
        metrics.FRAMES.labels(source).inc()
        await self.send({"type": "websocket.send", "text": frame})

    def _keep(self, seq: int, message: MarkedMessage) -> None:
        """For its acknowledgement. The newest is the one too many: the history has it for whoever comes back from where
        acknowledgements are kept, as a pong says."""
        if len(self._unacknowledged) < MAX_UNACKNOWLEDGED:
            self._unacknowledged.append((seq, message))
        elif self._first_not_kept is None:
            self._first_not_kept = seq

    async def _send(self, value: dict[str, object]) -> None:
        await self.send({"type": "websocket.send", "text": to_json(value)})

    # --- messages from the client --------------------------------------------------------------------------------

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        if not self._bucket.take():
            raise Refused(CLOSE_RATE_LIMITED, "too many messages")
        text = message.get("text")
        if text is None:
            await self._fault("not_text")
        elif len(text.encode()) > self._limits.client_bytes:
            await self._fault("too_large")
        else:
            await self._understand(text)

    async def _understand(self, text: str) -> None:
        try:
            message = _client_message.decode(text)
        except (msgspec.DecodeError, RecursionError):
            await self._fault("malformed")
            return
        match message:
            case ClientMessage(type="ping"):
                await self._send({"type": "pong", "epoch": self._epoch, "acked": self._kept_seq})
            case ClientMessage(type="ack", seq=int()):
                await self._take_ack(message)
            case ClientMessage(type="auth", token=str()):
                await self._extend(message.token or "")
            case ClientMessage(type="ack" | "auth"):
                await self._fault("malformed")
            case _:
                await self._fault("unknown_type")

    async def _fault(self, code: str) -> None:
        self._strikes += 1
        await self._send({"type": "error", "code": code})
        if self._strikes >= self._limits.strikes:
            raise Refused(CLOSE_BAD_REQUEST, "too many invalid messages")

    async def _take_ack(self, message: ClientMessage) -> None:
        seq = message.seq or 0
        if message.epoch not in (None, self._epoch):
            return  # of a stream that is no more
        if not 0 < seq <= self._last:
            await self._fault("unknown_seq")
            return
        self._acked_seq = max(self._acked_seq, seq)
        self._hand_on_acks()

    @property
    def _kept_seq(self) -> int:
        """Up to where acknowledgements on this socket are with whoever is told of them."""
        owed = self._unacknowledged[0][0] if self._unacknowledged else self._acked_seq + 1
        if self._first_not_kept is not None:
            owed = min(owed, self._first_not_kept)
        return min(self._acked_seq, owed - 1)

    def _hand_on_acks(self) -> None:
        ready = self._unacknowledged and self._unacknowledged[0][0] <= self._acked_seq
        if ready and (self._acking is None or self._acking.done()):
            self._acking = asyncio.ensure_future(self._acknowledge_all())

    async def _acknowledge_all(self) -> None:
        """What fails stays where it is, for the next acknowledgement or look."""
        while self._unacknowledged and self._unacknowledged[0][0] <= self._acked_seq:
            batch = [each for each in self._unacknowledged if each[0] <= self._acked_seq]
            try:
                await self._call_acknowledge(self._signed_in.principal, [message for _, message in batch])
            except Exception as error:  # whatever it is, the socket lives on
                metrics.ACKNOWLEDGED.labels("failed").inc(len(batch))
                level = logging.WARNING if isinstance(error, Chat4AllError) else logging.ERROR
                log.log(level, "acknowledgements wait: %s", type(error).__name__)
                return
            metrics.ACKNOWLEDGED.labels("done").inc(len(batch))
            handled = set(batch)
            while self._unacknowledged and self._unacknowledged[0] in handled:
                self._unacknowledged.popleft()

    async def _call_acknowledge(self, principal: Principal, messages: list[MarkedMessage]) -> None:
        if inspect.iscoroutinefunction(self._acknowledge):
            await self._acknowledge(principal, messages)
        else:
            call = database_sync_to_async(self._acknowledge, thread_sensitive=False, executor=_acknowledgers)
            await call(principal, messages)

    # --- the token -----------------------------------------------------------------------------------------------

    async def _verified(self, token: str) -> Session:
        try:
            return await verify(token)
        except TokenExpired:
            raise Refused(CLOSE_UNAUTHORIZED, "token expired") from None
        except InvalidToken:
            raise Refused(CLOSE_UNAUTHORIZED, "invalid token") from None

    async def _extend(self, token: str) -> None:
        try:
            session = await self._verified(token)
        except (OperationalError, InterfaceError):  # the old one counts as long as it did
            await self._send({"type": "error", "code": "unavailable"})
            return
        if session.principal.user_id != self._user_id:
            raise Refused(CLOSE_UNAUTHORIZED, "token of another user")
        self._session = session
        self._wake.set()

    # --- looking after it ----------------------------------------------------------------------------------------

    async def _mark_again(self) -> None:
        """A mark that was published before our subscription took effect is gone: publish another."""
        while not self._joined:
            await asyncio.sleep(self._limits.mark_retry_s)
            with contextlib.suppress(RedisError, OSError):
                await self._history.mark(self._user_id, self._mark)

    async def _tend(self) -> None:
        """Every ``check_s``, and exactly when the token is about to expire, or has."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._until_next_look_s())
            self._wake.clear()
            async with self._turn:
                try:
                    await self._look()
                except Refused as refused:
                    await self._close(refused)
                    return

    def _until_next_look_s(self) -> float:
        left_s = self._token_left_s()
        notice_s = left_s - self._limits.expiry_notice_s
        check_s = self._limits.check_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreads sockets that came at once
        due = [check_s, max(0.0, left_s)]
        return min([*due, notice_s] if notice_s > 0 else due) + 0.001

    async def _look(self) -> None:
        if self._token_left_s() <= 0:
            raise Refused(CLOSE_UNAUTHORIZED, "token expired")
        if self._token_left_s() <= self._limits.expiry_notice_s:
            await self._notify_expiry(self._signed_in)
        await self._check_still_welcome(self._signed_in)
        await self._catch_up_if_possible()
        self._hand_on_acks()

    async def _notify_expiry(self, session: Session) -> None:
        if self._notified_expiry_s != session.principal.expires_at_s:
            self._notified_expiry_s = session.principal.expires_at_s
            await self._send({"type": "token_expiring", "expires_in_s": max(0, int(self._token_left_s()))})

    async def _check_still_welcome(self, session: Session) -> None:
        try:
            await self._verified(session.token)
        except Refused:
            raise
        except Exception as error:  # accounts are away: open sockets stay open
            log.warning("cannot check whether a user is still active: %s", type(error).__name__)

    def _token_left_s(self) -> float:
        return self._signed_in.principal.expires_at_s - self._clock.now_ms() / 1000

    # --- small helpers -------------------------------------------------------------------------------------------

    @property
    def _signed_in(self) -> Session:
        if self._session is None:
            raise RuntimeError("nobody is signed in on this socket yet")
        return self._session

    @property
    def _user_id(self) -> str:
        return self._signed_in.principal.user_id

    @property
    def _history(self) -> History:
        return self._history_of_process()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """A timer that dies would leave a socket that nobody looks after: close it instead."""
        try:
            await work
        except Exception:
            log.exception("a socket's timer failed")
            await self._close(Refused(CLOSE_FAILED, "internal error"))


class ProcessHistory:
    """One `History` per process, made when the first socket needs it: nothing connects on import."""

    def __init__(self) -> None:
        self._history: History | None = None

    def __call__(self) -> History:
        if self._history is None:
            self._history = History(settings.BUS_URL)
        return self._history
