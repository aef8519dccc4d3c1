"""Kafka and Cassandra that want TLS, a password and rights: who has them gets everything, and who has not hears why.

The servers are of this module alone; they and the commands start together, since most of what they take is waiting.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from messaging import topics, wiring
from messaging.codec import decode
from messaging.domain import Message
from messaging.errors import LogUnavailable, StoreUnavailable
from messaging.eventlog.kafka import KafkaLog
from messaging.ports import NewRecord, Record
from messaging.stores.cassandra import CassandraStore
from tests.api.outside import (
    SLACK_S,
    TIMEOUT_S,
    World,
    apis,
    check,
    fault,
    local_world,
    prompt,
    refused,
    register,
    until,
)
from tests.contracts.message_stores import a_conversation, a_message, make_keyspace
from tests.stack.cassandra import Cassandra
from tests.stack.certificates import Certificates
from tests.stack.kafka import Kafka
from tests.stack.servers import needed

pytestmark = pytest.mark.cluster

USERS: Final = {"hub": "right-word", "guest": "guest-word"}  # the second may sign in, and nothing else
KEYSPACE: Final = "chat4all"
WRONG: Final = ("password", "authority", "rights")


@pytest.fixture(autouse=True)
def servers() -> None:
    """None in this process: everything here is asked from outside."""


@dataclass(frozen=True)
class Secured:
    kafka: Kafka
    cassandra: Cassandra
    stranger: Path  # another authority's certificate

    @property
    def log_url(self) -> str:
        return self.kafka.url_as("hub", USERS["hub"], name="ours")

    @property
    def store_url(self) -> str:
        return self.cassandra.url_as("hub", USERS["hub"], name=KEYSPACE)

    def wrong(self, server: Kafka | Cassandra, what: str) -> str:
        name = "ours" if server is self.kafka else KEYSPACE
        match what:
            case "password":
                return server.url_as("hub", "wrong-word", name=name)
            case "authority":
                return server.url_as("hub", USERS["hub"], name=name, ca=self.stranger)
            case "rights":
                return server.url_as("guest", USERS["guest"], name=name)
        return server.url_as("hub", USERS["hub"], name=name).replace("+ssl", "").partition("?")[0]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Set up with the right credentials."""
    for part in ("kafka", "cassandra"):
        needed(part)
    folder = tmp_path_factory.mktemp("secured")
    kafka, cassandra = Kafka(folder / "kafka", users=USERS), Cassandra(folder / "cassandra", users=USERS)
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        for server in (kafka, cassandra):
            stack.callback(server.close)
        for each in [pool.submit(server.start) for server in (kafka, cassandra)]:
            each.result()
        secured = Secured(kafka, cassandra, Certificates.made(folder / "stranger").ca)
        log = KafkaLog(secured.log_url)
        log.ensure_topics(wiring.all_topics())
        log.close()
        make_keyspace(secured.store_url)
        yield secured


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with local_world(tmp_path_factory.mktemp("world")) as world:
        yield world


# --- in this process ---------------------------------------------------------------------------------------------


def test_with_the_right_credentials_the_store_keeps_and_finds(secured: Secured) -> None:
    store = CassandraStore(secured.store_url)
    conversation, _ = store.create_conversation(a_conversation())
    message = a_message(conversation)
    store.save_messages([message])
    assert store.history(conversation.conversation_id, limit=10) == [message]
    store.close()


def test_a_producer_that_may_not_send_is_replaced_and_leaves_nothing_behind(secured: Secured) -> None:
    """Its error is fatal to the handle: whoever gets the right keeps on trying until there is one."""
    log = KafkaLog(secured.wrong(secured.kafka, "rights"), append_timeout_s=2.0)
    until(lambda: "CLUSTER_AUTHORIZATION_FAILED" in said_by(log))
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            log.append([NewRecord(topics.MESSAGES, "k", b"x")])
    until(lambda: len(producers()) <= 1)
    log.close()
    until(lambda: producers() == [])


def said_by(log: KafkaLog) -> str:
    try:
        log.ping()
    except LogUnavailable as error:
        return error.detail
    return ""


def producers() -> list[threading.Thread]:
    """Threads that serve a producer of this process."""
    return [each for each in threading.enumerate() if each.name == "kafka-deliveries"]


def test_a_store_is_never_spoken_to_in_the_clear_by_mistake(secured: Secured) -> None:
    """A server that wants TLS and a client that does not: told, with the address."""
    store = CassandraStore(secured.wrong(secured.cassandra, "no TLS"), timeout_s=2.0)
    with pytest.raises(StoreUnavailable, match=rf"Cassandra at 127.0.0.1:{secured.cassandra.port} does not answer"):
        store.ping()
    store.close()


# --- who has credentials -----------------------------------------------------------------------------------------


def test_the_right_credentials_set_up_and_a_check_has_nothing_to_say(secured: Secured, world: World) -> None:
    right = {
        "EVENT_LOG_URL": secured.kafka.url_as("hub", USERS["hub"], name="another"),
        "MESSAGE_STORE_URL": secured.cassandra.url_as("hub", USERS["hub"], name="another"),
    }
    for command in ("setup_topics", "setup_keyspace"):
        done = world.run(command, **right)
        assert done.returncode == 0, done.stdout + done.stderr
    status, told = check(world, **right, API_URL="https://chat.example.com", GATEWAY_URL="wss://chat.example.com")
    assert (status, "no issues" in told) == (0, True), told


class Listener:
    def assigned(self, partitions: object) -> None: ...
    def revoked(self, partitions: object) -> None: ...
    def lost(self, partitions: object) -> None: ...


@pytest.fixture(scope="module")
def running(
    secured: Secured, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, httpx.Client]]:
    """APIs of which one has all that is right."""
    right = {**world.environment, "EVENT_LOG_URL": secured.log_url, "MESSAGE_STORE_URL": secured.store_url}
    environments = {
        "right": right,
        "log": {**right, "EVENT_LOG_URL": secured.wrong(secured.kafka, "password")},
        "store": {**right, "MESSAGE_STORE_URL": secured.wrong(secured.cassandra, "password")},
    }
    with apis(tmp_path_factory.mktemp("apis"), environments) as clients:
        for client in clients.values():
            register(client, "alice")
        yield clients


def a_chat(client: httpx.Client) -> dict[str, str]:
    """A message for a conversation that there is by now."""
    register(client, "bob")
    bob = client.get("/v1/users/me").json()["user_id"]
    register(client, "alice")
    name = f"chat-{bob[-8:]}"
    made = client.post("/v1/conversations", json={"conversation_id": name, "members": [bob]})
    assert made.status_code == 201, made.text
    return {"conversation_id": name, "content": "hello"}


def test_with_the_right_credentials_a_message_is_taken_and_a_bridge_reads_it(
    secured: Secured, running: dict[str, httpx.Client]
) -> None:
    client = running["right"]
    until(lambda: client.get("/ready").status_code == 200)
    taken = client.post("/v1/messages", json=a_chat(client))
    assert taken.status_code == 202, taken.text
    log = KafkaLog(secured.log_url)
    reader = log.subscribe([topics.MESSAGES], group=wiring.GROUP, member="b", listener=Listener())
    found: list[Record] = []

    def arrived() -> bool:
        found.extend(reader.poll(0.1))
        return taken.json()["message_id"] in {str(decode(Message, each.value).message_id) for each in found}

    until(arrived)
    last = {each.source: each.offset + 1 for each in found}
    reader.commit(last)
    assert {source: log.committed(wiring.GROUP, source) for source in last} == last
    reader.close()
    log.close()


# --- who has not -------------------------------------------------------------------------------------------------


Answers = Mapping[tuple[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def told(secured: Secured, world: World) -> Answers:
    """What commands say to wrong credentials."""

    def run(case: tuple[str, str]) -> subprocess.CompletedProcess[str]:
        command, what = case
        return world.run(
            *COMMANDS[command],
            EVENT_LOG_URL=secured.wrong(secured.kafka, what),
            MESSAGE_STORE_URL=secured.wrong(secured.cassandra, what),
            APPEND_TIMEOUT_S="10",  # a handshake that takes long is no server that is away
            STORE_TIMEOUT_S="10",
        )

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


COMMANDS: Final[dict[str, Sequence[str]]] = {
    "setup_topics": ["setup_topics", "--timeout", "600"],  # for a server that is only away
    "setup_keyspace": ["setup_keyspace", "--timeout", "600"],
    "check": ["check", "--deploy", "--tag", "parts"],
}
CASES: Final = [
    *((command, what) for command in ("setup_topics", "setup_keyspace") for what in WRONG),
    ("check", WRONG[0]),
]
REMEDIES: Final = {
    ("setup_topics", "password"): (1, "invalid credentials", "EVENT_LOG_URL and its credentials are right"),
    ("setup_topics", "authority"): (1, "certificate verify failed", "EVENT_LOG_URL"),
    ("setup_topics", "rights"): (1, "refuses us: TOPIC_AUTHORIZATION_FAILED", "EVENT_LOG_URL and its credentials"),
    ("setup_keyspace", "password"): (1, "refuses the user 'hub'", "password in MESSAGE_STORE_URL"),
    ("setup_keyspace", "authority"): (1, "CERTIFICATE_VERIFY_FAILED", "ca in MESSAGE_STORE_URL"),
    ("setup_keyspace", "rights"): (1, "refuses the user 'guest'", "what the user may do"),
}


@pytest.mark.parametrize(("command", "what"), list(REMEDIES))
def test_a_set_up_that_is_refused_ends_at_once_and_says_what_to_do(command: str, what: str, told: Answers) -> None:
    done = told[command, what]
    status, reason, remedy = REMEDIES[command, what]
    text = done.stdout + done.stderr
    assert done.returncode == status, text
    assert reason in text
    assert remedy in text
    assert "waiting" not in text, "credentials do not mend themselves"
    assert "-word" not in text


def test_a_check_names_each_part_that_refuses_us(told: Answers) -> None:
    done = told["check", "password"]
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    for number, reason in {"E001": "invalid credentials", "E011": "refuses the user 'hub'"}.items():
        line = next(line for line in text.splitlines() if f"chat4all.{number}" in line)
        assert reason in line
    assert "-word" not in text


@pytest.mark.parametrize(
    ("case", "part", "reason", "code"),
    [
        ("log", "event log", "invalid credentials", "log_unavailable"),
        ("log", "topics", "invalid credentials", "log_unavailable"),
        ("store", "message store", "refuses the user 'hub'", "store_unavailable"),
    ],
)
def test_an_api_that_is_refused_says_so_and_answers_in_time(
    case: str, part: str, reason: str, code: str, running: dict[str, httpx.Client]
) -> None:
    client = running[case]
    detail = fault(client, part)
    assert reason in detail
    assert "-word" not in detail
    message = {"conversation_id": "c1", "content": "hello"}
    if code == "log_unavailable":
        message = a_chat(client)
    for headers in ({}, {"Idempotency-Key": "k"}):
        refused(
            prompt(client, "POST", "/v1/messages", within_s=TIMEOUT_S + SLACK_S, json=message, headers=headers), code
        )
