"""What requests may hold, and how answers are described in the schema."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from core.ids import CONVERSATION_ID
from core.serializers import StrictSerializer, TextField, parsed
from messaging.api.pagination import DEFAULT_LIMIT, MAX_LIMIT
from messaging.domain import MAX_CONTENT_BYTES, MAX_CONVERSATION_ID_CHARS, MAX_MEMBERS, Status
from messaging.services.accept import MAX_BATCH

MAX_TITLE_CHARS: Final = 200
MAX_PARTY_CHARS: Final = 300
STATUSES: Final = [status.value for status in Status]
ACCEPTED: Final = [Status.ACCEPTED.value]
READ: Final = [Status.READ.value]
_PLAIN: Final = frozenset({"conversation_id", "recipient_id", "content"})


@extend_schema_field(
    {"type": "string", "pattern": f"^{CONVERSATION_ID.pattern}$", "maxLength": MAX_CONVERSATION_ID_CHARS}
)
class ConversationIdField(TextField):
    """A name that the client chooses: up to 128 of ``A-Z a-z 0-9 . _ : @ + ~ = -``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=MAX_CONVERSATION_ID_CHARS, trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        value = super().to_internal_value(data)
        if not CONVERSATION_ID.fullmatch(value):
            raise serializers.ValidationError(
                "Letters, digits and . _ : @ + ~ = - only, and not dots alone.", code="invalid_conversation_id"
            )
        return value


class PartyField(TextField):
    """A user id, or an address on a channel such as ``whatsapp:+5511999998888``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=MAX_PARTY_CHARS, **kwargs)


@extend_schema_field(OpenApiTypes.UUID)
class MessageIdField(TextField):
    """A message id as we gave it."""

    def to_internal_value(self, data: Any) -> UUID:  # type: ignore[override]
        try:
            return UUID(super().to_internal_value(data))
        except ValueError:
            raise serializers.ValidationError("Not a message id.", code="invalid_message_id") from None


class NewMessage(StrictSerializer):
    """The body of POST /v1/messages."""

    conversation_id = ConversationIdField(help_text="A new id opens a conversation with `recipient_id`.")
    sender_id = TextField(required=False, allow_null=True, max_length=64, help_text="Yours, or left out.")
    recipient_id = PartyField(required=False, allow_null=True, help_text="Left out: all other members.")
    content = TextField(required=False, allow_blank=True, trim_whitespace=False, help_text="Up to 64 KiB of UTF-8.")
    file_id = TextField(required=False, allow_null=True, max_length=64)
    reply_to = MessageIdField(required=False, allow_null=True)

    def validate_content(self, content: str) -> str:
        try:
            size = len(content.encode())
        except UnicodeEncodeError:
            raise serializers.ValidationError("Not valid Unicode (a lone surrogate).", code="invalid_unicode") from None
        if size > MAX_CONTENT_BYTES:
            raise serializers.ValidationError(f"{size} bytes; at most {MAX_CONTENT_BYTES}.", code="too_long")
        return content

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs.get("content", "").strip() and not attrs.get("file_id"):
            raise serializers.ValidationError({"content": "A message needs content or a file_id."}, code="required")
        return attrs


def new_message(data: object) -> dict[str, Any]:
    """What a body of POST /v1/messages says. Raises ValidationError.

    Nearly all are text for somebody, of which nothing has to be changed or refused: to see that takes a tenth of the
    serializer's time, which judges all others.
    """
    return dict(data) if isinstance(data, dict) and _is_plain(data) else parsed(NewMessage, data)


def _is_plain(data: dict[str, Any]) -> bool:
    conversation_id, content = data.get("conversation_id"), data.get("content")
    to = data.get("recipient_id", "all")
    if not (data.keys() <= _PLAIN and isinstance(conversation_id, str) and isinstance(content, str)):
        return False
    return (
        len(conversation_id) <= MAX_CONVERSATION_ID_CHARS
        and CONVERSATION_ID.fullmatch(conversation_id) is not None
        and isinstance(to, str)
        and len(to) <= MAX_PARTY_CHARS
        and to.isprintable()
        and to == to.strip() != ""
        and content.strip() != ""
        and "\0" not in content
        and _fits(content)
    )


def _fits(content: str) -> bool:
    try:
        return len(content.encode()) <= MAX_CONTENT_BYTES
    except UnicodeEncodeError:
        return False


@extend_schema_field(NewMessage(many=True))
class _Drafts(serializers.ListField):
    """Objects as they are: each is checked, and refused, by itself."""

    def __init__(self) -> None:
        super().__init__(min_length=1, max_length=MAX_BATCH, help_text=f"1 to {MAX_BATCH}, as POST /v1/messages.")


class NewMessages(StrictSerializer):
    """The body of POST /v1/messages/batch."""

    checked_apart = ("messages",)

    messages = _Drafts()


class NewConversation(StrictSerializer):
    """The body of POST /v1/conversations."""

    conversation_id = ConversationIdField(required=False, help_text="Left out: we choose one.")
    title = TextField(required=False, allow_blank=True, max_length=MAX_TITLE_CHARS)
    members = serializers.ListField(child=PartyField(), max_length=MAX_MEMBERS, help_text="Besides yourself.")


class NewMember(StrictSerializer):
    """The body of POST /v1/conversations/{id}/members."""

    member_id = PartyField()


class PageQuery(StrictSerializer):
    """The query of every list."""

    limit = serializers.IntegerField(required=False, min_value=1, max_value=MAX_LIMIT, default=DEFAULT_LIMIT)
    cursor = TextField(required=False, max_length=256)


# --- answers, for the schema --------------------------------------------------------------------------------------


class RecipientStatusAnswer(serializers.Serializer[None]):
    recipient_id = serializers.CharField(allow_null=True)
    status = serializers.ChoiceField(STATUSES)
    at = serializers.DateTimeField()
    reason = serializers.CharField(allow_null=True)


class MessageAnswer(serializers.Serializer[None]):
    message_id = serializers.UUIDField()
    conversation_id = serializers.CharField()
    sender_id = serializers.CharField()
    recipient_id = serializers.CharField(allow_null=True)
    content = serializers.CharField()
    file_id = serializers.CharField(allow_null=True)
    reply_to = serializers.UUIDField(allow_null=True)
    status = serializers.ChoiceField(STATUSES)
    statuses = RecipientStatusAnswer(many=True)
    accepted_at = serializers.DateTimeField()


class MessageStoryAnswer(MessageAnswer):
    history = RecipientStatusAnswer(many=True)


class AcceptedAnswer(serializers.Serializer[None]):
    message_id = serializers.UUIDField()
    conversation_id = serializers.CharField()
    status = serializers.ChoiceField(ACCEPTED)
    accepted_at = serializers.DateTimeField()


class ProblemAnswer(serializers.Serializer[None]):
    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    code = serializers.CharField()
    detail = serializers.CharField()
    errors = serializers.ListField(child=serializers.DictField(), required=False)  # type: ignore[assignment]


class BatchItemAnswer(serializers.Serializer[None]):
    message_id = serializers.UUIDField(required=False)
    conversation_id = serializers.CharField(required=False)
    status = serializers.ChoiceField(ACCEPTED, required=False)
    accepted_at = serializers.DateTimeField(required=False)
    error = ProblemAnswer(required=False, help_text="Instead of the others: why this one was refused.")


class BatchAnswer(serializers.Serializer[None]):
    accepted = serializers.IntegerField()
    refused = serializers.IntegerField()
    items = BatchItemAnswer(many=True)


class ReadAnswer(serializers.Serializer[None]):
    message_id = serializers.UUIDField()
    status = serializers.ChoiceField(READ)
    at = serializers.DateTimeField()


class MemberAnswer(serializers.Serializer[None]):
    id = serializers.CharField()
    kind = serializers.ChoiceField(["user", "contact"])
    channel = serializers.CharField(allow_null=True)
    name = serializers.CharField()


class ConversationAnswer(serializers.Serializer[None]):
    conversation_id = serializers.CharField()
    title = serializers.CharField()
    members = MemberAnswer(many=True)
    created_by = serializers.CharField()
    created_at = serializers.DateTimeField()
    last_activity_at = serializers.DateTimeField()


class ConversationPage(serializers.Serializer[None]):
    items = ConversationAnswer(many=True)
    next_cursor = serializers.CharField(allow_null=True)


class MessagePage(serializers.Serializer[None]):
    items = MessageAnswer(many=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="Older messages.")
    prev_cursor = serializers.CharField(allow_null=True, help_text="Newer messages.")
