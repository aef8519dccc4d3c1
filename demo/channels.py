"""One WhatsApp and one Instagram account, the same in the hub and in the simulator that plays the platforms."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypedDict

from demo.private import read_private, write_private

ACCOUNT_IDS: Final = {"whatsapp": "105544332211009", "instagram": "17841400000000001"}


@dataclass(frozen=True, slots=True)
class SetUp:
    """Management commands, and variables that they and nobody else get."""

    commands: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)


class Account(TypedDict):
    """As the simulator reads it from its accounts file."""

    channel: str
    account_id: str
    access_token: str
    app_secret: str
    verify_token: str


def accounts_file(state_dir: Path) -> Path:
    return state_dir / "channels.json"


def accounts(state_dir: Path) -> list[Account]:
    """The accounts with their credentials, generated the first time and kept in a private file."""
    path = accounts_file(state_dir)
    known: list[Account] | None = read_private(path)
    if known is None:
        known = [_generated(channel, account_id) for channel, account_id in ACCOUNT_IDS.items()]
        write_private(path, known)
    return known


def simulator_settings(state_dir: Path, *, api_url: str) -> dict[str, str]:
    """Variables by which the simulator knows the accounts, also after it was started again."""
    return {
        "SIMULATOR_ACCOUNTS_FILE": str(accounts_file(state_dir)),
        "SIMULATOR_WEBHOOK_URL": f"{api_url}/webhooks/{{channel}}/{{account_id}}",
    }


def set_up(state_dir: Path, *, simulator_url: str, agents: Mapping[str, str]) -> SetUp:
    """What brings the hub's accounts to these credentials.

    ``agents`` are usernames by channel: they get the conversations that unknown people open.
    """
    commands: list[str] = []
    env: dict[str, str] = {}
    for account in accounts(state_dir):
        channel = account["channel"]
        prefix = f"DEMO_{channel.upper()}"
        env |= {
            f"{prefix}_TOKEN": account["access_token"],
            f"{prefix}_SECRET": account["app_secret"],
            f"{prefix}_VERIFY": account["verify_token"],
        }
        commands.append(
            f"add_channel_account --channel {channel} --account-id {account['account_id']} --default"
            f" --display-name 'Simulated {channel}' --base-url {simulator_url} --agent {agents[channel]}"
            f" --credential access_token={prefix}_TOKEN --credential app_secret={prefix}_SECRET"
            f" --credential verify_token={prefix}_VERIFY"
        )
    return SetUp(tuple(commands), env)


def _generated(channel: str, account_id: str) -> Account:
    return {
        "channel": channel,
        "account_id": account_id,
        "access_token": secrets.token_urlsafe(24),
        "app_secret": secrets.token_hex(16),
        "verify_token": secrets.token_urlsafe(12),
    }
