"""The floor of the whole loop on the cluster: one process, one loop, no framework, no log, no workers, no leases.

For each message it has Cassandra do what our store has it do (recorded from the store, run again by the bare driver; a
message takes no statement of PostgreSQL's: accounts and channels are cached), sends it to the simulated WhatsApp, takes
the signed webhooks in, and pushes what its sender would see: RPUSH and PUBLISH. What the system costs beyond it is the
price of losing nothing.

Started by `bench.loop` with the environment of a system of which only the simulator and the bus run; prints JSON.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final
from uuid import UUID, uuid4

import redis

from bench.client import Answer, Loop, Pool, post
from bench.figures import Figure
from bench.people import TEXT, WHATSAPP_ACCOUNT, WHATSAPP_SECRETS, tell_simulator
from bench.statements import BareDriver, Recorder, Step, Template, together
from core.ids import uuid7, uuid7_ms
from demo.ports import HOST
from demo.supervisor import ROOT, LocalSystem
from messaging.domain import Contact, Conversation, ExternalRef, Message, Status, StatusChange
from messaging.ports import DeliveryKey, DeliveryOutcome, ParkScope
from messaging.topics import outbound

PEOPLE: Final = 200
WINDOW: Final = 200
BATCH: Final = 100
SENDS_AT_ONCE: Final = 16  # as a worker of ours
LATE_S: Final = 120.0
STATUSES: Final = {"delivered": Status.DELIVERED, "read": Status.READ}  # "sent" is no news
SENDER: Final = "user_floor"


@dataclass(frozen=True, slots=True)
class Floor:
    """How the floor did; ``cpu_ms``: of its process, a message."""

    per_s: float
    cpu_ms: float

    @property
    def figure(self) -> Figure:
        what = f"floor: the same statements, sends, webhooks and pushes in one bare loop, {WINDOW} under way"
        return Figure(what, f"{self.per_s:,.0f}/s", f"{self.cpu_ms:.2f} ms of its CPU a message")


def measured(system: LocalSystem, *, seconds: float, warm_up_s: float) -> Floor:
    """Beside nothing else: ``system`` runs its simulator and bus only. Raises subprocess.CalledProcessError."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.floor_loop", f"{seconds}", f"{warm_up_s}"],
        cwd=ROOT,
        env={**system.env, "SERVICE": "manage"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Floor(**json.loads(done.stdout))


# --- in a process of its own ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody on WhatsApp, and the conversation with them."""

    number: str
    conversation_id: UUID

    @property
    def party(self) -> str:
        return f"whatsapp:{self.number}"


@dataclass(frozen=True, slots=True)
class Work:
    """What Cassandra does for one message at each stage, and for each of its statuses."""

    save: Template
    claim: Template
    settle: Template
    statuses: Mapping[str, Template]


Names = dict[Any, Any]


def names_of(person: Person, message_id: UUID, external_id: str) -> Names:
    """What differs from message to message, under the name that it has in the recording (see `record`)."""
    return {
        "the message": message_id,
        "the conversation": person.conversation_id,
        "the party": person.party,
        "the number": person.number,
        "the external id": external_id,
    }


def record(store: Any, person: Person, workspace_id: UUID) -> Work:
    """The second message to somebody: the first one makes what stays."""
    _stages(store, person, workspace_id)
    stages, names = _stages(store, person, workspace_id)
    by_value = {value: name for name, value in names.items()}

    def template(steps: Sequence[Step]) -> Template:
        marked = Template(steps, by_value).filled(by_value)
        return Template(marked, set(names))

    statuses = {status: template(stages[status]) for status in STATUSES}
    return Work(template(stages["save"]), template(stages["claim"]), template(stages["settle"]), statuses)


def _stages(store: Any, person: Person, workspace_id: UUID) -> tuple[dict[str, list[Step]], Names]:
    """All that becomes of a message, through the store as the product's services call it; what each stage asked for."""
    message_id, external_id = uuid7(), f"wamid.{uuid4().hex}"
    message = Message(
        message_id=message_id,
        workspace_id=workspace_id,
        conversation_id=person.conversation_id,
        conversation="floor",
        sender_id=SENDER,
        recipient_id=None,
        recipients=(person.party,),
        audience=(SENDER,),
        content=TEXT,
        accepted_at_ms=uuid7_ms(message_id),
    )
    key, owner = DeliveryKey(message_id, person.party), "floor@1"
    account: Any = {"channel": "whatsapp", "account_id": WHATSAPP_ACCOUNT}
    about: Any = {"message_id": message_id, "conversation_id": person.conversation_id}
    where: Any = {"workspace_id": workspace_id, **account}
    contact = Contact(
        **where,
        address=person.number,
        conversation_id=person.conversation_id,
        last_message_id=message_id,
    )

    def save() -> None:
        store.save_messages([message])

    def claim() -> None:
        store.parked_scopes([ParkScope(outbound("whatsapp"), person.conversation_id)])
        store.claim_deliveries([key], owner=owner, now_ms=message.accepted_at_ms, lease_ms=60_000)

    def settle() -> None:
        store.settle_deliveries([DeliveryOutcome(key, external_id=external_id)], owner=owner)
        store.contacts(**where, addresses=[person.number])
        store.note_externals([ExternalRef(**account, **about, external_id=external_id, party=person.party)])
        store.bind_contacts([contact])

    def told(status: Status) -> None:
        if status is Status.DELIVERED:  # what it is about is read once, and remembered like the message itself
            store.externals(**account, external_ids=[external_id])
        at_ms = message.accepted_at_ms + 1000
        store.apply_statuses([StatusChange(**about, recipient=person.party, status=status, at_ms=at_ms)])

    stages: dict[str, Callable[[], None]] = {"save": save, "claim": claim, "settle": settle}
    stages |= {name: lambda status=status: told(status) for name, status in STATUSES.items()}  # type: ignore[misc]
    found = {}
    for name, stage in stages.items():
        recorder = Recorder()
        with recorder.recording():
            stage()
        found[name] = recorder.steps
    return found, names_of(person, message_id, external_id)


class Webhook:
    """Takes what the platform posts, checks its signature, answers 200."""

    def __init__(self, loop: Loop, take: Callable[[dict[str, Any]], None]) -> None:
        self._loop, self._take = loop, take
        self._socket = socket.create_server((HOST, 0))
        self._socket.setblocking(False)
        loop.add(self._socket, self)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/"

    def readable(self) -> None:
        connection, _ = self._socket.accept()
        connection.setblocking(False)
        self._loop.add(connection, _Caller(connection, self._loop, self._take))


class _Caller:
    """One connection of the platform's."""

    def __init__(self, connection: socket.socket, loop: Loop, take: Callable[[dict[str, Any]], None]) -> None:
        self._socket, self._loop, self._take = connection, loop, take
        self._received = b""

    def readable(self) -> None:
        data = self._socket.recv(256 * 1024)
        if not data:
            self._loop.remove(self._socket)
            self._socket.close()
            return
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers.get(b"content-length", 0)):
            return
        self._received = b""
        if head.startswith(b"POST"):
            signed = hmac.new(WHATSAPP_SECRETS["BENCH_APP_SECRET"].encode(), body, hashlib.sha256).hexdigest()
            if not hmac.compare_digest(headers[b"x-hub-signature-256"], b"sha256=" + signed.encode()):
                raise RuntimeError("a webhook with a wrong signature")
            self._take(json.loads(body))
        self._socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")


class FloorLoop:
    """Takes WINDOW messages through all stages at a time, each stage for all that wait for it."""

    def __init__(self, driver: BareDriver, work: Work, people: Sequence[Person], env: Mapping[str, str]) -> None:
        self._driver, self._work = driver, work
        self._turns = cycle(people)
        self._bus = redis.Redis.from_url(env["BUS_URL"])
        self._loop = Loop()
        webhook = Webhook(self._loop, self._hear)
        tell_simulator(env["SIMULATOR_URL"], webhook.url)
        self._pool = Pool(self._loop, env["SIMULATOR_URL"], SENDS_AT_ONCE)
        self._under_way = 0
        self._sent: deque[Names] = deque()
        self._known: dict[str, Names] = {}  # by external id
        self._heard: deque[tuple[str, str]] = deque()  # external id, status
        self.read = 0
        self.last: Names = {}

    def warm_up(self, seconds: float) -> None:
        """Until as many were read as are under way, as ours is, and so much longer. Raises TimeoutError."""
        deadline_s = time.perf_counter() + LATE_S
        while self.read < WINDOW:
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"of the first {WINDOW} messages {self.read} were read")
            self.run(time.perf_counter() + 0.1)
        self.run(time.perf_counter() + seconds)

    def run(self, until_s: float) -> None:
        while time.perf_counter() < until_s:
            self._begin()
            self._loop.turn(0 if self._sent or self._heard else 0.05)
            self._settle()
            self._tell()

    def _begin(self) -> None:
        count = min(BATCH, WINDOW - self._under_way)
        if not count:
            return
        self._under_way += count
        new = [names_of(next(self._turns), uuid7(), "") for _ in range(count)]
        self._do([self._work.save.filled(names) for names in new])
        self._push([("message", names, "SENT") for names in new])
        self._do([self._work.claim.filled(names) for names in new])
        for names in new:
            self._send(names)

    def _send(self, names: Names) -> None:
        def answered(answer: Answer) -> None:
            if answer.status != 200:
                raise RuntimeError(f"the platform answered {answer.status}: {answer.body[:200]!r}")
            external_id = json.loads(answer.body)["messages"][0]["id"]
            self._sent.append({**names, "the external id": external_id})

        body = {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": names["the number"].removeprefix("+"),
            "biz_opaque_callback_data": str(names["the message"]),
            "type": "text",
            "text": {"body": TEXT, "preview_url": True},
        }
        path = f"/v23.0/{WHATSAPP_ACCOUNT}/messages"
        request = post(path, WHATSAPP_SECRETS["BENCH_ACCESS_TOKEN"], body)
        self._pool.send(request, answered, due_s=time.perf_counter())

    def _settle(self) -> None:
        if self._sent:
            self._do([self._work.settle.filled(names) for names in self._sent])
            self._known |= {names["the external id"]: names for names in self._sent}
            self._sent.clear()

    def _hear(self, payload: dict[str, Any]) -> None:
        for entry in payload["entry"]:
            for change in entry["changes"]:
                self._heard += [(each["id"], each["status"]) for each in change["value"].get("statuses", ())]

    def _tell(self) -> None:
        """Those of which we know what they are about: a status may be faster than the answer to its send."""
        news = [(self._known[id_], status) for id_, status in self._heard if id_ in self._known]
        self._heard = deque(each for each in self._heard if each[0] not in self._known)
        for status, template in self._work.statuses.items():  # in this order for each message
            some = [names for names, heard in news if heard == status]
            if some:
                self._do([template.filled(names) for names in some])
                self._push([("status", names, status) for names in some])
                if status == "read":
                    self._end(some)

    def _end(self, messages: Sequence[Names]) -> None:
        self.read += len(messages)
        self.last = messages[-1]
        self._under_way -= len(messages)
        for names in messages:
            del self._known[names["the external id"]]

    def _do(self, many: Sequence[Sequence[Step]]) -> None:
        self._driver.run(together(many))

    def _push(self, news: Sequence[tuple[str, Names, str]]) -> None:
        pipeline = self._bus.pipeline(transaction=False)
        for kind, names, status in news:
            message = {"message_id": str(names["the message"]), "conversation_id": str(names["the conversation"])}
            frame = json.dumps({"type": kind, "status": status, "message": {**message, "content": TEXT}})
            pipeline.rpush(f"floor:{SENDER}", frame)
            pipeline.ltrim(f"floor:{SENDER}", -500, -1)
            pipeline.publish(SENDER, frame)
        pipeline.execute()


def check(store: Any, names: Names) -> None:
    """A floor that did not do the work would be no floor: what it wrote is there for our store."""
    message = store.message(names["the message"])
    standing = [each.status for each in store.statuses([message])[message.message_id]] if message else []
    if standing != [Status.READ]:
        raise RuntimeError(f"the floor's last message stands at {standing}")


def main() -> None:
    import django  # noqa: PLC0415 - the engine under our store wants settings; nothing else here is Django's

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
    django.setup(set_prefix=False)
    from messaging.stores.cassandra import CassandraStore  # noqa: PLC0415 - after the set-up
    from messaging.stores.cassandra.address import Address  # noqa: PLC0415
    from messaging.stores.cassandra.session import Database  # noqa: PLC0415

    seconds, warm_up_s = map(float, sys.argv[1:])
    url = os.environ["MESSAGE_STORE_URL"]
    store, driver = CassandraStore(url, timeout_s=30), BareDriver(Database(Address.parse(url), timeout_s=30))
    workspace_id = uuid4()
    people = [Person(f"+55119{70000000 + number}", uuid4()) for number in range(PEOPLE)]
    for person in people:
        members = (SENDER, person.party)
        now_ms = uuid7_ms(uuid7())
        store.create_conversation(
            Conversation(person.conversation_id, workspace_id, str(person.conversation_id), "", members, SENDER, now_ms)
        )
    floor = FloorLoop(driver, record(store, people[0], workspace_id), people, os.environ)
    floor.warm_up(warm_up_s)
    read, started_s, cpu_s = floor.read, time.perf_counter(), time.process_time()
    floor.run(started_s + seconds)
    count = floor.read - read
    took_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    check(store, floor.last)
    print(json.dumps({"per_s": count / took_s, "cpu_ms": 1000 * cpu_s / max(1, count)}))
    driver.database.close()
    store.close()


if __name__ == "__main__":
    main()
