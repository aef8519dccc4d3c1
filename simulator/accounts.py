"""The accounts that the simulated platform hosts, and where their webhooks go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Channel = Literal["whatsapp", "instagram"]
Secret = Annotated[str, Meta(min_length=1, max_length=512)]


class Account(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One phone number or Instagram account. Its repr shows no secret."""

    channel: Channel
    account_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    access_token: Secret
    app_secret: Secret
    verify_token: Secret
    webhook_url: Annotated[str, Meta(pattern=r"^(https?://\S+)?$", max_length=2048)] = ""
    display_phone_number: str = "15550000000"

    def __repr__(self) -> str:
        return f"Account({self.channel}:{self.account_id})"

    @property
    def business_id(self) -> str:
        """The WhatsApp Business Account that the number belongs to: another id than the number's own."""
        return str(int.from_bytes(hashlib.sha256(self.account_id.encode()).digest()[:6]) + 10**14)


class Subscription(msgspec.Struct, kw_only=True):
    """What the webhook's owner answered to our ``hub.mode=subscribe``."""

    state: Literal["not_checked", "checking", "verified", "refused", "unreachable"] = "not_checked"
    http_status: int | None = None
    detail: str = ""
    attempts: int = 0


class Accounts:
    """By id. Ids are unique across channels, as Graph's are."""

    def __init__(self, accounts: Iterable[Account] = (), *, webhook_url: str = "") -> None:
        self._webhook_url = webhook_url
        self._by_id: dict[str, Account] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.replace(accounts)

    def replace(self, accounts: Iterable[Account]) -> None:
        """Host exactly these. Raises ValueError when two have the same id; then nothing changed."""
        complete = [self._complete(each) for each in accounts]
        by_id = {each.account_id: each for each in complete}
        if len(by_id) < len(complete):
            raise ValueError("two accounts have the same account_id")
        self._by_id = by_id
        self.subscriptions = {account_id: Subscription() for account_id in by_id}

    def put(self, account: Account) -> None:
        self._by_id[account.account_id] = self._complete(account)
        self.subscriptions[account.account_id] = Subscription()

    def get(self, account_id: str) -> Account | None:
        return self._by_id.get(account_id)

    def all(self) -> list[Account]:
        return list(self._by_id.values())

    def knows_token(self, token: str) -> bool:
        return any(each.access_token == token for each in self._by_id.values())

    def _complete(self, account: Account) -> Account:
        """``{channel}`` and ``{account_id}`` in a webhook URL stand for the account's own."""
        url = account.webhook_url or self._webhook_url
        filled = url.replace("{channel}", account.channel).replace("{account_id}", account.account_id)
        return msgspec.structs.replace(account, webhook_url=filled)


def parse_accounts(text: str | bytes) -> list[Account]:
    """A JSON list of accounts. Raises msgspec.ValidationError or DecodeError."""
    return msgspec.json.decode(text, type=list[Account])
