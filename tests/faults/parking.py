"""What a system sets apart to send again later, as its message store has it: the API does not tell."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import Any, Final
from uuid import UUID

from django.test import override_settings

from demo.supervisor import LocalSystem
from messaging import topics, wiring
from messaging.ports import MessageStore, ParkScope, TopicPartition

FAR_MS: Final = 2**62  # later than whatever is due
MOST: Final = 10_000  # records of one conversation


class Parking:
    """Connects on first use; may be asked from any thread. Raises Unavailable while nobody can tell."""

    def __init__(self, system: LocalSystem, channels: tuple[str, ...]) -> None:
        self._system = system
        self._topics = [topics.outbound(each) for each in channels]
        self._url = system.env.get("MESSAGE_STORE_URL")
        self._store: MessageStore | None = None
        self._opening = threading.Lock()

    def is_empty(self) -> bool:
        if self._url is None:
            return not self._ask_sqlite("SELECT 1 FROM messaging_parkedscope LIMIT 1")
        store = self._opened(self._url)
        return not any(store.due_scopes(topic=each, now_ms=FAR_MS, limit=1) for each in self._topics)

    def holds(self, conversation_id: UUID, source: TopicPartition, offset: int) -> bool:
        """Whether this record of an outbound topic waits here."""
        if self._url is None:
            where = "source_topic = ? AND partition = ? AND offset = ?"
            place = source.topic, source.partition, offset
            return bool(self._ask_sqlite(f"SELECT 1 FROM messaging_parkedrecord WHERE {where}", *place))
        held = self._opened(self._url).parked(ParkScope(source.topic, conversation_id), limit=MOST)
        return (source, offset) in {(each.source, each.offset) for each in held}

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _opened(self, url: str) -> MessageStore:
        with self._opening:
            if self._store is None:
                with override_settings(MESSAGE_STORE_URL=url):
                    self._store = wiring.message_store.__wrapped__()
            return self._store

    def _ask_sqlite(self, query: str, *values: Any) -> Any:
        """Aside from Django, whose settings name another file."""
        database = self._system.state_dir / "messages.sqlite3"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as opened:
            return opened.execute(query, values).fetchone()
