"""A real Chromium in front of the real system. Alice sits at the console, Bob writes through the API."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, WebSocketRoute, expect, sync_playwright

from demo.supervisor import LocalSystem
from tests.stack.servers import needed

PASSWORD = "correct horse battery"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 15_000
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Gone when its module is: until then no other test of this process can run an event loop of its own."""
    chromium = needed("chromium")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright drives its browser through an event loop of its own, which Django takes for an async view.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Person:
    """A registered user at the API."""

    username: str
    user_id: str
    api: httpx.Client
    workspace: str = "default"

    @property
    def login(self) -> str:
        return self.username if self.workspace == "default" else f"{self.workspace}/{self.username}"

    def post(self, path: str, **json: Any) -> dict[str, Any]:
        answer = self.api.post(path, json=json or None)
        assert answer.is_success, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def get(self, path: str) -> dict[str, Any]:
        answer = self.api.get(path)
        assert answer.is_success, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def say(self, conversation_id: str, content: str, **fields: Any) -> str:
        sent = self.post("/v1/messages", conversation_id=conversation_id, content=content, **fields)
        message_id: str = sent["message_id"]
        return message_id


def _person(system: LocalSystem, name: str, *, workspace: str = "default") -> Person:
    username = f"{name}{next(_numbers)}"
    api = httpx.Client(base_url=system.api_url, timeout=15)
    sign_in = {"username": username, "password": PASSWORD, "workspace": workspace}
    registered = api.post("/auth/register", json={**sign_in, "display_name": name.title()})
    assert registered.status_code == 201, registered.text
    token = api.post("/auth/token", json=sign_in).json()
    api.headers["Authorization"] = f"Bearer {token['access_token']}"
    return Person(username, token["user_id"], api, workspace)


@pytest.fixture
def alice(system: LocalSystem) -> Iterator[Person]:
    person = _person(system, "alice")
    yield person
    person.api.close()


@pytest.fixture
def bob(system: LocalSystem) -> Iterator[Person]:
    person = _person(system, "bob")
    yield person
    person.api.close()


@pytest.fixture
def carol(system: LocalSystem) -> Iterator[Person]:
    """Somebody else whom Bob knows."""
    person = _person(system, "carol")
    yield person
    person.api.close()


@pytest.fixture
def mallory(system: LocalSystem) -> Iterator[Person]:
    """Somebody of another workspace, where anyone may register."""
    slug = f"elsewhere{next(_numbers)}"
    made = f"Workspace.objects.create(slug={slug!r}, name='Elsewhere', open_registration=True)"
    system.manage("shell", "-c", f"from accounts.models import Workspace; {made}")
    person = _person(system, "mallory", workspace=slug)
    yield person
    person.api.close()


@pytest.fixture
def shared(alice: Person, bob: Person) -> str:
    """A conversation of the two."""
    conversation_id: str = alice.post("/v1/conversations", members=[bob.user_id])["conversation_id"]
    return conversation_id


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, system: LocalSystem) -> Iterator[Page]:
    """The console, not signed in. A script error or a breach of the page's policy fails the test."""
    page = context.new_page()
    faults: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            faults.append(message.text)

    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", heard)
    page.goto(f"{system.api_url}/console")
    yield page
    assert faults == []


class Line:
    """A socket of the console's of which the test is the other end. It answers nothing by itself, not even a close."""

    def __init__(self, route: WebSocketRoute) -> None:
        self._route = route
        self.url = route.url
        self.said: list[dict[str, Any]] = []
        route.on_message(lambda text: self.said.append(json.loads(text)))
        route.on_close(lambda _code, _reason: None)

    def tell(self, type_: str, **fields: Any) -> None:
        self._route.send(json.dumps({"type": type_, **fields}))

    def close(self, code: int = 1012) -> None:
        self._route.close(code=code)

    def greet(self, seq: int = 0, *, heartbeat_s: float = 20) -> None:
        self.tell("hello", epoch="e", seq=seq, heartbeat_s=heartbeat_s)


@pytest.fixture
def lines(page: Page) -> list[Line]:
    """Each socket that the console will open, in the order of it: none reaches the gateway."""
    opened: list[Line] = []
    page.route_web_socket(re.compile("^ws"), lambda route: opened.append(Line(route)))
    page.reload()
    return opened


def sign_in(page: Page, person: Person) -> None:
    page.get_by_label("Username").fill(person.login)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


@pytest.fixture
def console(page: Page, alice: Person) -> Page:
    """Alice's console, live."""
    sign_in(page, alice)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    return page
