"""People around a running system: users with sockets, and persons on the simulated platforms."""

from __future__ import annotations

import itertools
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from demo.supervisor import LocalSystem
from messaging import topics
from messaging.breakers import SharedBreakers
from messaging.ports import TopicPartition
from tests.hub import log_at

ROOT: Final = Path(__file__).resolve().parents[1]
PASSWORD: Final = "correct horse battery"
ACK_EVERY_S: Final = 0.05
_phones = itertools.count(10_000_000)
_insta = itertools.count(17_841_400_000_000)

T = TypeVar("T")


def eventually(look: Callable[[], T | None], *, within_s: float = 20, every_s: float = 0.03) -> T:
    """What ``look`` answers once that is something true; fails with its last answer."""
    pause = threading.Event()
    deadline_s = time.monotonic() + within_s
    while not (seen := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {look}, last {seen!r}")
        pause.wait(every_s)
    return seen


class Socket:
    """A user's device: collects frames, acknowledges messages, comes back where it was when the connection breaks."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token
        self.frames: list[dict[str, Any]] = []
        self.resyncs = 0
        self._place: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None  # message that is to be acknowledged
        self._ack_from_s = 0.0
        self._closing = threading.Event()
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._open.wait(60), "the socket did not open"

    def of(self, kind: str, conversation: str | None = None) -> list[dict[str, Any]]:
        """Frames of a kind in the order of arrival, those of a conversation by its public id."""
        found = [frame for frame in list(self.frames) if frame["type"] == kind]
        return [frame for frame in found if conversation in (None, _conversation(frame))]

    def texts(self, conversation: str) -> list[str]:
        return [frame["message"]["content"] for frame in self.of("message", conversation)]

    def close(self) -> None:
        self._closing.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError, EOFError):
                self._closing.wait(0.2)

    def _listen(self) -> None:
        since = f"&epoch={self._place['epoch']}&since={self._place['seq']}" if self._place else ""
        with connect(f"{self._url}/?token={self._token}{since}", open_timeout=5) as socket:
            while not self._closing.is_set():
                with suppress(TimeoutError):
                    self._take(socket, json.loads(socket.recv(timeout=0.2)))
                self._acknowledge(socket)

    def _acknowledge(self, socket: ClientConnection) -> None:
        """All messages up to the last one; not each, for who says more than 50 things a second is cut off."""
        if self._last and time.monotonic() >= self._ack_from_s:
            last, self._last = self._last, None
            self._ack_from_s = time.monotonic() + ACK_EVERY_S
            socket.send(json.dumps({"type": "ack", "epoch": last["epoch"], "seq": last["seq"]}))

    def _take(self, socket: Any, frame: dict[str, Any]) -> None:
        if frame["type"] == "hello":
            self._place = self._place or frame
            self._open.set()
        elif frame["type"] == "resync":
            self.resyncs += 1
            self._place = frame
        elif "seq" in frame:
            self._place = frame
            self.frames.append(frame)
            if frame["type"] == "message":
                self._last = frame


def _conversation(frame: Mapping[str, Any]) -> str | None:
    where = frame.get("message") or frame.get("conversation") or frame
    return str(where["conversation_id"]) if "conversation_id" in where else None


@dataclass
class Resident:
    """A registered user, and what they do with the API."""

    user_id: str
    username: str
    api: httpx.Client
    token: str = field(repr=False)
    gateway_url: str
    workspace: str = "default"

    def sign_in(self) -> None:
        """A new token: each lives an hour."""
        who = {"username": self.username, "password": PASSWORD, "workspace": self.workspace}
        answer = self.api.post("/auth/token", json=who)
        assert answer.status_code == 200, answer.text
        self.token = answer.json()["access_token"]
        self.api.headers["Authorization"] = f"Bearer {self.token}"

    def post(self, conversation: str, text: str, to: str | None = None, **more: Any) -> str:
        """The id of the accepted message."""
        body = {"conversation_id": conversation, "recipient_id": to, "content": text, **more}
        answer = self.api.post("/v1/messages", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["message_id"])

    def insist(self, conversation: str, text: str, to: str) -> str:
        """As `post`, again and again under one Idempotency-Key until it is accepted, as a careful client does."""
        body = {"conversation_id": conversation, "recipient_id": to, "content": text}
        headers = {"Idempotency-Key": secrets.token_hex(8)}

        def accepted() -> str | None:
            try:
                answer = self.api.post("/v1/messages", json=body, headers=headers)
            except httpx.TransportError:
                return None
            assert answer.status_code in (202, 409, 503), answer.text
            return str(answer.json()["message_id"]) if answer.status_code == 202 else None

        return eventually(accepted, within_s=110)  # a server of the cluster may have to start anew

    def message(self, message_id: str) -> dict[str, Any]:
        answer = self.api.get(f"/v1/messages/{message_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def statuses(self, message_id: str) -> list[str]:
        """The history of a message, reasons in brackets."""
        history = self.message(message_id)["history"]
        return [each["status"] + (f"({each['reason']})" if each["reason"] else "") for each in history]

    def sees(self, conversation: str) -> list[str]:
        """The texts of its first page, newest first; none while there is no such conversation."""
        answer = self.api.get(f"/v1/conversations/{conversation}/messages")
        return [each["content"] for each in answer.json()["items"]] if answer.status_code == 200 else []

    def history(self, conversation: str) -> list[dict[str, Any]]:
        """Every message, oldest first; none where nothing was ever accepted, so that there is no such conversation."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            query = {"limit": 100, **({"cursor": cursor} if cursor else {})}
            answer = self.api.get(f"/v1/conversations/{conversation}/messages", params=query)
            if answer.status_code == 404 and not found:
                return []
            assert answer.status_code == 200, answer.text
            page = answer.json()
            found.extend(page["items"])
            cursor = page["next_cursor"]
            if not cursor:
                return found[::-1]

    @contextmanager
    def socket(self) -> Iterator[Socket]:
        socket = Socket(self.gateway_url, self.token)
        try:
            yield socket
        finally:
            socket.close()


class Town:
    """A running system, the simulated platforms, and accounts of ours on them."""

    def __init__(self, system: LocalSystem) -> None:
        self.system = system
        # Many threads ask, now and then: one was seen to read from an idle connection that another was closing.
        alone = httpx.Limits(max_keepalive_connections=0)
        self.platform = httpx.Client(base_url=f"{system.simulator_url}/_control", timeout=10, limits=alone)
        self.log = log_at(system.env["EVENT_LOG_URL"])
        self.secrets: dict[str, dict[str, str]] = {}  # by account id
        self._residents: list[Resident] = []

    def close(self) -> None:
        self.platform.close()
        self.log.close()
        for each in self._residents:
            each.api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # who lives here
    def resident(self, name: str, *, workspace: str = "default") -> Resident:
        """A new user whose name begins like this."""
        who = {"username": f"{name}{secrets.token_hex(3)}", "password": PASSWORD, "workspace": workspace}
        api = httpx.Client(base_url=self.system.api_url, timeout=10)
        answer = api.post("/auth/register", json=who)
        assert answer.status_code == 201, answer.text
        user_id = answer.json()["user_id"]
        resident = Resident(user_id, who["username"], api, "", self.system.gateway_url, workspace)
        resident.sign_in()
        self._residents.append(resident)
        return resident

    def account(self, channel: str, *agents: Resident, workspace: str = "default") -> str:
        """A new default account of ours on a channel, on both sides; its id."""
        account_id = str(secrets.randbelow(10**12) + 10**12)
        secret = {name: secrets.token_hex(8) for name in ("access_token", "app_secret", "verify_token")}
        self.secrets[account_id] = secret
        command = ["add_channel_account", "--channel", channel, "--account-id", account_id, "--workspace", workspace]
        command += ["--base-url", self.system.simulator_url, "--default", "--credentials-stdin"]
        for agent in agents:
            command += ["--agent", agent.username]
        done = subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env={**self.system.env, "SERVICE": "manage"},
            input=json.dumps(secret),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        hosted = {
            "channel": channel,
            "account_id": account_id,
            "webhook_url": f"{self.system.api_url}/webhooks/{channel}/{account_id}",
            **secret,
        }
        answer = self.platform.post("/accounts", json=hosted)
        assert answer.status_code == 201, answer.text
        return account_id

    # the platforms
    @contextmanager
    def switches(self, **patch: Any) -> Iterator[None]:
        """The platforms behave like this for a while."""
        before = self.platform.get("/switches").json()
        self.turn(**patch)
        try:
            yield
        finally:
            self.platform.put("/switches", json=before)

    @contextmanager
    def switches_of(self, account_id: str, **patch: Any) -> Iterator[None]:
        """One account's platform behaves like this for a while."""
        where = f"/accounts/{account_id}/switches"
        answer = self.platform.put(where, json=patch)
        assert answer.status_code == 200, answer.text
        try:
            yield
        finally:
            self.platform.delete(where).raise_for_status()

    def turn(self, **patch: Any) -> None:
        answer = self.platform.put("/switches", json=patch)
        assert answer.status_code == 200, answer.text

    def says(self, channel: str, account_id: str, sender: str, text: str = "", **more: Any) -> str:
        """A person writes to us; the platform's id of the message."""
        body = {"channel": channel, "account_id": account_id, "from": sender, "text": text, **more}
        answer = self.platform.post("/inbound", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def received(self, to: str, **query: str) -> list[dict[str, Any]]:
        """What a person has from us, in order."""
        answer = self.platform.get("/messages", params={"to": to, **query})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["messages"]
        return found

    def texts(self, to: str) -> list[str]:
        return [each["text"] for each in self.received(to)]

    def arrived(self, account_id: str) -> dict[str, list[dict[str, Any]]]:
        """What each person has from one account of ours, in order."""
        answer = self.platform.get("/messages", params={"account_id": account_id, "limit": "10000"})
        assert answer.status_code == 200, answer.text
        found: dict[str, list[dict[str, Any]]] = {}
        for each in answer.json()["messages"]:
            found.setdefault(each["to"], []).append(each)
        return found

    def breakers(self) -> dict[str, str]:
        """The state of each channel account's breaker, by ``channel:account``."""
        breakers = SharedBreakers(self.system.env["BUS_URL"])
        try:
            return {name: state.value for name, state in breakers.states().items()}
        finally:
            breakers.close()

    def dead_letters(self, *work: str) -> int:
        """How many records ever went to the dead letters."""
        names = work or topics.work_topics(("whatsapp", "instagram"))
        return sum(self.log.end_offset(TopicPartition(topics.dead_letters(name), 0)) for name in names)


def phone() -> str:
    """A Brazilian mobile number that nobody had before, without the plus."""
    return f"55119{next(_phones)}"


def insta_id() -> str:
    return str(next(_insta))


def numbered(prefix: str, count: int) -> Sequence[str]:
    return [f"{prefix} {number:03d}" for number in range(count)]
