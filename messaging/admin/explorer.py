"""The message explorer: what happened to a message, read-only, through the ports alone.

It shows message text: that is its purpose, and why it has a permission of its own (`messaging.view_explorer`). Every
look at messages leaves a line in the log that names the operator and what they looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from accounts import directory
from accounts.models import DEFAULT_WORKSPACE_SLUG, Workspace
from connectors import registry
from connectors.errors import InvalidAddress, UnknownChannel
from core.errors import Unavailable
from core.ids import derived_id
from core.text import storable
from messaging import topics, wiring
from messaging.admin import log_places
from messaging.domain import Conversation, Message, Party, RecipientStatus, overall
from messaging.models import Explorer
from messaging.ports import ListCursor, Record, TopicPartition
from messaging.services import conversations, reading, replay

logger = logging.getLogger(__name__)

PAGE: Final = 50
MAX_QUERY_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class Shown:
    """A page: its template, title and what the template shows."""

    template: str
    title: str
    context: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Hit:
    """Something that a search found."""

    kind: str
    name: str
    url: str


View = Callable[..., Shown | HttpResponseRedirect]


@admin.register(Explorer)
class ExplorerAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Pages instead of a table."""

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's signature
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:  # noqa: ARG002
        return False

    def get_urls(self) -> list[URLPattern]:
        return [
            path("", self._page(find), name="messaging_explorer_changelist"),
            path("conversations/<uuid:conversation_id>/", self._page(conversation), name="explorer_conversation"),
            path("messages/<uuid:message_id>/", self._page(message), name="explorer_message"),
            path("people/", self._page(person), name="explorer_person"),
            path("dead-letters/", self._page(dead_letters), name="explorer_dead_letters"),
            path("lag/", self._page(lag), name="explorer_lag"),
        ]

    def _page(self, view: View) -> Callable[..., HttpResponse]:
        """For operators with the permission; a part that is away is a page that says so, and 503."""

        def respond(request: HttpRequest, **where: Any) -> HttpResponse:
            if not self.has_view_permission(request):
                raise PermissionDenied
            if request.method not in ("GET", "HEAD"):
                return HttpResponseNotAllowed(["GET", "HEAD"])
            try:
                shown = view(request, **where)
            except Unavailable as error:
                shown = Shown("away", "A part of the system is away", {"detail": error.detail}, status=503)
            return shown if isinstance(shown, HttpResponseRedirect) else self._rendered(request, shown)

        return self.admin_site.admin_view(respond)

    def _rendered(self, request: HttpRequest, shown: Shown) -> HttpResponse:
        context = {**self.admin_site.each_context(request), "opts": self.opts, "title": shown.title, **shown.context}
        template = f"admin/messaging/explorer/{shown.template}.html"
        headers = {"Retry-After": "5"} if shown.status == 503 else None
        return TemplateResponse(request, template, context, status=shown.status, headers=headers)


# --- looking up --------------------------------------------------------------------------------------------------


def find(request: HttpRequest) -> Shown | HttpResponseRedirect:
    """What a text names in a workspace; straight there when it names one thing."""
    text = _asked(request, "q").strip()
    slug = request.GET.get("workspace", DEFAULT_WORKSPACE_SLUG)
    workspaces = list(Workspace.objects.order_by("slug"))
    workspace = next((each for each in workspaces if each.slug == slug), None)
    hits = list(_hits(text, workspace.id)) if text and workspace else []
    if len(hits) == 1:
        return HttpResponseRedirect(hits[0].url)
    shown = {"q": text, "chosen": slug, "workspaces": workspaces, "hits": hits}
    return Shown("find", "Message explorer", shown)


def _asked(request: HttpRequest, name: str) -> str:
    return storable(request.GET.get(name, ""))[:MAX_QUERY_CHARS]


def _hits(text: str, workspace_id: UUID) -> Iterator[Hit]:
    store = wiring.message_store()
    named = derived_id(workspace_id, text)
    for conversation_id in dict.fromkeys([named, *_uuids(text)]):
        if found := store.conversation(conversation_id):
            yield Hit("conversation", found.public_id, _conversation_url(conversation_id))
    for message_id in _uuids(text):
        if store.message(message_id):
            yield Hit("message", str(message_id), reverse("admin:explorer_message", args=[message_id]))
    for party in _parties(text, workspace_id):
        yield Hit("person", party, person_url(workspace_id, party))


def _uuids(text: str) -> list[UUID]:
    try:
        return [UUID(text)]
    except ValueError:
        return []


def _parties(text: str, workspace_id: UUID) -> list[str]:
    """The user of that id or name, or the address if it is one of a channel: who has no conversation counts too."""
    party = Party.parse(text)
    if party.channel is not None:
        try:
            return [str(Party(party.channel, registry.get(party.channel).normalize(party.address)))]
        except (UnknownChannel, InvalidAddress):
            return []
    known = directory.user(workspace_id, text) or directory.named(workspace_id, text)
    return [known.user_id] if known else []


def person_url(workspace_id: UUID, party: str) -> str:
    query = urlencode({"workspace": str(workspace_id), "party": party})
    return f"{reverse('admin:explorer_person')}?{query}"


def _conversation_url(conversation_id: UUID) -> str:
    return reverse("admin:explorer_conversation", args=[conversation_id])


def _missing(what: str) -> Shown:
    return Shown("missing", "Not found", {"what": what}, status=404)


def _looked(request: HttpRequest, page: str, at: object) -> None:
    operator = getattr(request.user, "public_id", "")
    logger.info("an operator looked at messages", extra={"operator": operator, "page": page, "at": str(at)})


# --- pages -------------------------------------------------------------------------------------------------------


def conversation(request: HttpRequest, conversation_id: UUID) -> Shown:
    """A conversation, its members and a page of its messages."""
    found = wiring.message_store().conversation(conversation_id)
    if found is None:
        return _missing("conversation")
    _looked(request, "conversation", conversation_id)
    before, after = _uuids(request.GET.get("before", "")), _uuids(request.GET.get("after", ""))
    page = reading.history(
        found,
        store=wiring.message_store(),
        before=before[0] if before and not after else None,
        after=after[0] if after else None,
        limit=PAGE,
    )
    everybody = {*found.members, *(each.sender_id for each in page.messages)}
    names = _names(found.workspace_id, everybody)
    context = {
        "conversation": found,
        "workspace": _slug(found.workspace_id),
        "members": [_member(found, each, names) for each in found.members],
        "lines": [_line(each, page.statuses.get(each.message_id, []), names) for each in page.messages],
        "older": page.older,
        "newer": page.newer,
    }
    return Shown("conversation", found.title or found.public_id, context)


def message(request: HttpRequest, message_id: UUID) -> Shown:
    """A message with its statuses and their history; on demand also its place on the log."""
    store = wiring.message_store()
    found = store.message(message_id)
    if found is None:
        return _missing("message")
    _looked(request, "message", message_id)
    statuses = store.statuses([found]).get(message_id, [])
    looked_on_log = "log" in request.GET
    context = {
        "message": found,
        "workspace": _slug(found.workspace_id),
        "sender_url": person_url(found.workspace_id, found.sender_id),
        "names": _names(found.workspace_id, {found.sender_id, *found.recipients}),
        "status": overall(statuses).value,
        "statuses": statuses,
        "transitions": store.transitions(found),
        "looked_on_log": looked_on_log,
        "record": _record_of(found) if looked_on_log else None,
    }
    return Shown("message", f"Message {message_id}", context)


def person(request: HttpRequest) -> Shown:
    """The conversations of a user or an external person, last active first."""
    party = _asked(request, "party")
    workspace_ids = _uuids(request.GET.get("workspace", ""))
    workspace = Workspace.objects.filter(id__in=workspace_ids).first()
    if workspace is None or not party:
        return _missing("person")
    _looked(request, "person", party if Party.parse(party).is_user else Party.parse(party).channel)
    page, more = conversations.listing(
        wiring.message_store(), workspace_id=workspace.id, user_id=party, after=_list_cursor(request), limit=PAGE
    )
    name = _names(workspace.id, {party}).get(party, "")
    older = {"older_ms": more.last_activity_ms, "older_id": str(more.conversation_id)} if more else None
    context = {
        "party": party,
        "name": name,
        "workspace": workspace.slug,
        "listings": page,
        "older": f"{person_url(workspace.id, party)}&{urlencode(older)}" if older else None,
    }
    return Shown("person", name or party, context)


def _list_cursor(request: HttpRequest) -> ListCursor | None:
    since, ids = request.GET.get("older_ms", ""), _uuids(request.GET.get("older_id", ""))
    valid = since.isascii() and since.isdigit() and len(since) <= 15 and ids
    return ListCursor(int(since), ids[0]) if valid else None


def _names(workspace_id: UUID, parties: set[str]) -> dict[str, str]:
    return dict(wiring.known_parties().names(workspace_id, parties))


def _slug(workspace_id: UUID) -> str:
    return str(Workspace.objects.filter(id=workspace_id).values_list("slug", flat=True).first() or workspace_id)


def _member(conversation: Conversation, party: str, names: Mapping[str, str]) -> dict[str, str]:
    url = person_url(conversation.workspace_id, party)
    return {"party": party, "name": names.get(party, ""), "channel": Party.parse(party).channel or "user", "url": url}


def _line(message: Message, statuses: Sequence[RecipientStatus], names: Mapping[str, str]) -> dict[str, object]:
    return {"message": message, "sender": names.get(message.sender_id, message.sender_id), "statuses": statuses}


def _record_of(message: Message) -> Record | None:
    return log_places.find(message, log=wiring.event_log(), partitions=settings.PARTITIONS)


# --- the log -----------------------------------------------------------------------------------------------------


def dead_letters(request: HttpRequest) -> Shown:
    """What could not be processed: where it came from and why, never what it says."""
    names = [topics.dead_letters(topic) for topic in wiring.work_topics()]
    log = wiring.event_log()
    ends = {name: log.end_offset(TopicPartition(name, 0)) for name in names}
    chosen = request.GET.get("topic", "")
    if chosen not in ends:
        chosen = next((name for name in names if ends[name]), names[0])
    end = _before(request, ends[chosen])
    start = max(0, end - PAGE)
    records = [each for each in log.read(TopicPartition(chosen, 0), start=start, limit=PAGE) if each.offset < end]
    context = {
        "ends": ends,
        "chosen": chosen,
        "letters": [_letter(each) for each in reversed(records)],
        "older": start if start > 0 and records else None,
        "newer": min(end + PAGE, ends[chosen]) if end < ends[chosen] else None,
    }
    return Shown("dead_letters", "Dead letters", context)


def _before(request: HttpRequest, end: int) -> int:
    given = request.GET.get("before", "")
    return min(int(given), end) if given.isascii() and given.isdigit() and len(given) <= 15 else end


def _letter(record: Record) -> dict[str, object]:
    return {
        "record": record,
        "bytes": len(record.value),
        "headers": sorted(record.headers.items()),
        "message_id": replay.letter(record).message_id,
    }


def lag(_request: HttpRequest) -> Shown:
    """How far behind the workers are on each partition, and which platforms we do not call now."""
    log = wiring.event_log()
    worked, letters = set(wiring.work_topics()), []
    rows = []
    for topic in wiring.all_topics():
        if topic.name not in worked:
            letters.append({"topic": topic.name, "end": log.end_offset(TopicPartition(topic.name, 0))})
            continue
        for number in range(topic.partitions):
            source = TopicPartition(topic.name, number)
            committed, end = log.committed(wiring.GROUP, source), log.end_offset(source)
            rows.append({"source": source, "committed": committed, "end": end, "lag": max(0, end - committed)})
    states = {key: state.value.replace("_", " ") for key, state in sorted(wiring.breakers().states().items())}
    total = sum(int(str(row["lag"])) for row in rows)
    return Shown("lag", "Lag and breakers", {"rows": rows, "total": total, "letters": letters, "breakers": states})
