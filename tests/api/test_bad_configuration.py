"""A wrong environment is told by the part's name and what to do, and never makes the API hang: asked from outside.

`manage.py check --deploy` tells it before the start, `/ready` after it. Processes start together, once for all tests:
most of what they take is waiting.
"""

from __future__ import annotations

import secrets
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from connectors import registry
from demo.redis_server import RedisServer
from messaging import topics
from tests.api.outside import (
    BRIDGE,
    GATEWAY,
    LONGEST_S,
    PROBE_S,
    SLACK_S,
    TIMEOUT_S,
    World,
    apis,
    check,
    detail,
    fault,
    local_world,
    prompt,
    refused,
    register,
    started,
    until,
)
from tests.files import buckets
from tests.hub import log_at
from tests.stack.servers import needed


@pytest.fixture(autouse=True)
def servers() -> None:
    """None in this process: everything here is asked from outside."""


@pytest.fixture(scope="module")
def hole() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def closed() -> int:
    """A port that refuses."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with local_world(tmp_path_factory.mktemp("world")) as world:
        yield world


def kafka(*, partitions: int) -> str:
    """A log of its own on the broker whose topics have so many partitions; 0: it has no topics."""
    url = f"{needed('kafka')}/{uuid.uuid4().hex}"
    if partitions:
        log: Any = log_at(url)
        log.ensure_topics(topics.all_topics(registry.channels(), partitions))
        log.close()
    return url


# --- before the start ---------------------------------------------------------------------------------------------


def everything_at(port: int, profile: str) -> dict[str, str]:
    common = {
        "BUS_URL": f"redis://127.0.0.1:{port}/0",
        "FILES_URL": f"s3://key:pass-word@bucket?endpoint=http://127.0.0.1:{port}",
        "DATABASE_URL": f"postgres://user:pass-word@127.0.0.1:{port}/name",
    }
    if profile == "local":
        return {
            **common,
            "EVENT_LOG_URL": f"redis://127.0.0.1:{port}/0",
            "MESSAGES_DATABASE_URL": f"postgres://user:pass-word@127.0.0.1:{port}/name",
        }
    return {
        **common,
        "EVENT_LOG_URL": f"kafka://user:pass-word@127.0.0.1:{port}",
        "MESSAGE_STORE_URL": f"cassandra://user:pass-word@127.0.0.1:{port}/chat4all",
    }


VARIABLES: Final[dict[str, str | dict[str, str]]] = {
    "E001": "EVENT_LOG_URL",
    "E011": {"local": "MESSAGES_DATABASE_URL", "cluster": "MESSAGE_STORE_URL"},
    "E021": "DATABASE_URL",
    "E031": "FILES_URL",
    "E041": "BUS_URL",
}
AWAY: Final = [(profile, where) for profile in ("local", "cluster") for where in ("hole", "closed")]


@pytest.fixture(scope="module")
def told_of_what_is_away(world: World, hole: int, closed: int) -> dict[tuple[str, str], tuple[int, str]]:
    for part in ("postgres", "cassandra", "kafka"):
        needed(part)  # or its driver may not be installed
    ports = {"hole": hole, "closed": closed}
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(check, world, **everything_at(ports[where], profile)) for profile, where in AWAY]
        return {case: answer.result() for case, answer in zip(AWAY, asked, strict=True)}


@pytest.mark.cluster
@pytest.mark.parametrize(("profile", "where"), AWAY)
def test_a_check_names_every_part_that_is_away(
    profile: str, where: str, told_of_what_is_away: dict[tuple[str, str], tuple[int, str]]
) -> None:
    status, told = told_of_what_is_away[profile, where]
    assert status == 1
    for number, variable in VARIABLES.items():
        name = variable if isinstance(variable, str) else variable[profile]
        line = next(line for line in told.splitlines() if f"chat4all.{number}" in line)
        assert name in line, line
        assert "see that" in line or "check that" in line, line
    assert "pass-word" not in told


def test_a_check_tells_a_redis_that_would_lose_messages(tmp_path: Path, world: World) -> None:
    bus = RedisServer(tmp_path / "bus", rules=("appendonly no", "maxmemory-policy allkeys-lru")).start()
    try:
        switched = {"STATE_DIR": str(tmp_path / "state"), "FAILPOINTS": str(tmp_path)}
        status, told = check(world, **switched, EVENT_LOG_URL=bus.url, BUS_URL=bus.url)
    finally:
        bus.stop()
    assert status == 1
    for number, remedy in (
        ("E002", "manage.py setup_topics"),
        ("E003", "set appendonly yes"),
        ("E003", "set maxmemory-policy noeviction"),
        ("W003", "set maxmemory"),
        ("E042", "set maxmemory-policy noeviction"),
        ("W042", "set maxmemory to what it has for the bus"),
        ("E043", "a redis-server of its own"),
        ("E012", "manage.py migrate --database messages"),
        ("E022", "manage.py migrate --database default"),
        ("W051", "API_URL=https://"),
        ("E061", "Unset FAILPOINTS"),
    ):
        assert f"chat4all.{number}" in told, told
        assert remedy in told, told


PUBLIC: Final = {"API_URL": "https://chat.example.com", "GATEWAY_URL": "wss://chat.example.com"}


def test_a_check_has_nothing_to_say_of_a_system_that_is_set_up(world: World) -> None:
    status, told = check(world, **PUBLIC)
    assert (status, "no issues" in told) == (0, True), told


def test_a_check_of_production_tells_a_workspace_in_which_anybody_may_register(tmp_path: Path, world: World) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    production = {
        **PUBLIC,
        "CHAT4ALL_ENV": "production",
        "SECRET_KEY": secrets.token_urlsafe(48),
        "CHANNEL_SECRETS_KEY": secrets.token_urlsafe(48),
        "JWT_PRIVATE_KEY": key.decode(),
        "ALLOWED_HOSTS": "chat.example.com",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'accounts.sqlite3'}",
    }
    assert world.run("migrate", "-v0", "--database", "default", **production).returncode == 0
    status, told = check(world, **production)
    [line] = [line for line in told.splitlines() if "chat4all." in line]
    assert (status, line) == (1, "?: (chat4all.W024) Anybody may register in the workspace default.")
    assert "in the admin" in told
    close = "from accounts.models import Workspace; Workspace.objects.update(open_registration=False)"
    assert world.run("shell", "-c", close, **production).returncode == 0
    status, told = check(world, **production)
    assert (status, "no issues" in told) == (0, True), told


@pytest.mark.parametrize("log", ["redis", pytest.param("kafka", marks=pytest.mark.cluster)])
def test_a_check_tells_which_topics_have_too_few_partitions(log: str, world: World) -> None:
    url = world.log.url if log == "redis" else kafka(partitions=3)
    status, told = check(world, **PUBLIC, EVENT_LOG_URL=url, PARTITIONS="5")
    lines = [line for line in told.splitlines() if "chat4all." in line]
    assert status == 1
    assert [line for line in lines if "E002" not in line] == []  # retention and replicas are as declared
    assert len(lines) == len(topics.work_topics(registry.channels()))  # dead letters need no more
    assert any("Topic messages: partitions should be 5, found 3" in line for line in lines), told
    assert "manage.py setup_topics" in told


def test_a_check_tells_a_channel_account_whose_unknown_people_nobody_would_hear(tmp_path: Path, world: World) -> None:
    where = {"DATABASE_URL": f"sqlite:///{tmp_path / 'accounts.sqlite3'}"}
    assert world.run("migrate", "-v0", "--database", "default", **where).returncode == 0
    credentials = [f"--credential={name}=SECRET" for name in ("access_token", "app_secret", "verify_token")]
    command = ("add_channel_account", "--channel", "whatsapp", "--account-id", "1055", *credentials)
    added = world.run(*command, **where, SECRET=uuid.uuid4().hex)
    assert (added.returncode, "no active agent" in added.stderr) == (0, True), added.stderr
    status, told = check(world, **PUBLIC, **where)
    assert status == 1
    [line] = [line for line in told.splitlines() if "chat4all." in line]
    assert "chat4all.W023" in line
    assert "add_channel_account --agent" in told


@pytest.mark.cluster
def test_a_check_tells_a_keyspace_that_is_missing(world: World) -> None:
    url = f"{needed('cassandra').rstrip('/')}/missing_{uuid.uuid4().hex[:12]}"
    status, told = check(world, **PUBLIC, MESSAGE_STORE_URL=url)
    assert status == 1
    assert "chat4all.E011" in told
    assert "manage.py setup_keyspace" in told


# --- while it runs ------------------------------------------------------------------------------------------------


# --- bridge and gateway ----------------------------------------------------------------------------------------------


WRONG: Final = {
    "EVENT_LOG_URL": ("event log", "see that it runs"),
    "BUS_URL": ("bus", "see that it runs"),
    "MESSAGE_STORE_URL": ("message store", "check that it is up"),
    "DATABASE_URL": ("accounts", "see that its server runs"),
    "no topics": ("topics", "manage.py setup_topics"),
}
BESIDE_THE_API: Final = [
    (who, what) for who in ("bridge", "gateway") for what in WRONG if (who, what) != ("gateway", "MESSAGE_STORE_URL")
]


@pytest.fixture(scope="module")
def beside_the_api(
    world: World, closed: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, httpx.Client]]:
    """A bridge and a gateway with every URL wrong, and one of each whose log has no topics."""
    for part in ("postgres", "cassandra"):
        needed(part)  # or its driver may not be installed
    wrong = {
        "EVENT_LOG_URL": f"redis://127.0.0.1:{closed}/0",
        "BUS_URL": f"redis://127.0.0.1:{closed}/0",
        "MESSAGE_STORE_URL": f"cassandra://127.0.0.1:{closed}/chat4all",
        "DATABASE_URL": f"postgres://a:b@127.0.0.1:{closed}/x",
    }
    no_topics = {"EVENT_LOG_URL": world.log.url.removesuffix("/0") + "/1"}
    wanted = {
        f"{who} {what}": (command, {**world.environment, **changed})
        for who, command in (("bridge", BRIDGE), ("gateway", GATEWAY))
        for what, changed in (("wrong", wrong), ("no topics", no_topics))
    }
    with started(tmp_path_factory.mktemp("beside"), wanted) as clients:
        yield {
            f"{who} {what}": clients[f"{who} {what if what == 'no topics' else 'wrong'}"]
            for who, what in BESIDE_THE_API
        }


@pytest.mark.cluster
@pytest.mark.parametrize(("who", "what"), BESIDE_THE_API)
def test_a_bridge_and_a_gateway_name_what_they_cannot_use(
    who: str, what: str, beside_the_api: dict[str, httpx.Client]
) -> None:
    """And live on: what is away comes back."""
    client = beside_the_api[f"{who} {what}"]
    part, remedy = WRONG[what]
    told = fault(client, part)
    assert remedy in told
    assert what in told or what == "no topics"
    assert client.get("/health").status_code == 200
    assert prompt(client, "GET", "/ready", within_s=PROBE_S + SLACK_S).status_code == 503


# --- the accounts' database, and topics in Redis ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_database(
    world: World, hole: int, closed: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, httpx.Client]]:
    """Beside it they want more partitions than the log in Redis has; one has a log without topics."""
    parts = urlsplit(needed("postgres"))
    place = f"{parts.hostname}:{parts.port}"
    user = f"{parts.username}:{parts.password}" if parts.password else parts.username
    databases = {
        "hole": f"postgres://a:b@127.0.0.1:{hole}/x",
        "closed": f"postgres://a:b@127.0.0.1:{closed}/x",
        "no such database": f"postgres://{user}@{place}/no_such_database",
        "wrong credentials": f"postgres://nobody:b@{place}/postgres",
    }
    environments = {
        case: {**world.environment, "DATABASE_URL": url, "PARTITIONS": "5"} for case, url in databases.items()
    }
    environments["closed"]["EVENT_LOG_URL"] = world.log.url.removesuffix("/0") + "/1"
    with apis(tmp_path_factory.mktemp("databases"), environments) as clients:
        yield clients


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("case", "remedy"),
    [
        ("hole", "see that its server runs"),
        ("closed", "see that its server runs"),
        ("no such database", "create it"),
        ("wrong credentials", "correct"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_and_hangs_nobody(
    case: str, remedy: str, without_database: dict[str, httpx.Client]
) -> None:
    client = without_database[case]
    told = fault(client, "accounts")
    assert remedy in told
    assert "DATABASE_URL" in told
    refused(prompt(client, "POST", "/auth/token", within_s=6, json={"username": "a", "password": "b"}), "unavailable")
    assert client.get("/health").status_code == 200


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("case", "found"),
    [("hole", "inbound: partitions should be 5, found 3"), ("closed", "inbound: topic should be there, found missing")],
)
def test_topics_that_do_not_suffice_are_told_with_the_remedy(
    case: str, found: str, without_database: dict[str, httpx.Client]
) -> None:
    told = fault(without_database[case], "topics")
    assert found in told
    assert "manage.py setup_topics" in told


# --- Kafka and the files' bucket -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def missing_topics() -> str:
    return kafka(partitions=0)


@pytest.fixture(scope="module")
def without_log_and_files(
    world: World, hole: int, closed: int, missing_topics: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, httpx.Client]]:
    name = buckets.new_name()
    wrong = {
        "hole": (f"kafka://127.0.0.1:{hole}", f"s3://a:b@{name}?endpoint=http://127.0.0.1:{hole}&timeout=1"),
        "closed": (f"kafka://127.0.0.1:{closed}", f"s3://a:b@{name}?endpoint=http://127.0.0.1:{closed}"),
        "not set up": (missing_topics, buckets.url_of(name)),
        "wrong credentials": (
            kafka(partitions=0).replace("kafka://", "kafka://nobody:pass-word@"),
            buckets.url_of(name, secret="another-secret"),
        ),
        "only files away": (kafka(partitions=3), f"s3://a:b@{name}?endpoint=http://127.0.0.1:{closed}"),
        "too few partitions": (kafka(partitions=1), "file:///" + str(tmp_path_factory.mktemp("files")).lstrip("/")),
    }
    environments = {
        case: {**world.environment, "EVENT_LOG_URL": log, "FILES_URL": files} for case, (log, files) in wrong.items()
    }
    with apis(tmp_path_factory.mktemp("logs"), environments) as clients:
        for case, client in clients.items():
            bob = register(client, "bob")
            register(client, "alice")
            made = client.post("/v1/conversations", json={"conversation_id": chat(case), "members": [bob]})
            assert made.status_code == 201, made.text
        yield clients


def chat(case: str) -> str:
    """The conversation of Alice and Bob there."""
    return case.replace(" ", "-")


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("case", "status", "remedy"),
    [
        ("hole", "degraded", "see that it runs"),
        ("closed", "degraded", "see that it runs"),
        ("not set up", "failed", "run manage.py setup_storage"),
        ("wrong credentials", "failed", "correct key and secret"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_and_the_rest_goes_on(
    case: str, status: str, remedy: str, without_log_and_files: dict[str, httpx.Client]
) -> None:
    client = without_log_and_files[case]
    told = detail(client, "files", status)
    assert remedy in told
    assert "FILES_URL" in told
    upload = {"files": {"file": ("a.txt", b"hello")}}
    refused(prompt(client, "POST", "/v1/files", within_s=LONGEST_S, **upload), "files_unavailable")
    assert client.get("/v1/conversations").status_code == 200


@pytest.mark.cluster
def test_an_outage_of_the_storage_takes_nothing_out_of_service(without_log_and_files: dict[str, httpx.Client]) -> None:
    client = without_log_and_files["only files away"]
    told = detail(client, "files", "degraded")
    assert "FILES_URL" in told
    until(lambda: (answer := client.get("/ready")).json()["status"] == "degraded" and answer.status_code == 200)
    message = {"conversation_id": chat("only files away"), "content": "hello"}
    until(lambda: client.post("/v1/messages", json=message).status_code == 202)
    assert 'chat4all_part_state{part="files"} 1.0' in client.get("/metrics").text


@pytest.mark.cluster
@pytest.mark.parametrize("case", ["hole", "closed", "wrong credentials"])
def test_a_log_that_cannot_be_used_is_named_and_hangs_nobody(
    case: str, without_log_and_files: dict[str, httpx.Client]
) -> None:
    client = without_log_and_files[case]
    for part in ("event log", "topics"):
        told = fault(client, part)
        assert "EVENT_LOG_URL and its credentials are right" in told
        assert "pass-word" not in told
    assert prompt(client, "GET", "/ready", within_s=PROBE_S + SLACK_S).status_code == 503
    message = {"conversation_id": chat(case), "content": "hello"}
    for headers in ({}, {"Idempotency-Key": "k"}):
        refused(
            prompt(client, "POST", "/v1/messages", within_s=TIMEOUT_S + SLACK_S, json=message, headers=headers),
            "log_unavailable",
        )
    assert client.get(f"/v1/conversations/{chat(case)}/messages").json()["items"] == []


@pytest.mark.cluster
def test_missing_topics_are_told_and_once_they_are_there_all_is_well(
    world: World, without_log_and_files: dict[str, httpx.Client], missing_topics: str
) -> None:
    client = without_log_and_files["not set up"]
    told = fault(client, "topics")
    assert "inbound: topic should be there, found missing" in told
    assert "manage.py setup_topics" in told
    message = {"conversation_id": chat("not set up"), "content": "hello"}
    refused(prompt(client, "POST", "/v1/messages", within_s=TIMEOUT_S + SLACK_S, json=message), "log_unavailable")
    done = world.run("setup_topics", EVENT_LOG_URL=missing_topics)
    assert done.returncode == 0, done.stderr
    until(lambda: client.get("/ready").json()["parts"]["topics"]["status"] == "ok")
    until(lambda: client.post("/v1/messages", json=message).status_code == 202)


@pytest.mark.cluster
def test_too_few_partitions_on_the_broker_are_told_and_messages_are_still_taken(
    without_log_and_files: dict[str, httpx.Client],
) -> None:
    client = without_log_and_files["too few partitions"]
    told = fault(client, "topics")
    assert "inbound: partitions should be 3, found 1" in told
    assert "manage.py setup_topics" in told
    message = {"conversation_id": chat("too few partitions"), "content": "hello"}
    until(lambda: client.post("/v1/messages", json=message).status_code == 202)


# --- Cassandra ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_store(
    world: World, hole: int, closed: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, httpx.Client]]:
    there = needed("cassandra").rstrip("/")
    stores = {
        "hole": f"cassandra://user:pass-word@127.0.0.1:{hole}/chat4all",
        "closed": f"cassandra://user:pass-word@127.0.0.1:{closed}/chat4all",
        "no keyspace": f"{there}/missing_{uuid.uuid4().hex[:12]}",
    }
    environments = {case: {**world.environment, "MESSAGE_STORE_URL": url} for case, url in stores.items()}
    with apis(tmp_path_factory.mktemp("stores"), environments) as clients:
        for client in clients.values():
            register(client, "alice")
        yield clients


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("case", "remedy"),
    [("hole", "check that it is up"), ("closed", "check that it is up"), ("no keyspace", "manage.py setup_keyspace")],
)
def test_a_store_that_cannot_be_used_is_named_and_hangs_nobody(
    case: str, remedy: str, without_store: dict[str, httpx.Client]
) -> None:
    client = without_store[case]
    told = fault(client, "message store")
    assert remedy in told
    assert "MESSAGE_STORE_URL" in told
    assert "pass-word" not in told
    assert prompt(client, "GET", "/ready", within_s=PROBE_S + SLACK_S).status_code == 503
    message = {"conversation_id": "c1", "content": "hello"}
    for headers in ({}, {"Idempotency-Key": "k"}):
        refused(
            prompt(client, "POST", "/v1/messages", within_s=TIMEOUT_S + SLACK_S, json=message, headers=headers),
            "store_unavailable",
        )
    refused(prompt(client, "GET", "/v1/conversations", within_s=TIMEOUT_S + SLACK_S), "store_unavailable")
    assert client.get("/v1/users/me").status_code == 200
