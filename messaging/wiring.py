"""The composition root: URLs in settings -> adapters. One of each per process; they connect on first use."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final, Protocol
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from accounts import directory
from accounts.checks import database_answers
from accounts.tokens import Principal
from connectors import registry
from connectors.base import InboundAttachment
from connectors.http import retry_delay_s
from core.cache import TtlCache
from core.clock import SYSTEM_CLOCK
from core.errors import Unavailable
from core.ids import derived_id
from files import services as files
from files.checks import storage_answers
from messaging import channels, parties, redis_rules, topics
from messaging.breakers import SharedBreakers
from messaging.bridge import BridgeLimits, DeadLetters
from messaging.domain import Conversation
from messaging.errors import ConversationNotFound, StoreUnavailable
from messaging.eventlog.redis_streams import RedisStreamsLog
from messaging.hints import RedisHints
from messaging.member_news import RedisMemberNews
from messaging.ports import EventLog, MessageStore, Notify, TopicAdmin
from messaging.services.accept import Desk
from messaging.services.conversations import ConversationCache
from messaging.services.deliver import Delivery
from messaging.services.inbound import Inbound, Inbox
from messaging.services.reading import acknowledge as acknowledge_messages
from messaging.services.recent import RecentMessages, RecentReferences
from messaging.stores.orm import OrmStore
from realtime.notify import RedisNotifier

GROUP = "bridge"
TOPICS_KEPT_S: Final = 30.0


class ManagedLog(EventLog, TopicAdmin, Protocol):
    """What each of the adapters is."""


@functools.cache
def event_log() -> ManagedLog:
    """EVENT_LOG_URL: ``redis://…`` or ``kafka://…``."""
    url = settings.EVENT_LOG_URL
    match urlsplit(url).scheme:
        case "redis" | "rediss" | "unix":
            return RedisStreamsLog(url, append_timeout_s=settings.APPEND_TIMEOUT_S)
        case "kafka" | "kafka+ssl":
            return _kafka_log(url)
        case scheme:
            raise ImproperlyConfigured(
                f"EVENT_LOG_URL: no event log speaks {scheme!r}. Hint: redis://host:port/0 or kafka://host:port"
            )


def _kafka_log(url: str) -> ManagedLog:
    from messaging.eventlog.kafka import KafkaLog  # noqa: PLC0415 - its driver is not in the local profile

    try:
        return KafkaLog(url, append_timeout_s=settings.APPEND_TIMEOUT_S)
    except ValueError as error:
        raise ImproperlyConfigured(f"EVENT_LOG_URL: {error}. Hint: kafka://host:9092,other:9092") from None


@functools.cache
def message_store() -> MessageStore:
    """MESSAGE_STORE_URL: ``orm://<database alias>`` or ``cassandra://host/keyspace``."""
    url = urlsplit(settings.MESSAGE_STORE_URL)
    match url.scheme:
        case "orm":
            return OrmStore(using=url.netloc or "messages")
        case "cassandra" | "cassandra+ssl":
            from messaging.stores.cassandra import CassandraStore  # noqa: PLC0415 - its driver is not in the local profile

            return CassandraStore(settings.MESSAGE_STORE_URL, timeout_s=settings.STORE_TIMEOUT_S)
        case scheme:
            raise ImproperlyConfigured(
                f"MESSAGE_STORE_URL: no store speaks {scheme!r}. Hint: orm://messages or cassandra://host/keyspace"
            )


@functools.cache
def notifier() -> RedisNotifier:
    return RedisNotifier(settings.BUS_URL)


def notify() -> Notify:
    return notifier().push


@functools.cache
def hints() -> RedisHints:
    return RedisHints(settings.BUS_URL)


@functools.cache
def breakers() -> SharedBreakers:
    return SharedBreakers(settings.BUS_URL)


@functools.cache
def known_parties() -> parties.KnownParties:
    return parties.KnownParties(message_store())


@functools.cache
def conversation_cache() -> ConversationCache:
    return ConversationCache(tell=member_news().tell)


@functools.cache
def member_news() -> RedisMemberNews:
    return RedisMemberNews(settings.BUS_URL)


def hear_of_members() -> threading.Event:
    """For a process that answers requests: what it keeps of conversations whose members changed elsewhere goes."""
    return member_news().listen(conversation_cache())


def renewals() -> tuple[Callable[[], None], ...]:
    """For a process that answers requests: ask again for who writes, in which conversations, by which accounts, and
    tell whose pushes were lost."""
    known = conversation_cache()

    def conversations() -> None:
        with suppress(StoreUnavailable):  # whoever writes hears of it
            known.renew(lambda conversation_id: message_store().conversation(conversation_id))

    return directory.renew, channels.renew, conversations, notifier().settle


@functools.cache
def recent_messages() -> RecentMessages:
    return RecentMessages(hints().accepted)


@functools.cache
def desk() -> Desk:
    """What accepting a message needs."""
    return Desk(
        log=event_log(),
        store=message_store(),
        parties=known_parties(),
        channels=parties.ConnectorLimits(),
        files=parties.SentFiles(),
        hints=hints(),
        notify=notify(),
        cache=conversation_cache(),
    )


@functools.cache
def delivery(channel: str) -> Delivery:
    """What sending on a channel needs. Raises UnknownChannel."""
    store = message_store()

    return Delivery(
        channel=channel,
        sender=registry.get(channel),
        account_for=lambda outbound: parties.account_for(outbound, store),
        is_agent=parties.is_agent,
        breakers=breakers(),
        store=store,
        log=event_log(),
        media_for=parties.SentFiles.media,
        noted=hints().put_references,
        bury=DeadLetters(event_log(), per_minute=BridgeLimits().dead_letters_per_minute, clock=SYSTEM_CLOCK).bury,
        retry_delay_s=retry_delay_s,
        clock=SYSTEM_CLOCK,
    )


@functools.cache
def inbound() -> Inbound:
    """What understanding webhooks needs."""
    return Inbound(
        store=message_store(),
        log=event_log(),
        notify=notify(),
        translator_for=registry.get,
        inbox_for=inbox_for,
        keep_file=keep_file,
        file_id=file_id_of,
        names=known_parties().names,
        retry_delay_s=retry_delay_s,
        members_changed=conversation_cache().changed,
        clock=SYSTEM_CLOCK,
        recent=RecentReferences(hints().references),
    )


def inbox_for(channel: str, account_id: str) -> Inbox | None:
    ours = channels.account(channel, account_id)
    return Inbox(ours.account, ours.workspace_id, ours.agents) if ours else None


def keep_file(
    inbox: Inbox,
    conversation: Conversation,
    name: str,
    attachment: InboundAttachment,
    content: bytes,
    *,
    deadline_s: float,
) -> str:
    """Store what a person sent, once: the id is derived from ``name``, and the conversation's members may see it.

    Raises StorageUnavailable, and StorageTooSlow at ``deadline_s`` (monotonic).
    """
    with parties.list_of_files():
        return _kept(inbox, conversation, file_id_of(inbox, name), attachment, content, deadline_s=deadline_s)


def file_id_of(inbox: Inbox, name: str) -> str:
    """The id under which `keep_file` keeps it."""
    return f"file_{derived_id(inbox.workspace_id, name).hex}"


def _kept(
    inbox: Inbox,
    conversation: Conversation,
    file_id: str,
    attachment: InboundAttachment,
    content: bytes,
    *,
    deadline_s: float,
) -> str:
    stored = files.store_bytes(
        iter([content]),
        placement=files.Placement(
            workspace_id=inbox.workspace_id,
            uploader_id=files.FROM_OUTSIDE,
            conversation_id=conversation.conversation_id,
            conversation=conversation.public_id,
        ),
        filename=attachment.filename,
        content_type=attachment.content_type,
        file_id=file_id,
        deadline_s=deadline_s,
    )
    files.grant(stored.file_id, conversation_id=conversation.conversation_id)
    return stored.file_id


def is_member(viewer: files.Viewer, conversation_ids: Sequence[UUID]) -> bool:
    """Whether somebody is in any of these conversations: files ask."""
    store = message_store()
    found = (store.conversation(conversation_id) for conversation_id in conversation_ids)
    return any(conversation and viewer.user_id in conversation.members for conversation in found)


def check_conversation(viewer: files.Viewer, conversation_id: UUID) -> None:
    """Raises ConversationNotFound for somebody else's conversation; one that does not exist yet is free to be named."""
    conversation = message_store().conversation(conversation_id)
    if conversation and viewer.user_id not in conversation.members:
        raise ConversationNotFound


def acknowledge(principal: Principal, messages: Sequence[tuple[str, str]]) -> None:
    """A socket's client acknowledged these (public conversation id, message id), which were pushed to it."""
    acknowledge_messages(
        principal.user_id,
        [(derived_id(principal.workspace_id, conversation), UUID(message_id)) for conversation, message_id in messages],
        log=event_log(),
    )


def bus_answers() -> None:
    """Raise Unavailable, naming the remedy, unless the bus's Redis answers."""
    redis_rules.ping(settings.BUS_URL, part="The bus", variable="BUS_URL")


OPTIONAL: Final = frozenset({"files"})
"""Of `checks`: without these everything else goes on, so that they being away takes no process out of service."""


def checks() -> dict[str, Callable[[], None]]:
    """What the product stands on, by name: for /ready of API, bridge and workers."""
    return {**gateway_checks(), "message store": message_store().ping, "files": storage_answers}


def gateway_checks() -> dict[str, Callable[[], None]]:
    """What the gateway stands on: it knows people, passes on what is pushed and appends what they acknowledge."""
    return {
        "event log": event_log().ping,
        "topics": topics_suffice,
        "bus": bus_answers,
        "accounts": database_answers,
    }


# That nothing is lacking, for one log and what is declared for it. What is lacking is not kept: it is mended soon.
_sufficient: Final[TtlCache[tuple[object, ...], bool]] = TtlCache(ttl_s=TOPICS_KEPT_S, size=8)


def topics_suffice() -> None:
    """Raise Unavailable, naming the remedy, when the log lacks a topic or partitions of one.

    A log where nothing is lacking is asked again after TOPICS_KEPT_S: a cluster's answer may be long.
    """
    declared = all_topics()
    key = (settings.EVENT_LOG_URL, declared)
    if _sufficient.get(key):
        return
    if lacking := event_log().lacking(declared):
        first = lacking[0]
        raise Unavailable(
            f"The event log lacks topics or partitions of them ({len(lacking)}; {first.topic}: {first.what} should be "
            f"{first.declared}, found {first.found}). Hint: run `manage.py setup_topics`"
        )
    _sufficient.put(key, True)


def all_topics() -> tuple[topics.Topic, ...]:
    retention = timedelta(days=settings.RETENTION_DAYS)
    return topics.all_topics(registry.channels(), settings.PARTITIONS, settings.LOG_PARTITION_BYTES, retention)


def work_topics() -> tuple[str, ...]:
    return topics.work_topics(registry.channels())


def queue_of(topic: str) -> str:
    """The Celery queue behind a topic: one per channel, `inbound` (which waits for platforms' files), and `core`."""
    return topics.channel_of(topic) or ("inbound" if topic == topics.INBOUND else "core")
