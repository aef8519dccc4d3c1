"""Fills a `History` from a running system, from outside: HTTP, sockets, the simulator, and the log's port."""

from __future__ import annotations

import random
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

import httpx
import redis

from core.errors import Unavailable
from demo.supervisor import queues
from messaging import codec, topics
from messaging.domain import InboundEvent, Message, Outbound, Status, StatusChange, correlated, rank
from messaging.errors import UndecodableRecord
from messaging.ports import Record, TopicPartition
from messaging.services import replay
from tests.faults.history import (
    Client,
    Commit,
    DeadLetter,
    Frame,
    Heard,
    History,
    Level,
    Logged,
    Request,
    Row,
    Sent,
    Told,
)
from tests.faults.parking import Parking
from tests.town import Resident, Socket, Town

CHANNELS: Final = ("whatsapp", "instagram")
PAGE: Final = 500
NEWEST, OTHERS = 4, 2  # of the records that a look at commits finds done; each costs a request
LOOK: Final = "look at"  # names of threads begin like this
READERS: Final = 8  # histories that are fetched at once
AGAIN: Final = (409, 503)  # what a careful client may meet first; 409: its own first try is still running
EXPECTED: Final = (202, *AGAIN)
GROUP: Final = "bridge"
RECEIPTS: Final = {"failed": Status.FAILED, "delivered": Status.DELIVERED, "read": Status.READ}  # as platforms say it


class Writer:
    """A client that insists under one Idempotency-Key, and remembers what it was told. Thread-safe."""

    def __init__(self, author: Resident) -> None:
        self.author = author
        self.requests: list[Request] = []
        self.accepted = 0
        self.strange: list[str] = []  # answers that nothing which breaks is a reason for
        self._lock = threading.Lock()

    def write(self, conversation: str, texts: Sequence[str], to: str, *, within_s: float = 60) -> bool:
        """One of them by itself, several in one request. Whether all were accepted: not when nobody can tell in time,
        or when some were refused."""
        messages = [{"conversation_id": conversation, "recipient_id": to, "content": text} for text in texts]
        if len(messages) == 1:
            answer, undecided = self._insist("/v1/messages", messages[0], within_s=within_s)
        else:
            answer, undecided = self._insist("/v1/messages/batch", {"messages": messages}, within_s=within_s)
        ids = [each.get("message_id") for each in answer.get("items", [answer])] if answer else [None] * len(texts)
        for text, message_id in zip(texts, ids, strict=True):
            self.note(Request(conversation, self.author.user_id, text, message_id, undecided))
        return None not in ids

    def note(self, request: Request) -> None:
        """What the author wanted to send, be it by another way."""
        with self._lock:
            self.requests.append(request)
            self.accepted += request.message_id is not None

    def _insist(self, path: str, body: Mapping[str, object], *, within_s: float) -> tuple[Any, bool]:
        """What it was told in the end, None without an answer; and whether it is open what came of it."""
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        deadline_s = time.monotonic() + within_s
        pause, undecided = threading.Event(), False
        while time.monotonic() < deadline_s:
            try:
                answer = self.author.api.post(path, json=body, headers=headers)
            except httpx.TransportError:
                undecided = True
            else:
                if answer.status_code not in EXPECTED:
                    self.strange.append(f"{path}: {answer.status_code} {answer.text[:500]}")
                if answer.is_success:  # 207: some were refused
                    return answer.json(), False
                if answer.status_code not in AGAIN and answer.is_client_error:
                    return None, False
                undecided = True
            pause.wait(0.1)
        return None, undecided


class Device(Socket):
    """A socket that keeps each frame with its place, and fetches its conversations when it is told to resync: those
    that began after it did. A user who wrote for hours has too many of the others."""

    def __init__(self, who: Resident) -> None:
        self.who = who
        self.older = frozenset(conversations_of(who))
        self.seen: list[dict[str, Any]] = []
        self.resynced: set[int] = set()  # before which of these
        self.fetched: dict[str, frozenset[str]] = {}
        self.ranks: dict[tuple[str, str], int] = {}  # that came with a message
        self.shown_s: dict[str, float] = {}  # by text, when it was first pushed or fetched; monotonic
        super().__init__(who.gateway_url, who.token)

    def _take(self, socket: Any, frame: dict[str, Any]) -> None:
        if frame["type"] == "resync":
            self.resynced.add(len(self.seen))
            self._fetch()
        elif "seq" in frame and frame["type"] != "hello":
            self.seen.append(frame)
            if frame["type"] == "message":
                self._show(frame["message"])
        super()._take(socket, frame)

    def _show(self, message: Mapping[str, Any]) -> None:
        self.shown_s.setdefault(message["content"], time.monotonic())
        for each in message["statuses"]:
            key = message["message_id"], each["recipient_id"]
            self.ranks[key] = max(rank(Status(each["status"])), self.ranks.get(key, rank(Status.ACCEPTED)))

    def _fetch(self) -> None:
        """Until it succeeds: the API may be away for the same reason."""
        while not self._closing.is_set():
            with suppress(httpx.HTTPError, AssertionError):
                names = [name for name in conversations_of(self.who) if name not in self.older]
                found = {name: self.who.history(name) for name in names}
                for name, messages in found.items():
                    ids = frozenset(each["message_id"] for each in messages)
                    self.fetched[name] = ids | self.fetched.get(name, frozenset())
                    for each in messages:
                        self._show(each)
                return
            self._closing.wait(0.3)


def conversations_of(who: Resident) -> Iterator[str]:
    cursor = None
    while True:
        answer = who.api.get("/v1/conversations", params={"limit": 200, **({"cursor": cursor} if cursor else {})})
        answer.raise_for_status()
        yield from (each["conversation_id"] for each in answer.json()["items"])
        if not (cursor := answer.json()["next_cursor"]):
            return


class Watcher:
    """Looks at commits, memory and queues again and again while a run goes on.

    ``bounds`` are for names that begin like this: ``rss_mb <process>``, ``bus_mb``, ``queue <name>`` (tasks),
    ``log_share`` (of its maxmemory).
    """

    def __init__(
        self,
        town: Town,
        reader: Resident,
        parking: Parking,
        *,
        accounts: Sequence[str],
        since: Mark,
        bounds: Mapping[str, float],
        every_s: float = 0.3,
    ) -> None:
        self._town = town
        self._reader = reader
        self._parking = parking
        self._every_s = every_s
        self._bounds = bounds
        self._sources = list(all_sources(town))
        self._seen = {source: town.log.committed(GROUP, source) for source in self._sources}
        self._began = since
        self._ends = _Ends(town, accounts, since)
        self._persons = _Persons(town, accounts, since)
        self._highest: dict[str, float] = {}
        self._last_s: dict[str | TopicPartition, float] = {}  # by what was looked at, monotonic
        self._failed: dict[str, str] = {}  # by look, why it last saw nothing
        self._stop = threading.Event()
        self.commits: list[Commit] = []

    @property
    def levels(self) -> list[Level]:
        return [Level(name, highest, self._bounds[self._kind(name)]) for name, highest in sorted(self._highest.items())]

    @contextmanager
    def watching(self) -> Iterator[None]:
        looks = [
            threading.Thread(target=self._keep_looking, args=(what, look), name=f"{LOOK} {what}", daemon=True)
            for what, look in self._looks()
        ]
        for each in looks:
            each.start()
        try:
            yield
        finally:
            self._stop.set()
            for each in looks:
                each.join(30)

    def unseen_since(self, since_s: float) -> list[str]:
        """What was not looked at since then: kinds of levels, and partitions."""
        everything: list[str | TopicPartition] = [*self._bounds, *self._sources]
        return [str(each) for each in everything if self._last_s.get(each, 0) < since_s]

    @property
    def failed(self) -> str:
        """What looks failed at, each the last time that it did, and what is looked for right now."""
        stacks = sys._current_frames()
        busy = {
            each.name: "".join(traceback.format_stack(stacks[each.ident])[-3:])
            for each in threading.enumerate()
            if each.name.startswith(LOOK) and each.ident in stacks
        }
        return "\n".join(f"{what}: {why}" for what, why in (*self._failed.copy().items(), *busy.items()))

    def _looks(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "processes", self._look_at_processes
        yield "bus", self._look_at_bus
        yield "log", self._look_at_log
        for topic, them in groupby(self._sources, key=lambda each: each.topic):
            yield topic, partial(self._look_at_commits, list(them))

    def _keep_looking(self, what: str, look: Callable[[], None]) -> None:
        """Each on a thread of its own: one that waits for a late answer holds up no other."""
        while not self._stop.wait(self._every_s):
            with self._noticed(what):
                look()

    @contextmanager
    def _noticed(self, what: str) -> Iterator[None]:
        """Whatever is away for now can't be looked at; the next look covers what was committed meanwhile."""
        try:
            yield
        except (Unavailable, httpx.HTTPError, redis.RedisError, OSError, KeyError) as error:
            self._failed[what] = repr(error)

    def _look_at_commits(self, them: Iterable[TopicPartition]) -> None:
        for source in them:
            with self._noticed(str(source)):
                asked_s = time.monotonic()
                self._look_at_commit(source)
                self._last_s[source] = asked_s

    def _look_at_commit(self, source: TopicPartition) -> None:
        """First what is committed, then what is done: what was done later only helps."""
        committed, before = self._town.log.committed(GROUP, source), self._seen[source]
        page = self._town.log.read(source, start=before, limit=PAGE) if committed > before else []
        new = [record for record in page if record.offset < committed]
        undone = next((record.offset for record in _some(new) if not self._is_done(record)), None)
        self.commits.append(
            Commit((source.topic, source.partition), committed, committed if undone is None else undone)
        )
        self._seen[source] = min(committed, before + PAGE) if undone is None else undone

    def _is_dead(self, record: Record) -> bool:
        place = record.source.topic, record.source.partition
        letters = dead_letters(self._town, self._began)
        return (place, record.offset) in {(each.source, each.offset) for each in letters}

    def _is_done(self, record: Record) -> bool:
        try:
            if record.source.topic == topics.MESSAGES:
                return self._is_stored(record, codec.decode(Message, record.value))
            if record.source.topic == topics.STATUS_UPDATES:
                return self._is_standing(codec.decode(StatusChange, record.value)) or self._is_dead(record)
            if record.source.topic == topics.INBOUND:
                return self._persons.is_on_log(record) or self._is_dead(record)
            return self._is_settled(record, codec.decode(Outbound, record.value))
        except UndecodableRecord:
            return self._is_dead(record)

    def _is_settled(self, record: Record, outbound: Outbound) -> bool:
        """At an end, parked, or a dead letter. Looked for twice, as what was parked may be sent between two looks."""
        return (
            self._ends.has(outbound)
            or self._parking.holds(outbound.message.conversation_id, record.source, record.offset)
            or self._ends.has(outbound)
            or self._is_dead(record)
        )

    def _is_stored(self, record: Record, message: Message) -> bool:
        """As far as its author can see, or a dead letter. What others wrote is not ours to see."""
        if self._reader.user_id not in message.audience:
            return True
        return self._stored(message.message_id) is not None or self._is_dead(record)

    def _is_standing(self, change: StatusChange) -> bool:
        """Whether its message came as far, as far as we can see. What came before its message waits for it, unseen."""
        message = self._stored(change.message_id)
        if message is None:
            return True
        so_far = [Status(each["status"]) for each in message["history"] if each["recipient_id"] == change.recipient]
        return rank(change.status) <= max(map(rank, so_far), default=rank(Status.ACCEPTED))

    def _stored(self, message_id: UUID) -> Mapping[str, Any] | None:
        """The message as its members see it, once it is stored."""
        answer = self._reader.api.get(f"/v1/messages/{message_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        shown: Mapping[str, Any] = answer.json()
        return None if shown["status"] == Status.ACCEPTED.value else shown

    def _look_at_processes(self) -> None:
        system = self._town.system
        for name in system.processes:
            if system.is_running(name):
                self._note(f"rss_mb {name}", sum(map(_rss_mb, _family(system.pid(name)))))

    def _look_at_bus(self) -> None:
        with redis.Redis.from_url(self._town.system.env["BUS_URL"], socket_timeout=2) as bus:
            memory: Any = bus.info("memory")
            self._note("bus_mb bus", memory["used_memory"] / 1e6)
            for queue in queues():
                length: Any = bus.llen(queue)
                self._note(f"queue {queue}", length)

    def _look_at_log(self) -> None:
        if "log_share" in self._bounds:
            with redis.Redis.from_url(self._town.system.env["EVENT_LOG_URL"], socket_timeout=2) as log:
                memory: Any = log.info("memory")
                self._note("log_share redis-log", memory["used_memory"] / memory["maxmemory"])

    def _note(self, name: str, value: float) -> None:
        if kind := self._kind(name):
            self._highest[name] = max(value, self._highest.get(name, 0))
            self._last_s[kind] = time.monotonic()

    def _kind(self, name: str) -> str:
        """What a bound is given for, say ``rss_mb worker`` rather than ``rss_mb``; "" when none is."""
        return max((each for each in self._bounds if name.startswith(each)), key=len, default="")


class Taken:
    """What platforms took since a mark, read on where the last look ended."""

    def __init__(self, town: Town, accounts: Iterable[str], since: Mark) -> None:
        self._town = town
        self._last = {each: since.sent.get(each, 0) for each in accounts}

    def more(self) -> Iterator[dict[str, Any]]:
        """What came since; what was not consumed comes again."""
        for account, since in self._last.items():
            for each in _ledger(self._town, "messages", account, since):
                yield each
                self._last[account] = each["seq"]


class _Ends:
    """Which sends came to an end: a platform has them, or a status says so. Read on when one is asked for that is not
    among them. Of what an operator replays it says nothing."""

    def __init__(self, town: Town, accounts: Sequence[str], since: Mark) -> None:
        self._town = town
        self._taken = Taken(town, accounts, since)
        self._told = {each: since.offsets.get(each, 0) for each in sources(town, topics.STATUS_UPDATES)}
        self._known: set[tuple[str, str]] = set()  # the message's id, or its text; to whom
        self._reading = threading.Lock()

    def has(self, outbound: Outbound) -> bool:
        with self._reading:
            if not self._has(outbound):
                self._read_on()
            return self._has(outbound)

    def _has(self, outbound: Outbound) -> bool:
        message, to = outbound.message, outbound.recipient
        return not self._known.isdisjoint({(str(message.message_id), to), (message.content, to)})

    def _read_on(self) -> None:
        for each in self._taken.more():
            self._known.add(((each["correlation"] or "").partition("/")[0] or each["text"], _address(each, "to")))
        for source in self._told:
            while page := self._town.log.read(source, start=self._told[source], limit=PAGE):
                for record in page:
                    self._take(record)
                self._told[source] = page[-1].offset + 1

    def _take(self, record: Record) -> None:
        with suppress(UndecodableRecord):
            change = codec.decode(StatusChange, record.value)
            if not change.note:  # which is told before a second try
                self._known.add((str(change.message_id), change.recipient))


class _Persons:
    """Which messages of persons are on the log as ours. Read on when one is asked for that is not among them."""

    def __init__(self, town: Town, accounts: Sequence[str], since: Mark) -> None:
        self._town = town
        self._said_since = {each: since.heard.get(each, 0) for each in accounts}
        self._log_since = {each: since.offsets.get(each, 0) for each in sources(town, topics.MESSAGES)}
        self._said: set[str] = set()  # the platform's ids
        self._on_log: set[str] = set()

    def is_on_log(self, record: Record) -> bool:
        """Whether what a webhook brought became a message, or is none that a person wrote."""
        external_id = heard_id(record.value)
        if external_id not in self._on_log:
            self._read_on()
        return external_id in self._on_log or external_id not in self._said

    def _read_on(self) -> None:
        for account, since in self._said_since.items():
            for each in _ledger(self._town, "inbound", account, since):
                self._said.add(each["id"])
                self._said_since[account] = each["seq"]
        for source in self._log_since:
            while page := self._town.log.read(source, start=self._log_since[source], limit=PAGE):
                for record in page:
                    with suppress(UndecodableRecord):
                        self._on_log.add(codec.decode(Message, record.value).external_id or "")
                self._log_since[source] = page[-1].offset + 1


def heard_id(record: bytes) -> str:
    """The platform's id of the message that a webhook's item brought; "" where it brought none."""
    with suppress(UndecodableRecord):  # receipts among others
        payload = codec.decode(InboundEvent, record).payload
        match payload.get("messaging", payload):  # an item of Instagram, of WhatsApp
            case {"message": {"mid": str(found)} | {"id": str(found)}}:
                return found
    return ""


def _some(records: Sequence[Record]) -> list[Record]:
    """Of many records the newest, as what is committed too early is there, and some of the others; in their order."""
    newest = max(0, len(records) - NEWEST)
    others = random.sample(range(newest), min(newest, OTHERS))
    return [records[each] for each in (*sorted(others), *range(newest, len(records)))]


def _family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [each for child in listed.read_text().split() for each in _family(int(child))]
    return found


def _rss_mb(pid: int) -> float:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024
    return 0.0


@contextmanager
def devices(*owners: Resident) -> Iterator[list[Device]]:
    """Open sockets of these users, closed in the end."""
    with ExitStack() as stack:
        opened = []
        for who in owners:
            opened.append(Device(who))
            stack.callback(opened[-1].close)
        yield opened


# --- looking -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: where each partition ended, and what each account had sent and heard. What was before it is not looked
    at."""

    offsets: Mapping[TopicPartition, int] = field(default_factory=dict)
    sent: Mapping[str, int] = field(default_factory=dict)  # the platform's ``seq``, by account
    heard: Mapping[str, int] = field(default_factory=dict)  # the same

    @classmethod
    def of_log(cls, town: Town) -> Self:
        places = list(all_sources(town))
        places += [TopicPartition(topics.dead_letters(name), 0) for name in topics.work_topics(CHANNELS)]
        return cls({each: town.log.end_offset(each) for each in places})

    @classmethod
    def now(cls, town: Town, accounts: Iterable[str], *, after: Mark | None = None) -> Self:
        """``after``: an earlier one, so that what was sent before it is not read again."""
        before, ours = after or FROM_THE_START, list(accounts)
        sent = {each: _last(before.received(town, each), before.sent.get(each, 0)) for each in ours}
        heard = {each: _last(before.said(town, each), before.heard.get(each, 0)) for each in ours}
        return cls(cls.of_log(town).offsets, sent, heard)

    def records(self, town: Town, source: TopicPartition) -> Iterator[Record]:
        start = self.offsets.get(source, 0)
        while page := town.log.read(source, start=start, limit=PAGE):
            yield from page
            start = page[-1].offset + 1

    def received(self, town: Town, account_id: str) -> Iterator[dict[str, Any]]:
        """What a platform took from an account since, in order."""
        return _ledger(town, "messages", account_id, self.sent.get(account_id, 0))

    def said(self, town: Town, account_id: str) -> Iterator[dict[str, Any]]:
        """What persons said to an account since, in order."""
        return _ledger(town, "inbound", account_id, self.heard.get(account_id, 0))


def _last(entries: Iterable[Mapping[str, Any]], last: int) -> int:
    return max((each["seq"] for each in entries), default=last)


def _ledger(town: Town, name: str, account_id: str, since: int) -> Iterator[dict[str, Any]]:
    """The pages of a platform's ledger."""
    while True:
        query = {"account_id": account_id, "limit": "10000", "since": str(since)}
        answer = town.platform.get(f"/{name}", params=query, timeout=60)
        answer.raise_for_status()
        found = answer.json()
        yield from found[name]
        since = found["next"]
        if not found["more"]:
            return


FROM_THE_START: Final = Mark()


def collect(
    town: Town,
    *,
    writers: Sequence[Writer],
    accounts: Sequence[str],
    sockets: Sequence[Device],
    watcher: Watcher,
    since: Mark = FROM_THE_START,
) -> History:
    """What everybody saw of the conversations that these wrote in, and of those where persons were heard."""
    requests = [request for writer in writers for request in list(writer.requests)]
    told = list(_told(town, since))
    highest: dict[tuple[str, str], int] = {}
    for each in told:
        key = each.message_id, each.recipient
        highest[key] = max(each.rank, highest.get(key, 0))
    log = list(_logged(town, since))
    heard = [each for account in accounts for each in _heard(town, account, since)]
    authors = {request.conversation: writer.author for writer in writers for request in list(writer.requests)}
    external_ids = {each.external_id for each in heard}
    for record in log:  # the agents of our accounts, of whom a writer is one, see what persons say
        if record.external_id in external_ids:
            authors.setdefault(record.conversation, writers[0].author)
    with ThreadPoolExecutor(READERS) as reading:
        rows = reading.map(lambda name: _rows(authors[name], name, highest), authors)
        stored = dict(zip(authors, rows, strict=True))
    where = {each.message_id: each.conversation for each in log}
    by_text = {row.content: row.message_id for row in _all(stored)}  # Instagram gives no correlation back
    sent = [each for account in accounts for each in _sent(town, account, where, by_text, since)]
    return History(
        requests=requests,
        log=log,
        told=told,
        dead=dead_letters(town, since),
        stored=stored,
        sent=sent,
        heard=heard,
        clients=[_client(each, _conversations_with(each.who.user_id, stored), highest) for each in sockets],
        commits=list(watcher.commits),
        levels=watcher.levels,
        external=frozenset(each for row in _all(stored) for each in row.ranks if ":" in each),
    )


def sources(town: Town, topic: str) -> Iterator[TopicPartition]:
    for number in range(int(town.system.env.get("PARTITIONS", topics.PARTITIONS))):
        yield TopicPartition(topic, number)


def all_sources(town: Town) -> Iterator[TopicPartition]:
    """Of all work topics."""
    for topic in topics.work_topics(CHANNELS):
        yield from sources(town, topic)


def _logged(town: Town, since: Mark) -> Iterator[Logged]:
    for source in sources(town, topics.MESSAGES):
        for record in since.records(town, source):
            with suppress(UndecodableRecord):
                message = codec.decode(Message, record.value)
                place = source.topic, source.partition
                own, theirs = str(message.message_id), message.external_id or ""
                yield Logged(place, record.offset, message.conversation, own, theirs)


def _told(town: Town, since: Mark) -> Iterator[Told]:
    for source in sources(town, topics.STATUS_UPDATES):
        for record in since.records(town, source):
            with suppress(UndecodableRecord):
                change = codec.decode(StatusChange, record.value)
                yield Told(str(change.message_id), change.recipient, change.rank, change.note)


def dead_letters(town: Town, since: Mark = FROM_THE_START) -> list[DeadLetter]:
    found = []
    for name in topics.work_topics(CHANNELS):
        for record in since.records(town, TopicPartition(topics.dead_letters(name), 0)):
            letter, headers = replay.letter(record), record.headers
            origin = headers["dl-topic"], int(headers["dl-partition"])
            message_id = str(letter.message_id) if letter.message_id else None
            dead = DeadLetter(origin, int(headers["dl-offset"]), message_id, reason=letter.error)
            if name == topics.INBOUND:
                dead = dead._replace(external_id=heard_id(record.value), receipts=receipts_in(record.value))
            found.append(dead)
    return found


def _rows(author: Resident, conversation: str, highest: Mapping[tuple[str, str], int]) -> list[Row]:
    return [
        Row(
            message_id=each["message_id"],
            conversation=each["conversation_id"],
            sender=each["sender_id"],
            content=each["content"],
            ranks={
                status["recipient_id"]: _rank(
                    status["status"], highest.get((each["message_id"], status["recipient_id"]), 0)
                )
                for status in each["statuses"]
            },
        )
        for each in author.history(conversation)
    ]


def _rank(status: str, highest: int) -> int:
    """The API names no attempt: it is that of the highest on the log, if the status is."""
    standing = Status(status)
    attempt = highest // 2 if highest < rank(Status.DELIVERED) else 0
    return rank(standing, attempt) if rank(standing, attempt) == highest else rank(standing)


def _sent(
    town: Town, account_id: str, where: Mapping[str, str], by_text: Mapping[str, str], since: Mark
) -> Iterator[Sent]:
    for each in since.received(town, account_id):
        correlation = each["correlation"] or ""  # names the attempt, too
        message_id = correlation.partition("/")[0] or by_text.get(each["text"], "")
        receipt = _receipt(each["told"], correlation)
        yield Sent(where.get(message_id, ""), _address(each, "to"), message_id, receipt)


def _receipt(told: str, correlation: str) -> int:
    """The rank of what a platform told of a message that it names as we do; 0 of any other."""
    if not correlation or told not in RECEIPTS:
        return 0
    _, attempt = correlated(correlation)
    return rank(RECEIPTS[told], attempt)


def receipts_in(record: bytes) -> frozenset[str]:
    """The messages of ours that the receipts in a record of `inbound` name."""
    with suppress(UndecodableRecord):
        payloads = codec.decode_inbound(record).payloads
        named = [status.get("biz_opaque_callback_data", "") for status in map(_status_in, payloads)]
        return frozenset(each.partition("/")[0] for each in named if each)
    return frozenset()


def _status_in(payload: Mapping[str, Any]) -> dict[str, str]:
    found = payload.get("status")
    return found if isinstance(found, dict) else {}


def _heard(town: Town, account_id: str, since: Mark) -> Iterator[Heard]:
    for each in since.said(town, account_id):
        taken = each["delivered_at"] is not None
        yield Heard(_address(each, "from"), each["text"], each["id"], taken)


def _address(entry: Mapping[str, Any], whose: str) -> str:
    """A person of a platform's ledger, as we call them."""
    plus = "+" if entry["channel"] == "whatsapp" else ""
    return f"{entry['channel']}:{plus}{entry[whose]}"


def _client(device: Device, conversations: Iterable[str], highest: Mapping[tuple[str, str], int]) -> Client:
    """``highest``: the ranks on the log, by message and recipient."""
    frames, resyncs = list[Frame](), frozenset(device.resynced)
    attempts: dict[tuple[str, str], int] = {}
    failed: set[tuple[str, str]] = set()
    for frame in list(device.seen):
        match frame["type"]:
            case "message":
                message = frame["message"]
                frames.append(Frame(frame["epoch"], frame["seq"], message["conversation_id"], message["message_id"]))
            case "status":
                key, status = (frame["message_id"], frame["recipient_id"]), Status(frame["status"])
                if status is Status.SENT and key in failed and highest.get(key, 0) >= rank(Status.SENT, 1):
                    attempts[key] = attempts.get(key, 0) + 1  # the API names no attempt; an operator opened one
                    failed.discard(key)
                if status is Status.FAILED:
                    failed.add(key)
                place = frame["epoch"], frame["seq"], frame["conversation_id"]
                note = (frame["reason"] or "") if status is Status.SENT else ""
                frames.append(Frame(*place, *key, rank(status, attempts.get(key, 0)), note))
            case kind:  # it has a number, and no other part in this
                frames.append(Frame(frame["epoch"], frame["seq"], "", f"{kind} {frame['seq']}", rank=0))
    fetched = {name: device.fetched.get(name, frozenset()) for name in conversations}
    return Client(device.who.user_id, frames, fetched, resyncs, dict(device.ranks), device.older)


def _conversations_with(user_id: str, stored: Mapping[str, Sequence[Row]]) -> list[str]:
    return [name for name, rows in stored.items() if any(user_id in (row.sender, *row.ranks) for row in rows)]


def _all(stored: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    for rows in stored.values():
        yield from rows
