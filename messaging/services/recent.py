"""Messages that a process met lately. A message never changes, and its receipts come soon after it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Final
from uuid import UUID

from core.cache import TtlCache
from messaging.domain import Message
from messaging.ports import MessageStore

KEPT_S: Final = 600.0
KEPT: Final = 10_000  # messages without their content: about a kilobyte each
FEW: Final = 16  # recipients and members: a message to more is looked up


class RecentMessages:
    """Thread-safe; what it does not know is asked of the store. Contents are not kept: nobody asks for them here."""

    def __init__(self) -> None:
        self._known: TtlCache[UUID, Message] = TtlCache(ttl_s=KEPT_S, size=KEPT)

    def remember(self, messages: Iterable[Message]) -> None:
        """These are stored."""
        for message in messages:
            if len(message.recipients) + len(message.audience) <= FEW:
                self._known.put(message.message_id, replace(message, content=""))

    def get(self, message_ids: Collection[UUID], store: MessageStore) -> dict[UUID, Message]:
        """Those that are stored, perhaps without their contents. Raises StoreUnavailable."""
        found = {each: message for each in message_ids if (message := self._known.get(each))}
        if missing := [each for each in message_ids if each not in found]:
            stored = store.messages(missing)
            self.remember(stored.values())
            found |= stored
        return found
