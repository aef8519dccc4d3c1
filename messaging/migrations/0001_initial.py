import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import messaging.secrets


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("accounts", "0002_default_workspace"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Conversation",
            fields=[
                ("conversation_id", models.UUIDField(primary_key=True, serialize=False)),
                ("workspace_id", models.UUIDField()),
                ("public_id", models.CharField(max_length=128)),
                ("title", models.TextField(blank=True)),
                ("created_by", models.CharField(max_length=300)),
                ("created_at_ms", models.BigIntegerField()),
                ("last_activity_ms", models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="ContactThread",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("workspace_id", models.UUIDField()),
                ("channel", models.CharField(max_length=32)),
                ("account_id", models.CharField(max_length=128)),
                ("address", models.CharField(max_length=255)),
                ("conversation_id", models.UUIDField()),
                ("last_message_id", models.UUIDField()),
                ("name", models.TextField(blank=True)),
                ("handle", models.CharField(blank=True, max_length=255)),
            ],
            options={
                "indexes": [
                    models.Index(
                        fields=["workspace_id", "channel", "account_id", "handle", "last_message_id"],
                        name="contact_by_handle",
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("workspace_id", "channel", "account_id", "address"), name="contact_thread_unique"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="DeliveryClaim",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("message_id", models.UUIDField()),
                ("recipient", models.CharField(max_length=300)),
                ("attempt", models.SmallIntegerField()),
                (
                    "stage",
                    models.CharField(
                        choices=[("free", "Free"), ("sending", "Sending"), ("sent", "Sent"), ("failed", "Failed")],
                        max_length=16,
                    ),
                ),
                ("owner", models.CharField(max_length=255)),
                ("since_ms", models.BigIntegerField()),
                ("lease_until_ms", models.BigIntegerField()),
                ("external_id", models.CharField(max_length=512, null=True)),
                ("reason", models.TextField(null=True)),
                ("touched_at_ms", models.BigIntegerField(db_index=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("message_id", "recipient", "attempt"), name="delivery_claim_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="ExternalId",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("channel", models.CharField(max_length=32)),
                ("account_id", models.CharField(max_length=128)),
                ("external_id", models.CharField(max_length=512)),
                ("message_id", models.UUIDField()),
                ("conversation_id", models.UUIDField()),
                ("party", models.CharField(max_length=300)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("channel", "account_id", "external_id"), name="external_id_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="IdempotencyKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("workspace_id", models.UUIDField()),
                ("sender_id", models.CharField(max_length=300)),
                ("key", models.CharField(max_length=255)),
                ("body_hash", models.CharField(max_length=128)),
                ("message_id", models.UUIDField()),
                ("accepted_at_ms", models.BigIntegerField(db_index=True)),
                ("lease_until_ms", models.BigIntegerField()),
                ("is_settled", models.BooleanField(default=False)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("workspace_id", "sender_id", "key"), name="idempotency_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="Membership",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("conversation_id", models.UUIDField()),
                ("workspace_id", models.UUIDField()),
                ("party", models.CharField(max_length=300)),
                ("joined_at_ms", models.BigIntegerField()),
                ("last_activity_ms", models.BigIntegerField()),
            ],
            options={
                "indexes": [
                    models.Index(
                        fields=["party", "workspace_id", "-last_activity_ms", "-conversation_id"],
                        name="membership_recent",
                    )
                ],
                "constraints": [models.UniqueConstraint(fields=("conversation_id", "party"), name="membership_unique")],
            },
        ),
        migrations.CreateModel(
            name="Message",
            fields=[
                ("message_id", models.UUIDField(primary_key=True, serialize=False)),
                ("conversation_id", models.UUIDField()),
                ("workspace_id", models.UUIDField()),
                ("conversation", models.CharField(max_length=128)),
                ("sender_id", models.CharField(max_length=300)),
                ("recipient_id", models.CharField(max_length=300, null=True)),
                ("recipients", models.JSONField()),
                ("audience", models.JSONField()),
                ("content", models.TextField()),
                ("file_id", models.CharField(max_length=64, null=True)),
                ("reply_to", models.UUIDField(null=True)),
                ("accepted_at_ms", models.BigIntegerField()),
                ("account_id", models.CharField(max_length=128, null=True)),
                ("external_id", models.CharField(max_length=512, null=True)),
            ],
            options={
                "indexes": [models.Index(fields=["conversation_id", "message_id"], name="message_history")],
            },
        ),
        migrations.CreateModel(
            name="MessageStatus",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("message_id", models.UUIDField()),
                ("recipient", models.CharField(max_length=300)),
                ("rank", models.SmallIntegerField()),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("ACCEPTED", "ACCEPTED"),
                            ("SENT", "SENT"),
                            ("DELIVERED", "DELIVERED"),
                            ("READ", "READ"),
                            ("FAILED", "FAILED"),
                        ],
                        max_length=16,
                    ),
                ),
                ("at_ms", models.BigIntegerField()),
                ("reason", models.TextField(null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("message_id", "recipient"), name="message_status_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="ParkedRecord",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("topic", models.CharField(max_length=64)),
                ("conversation_id", models.UUIDField()),
                ("source_topic", models.CharField(max_length=64)),
                ("partition", models.IntegerField()),
                ("offset", models.BigIntegerField()),
                ("value", models.BinaryField()),
                ("parked_at_ms", models.BigIntegerField()),
                ("attempts", models.IntegerField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("topic", "conversation_id", "source_topic", "partition", "offset"),
                        name="parked_record_unique",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ParkedScope",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("topic", models.CharField(max_length=64)),
                ("conversation_id", models.UUIDField()),
                ("due_at_ms", models.BigIntegerField()),
            ],
            options={
                "indexes": [models.Index(fields=["topic", "due_at_ms"], name="parked_scope_due")],
                "constraints": [
                    models.UniqueConstraint(fields=("topic", "conversation_id"), name="parked_scope_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="StatusTransition",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("message_id", models.UUIDField()),
                ("conversation_id", models.UUIDField()),
                ("recipient", models.CharField(max_length=300)),
                ("rank", models.SmallIntegerField()),
                ("status", models.CharField(max_length=16)),
                ("attempt", models.SmallIntegerField()),
                ("at_ms", models.BigIntegerField()),
                ("reason", models.TextField(null=True)),
                ("external_id", models.CharField(max_length=512, null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("message_id", "recipient", "rank"), name="status_transition_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="ChannelAccount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("channel", models.CharField(max_length=32)),
                ("account_id", models.CharField(help_text="As the platform names it.", max_length=128)),
                ("display_name", models.CharField(blank=True, max_length=200)),
                ("base_url", models.CharField(blank=True, help_text="Empty: the platform's own.", max_length=500)),
                (
                    "credentials",
                    messaging.secrets.EncryptedJSONField(default=messaging.secrets.Credentials, editable=False),
                ),
                ("is_default", models.BooleanField(default=False, help_text="Sends what names no account.")),
                ("is_active", models.BooleanField(default=True)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "agents",
                    models.ManyToManyField(
                        blank=True,
                        help_text="Get the conversations that unknown senders open.",
                        related_name="channel_accounts",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "workspace",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="channel_accounts",
                        to="accounts.workspace",
                    ),
                ),
            ],
            options={
                "ordering": ("channel", "account_id"),
                "constraints": [
                    models.UniqueConstraint(fields=("channel", "account_id"), name="channel_account_unique"),
                    models.UniqueConstraint(
                        condition=models.Q(("is_default", True)),
                        fields=("workspace", "channel"),
                        name="channel_account_one_default",
                    ),
                ],
            },
        ),
    ]
