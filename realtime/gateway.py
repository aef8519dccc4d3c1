# ruff: noqa: N802, N803 - the names are Twisted's and autobahn's
"""Daphne with what it lacks: backpressure per socket, a bounded inbox, no bodies, and a clean goodbye on SIGTERM.

Daphne writes whatever the application sends into the transport's buffer, without a bound (its issue 170). Twisted's
transport tells a registered producer when that buffer is full and when it is empty again; between the two, frames wait
in an `Outbox`, and a reader who is too slow even for that is closed with 4408 and may come back for a replay.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Final

import daphne.server  # first: it installs the asyncio reactor that the others take
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet import defer, reactor, task
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from realtime import metrics
from realtime.consumers import CLOSE_RATE_LIMITED, Limits
from realtime.http import BODY_REFUSED
from realtime.outbox import Outbox

log = logging.getLogger(__name__)

CLOSE_SLOW_READER: Final = 4408
CLOSE_RESTARTING: Final = 1012
MAX_CLIENT_MESSAGE_BYTES: Final = (
    256 * 1024
)  # beyond, the socket closes with 1009 unread; the consumer's limit is lower
MAX_INBOX: Final = 256
MAX_BODY_BYTES: Final = 4 * 1024  # of a plain HTTP request; nobody reads it
CLOSE_HANDSHAKE_S: Final = 10
GOODBYE_S: Final = 5.0


class GatewayProtocol(WebSocketProtocol):  # type: ignore[misc] # daphne has no types
    """One WebSocket. The transport calls the three `…Producing` methods."""

    muted: bool

    def connectionMade(self) -> None:
        super().connectionMade()
        self._outbox = Outbox()
        self._paused = False
        # The connection began as HTTP, whose channel still is the producer: it would stop reading from the client
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        while self._outbox and not self._paused:
            self.sendMessage(self._outbox.take(), False)

    def stopProducing(self) -> None:
        self._outbox.clear()

    def serverSend(self, content: str, binary: bool = False) -> None:
        if self.muted or self.state != self.STATE_OPEN:
            return
        frame = content.encode()
        if not self._paused:
            self.sendMessage(frame, binary)
        elif not self._outbox.add(frame):
            metrics.OVERFLOWS.inc()
            self.cut(CLOSE_SLOW_READER, "reads too slowly")

    def handle_reply(self, message: dict[str, Any]) -> None:
        if message.get("type") == "websocket.close" and self.state != self.STATE_CONNECTING:
            self.goodbye(message.get("code") or 1000, message.get("reason") or "")
        elif not self.muted:
            super().handle_reply(message)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.application_queue.qsize() >= MAX_INBOX:
            self.cut(CLOSE_RATE_LIMITED, "too many messages")
        else:
            super().onMessage(payload, isBinary)

    def cut(self, code: int, reason: str) -> None:
        """Close now and tell the application at once: the client may take its time to answer, or never do."""
        if self.muted:
            return
        self.application_queue.put_nowait({"type": "websocket.disconnect", "code": code})
        self.muted = True
        self.goodbye(code, reason)

    def goodbye(self, code: int, reason: str) -> None:
        """Frames that wait are dropped: who comes back gets them from the history."""
        self._outbox.clear()
        # not sendClose: it refuses 1011 to 1013
        self.sendCloseFrame(code=code, reasonUtf8=reason.encode())


class GatewayChannel(HTTPChannel):
    """One HTTP connection. Twisted would spool a body to a file, and Daphne queue all of it for an application that
    reads none: it is refused as soon as it is announced."""

    def allHeadersReceived(self) -> None:
        if self.length is None or self.length > MAX_BODY_BYTES:  # None: chunked, which may go on for ever
            self._refuse_body()
        else:
            super().allHeadersReceived()  # type: ignore[no-untyped-call] # it also invites the body, if asked (Expect)

    def _refuse_body(self) -> None:
        """As Twisted refuses what it cannot parse: from here on nothing is read."""
        page = BODY_REFUSED
        head = f"HTTP/1.1 {page.status} Content Too Large\r\nConnection: close\r\n"
        head += f"Content-Type: {page.content_type}\r\nContent-Length: {len(page.body)}\r\n\r\n"
        self.write(head.encode() + page.body)  # type: ignore[no-untyped-call]
        self.loseConnection()  # type: ignore[no-untyped-call]


@dataclass
class Listener:
    """Where to listen."""

    host: str
    port: int

    def endpoint(self) -> str:
        return f"tcp:port={self.port}:interface={self.host.replace(':', chr(92) + ':')}"


@dataclass
class Gateway:
    """A gateway process; `run` returns after SIGTERM or SIGINT, when the sockets are closed."""

    application: Any
    listeners: list[Listener]
    limits: Limits = field(default_factory=Limits)
    health_port: int | None = None

    def run(self) -> None:
        """Raises OSError when an address cannot be had."""
        server = _Server(
            application=self.application,
            endpoints=[each.endpoint() for each in self.listeners],
            limits=self.limits,
            health_port=self.health_port,
        )
        server.run()
        if server.failure is not None:
            raise OSError(server.failure.getErrorMessage())


class _Server(daphne.server.Server):  # type: ignore[misc] # daphne has no types
    def __init__(self, *, limits: Limits, health_port: int | None, **options: Any) -> None:
        super().__init__(
            **options,
            websocket_timeout=-1,  # daphne would close every socket after a day
            websocket_max_message_size=MAX_CLIENT_MESSAGE_BYTES,
            websocket_max_frame_size=MAX_CLIENT_MESSAGE_BYTES,
            ping_interval=int(limits.heartbeat_s),
            ready_callable=self._prepare,
            server_name="",
            verbosity=0,
        )
        self._state = {"limits": limits, "health_port": health_port}
        self._ports: list[Any] = []
        self.failure: Failure | None = None

    def _prepare(self) -> None:
        """Called between making the factories and the first connection."""
        self.http_factory.protocol = GatewayChannel
        self.ws_factory.protocol = GatewayProtocol
        self.ws_factory.setProtocolOptions(closeHandshakeTimeout=CLOSE_HANDSHAKE_S)

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        scope["state"] = self._state
        return super().create_application(protocol, scope)

    def listen_success(self, port: Any) -> None:
        self._ports.append(port)
        log.info("gateway listens on %s:%s", port.getHost().host, port.getHost().port)

    def listen_error(self, failure: Failure) -> None:
        self.failure = failure
        self.stop()

    def kill_all_applications(self) -> defer.Deferred[Any]:
        """Take nobody new, tell everybody to come back, wait a little for their answers, then end what is left."""
        for port in self._ports:
            port.stopListening()
        sockets = [each for each in self.connections if isinstance(each, GatewayProtocol)]
        for each in sockets:
            if each.state == each.STATE_OPEN:
                each.cut(CLOSE_RESTARTING, "restarting")
        return defer.ensureDeferred(self._wait_for(sockets))

    async def _wait_for(self, sockets: list[GatewayProtocol]) -> None:
        left_s = GOODBYE_S
        while left_s > 0 and any(each.state != each.STATE_CLOSED for each in sockets):
            await task.deferLater(reactor, 0.05)
            left_s -= 0.05
        running = [details.get("application_instance") for details in self.connections.values()]
        tasks = [each for each in running if each is not None and not each.done()]
        for each in tasks:
            each.cancel()
        await defer.Deferred.fromFuture(asyncio.gather(*tasks, return_exceptions=True))
