"""A workspace's accounts on channels. Credentials go in and never come out again: a form says only which are set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views.decorators.debug import sensitive_post_parameters

from accounts.admin import AuditedAdmin
from accounts.models import DEFAULT_WORKSPACE_ID
from connectors import registry
from messaging import channels, wiring
from messaging.breakers import key_of
from messaging.errors import SecretsUnreadable
from messaging.models import ChannelAccount

CREDENTIAL: Final = "credential_"
_ACCOUNT_ID: Final = re.compile(r"[A-Za-z0-9._@+-]+")  # it stands in the webhook's URL


class ChannelAccountForm(forms.ModelForm):  # type: ignore[type-arg]
    """The account with one write-only field for each credential (added by `_form_for`)."""

    class Meta:
        model = ChannelAccount
        fields = (
            "workspace", "channel", "account_id", "display_name", "base_url", "is_default", "is_active", "agents",
        )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known = stored_credentials(self.instance) if self.instance.pk else {}
        for field, name in self._credential_fields():
            self.fields[field].help_text = self._help(name)

    def clean_account_id(self) -> str:
        account_id: str = self.cleaned_data["account_id"]
        if not _ACCOUNT_ID.fullmatch(account_id):
            raise ValidationError("Letters, digits and . _ @ + - only.", code="invalid")
        return account_id

    def clean_base_url(self) -> str:
        try:
            return channels.checked_base_url(self.cleaned_data["base_url"])
        except ValueError as error:
            raise ValidationError(str(error), code="invalid") from None

    def clean(self) -> dict[str, Any]:
        super().clean()
        self._check_credentials()
        self._check_agents()
        self._check_default()
        return self.cleaned_data

    def credentials(self) -> dict[str, str]:
        """What is stored from now on: what was entered, over what was there."""
        channel = self._value("channel")
        wanted = registry.get(channel).required_credentials if channel in registry.channels() else ()
        entered = {
            name: str(value)
            for field, name in self._credential_fields()
            if name in wanted and (value := self.cleaned_data.get(field))
        }
        return {**(self.known or {}), **entered}

    def _check_credentials(self) -> None:
        channel = self._value("channel")
        if channel not in registry.channels():
            return  # said at its own field
        for name in registry.get(channel).required_credentials:
            if not self.credentials().get(name):
                self.add_error(CREDENTIAL + name, ValidationError(f"{channel} needs it.", code="required"))

    def _check_agents(self) -> None:
        """Inbound messages go to them: a user of another workspace would see what is not theirs."""
        workspace = self._value("workspace")
        strangers = [each.username for each in self.cleaned_data.get("agents", ()) if each.workspace != workspace]
        if strangers:
            self.add_error(
                "agents", ValidationError(f"Not of this workspace: {', '.join(strangers)}.", code="stranger")
            )

    def _check_default(self) -> None:
        if not self.cleaned_data.get("is_default"):
            return
        same = ChannelAccount.objects.filter(
            workspace=self._value("workspace"), channel=self._value("channel"), is_default=True
        )
        if other := same.exclude(pk=self.instance.pk).defer("credentials").first():
            message = f"{other} is the workspace's default on this channel: take it away there first."
            self.add_error("is_default", ValidationError(message, code="unique"))

    def _value(self, name: str) -> Any:
        """Of a field that is there when adding and fixed later."""
        if self.instance.pk:
            return getattr(self.instance, name)
        return self.cleaned_data.get(name)

    def _credential_fields(self) -> list[tuple[str, str]]:
        return [(field, field.removeprefix(CREDENTIAL)) for field in self.fields if field.startswith(CREDENTIAL)]

    def _help(self, name: str) -> str:
        if not self.instance.pk:
            return "For " + ", ".join(each for each in registry.channels() if name in _required(each)) + "."
        if self.known is None:
            return "Stored with another key and not readable any more: enter it again."
        return "Set. Enter a new one to replace it." if self.known.get(name) else "Not set."


def stored_credentials(account: ChannelAccount) -> Mapping[str, str] | None:
    """None when they were encrypted with a key that we do not have."""
    try:
        return account.credentials
    except SecretsUnreadable:
        return None


def _required(channel: str) -> Sequence[str]:
    return registry.get(channel).required_credentials


def _credential_names(channel: str | None) -> list[str]:
    """Those of a channel; of every channel while it is not chosen."""
    chosen = [channel] if channel in registry.channels() else registry.channels()
    return list(dict.fromkeys(name for each in chosen for name in _required(str(each))))


def _form_for(account: ChannelAccount | None) -> type[ChannelAccountForm]:
    fields: dict[str, forms.Field] = {
        CREDENTIAL + name: forms.CharField(
            label=name.replace("_", " ").capitalize(),
            required=False,
            strip=False,
            max_length=4096,
            widget=forms.PasswordInput(render_value=False, attrs={"class": "vTextField", "autocomplete": "off"}),
        )
        for name in _credential_names(account.channel if account else None)
    }
    if account is None:
        choices = [("", "---------"), *((each, each) for each in registry.channels())]
        fields["channel"] = forms.ChoiceField(choices=choices)
    return type("BoundChannelAccountForm", (ChannelAccountForm,), fields)


@admin.register(ChannelAccount)
class ChannelAccountAdmin(AuditedAdmin):
    audited_as = "channel_account"
    audited_flags = ("is_active", "is_default")
    list_display = ("account_id", "channel", "workspace", "display_name", "is_default", "is_active", "breaker")
    list_filter = ("workspace", "channel", "is_active")
    list_select_related = ("workspace",)
    search_fields = ("account_id", "display_name")
    autocomplete_fields = ("agents",)
    fixed_fields = ("workspace", "channel", "account_id")  # conversations and webhooks know an account by them

    def get_queryset(self, request: HttpRequest) -> QuerySet[ChannelAccount]:
        """Without credentials: a lost key must not take these pages away, they are where it is put right."""
        return super().get_queryset(request).defer("credentials")

    def get_form(
        self, request: HttpRequest, obj: ChannelAccount | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        return super().get_form(request, obj, change=change, **{**kwargs, "form": _form_for(obj)})

    def get_fieldsets(self, request: HttpRequest, obj: ChannelAccount | None = None) -> Any:  # noqa: ARG002
        secrets = [CREDENTIAL + name for name in _credential_names(obj.channel if obj else None)]
        known = ["breaker", "webhook_url", "created_at"] if obj else []
        return (
            (None, {"fields": ("workspace", "channel", "account_id", "display_name", "base_url", *known)}),
            ("Use", {"fields": ("is_active", "is_default", "agents")}),
            ("Credentials", {"fields": secrets, "description": "Stored encrypted; nobody gets to see them again."}),
        )

    def get_readonly_fields(self, request: HttpRequest, obj: ChannelAccount | None = None) -> tuple[str, ...]:  # noqa: ARG002
        shown = ("breaker", "webhook_url", "created_at")
        return (*self.fixed_fields, *shown) if obj else shown

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"workspace": DEFAULT_WORKSPACE_ID, **super().get_changeform_initial_data(request)}

    @method_decorator(sensitive_post_parameters())
    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().changeform_view(request, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: ChannelAccount, form: Any, change: bool) -> None:
        obj.credentials = form.credentials()
        super().save_model(request, obj, form, change)
        _forget_once_committed()

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        if channels.unattended().filter(pk=form.instance.pk).exists():
            self.message_user(request, f"{form.instance}: {channels.UNATTENDED}", messages.WARNING)

    def delete_model(self, request: HttpRequest, obj: ChannelAccount) -> None:
        super().delete_model(request, obj)
        _forget_once_committed()

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ChannelAccount]) -> None:
        super().delete_queryset(request, queryset)
        _forget_once_committed()

    @admin.display(description="circuit breaker")
    def breaker(self, account: ChannelAccount) -> str:
        """Whether we call the platform: it opens after failures in a row and tries again by itself."""
        state = wiring.breakers().states().get(key_of(account.channel, account.account_id))
        return state.value.replace("_", " ") if state else "closed"

    @admin.display(description="webhook URL")
    def webhook_url(self, account: ChannelAccount) -> str:
        """What to enter in the platform's dashboard."""
        return f"{settings.API_URL}/webhooks/{account.channel}/{account.account_id}"


def _forget_once_committed() -> None:
    """Other processes learn of it within `channels.CACHED_S`."""
    transaction.on_commit(channels.forget)
