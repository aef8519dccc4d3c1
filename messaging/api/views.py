"""Messages and conversations over REST."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.status import HTTP_200_OK, HTTP_201_CREATED, HTTP_202_ACCEPTED, HTTP_207_MULTI_STATUS
from rest_framework.views import APIView

from accounts.authentication import principal
from accounts.tokens import Principal
from core.clock import iso_utc
from core.errors import Chat4AllError, InvalidRequest
from core.logging import concern
from core.problems import problem_of
from core.serializers import parsed
from messaging import wiring
from messaging.api import pagination, serializers
from messaging.domain import MAX_IDEMPOTENCY_KEY_CHARS, Conversation
from messaging.errors import MessageNotFound
from messaging.services import accept, conversations, reading
from messaging.services.render import conversation_json, history_json, message_json

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY_CHARS, "pattern": "^[ -~]+$"},
    OpenApiParameter.HEADER,
    description="Up to 255 characters, kept 24 h: the same request again gets the first answer.",
)
IDEMPOTENCY_REPLAY = OpenApiParameter(
    "Idempotency-Replay",
    {"type": "string", "enum": ["true"]},
    OpenApiParameter.HEADER,
    description="This is the answer to an earlier request with the same Idempotency-Key.",
    response=[202],
)


class MessagesView(APIView):
    """POST /v1/messages"""

    @extend_schema(
        operation_id="send_message",
        tags=["messages"],
        parameters=[IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAY],
        request=serializers.NewMessage,
        responses={202: serializers.AcceptedAnswer},
    )
    def post(self, request: Request) -> Response:
        """Send a message. 202: it is on the event log and will not be lost; watch its status live or by GET."""
        draft = _draft(principal(request), request.data, key=_idempotency_key(request))
        accepted = accept.accept(draft, wiring.desk())
        concern(accepted.message_id)
        headers = {"Idempotency-Replay": "true"} if accepted.replay else {}
        return Response(accepted.as_json(), HTTP_202_ACCEPTED, headers=headers)


class MessageBatchView(APIView):
    """POST /v1/messages/batch"""

    @extend_schema(
        operation_id="send_messages",
        tags=["messages"],
        parameters=[IDEMPOTENCY_KEY],
        request=serializers.NewMessages,
        responses={202: serializers.BatchAnswer, 207: serializers.BatchAnswer},
    )
    def post(self, request: Request) -> Response:
        """Send up to 500 messages at once. 202: all of them are on the event log; 207: some were refused, see `items`,
        which has an answer for each in its place."""
        who, key = principal(request), _idempotency_key(request)
        bodies = parsed(serializers.NewMessages, request.data)["messages"]
        drafts = [_draft_or_none(who, body) for body in bodies]
        answers = accept.accept_many(drafts, wiring.desk(), key=key)
        items = [_shown_answer(answer) for answer in answers]
        refused = sum("error" in item for item in items)
        body = {"accepted": len(items) - refused, "refused": refused, "items": items}
        return Response(body, HTTP_207_MULTI_STATUS if refused else HTTP_202_ACCEPTED)


def _draft(who: Principal, data: object, *, key: str | None = None) -> accept.Draft:
    body = serializers.new_message(data)
    return accept.Draft(
        workspace_id=who.workspace_id,
        user_id=who.user_id,
        conversation=body.pop("conversation_id"),
        idempotency_key=key,
        **body,
    )


def _draft_or_none(who: Principal, data: object) -> accept.Draft | accept.NoDraft:
    try:
        return _draft(who, data)
    except ValidationError as error:
        problem = problem_of(error)
        return accept.NoDraft(data, InvalidRequest(problem.detail, fields=problem.fields))


def _shown_answer(answer: accept.Accepted | Chat4AllError) -> dict[str, object]:
    return answer.as_json() if isinstance(answer, accept.Accepted) else {"error": problem_of(answer).as_json()}


class MessageView(APIView):
    """GET /v1/messages/{id}"""

    @extend_schema(operation_id="get_message", tags=["messages"], responses=serializers.MessageStoryAnswer)
    def get(self, request: Request, message_id: str) -> Response:
        """A message with the history of its statuses."""
        who = principal(request)
        story = reading.story(
            _message_id(message_id),
            user_id=who.user_id,
            workspace_id=who.workspace_id,
            store=wiring.message_store(),
            hints=wiring.hints(),
        )
        shown = message_json(story.message, story.statuses)
        return Response({**shown, "history": history_json(story.message, story.transitions)})


class MessageReadView(APIView):
    """POST /v1/messages/{id}/read"""

    @extend_schema(
        operation_id="mark_message_read",
        tags=["messages"],
        request=None,
        responses={202: serializers.ReadAnswer},
    )
    def post(self, request: Request, message_id: str) -> Response:
        """Tell that you read a message that was sent to you."""
        who = principal(request)
        change = reading.mark_read(
            _message_id(message_id),
            user_id=who.user_id,
            workspace_id=who.workspace_id,
            store=wiring.message_store(),
            hints=wiring.hints(),
            log=wiring.event_log(),
        )
        concern(change.message_id)
        answer = {"message_id": str(change.message_id), "status": change.status.value, "at": iso_utc(change.at_ms)}
        return Response(answer, HTTP_202_ACCEPTED)


class ConversationsView(APIView):
    """GET and POST /v1/conversations"""

    @extend_schema(
        operation_id="list_conversations",
        tags=["conversations"],
        parameters=[serializers.PageQuery],
        responses=serializers.ConversationPage,
    )
    def get(self, request: Request) -> Response:
        """Your conversations, last active first."""
        who = principal(request)
        query = parsed(serializers.PageQuery, request.query_params.dict())
        cursor = pagination.read_listing(query["cursor"]) if "cursor" in query else None
        page, after = conversations.listing(
            wiring.message_store(),
            workspace_id=who.workspace_id,
            user_id=who.user_id,
            after=cursor,
            limit=query["limit"],
        )
        everybody = {member for each in page for member in each.conversation.members}
        names = dict(wiring.known_parties().names(who.workspace_id, everybody))
        items = [
            conversation_json(each.conversation, names=names, last_activity_ms=each.last_activity_ms) for each in page
        ]
        return Response({"items": items, "next_cursor": pagination.write_listing(after)})

    @extend_schema(
        operation_id="create_conversation",
        tags=["conversations"],
        request=serializers.NewConversation,
        responses={201: serializers.ConversationAnswer, 200: serializers.ConversationAnswer},
    )
    def post(self, request: Request) -> Response:
        """Open a conversation. 200 instead of 201: the id exists already, and this is it."""
        who = principal(request)
        body = parsed(serializers.NewConversation, request.data)
        conversation, new = conversations.create(
            workspace_id=who.workspace_id,
            user_id=who.user_id,
            public_id=body.get("conversation_id"),
            title=body.get("title", ""),
            members=body["members"],
            store=wiring.message_store(),
            parties=wiring.known_parties(),
            notify=wiring.notify(),
        )
        last_activity_ms = conversation.created_at_ms if new else _last_activity_ms(conversation)
        return Response(_shown(conversation, last_activity_ms), HTTP_201_CREATED if new else HTTP_200_OK)


class ConversationView(APIView):
    """GET /v1/conversations/{id}"""

    @extend_schema(operation_id="get_conversation", tags=["conversations"], responses=serializers.ConversationAnswer)
    def get(self, request: Request, conversation_id: str) -> Response:
        """A conversation with its members."""
        conversation = _visible(request, conversation_id)
        return Response(_shown(conversation, _last_activity_ms(conversation)))


class MembersView(APIView):
    """POST /v1/conversations/{id}/members"""

    @extend_schema(
        operation_id="add_member",
        tags=["conversations"],
        request=serializers.NewMember,
        responses=serializers.ConversationAnswer,
    )
    def post(self, request: Request, conversation_id: str) -> Response:
        """Add a user or an address; the conversation as it is then. Already a member: nothing changes."""
        conversation = _visible(request, conversation_id)
        body = parsed(serializers.NewMember, request.data)
        last_activity_ms = _last_activity_ms(conversation)  # before: what fails afterwards looks as if nothing was done
        now = conversations.add_member(
            conversation,
            body["member_id"],
            store=wiring.message_store(),
            parties=wiring.known_parties(),
            notify=wiring.notify(),
            cache=wiring.conversation_cache(),
        )
        return Response(_shown(now, last_activity_ms))


class MemberView(APIView):
    """DELETE /v1/conversations/{id}/members/{member}"""

    @extend_schema(
        operation_id="remove_member", tags=["conversations"], responses={200: serializers.ConversationAnswer}
    )
    def delete(self, request: Request, conversation_id: str, member_id: str) -> Response:
        """Remove a member, or leave; the conversation as it is then."""
        conversation = _visible(request, conversation_id)
        last_activity_ms = _last_activity_ms(conversation)
        now = conversations.remove_member(
            conversation,
            member_id,
            store=wiring.message_store(),
            parties=wiring.known_parties(),
            notify=wiring.notify(),
            forget=wiring.notifier().forget,
            cache=wiring.conversation_cache(),
        )
        return Response(_shown(now, last_activity_ms))


class HistoryView(APIView):
    """GET /v1/conversations/{id}/messages"""

    @extend_schema(
        operation_id="list_messages",
        tags=["messages"],
        parameters=[serializers.PageQuery],
        responses=serializers.MessagePage,
    )
    def get(self, request: Request, conversation_id: str) -> Response:
        """A page of history, newest first. `next_cursor` leads to older messages, `prev_cursor` to newer ones."""
        query = parsed(serializers.PageQuery, request.query_params.dict())
        cursor = pagination.read_history(query["cursor"]) if "cursor" in query else None
        page = reading.history(
            _visible(request, conversation_id),
            store=wiring.message_store(),
            before=cursor.message_id if cursor and cursor.direction == "before" else None,
            after=cursor.message_id if cursor and cursor.direction == "after" else None,
            limit=query["limit"],
        )
        return Response(
            {
                "items": [message_json(message, page.statuses[message.message_id]) for message in page.messages],
                "next_cursor": pagination.write_history("before", page.older),
                "prev_cursor": pagination.write_history("after", page.newer),
            }
        )


def _visible(request: Request, conversation_id: str) -> Conversation:
    who = principal(request)
    return conversations.visible(
        wiring.message_store(), workspace_id=who.workspace_id, user_id=who.user_id, public_id=conversation_id
    )


def _last_activity_ms(conversation: Conversation) -> int:
    return wiring.message_store().last_activity_ms(conversation.conversation_id)


def _shown(conversation: Conversation, last_activity_ms: int) -> dict[str, Any]:
    names = wiring.known_parties().names(conversation.workspace_id, conversation.members)
    return conversation_json(conversation, names=dict(names), last_activity_ms=last_activity_ms)


def _message_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise MessageNotFound from None


def _idempotency_key(request: Request) -> str | None:
    key: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARS or not key.isprintable() or not key.isascii():
        raise InvalidRequest.at(
            "Idempotency-Key",
            f"1 to {MAX_IDEMPOTENCY_KEY_CHARS} printable ASCII characters",
            code="invalid_idempotency_key",
        )
    return key
