"""What only the ORM store promises: few statements, indexes, all or nothing, connections that survive."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connections, transaction
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoDbBlocker

from core.clock import ManualClock
from core.ids import uuid7
from messaging.domain import Message, RecipientStatus, Status, StatusChange
from messaging.errors import StoreUnavailable
from messaging.models import DeliveryClaim, IdempotencyKey
from messaging.ports import DeliveryKey, DeliveryOutcome, KeyState, ListCursor, MessageStore
from messaging.stores.orm import OrmStore
from messaging.stores.router import STORE_MODELS
from tests.contracts.message_stores import (
    ALICE,
    BOB,
    CARLA,
    ROOT,
    a_conversation,
    a_message,
    migrate,
    orm_on_sqlite,
    sqlite_alias,
)
from tests.contracts.test_message_store import a_ref

DAY_S = 24 * 3600


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock, django_db_blocker: DjangoDbBlocker) -> Iterator[OrmStore]:
    with django_db_blocker.unblock(), orm_on_sqlite(tmp_path, clock) as opened:
        yield opened


@contextmanager
def statements(at_most: int) -> Iterator[None]:
    """Statements other than BEGIN and COMMIT."""
    with CaptureQueriesContext(connections["store_sqlite"]) as captured:
        yield
    issued = [each["sql"] for each in captured if each["sql"].split()[0] not in ("BEGIN", "COMMIT")]
    assert 0 < len(issued) <= at_most, "\n".join(sql[:200] for sql in issued)


def plans(call: Callable[[], object]) -> list[str]:
    """How SQLite executes what the call reads."""
    connection = connections["store_sqlite"]
    with CaptureQueriesContext(connection) as captured:
        call()
    with connection.cursor() as cursor:
        details = []
        for query in captured.captured_queries:
            if query["sql"].startswith("SELECT"):
                cursor.execute("EXPLAIN QUERY PLAN " + query["sql"].replace("%", "%%"))
                details.append(" / ".join(row[3] for row in cursor.fetchall()))
    return details


def change(message: Message, status: Status, recipient: str = BOB) -> StatusChange:
    return StatusChange(
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        recipient=recipient,
        status=status,
        at_ms=message.accepted_at_ms + 1,
    )


class TestStatements:
    def test_a_batch_is_saved_with_few(self, store: OrmStore) -> None:
        conversations = [a_conversation(ALICE, BOB) for _ in range(20)]
        messages = [a_message(conversations[each % 20]) for each in range(100)]
        with statements(at_most=6):
            store.save_messages(messages)
        with statements(at_most=6):
            store.save_messages(messages)

    def test_a_batch_of_statuses_is_applied_with_few(self, store: OrmStore) -> None:
        messages = [a_message() for _ in range(100)]
        store.save_messages(messages[:50])
        for status in (Status.DELIVERED, Status.READ):
            with statements(at_most=5):
                store.apply_statuses([change(each, status) for each in messages])

    def test_deliveries_are_claimed_and_settled_with_few(self, store: OrmStore) -> None:
        keys = [DeliveryKey(uuid7(), CARLA) for _ in range(80)]
        with statements(at_most=2):
            store.claim_deliveries(keys, owner="a", now_ms=0, lease_ms=1000)
        with statements(at_most=2):
            store.settle_deliveries([DeliveryOutcome(key, external_id=str(key.message_id)) for key in keys], owner="a")

    def test_a_page_is_read_with_one_or_two(self, store: OrmStore) -> None:
        conversation = a_conversation(ALICE, BOB, CARLA)
        store.create_conversation(conversation)
        store.save_messages([a_message(conversation) for _ in range(60)])
        with statements(at_most=1):
            page = store.history(conversation.conversation_id, limit=50)
        with statements(at_most=1):
            store.statuses(page)
        with statements(at_most=3):
            store.conversations_of(ALICE, workspace_id=conversation.workspace_id, after=None, limit=50)


class TestIndexes:
    """Each page is a range of an index: no scan, and no sort of what was found."""

    def test_history_is_a_range(self, store: OrmStore) -> None:
        here = uuid4()
        for plan in plans(lambda: [store.history(here, limit=9), store.history(here, before=uuid7(), limit=9)]):
            assert "INDEX message_history (conversation_id=?" in plan
            assert "TEMP B-TREE" not in plan
        [plan] = plans(lambda: store.history(here, after=uuid7(), limit=9))
        assert "INDEX message_history (conversation_id=? AND message_id>?)" in plan
        assert "TEMP B-TREE" not in plan

    @pytest.mark.parametrize("after", [None, ListCursor(5, UUID(int=5))], ids=["first page", "next page"])
    def test_a_list_of_conversations_is_a_range(self, store: OrmStore, after: ListCursor | None) -> None:
        [page, *_] = plans(lambda: store.conversations_of(ALICE, workspace_id=uuid4(), after=after, limit=9))
        wanted = "(party=? AND workspace_id=? AND last_activity_ms<?)" if after else "(party=? AND workspace_id=?)"
        assert "INDEX membership_recent " + wanted in page
        assert "TEMP B-TREE" not in page

    def test_nothing_that_is_asked_often_scans_a_table(self, store: OrmStore) -> None:
        message, conversation = a_message(), a_conversation(ALICE)
        store.create_conversation(conversation)
        found = plans(
            lambda: (
                store.conversation(conversation.conversation_id),
                store.message(message.message_id),
                store.statuses([message]),
                store.transitions(message),
                store.apply_statuses([change(message, Status.READ)]),
                store.externals("whatsapp", "1", ["wamid.1"]).get("wamid.1"),
                store.contact(workspace_id=uuid4(), channel="instagram", account_id="1", address="2"),
                store.contact_by_handle(workspace_id=uuid4(), channel="instagram", account_id="1", handle="x"),
                store.claim_deliveries([DeliveryKey(uuid7(), CARLA)], owner="a", now_ms=0, lease_ms=1),
                store.due_scopes(topic="whatsapp-outbound", now_ms=0, limit=9),
                store.prune(limit=1_000),
            )
        )
        assert len(found) >= 12
        assert [plan for plan in found if "SCAN" in plan] == []


class TestAllOrNothing:
    def test_a_full_disk_in_the_middle_of_a_batch_leaves_nothing_of_it(self, store: OrmStore, tmp_path: Path) -> None:
        messages = [a_message(content="x" * 2000) for _ in range(200)]
        with connections["store_sqlite"].cursor() as cursor:
            pages = cursor.execute("PRAGMA page_count").fetchone()[0]
            cursor.execute(f"PRAGMA max_page_count={pages + 60}")  # room for a part of them
        with pytest.raises(StoreUnavailable, match="OperationalError"):
            store.save_messages(messages)
        assert counts(tmp_path) == {"message": 0, "messagestatus": 0, "statustransition": 0}
        store.close()  # a new connection has the room again
        store.save_messages(messages)
        assert counts(tmp_path) == {"message": 200, "messagestatus": 0, "statustransition": 0}  # SENT is not written

    def test_a_failure_late_in_a_batch_leaves_nothing_of_it(self, store: OrmStore, tmp_path: Path) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.create_conversation(conversation)
        with sqlite3.connect(tmp_path / "store.sqlite3") as database:
            for number, last in enumerate(("UPDATE ON messaging_membership", "UPDATE ON messaging_messagestatus")):
                database.execute(
                    f"CREATE TRIGGER broken_{number} BEFORE {last} BEGIN SELECT RAISE(ABORT, 'broken on purpose'); END"
                )
        message = a_message(conversation, accepted_at_ms=conversation.created_at_ms + 1)
        with pytest.raises(IntegrityError, match="broken on purpose"):
            store.save_messages([message])
        with pytest.raises(IntegrityError, match="broken on purpose"):
            store.apply_statuses([change(message, Status.READ)])
        assert counts(tmp_path) == {"message": 0, "messagestatus": 0, "statustransition": 0}

    def test_where_new_messages_stand_is_read_once_others_can_see_them(
        self, store: OrmStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who tells a status writes it and looks for the message then: one of the two has to see the other's."""
        told, others_see = store._told, list[int]()

        def looked(messages: Sequence[Message]) -> dict[tuple[UUID, str], RecipientStatus]:
            others_see.append(counts(tmp_path)["message"])
            store.apply_statuses([change(each, Status.READ) for each in messages])
            return told(messages)

        monkeypatch.setattr(store, "_told", looked)
        message = a_message()
        assert [each.status for each in store.save_messages([message]).statuses[message.message_id]] == [Status.READ]
        assert others_see == [1]

    @pytest.mark.faults
    def test_a_process_killed_within_a_batch_leaves_nothing_of_it(self, store: OrmStore, tmp_path: Path) -> None:
        whole, cut = uuid7(), uuid7()
        child = run_python(
            f"""
            store.save_messages([a_message(message_id=UUID("{whole}"))])
            with transaction.atomic(using="messages"):
                store.save_messages([a_message(message_id=UUID("{cut}"))])
                assert store.message(UUID("{cut}"))
                print("written", flush=True)
                sys.stdin.read()  # until killed
            """,
            tmp_path / "store.sqlite3",
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
        assert child.returncode == -signal.SIGKILL
        assert store.message(whole) is not None
        assert store.message(cut) is None
        assert counts(tmp_path) == {"message": 1, "messagestatus": 0, "statustransition": 0}
        store.save_messages([a_message(message_id=cut)])  # no lock is left either
        assert store.message(cut) is not None


class TestProcesses:
    def test_of_claims_by_processes_at_once_exactly_one_is_new(self, store: OrmStore, tmp_path: Path) -> None:
        workspace_id = uuid4()
        children = [
            run_python(
                f"""
                print("ready", flush=True)
                sys.stdin.readline()
                for key in range(30):
                    claim = store.claim_key(workspace_id=UUID("{workspace_id}"), sender_id="user_alice", key=str(key),
                        body_hash="h", message_id=uuid7(), now_ms=1000, lease_ms=6000)
                    print(claim.state.value, claim.message_id, flush=True)
                """,
                tmp_path / "store.sqlite3",
            )
            for _ in range(2)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        answers = [child.communicate(timeout=60)[0].split("\n")[:30] for child in children]
        for one, other in zip(*answers, strict=True):
            assert {one.split()[0], other.split()[0]} == {KeyState.NEW, KeyState.RUNNING}
            assert one.split()[1] == other.split()[1]

    def test_a_store_that_was_used_before_a_fork_works_on_both_sides(self, store: OrmStore) -> None:
        before, by_child, after = a_message(), a_message(), a_message()
        store.save_messages([before])
        inherited = connections["store_sqlite"].connection
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child reports by its exit code only
            code = 1
            try:
                store.save_messages([by_child])
                own = connections["store_sqlite"].connection is not inherited
                code = 0 if own and store.message(before.message_id) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert connections["store_sqlite"].connection is inherited
        store.save_messages([after])
        assert store.message(by_child.message_id) == by_child


class TestUnavailable:
    def test_a_locked_database_is_unavailable_until_it_is_free(
        self, tmp_path: Path, django_db_blocker: DjangoDbBlocker
    ) -> None:
        message = a_message()
        with django_db_blocker.unblock(), sqlite_alias(tmp_path, timeout=0.05) as alias:
            store = OrmStore(alias)
            other = sqlite3.connect(tmp_path / "store.sqlite3", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            for write in (
                lambda: store.save_messages([message]),
                lambda: store.apply_statuses([change(message, Status.READ)]),
                lambda: store.remove_member(message.conversation_id, BOB),
                lambda: store.settle_key(workspace_id=uuid4(), sender_id=ALICE, key="k"),
                lambda: store.claim_deliveries([DeliveryKey(uuid7(), CARLA)], owner="a", now_ms=0, lease_ms=1),
            ):
                with pytest.raises(StoreUnavailable):
                    write()
            assert store.message(message.message_id) is None  # reading goes on
            store.ping()
            other.execute("ROLLBACK")
            other.close()
            store.save_messages([message])
            assert store.message(message.message_id) == message

    def test_a_missing_table_is_named_with_its_remedy(self, tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> None:
        sqlite3.connect(tmp_path / "store.sqlite3").close()
        with django_db_blocker.unblock(), sqlite_alias(tmp_path) as alias:
            with pytest.raises(StoreUnavailable, match=r"manage\.py migrate --database store_sqlite"):
                OrmStore(alias).ping()
            with pytest.raises(StoreUnavailable):
                OrmStore(alias).message(uuid7())

    def test_a_file_that_cannot_be_opened_is_unavailable_and_says_no_more_than_its_kind(
        self, tmp_path: Path, django_db_blocker: DjangoDbBlocker
    ) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        with django_db_blocker.unblock(), sqlite_alias(gone) as alias:
            shutil.rmtree(gone)
            with pytest.raises(StoreUnavailable) as caught:
                OrmStore(alias).save_messages([a_message(content="a secret")])
        assert caught.value.detail == "The database 'store_sqlite' failed: OperationalError"

    def test_a_database_that_does_not_answer_in_time_fails_the_ping(
        self, tmp_path: Path, django_db_blocker: DjangoDbBlocker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("messaging.stores.orm.PING_TIMEOUT_S", 0.1)
        with django_db_blocker.unblock(), sqlite_alias(tmp_path, timeout=1) as alias:
            other = sqlite3.connect(tmp_path / "store.sqlite3", isolation_level=None)
            other.execute("PRAGMA locking_mode=EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            other.execute("DELETE FROM messaging_parkedscope")
            other.execute("COMMIT")
            with pytest.raises(StoreUnavailable, match=r"TimeoutError|OperationalError"):
                OrmStore(alias).ping()
            other.close()

    @pytest.mark.skipif("TEST_POSTGRES_URL" not in os.environ, reason="TEST_POSTGRES_URL names no PostgreSQL")
    def test_a_connection_that_postgres_dropped_is_replaced(
        self, tmp_path: Path, django_db_blocker: DjangoDbBlocker
    ) -> None:
        from tests.contracts.message_stores import orm_on_postgres

        with django_db_blocker.unblock(), orm_on_postgres(tmp_path) as store:
            message = a_message()
            store.save_messages([message])
            with connections["store_postgres"].cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                [backend] = cursor.fetchone()
            subprocess.run(
                ["psql", os.environ["TEST_POSTGRES_URL"], "-qc", f"SELECT pg_terminate_backend({backend}, 5000)"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            assert store.message(message.message_id) == message


class TestPruning:
    def test_what_expired_goes_and_what_may_be_needed_stays(self, store: OrmStore, clock: ManualClock) -> None:
        old_key, old_claim = claim_key(store, clock), claim_delivery(store, clock)
        clock.advance(13.5 * DAY_S)
        young_claim = claim_delivery(store, clock)
        clock.advance(0.5 * DAY_S)
        young_key = claim_key(store, clock)
        assert store.prune(limit=1_000) == 2
        assert [row.key for row in IdempotencyKey.objects.using("store_sqlite")] == [young_key]
        assert [row.message_id for row in DeliveryClaim.objects.using("store_sqlite")] == [young_claim.message_id]
        assert (old_key, old_claim) != (young_key, young_claim)
        assert store.prune(limit=1_000) == 0

    def test_a_claim_lives_from_when_it_was_settled(self, store: OrmStore, clock: ManualClock) -> None:
        key = claim_delivery(store, clock)
        clock.advance(10 * DAY_S)
        store.settle_deliveries([DeliveryOutcome(key, external_id="wamid.1")], owner="a")
        clock.advance(10 * DAY_S)
        assert store.prune(limit=1_000) == 0

    def test_a_round_is_bounded_and_takes_the_oldest(self, store: OrmStore, clock: ManualClock) -> None:
        keys = []
        for _ in range(5):
            keys.append(claim_key(store, clock))
            clock.advance(1)
        clock.advance(DAY_S)
        assert store.prune(limit=2) == 2
        assert {row.key for row in IdempotencyKey.objects.using("store_sqlite")} == set(keys[2:])

    @pytest.mark.django_db(databases=["default", "messages"])
    def test_the_command_prunes_until_nothing_is_left(self) -> None:
        store, then = OrmStore("messages"), ManualClock(1_000)
        for _ in range(5):
            claim_key(store, then)
            claim_delivery(store, then)
        out = StringIO()
        call_command("prune_store", batch=2, stdout=out)
        assert out.getvalue() == "deleted 10 rows\n"
        assert not IdempotencyKey.objects.exists()
        assert not DeliveryClaim.objects.exists()


def test_the_store_is_a_message_store(store: OrmStore) -> None:
    port: MessageStore = store  # for mypy
    assert {name for name in vars(MessageStore) if not name.startswith("_")} <= set(dir(port))


def test_an_external_id_from_before_attempts_were_kept_is_of_the_first(store: OrmStore) -> None:
    ref = a_ref()
    columns = asdict(ref) | {name: getattr(ref, name).hex for name in ("message_id", "conversation_id")}
    del columns["attempt"]
    with connections["store_sqlite"].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO messaging_externalid ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})",
            list(columns.values()),
        )
    assert store.externals(ref.channel, ref.account_id, [ref.external_id]) == {ref.external_id: ref}


def test_nested_in_a_transaction_that_rolls_back_nothing_is_kept(store: OrmStore) -> None:
    message = a_message()
    with transaction.atomic(using="store_sqlite"):
        store.save_messages([message])
        transaction.set_rollback(True, using="store_sqlite")
    assert store.message(message.message_id) is None


def test_migrated_apart_each_database_has_its_own_tables(tmp_path: Path) -> None:
    accounts, messages = tmp_path / "accounts.sqlite3", tmp_path / "messages.sqlite3"
    migrate("default", "messages", messages_url=f"sqlite:///{messages}", accounts_url=f"sqlite:///{accounts}")
    store_tables = {f"messaging_{name}" for name in STORE_MODELS}
    assert tables(messages) == store_tables | {"django_migrations"}
    assert {"messaging_channelaccount", "accounts_user"} <= tables(accounts)
    assert not tables(accounts) & store_tables


@pytest.mark.parametrize("order", [("default", "messages"), ("messages", "default")])
def test_migrated_into_one_database_every_table_is_made(tmp_path: Path, order: tuple[str, str]) -> None:
    url = f"sqlite:///{tmp_path / 'one.sqlite3'}"
    migrate(*order, messages_url=url, accounts_url=url)
    expected = {f"messaging_{name}" for name in STORE_MODELS} | {"messaging_channelaccount", "accounts_user"}
    assert expected <= tables(tmp_path / "one.sqlite3")


# --- what the tests say in short ---------------------------------------------------------------------------------


def counts(directory: Path) -> dict[str, int]:
    """As another process sees the file."""
    with sqlite3.connect(directory / "store.sqlite3") as database:
        return {
            name: database.execute(f"SELECT count(*) FROM messaging_{name}").fetchone()[0]
            for name in ("message", "messagestatus", "statustransition")
        }


def run_python(code: str, database: Path) -> subprocess.Popen[str]:
    """A process of its own with ``store`` on that file."""
    prelude = """
        import sys
        from uuid import UUID
        import django
        django.setup()
        from django.db import transaction
        from core.ids import uuid7
        from messaging.stores.orm import OrmStore
        from tests.contracts.message_stores import a_message
        store = OrmStore("messages")
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "chat4all_project.settings",
            "MESSAGES_DATABASE_URL": f"sqlite:///{database}",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def claim_key(store: OrmStore, clock: ManualClock) -> str:
    key = uuid4().hex
    store.claim_key(
        workspace_id=uuid4(),
        sender_id=ALICE,
        key=key,
        body_hash="h",
        message_id=uuid7(),
        now_ms=clock.now_ms(),
        lease_ms=6000,
    )
    return key


def claim_delivery(store: OrmStore, clock: ManualClock) -> DeliveryKey:
    key = DeliveryKey(uuid7(), CARLA)
    store.claim_deliveries([key], owner="a", now_ms=clock.now_ms(), lease_ms=1000)
    return key


def tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as database:
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {name for (name,) in found}
