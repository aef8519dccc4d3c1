"""Services on a real store and an in-memory log, with a platform, sockets and leases written by hand."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar, cast
from uuid import UUID, uuid4

import pytest

from connectors.base import Account, Capabilities, Outgoing
from connectors.breaker import CircuitBreaker, Outcome, Rules, as_counted
from connectors.errors import AmbiguousDeliveryError, DeliveryError, PausedDeliveryError
from core.clock import SYSTEM_CLOCK, ManualClock
from core.ids import uuid7
from messaging import codec, topics
from messaging.bridge import DeadLetters
from messaging.codec import Value
from messaging.dispatch import WorkItem
from messaging.domain import Conversation, ExternalRef, Message, Outbound, StatusChange
from messaging.errors import LeaseLost
from messaging.eventlog.memory import MemoryLog
from messaging.ports import MessageStore, NewRecord, Push, Record, TopicPartition
from messaging.services.batches import Lease
from messaging.services.deliver import Delivery
from messaging.wiring import ManagedLog
from tests.contracts.message_stores import ALICE, BOB, CARLA, NOON_MS

CHANNELS: Final = ("whatsapp", "instagram")
WORKSPACE: Final = uuid4()
WHATSAPP: Final = Account("whatsapp", "1055", "http://platform.test", {"access_token": "secret"})

EVERYWHERE: Final = pytest.mark.parametrize(
    "bench", ["local", pytest.param("cluster", marks=pytest.mark.cluster)], indirect=True
)
"""A test of services that also runs on Kafka and Cassandra, where times of records are the real ones."""

Port = TypeVar("Port")


class ShiftedClock(ManualClock):
    """The real time, moved by `advance`."""

    _ahead_ms = 0

    def now_ms(self) -> int:
        return SYSTEM_CLOCK.now_ms() + self._ahead_ms

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._ahead_ms += int(seconds * 1000)


class Killed(BaseException):
    """The process died here: no handler of ours may see it."""


class Fuse:
    """Blows at the n-th step of a run; a step is the moment before or after a call to a part. 0 never blows."""

    def __init__(self, at: int, error: BaseException | None = None) -> None:
        self._at = at
        self._error = error or Killed()
        self._steps = 0
        self.place = ""  # where it blew, such as "after claim_deliveries"
        self._lock = threading.Lock()

    @property
    def blown(self) -> bool:
        return 0 < self._at <= self._steps

    def step(self, place: str) -> None:
        with self._lock:
            self._steps += 1
            here = self._steps == self._at
        if here:
            self.place = place
            raise self._error

    def through(self, port: Port) -> Port:
        """The same part, every call of which is two steps."""
        return _Fused(port, self)  # type: ignore[return-value]

    def around(self, call: Callable[..., Any], name: str = "") -> Callable[..., Any]:
        def fused(*arguments: Any, **named: Any) -> Any:
            self.step(f"before {name}")
            result = call(*arguments, **named)
            self.step(f"after {name}")
            return result

        return fused


class _Fused:
    def __init__(self, port: object, fuse: Fuse) -> None:
        self._port = port
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        return self._fuse.around(found, name) if callable(found) else found


def every_step(run: Callable[[Fuse], None], error: type[BaseException] = Killed) -> int:
    """Run anew for each place where it may die, until one run comes through; how many places there were."""
    for at in range(1, 200):
        fuse = Fuse(at, error())
        run(fuse)
        if not fuse.blown:
            return at - 1
    raise AssertionError("it never came through")


@dataclass
class Sockets:
    """What users see live: as in Redis, an event has one frame however often it is pushed."""

    pushes: list[Push] = field(default_factory=list)

    def __call__(self, pushes: Sequence[Push]) -> None:
        self.pushes.extend(pushes)

    @property
    def frames(self) -> list[Push]:
        return list({(push.user_id, push.event_id): push for push in reversed(self.pushes)}.values())[::-1]

    def of(self, user_id: str, kind: str) -> list[Mapping[str, Any]]:
        seen: dict[str, Mapping[str, Any]] = {}
        for push in self.pushes:
            if push.user_id == user_id and push.body["type"] == kind:
                seen.setdefault(push.event_id, push.body)
        return list(seen.values())


class FreeLease:
    """A lease that holds, up to a number of checks."""

    def __init__(self, checks: int | None = None) -> None:
        self._left = checks

    def lose(self) -> None:
        self._left = 0

    def check(self) -> None:
        if self._left == 0:
            raise LeaseLost("the batch is in other hands by now")
        if self._left is not None:
            self._left -= 1


class Platform:
    """Takes messages, or fails as told: by text, one fate for each try, then it works."""

    capabilities: ClassVar[Capabilities] = Capabilities(max_text_chars=4096, delivery_receipts=True)

    def __init__(self) -> None:
        self.arrived: list[Outgoing] = []
        self.calls = 0
        self.together = 0  # the most calls at a time
        self._fates: dict[str, deque[BaseException]] = defaultdict(deque)
        self._early_fates: dict[str, deque[BaseException]] = defaultdict(deque)
        self.upload: Callable[[], None] = lambda: None
        self._inside = 0
        self._lock = threading.Lock()

    def will(self, text: str, *fates: BaseException) -> None:
        """How the next tries with this text end. What is ambiguous, breaks or is killed has arrived."""
        self._fates[text].extend(fates)

    def will_not_come_to(self, text: str, *fates: BaseException) -> None:
        """How the next tries with this text end before anything of it leaves."""
        self._early_fates[text].extend(fates)

    def send(self, account: Account, message: Outgoing) -> str:
        with self._lock:
            self.calls += 1
            self._inside += 1
            self.together = max(self.together, self._inside)
        try:
            return self._take(message)
        finally:
            with self._lock:
                self._inside -= 1

    def _take(self, message: Outgoing) -> str:
        if early := self._early_fates[message.text]:
            raise early.popleft()
        self.upload()
        message.before_post()
        fates = self._fates[message.text]
        fate = fates.popleft() if fates else None
        if not isinstance(fate, DeliveryError) or isinstance(fate, AmbiguousDeliveryError):
            with self._lock:
                self.arrived.append(message)
        if fate is not None:
            raise fate
        return f"wamid.{message.correlation_id}.{len(self.arrived)}"

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.arrived]


class CarefulPlatform(Platform):
    """Its channel leaves alone what may have been delivered."""

    capabilities: ClassVar[Capabilities] = Capabilities(max_text_chars=4096, resend_ambiguous=False)


class Breakers:
    """A breaker for each account, in this process and on the test's clock."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._breakers: dict[str, CircuitBreaker] = {}

    @contextmanager
    def guard(self, channel: str, account_id: str) -> Iterator[None]:
        breaker = self._breakers.setdefault(f"{channel}:{account_id}", CircuitBreaker(self._clock))
        wait_s = breaker.admit()
        if wait_s is not None:
            raise PausedDeliveryError("breaker_open", retry_after_s=wait_s, outage=False)
        try:
            yield
        except DeliveryError as error:
            breaker.record(Outcome.of(error))
            if (meant := as_counted(error, breaker.snapshot().state, Rules())) is error:
                raise
            raise meant from error
        breaker.record(Outcome.SUCCESS)


class Workbench:
    """A store, a log, a clock, and what hangs on them."""

    def __init__(
        self, store: MessageStore, clock: ManualClock, *, partitions: int = 1, log: ManagedLog | None = None
    ) -> None:
        self.store = store
        self.clock = clock
        self.log = cast(MemoryLog, log or MemoryLog(clock=clock))  # more than the port only for tests in memory
        self.log.ensure_topics(topics.all_topics(CHANNELS, partitions))
        self.sockets = Sockets()
        self.platform = Platform()
        self.breakers = Breakers(clock)
        self.account: Account | None = WHATSAPP
        self.agents = {ALICE}
        self.noted: list[ExternalRef] = []  # that whoever gets receipts was told of

    # things
    def conversation(self, *members: str, workspace_id: UUID = WORKSPACE) -> Conversation:
        """Stored, of Alice and Carla unless told otherwise."""
        conversation_id = uuid4()
        stored, _ = self.store.create_conversation(
            Conversation(
                conversation_id=conversation_id,
                workspace_id=workspace_id,
                public_id=f"chat-{conversation_id.hex[:8]}",
                title="",
                members=members or (ALICE, CARLA),
                created_by=ALICE,
                created_at_ms=NOON_MS,
            )
        )
        return stored

    def message(self, conversation: Conversation, text: str = "hi", **fields: Any) -> Message:
        """Alice to the others, accepted now."""
        values: dict[str, Any] = {
            "message_id": uuid7(),
            "workspace_id": conversation.workspace_id,
            "conversation_id": conversation.conversation_id,
            "conversation": conversation.public_id,
            "sender_id": ALICE,
            "recipient_id": None,
            "recipients": tuple(each for each in conversation.members if each != ALICE),
            "audience": tuple(each for each in conversation.members if each in (ALICE, BOB)),
            "content": text,
            "accepted_at_ms": self.clock.now_ms(),
        }
        return Message(**{**values, **fields})

    def outbound(self, conversation: Conversation, *texts: str, stored: bool = True) -> list[Record]:
        """On the log of WhatsApp, and stored as `persist` leaves them."""
        messages = [self.message(conversation, text) for text in texts]
        if stored:
            self.store.save_messages(messages)
        return self.append(
            topics.outbound("whatsapp"),
            [
                Outbound(message=message, recipient=CARLA, channel="whatsapp", routed_at_ms=self.clock.now_ms())
                for message in messages
            ],
        )

    def append(self, topic: str, values: Sequence[Message | Outbound | StatusChange]) -> list[Record]:
        """The records of these values, as a bridge reads them."""
        keys = [str(v.message.conversation_id if isinstance(v, Outbound) else v.conversation_id) for v in values]
        places = self.log.append(
            [NewRecord(topic, key, codec.encode(value)) for key, value in zip(keys, values, strict=True)]
        )
        return [self.log.read(source, start=offset, limit=1)[0] for source, offset in places]

    def delivery(self, fuse: Fuse | None = None) -> Delivery:
        fuse = fuse or Fuse(0)
        return Delivery(
            channel="whatsapp",
            sender=self.platform,
            account_for=lambda outbound: self.account,
            is_agent=lambda account, user_id: user_id in self.agents,
            breakers=self.breakers,
            store=fuse.through(self.store),
            log=fuse.through(self.log),
            media_for=lambda outbound: None,
            bury=DeadLetters(fuse.through(self.log), per_minute=60, clock=self.clock).bury,
            retry_delay_s=lambda attempts: 1.0,
            clock=self.clock,
            noted=self.noted.extend,
        )

    # what became of them
    def on_log(self, topic: str, kind: type[Value]) -> list[Value]:
        source = TopicPartition(topic, 0)
        return [codec.decode(kind, record.value) for record in self.log.read(source, start=0, limit=10_000)]

    def reported(self) -> list[tuple[str, str | None]]:
        """Status and reason of each change on the log."""
        return [(change.status.value, change.reason) for change in self.on_log(topics.STATUS_UPDATES, StatusChange)]


def items(records: Sequence[Record], *, attempts: int = 0, first_failed_ms: int = 0) -> list[WorkItem]:
    return [WorkItem(record, attempts, first_failed_ms, record.offset) for record in records]


def free_lease() -> Lease:
    return FreeLease()


def no_names(_workspace_id: UUID, _parties: Collection[str]) -> Mapping[str, str]:
    return {}
