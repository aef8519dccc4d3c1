"""Webhook items behind the log: each finds its conversation, or opens one, and repeats harmlessly."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import OperationalError, connection
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from pytest_django import Settings

from chat4all_project.parts import file_storage
from connectors.base import Account, Event, Ignored, InboundAttachment, InboundText, StatusReport
from connectors.errors import DeliveryError, PausedDeliveryError, PermanentDeliveryError, TransientDeliveryError
from connectors.http import Limits
from core.clock import SYSTEM_CLOCK
from core.errors import Chat4AllError, Unavailable
from core.ids import derived_id, uuid7, uuid7_ms
from files.errors import EmptyFile, FileTooLarge, StorageTooSlow, StorageUnavailable
from files.services import PING_WITHIN_S
from messaging import codec, dispatch, tasks, topics, tracing, wiring
from messaging.domain import (
    Conversation,
    ExternalRef,
    InboundEvent,
    InboundReceipts,
    Message,
    Outbound,
    Status,
    StatusChange,
)
from messaging.errors import LeaseLost, SecretsUnreadable
from messaging.ports import DeliveryKey, DeliveryOutcome, DeliveryState, NewRecord, Record, TopicPartition
from messaging.services.inbound import (
    AT_ONCE,
    FILE_LATE_MS,
    KEEP_WITHIN_S,
    LATE_FILE_AGAIN_MS,
    LATE_FILE_GIVEN_UP_MS,
    NOT_BEFORE,
    Inbound,
    Inbox,
    resolve,
)
from messaging.services.persist import persist
from messaging.services.receipts import (
    AGAIN_MS,
    EARLY_MS,
    TOGETHER,
    TOGETHER_BYTES,
    UNKNOWN_WAIT_MS,
    WAITING,
    records_of,
)
from messaging.services.recent import RecentMessages, RecentReferences
from messaging.work import DONE, Outcome, Verdict
from tests.contracts.message_stores import ALICE, BOB, CARLA
from tests.lines import Lines
from tests.messaging.workbench import (
    WHATSAPP,
    WORKSPACE,
    FreeLease,
    Fuse,
    Killed,
    Workbench,
    every_step,
    items,
)

DIEGO = "whatsapp:+5511977776666"
PHOTO = InboundAttachment("image/png", "photo.png", media_id="media-1")
VOICE = InboundAttachment("audio/ogg", "", media_id="media-2")


@dataclass
class Webhooks:
    """A platform that speaks: events travel by number through the payload, files have fates."""

    events: list[Event] = field(default_factory=list)
    files: dict[str, list[DeliveryError | bytes]] = field(default_factory=dict)
    takes: Callable[[], None] = lambda: None

    def payload(self, event: Event) -> dict[str, object]:
        self.events.append(event)
        return {"number": len(self.events) - 1}

    def parse(self, account: Account, payload: Mapping[str, object]) -> Event:
        return self.events[int(str(payload["number"]))]

    def fetch_media(self, account: Account, attachment: InboundAttachment) -> bytes:
        self.takes()
        fates = self.files.get(attachment.media_id or "", [])
        fate = fates.pop(0) if fates else b"bytes"
        if isinstance(fate, DeliveryError):
            raise fate
        return fate


class Desk:
    """The inbound side of a workbench."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.webhooks = Webhooks()
        self.kept: dict[str, bytes] = {}
        self.keep_by_s: list[float] = []
        self.changed: list[UUID] = []
        self.headers: Mapping[str, str] = {}  # of the records of what arrives
        self.refuses: Chat4AllError | None = None
        self.unreadable: set[str] = set()
        self.inboxes: dict[tuple[str, str], Inbox] = {("whatsapp", "1055"): Inbox(WHATSAPP, WORKSPACE, (ALICE, BOB))}

    def arrives(self, *events: Event, account_id: str = "1055", workspace_id: UUID = WORKSPACE) -> list[Record]:
        """Their records on the log, as the webhook view appends those of so many webhooks."""
        records = []
        for event in events:
            if isinstance(event, StatusReport):
                records += self.arrive_together(event, account_id=account_id, workspace_id=workspace_id)
            else:
                records += self.arrives_alone(event, account_id=account_id, workspace_id=workspace_id)
        return records

    def arrived(self, *events: Event) -> list[Record]:
        """The same, so long ago that who sent what they are about has written what the platform calls it."""
        records = self.arrives(*events)
        self.bench.clock.advance(EARLY_MS / 1000)
        return records

    def arrive_together(self, *events: Event, account_id: str = "1055", workspace_id: UUID = WORKSPACE) -> list[Record]:
        """The receipts of one webhook."""
        told = InboundReceipts(
            workspace_id=workspace_id,
            channel="whatsapp",
            account_id=account_id,
            payloads=tuple(map(self.webhooks.payload, events)),
            received_at_ms=self.bench.clock.now_ms(),
        )
        return [self._append(record) for record in records_of(told, self.headers)]

    def arrives_alone(
        self, event: Event, account_id: str = "1055", workspace_id: UUID = WORKSPACE, suffix: str = ""
    ) -> list[Record]:
        """What a person wrote; or a receipt, as earlier releases appended it."""
        contact = event.sender if isinstance(event, InboundText) else getattr(event, "recipient", None) or ""
        value = InboundEvent(
            workspace_id=workspace_id,
            channel="whatsapp",
            account_id=account_id,
            contact=contact,
            payload=self.webhooks.payload(event),
            received_at_ms=self.bench.clock.now_ms(),
        )
        key = f"{account_id}:{contact}{suffix}"
        return [self._append(NewRecord(topics.INBOUND, key, codec.encode(value), self.headers))]

    def _append(self, record: NewRecord) -> Record:
        [(source, offset)] = self.bench.log.append([record])
        return self.bench.log.read(source, start=offset, limit=1)[0]

    def resolve(self, records: list[Record], *, fuse: Fuse | None = None, **limits: Any) -> list[Outcome | None]:
        fuse = fuse or Fuse(0)
        outcomes = resolve(
            items(records, first_failed_ms=limits.get("first_failed_ms", 0)),
            self.inbound(fuse),
            lease=FreeLease(limits.get("checks")),
            deadline_s=limits.get("deadline_s", self.bench.clock.monotonic_s() + 5),
        )
        return [outcomes.get(record.offset) for record in records]

    def inbound(self, fuse: Fuse) -> Inbound:
        return Inbound(
            store=fuse.through(self.bench.store),
            log=fuse.through(self.bench.log),
            notify=fuse.around(self.bench.sockets, "notify"),
            translator_for=lambda channel: self.webhooks,
            inbox_for=self._inbox,
            keep_file=fuse.around(self._keep, "keep_file"),
            file_id=lambda inbox, name: f"file_{name}",
            names=self._names,
            retry_delay_s=lambda attempts: 1.0,
            members_changed=self.changed.append,
            clock=self.bench.clock,
            recent=RecentReferences(),
        )

    def _inbox(self, channel: str, account_id: str) -> Inbox | None:
        if account_id in self.unreadable:
            raise SecretsUnreadable
        return self.inboxes.get((channel, account_id))

    def _keep(
        self,
        inbox: Inbox,
        conversation: Conversation,
        name: str,
        attachment: InboundAttachment,
        content: bytes,
        *,
        deadline_s: float,
    ) -> str:
        self.keep_by_s.append(deadline_s)
        if self.refuses:
            raise self.refuses
        self.kept[f"file_{name}"] = content
        return f"file_{name}"

    def _names(self, workspace_id: UUID, parties: Collection[str]) -> Mapping[str, str]:
        return {ALICE: "Alice"}

    def waiting(self) -> list[Record]:
        """Receipts that were put back, long enough ago to be looked at."""
        self.bench.clock.advance(AGAIN_MS / 1000)
        source = TopicPartition(topics.INBOUND, 0)
        return [each for each in self.bench.log.read(source, start=0, limit=1000) if each.key.endswith(WAITING)]

    def wait_until(self, ms: int) -> None:
        self.bench.clock.advance((ms - self.bench.clock.now_ms()) / 1000)

    def late(self) -> list[Record]:
        """Files that are to be fetched later."""
        source = TopicPartition(topics.INBOUND, 0)
        return [each for each in self.bench.log.read(source, start=0, limit=1000) if each.key.endswith("~file")]

    def store_all(self) -> list[Message]:
        """What `messages` holds, persisted; each message once."""
        source = TopicPartition(topics.MESSAGES, 0)
        records = self.bench.log.read(source, start=0, limit=1000)
        persist(
            items(records),
            store=self.bench.store,
            log=self.bench.log,
            notify=self.bench.sockets,
            lease=FreeLease(),
            recent=RecentMessages(),
            clock=self.bench.clock,
        )
        return list({each.message_id: each for each in self.bench.on_log(topics.MESSAGES, Message)}.values())


@pytest.fixture
def desk(bench: Workbench) -> Desk:
    return Desk(bench)


def says(text: str = "oi", *, id_: str = "wamid.in1", sender: str = "+5511999998888", **more: Any) -> InboundText:
    return InboundText(external_id=id_, sender=sender, text=text, sender_name="Carla", **more)


def seen(kind: str) -> float:
    """How many items were that."""
    labels = {"channel": "whatsapp", "kind": kind}
    return REGISTRY.get_sample_value("chat4all_inbound_events_total", labels) or 0


def reports(status: str, external_id: str, **more: Any) -> StatusReport:
    return StatusReport(external_id=external_id, status=status, at_ms=0, recipient="+5511999998888", **more)


def sent(desk: Desk, *, external_id: str | None = "wamid.out1", workspace_id: UUID = WORKSPACE) -> Message:
    """A message of Alice to Carla that is stored, and known to the platform by that id."""
    conversation = desk.bench.conversation(workspace_id=workspace_id)
    message = desk.bench.message(conversation)
    desk.bench.store.save_messages([message])
    if external_id:
        desk.bench.store.note_externals([ref_of(message, external_id)])
    return message


def ref_of(message: Message, external_id: str) -> ExternalRef:
    return ExternalRef(
        channel="whatsapp",
        account_id="1055",
        external_id=external_id,
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        party=CARLA,
    )


# --- the request that brought it -----------------------------------------------------------------------------------


def test_what_follows_from_a_webhook_names_its_request(desk: Desk, lines: Lines) -> None:
    sent(desk)
    desk.refuses, desk.headers = StorageUnavailable(), tracing.headers("r1")
    arrived = desk.arrives(
        says(attachments=(PHOTO,)), reports("READ", "wamid.out1"), reports("READ", "wamid.unknown"), Ignored("reaction")
    )
    assert desk.resolve(arrived) == [DONE] * 4
    log = desk.bench.log
    for topic, count in ((topics.MESSAGES, 1), (topics.STATUS_UPDATES, 1), (topics.INBOUND, len(arrived) + 2)):
        records = log.read(TopicPartition(topic, 0), start=0, limit=100)
        assert [record.headers for record in records] == [tracing.headers("r1")] * count, topic
    desk.refuses = FileTooLarge(1)
    [message] = desk.store_all()
    assert desk.resolve(desk.late()) == [DONE]
    told = [(line["message"], line["request_id"], line.get("message_id")) for line in lines()]
    assert told == [("inbound ignored", "r1", None), ("attachment lost", "r1", str(message.message_id))]


# --- people who write --------------------------------------------------------------------------------------------


def test_an_unknown_sender_opens_a_conversation_with_the_agents(desk: Desk) -> None:
    assert desk.resolve(desk.arrives(says("Olá"))) == [DONE]
    [message] = desk.store_all()
    assert (message.sender_id, message.content, message.conversation) == (CARLA, "Olá", f"{CARLA}@1055")
    assert message.recipients == message.audience == (ALICE, BOB)
    stored = desk.bench.store.conversation(message.conversation_id)
    assert stored is not None
    assert (stored.members, stored.title) == ((CARLA, ALICE, BOB), "Carla")
    for agent in (ALICE, BOB):
        [opened] = desk.bench.sockets.of(agent, "conversation")
        names = {member["id"]: member["name"] for member in opened["conversation"]["members"]}
        assert (names[CARLA], names[ALICE]) == ("Carla", "Alice")
        assert len(desk.bench.sockets.of(agent, "message")) == 1


def test_the_next_message_goes_to_the_same_conversation(desk: Desk) -> None:
    desk.resolve(desk.arrives(says("1"), says("2", id_="wamid.in2")))
    desk.resolve(desk.arrives(says("3", id_="wamid.in3")))
    messages = desk.store_all()
    assert [each.content for each in messages] == ["1", "2", "3"]
    assert len({each.conversation_id for each in messages}) == 1
    assert len(desk.bench.sockets.of(ALICE, "conversation")) == 1


def test_an_answer_goes_where_the_answered_message_is(desk: Desk) -> None:
    first, second = sent(desk, external_id="wamid.a"), sent(desk, external_id="wamid.b")
    desk.resolve(desk.arrives(says("to a", reply_to_external_id="wamid.a")))
    desk.resolve(desk.arrives(says("to b", id_="wamid.in2", reply_to_external_id="wamid.b")))
    desk.resolve(desk.arrives(says("to nobody", id_="wamid.in3", reply_to_external_id="wamid.gone")))
    by_text = {each.content: each for each in desk.store_all()}
    assert (by_text["to a"].conversation_id, by_text["to a"].reply_to) == (first.conversation_id, first.message_id)
    assert (by_text["to b"].conversation_id, by_text["to b"].reply_to) == (second.conversation_id, second.message_id)
    # The last conversation with this person is where they go on.
    assert (by_text["to nobody"].conversation_id, by_text["to nobody"].reply_to) == (second.conversation_id, None)


@pytest.mark.parametrize(("agents", "drawn"), [((BOB,), False), ((ALICE, BOB), True), ((), True)])
def test_who_is_no_agent_draws_nobody_to_themselves_by_being_answered(
    desk: Desk, agents: tuple[str, ...], drawn: bool
) -> None:
    desk.inboxes["whatsapp", "1055"] = Inbox(WHATSAPP, WORKSPACE, agents)
    desk.resolve(desk.arrives(says("hello")))
    of_alice = sent(desk, external_id="wamid.a")
    desk.resolve(desk.arrives(says("re: Alice", id_="wamid.in2", reply_to_external_id="wamid.a")))
    desk.resolve(desk.arrives(says("my card's number", id_="wamid.in3")))
    hello, answer, secret = desk.store_all()
    assert answer.conversation_id == of_alice.conversation_id != hello.conversation_id
    assert secret.conversation_id == (of_alice if drawn else hello).conversation_id


def test_who_is_answered_by_somebody_whom_we_do_not_know_keeps_them(desk: Desk) -> None:
    """As who writes to them first does."""
    desk.inboxes["whatsapp", "1055"] = Inbox(WHATSAPP, WORKSPACE, (BOB,))
    of_alice = sent(desk, external_id="wamid.a")
    desk.resolve(desk.arrives(says("re: Alice", reply_to_external_id="wamid.a"), says("and", id_="wamid.in2")))
    assert [each.conversation_id for each in desk.store_all()] == [of_alice.conversation_id] * 2


@pytest.mark.parametrize("contact_is_known", [True, False])
def test_agents_that_come_later_join_what_nobody_reads(desk: Desk, contact_is_known: bool) -> None:
    if contact_is_known:
        desk.inboxes["whatsapp", "1055"] = Inbox(WHATSAPP, WORKSPACE, ())
        desk.resolve(desk.arrives(says("1")))
    else:  # whoever opened it died before it was bound
        public_id = f"{CARLA}@1055"
        home = replace(desk.bench.conversation(CARLA), public_id=public_id)
        desk.bench.store.create_conversation(replace(home, conversation_id=derived_id(WORKSPACE, public_id)))
    desk.inboxes["whatsapp", "1055"] = Inbox(WHATSAPP, WORKSPACE, (ALICE, BOB))
    desk.resolve(desk.arrives(says("2", id_="wamid.in2"), says("3", id_="wamid.in3")))
    last = desk.store_all()[-1]
    assert (last.content, last.recipients, last.audience) == ("3", (ALICE, BOB), (ALICE, BOB))
    stored = desk.bench.store.conversation(last.conversation_id)
    assert stored is not None
    assert stored.members == (CARLA, ALICE, BOB)
    for agent in (ALICE, BOB):
        [told] = desk.bench.sockets.of(agent, "conversation")
        assert {member["id"] for member in told["conversation"]["members"]} == {CARLA, ALICE, BOB}
        assert [each["message"]["content"] for each in desk.bench.sockets.of(agent, "message")] == ["2", "3"]


def test_agents_that_come_later_do_not_join_what_others_read(desk: Desk) -> None:
    desk.inboxes["whatsapp", "1055"] = Inbox(WHATSAPP, WORKSPACE, (ALICE,))
    desk.resolve(desk.arrives(says("1")))
    desk.inboxes["whatsapp", "1055"] = Inbox(WHATSAPP, WORKSPACE, (BOB,))
    desk.resolve(desk.arrives(says("2", id_="wamid.in2")))
    assert [each.recipients for each in desk.store_all()] == [(ALICE,), (ALICE,)]


def test_somebody_who_left_the_conversation_opens_one_of_their_own(desk: Desk) -> None:
    ours = sent(desk)
    desk.resolve(desk.arrives(says("1", reply_to_external_id="wamid.out1")))
    desk.bench.store.remove_member(ours.conversation_id, CARLA)
    desk.resolve(desk.arrives(says("2", id_="wamid.in2", reply_to_external_id="wamid.out1")))
    first, second = desk.store_all()
    assert first.conversation_id == ours.conversation_id
    assert second.conversation == f"{CARLA}@1055"


def test_somebody_who_was_removed_from_their_own_conversation_is_back_when_they_write(desk: Desk) -> None:
    desk.resolve(desk.arrives(says("1")))
    [message] = desk.store_all()
    desk.bench.store.remove_member(message.conversation_id, CARLA)
    desk.resolve(desk.arrives(says("2", id_="wamid.in2")))
    stored = desk.bench.store.conversation(message.conversation_id)
    assert stored is not None
    assert CARLA in stored.members
    assert desk.changed == [message.conversation_id]
    _opened, back = desk.bench.sockets.of(ALICE, "conversation")
    assert CARLA in {member["id"] for member in back["conversation"]["members"]}


def test_an_account_that_nobody_can_read_holds_up_nobody_else(desk: Desk) -> None:
    desk.inboxes["whatsapp", "2066"] = Inbox(WHATSAPP, WORKSPACE, (ALICE,))
    records = [*desk.arrives(says("1"), account_id="2066"), *desk.arrives(says("2"))]
    desk.unreadable.add("2066")
    held, done = desk.resolve(records)
    assert held is not None
    assert (held.verdict, held.reason, done) == (Verdict.PAUSED, "secrets_unreadable", DONE)
    assert [each.content for each in desk.store_all()] == ["2"]
    desk.unreadable.clear()
    assert desk.resolve(records[:1]) == [DONE]
    assert {each.content for each in desk.store_all()} == {"1", "2"}


def test_an_account_that_is_mended_in_the_middle_of_a_batch_gets_nothing_out_of_order(desk: Desk) -> None:
    records = desk.arrives(says("1"), says("2", id_="wamid.in2"))
    asked: list[str] = []

    def mended_meanwhile(channel: str, account_id: str) -> Inbox | None:
        asked.append(account_id)
        if len(asked) == 1:
            raise SecretsUnreadable
        return desk.inboxes[channel, account_id]

    inbound = replace(desk.inbound(Fuse(0)), inbox_for=mended_meanwhile)
    outcomes = resolve(items(records), inbound, lease=FreeLease(), deadline_s=desk.bench.clock.monotonic_s() + 5)
    assert [outcomes[record.offset].verdict for record in records] == [Verdict.PAUSED, Verdict.PAUSED]
    assert desk.store_all() == []
    assert desk.resolve(records) == [DONE, DONE]
    assert [each.content for each in desk.store_all()] == ["1", "2"]


def test_a_message_is_taken_once_however_often_the_webhook_comes(desk: Desk) -> None:
    desk.resolve(desk.arrives(says(), says()))
    desk.store_all()
    desk.resolve(desk.arrives(says()))
    desk.store_all()
    assert len(desk.store_all()) == 1
    assert len(desk.bench.sockets.of(ALICE, "message")) == 1


def test_the_same_id_on_another_account_is_another_message(desk: Desk) -> None:
    desk.inboxes["whatsapp", "2066"] = Inbox(WHATSAPP, WORKSPACE, (ALICE,))
    desk.resolve(desk.arrives(says("1")) + desk.arrives(says("2"), account_id="2066"))
    assert {each.conversation for each in desk.store_all()} == {f"{CARLA}@1055", f"{CARLA}@2066"}


def test_an_account_that_is_gone_or_moved_to_another_workspace_takes_nothing(desk: Desk) -> None:
    records = desk.arrives(says(), account_id="gone") + desk.arrives(says(), workspace_id=uuid4())
    assert desk.resolve(records) == [DONE, DONE]
    assert desk.store_all() == []


def test_what_means_nothing_to_us_is_done_with(desk: Desk) -> None:
    assert desk.resolve(desk.arrives(Ignored("reaction"))) == [DONE]
    assert desk.store_all() == []


def test_what_no_database_takes_is_cleaned(desk: Desk) -> None:
    """PostgreSQL refuses NUL: the record would be poison, and the person's message lost."""
    event = InboundText(
        external_id="wamid.\x00in",
        sender="+5511999998888",
        text="a\x00b",
        sender_name="Car\x00la",
        sender_handle="car\x00la",
        attachments=(InboundAttachment("image/\x00png", "ph\x00oto.png", media_id="media-1"),),
    )
    assert desk.resolve(desk.arrives(event)) == [DONE]
    [message] = desk.store_all()
    assert message.content == "a\ufffdb"
    contact = desk.bench.store.contact(
        workspace_id=WORKSPACE, channel="whatsapp", account_id="1055", address="+5511999998888"
    )
    assert contact is not None
    assert (contact.name, contact.handle) == ("Car\ufffdla", "car\ufffdla")
    conversation = desk.bench.store.conversation(message.conversation_id)
    assert "\x00" not in repr((message, contact, conversation, desk.bench.sockets.frames))


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(says(id_="w" * 513), id="a message id"),
        pytest.param(says(sender="9" * 256), id="an address"),
        pytest.param(reports("DELIVERED", "w" * 513), id="a receipt's id"),
    ],
)
def test_what_is_longer_than_anything_a_platform_says_is_left_out(desk: Desk, event: Event) -> None:
    assert desk.resolve(desk.arrives(event)) == [DONE]
    assert desk.store_all() == []
    assert desk.waiting() == []


def test_a_long_address_opens_a_conversation_with_an_id_that_fits(desk: Desk) -> None:
    sender = "US." + "1" * 128
    desk.resolve(desk.arrives(says("1", sender=sender), says("2", sender=sender, id_="wamid.in2")))
    first, second = desk.store_all()
    assert first.conversation_id == second.conversation_id
    assert len(first.conversation) <= 128


# --- files -------------------------------------------------------------------------------------------------------


def test_several_attachments_become_several_messages_in_order(desk: Desk) -> None:
    desk.resolve(desk.arrives(says("look", attachments=(PHOTO, VOICE))))
    first, second = desk.store_all()
    assert (first.content, second.content) == ("look", "")
    assert first.message_id < second.message_id
    assert [desk.kept[each.file_id or ""] for each in (first, second)] == [b"bytes", b"bytes"]
    desk.resolve(desk.arrives(says("look", attachments=(PHOTO, VOICE))))
    assert len(desk.store_all()) == 2


@pytest.mark.parametrize("refusal", [None, EmptyFile(), FileTooLarge(1)], ids=["gone", "empty", "too large"])
def test_a_file_that_is_lost_leaves_the_message(desk: Desk, refusal: Chat4AllError | None) -> None:
    if refusal:
        desk.refuses = refusal
    else:
        desk.webhooks.files["media-1"] = [PermanentDeliveryError("gone")]
    assert desk.resolve(desk.arrives(says("look", attachments=(PHOTO,)))) == [DONE]
    [message] = desk.store_all()
    assert (message.content, message.file_id) == ("look", None)


def test_a_file_that_cannot_be_had_now_is_asked_for_again_and_nothing_overtakes_it(desk: Desk) -> None:
    desk.webhooks.files["media-2"] = [TransientDeliveryError("refused", retry_after_s=3)]
    records = desk.arrives(says("1", attachments=(PHOTO, VOICE)), says("2", id_="wamid.in2"))
    records += desk.arrives(says("other", id_="wamid.in3", sender="+5511977776666"))
    assert desk.resolve(records) == [Outcome(Verdict.RETRY, after_s=3, reason="refused"), None, DONE]
    desk.store_all()
    assert desk.resolve(records[:2]) == [DONE, DONE]
    hers = [each for each in desk.store_all() if each.sender_id == CARLA]
    assert [(each.content, bool(each.file_id)) for each in sorted(hers, key=lambda m: m.message_id)] == [
        ("1", True),
        ("", True),
        ("2", False),
    ]


def test_files_that_take_long_are_fetched_in_as_many_batches_as_they_need(desk: Desk) -> None:
    """A task that fetches one file after the other would be killed in the middle, and begin anew."""
    fetched: list[float] = []

    def slow() -> None:
        fetched.append(desk.bench.clock.monotonic_s())
        desk.bench.clock.advance(20)

    desk.webhooks.takes = slow
    files = (PHOTO, VOICE, replace(PHOTO, media_id="media-3"))
    records = desk.arrives(says("look", attachments=files), says("2", id_="wamid.in2"))
    more = Outcome(Verdict.PAUSED, after_s=1.0, reason="out_of_time")
    for number in range(1, 3):
        assert desk.resolve(records) == [more, None]
        assert len(fetched) == number
        assert len(desk.store_all()) == number
    desk.webhooks.takes = lambda: None
    assert desk.resolve(records) == [DONE, DONE]
    hers = sorted(desk.store_all(), key=lambda message: message.message_id)
    assert [(each.content, bool(each.file_id)) for each in hers] == [
        ("look", True),
        ("", True),
        ("", True),
        ("2", False),
    ]


@pytest.mark.parametrize(
    "error", [TransientDeliveryError("too_slow", outage=False), PausedDeliveryError("platform:190", outage=False)]
)
def test_a_file_that_is_not_to_be_had_for_long_comes_later(desk: Desk, error: DeliveryError) -> None:
    desk.webhooks.files["media-1"] = [error] * 3
    records = desk.arrives(says("look", attachments=(PHOTO,)))
    long_ago_ms = desk.bench.clock.now_ms() - FILE_LATE_MS
    again = Outcome(Verdict.RETRY, after_s=1.0, reason=error.reason)
    assert desk.resolve(records, first_failed_ms=long_ago_ms) == [again]
    assert desk.resolve(records, first_failed_ms=long_ago_ms - 1) == [DONE]
    [message] = desk.store_all()
    [late] = desk.late()
    assert desk.resolve([late], first_failed_ms=long_ago_ms) == [DONE]  # to the end of the log
    [_, late] = desk.late()
    assert desk.resolve([late]) == [DONE]
    assert desk.kept == {message.file_id: b"bytes"}


def test_a_file_that_is_gone_leaves_the_message_at_once(desk: Desk) -> None:
    desk.webhooks.files["media-1"] = [PermanentDeliveryError("gone")]
    assert desk.resolve(desk.arrives(says("look", attachments=(PHOTO,)))) == [DONE]
    assert [(each.content, each.file_id) for each in desk.store_all()] == [("look", None)]
    assert desk.late() == []


def test_a_look_at_a_file_ends_before_its_task_is_killed() -> None:
    limits = Limits()
    look_up_s = limits.total_s + limits.read_s
    assert tasks.BATCH_DEADLINE_S + look_up_s + limits.download_s + limits.read_s < dispatch.HARD_LIMIT_S
    assert tasks.BATCH_DEADLINE_S + KEEP_WITHIN_S + PING_WITHIN_S < dispatch.HANGS_S < dispatch.HARD_LIMIT_S


def test_however_late_in_its_batch_a_file_was_begun_it_is_kept_by_the_same_time(desk: Desk) -> None:
    desk.webhooks.takes = lambda: desk.bench.clock.advance(4)
    records = desk.arrives(says("1", attachments=(PHOTO,)), says("2", id_="wamid.in2", attachments=(PHOTO,)))
    until_s = desk.bench.clock.monotonic_s() + 5
    desk.resolve(records, deadline_s=until_s)
    assert desk.keep_by_s == [until_s + KEEP_WITHIN_S] * 2


def test_a_storage_that_is_away_holds_nobody_up_and_loses_no_file(desk: Desk) -> None:
    desk.refuses = StorageUnavailable()
    records = desk.arrives(says("look", attachments=(PHOTO,)), says("and?", id_="wamid.in2"))
    assert desk.resolve(records) == [DONE, DONE]
    photo, text = sorted(desk.store_all(), key=lambda message: message.message_id)
    assert [(each.content, bool(each.file_id)) for each in (photo, text)] == [("look", True), ("and?", False)]
    [late] = desk.late()
    assert desk.resolve([late]) == [Outcome(Verdict.RETRY, after_s=1.0, reason="storage_away")]
    desk.refuses = None
    assert desk.resolve([late]) == [DONE]
    assert desk.kept == {photo.file_id: b"bytes"}
    assert len(desk.store_all()) == 2


def test_the_first_of_several_files_is_not_forgotten_when_the_second_has_to_wait(desk: Desk) -> None:
    desk.refuses = StorageUnavailable()
    desk.webhooks.files["media-2"] = [TransientDeliveryError("too_slow", outage=False)]
    records = desk.arrives(says("look", attachments=(PHOTO, VOICE)))
    assert desk.resolve(records) == [Outcome(Verdict.RETRY, after_s=1.0, reason="too_slow")]
    desk.store_all()
    desk.refuses = None
    assert desk.resolve(records) == [DONE]
    hers = desk.store_all()
    assert desk.resolve(desk.late()) == [DONE]
    assert desk.kept.keys() == {each.file_id for each in hers}
    assert len(hers) == 2


def test_late_files_of_one_message_are_fetched_in_as_many_batches_as_they_need(desk: Desk) -> None:
    """One after the other would take longer than a task may, each time anew."""
    fetched: list[float] = []

    def slow() -> None:
        fetched.append(desk.bench.clock.monotonic_s())
        desk.bench.clock.advance(6)

    desk.refuses = StorageUnavailable()
    desk.resolve(desk.arrives(says("look", attachments=(PHOTO, VOICE, replace(PHOTO, media_id="media-3")))))
    messages = desk.store_all()
    desk.refuses, desk.webhooks.takes = None, slow
    late = desk.late()
    for number in range(1, 4):
        [outcome, *unbegun] = desk.resolve(late)
        assert (outcome, set(unbegun) - {None}, len(fetched)) == (DONE, set(), number)
        late = late[1:]
    assert late == []
    assert desk.kept.keys() == {each.file_id for each in messages}


def test_a_late_file_that_is_not_to_be_had_holds_up_no_other_of_its_message(desk: Desk) -> None:
    desk.refuses = StorageUnavailable()
    desk.resolve(desk.arrives(says("look", attachments=(PHOTO, VOICE))))
    [_, voice] = sorted(desk.store_all(), key=lambda message: message.message_id)
    desk.refuses = None
    desk.webhooks.files["media-1"] = [TransientDeliveryError("refused")]
    assert desk.resolve(desk.late()) == [Outcome(Verdict.RETRY, after_s=1.0, reason="refused"), DONE]
    assert desk.kept.keys() == {voice.file_id}


def test_wherever_a_batch_dies_a_late_file_is_fetched_in_the_end(desk: Desk) -> None:
    """Also between what is appended to `inbound` and to `messages`."""
    numbers = itertools.count(1)

    def run(fuse: Fuse) -> None:
        external_id = f"wamid.file{next(numbers)}"
        records = desk.arrives(says("look", id_=external_id, attachments=(PHOTO,)))
        desk.refuses = StorageUnavailable()
        with suppress(Killed):
            desk.resolve(records, fuse=fuse)
        desk.store_all()
        desk.refuses = None
        assert desk.resolve(records) == [DONE]
        [hers] = [each for each in desk.store_all() if each.external_id == external_id]
        desk.resolve(desk.late())
        assert hers.file_id in desk.kept

    assert every_step(run) > 4


def test_a_late_file_goes_to_the_end_of_the_log_and_is_never_given_up_for_our_own_fault(desk: Desk) -> None:
    desk.refuses = StorageUnavailable()
    desk.resolve(desk.arrives(says("look", attachments=(PHOTO,))))
    desk.store_all()
    for times in range(1, 4):
        *_, late = desk.late()
        desk.bench.clock.advance(24 * 3600)
        failing_ms = desk.bench.clock.now_ms() - LATE_FILE_AGAIN_MS
        [outcome] = desk.resolve([late], first_failed_ms=failing_ms)
        assert outcome == Outcome(Verdict.RETRY, after_s=1.0, reason="storage_away")
        assert desk.resolve([late], first_failed_ms=failing_ms - 1) == [DONE]
        assert len(desk.late()) == 1 + times
    desk.refuses = None
    assert desk.resolve(desk.late()) == [DONE] * 4
    assert list(desk.kept.values()) == [b"bytes"]


def test_a_file_that_takes_the_storage_too_long_is_tried_ever_more_rarely_and_left_out_after_a_day(desk: Desk) -> None:
    """Each try takes a worker for as long as a task may take."""
    clock = desk.bench.clock
    desk.wait_until(SYSTEM_CLOCK.now_ms())  # ids know no other time
    begun_ms, tries_ms = clock.now_ms(), list[int]()

    def slow() -> None:
        tries_ms.append(clock.now_ms() - begun_ms)
        clock.advance(35)

    desk.refuses, desk.webhooks.takes = StorageTooSlow(), slow
    assert desk.resolve(desk.arrives(says("look", attachments=(PHOTO,)))) == [DONE]
    assert [bool(each.file_id) for each in desk.store_all()] == [True]
    seen = 0
    while late := desk.late()[seen:]:
        seen += 1
        if not_before := late[0].headers.get(NOT_BEFORE):
            wait_ms = int(not_before) - clock.now_ms()
            again = Outcome(Verdict.RETRY, after_s=min(wait_ms, LATE_FILE_AGAIN_MS) / 1000, reason="storage_slow")
            assert desk.resolve(late) == [again]
            clock.advance(wait_ms / 1000)
        assert desk.resolve(late) == [DONE]
    *others, last = tries_ms
    assert max(others) <= LATE_FILE_GIVEN_UP_MS < last
    pauses_ms = [later - sooner for sooner, later in itertools.pairwise(tries_ms)]
    assert pauses_ms == sorted(pauses_ms)
    assert len(tries_ms) < 13


def test_a_late_file_that_waits_for_its_next_try_holds_no_watermark(desk: Desk) -> None:
    desk.refuses = StorageTooSlow()
    desk.resolve(desk.arrives(says("look", attachments=(PHOTO,))))
    desk.store_all()
    desk.resolve(desk.late())
    [_, late] = desk.late()
    long_ago_ms = desk.bench.clock.now_ms() - LATE_FILE_AGAIN_MS - 1
    assert desk.resolve([late], first_failed_ms=long_ago_ms) == [DONE]
    [_, _, again] = desk.late()
    assert (again.key, again.value) == (late.key, late.value)
    assert again.headers[NOT_BEFORE] == late.headers[NOT_BEFORE]
    desk.refuses = None
    desk.bench.clock.advance(LATE_FILE_AGAIN_MS / 1000)
    assert desk.resolve([again]) == [DONE]
    assert list(desk.kept.values()) == [b"bytes"]


def test_a_late_file_waits_for_its_message_and_for_the_platform_no_longer_than_a_day(desk: Desk) -> None:
    desk.refuses = StorageUnavailable()
    desk.resolve(desk.arrives(says("look", attachments=(PHOTO,))))
    desk.refuses = None
    [late] = desk.late()
    assert desk.resolve([late]) == [Outcome(Verdict.RETRY, after_s=1.0, reason="not_stored_yet")]
    [message] = desk.store_all()
    desk.webhooks.files["media-1"] = [TransientDeliveryError("refused")] * 2
    desk.wait_until(uuid7_ms(message.message_id) + LATE_FILE_GIVEN_UP_MS - 500)
    assert desk.resolve([late]) == [Outcome(Verdict.RETRY, after_s=1.0, reason="refused")]
    desk.bench.clock.advance(1)
    assert desk.resolve([late]) == [DONE]
    assert desk.kept == {}


def test_a_record_of_an_earlier_release_stands_for_all_files_of_its_item(desk: Desk) -> None:
    desk.refuses = StorageUnavailable()
    [record] = desk.arrives(says("look", attachments=(PHOTO, PHOTO)))
    desk.resolve([record])
    desk.store_all()
    for each in desk.late():
        assert each.key.endswith("~file"), "an earlier release would take it for a message"
    before, desk.refuses = len(desk.late()), None
    assert desk.resolve([replace(record, key=f"{record.key}~file")]) == [DONE]
    each_of_them = desk.late()[before:]
    assert len(each_of_them) == 2
    desk.resolve(each_of_them)
    assert len(desk.kept) == 2


@pytest.mark.parametrize("claimed", [True, False], ids=["a dead letter", "forgotten"])
def test_a_late_file_does_not_wait_for_ever_for_a_message_that_is_never_stored(desk: Desk, claimed: bool) -> None:
    desk.refuses = StorageUnavailable()
    [record] = desk.arrives(says("look", attachments=(PHOTO,)))
    late, since_ms = replace(record, key=f"{record.key}~0~file"), desk.bench.clock.now_ms()
    if claimed:
        desk.resolve([record])
        [late] = desk.late()
        [ref] = desk.bench.store.externals("whatsapp", "1055", ["wamid.in1"]).values()
        since_ms = uuid7_ms(ref.message_id)
    desk.wait_until(since_ms + LATE_FILE_GIVEN_UP_MS - 500)
    assert desk.resolve([late]) == [Outcome(Verdict.RETRY, after_s=1.0, reason="not_stored_yet")]
    counted, late_ones = seen("attachment_gone"), len(desk.late())
    desk.bench.clock.advance(1)
    assert desk.resolve([late]) == [DONE]
    assert (seen("attachment_gone") - counted, len(desk.late()) - late_ones) == (1, 0)


def test_a_day_for_a_late_file_begins_when_somebody_looked_at_its_message(desk: Desk) -> None:
    """Not when it arrived: it may have waited on the log for longer."""
    desk.refuses = StorageUnavailable()
    records = desk.arrives(says("look", attachments=(PHOTO,)))
    desk.wait_until(SYSTEM_CLOCK.now_ms())
    desk.resolve(records)
    desk.refuses = None
    assert desk.resolve(desk.late()) == [Outcome(Verdict.RETRY, after_s=1.0, reason="not_stored_yet")]


def test_what_was_not_begun_in_time_waits_for_the_next_batch(desk: Desk) -> None:
    records = desk.arrives(says("1"), says("2", id_="wamid.in2"))
    assert desk.resolve(records, deadline_s=desk.bench.clock.monotonic_s()) == [None, None]
    assert desk.resolve(records) == [DONE, DONE]
    assert [each.content for each in desk.store_all()] == ["1", "2"]


# --- receipts ----------------------------------------------------------------------------------------------------


def test_a_receipt_finds_its_message_by_the_platforms_id(desk: Desk) -> None:
    message = sent(desk)
    assert desk.resolve(desk.arrives(reports("DELIVERED", "wamid.out1"))) == [DONE]
    [change] = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    assert (change.message_id, change.recipient, change.status) == (message.message_id, CARLA, Status.DELIVERED)
    assert change.external_id == "wamid.out1"
    assert change.at_ms >= uuid7_ms(message.message_id)


def test_a_failed_message_says_why(desk: Desk) -> None:
    sent(desk)
    desk.resolve(desk.arrives(reports("FAILED", "wamid.out1", reason="platform:131026")))
    assert desk.bench.reported() == [("FAILED", "platform:131026")]


def test_a_receipt_that_comes_before_the_send_returned_is_found_by_our_own_id(desk: Desk) -> None:
    message = sent(desk, external_id=None)
    desk.resolve(desk.arrived(reports("DELIVERED", "wamid.new", correlation_id=str(message.message_id))))
    [change] = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    assert (change.message_id, change.recipient, change.external_id) == (message.message_id, CARLA, "wamid.new")


def test_a_receipt_by_our_own_id_proves_that_the_platform_has_the_message(desk: Desk) -> None:
    """Also "sent", which is no news in the history: without it a message would go twice whose send call broke off."""
    message = sent(desk, external_id=None)
    store, key = desk.bench.store, DeliveryKey(message.message_id, CARLA)
    store.claim_deliveries([key], owner="a", now_ms=desk.bench.clock.now_ms(), lease_ms=1000)
    store.settle_deliveries([DeliveryOutcome(key, uncertain=True)], owner="a")
    desk.resolve(desk.arrived(reports("SENT", "wamid.new", correlation_id=str(message.message_id))))
    [claim] = store.claim_deliveries([key], owner="b", now_ms=desk.bench.clock.now_ms(), lease_ms=1000)
    assert (claim.state, claim.external_id) == (DeliveryState.SENT, "wamid.new")
    known = store.externals("whatsapp", "1055", ["wamid.new"]).get("wamid.new")
    assert known is not None
    assert (known.message_id, known.party) == (message.message_id, CARLA)


def test_an_early_receipt_waits_a_moment_for_its_sender_and_asks_nothing_about_the_message(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, store, counted = sent(desk, external_id=None), desk.bench.store, Counter[str]()
    for name in ("messages", "settle_deliveries", "note_externals"):
        monkeypatch.setattr(store, name, _counted(getattr(store, name), counted))
    both = [reports(each, "wamid.x", correlation_id=str(message.message_id)) for each in ("SENT", "READ")]
    told = [*desk.arrive_together(*both), *desk.arrives_alone(both[0])]
    assert desk.resolve(told) == 2 * [Outcome(Verdict.PAUSED, after_s=AGAIN_MS / 1000, reason="early")]
    store.claim_externals([ref_of(message, "wamid.x")])
    assert desk.resolve(told) == [DONE, DONE]
    assert counted == {}
    assert desk.bench.reported() == [("READ", None)]


def test_who_told_it_by_a_clock_ahead_of_ours_is_not_early_for_long(desk: Desk) -> None:
    message = sent(desk, external_id=None)
    told = desk.arrives(reports("SENT", "wamid.x", correlation_id=str(message.message_id)))
    desk.bench.clock.advance(-420)
    assert desk.resolve(told) == [DONE]


def test_receipts_that_come_before_their_sends_returned_are_looked_up_together(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A platform tells of many at once, and each look at a store is a way to a server and back."""
    messages = [sent(desk, external_id=None) for _ in range(3)]
    store, counted = desk.bench.store, Counter[str]()
    for name in ("externals", "messages", "settle_deliveries", "note_externals"):
        monkeypatch.setattr(store, name, _counted(getattr(store, name), counted))
    told = [
        reports(status, f"wamid.{number}", correlation_id=str(message.message_id))
        for status in ("DELIVERED", "READ")
        for number, message in enumerate(messages)
    ]
    assert desk.resolve(desk.arrived(*told)) == [DONE] * 6
    assert set(counted.values()) == {1}
    changes = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    assert [each.message_id for each in changes] == 2 * [message.message_id for message in messages]


def test_of_receipts_about_one_message_one_that_names_it_as_we_do_counts(desk: Desk) -> None:
    message = sent(desk, external_id=None)
    named = reports("DELIVERED", "wamid.x", correlation_id=str(message.message_id))
    told = desk.arrived(reports("DELIVERED", "wamid.x"), named, reports("READ", "wamid.x"))
    assert desk.resolve(told) == [DONE] * 3
    changes = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    assert [each.status for each in changes] == [Status.DELIVERED, Status.DELIVERED, Status.READ]


def test_that_the_platform_has_a_message_is_no_news_but_of_a_later_attempt(desk: Desk) -> None:
    """It is SENT since it was stored; what an operator sends again is not, until somebody says so."""
    message = sent(desk)
    again = replace(ref_of(message, "wamid.again"), attempt=1)
    desk.bench.store.note_externals([again])
    assert desk.resolve(desk.arrives(reports("SENT", "wamid.out1"), reports("SENT", "wamid.again"))) == [DONE, DONE]
    [change] = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    assert (change.status, change.attempt, change.external_id) == (Status.SENT, 1, "wamid.again")


def _counted(call: Callable[..., Any], counter: Counter[str]) -> Callable[..., Any]:
    def counting(*args: Any, **named: Any) -> Any:
        counter[call.__name__] += 1
        return call(*args, **named)

    return counting


@pytest.mark.parametrize("known", [True, False], ids=["by the platform's id", "by our own id"])
def test_the_platforms_refusal_of_a_later_attempt_counts(desk: Desk, known: bool) -> None:
    """An operator replayed it: a refusal of the first attempt would not touch the second one's SENT."""
    store, message = desk.bench.store, sent(desk, external_id=None)
    again = Outbound(message=message, recipient=CARLA, channel="whatsapp", attempt=1, routed_at_ms=0)
    ref = ExternalRef(
        channel="whatsapp",
        account_id="1055",
        external_id="wamid.again",
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        party=CARLA,
        attempt=1,
    )
    if known:
        store.claim_externals([ref])
    told = reports("FAILED", "wamid.again", reason="platform:131026", correlation_id=again.correlation_id)
    assert desk.resolve(desk.arrived(told)) == [DONE]
    assert store.externals("whatsapp", "1055", ["wamid.again"]) == {"wamid.again": ref}
    [refusal] = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    opened = replace(refusal, status=Status.SENT, attempt=1, reason=None, external_id=None)
    *_, standing = store.apply_statuses([opened, refusal])
    assert (standing.status, standing.reason) == (Status.FAILED, "platform:131026")


def test_a_receipt_by_our_own_id_proves_nothing_of_other_attempts(desk: Desk) -> None:
    message = sent(desk, external_id=None)
    again = Outbound(message=message, recipient=CARLA, channel="whatsapp", attempt=1, routed_at_ms=0)
    store, now_ms = desk.bench.store, desk.bench.clock.now_ms()
    keys = [DeliveryKey(message.message_id, CARLA, attempt) for attempt in (0, 1)]
    store.claim_deliveries(keys, owner="a", now_ms=now_ms, lease_ms=1000)
    store.settle_deliveries([DeliveryOutcome(key, uncertain=True) for key in keys], owner="a")
    desk.resolve(desk.arrived(reports("SENT", "wamid.new", correlation_id=again.correlation_id)))
    claims = store.claim_deliveries(keys, owner="b", now_ms=now_ms, lease_ms=1000)
    assert [claim.state for claim in claims] == [DeliveryState.ABANDONED, DeliveryState.SENT]


def test_a_receipt_of_an_unknown_message_waits_and_holds_up_nobody(desk: Desk) -> None:
    records = desk.arrives(reports("DELIVERED", "wamid.out1"), says("meanwhile"))
    assert desk.resolve(records) == [DONE, DONE]
    assert [each.content for each in desk.store_all()] == ["meanwhile"]
    [waiting] = desk.waiting()
    assert desk.resolve([waiting]) == [Outcome(Verdict.RETRY, after_s=1.0, reason="unknown_message")]
    sent(desk)
    assert desk.resolve([waiting]) == [DONE]
    assert desk.bench.reported() == [("DELIVERED", None)]


def test_a_receipt_that_nobody_explains_in_ten_seconds_is_dropped(desk: Desk) -> None:
    desk.resolve(desk.arrives(reports("DELIVERED", "wamid.stranger")))
    [waiting] = desk.waiting()
    desk.bench.clock.advance((UNKNOWN_WAIT_MS - AGAIN_MS) / 1000 - 0.001)
    assert [outcome.verdict for outcome in desk.resolve([waiting]) if outcome] == [Verdict.RETRY]
    desk.bench.clock.advance(0.001)
    assert desk.resolve([waiting]) == [DONE]
    assert desk.bench.reported() == []


def test_a_receipt_that_an_outage_held_up_still_waits_for_its_message(desk: Desk) -> None:
    records = desk.arrives(reports("READ", "wamid.out1"))
    desk.bench.clock.advance(60)
    desk.resolve(records)
    [waiting] = desk.waiting()
    assert desk.resolve([waiting]) == [Outcome(Verdict.RETRY, after_s=1.0, reason="unknown_message")]
    sent(desk)
    assert desk.resolve([waiting]) == [DONE]
    assert desk.bench.reported() == [("READ", None)]


@pytest.mark.parametrize(
    "correlation",
    [
        pytest.param(lambda desk: str(sent(desk, external_id=None, workspace_id=uuid4()).message_id), id="foreign"),
        pytest.param(lambda desk: str(uuid7()), id="no message of ours"),
        pytest.param(lambda desk: "not an id", id="no id"),
        pytest.param(lambda desk: f"{sent(desk, external_id=None).message_id}/500", id="no attempt of ours"),
        pytest.param(lambda desk: f"{sent(desk, external_id=None).message_id}/x", id="no attempt"),
    ],
)
def test_nobody_moves_a_message_of_another_workspace(desk: Desk, correlation: Any) -> None:
    desk.resolve(desk.arrived(reports("READ", "wamid.theirs", correlation_id=correlation(desk))))
    [waiting] = desk.waiting()
    desk.bench.clock.advance(UNKNOWN_WAIT_MS / 1000)
    assert desk.resolve([waiting]) == [DONE]
    assert desk.bench.reported() == []


def test_a_receipt_by_our_id_names_who_it_is_about_among_several(desk: Desk) -> None:
    conversation = desk.bench.conversation(ALICE, CARLA, DIEGO)
    message = desk.bench.message(conversation)
    desk.bench.store.save_messages([message])
    desk.resolve(desk.arrived(reports("DELIVERED", "wamid.new", correlation_id=str(message.message_id))))
    assert [each.recipient for each in desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)] == [CARLA]
    unclear = StatusReport(
        external_id="wamid.x", status="READ", at_ms=0, recipient="+551133334444", correlation_id=str(message.message_id)
    )
    desk.resolve(desk.arrived(unclear))
    assert len(desk.waiting()) == 1


# --- receipts of one webhook ---------------------------------------------------------------------------------------


def test_receipts_of_one_webhook_are_one_record_and_each_finds_its_message(desk: Desk) -> None:
    messages = [sent(desk, external_id=f"wamid.{number}") for number in range(3)]
    told = [reports(status, f"wamid.{number}") for status in ("DELIVERED", "READ") for number in range(3)]
    records = desk.arrive_together(*told)
    assert desk.resolve(records) == [DONE]
    changes = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    assert [(each.message_id, each.status) for each in changes] == [
        (message.message_id, status) for status in (Status.DELIVERED, Status.READ) for message in messages
    ]


def test_one_that_cannot_be_placed_yet_holds_up_none_of_the_others(desk: Desk) -> None:
    known, early = sent(desk, external_id="wamid.known"), sent(desk, external_id=None)
    told = desk.arrive_together(
        reports("READ", "wamid.early", correlation_id=str(early.message_id)),
        reports("DELIVERED", "wamid.known"),
        reports("READ", "wamid.stranger"),
        reports("READ", "wamid.another"),
    )
    before = seen("StatusReport"), seen("status_of_unknown")
    assert desk.resolve(told) == [DONE]
    [rest] = desk.waiting()
    assert desk.resolve([rest]) == [Outcome(Verdict.PAUSED, after_s=AGAIN_MS / 1000, reason="early")]
    desk.bench.store.claim_externals([ref_of(early, "wamid.early")])
    assert desk.resolve([rest]) == [DONE]
    last = desk.waiting()[-1]
    assert desk.resolve([last]) == [Outcome(Verdict.RETRY, after_s=1.0, reason="unknown_message")]
    desk.bench.clock.advance(UNKNOWN_WAIT_MS / 1000)
    assert desk.resolve([last]) == [DONE]
    changes = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    assert [(each.message_id, each.status) for each in changes] == [
        (known.message_id, Status.DELIVERED),
        (early.message_id, Status.READ),
    ]
    assert (seen("StatusReport") - before[0], seen("status_of_unknown") - before[1]) == (2, 2)
    assert len(desk.waiting()) == 2


def test_what_was_put_back_is_not_looked_at_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look may put a part of it back once more."""
    desk.resolve(desk.arrives(reports("READ", "wamid.out1")))
    [waiting] = desk.waiting()
    counted = Counter[str]()
    monkeypatch.setattr(desk.bench.store, "externals", _counted(desk.bench.store.externals, counted))
    desk.bench.clock.advance(-0.1)
    [outcome] = desk.resolve([waiting])
    assert outcome is not None
    assert (outcome.verdict, outcome.reason) == (Verdict.PAUSED, "put_back")
    assert outcome.after_s == pytest.approx(0.1)
    desk.bench.clock.advance(-1)  # by a clock that is behind the log's it would rest for longer, and longer
    assert [each.verdict for each in desk.resolve([waiting]) if each] == [Verdict.RETRY]
    assert counted == {"externals": 1}


def test_what_a_batch_made_of_some_is_on_the_log_before_the_others_are_put_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While `status-updates` takes nothing, each try would put them back once more."""
    sent(desk)
    told = desk.arrive_together(reports("READ", "wamid.stranger"), reports("READ", "wamid.out1"))
    appended: list[set[str]] = []
    append = desk.bench.log.append

    def noted(records: Sequence[NewRecord], **how: bool) -> object:
        appended.append({each.topic for each in records})
        return append(records, **how)

    monkeypatch.setattr(desk.bench.log, "append", noted)
    assert desk.resolve(told) == [DONE]
    assert appended == [{topics.STATUS_UPDATES}, {topics.INBOUND}]


def test_a_batch_begins_no_more_than_it_can_look_up_in_its_time(desk: Desk) -> None:
    """What is asked of the store about all of it must be answered within one time-out, or the lane stands still."""
    sent(desk)
    full = [desk.arrive_together(*[reports("READ", "wamid.out1")] * TOGETHER)[0] for _ in range(AT_ONCE // TOGETHER)]
    behind = desk.arrives(reports("DELIVERED", "wamid.out1"), says("me, too"))
    assert desk.resolve([*full, *behind]) == [*[DONE] * len(full), None, None]
    assert desk.resolve(behind) == [DONE, DONE]


@pytest.mark.parametrize("newer_first", [False, True])
def test_one_that_is_not_early_is_looked_for_by_our_id_whatever_came_later(desk: Desk, newer_first: bool) -> None:
    message = sent(desk, external_id=None)
    older = desk.arrived(reports("DELIVERED", "wamid.x", correlation_id=str(message.message_id)))
    newer = desk.arrives(reports("READ", "wamid.x", correlation_id=str(message.message_id)))
    assert desk.resolve([*newer, *older] if newer_first else [*older, *newer]) == [DONE, DONE]
    assert len(desk.bench.reported()) == 2


def test_what_has_no_business_here_is_poison(desk: Desk) -> None:
    value = codec.encode(desk.bench.message(desk.bench.conversation()))
    places = desk.bench.log.append([NewRecord(topics.INBOUND, "k", value)])
    [record] = [desk.bench.log.read(source, start=offset, limit=1)[0] for source, offset in places]
    assert desk.resolve([record]) == [Outcome(Verdict.POISON, reason="undecodable")]


def test_what_waits_is_as_old_as_its_webhook(desk: Desk) -> None:
    known, early = sent(desk, external_id="wamid.known"), sent(desk, external_id=None)
    told = desk.arrive_together(
        reports("DELIVERED", "wamid.known"),
        reports("READ", "wamid.early", correlation_id=str(early.message_id)),
    )
    desk.bench.clock.advance((EARLY_MS - AGAIN_MS) / 1000 - 0.001)
    desk.resolve(told)
    [rest] = desk.waiting()
    assert [each.verdict for each in desk.resolve([rest]) if each] == [Verdict.PAUSED]
    desk.bench.clock.advance(0.001)
    assert desk.resolve([rest]) == [DONE]
    changes = desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)
    assert [each.message_id for each in changes] == [known.message_id, early.message_id]


def test_what_is_no_receipt_among_them_is_left_out_and_counted_once(desk: Desk, lines: Lines) -> None:
    """Once they are through: while they wait they are looked at again and again."""
    early = sent(desk, external_id=None)
    told = desk.arrive_together(
        Ignored("unknown_status"),
        says("I am a person"),
        reports("READ", "wamid.early", correlation_id=str(early.message_id)),
    )
    before = seen("Ignored")
    for _ in range(3):
        assert [outcome.verdict for outcome in desk.resolve(told) if outcome] == [Verdict.PAUSED]
    desk.bench.store.claim_externals([ref_of(early, "wamid.early")])
    assert desk.resolve(told) == [DONE]
    assert seen("Ignored") - before == 2
    assert [line["kind"] for line in lines() if line["message"] == "inbound ignored"] == [
        "unknown_status",
        "no_receipt",
    ]
    assert desk.store_all() == []


def test_receipts_of_an_account_that_is_gone_are_counted_each(desk: Desk) -> None:
    before = seen("account_gone")
    told = desk.arrive_together(reports("READ", "wamid.1"), reports("READ", "wamid.2"), account_id="gone")
    assert desk.resolve(told) == [DONE]
    assert seen("account_gone") - before == 2


@pytest.mark.parametrize("waiting", [False, True])
def test_a_receipt_that_an_earlier_release_appended_by_itself_is_understood(desk: Desk, waiting: bool) -> None:
    """And put back as it was: workers of that release may be at work beside this one."""
    told = desk.arrives_alone(reports("DELIVERED", "wamid.out1"), suffix=WAITING if waiting else "")
    if not waiting:
        assert desk.resolve(told) == [DONE]
    [again] = desk.waiting()
    assert (again.key, again.value) == (f"1055:+5511999998888{WAITING}", told[0].value)
    assert desk.resolve([again]) == [Outcome(Verdict.RETRY, after_s=1.0, reason="unknown_message")]
    sent(desk)
    assert desk.resolve([again]) == [DONE]
    assert desk.bench.reported() == [("DELIVERED", None)]


def test_many_receipts_are_as_many_records_as_a_batch_takes_well(desk: Desk) -> None:
    told = InboundReceipts(
        workspace_id=WORKSPACE,
        channel="whatsapp",
        account_id="1055",
        payloads=tuple({"number": number} for number in range(2 * TOGETHER + 1)),
        received_at_ms=1,
    )
    records = list(records_of(told, {}))
    found = [codec.decode(InboundReceipts, record.value) for record in records]
    assert [len(each.payloads) for each in found] == [TOGETHER, TOGETHER, 1]
    assert tuple(payload for each in found for payload in each.payloads) == told.payloads
    assert len({record.key for record in records}) == 3


@given(sizes=st.lists(st.integers(0, TOGETHER_BYTES + 10) | st.integers(0, 100), max_size=30))
def test_large_receipts_are_not_together_in_a_record(sizes: list[int]) -> None:
    payloads = tuple({"status": "x" * size, "number": number} for number, size in enumerate(sizes))
    told = InboundReceipts(
        workspace_id=WORKSPACE, channel="whatsapp", account_id="1055", payloads=payloads, received_at_ms=1
    )
    records = list(records_of(told, {}))
    found = [codec.decode(InboundReceipts, record.value).payloads for record in records]
    assert tuple(payload for each in found for payload in each) == payloads
    for record, each in zip(records, found, strict=True):
        assert len(each) == 1 or len(record.value) < TOGETHER_BYTES + 1000


@pytest.mark.parametrize("error", [Killed, Unavailable, LeaseLost])
def test_whatever_step_receipts_end_at_the_next_worker_tells_all_of_them(
    desk: Desk, error: type[BaseException]
) -> None:
    numbers = itertools.count()

    def run(fuse: Fuse) -> None:
        ids = [f"wamid.{next(numbers)}" for _ in range(3)]
        known, named = sent(desk, external_id=ids[0]), sent(desk, external_id=None)
        told = desk.arrive_together(
            reports("DELIVERED", ids[0]),
            reports("READ", ids[1], correlation_id=str(named.message_id)),
            reports("READ", ids[2]),
        )
        desk.bench.clock.advance(EARLY_MS / 1000)
        try:
            desk.resolve(told, fuse=fuse)
        except error:
            assert desk.resolve(told) == [DONE]
        late = sent(desk, external_id=ids[2])
        assert {outcome.verdict for outcome in desk.resolve(desk.waiting()) if outcome} == {Verdict.DONE}
        told_of = {each.message_id for each in desk.bench.on_log(topics.STATUS_UPDATES, StatusChange)}
        assert {each.message_id for each in (known, named, late)} <= told_of

    assert every_step(run, error) >= 8


# --- repeats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Killed, Unavailable, LeaseLost])
def test_whatever_step_it_ends_at_the_next_worker_completes_it(desk: Desk, error: type[BaseException]) -> None:
    def run(fuse: Fuse) -> None:
        before = {each.message_id for each in desk.store_all()}
        number = len(before)
        sender = f"+55119{number:08d}"
        records = desk.arrives(
            says("look", id_=f"wamid.{number}", sender=sender, attachments=(PHOTO, VOICE)),
            says("more", id_=f"wamid.{number}b", sender=sender),
        )
        try:
            desk.resolve(records, fuse=fuse)
        except error:
            assert desk.resolve(records) == [DONE, DONE]
        mine = [each for each in desk.store_all() if each.message_id not in before]
        in_order = sorted(mine, key=lambda each: each.message_id)
        assert [(each.content, bool(each.file_id)) for each in in_order] == [
            ("look", True),
            ("", True),
            ("more", False),
        ]
        conversation = f"whatsapp:{sender}@1055"
        frames = [each["message"] for each in desk.bench.sockets.of(ALICE, "message")]
        assert [each["content"] for each in frames if each["conversation_id"] == conversation] == ["look", "", "more"]
        opened = [each["conversation"]["conversation_id"] for each in desk.bench.sockets.of(ALICE, "conversation")]
        assert opened.count(conversation) == 1

    assert every_step(run, error) >= 20


@pytest.mark.django_db
@pytest.mark.parametrize("away", ["storage", "database", "time"])
def test_whichever_part_of_the_storage_is_away_is_told_as_that(away: str, settings: Settings) -> None:
    inbox = Inbox(WHATSAPP, WORKSPACE, (ALICE,))
    home = Conversation(
        conversation_id=uuid7(),
        workspace_id=WORKSPACE,
        public_id="whatsapp-carla",
        title="",
        members=(ALICE, CARLA),
        created_by=CARLA,
        created_at_ms=0,
    )

    def refuse(*_arguments: object) -> None:
        raise OperationalError("the connection is closed")

    if away == "storage":
        nobody_there = file_storage("s3://key:secret@bucket?endpoint=http://127.0.0.1:1")
        settings.STORAGES = {**settings.STORAGES, "default": nobody_there}
    broken = connection.execute_wrapper(refuse) if away == "database" else nullcontext()
    deadline_s = SYSTEM_CLOCK.monotonic_s() + (0 if away == "time" else 10)
    with broken, pytest.raises(StorageUnavailable) as told:
        wiring.keep_file(inbox, home, "name", PHOTO, b"bytes", deadline_s=deadline_s)
    assert isinstance(told.value, StorageTooSlow) is (away == "time")
    assert wiring.file_id_of(inbox, "name").startswith("file_")
