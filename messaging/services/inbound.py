"""Behind `inbound`: understand the items of a platform's webhook and put them where they belong.

A person's message gets the id that the first sight of its platform id claimed, a conversation and its readers, and goes
to `messages`; receipts go to `status-updates`. Repeating any step writes the same again.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Protocol
from uuid import UUID

from connectors.base import Account, Event, Ignored, InboundAttachment, InboundText, StatusReport
from connectors.errors import DeliveryError, PermanentDeliveryError
from core.clock import Clock
from core.failpoints import failpoint
from core.ids import derived_id, uuid7, uuid7_ms
from core.text import storable
from files.errors import EmptyFile, FileTooLarge, StorageTooSlow, StorageUnavailable
from messaging import codec, metrics, topics, tracing
from messaging.domain import (
    MAX_ADDRESS_CHARS,
    MAX_EXTERNAL_ID_CHARS,
    Contact,
    Conversation,
    ExternalRef,
    InboundEvent,
    Message,
    Party,
    inbound_conversation,
)
from messaging.errors import SecretsUnreadable
from messaging.ports import EventLog, MessageStore, NewRecord, Notify, Push
from messaging.services import receipts
from messaging.services.batches import Item, Lease, Outcomes, decoded
from messaging.services.conversations import changing
from messaging.services.receipts import Receipt, References, Told
from messaging.services.recent import RecentReferences
from messaging.services.render import conversation_json
from messaging.work import DONE, Outcome, Verdict

logger = logging.getLogger(__name__)

# A file that our storage could not take waits at the end of the log: its message went on with the id it will have.
LATE_FILE: Final = "~file"  # behind the attachment's number: one that takes long, or fails, holds up no other
LATE_FILE_AGAIN_MS: Final = 30_000  # of failing: then it goes to the end of the log, and holds no watermark
LATE_FILE_GIVEN_UP_MS: Final = 24 * 3600_000  # while the platform does not give it, or it is too much for our storage
KEEP_WITHIN_S: Final = 35.0  # of a batch's deadline: a task that takes longer counts as hanging, and is killed
FILE_LATE_MS: Final = 15 * 60_000  # of asking in vain; until then the person's later messages wait behind it
UNREADABLE_AGAIN_S: Final = 5.0
AT_ONCE: Final = 200  # items of a batch: what is asked of the store about them must end in time
NOT_BEFORE: Final = "not-before-ms"  # a header


class Translator(Protocol):
    """The part of a connector that understands webhooks."""

    def parse(self, account: Account, payload: Mapping[str, object]) -> Event: ...

    def fetch_media(self, account: Account, attachment: InboundAttachment) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Inbox:
    """Where a channel account's messages from unknown people go."""

    account: Account
    workspace_id: UUID
    agents: tuple[str, ...]  # user ids that become members of a conversation that an unknown sender opens


class KeepFile(Protocol):
    """Stores a file once under `Inbound.file_id` of its name. Raises StorageUnavailable, and StorageTooSlow at
    ``deadline_s`` (monotonic)."""

    def __call__(
        self,
        inbox: Inbox,
        conversation: Conversation,
        name: str,
        attachment: InboundAttachment,
        content: bytes,
        *,
        deadline_s: float,
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Inbound:
    """Everything that resolving needs."""

    store: MessageStore
    log: EventLog
    notify: Notify
    translator_for: Callable[[str], Translator]
    inbox_for: Callable[[str, str], Inbox | None]  # channel, account id
    keep_file: KeepFile
    file_id: Callable[[Inbox, str], str]
    names: Callable[[UUID, Collection[str]], Mapping[str, str]]  # display names of parties of a workspace
    retry_delay_s: Callable[[int], float]
    members_changed: Callable[[UUID], None]  # of a conversation, in the store
    clock: Clock
    recent: RecentReferences


def resolve(items: Sequence[Item], inbound: Inbound, *, lease: Lease, deadline_s: float) -> Outcomes:
    """Resolve a batch until ``deadline_s`` (monotonic): files may take long, and after that none is begun.

    Raises Unavailable and LeaseLost.
    """
    values, outcomes = decoded(codec.decode_inbound, items)
    letters, resolved = _understood(_at_once(values), inbound)
    lease.check()
    told = [receipt for letter in letters if isinstance(letter, _Slips) for receipt in letter.receipts]
    refs = receipts.references(told, store=inbound.store, recent=inbound.recent)
    waiting: set[str] = set()  # people whose earlier item must be tried again first
    found: list[NewRecord] = []
    for letter in letters:
        if inbound.clock.monotonic_s() >= deadline_s:
            break
        record = letter.item.record
        if record.key in waiting:
            continue
        lease.check()
        outcome = _resolve_one(letter, inbound, refs, found, deadline_s=deadline_s)
        resolved[letter.item.number] = outcome
        if outcome.verdict is not Verdict.DONE:
            waiting.add(record.key)
    if found:
        lease.check()
        failpoint("inbound.resolved")
        _append(found, inbound.log)
    return outcomes | resolved


def _at_once(values: Sequence[tuple[Item, Told]]) -> Sequence[tuple[Item, Told]]:
    """As many as are looked up well within a batch's time; at least one. The others are not started."""
    sizes = itertools.accumulate(len(event.payloads) for _, event in values)
    return values[: max(1, sum(size <= AT_ONCE for size in sizes))]


def _append(found: Sequence[NewRecord], log: EventLog) -> None:
    """A log may take a part of this alone, and the batch comes again. It must not have a message, which a repeat finds
    stored, without the record that fetches its file; nor again and again receipts that are put back, but not what was
    made of the others."""
    files = [each for each in found if each.topic == topics.INBOUND and each.key.endswith(LATE_FILE)]
    onward = [each for each in found if each.topic != topics.INBOUND]
    back = [each for each in found if each.topic == topics.INBOUND and not each.key.endswith(LATE_FILE)]
    for records in filter(None, (files, onward, back)):
        log.append(records, onward=True)


@dataclass(frozen=True, slots=True)
class _Letter:
    """What a person wrote."""

    item: Item
    event: InboundEvent
    inbox: Inbox
    text: InboundText


@dataclass(frozen=True, slots=True)
class _Slips:
    """A record of which nothing is a person's: its receipts, and the kinds of what else is in it. ``gone``: nothing is
    known of it, as its account is not ours any more."""

    item: Item
    event: Told
    receipts: Sequence[Receipt] = ()
    ignored: Sequence[str] = ()
    gone: bool = False


def _understood(values: Sequence[tuple[Item, Told]], inbound: Inbound) -> tuple[list[_Letter | _Slips], Outcomes]:
    """And what becomes of those that wait: whose account nobody can read (it is asked for once: should somebody mend it
    meanwhile, what a person wrote later would go first), or that were looked at just now."""
    opened: list[_Letter | _Slips] = []
    outcomes: Outcomes = {}
    unreadable: set[tuple[str, str]] = set()
    for item, event in values:
        account = event.channel, event.account_id
        if after_s := receipts.rest_s(item.record, inbound.clock.now_ms()):
            outcomes[item.number] = Outcome(Verdict.PAUSED, after_s=after_s, reason="put_back")
            continue
        if account not in unreadable:
            try:
                opened.append(_understand(item, event, inbound))
                continue
            except SecretsUnreadable:
                unreadable.add(account)
        waits = Outcome(Verdict.PAUSED, after_s=UNREADABLE_AGAIN_S, reason=SecretsUnreadable.code)
        outcomes[item.number] = waits
    for channel, account_id in unreadable:
        extra = {"channel": channel, "account_id": account_id}
        logger.warning("credentials cannot be read: what people wrote waits", extra=extra)
    return opened, outcomes


def _understand(item: Item, event: Told, inbound: Inbound) -> _Letter | _Slips:
    inbox = inbound.inbox_for(event.channel, event.account_id)
    if inbox is None or inbox.workspace_id != event.workspace_id:
        return _Slips(item, event, gone=True)
    translator, now_ms = inbound.translator_for(event.channel), inbound.clock.now_ms()
    told: list[Receipt] = []
    ignored: list[str] = []
    for payload in event.payloads:
        match _storable(translator.parse(inbox.account, payload)):
            case InboundText() as text if isinstance(event, InboundEvent):
                return _Letter(item, event, inbox, text)
            case InboundText():
                ignored.append("no_receipt")
            case StatusReport() as report:
                told.append(Receipt.of(event, payload, report, now_ms=now_ms))
            case Ignored(kind):
                ignored.append(kind)
    return _Slips(item, event, told, ignored)


def _resolve_one(
    opened: _Letter | _Slips, inbound: Inbound, refs: References, found: list[NewRecord], *, deadline_s: float
) -> Outcome:
    """Put it where it belongs."""
    counted = functools.partial(metrics.INBOUND.labels, opened.event.channel)
    if isinstance(opened, _Letter):
        outcome = _take(opened, inbound=inbound, found=found, deadline_s=deadline_s)
        if outcome.verdict is not Verdict.PAUSED:
            counted("InboundText").inc()
        return outcome
    if opened.gone:
        counted("account_gone").inc(len(opened.event.payloads))
        return DONE
    outcome = receipts.resolve(
        opened.item, opened.receipts, refs, found, clock=inbound.clock, retry_delay_s=inbound.retry_delay_s
    )
    if outcome.verdict is Verdict.DONE:
        with tracing.about(opened.item.record):
            for kind in opened.ignored:
                counted("Ignored").inc()
                logger.info("inbound ignored", extra={"channel": opened.event.channel, "kind": kind})
    return outcome


def _take(letter: _Letter, *, inbound: Inbound, found: list[NewRecord], deadline_s: float) -> Outcome:
    """What a person wrote, or a file of it that comes late."""
    key = letter.item.record.key
    if not key.endswith(LATE_FILE):
        return _receive(letter, inbound=inbound, found=found, deadline_s=deadline_s)
    number = key.removesuffix(LATE_FILE).rpartition("~")[2]
    if not number.isdecimal():
        return _each_late_file(letter, found)
    return _late_file(letter, int(number), inbound=inbound, found=found, deadline_s=deadline_s)


def _storable(news: Event) -> Event:
    """The same with texts that every database takes; Ignored where an id is longer than any that a platform gives."""
    if isinstance(news, Ignored):
        return news
    if len(news.external_id) > MAX_EXTERNAL_ID_CHARS or len(getattr(news, "sender", "")) > MAX_ADDRESS_CHARS:
        return Ignored("malformed")
    if isinstance(news, StatusReport):
        return replace(news, **_storable_texts(news))
    attachments = tuple(replace(each, **_storable_texts(each)) for each in news.attachments)
    return replace(news, **_storable_texts(news), attachments=attachments)


def _storable_texts(thing: InboundText | StatusReport | InboundAttachment) -> dict[str, Any]:
    values = {each.name: getattr(thing, each.name) for each in fields(thing)}
    return {name: storable(value) for name, value in values.items() if isinstance(value, str)}


def _receive(letter: _Letter, *, inbound: Inbound, found: list[NewRecord], deadline_s: float) -> Outcome:
    """A message for each attachment (the first carries the text), or one for the text alone.

    A storage that is away holds nobody up, nor does a platform that gives no file for long: the file is fetched later,
    by a record of its own.
    """
    item, event, inbox, text = letter.item, letter.event, letter.inbox, letter.text
    conversation = _conversation(event, text, inbox, inbound)
    reply_to = _replied(event, text, inbound)
    for number, attachment in enumerate(text.attachments or (None,)):
        external_id = _numbered(text, number)
        ref = _claimed(external_id, event, text, conversation, inbound)
        if inbound.store.message(ref.message_id) is not None:
            metrics.INBOUND.labels(event.channel, "duplicate").inc()
            continue
        if number and inbound.clock.monotonic_s() >= deadline_s:
            # Those before it are on their way: the next batch finds them stored, and goes on here.
            return Outcome(Verdict.PAUSED, after_s=1.0, reason="out_of_time")
        try:
            file_id = (
                _fetched(letter, attachment, ref, conversation, inbound=inbound, deadline_s=deadline_s)
                if attachment
                else None
            )
        except (DeliveryError, StorageUnavailable) as error:
            if isinstance(error, DeliveryError) and not _asked_long(item, inbound):
                delay_s = error.retry_after_s or inbound.retry_delay_s(item.attempts)
                return Outcome(Verdict.RETRY, after_s=delay_s, reason=error.reason)
            file_id = inbound.file_id(inbox, str(ref.message_id))
            # At once: before the item is through it may have to wait, and then this one is stored.
            found.append(_again(item, f"~{number}{LATE_FILE}"))
        home = conversation
        if ref.conversation_id != conversation.conversation_id:  # claimed before the contact moved on: it stays there
            home = inbound.store.conversation(ref.conversation_id) or conversation
        users = tuple(member for member in home.members if Party.parse(member).is_user)
        message = Message(
            message_id=ref.message_id,
            workspace_id=event.workspace_id,
            conversation_id=home.conversation_id,
            conversation=home.public_id,
            sender_id=ref.party,
            recipient_id=None,
            recipients=users,
            audience=users,
            content=text.text if number == 0 else "",
            file_id=file_id,
            reply_to=reply_to,
            accepted_at_ms=uuid7_ms(ref.message_id),
            account_id=event.account_id,
            external_id=external_id,
        )
        bound = _bound_to(home, event, text, inbox, inbound)
        inbound.store.bind_contacts([_contact(event, text, bound, ref.message_id)])
        headers = tracing.onward(item.record)
        found.append(NewRecord(topics.MESSAGES, str(home.conversation_id), codec.encode(message), headers))
    return DONE


def _each_late_file(letter: _Letter, found: list[NewRecord]) -> Outcome:
    """One record stood for all of an item, in an earlier release."""
    record = letter.item.record
    key, headers = record.key.removesuffix(LATE_FILE), tracing.onward(record)
    numbers = range(len(letter.text.attachments))
    found += [NewRecord(topics.INBOUND, f"{key}~{each}{LATE_FILE}", record.value, headers) for each in numbers]
    return DONE


def _late_file(letter: _Letter, number: int, *, inbound: Inbound, found: list[NewRecord], deadline_s: float) -> Outcome:
    """Fetch what one message of this item waits for. If it is there already it is kept once all the same."""
    item, event, inbox, text = letter.item, letter.event, letter.inbox, letter.text
    if (not_before_ms := int(item.record.headers.get(NOT_BEFORE, 0))) > inbound.clock.now_ms():
        return _later(item, "storage_slow", inbound, found, not_before_ms=not_before_ms)
    ref = _external(event, _numbered(text, number), inbound)
    message = inbound.store.message(ref.message_id) if ref else None
    conversation = inbound.store.conversation(message.conversation_id) if message else None
    if ref is None or message is None or conversation is None:
        return _later_today(letter, ref, "not_stored_yet", inbound, found)
    if message.file_id != inbound.file_id(inbox, str(ref.message_id)):
        return DONE  # it went without
    try:
        attachment = text.attachments[number]
        _fetched(letter, attachment, ref, conversation, inbound=inbound, deadline_s=deadline_s)
    except DeliveryError as error:
        return _later_today(letter, ref, error.reason, inbound, found)
    except StorageTooSlow:
        _more_rarely(letter, ref, inbound, found)
    except StorageUnavailable:
        return _later(item, "storage_away", inbound, found)
    return DONE


def _numbered(text: InboundText, number: int) -> str:
    """What the platform would call the message of one of several attachments."""
    return f"{text.external_id}#{number}" if number else text.external_id


def _age_ms(event: InboundEvent, ref: ExternalRef | None, inbound: Inbound) -> int:
    """Since somebody of us first looked at it: before that nobody could ask, as `inbound` may have waited for long."""
    return inbound.clock.now_ms() - (uuid7_ms(ref.message_id) if ref else event.received_at_ms)


def _later_today(
    letter: _Letter, ref: ExternalRef | None, reason: str, inbound: Inbound, found: list[NewRecord]
) -> Outcome:
    if _age_ms(letter.event, ref, inbound) <= LATE_FILE_GIVEN_UP_MS:
        return _later(letter.item, reason, inbound, found)
    _lost(letter, ref, reason)
    return DONE


def _more_rarely(letter: _Letter, ref: ExternalRef, inbound: Inbound, found: list[NewRecord]) -> None:
    """Each try takes a worker, and all that wait for it, as long as a task may take."""
    if (age_ms := _age_ms(letter.event, ref, inbound)) <= LATE_FILE_GIVEN_UP_MS:
        not_before_ms = inbound.clock.now_ms() + max(age_ms, LATE_FILE_AGAIN_MS)
        found.append(_again(letter.item, not_before_ms=not_before_ms))
    else:
        _lost(letter, ref, "storage_slow")


def _later(item: Item, reason: str, inbound: Inbound, found: list[NewRecord], *, not_before_ms: int = 0) -> Outcome:
    now_ms = inbound.clock.now_ms()
    if item.first_failed_ms and now_ms - item.first_failed_ms > LATE_FILE_AGAIN_MS:
        found.append(_again(item, not_before_ms=not_before_ms))
        return DONE
    wait_s = min(not_before_ms - now_ms, LATE_FILE_AGAIN_MS) / 1000
    return Outcome(Verdict.RETRY, after_s=max(wait_s, inbound.retry_delay_s(item.attempts)), reason=reason)


def _again(item: Item, suffix: str = "", *, not_before_ms: int = 0) -> NewRecord:
    """The same item at the end of the log, where it holds nobody up."""
    record = item.record
    headers = {NOT_BEFORE: str(not_before_ms)} if not_before_ms else {}
    return NewRecord(topics.INBOUND, record.key + suffix, record.value, {**tracing.onward(record), **headers})


def _claimed(
    external_id: str, event: InboundEvent, text: InboundText, conversation: Conversation, inbound: Inbound
) -> ExternalRef:
    """Our id for a platform's message: the first sight mints it, every repeat finds it."""
    new = ExternalRef(
        channel=event.channel,
        account_id=event.account_id,
        external_id=external_id,
        message_id=uuid7(),
        conversation_id=conversation.conversation_id,
        party=str(Party(event.channel, text.sender)),
    )
    [claimed] = inbound.store.claim_externals([new])
    return claimed


def _conversation(event: InboundEvent, text: InboundText, inbox: Inbox, inbound: Inbound) -> Conversation:
    """The conversation that the answered message is in, else the last one with this person, else a new one."""
    sender = str(Party(event.channel, text.sender))
    candidates = []
    if text.reply_to_external_id:
        ref = _external(event, text.reply_to_external_id, inbound)
        candidates.append(ref.conversation_id if ref else None)
    contact = inbound.store.contact(
        workspace_id=event.workspace_id, channel=event.channel, account_id=event.account_id, address=text.sender
    )
    candidates.append(contact.conversation_id if contact else None)
    for conversation_id in candidates:
        conversation = inbound.store.conversation(conversation_id) if conversation_id else None
        if conversation and conversation.workspace_id == event.workspace_id and sender in conversation.members:
            attended = _attended(conversation, event, inbox, inbound)
            if attended is not conversation:
                news = f"conversation:{attended.conversation_id}:attended:{event.received_at_ms}"
                _tell_users(attended, event, text, inbound, event_id=news)
            return attended
    return _opened(event, text, inbox, inbound)


def _bound_to(home: Conversation, event: InboundEvent, text: InboundText, inbox: Inbox, inbound: Inbound) -> UUID:
    """The conversation that the person's next message comes to: where this one went, unless they answered there who is
    no agent of ours. Whoever else may write to them must not draw to themselves what they tell the agents."""
    if not text.reply_to_external_id or not inbox.agents or not set(inbox.agents).isdisjoint(home.members):
        return home.conversation_id
    known = inbound.store.contact(
        workspace_id=event.workspace_id, channel=event.channel, account_id=event.account_id, address=text.sender
    )
    return known.conversation_id if known else home.conversation_id


def _attended(conversation: Conversation, event: InboundEvent, inbox: Inbox, inbound: Inbound) -> Conversation:
    """With the account's agents of now where no user is in it: nobody would read what comes."""
    if any(Party.parse(member).is_user for member in conversation.members) or not inbox.agents:
        return conversation
    with changing(conversation.conversation_id, inbound.members_changed):
        for agent in inbox.agents:
            inbound.store.add_member(conversation.conversation_id, agent, at_ms=event.received_at_ms)
    return replace(conversation, members=(*conversation.members, *inbox.agents))


def _opened(event: InboundEvent, text: InboundText, inbox: Inbox, inbound: Inbound) -> Conversation:
    """A conversation between an unknown person and the account's agents."""
    sender = str(Party(event.channel, text.sender))
    public_id = inbound_conversation(event.channel, text.sender, event.account_id)
    conversation, _ = inbound.store.create_conversation(
        Conversation(
            conversation_id=derived_id(event.workspace_id, public_id),
            workspace_id=event.workspace_id,
            public_id=public_id,
            title=text.sender_name,
            members=(sender, *inbox.agents),
            created_by=sender,
            created_at_ms=event.received_at_ms,
        )
    )
    news = f"conversation:{conversation.conversation_id}"
    if sender not in conversation.members:  # they were removed, and write again
        with changing(conversation.conversation_id, inbound.members_changed):
            inbound.store.add_member(conversation.conversation_id, sender, at_ms=event.received_at_ms)
        conversation = replace(conversation, members=(*conversation.members, sender))
        news += f":back:{event.received_at_ms}"
    conversation = _attended(conversation, event, inbox, inbound)
    # At once: when the contact is bound, a repeat finds the conversation there and would tell nobody.
    _tell_users(conversation, event, text, inbound, event_id=news)
    return conversation


def _tell_users(
    conversation: Conversation, event: InboundEvent, text: InboundText, inbound: Inbound, *, event_id: str
) -> None:
    sender = str(Party(event.channel, text.sender))
    names = {**inbound.names(event.workspace_id, conversation.members), sender: text.sender_name}
    body = {"type": "conversation", "conversation": conversation_json(conversation, names=names)}
    users = [member for member in conversation.members if Party.parse(member).is_user]
    inbound.notify([Push(user, event_id, body) for user in users])


def _fetched(
    letter: _Letter,
    attachment: InboundAttachment,
    ref: ExternalRef,
    conversation: Conversation,
    *,
    inbound: Inbound,
    deadline_s: float,
) -> str | None:
    """The id of the stored file; None when it is not to be had or kept. Raises a DeliveryError to try again, and
    StorageUnavailable."""
    try:
        content = inbound.translator_for(letter.event.channel).fetch_media(letter.inbox.account, attachment)
        keep_by_s = deadline_s + KEEP_WITHIN_S
        return inbound.keep_file(
            letter.inbox, conversation, str(ref.message_id), attachment, content, deadline_s=keep_by_s
        )
    except (PermanentDeliveryError, EmptyFile, FileTooLarge) as error:
        _lost(letter, ref, type(error).__name__)
        return None


def _lost(letter: _Letter, ref: ExternalRef | None, error: str) -> None:
    channel = letter.event.channel
    with tracing.about(letter.item.record, ref and ref.message_id):
        logger.warning("attachment lost", extra={"channel": channel, "error": error})
    metrics.INBOUND.labels(channel, "attachment_gone").inc()


def _asked_long(item: Item, inbound: Inbound) -> bool:
    return bool(item.first_failed_ms) and inbound.clock.now_ms() - item.first_failed_ms > FILE_LATE_MS


def _replied(event: InboundEvent, text: InboundText, inbound: Inbound) -> UUID | None:
    if not text.reply_to_external_id:
        return None
    ref = _external(event, text.reply_to_external_id, inbound)
    return ref.message_id if ref else None


def _external(event: InboundEvent, external_id: str, inbound: Inbound) -> ExternalRef | None:
    return inbound.store.externals(event.channel, event.account_id, [external_id]).get(external_id)


def _contact(event: InboundEvent, text: InboundText, conversation_id: UUID, message_id: UUID) -> Contact:
    return Contact(
        workspace_id=event.workspace_id,
        channel=event.channel,
        account_id=event.account_id,
        address=text.sender,
        conversation_id=conversation_id,
        last_message_id=message_id,
        name=text.sender_name,
        handle=text.sender_handle,
    )
