"""Where Kafka is and how it is spoken to: the URL, what all handles share, and every failure as LogUnavailable."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from messaging.errors import LogRefused, LogUnavailable

logger = logging.getLogger(__name__)

SESSION_TIMEOUT_S: Final = 6.0  # how long a killed member keeps its partitions
MAX_POLL_S: Final = 10.0  # the same for one that is stuck; more than the 5 s that a drain may take

SETUP_MS: Final = 5000
"""For a connection. What is lost while a server hangs comes again ever more rarely, by TCP's rules: within librdkafka's
own limit, half a minute, that can be 16 s after the server woke."""

MUTE_S: Final = 10.0
"""After so long without an answer another takes a handle's place. A cluster that says for a moment that it has no
servers, as one may that is back from a freeze, leaves librdkafka with none for ever (its issue 5301, open in 2.16)."""

T = TypeVar("T")
Setting = str | int | float | bool
_SASL_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_OPTIONS: Final = ("ca", "sasl", "replication", "session_timeout_s", "static")

_NOT_ALLOWED: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)

# The servers answer, and would say the same again: what to change.
_ELSEWHERE: Final = "what it says has to change first, in our settings or on the servers"
_REFUSALS: Final = {
    KafkaError.INVALID_REPLICATION_FACTOR: "ask for no more replicas than there are servers "
    "(?replication=N in EVENT_LOG_URL, setup_topics --replication-factor N)",
    KafkaError.POLICY_VIOLATION: "the cluster has rules for topics (create.topic.policy.class.name): change them, or "
    "make the topics as they want them with Kafka's own tools",
    KafkaError.MSG_SIZE_TOO_LARGE: "the topic's max.message.bytes is too small; manage.py setup_topics says what it "
    "has to be",
    KafkaError.TOPIC_EXCEPTION: "choose another name in EVENT_LOG_URL: topics begin with it (letters, digits, . _ -)",
    **dict.fromkeys(
        (
            KafkaError.INVALID_PARTITIONS,
            KafkaError.INVALID_REPLICA_ASSIGNMENT,
            KafkaError.INVALID_CONFIG,
            KafkaError.INVALID_REQUEST,
            KafkaError.UNSUPPORTED_VERSION,
        ),
        _ELSEWHERE,
    ),
}

PASSING: Final = frozenset(  # somebody is about to lead this partition or group
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,  # seen on topics just created
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)

# What librdkafka says on each attempt to connect: `Presence` says it once.
_CONNECTION_NEWS: Final = frozenset({"FAIL", "ERROR", "BRKMAIN", "GETPID", "SESSTMOUT", "REQTMOUT", "SSL"})


@dataclass(frozen=True, slots=True)
class KafkaUrl:
    """``kafka://[user:password@]host:port[,host:port…][/name][?option=value…]``; ``kafka+ssl`` speaks TLS.

    With a name all topics and groups are called ``name.…``: several systems may share a cluster. Options: ``ca`` (file
    with the authority's certificates), ``sasl`` (mechanism, SCRAM-SHA-512 unless told), ``replication`` (of topics that
    are created), ``session_timeout_s``, ``static=1`` (the names of members are stable).
    """

    servers: str
    security: Mapping[str, Setting] = field(default_factory=dict)
    replication: int | None = None
    session_timeout_s: float = SESSION_TIMEOUT_S
    static: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> KafkaUrl:
        """Raises ValueError, without the password, for what cannot be understood."""
        parts = urlsplit(url)
        credentials, _, servers = parts.netloc.rpartition("@")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise ValueError(f"unknown option {', '.join(unknown)}; known are {', '.join(_OPTIONS)}")
        name = parts.path.strip("/")
        if not servers or not all(_is_address(server) for server in servers.split(",")):
            raise ValueError(f"{servers!r} is no list of host:port")
        try:
            return cls(
                servers,
                security=_security(credentials, tls=parts.scheme == "kafka+ssl", options=options),
                replication=int(options["replication"]) if "replication" in options else None,
                session_timeout_s=float(options.get("session_timeout_s", SESSION_TIMEOUT_S)),
                static=_is_true(options.get("static", "0")),
                prefix=f"{name}." if name else "",
            )
        except ValueError as error:
            raise ValueError(f"an option is not understood: {error}") from None


def _is_address(server: str) -> bool:
    host, _, port = server.rpartition(":")
    return bool(host) and port.isdigit()


def _is_true(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f"static is 0 or 1, not {text!r}")
    return text == "1"


def _security(credentials: str, *, tls: bool, options: Mapping[str, str]) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    if credentials:
        user, _, password = credentials.partition(":")
        mechanism = options.get("sasl", "SCRAM-SHA-512")
        if mechanism not in _SASL_MECHANISMS:
            raise ValueError(f"sasl is one of {', '.join(_SASL_MECHANISMS)}")
        settings |= {"sasl.mechanism": mechanism}
        settings |= {"sasl.username": unquote(user), "sasl.password": unquote(password)}
    if tls and "ca" in options:
        settings["ssl.ca.location"] = options["ca"]
    protocol = ("SASL_" if credentials else "") + ("SSL" if tls else "PLAINTEXT")
    return {**settings, "security.protocol": protocol}


class Presence:
    """Whether the servers answer, as far as this process heard: one line in the log for each change."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._is_away = False
        self.last_error = ""  # why a connection failed lately, for people
        self.refuses_us = False  # that is why

    def failed(self, error: KafkaError) -> None:
        self.last_error = error.str()
        # librdkafka has one code for all that TLS may fail at, also for a server that goes away meanwhile
        self.refuses_us = error.code() in _NOT_ALLOWED or "certificate verify failed" in self.last_error

    def away(self) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("kafka is away", extra={"servers": self._servers, "error": self.last_error})

    def answered(self) -> None:
        self.last_error, self.refuses_us = "", False
        if self._is_away:
            self._is_away = False
            logger.info("kafka is back", extra={"servers": self._servers})


class KafkaLink:
    """What all handles of one log share. Connects to nothing itself, and may cross a fork."""

    def __init__(self, url: KafkaUrl, *, timeout_s: float) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self.presence = Presence(url.servers)

    def config(self, on_error: Callable[[KafkaError], None] | None = None) -> dict[str, object]:
        """Settings of any handle; ``on_error`` is told too of what `Presence` hears."""

        def heard(error: KafkaError) -> None:
            if error.code() == KafkaError._ALL_BROKERS_DOWN:
                self.presence.away()
            else:
                self.presence.failed(error)
            if on_error:
                on_error(error)

        return {
            "bootstrap.servers": self.url.servers,
            "client.id": "chat4all",
            **self.url.security,
            "socket.timeout.ms": max(1000, int(self.timeout_s * 1000)),
            "socket.keepalive.enable": True,
            "socket.connection.setup.timeout.ms": SETUP_MS,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,  # unless told it may take 10 s to notice that the server is back
            "log.connection.close": False,
            "error_cb": heard,
            "logger": _LibraryLog(),
        }

    def named(self, topic: str) -> str:
        """A topic or group as the cluster knows it."""
        return self.url.prefix + topic

    def ours(self, topic: str) -> str:
        return topic.removeprefix(self.url.prefix)

    def unavailable(self, what: str, *, refused: bool = False) -> LogUnavailable:
        """LogRefused when it, or the last connection, was ``refused``."""
        why = f" ({self.presence.last_error})" if self.presence.last_error else ""
        kind = LogRefused if refused or self.presence.refuses_us else LogUnavailable
        return kind(
            f"The event log (Kafka at {self.url.servers}) {what}{why}. Hint: see that it runs, "
            f"that this machine reaches it, and that EVENT_LOG_URL and its credentials are right"
        )

    def failed(self, cause: KafkaError) -> LogUnavailable:
        """What a request that ended so means."""
        if remedy := _REFUSALS.get(cause.code()):
            said = f"{cause.name()} ({cause.str().rstrip('.')})"
            return LogRefused(
                f"The event log (Kafka at {self.url.servers}) refuses the request: {said}. Hint: {remedy}"
            )
        if cause.code() in _NOT_ALLOWED:
            return self.unavailable(f"refuses us: {cause.name()}", refused=True)
        return self.unavailable(f"does not answer: {cause.name()}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Whatever keeps Kafka from answering is LogUnavailable, and what it refuses LogRefused."""
        try:
            yield
        except KafkaException as error:
            raise self.failed(error.args[0]) from error
        self.presence.answered()

    def insisted(self, ask: Callable[[float], T], *, also: Collection[int] = ()) -> T:
        """What ``ask``, told the seconds that are left, brings: once more while a partition or group changes hands, or
        it says ``also`` one of these. Raises KafkaException when it goes on saying so, and for all else."""
        deadline_s = time.monotonic() + self.timeout_s
        while True:
            try:
                return ask(max(0.001, deadline_s - time.monotonic()))
            except KafkaException as error:
                if error.args[0].code() not in {*PASSING, *also} or time.monotonic() >= deadline_s:
                    raise
            _pause()


def _pause() -> None:
    threading.Event().wait(0.02)


class Silence:
    """From the first call that nothing answered to the last, with none between that was answered; seconds."""

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._last_s = 0.0

    def broken(self) -> None:
        self._first_s = None

    def goes_on(self) -> None:
        self._last_s = time.monotonic()
        self._first_s = self._last_s if self._first_s is None else self._first_s

    @property
    def is_long(self) -> bool:
        first_s = self._first_s
        return first_s is not None and self._last_s - first_s >= MUTE_S


class Usage:
    """Who is inside a handle that threads share, and whether it answers them. It is closed when nobody is: librdkafka
    would read what it has freed."""

    def __init__(self, link: KafkaLink) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._users = 0
        self._has_ended = False
        self.silence = Silence()

    def __enter__(self) -> None:
        """Raises LogUnavailable after its end."""
        with self._lock:
            if self._has_ended:
                raise self._link.unavailable("is not asked any more: what asked it is closed")
            self._users += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._users -= 1
        if kind is None:
            self.silence.broken()
        elif issubclass(kind, LogUnavailable):
            self.silence.goes_on()

    def end(self, meanwhile: Callable[[], object] = _pause) -> None:
        """Nobody enters any more. Returns once nobody is inside, and calls ``meanwhile`` again and again until then."""
        with self._lock:
            self._has_ended = True
        while self._users:
            meanwhile()


Handle = TypeVar("Handle")
_open: Final[dict[int, object]] = {}  # librdkafka's handles of this process


def opened(handle: Handle) -> Handle:
    """Remember a handle until `closed`: a child can neither use what it inherits of it, nor free it without a crash."""
    _open[id(handle)] = handle
    return handle


def closed(handle: object) -> None:
    _open.pop(id(handle), None)


def _forked() -> None:
    """In a child, where the threads behind the handles are missing: they stay for ever, whoever else lets them go."""
    for handle in _open.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))
    _open.clear()


@contextmanager
def client_for_once(link: KafkaLink) -> Iterator[AdminClient]:
    """Raises KafkaException when none can be opened."""
    client = opened(AdminClient(link.config()))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        closed(client)


def answers_anew(link: KafkaLink, *, timeout_s: float) -> bool:
    """Whether servers answer a client that was never there before."""
    try:
        with client_for_once(link) as client:
            client.list_topics(timeout=timeout_s)
    except KafkaException:
        return False
    return True


os.register_at_fork(after_in_child=_forked)


class _LibraryLog:
    """librdkafka's own log lines in ours. Only ``log`` is called."""

    def log(self, level: int, text: str, facility: str, *rest: object) -> None:
        if facility in _CONNECTION_NEWS:
            level = logging.DEBUG
        logger.log(min(level, logging.WARNING), text, facility, *rest)
