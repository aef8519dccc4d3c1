"""The console's page: what it may load, and that its modules cannot turn a message into markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.template.loader import get_template
from django.test import Client
from pytest_django import Settings

from files.storage import LocalStorage

STATIC = Path(__file__).parents[2] / "web" / "static" / "web"
MODULES = sorted(STATIC.glob("*.js"))


@pytest.fixture
def page() -> str:
    answer = Client().get("/console")
    assert answer.status_code == 200
    return answer.content.decode()


def policy() -> dict[str, set[str]]:
    header = Client().get("/console")["Content-Security-Policy"]
    directives = (directive.split() for directive in header.split(";"))
    return {name: set(sources) for name, *sources in directives}


def test_the_policy_lets_nothing_run_but_our_own_files() -> None:
    rules = policy()
    assert rules["default-src"] == {"'none'"}
    assert rules["script-src"] == {"'self'"}
    assert rules["style-src"] == {"'self'"}
    assert rules["frame-ancestors"] == {"'none'"}
    assert rules["base-uri"] == {"'none'"}
    assert not any("unsafe" in source for sources in rules.values() for source in sources)


def test_the_policy_opens_the_gateway_and_the_files() -> None:
    rules = policy()
    assert rules["connect-src"] == {"'self'", settings.GATEWAY_URL}
    assert settings.API_URL in rules["img-src"]


class NoCredentials(LocalStorage):
    """S3's signing asks for some, which may be away."""

    def url(self, name: str | None, parameters: Mapping[str, str] | None = None, expire: int | None = None) -> NoReturn:
        raise TimeoutError


def test_the_page_opens_while_no_links_to_files_can_be_made(settings: Settings) -> None:
    away = {**settings.STORAGES["default"], "BACKEND": f"{__name__}.NoCredentials"}
    settings.STORAGES = {**settings.STORAGES, "default": away}
    assert policy()["img-src"] == {"'self'", "data:", "blob:"}


def test_the_page_has_no_inline_code_and_its_files_exist(page: str) -> None:
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page)
    references = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(references) >= 4
    for reference in references:
        assert reference.startswith("/static/web/")
        assert finders.find(reference.removeprefix("/static/")), reference
    assert f'data-gateway-url="{settings.GATEWAY_URL}"' in page


def test_the_gateway_address_is_escaped() -> None:
    html = get_template("web/console.html").render({"gateway_url": '"><script>', "max_file_bytes": 1})
    assert "&quot;&gt;&lt;script&gt;" in html


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_the_page_is_only_read(method: str) -> None:
    assert getattr(Client(), method)("/console").status_code == 405


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_a_module_makes_no_markup_from_text_and_loads_only_its_neighbours(module: Path) -> None:
    source = module.read_text()
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|localStorage"
    assert not re.search(forbidden, source)
    for imported in re.findall(r'from "([^"]+)"', source):
        assert (STATIC / imported).is_file(), imported
    assert not re.search(r"import\(|https?://(?!www\.w3\.org/)[a-z]", source)


def test_every_module_was_looked_at() -> None:
    assert {"main.js", "api.js", "live.js", "store.js"} <= {module.name for module in MODULES}
