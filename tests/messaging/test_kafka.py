"""What the Kafka log does beyond the port's contract: its URL, its epochs, stable names, servers in trouble."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient

from core import forks
from demo.ports import free_ports
from messaging.errors import LeaseLost, LogRefused, LogUnavailable, RecordTooLarge
from messaging.eventlog import kafka, kafka_link, kafka_subscription
from messaging.eventlog.kafka import KafkaLog, _Admin, settings_drift
from messaging.eventlog.kafka_link import KafkaLink, KafkaUrl
from messaging.eventlog.kafka_producer import KafkaProducer
from messaging.eventlog.kafka_reader import KafkaReader
from messaging.eventlog.kafka_subscription import CONSUME_RECORDS, KafkaSubscription, _Owned
from messaging.ports import NewRecord, Record, TopicPartition
from messaging.topics import CLAIM_LIFETIME, MAX_RECORD_BYTES, MAX_RETENTION, SEGMENT, Topic
from tests.bounds import once_within, refused_s
from tests.contracts.event_logs import KAFKA_MAX_POLL_S, KAFKA_SESSION_S, kafka_server
from tests.forks import a_child_can
from tests.stack.kafka import Kafka
from tests.town import eventually

ONE = TopicPartition("messages", 0)
PATIENCE_S = 60.0
SOON_MISSED = "&static=1&session_timeout_s=6"
STATIC = "&static=1&session_timeout_s=20"  # long enough for a restart on a busy machine


@pytest.fixture(scope="module")
def server() -> Kafka:
    return kafka_server()


@pytest.fixture
def url(server: Kafka) -> str:
    return f"{server.url}/{uuid.uuid4().hex}?session_timeout_s={KAFKA_SESSION_S}"


@pytest.fixture
def open_log(url: str) -> Iterator[Callable[..., KafkaLog]]:
    """Handles on one log, each as another process would hold it."""
    opened: list[KafkaLog] = []

    def open_one(options: str = "", *, timeout_s: float = 4.0) -> KafkaLog:
        opened.append(KafkaLog(url + options, append_timeout_s=timeout_s, max_poll_s=KAFKA_MAX_POLL_S))
        return opened[-1]

    yield open_one
    for log in opened:
        log.close()


@pytest.fixture
def log(open_log: Callable[..., KafkaLog]) -> KafkaLog:
    log = open_log()
    log.ensure_topics([Topic("messages", partitions=1)])
    return log


class Owner:
    """A listener that remembers epochs."""

    def __init__(self) -> None:
        self.epochs: dict[TopicPartition, int] = {}
        self.told: list[str] = []

    def assigned(self, partitions: Mapping[TopicPartition, int]) -> None:
        self.told.append("assigned")
        self.epochs |= partitions

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._go("revoked", partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._go("lost", partitions)

    def _go(self, how: str, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(how)
        for source in partitions:
            del self.epochs[source]


def once_it_answers(call: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            call()
        except LogUnavailable:
            assert time.monotonic() < deadline
        else:
            return


def record(value: bytes = b"x") -> NewRecord:
    return NewRecord("messages", "key", value)


def poll_until(condition: Callable[[], bool], *polls: Callable[[float], list[Record]]) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        for poll in polls:
            found += poll(0.05)
    return found


def read_up_to(offset: int, *, of: int, log: KafkaLog) -> None:
    """Append so many records; a bridge committed this offset, and is gone."""
    log.append([record() for _ in range(of)])
    member = log.subscribe(["messages"], group="bridge", member="a", listener=Owner())
    poll_until(lambda: bool(member._owned), member.poll)
    member.commit({ONE: offset})
    member.close()


# --- the URL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("kafka://a:9092", KafkaUrl("a:9092", {"security.protocol": "PLAINTEXT"}), id="one server"),
        pytest.param(
            "kafka://a:1,b:2/shop?replication=2&static=1&session_timeout_s=9",
            KafkaUrl("a:1,b:2", {"security.protocol": "PLAINTEXT"}, 2, 9.0, True, "shop."),
            id="several servers, a name and options",
        ),
        pytest.param(
            "kafka+ssl://me:p%40ss@a:1?ca=/ca.pem",
            KafkaUrl(
                "a:1",
                {
                    "sasl.mechanism": "SCRAM-SHA-512",
                    "sasl.username": "me",
                    "sasl.password": "p@ss",
                    "ssl.ca.location": "/ca.pem",
                    "security.protocol": "SASL_SSL",
                },
            ),
            id="credentials over TLS",
        ),
        pytest.param(
            "kafka://me:pw@a:1?sasl=PLAIN",
            KafkaUrl(
                "a:1",
                {
                    "sasl.mechanism": "PLAIN",
                    "sasl.username": "me",
                    "sasl.password": "pw",
                    "security.protocol": "SASL_PLAINTEXT",
                },
            ),
            id="credentials without TLS",
        ),
    ],
)
def test_a_url_says_where_and_how(url: str, expected: KafkaUrl) -> None:
    assert KafkaUrl.parse(url) == expected


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("kafka://", "host:port"),
        ("kafka://a", "host:port"),
        ("kafka://a:1,b", "host:port"),
        ("kafka://a:1?typo=1", "unknown option typo"),
        ("kafka://a:1?static=yes", "static is 0 or 1"),
        ("kafka://a:1?replication=many", "not understood"),
        ("kafka://me:hunter2@a:1?sasl=GUESS", "sasl is one of"),
    ],
)
def test_a_url_that_cannot_be_understood_is_refused_without_its_password(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        KafkaUrl.parse(url)
    assert "hunter2" not in str(refused.value)


def test_a_wrong_address_is_named_with_the_reason_and_the_remedy_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (port,) = free_ports(1)
    log = KafkaLog(f"kafka://127.0.0.1:{port}", append_timeout_s=1.5)
    with caplog.at_level(logging.INFO, logger="messaging"):
        for call in (lambda: log.append([record()]), log.ping, lambda: log.end_offset(ONE)) * 2:
            with pytest.raises(LogUnavailable, match=rf"Kafka at 127.0.0.1:{port}.*Hint.*EVENT_LOG_URL"):
                call()
    assert [each.message for each in caplog.records] == ["kafka is away"]
    log.close()


@pytest.mark.parametrize(
    ("code", "may_pass", "what", "remedy"),
    [
        (
            KafkaError.INVALID_REPLICATION_FACTOR,
            False,
            "refuses the request: INVALID_REPLICATION_FACTOR",
            "replication=N",
        ),
        (KafkaError.POLICY_VIOLATION, False, "refuses the request: POLICY_VIOLATION (at most 2", "create.topic.policy"),
        (KafkaError.MSG_SIZE_TOO_LARGE, False, "refuses the request: MSG_SIZE_TOO_LARGE", "setup_topics says"),
        (KafkaError.INVALID_CONFIG, False, "refuses the request: INVALID_CONFIG", "has to change first"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, False, "refuses us: TOPIC_AUTHORIZATION_FAILED", "credentials"),
        (KafkaError.NOT_ENOUGH_REPLICAS, True, "does not answer: NOT_ENOUGH_REPLICAS", "see that it runs"),
        (KafkaError._TRANSPORT, True, "does not answer: _TRANSPORT", "see that it runs"),
    ],
)
def test_a_refusal_is_told_from_a_server_that_is_away(code: int, may_pass: bool, what: str, remedy: str) -> None:
    link = KafkaLink(KafkaUrl.parse("kafka://127.0.0.1:1"), timeout_s=1)
    with pytest.raises(LogUnavailable) as told, link.explained():
        raise KafkaException(KafkaError(code, "at most 2 topics may be made"))
    assert told.value.may_pass is may_pass
    assert what in told.value.detail
    assert remedy in told.value.detail.partition("Hint: ")[2]


@pytest.mark.parametrize(
    ("code", "said", "may_pass"),
    [
        (KafkaError._AUTHENTICATION, "invalid credentials", False),
        (KafkaError._SSL, "SSL handshake failed: certificate verify failed", False),
        (KafkaError._SSL, "SSL handshake failed: Disconnected", True),
        (KafkaError._TRANSPORT, "Connection refused", True),
    ],
)
def test_a_time_out_after_wrong_credentials_is_a_refusal(code: int, said: str, may_pass: bool) -> None:
    """A request to a server that lets nobody in only times out: why is told apart from it."""
    link = KafkaLink(KafkaUrl.parse("kafka://127.0.0.1:1"), timeout_s=1)
    hear: Any = link.config()["error_cb"]
    hear(KafkaError(code, said))
    told = link.unavailable("does not answer")
    assert (told.may_pass, said in told.detail) == (may_pass, True)
    link.presence.answered()
    assert link.unavailable("does not answer").may_pass


# --- appending ---------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_key_and_headers_that_are_too_large_are_refused_before_anything_is_sent(log: KafkaLog) -> None:
    for fat in (
        NewRecord("messages", "k" * 40_000, b"x"),
        NewRecord("messages", "key", b"x" * MAX_RECORD_BYTES, {"trace": "t" * 40_000}),
    ):
        with pytest.raises(RecordTooLarge):
            log.append([record(), fat])
    assert log.end_offset(ONE) == 0


@pytest.mark.cluster
def test_a_record_of_the_maximum_with_headers_is_taken(log: KafkaLog) -> None:
    largest = NewRecord("messages", "k" * 1000, b"x" * MAX_RECORD_BYTES, {"trace": "t" * 20_000})
    assert log.append([largest]) == [(ONE, 0)]
    assert log.read(ONE, start=0, limit=1)[0].headers == largest.headers


@pytest.mark.cluster
def test_once_warm_the_first_append_does_not_wait_for_the_producers_id(
    open_log: Callable[..., KafkaLog], log: KafkaLog
) -> None:
    """Cold it takes half a second."""

    def first_append_s() -> float:
        warm = open_log()
        warm.warm()
        threading.Event().wait(1.5)  # what a process does before its first request
        started = time.monotonic()
        warm.append([record()])
        return time.monotonic() - started

    once_within(0.3, first_append_s)


def test_a_gateway_warms_its_log_as_it_starts() -> None:
    """As the API and the workers do: or the first acknowledgement waits for the producer's id."""
    code = (
        "import threading, chat4all_project.asgi; "
        "assert 'kafka-deliveries' in {each.name for each in threading.enumerate()}"
    )
    environment = {**os.environ, "EVENT_LOG_URL": f"kafka://127.0.0.1:{free_ports(1)[0]}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


@pytest.mark.cluster
def test_a_producer_that_broke_for_good_is_replaced(log: KafkaLog) -> None:
    log.append([record()])
    broken = log._opened_producer()
    broken.broken = "OUT_OF_ORDER_SEQUENCE_NUMBER"
    log.append([record()])  # it still works in truth; the log looks at it afterwards
    assert log._opened_producer() is not broken
    with pytest.raises(LogUnavailable, match="OUT_OF_ORDER_SEQUENCE_NUMBER"):
        log.ping()  # the new one has yet to show that it is better
    assert log.append([record()]) == [(ONE, 2)]


def test_a_connection_that_comes_to_nothing_is_tried_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As while a server is frozen for long: its queue of connections is full, and whoever comes is not even refused."""
    monkeypatch.setattr(kafka_link, "SETUP_MS", 1000)
    with socket.socket() as frozen, ExitStack() as waiting, caplog.at_level(logging.DEBUG):
        frozen.bind(("127.0.0.1", 0))
        frozen.listen(0)
        for _ in range(2):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(frozen.getsockname())
        log = KafkaLog(f"kafka://127.0.0.1:{frozen.getsockname()[1]}")
        waiting.callback(log.close)
        deadline_s = time.monotonic() + 15  # half of what librdkafka takes by itself
        while "Connection setup timed out in state CONNECT" not in caplog.text:
            assert time.monotonic() < deadline_s
            with pytest.raises(LogUnavailable):
                log.ping()


@pytest.mark.cluster
def test_a_server_that_hangs_is_given_up_in_time_and_used_again_when_it_wakes(
    server: Kafka, open_log: Callable[..., KafkaLog], log: KafkaLog
) -> None:
    log = open_log(timeout_s=2.0)
    log.append([record()])
    owner = Owner()
    member = log.subscribe(["messages"], group="bridge", member="a", listener=owner)
    poll_until(lambda: ONE in owner.epochs, member.poll)
    server.pause()
    try:
        for call in (lambda: log.append([record(b"late")]), log.ping, lambda: log.end_offset(ONE)):
            once_within(3.0, partial(refused_s, call, LogUnavailable))
        with pytest.raises(LogUnavailable):
            poll_until(lambda: False, member.poll)
    finally:
        server.resume()
    server.wait_ready()
    seen: list[Record] = []
    once_it_answers(lambda: log.append([record(b"after")]))  # who is ready may still be found fenced

    def poll(timeout_s: float) -> list[Record]:
        try:
            seen.extend(found := member.poll(timeout_s))
        except LogUnavailable:
            return []
        return found

    poll_until(lambda: any(each.value == b"after" for each in seen), poll)
    member.close()


@pytest.fixture
def deaf() -> KafkaLink:
    """Where nothing answers: what is opened with it is as librdkafka is once a cluster said that it has no servers."""
    return KafkaLink(KafkaUrl.parse(f"kafka://127.0.0.1:{free_ports(1)[0]}"), timeout_s=0.3)


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["producer", "reader", "admin"])
def test_a_handle_that_nothing_answers_is_replaced(
    log: KafkaLog, deaf: KafkaLink, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers are there all the time."""
    monkeypatch.setattr(kafka_link, "MUTE_S", 1.0)
    call: Callable[[], object]
    if kind == "producer":
        handle: Any = KafkaProducer(deaf)
        handle._topics = frozenset({"messages"})
        log._producer, call = handle, lambda: log.append([record()])
    elif kind == "reader":
        handle = KafkaReader(deaf, group="reader")
        log._readers["reader"], call = handle, lambda: log.end_offset(ONE)
    else:
        handle = _Admin(deaf)
        log._admin, call = handle, lambda: log.lacking([Topic("messages", partitions=1)])
    refused_s(call, LogUnavailable)
    its = getattr(handle, {"producer": "_producer", "reader": "_consumer", "admin": "client"}[kind])
    assert id(its) in kafka_link._open
    once_it_answers(call)
    eventually(lambda: id(its) not in kafka_link._open, within_s=PATIENCE_S)  # it is closed


@pytest.mark.cluster
def test_a_member_that_hears_nothing_starts_over(
    log: KafkaLog, deaf: KafkaLink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_link, "MUTE_S", 1.0)
    owner = Owner()
    member = log.subscribe(["messages"], group="bridge", member="a", listener=owner)
    poll_until(lambda: ONE in owner.epochs, member.poll)
    real, first_epoch = member._consumer, owner.epochs[ONE]
    link, member._link = member._link, deaf
    member._consumer = member._opened()
    member._link = link
    assert real is not None
    real.close()
    log.append([record()])
    found: list[Record] = []

    def poll() -> bool:
        with suppress(LogUnavailable):
            found.extend(member.poll(0.05))
        return bool(found)

    eventually(poll, within_s=PATIENCE_S)
    assert owner.told == ["assigned", "lost", "assigned"]
    assert owner.epochs[ONE] > first_epoch
    assert "hears nothing" in caplog.text
    member.close()


def test_a_member_stays_while_nobody_is_answered(deaf: KafkaLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another could join nothing either."""
    monkeypatch.setattr(kafka_link, "MUTE_S", 0.5)
    monkeypatch.setattr(kafka_subscription, "GROUP_TIMEOUT_S", 0.2)
    asked: list[bool] = []

    def asks(link: KafkaLink, *, timeout_s: float) -> bool:
        asked.append(kafka_link.answers_anew(link, timeout_s=timeout_s))
        return asked[-1]

    monkeypatch.setattr(kafka_subscription, "answers_anew", asks)
    member = KafkaSubscription(
        deaf, ["messages"], group="g", member="a", listener=Owner(), max_poll_s=60, is_seat_taken=lambda: False
    )

    def poll() -> bool:
        with suppress(LogUnavailable):
            member.poll(0.05)
        return len(asked) == 2

    poll()
    consumer = member._consumer
    eventually(poll, within_s=PATIENCE_S)
    assert asked == [False, False]
    assert member._consumer is consumer
    member.close()


def test_a_handle_is_closed_once_nobody_is_inside(deaf: KafkaLink) -> None:
    """librdkafka would read what it has freed."""
    reader = KafkaReader(deaf, group="reader")
    inside, over, closed = threading.Event(), threading.Event(), threading.Event()

    def ask() -> None:
        with reader.usage:
            inside.set()
            over.wait(PATIENCE_S)

    def close() -> None:
        reader.close()
        closed.set()

    for each in (ask, close):
        threading.Thread(target=each, daemon=True).start()
        assert inside.wait(PATIENCE_S)
    eventually(lambda: reader.usage._has_ended, within_s=PATIENCE_S)
    with pytest.raises(LogUnavailable, match="closed"):
        reader.bounds(ONE)
    assert not closed.wait(0.2)
    over.set()
    assert closed.wait(PATIENCE_S)


@pytest.mark.parametrize("kind", ["producer", "reader", "admin"])
def test_a_handle_ends_while_nothing_forks(deaf: KafkaLink, kind: str) -> None:
    """librdkafka has a lock for all its handles, which a child would find closed for ever."""
    made: dict[str, Callable[[], Any]] = {
        "producer": lambda: KafkaProducer(deaf),
        "reader": lambda: KafkaReader(deaf, group="reader"),
        "admin": lambda: _Admin(deaf),
    }
    before = set(kafka_link._open)
    handle = made[kind]()
    [its] = set(kafka_link._open) - before
    forks._gate.close()
    try:
        threading.Thread(target=handle.retire, daemon=True).start()
        threading.Event().wait(1.0)
        assert its in kafka_link._open
    finally:
        forks._gate.open()
    eventually(lambda: its not in kafka_link._open, within_s=PATIENCE_S)


def test_what_a_consumer_hears_that_leaves_is_not_its_successor_s(
    deaf: KafkaLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that its static name is taken: by that one."""
    heard: list[Callable[[KafkaError], None]] = []

    class Quiet:
        def __init__(self, config: Mapping[str, Any]) -> None:
            heard.append(config["error_cb"])

        def subscribe(self, *_: object, **__: object) -> None:
            """It has nothing to say."""

    monkeypatch.setattr(kafka_subscription, "Consumer", Quiet)
    member = KafkaSubscription(
        deaf, ["messages"], group="g", member="a", listener=Owner(), max_poll_s=60, is_seat_taken=lambda: False
    )
    fenced = KafkaError(KafkaError._FENCED, "fenced", True)
    member._consumer = member._opened()
    member._consumer = member._opened()
    heard[0](fenced)
    assert member._refused is None
    heard[1](fenced)
    assert member._refused == "_FENCED"


def sends_on_a_thread(producer: KafkaProducer) -> threading.Event:
    """Set once it was told that nobody took its record."""
    producer._topics = frozenset({"messages"})
    told = threading.Event()

    def send() -> None:
        refused_s(lambda: producer.send([record()]), LogUnavailable)
        told.set()

    threading.Thread(target=send, daemon=True).start()
    eventually(lambda: len(producer._producer) > 0, within_s=PATIENCE_S)
    return told


def test_whoever_waits_for_a_producer_that_is_closed_is_told_at_once(deaf: KafkaLink) -> None:
    producer = KafkaProducer(KafkaLink(deaf.url, timeout_s=PATIENCE_S))
    told = sends_on_a_thread(producer)
    with producer.usage:  # somebody else is inside, to ask something
        producer.close()
        assert told.wait(10)
        threading.Event().wait(0.2)
        assert id(producer._producer) in kafka_link._open
    eventually(lambda: id(producer._producer) not in kafka_link._open, within_s=PATIENCE_S)
    producer.close()  # again


def test_whoever_waits_for_a_producer_that_is_replaced_waits_as_long_as_ever(deaf: KafkaLink) -> None:
    """The servers may be back just then."""
    log = KafkaLog(f"kafka://{deaf.url.servers}", append_timeout_s=2.0)
    producer = log._opened_producer()
    told = sends_on_a_thread(producer)
    producer.usage.silence.goes_on()
    producer.usage.silence._last_s += kafka_link.MUTE_S
    assert log._opened_producer() is not producer
    assert not told.wait(1.0)
    assert told.wait(PATIENCE_S)
    eventually(lambda: id(producer._producer) not in kafka_link._open, within_s=PATIENCE_S)
    log.close()


def test_a_handle_is_mute_when_nothing_answers_it_again_and_again(
    deaf: KafkaLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for a call that failed long ago."""
    monkeypatch.setattr(kafka_link, "MUTE_S", 0.2)
    usage = kafka_link.Usage(deaf)

    def used(error: Exception | None) -> bool:
        with suppress(LogUnavailable, RecordTooLarge), usage:
            if error:
                raise error
        return usage.silence.is_long

    assert not used(LogUnavailable("away"))
    threading.Event().wait(0.3)
    assert not usage.silence.is_long
    assert not used(RecordTooLarge("this says nothing"))
    assert used(LogRefused("wrong password, it was said before"))
    assert used(RecordTooLarge("this says nothing"))
    assert not used(None)
    assert not used(LogUnavailable("away"))


def test_a_handle_stays_while_no_other_can_be_had(deaf: KafkaLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for want of file descriptors, or with a certificate that cannot be read."""
    monkeypatch.setattr(kafka_link, "MUTE_S", 0.0)

    def none(*_: object, **__: object) -> None:
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG))

    log = KafkaLog(f"kafka://{deaf.url.servers}", append_timeout_s=0.2)
    refused_s(lambda: log.end_offset(ONE), LogUnavailable)
    reader = log._readers["reader"]
    monkeypatch.setattr(kafka, "KafkaReader", none)
    refused_s(lambda: log.end_offset(ONE), LogUnavailable)
    assert log._readers["reader"] is reader
    log.close()


@pytest.mark.cluster
def test_a_member_that_is_answered_stays_whatever_else_fails(log: KafkaLog) -> None:
    """As commits do for long, where replicas of the group's own topic are missing."""
    owner = Owner()
    member = log.subscribe(["messages"], group="bridge", member="a", listener=owner)
    poll_until(lambda: ONE in owner.epochs, member.poll)
    member._silence.goes_on()
    member._silence._last_s += 60
    assert member._silence.is_long
    member._refuse_if_mute()
    assert member._refused is None
    assert member._silence._first_s is None
    member.close()


class _Arrived:
    """As `confluent_kafka.Message`."""

    def __init__(self, offset: int, value: bytes) -> None:
        told = {"error": None, "topic": "messages", "partition": 0, "offset": offset, "key": b"key", "value": value,
                "headers": None, "timestamp": (1, 0)}  # fmt: skip
        for name, each in told.items():
            setattr(self, name, partial(_same, each))
        self._size = len(value)

    def __len__(self) -> int:
        return self._size


def _same(value: object) -> object:
    return value


class _Napping:
    """A consumer with endless records of so many bytes; ``naps``: whoever polls it sleeps longer than a session at
    first, and the group does not answer so many commits then."""

    def __init__(self, *, size: int = 1, naps: int = 0) -> None:
        self.member: Any = None
        self.asked = 0
        self._value = b"x" * size
        self._next = 5
        self._left = self._naps = naps

    def poll(self, _timeout_s: float) -> Any:
        if self._left and self._left == self._naps:
            self.member._awake_s -= 60
        return self.consume(1, 0)[0]

    def consume(self, count: int, _timeout_s: float) -> list[Any]:
        first, self._next = self._next, self._next + count
        return [_Arrived(offset, self._value) for offset in range(first, first + count)]

    def commit(self, **_: object) -> list[Any]:
        self.asked += 1
        if self._left:
            self._left -= 1
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return []

    def list_topics(self, **_: object) -> None:
        """It answers."""


def _reading(consumer: _Napping) -> KafkaSubscription:
    link = KafkaLink(KafkaUrl.parse("kafka://127.0.0.1:1"), timeout_s=1)
    member = KafkaSubscription(
        link, ["messages"], group="g", member="a", listener=Owner(), max_poll_s=60, is_seat_taken=lambda: False
    )
    consumer.member = member
    member._consumer = consumer  # type: ignore[assignment]
    member._owned[ONE] = _Owned(epoch=1, committed=5, next=5)
    return member


def test_nothing_is_lost_or_returned_while_nobody_says_that_it_is_still_ours() -> None:
    """What librdkafka handed over in the poll that was slept through is not to be had again."""
    consumer = _Napping(naps=2)
    member = _reading(consumer)
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            member.poll(0.0)
    offsets = [each.offset for _ in range(3) for each in member.poll(0.0)]
    assert offsets[:3] == [5, 6, 7]
    assert offsets == list(range(5, 5 + len(offsets)))
    assert consumer.asked == 3, "once it was answered nobody asks again"


def test_no_more_is_held_than_polls_return() -> None:
    """Of large records a poll returns a few: what librdkafka has beyond them stays there, within its own limit."""
    member = _reading(_Napping(size=100_000))
    for _ in range(20):
        member.poll(0.0)
    assert sum(len(each.value) for each in member._owned[ONE].fetched) < 2 * CONSUME_RECORDS * 100_000


# --- ownership ---------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_every_new_owner_has_a_higher_epoch_also_after_the_offsets_were_reset_by_hand(
    open_log: Callable[..., KafkaLog], log: KafkaLog, url: str
) -> None:
    epochs = []
    for run in range(4):
        owner = Owner()
        member = open_log().subscribe(["messages"], group="bridge", member="a", listener=owner)
        poll_until(lambda owner=owner: ONE in owner.epochs, member.poll)  # type: ignore[misc]
        epochs.append(owner.epochs[ONE])
        member.close()
        if run == 1:
            _reset_offsets(url)
    assert epochs == sorted(set(epochs))


def _reset_offsets(url: str, offset: int = 0) -> None:
    """As kafka-consumer-groups.sh --reset-offsets does it: without the metadata."""
    where = KafkaUrl.parse(url)
    consumer = Consumer({"bootstrap.servers": where.servers, "group.id": where.prefix + "bridge"})
    consumer.commit(offsets=[Place(where.prefix + "messages", 0, offset)], asynchronous=False)
    consumer.close()


@pytest.mark.cluster
def test_a_log_that_lost_its_end_is_read_from_its_start_and_committed_again(
    url: str, log: KafkaLog, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes under offsets that were committed once is news: skipped, it would be lost for good."""
    log.append([record() for _ in range(3)])
    _reset_offsets(url, 1000)
    for committed, expected in ((2, [0, 1, 2]), (3, [2])):
        member = log.subscribe(["messages"], group="bridge", member="a", listener=Owner())
        found: list[Record] = []

        def take(timeout_s: float, found: list[Record] = found, member: Any = member) -> list[Record]:
            found.extend(member.poll(timeout_s))
            return found

        with caplog.at_level(logging.ERROR, logger="messaging"):
            poll_until(lambda found=found, expected=expected: len(found) == len(expected), take)  # type: ignore[misc]
        assert [each.offset for each in found] == expected
        member.commit({ONE: committed})
        member.close()
        assert log.committed("bridge", ONE) == committed
    [told] = [each for each in caplog.records if "ends before what the group committed" in each.message]
    assert (told.__dict__["committed"], told.__dict__["offset"], told.__dict__["end"]) == (1000, 0, 3)


@pytest.mark.cluster
def test_a_topic_that_was_made_again_is_read_from_its_start(
    server: Kafka, url: str, log: KafkaLog, open_log: Callable[..., KafkaLog]
) -> None:
    read_up_to(5, of=5, log=log)
    admin = AdminClient({"bootstrap.servers": server.bootstrap})
    [done] = admin.delete_topics([KafkaUrl.parse(url).prefix + "messages"]).values()
    done.result(PATIENCE_S)
    again = open_log()
    poll_until(lambda: bool(again.lacking([Topic("messages", partitions=1)])))
    again.ensure_topics([Topic("messages", partitions=1)])
    _reset_offsets(url, 5)  # a server that deletes a topic forgets its offsets; one that lost it does not
    again.append([record(b"again")])
    second = log.subscribe(["messages"], group="bridge", member="b", listener=Owner())
    found: list[Record] = []

    def take(timeout_s: float) -> list[Record]:
        found.extend(second.poll(timeout_s))
        return found

    poll_until(lambda: bool(found), take)
    assert [(each.offset, each.value) for each in found] == [(0, b"again")]
    second.commit({ONE: 1})
    second.close()
    assert again.committed("bridge", ONE) == 1


@pytest.mark.cluster
def test_a_commit_keeps_the_epoch_for_the_next_owner(log: KafkaLog, url: str) -> None:
    log.append([record()])
    owner = Owner()
    member = log.subscribe(["messages"], group="bridge", member="a", listener=owner)
    poll_until(lambda: ONE in owner.epochs, member.poll)
    member.commit({ONE: 1})
    where = KafkaUrl.parse(url)
    consumer = Consumer({"bootstrap.servers": where.servers, "group.id": where.prefix + "bridge"})
    [place] = consumer.committed([Place(where.prefix + "messages", 0)], timeout=5)
    assert (place.offset, place.metadata) == (1, str(owner.epochs[ONE]))
    consumer.close()
    member.close()


@pytest.mark.cluster
def test_a_stable_name_is_taken_over_at_once_and_the_run_before_it_waits_for_its_turn(
    open_log: Callable[..., KafkaLog], log: KafkaLog
) -> None:
    log.append([record()])
    before, again = Owner(), Owner()
    first = open_log(SOON_MISSED).subscribe(["messages"], group="bridge", member="bridge-0", listener=before)
    poll_until(lambda: ONE in before.epochs, first.poll)
    old_epoch = before.epochs[ONE]
    second = open_log(SOON_MISSED).subscribe(["messages"], group="bridge", member="bridge-0", listener=again)
    poll_until(lambda: ONE in again.epochs, second.poll)
    assert again.epochs[ONE] > old_epoch
    with pytest.raises(LeaseLost):
        first.commit({ONE: 1})
    poll_until(lambda: not before.epochs, first.poll)
    assert before.told[-1] == "lost"
    for _ in range(20):
        assert first.poll(0.05) == []
        second.poll(0.05)
    assert ONE in again.epochs
    second.close()
    poll_until(lambda: ONE in before.epochs, first.poll)
    first.close()


@pytest.mark.cluster
def test_a_consumer_that_does_not_end_holds_nobody_up(
    log: KafkaLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As librdkafka's may: its callback waits for a thread of its own that has ended (seen on a machine under load)."""

    class Endless:
        def close(self) -> None:
            over.wait(60)

    monkeypatch.setattr(kafka_subscription, "LEAVES_WITHIN_S", 0.1)
    over, owner = threading.Event(), Owner()
    member = log.subscribe(["messages"], group="bridge", member="a", listener=owner)
    poll_until(lambda: ONE in owner.epochs, member.poll)
    real, member._consumer = member._consumer, Endless()  # type: ignore[assignment]
    try:
        member.close()
        assert "does not end" in caplog.text
        assert owner.told == ["assigned", "revoked"]
    finally:
        over.set()
        assert real is not None
        real.close()


@pytest.mark.cluster
def test_a_restart_under_a_stable_name_moves_nothing_between_the_others(
    open_log: Callable[..., KafkaLog], log: KafkaLog
) -> None:
    log.ensure_topics([Topic("wide", partitions=4)])
    owners = [Owner(), Owner()]
    members: list[Any] = [
        open_log(STATIC).subscribe(["wide"], group="bridge", member=f"bridge-{n}", listener=owner)
        for n, owner in enumerate(owners)
    ]
    poll_until(lambda: [len(owner.epochs) for owner in owners] == [2, 2], *(each.poll for each in members))
    shares, told = [set(owner.epochs) for owner in owners], list(owners[0].told)
    members[1].close()
    back = Owner()
    member = open_log(STATIC).subscribe(["wide"], group="bridge", member="bridge-1", listener=back)
    poll_until(lambda: set(back.epochs) == shares[1], members[0].poll, member.poll)
    assert set(owners[0].epochs) == shares[0]
    assert owners[0].told == told
    members[0].close()
    member.close()


@pytest.mark.cluster
def test_a_frozen_process_returns_nothing_of_what_it_lost(
    open_log: Callable[..., KafkaLog], log: KafkaLog, url: str
) -> None:
    """It fetched ahead, was stopped for longer than its session, and wakes up while somebody else owns it all."""
    spawn = multiprocessing.get_context("spawn")  # a fork beside librdkafka's threads may inherit a lock of theirs
    mine, theirs = spawn.Pipe()
    child = spawn.Process(target=_poll_then_report, args=(url, theirs))
    child.start()
    theirs.close()  # so that its end is heard
    try:
        assert child.pid is not None
        assert mine.poll(3 * PATIENCE_S)  # it starts, and then may take as long as we do
        assert mine.recv() == "ready"
        os.kill(child.pid, signal.SIGSTOP)
        heir = Owner()
        member = open_log().subscribe(["messages"], group="bridge", member="b", listener=heir)
        poll_until(lambda: ONE in heir.epochs, member.poll)
        os.kill(child.pid, signal.SIGCONT)
        assert mine.poll(3 * PATIENCE_S)
        assert mine.recv() == ("0 records", "refused", "lost")
        member.close()
    finally:
        child.kill()
        child.join()


def _poll_then_report(url: str, say: Connection) -> None:
    owner = Owner()
    log = KafkaLog(url, append_timeout_s=PATIENCE_S, max_poll_s=KAFKA_MAX_POLL_S)
    member = log.subscribe(["messages"], group="bridge", member="a", listener=owner)
    poll_until(lambda: ONE in owner.epochs, member.poll)
    log.append([record() for _ in range(10)])
    threading.Event().wait(0.5)  # librdkafka fetches them ahead; nobody polls
    awake_s = time.monotonic()
    say.send("ready")
    while (now_s := time.monotonic()) - awake_s < KAFKA_SESSION_S / 2:
        awake_s = now_s  # spins, so that nothing of librdkafka's comes between waking up and polling
    found = member.poll(0)
    try:
        member.commit({ONE: 1})
        answer = "committed"
    except LeaseLost:
        answer = "refused"
    say.send((f"{len(found)} records", answer, owner.told[-1]))
    threading.Event().wait()


@pytest.mark.cluster
def test_a_child_may_collect_the_garbage_of_logs_that_its_parent_closed(
    open_log: Callable[..., KafkaLog], log: KafkaLog
) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            other = open_log()
            other.append([record()])
            other.end_offset(ONE)
            other.close()
        deadline = time.monotonic() + PATIENCE_S
        while any(thread.name == "kafka-deliveries" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            log.close()
            threading.Event().wait(0.05)
        a_child_can(lambda: (gc.collect(), log.append([record()])))
    finally:
        gc.enable()


# --- topics ------------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_topics_that_differ_from_their_declaration_are_told(log: KafkaLog, open_log: Callable[..., KafkaLog]) -> None:
    declared = [Topic("messages", partitions=1), Topic("inbound", partitions=1)]
    assert [(each.topic, each.what, each.is_shortage) for each in log.drift(declared)] == [("inbound", "topic", True)]
    wider = [Topic("messages", partitions=4)]
    assert [(each.what, each.declared, each.found) for each in log.lacking(wider)] == [("partitions", "4", "1")]
    assert [each.what for each in open_log("&replication=3").drift(declared[:1])] == ["replicas"]
    assert log.lacking(declared[:1]) == log.drift(declared[:1]) == []


@pytest.mark.cluster
def test_who_is_in_a_group_is_asked_again_while_it_changes_its_coordinator(
    log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS]

    ask = AdminClient.describe_consumer_groups

    def ask_while_it_moves(admin: AdminClient, groups: list[str], **limits: Any) -> dict[str, Future[Any]]:
        if not first:
            return ask(admin, groups, **limits)
        refused: Future[Any] = Future()
        refused.set_exception(KafkaException(KafkaError(first.pop())))
        return {groups[0]: refused}

    monkeypatch.setattr(AdminClient, "describe_consumer_groups", ask_while_it_moves)
    member = log.subscribe(["messages"], group="bridge", member="a", listener=Owner())
    poll_until(lambda: bool(member._owned), member.poll)
    assert len(log.members("bridge")) == 1
    assert not first
    member.close()


def test_a_coordinator_that_stays_away_is_told_in_time() -> None:
    link, asked = KafkaLink(KafkaUrl.parse("kafka://127.0.0.1:1"), timeout_s=3), []

    def ask(left_s: float) -> None:
        asked.append(left_s)
        raise KafkaException(KafkaError(KafkaError.NOT_COORDINATOR))

    with pytest.raises(LogUnavailable, match="NOT_COORDINATOR"), link.explained():
        link.insisted(ask)
    assert len(asked) > 1
    assert asked == sorted(asked, reverse=True)


@pytest.mark.parametrize(
    ("found", "replicas", "shortages"),
    [
        ({}, 3, []),
        ({"min.insync.replicas": "1"}, 3, ["min.insync.replicas"]),  # acknowledged by all may then mean by one
        ({"min.insync.replicas": "3"}, 3, []),
        ({"min.insync.replicas": "1"}, 1, []),  # the replicas are told, and one cannot be asked for two
        ({"min.insync.replicas": "2"}, 1, ["min.insync.replicas"]),  # then nothing is ever accepted
        ({"min.insync.replicas": "2"}, 5, []),
        ({"max.message.bytes": "1048588"}, 3, ["max.message.bytes"]),
        ({"max.message.bytes": "10485760"}, 3, []),
        ({"cleanup.policy": "compact"}, 3, ["cleanup.policy"]),
        ({"retention.ms": "-1", "retention.bytes": "1"}, 3, []),
        ({"segment.ms": "604800000"}, 3, []),
    ],
)
def test_a_shortage_is_what_a_promise_hangs_on(found: dict[str, str], replicas: int, shortages: list[str]) -> None:
    topic = Topic("messages")
    settings = {
        "cleanup.policy": "delete",
        "retention.ms": "604800000",
        "retention.bytes": "-1",
        "segment.ms": "86400000",
        "min.insync.replicas": "2",
        "max.message.bytes": str(MAX_RECORD_BYTES + 128 * 1024),
        **found,
    }
    drift = settings_drift(topic, settings, replicas=replicas, wanted=3)
    assert [each.what for each in drift if each.is_shortage] == shortages


@pytest.mark.parametrize(
    ("retention", "segment_ms"), [(timedelta(days=7), "86400000"), (timedelta(hours=1), "3600000")]
)
def test_no_record_stays_for_longer_than_its_delivery_claim(retention: timedelta, segment_ms: str) -> None:
    """A segment goes with its newest record: with Kafka's own seven days one of a quiet topic stays for fourteen."""
    found = {
        "cleanup.policy": "delete",
        "retention.ms": str(int(retention.total_seconds() * 1000)),
        "retention.bytes": "-1",
        "segment.ms": "604800000",
        "min.insync.replicas": "2",
        "max.message.bytes": str(MAX_RECORD_BYTES + 128 * 1024),
    }
    drift = settings_drift(Topic("messages", retention=retention), found, replicas=3, wanted=3)
    assert [(each.what, each.declared) for each in drift] == [("segment.ms", segment_ms)]
    assert MAX_RETENTION + SEGMENT < CLAIM_LIFETIME


@pytest.mark.cluster
def test_more_replicas_than_servers_are_refused_in_words(open_log: Callable[..., KafkaLog]) -> None:
    with pytest.raises(LogRefused, match=r"refuses the request: INVALID_REPLICATION_FACTOR \(.*replication=N"):
        open_log("&replication=3").ensure_topics([Topic("messages")])


def test_handles_of_a_process_open_only_on_use() -> None:
    before = threading.active_count()
    log = KafkaLog("kafka://127.0.0.1:1")
    log.subscribe(["messages"], group="bridge", member="a", listener=Owner())
    assert KafkaLink(KafkaUrl.parse("kafka://127.0.0.1:1"), timeout_s=1).url.servers == "127.0.0.1:1"
    assert threading.active_count() == before


@pytest.mark.cluster
def test_records_that_retention_took_before_they_were_read_are_told(
    server: Kafka, url: str, log: KafkaLog, caplog: pytest.LogCaptureFixture
) -> None:
    read_up_to(2, of=6, log=log)
    admin = AdminClient({"bootstrap.servers": server.bootstrap})
    [done] = admin.delete_records([Place(KafkaUrl.parse(url).prefix + "messages", 0, 5)]).values()
    done.result(PATIENCE_S)
    second = log.subscribe(["messages"], group="bridge", member="b", listener=Owner())
    found: list[Record] = []

    def take(timeout_s: float) -> list[Record]:
        found.extend(second.poll(timeout_s))
        return found

    with caplog.at_level(logging.ERROR, logger="messaging"):
        poll_until(lambda: bool(found), take)
    second.close()
    assert [each.offset for each in found] == [5]
    [told] = [each for each in caplog.records if "never read" in each.message]
    assert (told.__dict__["topic"], told.__dict__["offset"], told.__dict__["count"]) == ("messages", 2, 3)
