"""What travels to sockets, and the names in Redis that the notifier and the gateway agree on.

A frame is one JSON object, ``{"epoch":"…","seq":12,"type":"message",…}``, made once in Redis and sent on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

LAYER_PREFIX: Final = "chat4all"  # as in settings.CHANNEL_LAYERS
HISTORY_FRAMES: Final = 1_000
HISTORY_BYTES: Final = 1024 * 1024
HISTORY_TTL_S: Final = 24 * 3600
RESERVED: Final = frozenset({"epoch", "seq"})


@dataclass(frozen=True, slots=True)
class Push:
    """One frame for one user. ``event_id`` is equal for equal news: a replay mints no second frame.

    ``body`` holds JSON values, a ``type`` among them, and neither ``epoch`` nor ``seq``: those are Redis' to give.
    """

    user_id: str
    event_id: str
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class UserKeys:
    """The keys of one user; the braces keep them on one node of a Redis Cluster."""

    state: str  # hash: epoch, seq, bytes in the history
    history: str  # list of frames, newest last, without a gap in their seq
    events: str  # sorted set: event ids that have a frame, by the time of it

    @classmethod
    def of(cls, user_id: str) -> UserKeys:
        stem = f"{LAYER_PREFIX}:live:{{{user_id}}}"
        return cls(stem, f"{stem}:history", f"{stem}:events")


def group(user_id: str) -> str:
    """The channel layer's group of a user's sockets."""
    return f"user.{user_id}"


def redis_channel(user_id: str) -> str:
    """Where RedisPubSubChannelLayer listens for that group.

    The wire form is channels_redis' own business and not documented; a test through the real layer guards it.
    """
    return f"{LAYER_PREFIX}__group__{group(user_id)}"


class _Recipient(msgspec.Struct):
    recipient_id: str


class MessageHead(msgspec.Struct):
    """What an acknowledgement needs of a frame's ``message``."""

    conversation_id: str
    message_id: str
    statuses: list[_Recipient] = []

    def is_for(self, user_id: str) -> bool:
        """Whether the message was sent to this user: the sender's own devices, and members whom it does not concern,
        see it too, and their acknowledgement means nothing."""
        return any(each.recipient_id == user_id for each in self.statuses)


class FrameHead(msgspec.Struct):
    """The part of a frame that the gateway looks at. Only new messages have a ``message``."""

    epoch: str
    seq: int
    message: MessageHead | None = None


_head: Final = msgspec.json.Decoder(FrameHead)
_json: Final = msgspec.json.Encoder()


def head(frame: str) -> FrameHead:
    return _head.decode(frame)


def to_json(value: object) -> str:
    return _json.encode(value).decode()


def frame_tail(body: Mapping[str, object], *, at: str) -> bytes:
    """The frame from behind ``epoch`` and ``seq`` on: ``"type":…}``. ``at`` counts unless the body has one."""
    if RESERVED & body.keys():
        raise ValueError("a push must not bring an epoch or seq of its own")
    return _json.encode({"at": at, **body})[1:]
