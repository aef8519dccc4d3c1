"""Tables. Those of the ORM message store live in a database of their own (see `stores.router`) and so name users and
workspaces by value; a channel account lives with the accounts it belongs to.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q

from messaging.domain import Status
from messaging.secrets import EncryptedJSONField

PARTY_CHARS = 300  # a channel, a colon and 255 characters of address
STATUS_CHARS = 16


class ChannelAccount(models.Model):
    """One account of a workspace on a channel: a phone number, a page, a bot.

    The channel is a name, not a choice of the schema: a new connector needs no migration.
    """

    workspace = models.ForeignKey("accounts.Workspace", on_delete=models.PROTECT, related_name="channel_accounts")
    channel = models.CharField(max_length=32)
    account_id = models.CharField(max_length=128, help_text="As the platform names it.")
    display_name = models.CharField(max_length=200, blank=True)
    base_url = models.CharField(max_length=500, blank=True, help_text="Empty: the platform's own.")
    credentials = EncryptedJSONField()
    is_default = models.BooleanField(default=False, help_text="Sends what names no account.")
    is_active = models.BooleanField(default=True)
    agents = models.ManyToManyField(
        settings.AUTH_USER_MODEL,
        blank=True,
        related_name="channel_accounts",
        help_text="Get the conversations that unknown senders open.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("channel", "account_id")
        constraints = (
            models.UniqueConstraint(fields=("channel", "account_id"), name="channel_account_unique"),
            models.UniqueConstraint(
                fields=("workspace", "channel"), condition=Q(is_default=True), name="channel_account_one_default"
            ),
        )

    def __str__(self) -> str:
        return f"{self.channel}:{self.account_id}"


class Explorer(models.Model):
    """No table: the permission to read everybody's messages in the admin, and the entry in its menu."""

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = verbose_name_plural = "message explorer"


class ReplayedLetter(models.Model):
    """A dead letter that was put back on its topic; see `messaging.services.replay`."""

    topic = models.CharField(max_length=64)  # that it came from
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    appended_at_ms = models.BigIntegerField()
    by = models.CharField(max_length=128)
    at_ms = models.BigIntegerField()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("topic", "partition", "offset", "appended_at_ms"), name="replayed_letter_unique"
            ),
        )


# --- the ORM message store ---------------------------------------------------------------------------------------


class Conversation(models.Model):
    conversation_id = models.UUIDField(primary_key=True)
    workspace_id = models.UUIDField()
    public_id = models.CharField(max_length=128)
    title = models.TextField(blank=True)
    created_by = models.CharField(max_length=PARTY_CHARS)
    created_at_ms = models.BigIntegerField()
    last_activity_ms = models.BigIntegerField()


class Membership(models.Model):
    """Somebody who is in a conversation now; leaving deletes the row. Members are ordered by the key: by joining.

    The conversation's last activity is repeated here so that a person's list is one range of one index.
    """

    conversation_id = models.UUIDField()
    workspace_id = models.UUIDField()
    party = models.CharField(max_length=PARTY_CHARS)
    joined_at_ms = models.BigIntegerField()
    last_activity_ms = models.BigIntegerField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=("conversation_id", "party"), name="membership_unique"),)
        indexes = (
            models.Index(
                fields=("party", "workspace_id", "-last_activity_ms", "-conversation_id"), name="membership_recent"
            ),
        )


class Message(models.Model):
    message_id = models.UUIDField(primary_key=True)
    conversation_id = models.UUIDField()
    workspace_id = models.UUIDField()
    conversation = models.CharField(max_length=128)
    sender_id = models.CharField(max_length=PARTY_CHARS)
    recipient_id = models.CharField(max_length=PARTY_CHARS, null=True)
    recipients = models.JSONField()
    audience = models.JSONField()
    content = models.TextField()
    file_id = models.CharField(max_length=64, null=True)
    reply_to = models.UUIDField(null=True)
    accepted_at_ms = models.BigIntegerField()
    account_id = models.CharField(max_length=128, null=True)
    external_id = models.CharField(max_length=512, null=True)

    class Meta:
        indexes = (models.Index(fields=("conversation_id", "message_id"), name="message_history"),)


class MessageStatus(models.Model):
    """Where a message stands for one recipient, once more was told than that it is SENT, which being stored says. The
    row may be there before its message; a rank of 0 in it means no more than no row does."""

    message_id = models.UUIDField()
    recipient = models.CharField(max_length=PARTY_CHARS)
    rank = models.SmallIntegerField()
    status = models.CharField(max_length=STATUS_CHARS, choices=[(each.value, each.value) for each in Status])
    at_ms = models.BigIntegerField()
    reason = models.TextField(null=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("message_id", "recipient"), name="message_status_unique"),)


class StatusTransition(models.Model):
    """One piece of news about one recipient; the same news told again is not news (`StatusChange.event_id`)."""

    message_id = models.UUIDField()
    conversation_id = models.UUIDField()
    recipient = models.CharField(max_length=PARTY_CHARS)
    rank = models.SmallIntegerField()
    status = models.CharField(max_length=STATUS_CHARS)
    attempt = models.SmallIntegerField()
    at_ms = models.BigIntegerField()
    reason = models.TextField(null=True)
    note = models.CharField(max_length=64, default="")  # `StatusChange.note`
    external_id = models.CharField(max_length=512, null=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("message_id", "recipient", "rank", "note"), name="status_transition_unique"
            ),
        )


class ExternalId(models.Model):
    channel = models.CharField(max_length=32)
    account_id = models.CharField(max_length=128)
    external_id = models.CharField(max_length=512)
    message_id = models.UUIDField()
    conversation_id = models.UUIDField()
    party = models.CharField(max_length=PARTY_CHARS)
    attempt = models.SmallIntegerField(db_default=0)  # also of what processes of the release before write meanwhile

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("channel", "account_id", "external_id"), name="external_id_unique"),
        )


class ContactThread(models.Model):
    """An external person and the conversation they were last heard in."""

    workspace_id = models.UUIDField()
    channel = models.CharField(max_length=32)
    account_id = models.CharField(max_length=128)
    address = models.CharField(max_length=255)
    conversation_id = models.UUIDField()
    last_message_id = models.UUIDField()
    name = models.TextField(blank=True)
    handle = models.CharField(max_length=255, blank=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("workspace_id", "channel", "account_id", "address"), name="contact_thread_unique"
            ),
        )
        indexes = (
            models.Index(
                fields=("workspace_id", "channel", "account_id", "handle", "last_message_id"), name="contact_by_handle"
            ),
        )


class IdempotencyKey(models.Model):
    workspace_id = models.UUIDField()
    sender_id = models.CharField(max_length=PARTY_CHARS)
    key = models.CharField(max_length=255)
    body_hash = models.CharField(max_length=128)
    message_id = models.UUIDField()
    accepted_at_ms = models.BigIntegerField(db_index=True)  # pruned by it
    lease_until_ms = models.BigIntegerField()
    is_settled = models.BooleanField(default=False)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("workspace_id", "sender_id", "key"), name="idempotency_unique"),)


class DeliveryClaim(models.Model):
    """Who sends a message to a recipient, and how it ended."""

    class Stage(models.TextChoices):
        FREE = "free"  # surely not sent: whoever comes may try
        SENDING = "sending"
        SENT = "sent"
        FAILED = "failed"

    message_id = models.UUIDField()
    recipient = models.CharField(max_length=PARTY_CHARS)
    attempt = models.SmallIntegerField()
    stage = models.CharField(max_length=STATUS_CHARS, choices=Stage.choices)
    owner = models.CharField(max_length=255)
    since_ms = models.BigIntegerField()  # when the owner began
    lease_until_ms = models.BigIntegerField()
    external_id = models.CharField(max_length=512, null=True)
    reason = models.TextField(null=True)
    touched_at_ms = models.BigIntegerField(db_index=True)  # pruned by it

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("message_id", "recipient", "attempt"), name="delivery_claim_unique"),
        )


class ParkedScope(models.Model):
    """A conversation that is held back on one outbound topic: there is one as long as it holds records."""

    topic = models.CharField(max_length=64)
    conversation_id = models.UUIDField()
    due_at_ms = models.BigIntegerField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=("topic", "conversation_id"), name="parked_scope_unique"),)
        indexes = (models.Index(fields=("topic", "due_at_ms"), name="parked_scope_due"),)


class ParkedRecord(models.Model):
    topic = models.CharField(max_length=64)
    conversation_id = models.UUIDField()
    source_topic = models.CharField(max_length=64)
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    value = models.BinaryField()
    parked_at_ms = models.BigIntegerField()
    attempts = models.IntegerField()
    request_id = models.CharField(max_length=128, null=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("topic", "conversation_id", "source_topic", "partition", "offset"), name="parked_record_unique"
            ),
        )
