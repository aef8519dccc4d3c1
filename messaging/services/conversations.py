"""Conversations: who is in them, who may see them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from core.cache import TtlCache
from core.clock import SYSTEM_CLOCK, Clock
from core.errors import FieldError, InvalidRequest
from core.ids import derived_id, uuid7
from messaging.domain import MAX_MEMBERS, Conversation, Party, is_reserved
from messaging.errors import ConversationNotFound, MemberNotFound, StoreUnavailable
from messaging.ports import ConversationListing, ListCursor, MessageStore, Notify, Push
from messaging.services.render import conversation_json

MEMBERSHIP_TTL_S: Final = 5.0  # from when it was asked for, or everything that is told had been heard
KEPT_S: Final = 30.0  # at most: who changes members may end before they tell
RENEWED: Final = 50  # conversations at a time: each is a request to the store


class Parties(Protocol):
    """Who can be written to in a workspace."""

    def normalize(self, workspace_id: UUID, party: str) -> str:
        """The one spelling of a user id or channel address. Raises RecipientNotFound, InvalidAddress,
        ChannelNotConfigured or UnknownChannel."""

    def names(self, workspace_id: UUID, parties: Collection[str]) -> Mapping[str, str]:
        """Display names, as far as known."""


class _Kept(NamedTuple):
    """What the store answered, and when it was asked: monotonic seconds."""

    conversation: Conversation
    asked_s: float


class ConversationCache:
    """Conversations by id: what accepting a message checks (membership) without asking the store. See ADR 0017.

    Whoever changes members says so by `changed`: here that counts at once, in other processes when they hear of it by
    ``tell``. Who hears everything keeps a conversation for 30 s; who may have missed something, for 5 s since it was
    asked for or all had been heard.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK, *, tell: Callable[[UUID], None] = lambda _: None) -> None:
        self._known: TtlCache[UUID, _Kept] = TtlCache(ttl_s=KEPT_S, clock=clock)
        self._clock = clock
        self._tell = tell
        self._lock = threading.Lock()
        self._forgotten = 0
        self._heard_s = float("-inf")

    def get(self, conversation_id: UUID, load: Callable[[UUID], Conversation | None]) -> Conversation | None:
        """From the cache, else loaded; absence is not cached, nor is what was loaded while anything was forgotten."""
        if (kept := self._kept(conversation_id)) is not None:
            return kept

        def alone(_: Collection[UUID]) -> dict[UUID, Conversation]:
            found = load(conversation_id)
            return {} if found is None else {conversation_id: found}

        return self._load([conversation_id], alone).get(conversation_id)

    def prepare(
        self, conversation_ids: Collection[UUID], load: Callable[[Collection[UUID]], Mapping[UUID, Conversation]]
    ) -> None:
        """So that `get` has them: those that are not kept are loaded together."""
        if missing := [each for each in conversation_ids if self._kept(each) is None]:
            self._load(missing, load)

    def _kept(self, conversation_id: UUID) -> Conversation | None:
        kept = self._known.get(conversation_id)
        return kept.conversation if kept and self._clock.monotonic_s() < self._until_s(kept) else None

    def _load(
        self, conversation_ids: Collection[UUID], load: Callable[[Collection[UUID]], Mapping[UUID, Conversation]]
    ) -> Mapping[UUID, Conversation]:
        now_s, forgotten = self._clock.monotonic_s(), self._forgotten
        found = load(conversation_ids)
        with self._lock:
            if self._forgotten == forgotten:
                for conversation_id, conversation in found.items():
                    self._known.put(conversation_id, _Kept(conversation, now_s))
        return found

    def _until_s(self, kept: _Kept) -> float:
        return min(kept.asked_s + KEPT_S, max(kept.asked_s, self._heard_s) + MEMBERSHIP_TTL_S)

    def changed(self, conversation_id: UUID) -> None:
        """Its members are others now, in the store, or may be."""
        self.forget(conversation_id)
        self._tell(conversation_id)

    def forget(self, conversation_id: UUID) -> None:
        with self._lock:
            self._forgotten += 1
            self._known.forget(conversation_id)

    def forget_all(self) -> None:
        with self._lock:
            self._forgotten += 1
            self._known.clear()

    def heard(self, until_s: float) -> None:
        """All that others told until then (monotonic) was forgotten here."""
        self._heard_s = until_s

    def renew(self, load: Callable[[UUID], Conversation | None]) -> None:
        """See `TtlCache.renew`."""

        def found(conversation_ids: Collection[UUID]) -> Iterator[tuple[UUID, _Kept]]:
            for each in conversation_ids:
                asked_s = self._clock.monotonic_s()
                if (conversation := load(each)) is not None:
                    yield each, _Kept(conversation, asked_s)

        self._known.renew(found, most=RENEWED)


def check_new_id(public_id: str) -> None:
    """Raises InvalidRequest at ``conversation_id`` for one that only inbound messages open."""
    if is_reserved(public_id):
        raise InvalidRequest.at(
            "conversation_id", "ids like channel:address@account are ours to give", code="reserved_conversation_id"
        )


def visible(store: MessageStore, *, workspace_id: UUID, user_id: str, public_id: str) -> Conversation:
    """The conversation, if this user is in it; else ConversationNotFound, whatever the reason (guarantee 10)."""
    return visible_by_id(store, conversation_id=derived_id(workspace_id, public_id), user_id=user_id)


def visible_by_id(store: MessageStore, *, conversation_id: UUID, user_id: str) -> Conversation:
    conversation = store.conversation(conversation_id)
    if conversation is None or user_id not in conversation.members:
        raise ConversationNotFound
    return conversation


def create(
    *,
    workspace_id: UUID,
    user_id: str,
    public_id: str | None,
    title: str,
    members: Iterable[str],
    store: MessageStore,
    parties: Parties,
    notify: Notify,
    clock: Clock = SYSTEM_CLOCK,
) -> tuple[Conversation, bool]:
    """Create a conversation of the caller and these members; the stored one and whether it is new.

    The same id again answers the one there is to its members, and ConversationNotFound to everybody else.
    """
    everybody = dict.fromkeys([user_id, *_normalized(members, workspace_id, parties)])
    if len(everybody) > MAX_MEMBERS:
        raise InvalidRequest.at("members", f"at most {MAX_MEMBERS} members", code="too_many")
    public_id = public_id or f"conv_{uuid7().hex}"
    known = store.conversation(derived_id(workspace_id, public_id)) if is_reserved(public_id) else None
    if known is None:
        check_new_id(public_id)
    conversation, new = store.create_conversation(
        Conversation(
            conversation_id=derived_id(workspace_id, public_id),
            workspace_id=workspace_id,
            public_id=public_id,
            title=title,
            members=tuple(everybody),
            created_by=user_id,
            created_at_ms=clock.now_ms(),
        )
    )
    if user_id not in conversation.members:
        raise ConversationNotFound
    if new:
        announce(conversation, parties=parties, notify=notify, event="created")
    return conversation, new


def add_member(
    conversation: Conversation,
    party: str,
    *,
    store: MessageStore,
    parties: Parties,
    notify: Notify,
    cache: ConversationCache,
    clock: Clock = SYSTEM_CLOCK,
) -> Conversation:
    """Add a user or an address; the conversation as it is now."""
    [member] = _normalized([party], conversation.workspace_id, parties, field="member_id")
    if member not in conversation.members and len(conversation.members) >= MAX_MEMBERS:
        raise InvalidRequest.at("member_id", f"at most {MAX_MEMBERS} members", code="too_many")
    now_ms = clock.now_ms()
    with changing(conversation.conversation_id, cache.changed):
        store.add_member(conversation.conversation_id, member, at_ms=now_ms)
    meant = replace(conversation, members=tuple(dict.fromkeys((*conversation.members, member))))
    return _announced(meant, f"added:{member}:{now_ms}", store=store, parties=parties, notify=notify)


def remove_member(
    conversation: Conversation,
    party: str,
    *,
    store: MessageStore,
    parties: Parties,
    notify: Notify,
    forget: Callable[[str], None],
    cache: ConversationCache,
    clock: Clock = SYSTEM_CLOCK,
) -> Conversation:
    """Remove a member, oneself included; the conversation as it is now. Whoever leaves sees nothing of it any more,
    for which ``forget`` takes from their devices what was pushed to them and they had not fetched."""
    with changing(conversation.conversation_id, cache.changed):
        if party not in conversation.members:  # whoever removed them may have ended before they told
            raise MemberNotFound
        store.remove_member(conversation.conversation_id, party)
    if Party.parse(party).is_user:
        forget(party)
    event = f"removed:{party}:{clock.now_ms()}"
    meant = replace(conversation, members=tuple(each for each in conversation.members if each != party))
    return _announced(meant, event, store=store, parties=parties, notify=notify)


def listing(
    store: MessageStore, *, workspace_id: UUID, user_id: str, after: ListCursor | None, limit: int
) -> tuple[list[ConversationListing], ListCursor | None]:
    """A page of a user's conversations, last active first, and where the next page starts."""
    found = store.conversations_of(user_id, workspace_id=workspace_id, after=after, limit=limit + 1)
    page = found[:limit]
    more = len(found) > limit
    last = page[-1] if page else None
    return page, ListCursor(last.last_activity_ms, last.conversation.conversation_id) if more and last else None


def announce(conversation: Conversation, *, parties: Parties, notify: Notify, event: str) -> None:
    """Tell every user in it live, by a frame with the conversation as it is."""
    names = dict(parties.names(conversation.workspace_id, conversation.members))
    body = {"type": "conversation", "conversation": conversation_json(conversation, names=names)}
    notify(
        [
            Push(member, f"conversation:{conversation.conversation_id}:{event}", body)
            for member in conversation.members
            if Party.parse(member).is_user
        ]
    )


def _normalized(members: Iterable[str], workspace_id: UUID, parties: Parties, *, field: str = "members") -> list[str]:
    normalized = []
    for number, member in enumerate(members):
        place = field if field == "member_id" else f"{field}.{number}"
        try:
            normalized.append(parties.normalize(workspace_id, member))
        except InvalidRequest as error:
            error.fields = (FieldError(place, error.code, error.detail),)
            raise
    return normalized


@contextmanager
def changing(conversation_id: UUID, tell: Callable[[UUID], None]) -> Iterator[None]:
    """Around what changes its members in the store: told also where that failed, for nobody knows what came of it."""
    try:
        yield
    finally:
        tell(conversation_id)


def _announced(
    meant: Conversation, event: str, *, store: MessageStore, parties: Parties, notify: Notify
) -> Conversation:
    """The conversation as it is now, which all see live; ``meant`` when the store does not say: it is done, and
    whoever was told to try again would find nothing to do."""
    try:
        now = store.conversation(meant.conversation_id) or meant
    except StoreUnavailable:
        now = meant
    announce(now, parties=parties, notify=notify, event=event)
    return now
