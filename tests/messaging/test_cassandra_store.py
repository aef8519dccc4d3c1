"""What only the Cassandra store promises: queries that name their partition, write times, sessions that survive."""

from __future__ import annotations

import importlib
import itertools
import os
import random
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from cassandra import AuthenticationFailed, InvalidRequest, OperationTimedOut
from cassandra.cluster import NoHostAvailable
from cassandra.io import libevreactor
from cassandra.query import BatchStatement, BatchType, BoundStatement
from django.core.management import CommandError, call_command
from pytest_django import DjangoDbBlocker, Settings

from core.clock import ManualClock
from core.ids import uuid7, uuid7_us
from demo.ports import free_ports
from messaging.domain import Contact, Conversation, Message, Status, StatusChange, sent
from messaging.errors import StoreUnavailable
from messaging.ports import (
    DeliveryKey,
    DeliveryOutcome,
    DeliveryState,
    KeyState,
    ParkedRecord,
    ParkScope,
    TopicPartition,
)
from messaging.stores.cassandra import CassandraStore, keys, messages, parking, people, schema
from messaging.stores.cassandra import session as sessions
from messaging.stores.cassandra import store as stores
from messaging.stores.cassandra.address import Address
from messaging.stores.cassandra.claims import SELECT_CLAIM
from messaging.stores.cassandra.session import PACK_BYTES, Call, Database, Mutation, gathered, packed
from tests.bounds import once_within, refused_s
from tests.contracts.message_stores import (
    ALICE,
    BOB,
    CARLA,
    MALLORY,
    NOON_MS,
    a_conversation,
    a_message,
    cassandra_url,
    make_keyspace,
    on_cassandra,
)
from tests.contracts.test_message_store import a_ref, at_once
from tests.stack.cassandra import Cassandra
from tests.stack.servers import needed
from tests.town import eventually

pytestmark = pytest.mark.cluster

CONCERNS = ("conversations", "messages", "people", "claims", "parking", "setup", "schema")
VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE")


@pytest.fixture
def store(tmp_path: Any, django_db_blocker: DjangoDbBlocker) -> Iterator[CassandraStore]:
    with django_db_blocker.unblock(), on_cassandra(tmp_path) as opened:
        yield opened


@pytest.fixture
def raw() -> Iterator[Call]:
    """The same keyspace without the store."""
    database = Database(Address.parse(cassandra_url()), timeout_s=10)
    with database.call(60) as call:
        yield call
    database.close()


@contextmanager
def opened(url: str, **options: Any) -> Iterator[CassandraStore]:
    store = CassandraStore(url, **options)
    try:
        yield store
    finally:
        store.close()


def change(message: Message, status: Status, **fields: Any) -> StatusChange:
    known = {"message_id": message.message_id, "conversation_id": message.conversation_id, "recipient": BOB}
    return StatusChange(**{**known, "status": status, "at_ms": message.accepted_at_ms + 1, **fields})


OF_SEVERAL = {"parking.SELECT_DUE"}  # partitions, all of them named: eight, once a second


def statements() -> dict[str, str]:
    """Every CQL constant of the adapter, by name."""
    return {
        f"{name}.{constant}": cql
        for name in CONCERNS
        for constant, cql in vars(importlib.import_module(f"messaging.stores.cassandra.{name}")).items()
        if isinstance(cql, str) and cql.startswith(VERBS) and " ks." in cql and not constant.startswith("_")
    }


class TestStatements:
    def test_each_names_its_partition_and_none_filters(self, raw: Call) -> None:
        named = statements()
        assert len(named) > 45
        for name, cql in named.items():
            assert "ALLOW FILTERING" not in cql, name
            of_one = sessions.Lookup(cql, []).of_one if sessions.is_lookup(cql) else cql
            assert raw._prepared(cql)
            whole = raw._prepared(of_one).routing_key_indexes or name in OF_SEVERAL
            assert whole, f"{name} does not name its whole partition"

    def test_there_are_no_counters_and_no_indexes(self, raw: Call) -> None:
        keyspace = Address.parse(cassandra_url()).keyspace
        for catalogue in ("indexes", "views"):
            assert raw.execute(f"SELECT * FROM system_schema.{catalogue} WHERE keyspace_name = '{keyspace}'") == []
        columns = raw.execute(f"SELECT type FROM system_schema.columns WHERE keyspace_name = '{keyspace}'")
        assert columns
        assert "counter" not in {row["type"] for row in columns}

    def test_what_competes_is_written_at_the_time_of_its_values_never_of_the_clock(
        self, store: CassandraStore, raw: Call
    ) -> None:
        message = a_message()
        store.save_messages([message])
        for status in (Status.FAILED, Status.DELIVERED, Status.READ):
            store.apply_statuses([change(message, status)])
            [row] = raw.rows(
                "SELECT writetime(standing) AS us FROM ks.message_statuses WHERE conversation_id = ? AND day = ?"
                " AND message_id = ?",
                message.conversation_id,
                uuid7_us(message.message_id) // 86_400_000_000,
                message.message_id,
            )
            assert row["us"] == uuid7_us(message.message_id) + change(message, status).rank
        [row] = raw.rows(
            "SELECT writetime(last_activity_ms) AS us FROM ks.conversation_activity WHERE conversation_id = ?",
            message.conversation_id,
        )
        assert row["us"] == message.accepted_at_ms * 1000

    def test_a_light_weight_row_is_written_by_nothing_else(self) -> None:
        conditional = ("conversations", "external_ids", "idempotency_keys", "delivery_claims", "parked_scopes")
        by_us = {"people.NOTE_REF"}  # what a platform calls a message of ours: another row than any that is claimed
        for name, cql in statements().items():
            if (
                name not in by_us
                and not cql.startswith("SELECT")
                and any(f"ks.{table} " in cql for table in conditional)
            ):
                assert " IF " in cql, name

    def test_a_batch_of_one_conversation_takes_a_handful(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.create_conversation(conversation)
        messages = [a_message(conversation) for _ in range(100)]
        ran = requests_of(monkeypatch)
        store.save_messages(messages)
        # Read what is stored; 100 places, ten at a time; statuses; messages; the activity; members; two lists.
        assert sum(map(sum, ran)) <= 10 + 8, ran
        ran.clear()
        store.apply_statuses([change(each, Status.READ) for each in messages])
        assert sum(map(sum, ran)) <= 6, ran

    def test_what_is_looked_up_of_twenty_conversations_takes_two_requests(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace_id = uuid4()
        conversations = [a_conversation(ALICE, BOB, workspace_id=workspace_id) for _ in range(20)]
        for each in conversations:
            store.create_conversation(each)
        messages = [a_message(each, message_id=id_at(NOON_MS + n)) for n, each in enumerate(conversations)]
        ran = requests_of(monkeypatch)
        store.save_messages(messages)
        assert [asked for asked, _ in ran] == [2, 2, 2]  # what is stored, who is a member, where they stand
        assert ran[2][1] == 2  # the lists of two users, of 20 rows each
        ran.clear()
        store.apply_statuses([change(each, Status.READ) for each in messages])
        assert [asked for asked, _ in ran] == [2, 0]
        ran.clear()
        store.parked_scopes([ParkScope("whatsapp-outbound", each.conversation_id) for each in conversations])
        assert ran == [(2, 0)]
        ran.clear()
        listed = store.conversations_of(BOB, workspace_id=workspace_id, after=None, limit=20)
        assert len(listed) == 20
        assert ran == [(1, 0), (4, 0)]  # of the list; when they were active, beside what they are


def requests_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many questions and how many others go out from now on, wait by wait."""
    ran: list[tuple[int, int]] = []
    run = Call._run

    def counted(call: Call, bound: Any) -> list[Any]:
        listed = list(bound)
        bare = [each.prepared_statement.query_string for each in listed if isinstance(each, BoundStatement)]
        asked = sum(cql.startswith("SELECT") for cql in bare)
        ran.extend([(asked, len(listed) - asked)] if listed else [])
        return run(call, listed)

    monkeypatch.setattr(Call, "_run", counted)
    return ran


class TestPacks:
    """What travels in one request; `raw` is there for its driver."""

    def test_small_ones_go_together_by_their_replicas_and_large_ones_alone(self, raw: Call) -> None:
        mutations = [_places(raw, number, size=100) for number in range(25)]
        large = _places(raw, 25, size=PACK_BYTES + 1)
        homes = {id(each.statements[0]): number % 2 for number, each in enumerate(mutations)}
        sent = list(packed([*mutations[:5], large, *mutations[5:]], lambda each: homes[id(each)]))
        batches = [each for each in sent if isinstance(each, BatchStatement)]
        assert [len(each._statements_and_parameters) for each in batches] == [10, 10, 3, 2]
        assert {each.batch_type for each in batches} == {BatchType.UNLOGGED}
        assert [each for each in sent if each not in batches] == large.statements

    def test_a_pack_stays_below_what_a_server_warns_of(self, raw: Call) -> None:
        mutations = [_places(raw, number, size=PACK_BYTES // 3) for number in range(7)]
        sent = list(packed(mutations, lambda each: 0))
        assert [len(getattr(each, "_statements_and_parameters", "1")) for each in sent] == [3, 3, 1]
        assert list(packed([], lambda each: 0)) == []

    def test_what_a_large_group_s_message_takes_is_counted(self, raw: Call) -> None:
        """A server refuses 50 KiB of several partitions; the ids of 256 members are 20 of it."""
        members = tuple(f"user_{uuid4().hex}" for _ in range(256))
        [alone] = raw._mutations(messages._insert(a_message(recipients=members, audience=members)))
        assert alone.size > 256 * 37 * 2
        assert len(list(packed([alone, alone], raw._replicas))) == 2
        [small] = raw._mutations(messages._insert(a_message(content="")))
        [longer] = raw._mutations(messages._insert(a_message(content="漢" * 100)))
        assert 295 < longer.size - small.size < 305

    def test_the_driver_knows_whose_they_are(self, raw: Call) -> None:
        """Of one node all are the same, and never nobody's, as they would be in a keyspace that it does not know."""
        assert {raw._replicas(_places(raw, number, size=100).statements[0]) for number in range(50)} == {
            frozenset(host.host_id for host in raw.cluster.metadata.all_hosts())
        }


class TestLookups:
    """What is asked in one request."""

    def test_partitions_go_together_by_their_replicas_ten_at_a_time(self) -> None:
        asked = [((number,), number % 2) for number in range(25)]
        packs = [[values[0] for values, _ in pack] for pack in gathered(asked, lambda home: home)]
        assert packs == [list(range(0, 20, 2)), list(range(1, 21, 2)), [20, 22, 24], [21, 23]]
        assert list(gathered([], lambda home: home)) == []

    def test_what_differs_in_more_than_its_partition_is_asked_apart(self) -> None:
        asked: list[tuple[list[Any], int]] = [([number, number % 3, [number]], 0) for number in range(9)]
        packs = [[values[0] for values, _ in pack] for pack in gathered(asked, lambda _: 0)]
        assert packs == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]

    @pytest.mark.parametrize(("rows", "sizes"), [(1, [10, 10, 5]), (5, [4] * 6 + [1]), (60, [1] * 25), (200, [1] * 25)])
    def test_no_more_rows_are_sought_than_a_server_finds_at_once(self, rows: int, sizes: list[int]) -> None:
        asked: list[tuple[list[Any], int]] = [([number, [0] * rows], 0) for number in range(25)]
        assert [len(pack) for pack in gathered(asked, lambda _: 0)] == sizes

    def test_each_partition_s_rows_are_found_with_what_is_not_there(
        self, store: CassandraStore, raw: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        some = [a_message(a_conversation(ALICE, BOB)) for _ in range(23)]
        store.save_messages(some)
        asked: list[list[Any]] = []
        run = Call._run

        def noted(call: Call, statements: Iterable[Any]) -> list[Any]:
            asked.append(list(statements))
            return run(call, asked[-1])

        monkeypatch.setattr(Call, "_run", noted)
        assert store.messages([*(each.message_id for each in some), *(uuid7() for _ in range(3))]) == {
            each.message_id: each for each in some
        }
        assert [len(each) for each in asked] == [3, 3]  # 26 places, 23 conversations
        # Each by a node that has it: of an IN the driver itself knows none.
        keys = [statement.values[0] for statement in asked[0]]
        assert all(each.routing_key and each.keyspace for wait in asked for each in wait)
        assert all(statement.routing_key in key for statement, key in zip(asked[0], keys, strict=True))
        assert {each.fetch_size for wait in asked for each in wait} == {None}  # a server that pages reads one by one
        bare = raw._prepared(sessions.Lookup(messages.SELECT_SOME, []).of_one)
        for statement in asked[1]:
            first, bucket, ids = statement.raw_values
            values = (first[0] if isinstance(first, list) else first, bucket, ids)
            assert statement.routing_key == bare.bind(values).routing_key

    def test_one_partition_is_asked_as_ever(self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch) -> None:
        message = a_message(a_conversation(ALICE, BOB))
        store.save_messages([message])
        asked: list[Any] = []
        run = Call._run

        def noted(call: Call, statements: Iterable[Any]) -> list[Any]:
            asked.extend(listed := list(statements))
            return run(call, listed)

        monkeypatch.setattr(Call, "_run", noted)
        assert list(store.messages([message.message_id])) == [message.message_id]
        assert store.messages([uuid7()]) == {}
        assert [type(each) for each in asked] == [BoundStatement] * 3

    def test_a_long_answer_of_several_partitions_is_whole(self, store: CassandraStore, raw: Call) -> None:
        """However short a server's pages are: what is asked together comes in one."""
        group = tuple(f"user_{number:03}" for number in range(120))
        some = [a_message(a_conversation(ALICE, *group), recipients=group, audience=group) for _ in range(5)]
        store.apply_statuses([change(each, Status.READ, recipient=user) for each in some for user in group])
        raw._session.default_fetch_size = 30
        wanted = [(each.conversation_id, keys.day(each.message_id), [each.message_id]) for each in some]
        assert len(raw.found(messages.SELECT_STATUSES, wanted)) == 5 * 120

    def test_what_is_no_look_up_is_refused(self) -> None:
        for cql in (messages.SELECT_NEWEST, people.SELECT_CONTACTS):
            with pytest.raises(ValueError, match="no look-up"):
                sessions.Lookup(cql, [])

    def test_ids_that_platforms_give_twice_are_told_apart(self, store: CassandraStore) -> None:
        """The same id on two accounts, and on two channels."""
        refs = [
            replace(a_ref(), channel=channel, account_id=account, external_id=f"same-{number}")
            for channel in ("whatsapp", "instagram")
            for account in (f"one-{uuid4().hex}", f"two-{uuid4().hex}")
            for number in range(3)
        ]
        assert store.claim_externals(refs) == refs
        again = [replace(each, message_id=uuid7()) for each in refs]
        assert store.claim_externals(again) == refs
        for ref in refs:
            here = [each for each in refs if (each.channel, each.account_id) == (ref.channel, ref.account_id)]
            asked = [each.external_id for each in refs]
            assert store.externals(ref.channel, ref.account_id, asked) == {each.external_id: each for each in here}


def _places(raw: Call, number: int, *, size: int) -> Mutation:
    """A mutation of a row of its own."""
    values = (UUID(int=number), uuid4(), 1)
    return Mutation([raw._prepared(messages.INSERT_PLACE).bind(values)], size)


class TestHistories:
    def test_a_page_reaches_over_as_many_periods_as_it_needs_both_ways(self, store: CassandraStore) -> None:
        conversation = a_conversation()
        messages = [a_message(conversation, message_id=id_at(NOON_MS + int(days * 86_400_000))) for days in spread()]
        store.save_messages(random.Random(3).sample(messages, len(messages)))
        newest_first = messages[::-1]
        here = conversation.conversation_id
        assert store.history(here, limit=500) == newest_first
        seen: list[Message] = []
        while page := store.history(here, before=seen[-1].message_id if seen else None, limit=7):
            seen += page
        assert seen == newest_first
        seen = [messages[0]]
        while page := store.history(here, after=seen[-1].message_id, limit=7):
            seen += page
        assert seen == messages

    def test_members_of_more_buckets_than_are_listed_at_once_are_all_found(self, store: CassandraStore) -> None:
        conversation = a_conversation()
        messages = [a_message(conversation, message_id=id_at(NOON_MS + n * 11 * 86_400_000)) for n in range(150)]
        store.save_messages(messages)
        assert store.history(conversation.conversation_id, limit=200) == messages[::-1]
        assert store.history(conversation.conversation_id, after=messages[0].message_id, limit=200) == messages[1:]


class TestCompeting:
    def test_equal_ranks_told_at_once_end_at_the_earlier_for_everybody(self, store: CassandraStore) -> None:
        for _ in range(20):
            message = a_message()
            store.save_messages([message])
            early, late = (change(message, Status.DELIVERED, at_ms=NOON_MS + ms) for ms in (5, 9))
            at_once(*(partial(store.apply_statuses, [each]) for each in (late, early)))
            [stands] = store.statuses([message])[message.message_id]
            [_, told] = store.transitions(message)
            assert stands.at_ms in (early.at_ms, late.at_ms)
            assert told.change.at_ms == stands.at_ms
            assert store.apply_statuses([late, early]) == [stands, stands]

    def test_two_writers_that_saw_nothing_leave_the_earlier_report(self, store: CassandraStore, raw: Call) -> None:
        """The race itself, one write after the other as Cassandra gets them, in both orders."""
        from messaging.stores.cassandra.messages import _status, _transition

        for order in ((5, 9), (9, 5)):
            message = a_message()
            for ms in order:
                told = change(message, Status.DELIVERED, at_ms=NOON_MS + ms)
                raw.write([_status(told), _transition(told)])
            assert [each.at_ms for each in store.statuses([message])[message.message_id]] == [NOON_MS + 5]
            [_, line] = store.transitions(message)
            assert line.change.at_ms == NOON_MS + 5

    @pytest.mark.parametrize("every", [1, 2], ids=["no answer comes", "every other answer comes"])
    def test_a_transaction_whose_answer_is_lost_is_looked_up(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch, every: int
    ) -> None:
        monkeypatch.setattr(Call, "_outcomes", losing(every))
        for _ in range(5):
            conversation, scope = a_conversation(ALICE, BOB), ParkScope("whatsapp-outbound", uuid4())
            stored, _ = store.create_conversation(conversation)
            assert stored == conversation
            store.add_member(conversation.conversation_id, CARLA, at_ms=NOON_MS)
            store.add_member(conversation.conversation_id, CARLA, at_ms=NOON_MS)
            found = store.conversation(conversation.conversation_id)
            assert found is not None
            assert found.members == (ALICE, BOB, CARLA)
            key = DeliveryKey(uuid7(), CARLA)
            [mine] = store.claim_deliveries([key], owner="a", now_ms=NOON_MS, lease_ms=1000)
            [theirs] = store.claim_deliveries([key], owner="b", now_ms=NOON_MS, lease_ms=1000)
            assert (mine.state, theirs.state) == (DeliveryState.CLAIMED, DeliveryState.BUSY)
            store.settle_deliveries([DeliveryOutcome(key, external_id="wamid.1")], owner="a")
            [sent] = store.claim_deliveries([key], owner="b", now_ms=NOON_MS, lease_ms=1000)
            assert sent.external_id == "wamid.1"
            source = TopicPartition("whatsapp-outbound", 0)
            store.park(scope, [ParkedRecord(source, each, b"{}", NOON_MS, 1) for each in (1, 2)], due_at_ms=NOON_MS)
            assert not store.unpark(scope, [(source, 1)], next_due_ms=NOON_MS + 5)
            assert store.due_at_ms(scope) == NOON_MS + 5
            assert scope in store.due_scopes(topic=scope.topic, now_ms=NOON_MS + 5, limit=1000)
            assert store.unpark(scope, [(source, 2)], next_due_ms=NOON_MS)
            assert store.due_at_ms(scope) is None

    def test_a_key_whose_end_was_perhaps_not_written_is_told(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its request leaves a hint then, or its client would wait for the lease."""
        assert claimed_key(store) is KeyState.NEW
        monkeypatch.setattr(Call, "conditionally", lambda _, writes: [None for _ in writes])
        for end in (store.settle_key, store.release_key):
            with pytest.raises(StoreUnavailable):
                end(workspace_id=uuid4(), sender_id=ALICE, key="k")

    def test_a_conversation_whose_creator_died_was_active_when_it_was_created(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conversation = a_conversation(ALICE)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(Call, "write", lambda *_: pytest.fail("dead"))
            with pytest.raises(pytest.fail.Exception):
                store.create_conversation(conversation)
        assert store.last_activity_ms(conversation.conversation_id) == conversation.created_at_ms

    def test_what_looks_a_lost_answer_up_is_prepared_before_it_is_lost(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In an outage each failed try to prepare would cost its time, and a traceback in the driver's log."""
        warm(store)
        monkeypatch.setattr(sessions, "LWT_SHARE", 1e-6)
        with store._db.call() as call:
            monkeypatch.setattr(call._session, "prepare", lambda cql: pytest.fail(f"prepared late: {cql}"))
        conversation = a_conversation()

        def created() -> Conversation | None:
            """Who looks before the transaction took effect finds nothing, and repeats the call as a client does."""
            with suppress(StoreUnavailable):
                return store.create_conversation(conversation)[0]
            return None

        assert eventually(created) == conversation

    def test_a_transaction_that_the_driver_sends_twice_took_effect_once_and_is_told_so(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As it does with the next node when one dies over it: the answer is a refusal, for what stands is ours."""
        outcomes = Call._outcomes

        def twice(call: Call, statements: Any, *, share: float) -> list[Any]:
            outcomes(call, statements, share=share)
            return outcomes(call, statements, share=share)

        monkeypatch.setattr(Call, "_outcomes", twice)
        topic = f"whatsapp-{uuid4().hex[:8]}-outbound"
        scope, source = ParkScope(topic, uuid4()), TopicPartition(topic, 0)
        due = partial(store.due_scopes, topic=topic, limit=9)
        store.park(scope, [ParkedRecord(source, each, b"{}", NOON_MS, 1) for each in (1, 2)], due_at_ms=NOON_MS)
        assert due(now_ms=NOON_MS) == [scope]
        taken = store.take_due_scopes(topic=topic, now_ms=NOON_MS, again_at_ms=NOON_MS + 5, limit=9)
        assert (taken, due(now_ms=NOON_MS + 4), due(now_ms=NOON_MS + 5)) == ([scope], [], [scope])
        assert not store.unpark(scope, [(source, 1)], next_due_ms=NOON_MS + 9)
        assert due(now_ms=NOON_MS + 9) == [scope]
        assert store.unpark(scope, [(source, 2)], next_due_ms=NOON_MS)
        assert due(now_ms=NOON_MS + 9) == []
        assert store.create_conversation(conversation := a_conversation()) == (conversation, True)
        assert claimed_key(store) is KeyState.NEW
        assert taken_over(store) == [DeliveryState.CLAIMED, DeliveryState.ABANDONED]

    def test_who_claimed_settles_without_reading_unless_somebody_took_it_over(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        each, read = Call.each, list[str]()

        def counted(call: Call, cql: str, many: Any) -> Any:
            keys = list(many)
            read.extend(cql for _ in keys)
            return each(call, cql, keys)

        monkeypatch.setattr(Call, "each", counted)
        mine, lost = DeliveryKey(uuid7(), CARLA), DeliveryKey(uuid7(), CARLA)
        store.claim_deliveries([mine, lost], owner="a", now_ms=NOON_MS, lease_ms=1000)
        with opened(cassandra_url()) as other:
            [theirs] = other.claim_deliveries([lost], owner="b", now_ms=NOON_MS + 1000, lease_ms=1000)
        read.clear()
        store.settle_deliveries([DeliveryOutcome(mine, external_id="wamid.1")], owner="a")
        assert read == []
        store.settle_deliveries([DeliveryOutcome(lost, failed_reason="platform:1")], owner="a")
        assert read == [SELECT_CLAIM]
        states = store.claim_deliveries([mine, lost], owner="c", now_ms=NOON_MS + 1001, lease_ms=1000)
        assert [theirs.state, *(claim.state for claim in states)] == [
            DeliveryState.ABANDONED,
            DeliveryState.SENT,
            DeliveryState.BUSY,
        ]

    def test_a_transaction_that_was_given_up_and_took_effect_late_is_told_as_what_it_was(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A takeover that came through after it was looked for must not be found as if we had begun ourselves."""
        conditionally = Call.conditionally

        def late(call: Call, writes: Any) -> list[bool | None]:
            given_up: list[bool | None] = [None for ours in conditionally(call, writes) if ours]
            return given_up or conditionally(call, writes)

        monkeypatch.setattr(Call, "conditionally", late)
        assert taken_over(store) == [DeliveryState.CLAIMED, DeliveryState.ABANDONED]
        assert claimed_key(store) is KeyState.NEW

    def test_a_record_that_is_parked_while_its_scope_is_found_empty_is_not_lost(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The race itself: another worker parks between the look for what is left and the delete."""
        topic = f"whatsapp-{uuid4().hex[:8]}-outbound"
        scope, source = ParkScope(topic, uuid4()), TopicPartition(topic, 0)
        delete = parking._delete

        def late(call: Call, found: parking.Scope) -> bool:
            monkeypatch.setattr(parking, "_delete", delete)
            store.park(scope, [ParkedRecord(source, 2, b"late", NOON_MS, 1)], due_at_ms=NOON_MS)
            return delete(call, found)

        store.park(scope, [ParkedRecord(source, 1, b"", NOON_MS, 1)], due_at_ms=NOON_MS)
        monkeypatch.setattr(parking, "_delete", late)
        assert not store.unpark(scope, [(source, 1)], next_due_ms=NOON_MS + 3)
        assert [each.value for each in store.parked(scope, limit=9)] == [b"late"]
        assert store.due_scopes(topic=topic, now_ms=NOON_MS + 3, limit=9) == [scope]


SAVE_WAITS = 3
STATUS_TABLES = ("message_statuses", "status_transitions")
MOMENTS = [
    pytest.param(number, moment, id=f"{moment} of wait {number}")
    for number in range(1, SAVE_WAITS + 1)
    for moment in ("before all", "behind the reads", "behind the writes")
]


@contextmanager
def amid_wait(number: int, moment: str, act: Callable[[], None]) -> Iterator[None]:
    """Something happens in the n-th wait for Cassandra from here on, of which reads and writes have no order."""
    at_once, waits = Call.at_once, itertools.count(1)

    def interrupted(
        call: Call, queries: Sequence[sessions.Query | sessions.Lookup], writes: Iterable[sessions.Write] = ()
    ) -> Any:
        if next(waits) != number:
            return at_once(call, queries, writes)
        found: Any = None
        if moment == "behind the reads":
            found = at_once(call, queries)
        elif moment == "behind the writes":
            at_once(call, [], writes)
            writes = ()
        act()
        rest = at_once(call, [] if found else queries, writes)
        return found or rest

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Call, "at_once", interrupted)
        yield


class TestSaving:
    def test_a_save_waits_three_times(self, store: CassandraStore) -> None:
        waited: list[int] = []
        for number in range(1, SAVE_WAITS + 2):
            with amid_wait(number, "before all", partial(waited.append, number)):
                store.save_messages([a_message(a_conversation(ALICE, BOB))])
        assert waited == list(range(1, SAVE_WAITS + 1))

    def test_a_save_writes_no_status_and_those_of_older_releases_say_the_same(
        self, store: CassandraStore, raw: Call
    ) -> None:
        message = a_message(a_conversation(ALICE, BOB, CARLA))
        here = message.conversation_id, uuid7_us(message.message_id) // 86_400_000_000
        rows = [f"SELECT * FROM ks.{each} WHERE conversation_id = ? AND day = ?" for each in STATUS_TABLES]
        store.save_messages([message])
        assert [raw.rows(cql, *here) for cql in rows] == [[], []]
        before = store.statuses([message]), store.transitions(message)
        raw.write([write(each) for each in sent(message) for write in (messages._status, messages._transition)])
        assert [len(raw.rows(cql, *here)) for cql in rows] == [2, 2]
        assert (store.statuses([message]), store.transitions(message)) == before

    @pytest.mark.parametrize(("number", "moment"), MOMENTS)
    def test_a_status_told_meanwhile_is_shown_by_who_saves_or_by_who_tells(
        self, store: CassandraStore, number: int, moment: str
    ) -> None:
        """Who tells writes it, and shows it where the message is stored; see `messaging.services.statuses`."""
        message = a_message(a_conversation(ALICE, BOB, CARLA))
        shown: list[Message] = []

        def tell() -> None:
            store.apply_statuses([change(message, Status.READ)])
            shown.extend(store.messages([message.message_id]).values())

        with amid_wait(number, moment, tell):
            saved = store.save_messages([message])
        by_who_saves = [each.status for each in saved.statuses[message.message_id] if each.recipient == BOB]
        assert shown == [message] or by_who_saves == [Status.READ]
        assert [each.status for each in store.statuses([message])[message.message_id]] == [Status.READ, Status.SENT]

    @pytest.mark.parametrize(("number", "moment"), MOMENTS)
    def test_who_joins_meanwhile_has_it_on_their_list(self, store: CassandraStore, number: int, moment: str) -> None:
        conversation = a_conversation(ALICE, BOB, created_at_ms=NOON_MS)
        store.create_conversation(conversation)
        message = a_message(conversation, accepted_at_ms=NOON_MS + 86_400_000)
        joins = partial(store.add_member, conversation.conversation_id, MALLORY, at_ms=NOON_MS)
        with amid_wait(number, moment, joins):
            store.save_messages([message])
        for user in (ALICE, BOB, MALLORY):
            [listed] = store.conversations_of(user, workspace_id=conversation.workspace_id, after=None, limit=5)
            assert listed.last_activity_ms == message.accepted_at_ms

    @pytest.mark.parametrize(("number", "moment"), MOMENTS)
    def test_wherever_it_breaks_off_what_is_shown_is_whole_and_a_repeat_ends_it(
        self, store: CassandraStore, number: int, moment: str
    ) -> None:
        conversation = a_conversation(ALICE, BOB)
        store.create_conversation(conversation)
        message = a_message(conversation, accepted_at_ms=NOON_MS + 5)

        def fail() -> None:
            raise StoreUnavailable("it is away")

        with pytest.raises(StoreUnavailable), amid_wait(number, moment, fail):
            store.save_messages([message])
        for end in (False, True):
            if end:
                assert store.save_messages([message]).known <= {message.message_id}
            shown = store.history(conversation.conversation_id, limit=5)
            landed = (number, moment) == (2, "behind the writes") or number == SAVE_WAITS
            assert shown == ([message] if end or landed else [])
            for each in shown:
                assert store.message(each.message_id) == message
                assert [status.status for status in store.statuses([message])[message.message_id]] == [Status.SENT]
                assert len(store.transitions(message)) == 1
                assert store.last_activity_ms(conversation.conversation_id) == message.accepted_at_ms
        [listed] = store.conversations_of(BOB, workspace_id=conversation.workspace_id, after=None, limit=5)
        assert listed.last_activity_ms == message.accepted_at_ms


class TestRepeating:
    """Nothing is all or nothing here: what a failure left undone, the same call must do when it is repeated."""

    def test_a_status_that_landed_alone_gets_its_line_of_history(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipients = tuple(f"user_{each:03}" for each in range(150))
        message = a_message(recipients=recipients)
        store.save_messages([message])
        read = [change(message, Status.READ, recipient=each) for each in recipients]
        with monkeypatch.context() as patched:
            patched.setattr(Call, "write", only_first)
            with pytest.raises(StoreUnavailable):
                store.apply_statuses(read)
        store.apply_statuses(read)
        told = [each.recipient for each in store.transitions(message) if each.change.status is Status.READ]
        assert sorted(told) == sorted(recipients)

    def test_a_person_whose_handle_landed_alone_is_found_by_it(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace_id = uuid4()
        person = Contact(
            workspace_id=workspace_id,
            channel="instagram",
            account_id="1",
            address="17841400000000000",
            conversation_id=uuid4(),
            last_message_id=uuid7(),
            handle="carla",
        )
        with monkeypatch.context() as patched:
            patched.setattr(Call, "write", all_but_last)
            with pytest.raises(StoreUnavailable):
                store.bind_contacts([person])
        store.bind_contacts([person])
        place: dict[str, Any] = {"workspace_id": workspace_id, "channel": "instagram", "account_id": "1"}
        assert store.contact_by_handle(**place, handle="carla") == person


class TestIndexOfDueScopes:
    def test_entries_that_no_scope_names_count_for_nothing_and_are_swept_when_old(self, raw: Call) -> None:
        from messaging.stores.cassandra.parking import Entry, _entered

        clock = ManualClock()
        topic = f"whatsapp-{uuid4().hex[:8]}-outbound"
        held, never_opened = ParkScope(topic, uuid4()), ParkScope(topic, uuid4())
        with opened(cassandra_url(), timeout_s=10, clock=clock) as store:
            store.park(held, [ParkedRecord(TopicPartition(topic, 0), 1, b"", NOON_MS, 1)], due_at_ms=NOON_MS + 1)
            entered_us = clock.now_ms() * 1000
            for scope in (held, never_opened):
                raw.write([_entered(scope, Entry(NOON_MS, uuid7(), uuid4(), entered_us)) for _ in range(40)])
            due = partial(store.due_scopes, topic=topic, now_ms=NOON_MS + 9, limit=5)
            assert (due(), entries(raw, topic)) == ([held], 81)
            clock.advance(3601)
            assert (due(), entries(raw, topic)) == ([held], 1)

    def test_moving_a_scope_leaves_one_entry(self, store: CassandraStore, raw: Call) -> None:
        topic = f"whatsapp-{uuid4().hex[:8]}-outbound"
        scope, source = ParkScope(topic, uuid4()), TopicPartition(topic, 0)
        for round_ in range(5):
            store.park(scope, [ParkedRecord(source, round_, b"", NOON_MS, 1)], due_at_ms=NOON_MS)
            store.take_due_scopes(topic=topic, now_ms=NOON_MS + round_, again_at_ms=NOON_MS + round_ + 1, limit=9)
        assert entries(raw, topic) == 1
        assert store.unpark(scope, [(source, each) for each in range(5)], next_due_ms=NOON_MS)
        assert entries(raw, topic) == 0


class TestProcesses:
    def test_a_store_that_was_used_before_a_fork_works_on_both_sides(self, store: CassandraStore) -> None:
        before, by_child, after = a_message(), a_message(), a_message()
        store.save_messages([before])
        inherited = store._db._opened
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child reports by its exit code only
            code = 1
            try:
                store.save_messages([by_child])
                own = store._db._opened is not inherited
                code = 0 if own and store.message(before.message_id) == before else 2
                store.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert store._db._opened is inherited
        store.save_messages([after])
        assert store.message(by_child.message_id) == by_child

    def test_a_child_waits_for_no_lock_that_a_thread_of_its_parent_held(self, store: CassandraStore) -> None:
        """As the driver's threads hold those of its connections, whenever a worker's parent forks."""
        store.save_messages([a_message()])
        held, forked = threading.Barrier(2), threading.Event()

        def hold() -> None:
            with ExitStack() as locks:
                for connection in libevreactor._global_loop._live_conns:
                    locks.enter_context(connection.lock)
                held.wait(10)
                forked.wait(10)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(10)
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child reports by its exit code only
            code = 1
            try:
                for _ in range(8):  # a thread that gets the holder's identity would pass for the locks' owner
                    threading.Thread(target=threading.Event().wait, daemon=True).start()
                store.save_messages([a_message()])
                code = 0
            finally:
                os._exit(code)
        forked.set()
        holder.join()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def test_nothing_connects_before_it_is_used(self) -> None:
        [port] = free_ports(1)
        store = CassandraStore(f"cassandra://127.0.0.1:{port}/nowhere")
        assert store._db._opened.connection is None
        store.close()

    def test_a_store_that_is_closed_under_calls_lets_them_end(self, store: CassandraStore) -> None:
        messages = [a_message() for _ in range(40)]

        def save(some: Sequence[Message]) -> None:
            store.save_messages(some)
            store.close()

        at_once(*(partial(save, messages[each::8]) for each in range(8)))
        assert store.messages([each.message_id for each in messages]) == {each.message_id: each for each in messages}


class TestUnavailable:
    def test_tables_that_are_gone_are_an_outage_with_a_remedy_and_no_poison(self) -> None:
        url = f"{needed('cassandra').rstrip('/')}/gone_{uuid4().hex[:8]}"
        make_keyspace(url)
        message, key = a_message(), DeliveryKey(uuid7(), CARLA)
        with keyspace_dropped_at_the_end(url) as raw, opened(url, timeout_s=10) as store:
            calls: list[Callable[[], object]] = [
                partial(store.save_messages, [message]),
                partial(store.message, message.message_id),
                partial(store.claim_deliveries, [key], owner="a", now_ms=NOON_MS, lease_ms=1000),
            ]
            for call in calls:
                call()
            for drop in ("TABLE ks.messages", "TABLE ks.delivery_claims", f"KEYSPACE {Address.parse(url).keyspace}"):
                raw.execute(f"DROP {drop}")
            for call in calls:
                with pytest.raises(StoreUnavailable, match=r"manage\.py setup_keyspace"):
                    call()
            make_keyspace(url)
            for call in calls:
                call()
            assert store.message(message.message_id) == message

    def test_a_long_answer_is_read_whole_and_no_longer_than_the_call_may_take(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = a_message(recipients=tuple(f"user_{each:03}" for each in range(100)))
        store.apply_statuses([change(message, Status.READ, recipient=each) for each in message.recipients])
        with store._db.call(100) as call:  # a slow machine takes less than what each page is charged
            call._session.default_fetch_size = 30
            assert {each.status for each in store.statuses([message])[message.message_id]} == {Status.READ}
            execute, asked = call._session.execute_async, []

            def timed(*arguments: Any, timeout: float, **options: Any) -> Any:
                asked.append(timeout)
                call._until_s -= 40
                return execute(*arguments, timeout=timeout, **options)

            monkeypatch.setattr(call._session, "execute_async", timed)
            with pytest.raises(StoreUnavailable):
                call.rows(
                    "SELECT recipient FROM ks.message_statuses WHERE conversation_id = ? AND day = ?",
                    message.conversation_id,
                    uuid7_us(message.message_id) // 86_400_000_000,
                )
            assert len(asked) == 3
            assert asked[0] >= asked[1] + 40 >= asked[2] + 80

    def test_preparing_takes_no_longer_than_the_call_may(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        warm(store)
        answer = threading.Event()

        def ask() -> None:
            with store._db.call(0.5) as call:
                monkeypatch.setattr(call._session, "prepare", lambda _cql: answer.wait(10))
                call.rows("SELECT now() FROM system.local")

        once_within(2, lambda: refused_s(ask, StoreUnavailable, "does not answer"))
        answer.set()

    @pytest.mark.parametrize(
        "call",
        [
            pytest.param(lambda store: store.message(uuid7()), id="reading"),
            pytest.param(lambda store: store.save_messages([a_message()]), id="writing"),
            pytest.param(lambda store: store.create_conversation(a_conversation()), id="a transaction"),
            pytest.param(lambda store: store.ping(), id="ping"),
        ],
    )
    @pytest.mark.parametrize("peer", ["nobody", "silence"])
    def test_who_does_not_answer_is_named_with_the_remedy_in_time(
        self, call: Callable[[CassandraStore], object], peer: str
    ) -> None:
        with listening(peer) as port, opened(f"cassandra://127.0.0.1:{port}/k", timeout_s=1.5) as store:
            told = rf"Cassandra at 127.0.0.1:{port} does not answer .*URL"
            once_within(2.6, lambda: refused_s(partial(call, store), StoreUnavailable, told))

    def test_a_missing_keyspace_is_named_with_the_command_that_makes_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stores, "PING_TIMEOUT_S", 30.0)  # to open a session takes a busy machine longer than 2 s
        url = f"{needed('cassandra').rstrip('/')}/not_there"
        with opened(url, timeout_s=30) as store:
            for call in (store.ping, partial(store.message, uuid7()), partial(store.save_messages, [a_message()])):
                with pytest.raises(StoreUnavailable, match=r"no keyspace 'not_there'.*manage\.py setup_keyspace"):
                    call()

    def test_who_is_not_let_in_is_told_so(self) -> None:
        database = Database(Address.parse("cassandra://eve:s3cret@one/k"), timeout_s=1)
        refused = NoHostAvailable("no host", {"one": AuthenticationFailed("bad credentials")})
        told = database.unavailable(refused).detail
        assert "refuses the user 'eve'" in told
        assert "s3cret" not in told

    def test_a_server_that_comes_back_is_used_again(self) -> None:
        [port] = free_ports(1)
        url = cassandra_url()
        there = Address.parse(url)
        with opened(f"cassandra://127.0.0.1:{port}/{there.keyspace}", timeout_s=3) as store:
            with pytest.raises(StoreUnavailable):
                store.ping()
            store._db.address = there  # as if it had come up where it was looked for
            eventually(lambda: answers(store.ping))

    def test_a_value_that_can_never_be_stored_is_no_outage(
        self, store: CassandraStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stores, "PING_TIMEOUT_S", 30.0)
        for lasting in ("x" * 65_535, "\ud800"):  # a key as long as Cassandra's limit with what else is in it; no text
            with pytest.raises((InvalidRequest, UnicodeEncodeError)):
                store.externals("whatsapp", "1", [lasting])
        store.ping()


class TestOutage:
    @pytest.mark.timeout(300)
    def test_while_a_server_hangs_or_is_dead_no_call_hangs_and_afterwards_all_that_was_saved_is_there(
        self, tmp_path: Path
    ) -> None:
        needed("cassandra")  # whoever has none runs this neither
        conversation, scope = a_conversation(), ParkScope("whatsapp-outbound", uuid4())
        with Cassandra(tmp_path / "cassandra") as server:
            url = f"{server.url.rstrip('/')}/hangs"
            make_keyspace(url)
            saved: list[Message] = []

            with opened(url, timeout_s=2) as store:

                def save() -> None:
                    message = a_message(conversation)
                    store.save_messages([message])
                    saved.append(message)

                calls: list[Callable[[], object]] = [
                    save,
                    partial(store.create_conversation, conversation),
                    partial(store.history, conversation.conversation_id, limit=5),
                    partial(store.park, scope, [ParkedRecord(TopicPartition("t", 0), 1, b"", 1, 1)], due_at_ms=1),
                    store.ping,
                ]
                for call in calls:
                    eventually(partial(answers, call))
                for down, up in ((server.pause, server.resume), (server.kill, server.start)):
                    down()
                    try:
                        gives_up = [partial(refused_s, call, StoreUnavailable, "does not answer") for call in calls]
                        with ThreadPoolExecutor(len(calls)) as pool:
                            list(pool.map(partial(once_within, 3.5), gives_up))
                    finally:
                        up()
                    for call in calls:
                        eventually(partial(answers, call), within_s=30)
                assert store.messages([each.message_id for each in saved]) == {each.message_id: each for each in saved}


class TestSetUp:
    @pytest.fixture
    def keyspace(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        monkeypatch.setattr(stores, "PING_TIMEOUT_S", 30.0)  # to open a session takes a busy machine longer than 2 s
        name = f"setup_{uuid4().hex[:8]}"
        settings.MESSAGE_STORE_URL = f"{needed('cassandra').rstrip('/')}/{name}"
        yield name
        database = Database(Address.parse(settings.MESSAGE_STORE_URL), timeout_s=60)
        with database.call() as call:
            call.execute(f"DROP KEYSPACE IF EXISTS {name}")
        database.close()

    @pytest.mark.timeout(300)
    def test_it_is_planned_made_once_by_two_at_once_and_told_where_it_differs(
        self, keyspace: str, settings: Settings
    ) -> None:
        planned = run("--dry-run")
        assert f"CREATE KEYSPACE IF NOT EXISTS {keyspace}" in planned
        assert planned.count("CREATE TABLE") == len(schema.tables()) + 2
        address = Address.parse(settings.MESSAGE_STORE_URL)
        with opened(settings.MESSAGE_STORE_URL) as store:
            with pytest.raises(StoreUnavailable, match="setup_keyspace"):
                store.ping()
            at_once(*[partial(make_keyspace, settings.MESSAGE_STORE_URL)] * 2)
            store.ping()
        assert "nothing to do" in run("--dry-run")
        assert "nothing to do" in run()
        errors = StringIO()
        call_command("setup_keyspace", "--replication", "dc1:3", stdout=StringIO(), stderr=errors)
        assert "drift: replication" in errors.getvalue()
        database = Database(address, timeout_s=60)
        with database.call() as call:
            call.execute("DROP TABLE ks.contact_handles")
        database.close()
        for arguments in ((), ("--dry-run",)):
            with pytest.raises(CommandError, match=r"tables are missing that a migration made: contact_handles"):
                run(*arguments)

    def test_a_table_that_is_gone_makes_a_process_unready_within_half_a_minute(
        self, keyspace: str, settings: Settings
    ) -> None:
        make_keyspace(settings.MESSAGE_STORE_URL)
        clock = ManualClock()
        with opened(settings.MESSAGE_STORE_URL, clock=clock) as store:
            store.ping()
            database = Database(Address.parse(settings.MESSAGE_STORE_URL), timeout_s=60)
            with database.call() as call:
                call.execute("DROP TABLE ks.contact_handles")
            database.close()
            store.ping()
            clock.advance(30)
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match=rf"{keyspace}.*contact_handles.*restore"):
                    store.ping()

    def test_one_copy_is_enough_where_there_is_one_node(self, keyspace: str, settings: Settings) -> None:
        make_keyspace(settings.MESSAGE_STORE_URL)
        with opened(settings.MESSAGE_STORE_URL) as store:
            assert store.thin_replication() == []

    @pytest.mark.timeout(300)
    def test_tables_of_the_release_before_are_changed_and_what_is_in_them_stays(
        self, keyspace: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as before:
            last = schema.VERSION
            before.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
            before.setattr(schema, "VERSION", 1)
            make_keyspace(settings.MESSAGE_STORE_URL)
        ref = a_ref()
        columns = asdict(ref)
        del columns["attempt"]
        database = Database(Address.parse(settings.MESSAGE_STORE_URL), timeout_s=60)
        with database.call(60) as call:
            names, marks = ", ".join(columns), ", ".join("?" for _ in columns)
            values = tuple(columns.values())
            call.write([sessions.Statement(f"INSERT INTO ks.external_ids ({names}) VALUES ({marks})", values)])
            make_keyspace(settings.MESSAGE_STORE_URL)
            call.execute(f"DELETE FROM ks.schema_migrations WHERE part = '{schema.PART}' AND version = {last}")
        database.close()
        make_keyspace(settings.MESSAGE_STORE_URL)  # as after a run that died before it wrote down what it had done
        with opened(settings.MESSAGE_STORE_URL) as store:
            assert store.externals(ref.channel, ref.account_id, [ref.external_id]) == {ref.external_id: ref}
            later = replace(a_ref(), attempt=2)
            assert store.claim_externals([later]) == [later]

    def test_a_server_that_is_away_is_waited_for_and_then_told(self, settings: Settings) -> None:
        [port] = free_ports(1)
        settings.MESSAGE_STORE_URL = f"cassandra://127.0.0.1:{port}/k"
        out = StringIO()
        with pytest.raises(CommandError, match="does not answer"):
            call_command("setup_keyspace", "--timeout", "1", stdout=out)
        assert "waiting: " in out.getvalue()

    def test_it_has_nothing_to_do_for_another_store(self, settings: Settings) -> None:
        settings.MESSAGE_STORE_URL = "orm://messages"
        assert "nothing to do" in run()


# --- what the tests say in short ---------------------------------------------------------------------------------


def answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreUnavailable:
        return False
    return True


def id_at(ms: int) -> UUID:
    """A message id of that time."""
    return UUID(int=ms << 80 | uuid7().int & ((1 << 80) - 1))


def spread() -> list[float]:
    """Days: some close together, some months apart, some on both sides of a period's edge."""
    return sorted([0, 0.1, 0.2, 9.9, 10, 10.1, 47, *(100 + each / 50 for each in range(40)), 400, 401, 1200])


def only_first(call: Call, writes: Iterable[sessions.Write]) -> None:
    bound = _apart(call, writes)
    call._run(bound[:1])
    if bound[1:]:
        raise StoreUnavailable("the second did not arrive")


def all_but_last(call: Call, writes: Iterable[sessions.Write]) -> None:
    call._run(_apart(call, writes)[:-1])
    raise StoreUnavailable("the last did not arrive")


def _apart(call: Call, writes: Iterable[sessions.Write]) -> list[Any]:
    """Each mutation by itself, as it may land by itself."""
    mutations = [each for write in writes for each in call._mutations(write)]
    return [sent for each in mutations for sent in packed([each], call._replicas)]


def claimed_key(store: CassandraStore) -> KeyState:
    who: dict[str, Any] = {"workspace_id": uuid4(), "sender_id": ALICE, "key": "k"}
    claim = store.claim_key(**who, body_hash="b", message_id=(minted := uuid7()), now_ms=NOON_MS, lease_ms=6000)
    assert (claim.message_id, claim.accepted_at_ms) == (minted, NOON_MS)
    return claim.state


def taken_over(store: CassandraStore) -> list[DeliveryState]:
    """What a sender is told, and one that comes after its lease."""
    key = DeliveryKey(uuid7(), CARLA)
    claimed = [
        store.claim_deliveries([key], owner=owner, now_ms=now_ms, lease_ms=1000)
        for owner, now_ms in (("a", NOON_MS), ("b", NOON_MS + 1001))
    ]
    return [claim.state for [claim] in claimed]


@contextmanager
def keyspace_dropped_at_the_end(url: str) -> Iterator[Call]:
    database = Database(Address.parse(url), timeout_s=60)
    with database.call(120) as call:
        try:
            yield call
        finally:
            call.execute(f"DROP KEYSPACE IF EXISTS {Address.parse(url).keyspace}")
    database.close()


def losing(every: int) -> Callable[..., list[Any]]:
    """`Call._outcomes` for which one of so many answers is lost, of a transaction that took effect."""
    outcomes, counted = Call._outcomes, itertools.count()

    def lost(call: Call, statements: Any, *, share: float) -> list[Any]:
        found = outcomes(call, statements, share=share)
        return [each if next(counted) % every else OperationTimedOut() for each in found]

    return lost


def warm(store: CassandraStore) -> None:
    """Have the session opened and its statements prepared."""
    conversation = a_conversation()
    store.create_conversation(replace(conversation, conversation_id=uuid4()))


def entries(raw: Call, topic: str) -> int:
    found = raw.each("SELECT entry FROM ks.parked_due WHERE topic = ? AND shard = ?", [(topic, n) for n in range(8)])
    return sum(map(len, found))


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("setup_keyspace", *arguments, stdout=out)
    return out.getvalue()


@contextmanager
def listening(peer: str) -> Iterator[int]:
    """A port where nobody listens, or one that accepts and says nothing."""
    if peer == "nobody":
        yield free_ports(1)[0]
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
