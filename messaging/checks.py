"""`manage.py check --deploy`: which part is unreachable or misconfigured, and how to mend it.

All parts are asked at the same time and each has TIMEOUT_S, so that the whole takes seconds whatever is away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import DatabaseError, connections
from django.db.migrations.executor import MigrationExecutor

from accounts.checks import database_answers
from accounts.models import Workspace
from core import failpoints
from core.database import remedy, unpooled
from core.errors import Chat4AllError, Unavailable
from files import services as files
from files.checks import storage_answers
from messaging import channels, redis_rules, wiring

TIMEOUT_S: Final = 5.0  # for one that does not end its own look after 2 s, as each should
MAX_SKEW_S: Final = 1.0
TAG: Final = "parts"

Look = Callable[[], Iterable[CheckMessage]]


@dataclass(frozen=True, slots=True)
class Part:
    """``look`` yields what is wrong; an Unavailable that it raises is told as ``number``."""

    name: str
    number: str
    variable: str
    look: Look


@register(TAG, deploy=True)
def parts_are_ready(**_: Any) -> list[CheckMessage]:
    """Every part of the system, and the addresses under which others reach it."""
    files.storage().__class__  # noqa: B018 - to load boto3 may take longer than to ask
    asked = [(part, _started(part)) for part in _parts()]
    deadline_s = time.monotonic() + TIMEOUT_S
    return [message for part, answer in asked for message in _answer(part, answer, deadline_s)] + [
        *_addresses(),
        *_switches(),
    ]


def _parts() -> tuple[Part, ...]:
    return (
        Part("event log", "E001", "EVENT_LOG_URL", _event_log),
        Part("message store", "E011", "MESSAGE_STORE_URL", _message_store),
        Part("accounts' database", "E021", "DATABASE_URL", _accounts),
        Part("file storage", "E031", "FILES_URL", _files),
        Part("bus", "E041", "BUS_URL", _bus),
    )


def _started(part: Part) -> Future[list[CheckMessage]]:
    answer: Future[list[CheckMessage]] = Future()

    def look() -> None:
        try:
            answer.set_result(list(part.look()))
        except BaseException as error:  # raised where the answer is awaited
            answer.set_exception(error)
        finally:
            connections.close_all()

    Thread(target=look, name=f"check-{part.name}", daemon=True).start()
    return answer


def _answer(part: Part, answer: Future[list[CheckMessage]], deadline_s: float) -> list[CheckMessage]:
    try:
        return answer.result(max(0.0, deadline_s - time.monotonic()))
    except TimeoutError:
        return [_error(part.number, f"The {part.name} did not answer within {TIMEOUT_S:g} s.", part.variable)]
    except Chat4AllError as error:
        return [_error(part.number, error.detail, part.variable)]
    except Exception as error:  # its text may hold a URL with a password
        return [_error(part.number, f"The {part.name} failed: {type(error).__name__}.", part.variable)]


def _error(number: str, message: str, variable: str) -> CheckMessage:
    return Error(message, hint=f"{variable} names it; see docs/configuration.md.", id=f"chat4all.{number}")


# --- parts -------------------------------------------------------------------------------------------------------


def _event_log() -> Iterator[CheckMessage]:
    log = wiring.event_log()
    log.ping()
    if drift := getattr(log, "drift", None):  # a TopicAdmin
        yield from _drift(drift(wiring.all_topics()))
    if redis_rules.is_redis(settings.EVENT_LOG_URL):
        rules = redis_rules.read(settings.EVENT_LOG_URL, part="The event log", variable="EVENT_LOG_URL")
        yield from _rules("event log", "3", redis_rules.log_faults(rules))
        yield from _clock("the event log's server", rules.ahead_s)


def _drift(drift: Iterable[Any]) -> Iterator[CheckMessage]:
    for each in drift:
        kind, number = (Error, "E002") if each.is_shortage else (Warning, "W002")
        yield kind(
            f"Topic {each.topic}: {each.what} should be {each.declared}, found {each.found}.",
            hint="Run manage.py setup_topics: it creates what is missing and says how to mend the rest.",
            id=f"chat4all.{number}",
        )


def _message_store() -> Iterator[CheckMessage]:
    url = urlsplit(settings.MESSAGE_STORE_URL)
    if url.scheme == "orm" and (pending := _unapplied(url.netloc or "messages", "MESSAGES_DATABASE_URL")):
        yield _migrate(url.netloc or "messages", pending, "E012")
        return  # its ping would only say that a table is missing
    store = wiring.message_store()
    store.ping()
    for where in store.thin_replication():
        yield Warning(
            f"The message store keeps each row {where}: one that is lost or away takes messages along.",
            hint="ALTER KEYSPACE … WITH replication = …, then nodetool repair --full on each node; "
            "setup_keyspace --replication says what differs.",
            id="chat4all.W011",
        )


def _accounts() -> Iterator[CheckMessage]:
    database_answers()
    if pending := _unapplied("default", "DATABASE_URL"):
        yield _migrate("default", pending, "E022")
    else:
        yield from agents_are_there()
        yield from _registration()
    connection = unpooled("default")
    if connection.vendor == "postgresql":
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
            ahead_s = float(cursor.fetchone()[0]) - time.time()
        yield from _clock("the accounts' database", ahead_s)


def agents_are_there() -> Iterator[CheckMessage]:
    for account in channels.unattended():
        yield Warning(
            f"The channel account {account} is active. {channels.UNATTENDED}",
            hint="Choose its agents in the admin, or name them with manage.py add_channel_account --agent.",
            id="chat4all.W023",
        )


def _registration() -> Iterator[CheckMessage]:
    """Elsewhere than in production it is open on purpose: people try it out."""
    if not settings.PRODUCTION:
        return
    for workspace in Workspace.objects.filter(open_registration=True).order_by("slug"):
        yield Warning(
            f"Anybody may register in the workspace {workspace}.",
            hint="Unless it is for everybody, take Open registration away from it in the admin.",
            id="chat4all.W024",
        )


def _unapplied(alias: str, variable: str) -> int:
    """How many migrations wait. Raises Unavailable."""
    connection = unpooled(alias)
    try:
        executor = MigrationExecutor(connection)
        return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    except DatabaseError as error:
        raise Unavailable(remedy(f"The database {alias!r}", error, variable)) from error
    finally:
        connection.close()


def _migrate(alias: str, pending: int, number: str) -> CheckMessage:
    return Error(
        f"The database {alias!r} lacks {pending} migrations.",
        hint=f"Run manage.py migrate --database {alias}",
        id=f"chat4all.{number}",
    )


def _files() -> Iterator[CheckMessage]:
    storage_answers()
    yield from ()


def _bus() -> Iterator[CheckMessage]:
    rules = redis_rules.read(settings.BUS_URL, part="The bus", variable="BUS_URL")
    yield from _rules("bus", "42", redis_rules.bus_faults(rules))
    yield from _clock("the bus's server", rules.ahead_s)
    if redis_rules.is_redis(settings.EVENT_LOG_URL) and _same_server(rules):
        yield Error(
            "The event log and the bus are one redis-server: the bus may be flushed at any time, the log never.",
            hint="Give EVENT_LOG_URL a redis-server of its own (another database number is not enough).",
            id="chat4all.E043",
        )


def _same_server(bus: redis_rules.Rules) -> bool:
    try:
        log = redis_rules.read(settings.EVENT_LOG_URL, part="The event log", variable="EVENT_LOG_URL")
    except Unavailable:  # told as E001
        return False
    return bool(bus.run_id) and log.run_id == bus.run_id


def _rules(part: str, number: str, faults: Iterable[redis_rules.Fault]) -> Iterator[CheckMessage]:
    for fault in faults:
        kind, letter = (Error, "E") if fault.is_error else (Warning, "W")
        yield kind(
            f"The {part}'s redis-server {fault.what}.",
            hint=fault.remedy,
            id=f"chat4all.{letter}{number.zfill(3)}",
        )


def _clock(where: str, ahead_s: float) -> Iterator[CheckMessage]:
    if abs(ahead_s) > MAX_SKEW_S:
        yield Warning(
            f"This machine's clock and that of {where} differ by {abs(ahead_s):.1f} s: ids and leases go by time.",
            hint="Keep both with NTP (chrony, systemd-timesyncd).",
            id="chat4all.W052",
        )


def _switches() -> Iterator[CheckMessage]:
    if failpoints.FOLDER is not None:
        yield Error(
            "FAILPOINTS is set: whoever writes to its folder ends our processes and moves their clocks.",
            hint="Unset FAILPOINTS; it is for tests/faults.",
            id="chat4all.E061",
        )


def _addresses() -> Iterator[CheckMessage]:
    """Production refuses these at boot."""
    for name, scheme in (("API_URL", "https"), ("GATEWAY_URL", "wss")):
        if urlsplit(getattr(settings, name)).scheme != scheme:
            yield Warning(
                f"{name} is not {scheme}://: tokens travel there.",
                hint=f"{name}={scheme}://chat.example.com, and CHAT4ALL_ENV=production to enforce it.",
                id="chat4all.W051",
            )
