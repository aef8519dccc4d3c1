"""What can go wrong in the product; see docs/errors.md for what a client sees of it."""

from __future__ import annotations

from core.errors import Chat4AllError, Conflict, InvalidRequest, NotFound, Unavailable


class LogUnavailable(Unavailable):
    """The event log did not acknowledge in time. The record may still appear: the same id may be appended again."""

    code = "log_unavailable"
    title = "The event log does not answer"


class LogRefused(LogUnavailable):
    """It answers, and refuses us or what we ask for."""

    may_pass = False


class StoreUnavailable(Unavailable):
    """The message store does not answer."""

    code = "store_unavailable"
    title = "The message store does not answer"


class StoreRefused(StoreUnavailable):
    """It answers, and refuses us."""

    may_pass = False


class SecretsUnreadable(Unavailable):
    """The stored ciphertext was made with another key, or changed: what needs it waits until an operator has put it
    right, and nothing else does."""

    code = "secrets_unreadable"
    title = "Stored credentials cannot be read: is CHANNEL_SECRETS_KEY the one they were written with?"


class RecordTooLarge(Chat4AllError):
    """A record is larger than the log takes."""

    code = "record_too_large"
    http_status = 413
    title = "The message is too large"


class UndecodableRecord(Chat4AllError):
    """Bytes on the log that are no record of ours (broken, or a version we do not know): poison, never retried."""

    code = "undecodable_record"


class LeaseLost(Chat4AllError):
    """Somebody else owns this partition or batch by now: stop, change nothing more, commit nothing."""

    code = "lease_lost"


class ConversationNotFound(NotFound):
    code = "conversation_not_found"
    title = "No such conversation, or you are not in it; a first message opens one when it names a recipient_id"


class MessageNotFound(NotFound):
    code = "message_not_found"
    title = "No such message, or you are not in its conversation"


class MemberNotFound(NotFound):
    code = "member_not_found"
    title = "Nobody of that id is in this conversation"


class NotARecipient(InvalidRequest):
    """Somebody reports to have read a message that was not sent to them."""

    code = "not_a_recipient"
    title = "Only a recipient of a message can read it"


class RecipientNotFound(InvalidRequest):
    code = "recipient_not_found"
    title = "No such recipient"


class ChannelNotConfigured(InvalidRequest):
    code = "channel_not_configured"
    title = "This workspace has no account on that channel"


class SenderMismatch(Chat4AllError):
    code = "sender_mismatch"
    http_status = 403
    title = "The sender is the user of the token"


class IdempotencyMismatch(InvalidRequest):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_mismatch"
    title = "This Idempotency-Key was used with another request"


class IdempotencyInProgress(Conflict):
    """The first request with this Idempotency-Key has not ended: 409 with Retry-After: 1."""

    code = "idempotency_in_progress"
    title = "The first request with this Idempotency-Key is still running"
