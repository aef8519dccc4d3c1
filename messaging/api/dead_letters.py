"""Dead letters for operators: which there are, and putting them back. Never what they say.

An operator sees those of their own workspace; a superuser all, also those of which nobody can tell whose they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.status import HTTP_202_ACCEPTED
from rest_framework.views import APIView

from accounts import audit
from accounts.authentication import principal
from accounts.models import User
from accounts.operators import operator
from core.addresses import client_address
from core.clock import SYSTEM_CLOCK, iso_utc
from core.errors import InvalidRequest
from core.serializers import StrictSerializer, TextField, parsed
from messaging import wiring
from messaging.api import pagination
from messaging.api.serializers import PageQuery
from messaging.replays import SqlMarks
from messaging.services import replay
from messaging.services.replay import Fate, Letter, Mark, Place, Replayed, Verdict, Wanted

LOOK_AT: Final = 1_000  # records of the log for one request
MAX_REPLAYED: Final = 200


class Conditions(StrictSerializer):
    """Which dead letters; all that are given must hold."""

    topic = TextField(required=False, max_length=64, help_text="That it came from, such as `messages`.")
    since = serializers.DateTimeField(required=False, help_text="Dead since then.")
    until = serializers.DateTimeField(required=False, help_text="Dead before then.")
    error = TextField(required=False, max_length=128)


class DeadLetterQuery(Conditions, PageQuery):
    """The query of GET /v1/operator/dead-letters."""


class ReplayRequest(StrictSerializer):
    """The body of POST /v1/operator/dead-letters/replay."""

    ids = serializers.ListField(child=TextField(max_length=128), required=False, min_length=1, max_length=MAX_REPLAYED)
    filter = Conditions(required=False)
    limit = serializers.IntegerField(required=False, min_value=1, max_value=MAX_REPLAYED, default=MAX_REPLAYED)
    cursor = TextField(required=False, max_length=256)
    dry_run = serializers.BooleanField(required=False, default=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("ids" in attrs) == ("filter" in attrs):
            raise serializers.ValidationError({"ids": "Either ids or a filter, which may be empty."}, code="required")
        return attrs


class DeadLetterAnswer(serializers.Serializer[None]):
    id = serializers.CharField()
    topic = serializers.CharField()
    error = serializers.CharField()
    attempts = serializers.IntegerField()
    first_failed_at = serializers.DateTimeField()
    died_at = serializers.DateTimeField()
    message_id = serializers.UUIDField(allow_null=True)
    bytes = serializers.IntegerField()
    replayed_at = serializers.DateTimeField(allow_null=True)
    replayed_by = serializers.CharField(allow_null=True)


class DeadLetterPage(serializers.Serializer[None]):
    items = DeadLetterAnswer(many=True)
    next_cursor = serializers.CharField(allow_null=True)


class ReplayAnswer(serializers.Serializer[None]):
    replayed = serializers.IntegerField()
    already_replayed = serializers.IntegerField()
    delivered_meanwhile = serializers.IntegerField()
    out_of_attempts = serializers.IntegerField()
    cut = serializers.IntegerField()
    unknown = serializers.IntegerField()
    dry_run = serializers.BooleanField()
    next_cursor = serializers.CharField(allow_null=True)


class DeadLettersView(APIView):
    """GET /v1/operator/dead-letters"""

    @extend_schema(
        operation_id="list_dead_letters", tags=["operators"], parameters=[DeadLetterQuery], responses=DeadLetterPage
    )
    def get(self, request: Request) -> Response:
        """What could not be processed, oldest first, by topic."""
        user = operator(principal(request))
        query = parsed(DeadLetterQuery, request.query_params.dict())
        page = replay.first_page(
            wiring.event_log(),
            _wanted(query, user),
            store=wiring.message_store(),
            start=_start(query),
            limit=query["limit"],
            look_at=LOOK_AT,
        )
        known = SqlMarks().known({Mark.of(each) for each in page.letters})
        items = [_shown(each, known.get(Mark.of(each))) for each in page.letters]
        return Response({"items": items, "next_cursor": pagination.write_place(page.next)})


class ReplayView(APIView):
    """POST /v1/operator/dead-letters/replay"""

    @extend_schema(
        operation_id="replay_dead_letters",
        tags=["operators"],
        request=ReplayRequest,
        responses={202: ReplayAnswer},
    )
    def post(self, request: Request) -> Response:
        """Put dead letters back on their topics, each once. 202: those counted are on the event log."""
        user = operator(principal(request))
        body = parsed(ReplayRequest, request.data)
        letters, unknown, after = _named(body, user) if "ids" in body else _filtered(body, user)
        verdicts = []
        for start in range(0, len(letters), replay.PAGE):
            verdicts += _replayed(
                letters[start : start + replay.PAGE], user, client_address(request), dry_run=body["dry_run"]
            )
        counts = replay.tally(verdicts)
        return Response(
            {**_counted(counts), "unknown": unknown, "dry_run": body["dry_run"], "next_cursor": after},
            HTTP_202_ACCEPTED,
        )


def _counted(counts: Counter[Fate]) -> dict[str, int]:
    return {fate.value.replace(" ", "_"): counts[fate] for fate in Fate}


def _replayed(letters: Sequence[Letter], user: User, address: str, *, dry_run: bool) -> list[Verdict]:
    marks, now_ms = SqlMarks(), SYSTEM_CLOCK.now_ms()
    verdicts = replay.judge(letters, store=wiring.message_store(), marks=marks, now_ms=now_ms)
    places = replay.places(verdicts)
    if places and not dry_run:
        # The audit comes first: what was done is known, whatever dies in between.
        audit.record(
            "dead_letters.replayed",
            actor=user.public_id,
            workspace="" if user.is_superuser else user.workspace,  # a superuser's are of any
            target="dead letters",
            details=", ".join(map(str, places)),
            address=address,
        )
        replay.carry_out(verdicts, log=wiring.event_log(), marks=marks, replayed=Replayed(user.public_id, now_ms))
    return verdicts


def _filtered(body: Mapping[str, Any], user: User) -> tuple[Sequence[Letter], int, str | None]:
    page = replay.first_page(
        wiring.event_log(),
        _wanted(body["filter"], user),
        store=wiring.message_store(),
        start=_start(body),
        limit=body["limit"],
        look_at=LOOK_AT,
    )
    return page.letters, 0, pagination.write_place(page.next)


def _named(body: Mapping[str, Any], user: User) -> tuple[Sequence[Letter], int, None]:
    """Those with these ids, and how many there are not, or not for this operator: nobody learns which."""
    work = wiring.work_topics()
    places = [_place(each, number) for number, each in enumerate(body["ids"])]
    wanted = dict.fromkeys(places)
    letters = [
        found for each in wanted if each.topic in work and (found := replay.at(wiring.event_log(), each)) is not None
    ]
    if (workspace_id := _workspace_of(user)) is not None:
        owners = replay.workspaces(letters, wiring.message_store())
        letters = [each for each in letters if owners.get(each.place) == workspace_id]
    return letters, len(wanted) - len(letters), None


def _place(text: str, number: int) -> Place:
    try:
        return Place.parse(text)
    except ValueError:
        raise InvalidRequest.at(f"ids.{number}", "not a dead letter's id", code="invalid_dead_letter_id") from None


def _wanted(conditions: Mapping[str, Any], user: User) -> Wanted:
    work = wiring.work_topics()
    named = conditions.get("topic")
    if named is not None and named not in work:
        raise InvalidRequest.at("topic", f"one of {', '.join(work)}", code="unknown_topic")
    since, until = conditions.get("since"), conditions.get("until")
    return Wanted(
        topics=[topic for topic in wiring.all_topics() if topic.name in ((named,) if named else work)],
        since_ms=int(since.timestamp() * 1000) if since else 0,
        until_ms=int(until.timestamp() * 1000) if until else 1 << 53,
        error=conditions.get("error"),
        workspace_id=_workspace_of(user),
    )


def _workspace_of(user: User) -> UUID | None:
    return None if user.is_superuser else user.workspace_id


def _start(query: Mapping[str, Any]) -> Place | None:
    return pagination.read_place(query["cursor"]) if "cursor" in query else None


def _shown(letter: Letter, replayed: Replayed | None) -> dict[str, Any]:
    return {
        "id": str(letter.place),
        "topic": letter.place.topic,
        "error": letter.error,
        "attempts": letter.attempts,
        "first_failed_at": iso_utc(letter.first_failed_ms),
        "died_at": iso_utc(letter.record.appended_at_ms),
        "message_id": str(letter.message_id) if letter.message_id else None,
        "bytes": len(letter.record.value),
        "replayed_at": iso_utc(replayed.at_ms) if replayed else None,
        "replayed_by": replayed.by if replayed else None,
    }
