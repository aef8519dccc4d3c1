"""NUL, which SQLite takes and PostgreSQL does not, wherever a request has text: nobody breaks on it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from accounts.models import DEFAULT_WORKSPACE_ID
from tests.api.outside import PASSWORD, World, apis, local_world, register
from tests.stack.servers import needed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]  # migrations, on a busy machine


@pytest.fixture(autouse=True)
def servers() -> None:
    """None in this process: everything here is asked from outside."""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    server, name = needed("postgres"), f"nul_{uuid.uuid4().hex[:8]}"
    import psycopg  # the local profile comes without

    identifier = psycopg.sql.Identifier(name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(identifier))
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
        connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.fixture(scope="module")
def world(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Accounts and messages in PostgreSQL."""
    folder = tmp_path_factory.mktemp("world")
    with local_world(folder, DATABASE_URL=database, MESSAGES_DATABASE_URL=database) as world:
        yield world


@pytest.fixture(scope="module")
def api(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Signed in to the API and to the admin."""
    folder = tmp_path_factory.mktemp("api")
    with apis(folder, {"postgres": world.environment}) as clients:
        client = clients["postgres"]
        register(client, "alice")
        _sign_in_to_admin(world, client, folder / "operator.json")
        yield client


def _sign_in_to_admin(world: World, client: httpx.Client, credentials: Path) -> None:
    done = world.run("create_operator", "--file", str(credentials))
    assert done.returncode == 0, done.stderr
    client.get("/admin/login/")
    form = {**json.loads(credentials.read_text()), "csrfmiddlewaretoken": client.cookies["csrftoken"]}
    assert client.post("/admin/login/?next=/health", data=form).status_code == 302


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files/%00"),
        ("GET", "/v1/files/file_%00/download"),
        ("GET", "/webhooks/whatsapp/%00"),
        ("POST", "/webhooks/whatsapp/1055%00"),
        ("POST", "/webhooks/%00/1055"),
        ("GET", "/v1/conversations/%00/messages"),
        ("DELETE", "/v1/conversations/c1/members/%00"),
        ("GET", "/v1/messages/%00"),
        ("GET", "/files/raw/%00"),
        ("GET", "/static/%00"),
        ("GET", "/console/%00"),
        ("GET", "/admin/accounts/user/%00/change/"),
        ("GET", "/%00"),
    ],
)
def test_there_is_nothing_at_an_address_with_nul(api: httpx.Client, method: str, path: str) -> None:
    answer = api.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/users?username=a%00b", None),
        ("GET", "/v1/conversations?cursor=%00", None),
        ("POST", "/auth/token", {"username": "alice\0", "password": PASSWORD}),
        ("POST", "/auth/token", {"username": "alice", "password": PASSWORD, "workspace": "default\0"}),
        ("POST", "/auth/register", {"username": "new", "password": PASSWORD, "display_name": "\0"}),
        ("POST", "/v1/conversations", {"members": ["user_\0"]}),
        ("POST", "/v1/conversations", {"members": [], "title": "\0"}),
        ("POST", "/v1/messages", {"conversation_id": "c\0", "content": "hi"}),
        ("POST", "/v1/messages", {"conversation_id": "c", "content": "hi", "recipient_id": "whatsapp:\0"}),
        ("POST", "/v1/messages", {"conversation_id": "c", "content": "hi", "file_id": "file_\0"}),
    ],
)
def test_a_field_with_nul_is_refused(api: httpx.Client, method: str, path: str, body: object) -> None:
    answer = api.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text


def test_a_message_of_a_batch_with_nul_is_refused_by_itself(api: httpx.Client) -> None:
    answer = api.post("/v1/messages/batch", json={"messages": [{"conversation_id": "c", "content": "\0"}]})
    [item] = answer.json()["items"]
    assert (answer.status_code, item["error"]["code"]) == (207, "invalid_request"), answer.text


def test_an_upload_with_nul_is_refused_or_named_without(api: httpx.Client) -> None:
    file = ("cat\0.txt", b"meow", "text/plain")
    assert api.post("/v1/files", files={"file": file}, data={"conversation_id": "c\0"}).status_code == 422
    answer = api.post("/v1/files", files={"file": file})
    assert answer.status_code in {201, 400}, answer.text
    assert "\0" not in answer.json().get("filename", "")


@pytest.mark.parametrize("query", ["?q=%00", "?q=a&workspace=%00", "people/?party=a%00b&workspace={default}"])
def test_an_operator_may_look_for_it(api: httpx.Client, query: str) -> None:
    answer = api.get(f"/admin/messaging/explorer/{query.format(default=DEFAULT_WORKSPACE_ID)}")
    assert answer.status_code == 200, answer.text


def test_a_database_that_refuses_a_value_is_not_away(world: World) -> None:
    done = world.run("shell", "-c", r"from messaging import channels; channels.account('whatsapp', '\0')")
    assert done.stderr.splitlines()[-1].startswith("django.db.utils.DataError"), done.stderr
