"""Who talks in a benchmark: registered users with tokens and conversations, and a simulated WhatsApp account."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import httpx

from bench.client import post
from demo.supervisor import LocalSystem

PASSWORD: Final = "correct horse battery staple"
WHATSAPP_ACCOUNT: Final = "106540352242922"
WHATSAPP_SECRETS: Final = {
    "BENCH_ACCESS_TOKEN": "bench-access-token",
    "BENCH_APP_SECRET": "bench-app-secret",
    "BENCH_VERIFY_TOKEN": "bench-verify-token",
}
"""Go into the environment of the `LocalSystem`."""

LINGER_MS: Final = 50  # what the simulator waits for more news before it calls a webhook
TEXT: Final = "Olá! O pedido chega amanhã de manhã, entre 9 e 11 horas. Até logo!"


@dataclass(frozen=True, slots=True)
class User:
    user_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation, and the request that says something in it."""

    conversation_id: str
    sender: User
    recipient: User | None  # None: an external person
    request: bytes


@dataclass(frozen=True, slots=True)
class Parcel:
    """A request that says something in several conversations of one sender."""

    request: bytes
    messages: int


Post = Talk | Parcel


def users(api_url: str, count: int, *, prefix: str) -> list[User]:
    with httpx.Client(base_url=api_url, timeout=30) as http, ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda number: _user(http, f"{prefix}{number}"), range(count)))


def _user(http: httpx.Client, name: str) -> User:
    who = {"username": name, "password": PASSWORD}
    http.post("/auth/register", json=who).raise_for_status()
    signed_in = http.post("/auth/token", json=who).raise_for_status().json()
    return User(signed_in["user_id"], signed_in["access_token"])


def talks(api_url: str, pairs: int, *, prefix: str) -> list[Talk]:
    """Conversations between users, two to each, opened and known to the API."""
    everybody = iter(users(api_url, 2 * pairs, prefix=prefix))
    return _opened(api_url, prefix, list(zip(everybody, everybody, strict=True)))


def _opened(api_url: str, prefix: str, pairs: Sequence[tuple[User, User]]) -> list[Talk]:
    with httpx.Client(base_url=api_url, timeout=30) as http, ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda each: _talk(http, f"{prefix}-{each[0]}", *each[1]), enumerate(pairs)))


def _talk(http: httpx.Client, conversation_id: str, sender: User, recipient: User) -> Talk:
    _open(http, conversation_id, sender, recipient.user_id)
    request = post("/v1/messages", sender.token, {"conversation_id": conversation_id, "content": TEXT})
    return Talk(conversation_id, sender, recipient, request)


def crowd(api_url: str, senders: int, conversations: int, *, prefix: str) -> tuple[list[Talk], list[User]]:
    """Each sender has as many conversations, each with another of the listeners; and the listeners."""
    writing = users(api_url, senders, prefix=f"{prefix}-from")
    listening = users(api_url, conversations, prefix=f"{prefix}-to")
    return _opened(api_url, prefix, [(sender, listener) for sender in writing for listener in listening]), listening


def parcels(talks: Sequence[Talk], size: int) -> list[Parcel]:
    """Of ``size`` messages to as many of a sender's conversations in turn: one for each sender, and more where it takes
    more to write in all of them. All senders' first ones come first."""
    by_sender: dict[User, list[str]] = {}
    for talk in talks:
        by_sender.setdefault(talk.sender, []).append(talk.conversation_id)
    found: list[Parcel] = []
    for start in range(0, max(map(len, by_sender.values())), size):
        for sender, names in by_sender.items():
            said = [
                {"conversation_id": names[(start + number) % len(names)], "content": TEXT} for number in range(size)
            ]
            found.append(Parcel(post("/v1/messages/batch", sender.token, {"messages": said}), size))
    return found


def external_talks(api_url: str, senders: Sequence[User], count: int, *, prefix: str) -> list[Talk]:
    """Conversations of these users with people on WhatsApp, one each."""

    def one(number: int) -> Talk:
        sender, conversation_id = senders[number % len(senders)], f"{prefix}-{number}"
        _open(http, conversation_id, sender, f"whatsapp:+55119{80000000 + number}")
        request = post("/v1/messages", sender.token, {"conversation_id": conversation_id, "content": TEXT})
        return Talk(conversation_id, sender, None, request)

    with httpx.Client(base_url=api_url, timeout=30) as http, ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(count)))


def _open(http: httpx.Client, conversation_id: str, sender: User, member: str) -> None:
    body = {"conversation_id": conversation_id, "members": [member]}
    http.post("/v1/conversations", json=body, headers={"Authorization": f"Bearer {sender.token}"}).raise_for_status()


def tell_simulator(simulator_url: str, webhook_url: str) -> None:
    """Of the account, and to batch its webhooks as Meta does."""
    secrets = {name.removeprefix("BENCH_").lower(): value for name, value in WHATSAPP_SECRETS.items()}
    account = {"channel": "whatsapp", "account_id": WHATSAPP_ACCOUNT, "webhook_url": webhook_url, **secrets}
    httpx.post(f"{simulator_url}/_control/accounts", json=account, timeout=30).raise_for_status()
    switches = {"webhook_linger_ms": LINGER_MS}
    httpx.put(f"{simulator_url}/_control/switches", json=switches, timeout=30).raise_for_status()


def set_up_whatsapp(system: LocalSystem) -> None:
    """The same account at the hub and at the simulator, whose webhooks come back to the hub."""
    tell_simulator(system.simulator_url, f"{system.api_url}/webhooks/whatsapp/{WHATSAPP_ACCOUNT}")
    system.manage(
        *("add_channel_account", "--channel", "whatsapp", "--account-id", WHATSAPP_ACCOUNT, "--default"),
        *("--base-url", system.simulator_url),
        *(each for name in WHATSAPP_SECRETS for each in ("--credential", f"{name[6:].lower()}={name}")),
    )
