"""What a process met lately and never changes: messages, and what platforms call them. Receipts come soon after."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Final
from uuid import UUID

from core.cache import TtlCache
from messaging.domain import ExternalRef, Message, Reference
from messaging.ports import MessageStore

KEPT_S: Final = 600.0
KEPT: Final = 10_000  # messages without their content: about a kilobyte each
FEW: Final = 16  # recipients and members: a message to more is looked up


Place = tuple[str, str]  # channel, account id


class RecentReferences:
    """Thread-safe. What an id means never changes, so what was read of it once need not be read again.

    ``hinted`` tells of those that were stored a moment ago, perhaps by another process.
    """

    def __init__(self, hinted: Callable[[Collection[Reference]], Iterable[ExternalRef]] = lambda _: ()) -> None:
        self._hinted = hinted
        self._known: TtlCache[Reference, ExternalRef] = TtlCache(ttl_s=KEPT_S, size=KEPT)

    def get(self, wanted: Collection[Reference], store: MessageStore) -> dict[Reference, ExternalRef]:
        """Those that are recorded. Raises StoreUnavailable."""
        found = self._known.known(wanted)
        found |= self._kept(self._hinted([each for each in wanted if each not in found]))
        missing: dict[Place, list[str]] = {}
        for channel, account_id, external_id in wanted:
            if (channel, account_id, external_id) not in found:
                missing.setdefault((channel, account_id), []).append(external_id)
        for place, external_ids in missing.items():
            found |= self._kept(store.externals(*place, external_ids).values())
        return found

    def _kept(self, refs: Iterable[ExternalRef]) -> dict[Reference, ExternalRef]:
        kept = {ref.reference: ref for ref in refs}
        for reference, ref in kept.items():
            self._known.put(reference, ref)
        return kept


class RecentMessages:
    """Thread-safe; what it does not know is asked of the store. Contents are not kept: nobody asks for them here.

    ``hinted`` tells of messages that were accepted a moment ago, perhaps in another process: of those a worker gets
    receipts that its neighbour has stored.
    """

    def __init__(self, hinted: Callable[[Collection[UUID]], Iterable[Message]] = lambda _: ()) -> None:
        self._hinted = hinted
        self._known: TtlCache[UUID, Message] = TtlCache(ttl_s=KEPT_S, size=KEPT)

    def remember(self, messages: Iterable[Message]) -> None:
        """These are stored."""
        for message in messages:
            if len(message.recipients) + len(message.audience) <= FEW:
                self._known.put(message.message_id, replace(message, content=""))

    def get(self, message_ids: Collection[UUID], store: MessageStore) -> dict[UUID, Message]:
        """Those that are stored, or about to be, perhaps without their contents. Raises StoreUnavailable."""
        found = self._known.known(message_ids)
        if missing := [each for each in message_ids if each not in found]:
            # Of one to several it must be known where it stands for each, which nobody knows before it is stored.
            hinted = [message for message in self._hinted(missing) if len(message.recipients) == 1]
            self.remember(hinted)
            found |= {message.message_id: message for message in hinted}
        if missing := [each for each in message_ids if each not in found]:
            stored = store.messages(missing)
            self.remember(stored.values())
            found |= stored
        return found
