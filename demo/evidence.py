"""Collects what `reckoning` compares: everything is asked of the places themselves, after the play."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo.clients import Simulator, User
from demo.journal import ENDS, Life
from demo.reckoning import Evidence, Look, Received, Said, Stored, Told, Witness

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Before:
    """What there was before the play: none of it is this run's business."""

    message_ids: frozenset[str]
    unfinished: Sequence[Look]  # what platforms may still get of an earlier run
    received: int  # how many messages the simulator had
    said: int


async def look_before(users: Sequence[User], simulator: Simulator) -> Before:
    """The store first: what an earlier run left and the platforms get while we look must not be taken for ours."""
    histories = [message for user in users for message in await _whole_history(user)]
    unfinished = {each["message_id"]: each for each in histories if each["status"] not in ENDS}
    looks = [
        (status["recipient_id"], each["content"], None) for each in unfinished.values() for status in each["statuses"]
    ]
    return Before(
        message_ids=frozenset(each["message_id"] for each in histories),
        unfinished=looks,
        received=len(await simulator.received()),
        said=len(await simulator.said()),
    )


async def collect(users: Sequence[User], simulator: Simulator, before: Before) -> Evidence:
    """Ask the store (each member over REST), the simulator, and what the sockets brought."""
    members: dict[str, Sequence[str]] = {}
    downloads = _Downloads()
    witnesses = []
    for user in users:
        for conversation in await user.conversations():
            members[conversation["conversation_id"]] = [
                each["id"] for each in conversation["members"] if each["kind"] == "user"
            ]
        history = [
            await _stored(message, user, downloads)
            for message in await _whole_history(user)
            if message["message_id"] not in before.message_ids
        ]
        witnesses.append(Witness(user.user_id, history, list(user.frames), dict(user.read_at_ms)))
    return Evidence(
        told=[_told(each.life, each.sha256) for user in users for each in user.sent],
        said=[_said(each) for each in (await simulator.said())[before.said :]],
        received=[_received(each) for each in (await simulator.received())[before.received :]],
        witnesses=witnesses,
        members=members,
        earlier=before.message_ids,
        unfinished_earlier=before.unfinished,
    )


class _Downloads:
    """Checksums of files as they come down, each fetched once per user who may see it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    async def sha256(self, user: User, file_id: str) -> str:
        key = user.user_id, file_id
        if key not in self._known:
            self._known[key] = hashlib.sha256(await user.download(file_id)).hexdigest()
        return self._known[key]


async def _whole_history(user: User) -> list[Json]:
    return [
        message
        for conversation in await user.conversations()
        for message in await user.history(conversation["conversation_id"])
    ]


async def _stored(message: Json, user: User, downloads: _Downloads) -> Stored:
    return Stored(
        message_id=message["message_id"],
        conversation_id=message["conversation_id"],
        sender=message["sender_id"],
        content=message["content"],
        status=message["status"],
        sha256=await downloads.sha256(user, message["file_id"]) if message["file_id"] else None,
    )


def _told(life: Life, sha256: str | None) -> Told:
    return Told(
        message_id=life.message_id,
        conversation_id=life.conversation_id,
        sender=life.sender,
        recipient=life.recipient,
        content=life.content,
        at_ms=life.begun_ms,
        sha256=sha256,
    )


def _said(entry: Json) -> Said:
    return Said(
        external_id=entry["id"],
        sender=_party(entry["channel"], entry["from"]),
        content=entry["text"],
        at_ms=entry["sent_at"],
        sha256=entry["media_sha256"],
    )


def _received(entry: Json) -> Received:
    return Received(
        recipient=_party(entry["channel"], entry["to"]),
        content=entry["text"],
        at_ms=entry["received_at"],
        sha256=entry["media_sha256"],
        correlation=entry["correlation"],
    )


def _party(channel: str, address: str) -> str:
    """A person as our API writes them; the platforms leave out the plus."""
    return f"{channel}:{'+' if channel == 'whatsapp' else ''}{address}"
