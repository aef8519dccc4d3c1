"""Every adapter of `MessageStore`, each opened anew and empty; and the things that the suites put into them.

Another adapter is one more entry in STORES.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import connections

from chat4all_project.parts import database
from core.clock import SYSTEM_CLOCK, Clock
from core.ids import uuid7
from messaging.domain import Conversation, Message
from messaging.ports import MessageStore
from messaging.stores.cassandra import CassandraStore, replication, schema, setup
from messaging.stores.cassandra.address import Address
from messaging.stores.orm import OrmStore
from tests.stack.servers import needed

ROOT: Final = Path(__file__).resolve().parents[2]
ALICE, BOB, MALLORY = "user_alice", "user_bob", "user_mallory"
CARLA: Final = "whatsapp:+5511999998888"
NOON_MS: Final = 1_700_000_000_000


@contextmanager
def sqlite_alias(directory: Path, *, name: str = "store.sqlite3", **options: object) -> Iterator[str]:
    """A Django database alias for a fresh, migrated SQLite file with the settings that the product uses."""
    path = directory / name
    if not path.exists():
        shutil.copy(_migrated_sqlite(), path)
    with _alias("store_sqlite", NAME=str(path), options=options) as alias:
        yield alias


@contextmanager
def _alias(alias: str, *, options: dict[str, object], **config: object) -> Iterator[str]:
    base: dict[str, Any] = connections.settings["messages"]
    connections.settings[alias] = {**base, **config, "OPTIONS": {**base["OPTIONS"], **options}}
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


@cache
def _migrated_sqlite() -> Path:
    path = Path(tempfile.mkdtemp(prefix="chat4all-store-")) / "template.sqlite3"
    migrate("messages", messages_url=f"sqlite:///{path}", accounts_url="sqlite:///:memory:")
    return path


def migrate(*aliases: str, messages_url: str, accounts_url: str) -> None:
    """Bring these databases to the newest schema, in this order, in a process that has the product's settings."""
    code = (
        "import django, sys; django.setup(); from django.core.management import call_command; "
        "[call_command('migrate', database=alias, verbosity=0, skip_checks=True) for alias in sys.argv[1:]]"
    )
    with tempfile.TemporaryDirectory() as state:
        subprocess.run(
            [sys.executable, "-c", code, *aliases],
            cwd=ROOT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "chat4all_project.settings",
                "MESSAGES_DATABASE_URL": messages_url,
                "DATABASE_URL": accounts_url,
                "STATE_DIR": state,
            },
            check=True,
            timeout=100,
        )


@contextmanager
def orm_on_sqlite(directory: Path, clock: Clock = SYSTEM_CLOCK) -> Iterator[OrmStore]:
    with sqlite_alias(directory) as alias:
        yield OrmStore(alias, clock)


@contextmanager
def orm_on_postgres(_directory: Path) -> Iterator[OrmStore]:
    """On the database that TEST_POSTGRES_URL names, pooled as the product is; it is not emptied: ids are fresh in each
    test."""
    _migrated_postgres()
    base: dict[str, Any] = connections.settings["messages"]
    connections.settings["store_postgres"] = {**base, **database(needed("postgres"))}
    wrapper: Any = connections["store_postgres"]
    try:
        yield OrmStore("store_postgres")
    finally:
        connections["store_postgres"].close()
        wrapper.close_pool()
        del connections["store_postgres"]
        del connections.settings["store_postgres"]


@cache
def _migrated_postgres() -> None:
    migrate("messages", messages_url=needed("postgres"), accounts_url="sqlite:///:memory:")


@contextmanager
def on_cassandra(_directory: Path, clock: Clock = SYSTEM_CLOCK) -> Iterator[CassandraStore]:
    """In a keyspace that all runs with this schema share: ids are fresh in each test."""
    store = CassandraStore(cassandra_url(), timeout_s=10, clock=clock)  # a busy machine's disk may take seconds to sync
    try:
        yield store
    finally:
        store.close()


@cache
def cassandra_url() -> str:
    """Of a keyspace with our tables on the server that TEST_CASSANDRA_URL names."""
    url = f"{needed('cassandra').rstrip('/')}/contracts_{zlib.crc32(repr(schema.MIGRATIONS).encode()):08x}"
    make_keyspace(url)
    return url


def make_keyspace(url: str) -> None:
    simple = replication.Replication({replication.SIMPLE: 1})
    setup.SetUp(Address.parse(url), say=lambda _line: None, timeout_s=100).run(simple)


STORES: Final[dict[str, Callable[[Path], AbstractContextManager[MessageStore]]]] = {
    "orm-sqlite": orm_on_sqlite,
    "orm-postgres": orm_on_postgres,
    "cassandra": on_cassandra,
}
ON_SERVERS: Final = frozenset({"cassandra", "orm-postgres"})  # skipped where there is none, see `tests.stack.servers`


def a_conversation(*members: str, workspace_id: UUID | None = None, created_at_ms: int = NOON_MS) -> Conversation:
    conversation_id = uuid4()
    return Conversation(
        conversation_id=conversation_id,
        workspace_id=workspace_id or uuid4(),
        public_id=f"chat-{conversation_id.hex[:8]}",
        title="Lunch",
        members=members or (ALICE, BOB),
        created_by=ALICE,
        created_at_ms=created_at_ms,
    )


def a_message(conversation: Conversation | None = None, **fields: Any) -> Message:
    """Alice to all other members, with an id of now."""
    conversation = conversation or a_conversation()
    others = tuple(each for each in conversation.members if each != ALICE)
    defaults: dict[str, Any] = {
        "message_id": uuid7(),
        "workspace_id": conversation.workspace_id,
        "conversation_id": conversation.conversation_id,
        "conversation": conversation.public_id,
        "sender_id": ALICE,
        "recipient_id": None,
        "recipients": others,
        "audience": conversation.members,
        "content": "Olá, tudo bem? 🙂",
        "accepted_at_ms": NOON_MS,
    }
    return Message(**{**defaults, **fields})
