"""Which connectors there are, and what happens to bad ones."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

import connectors
from connectors import features, registry
from connectors.errors import UnknownChannel
from connectors.instagram import Instagram
from connectors.whatsapp import WhatsApp
from core.errors import InvalidRequest

PLUGIN = """
from connectors.base import Connector, Capabilities

class Pigeon(Connector):
    name = "{name}"
    capabilities = Capabilities(max_text_chars=100)
    required_credentials = ("loft",)
    default_base_url = "https://pigeons.test"
    def normalize(self, address): return address
    def send(self, account, message): return "1"
    def verify_signature(self, account, headers, body): pass
    def split(self, account, payload): return []
    def parse(self, account, payload): raise NotImplementedError

class HalfAPigeon(Connector):
    name = "half"
"""


@pytest.fixture
def make_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    def make(**modules: str) -> ModuleType:
        folder = tmp_path / "aviary"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in [name for name in sys.modules if name.partition(".")[0] == "aviary"]:
            monkeypatch.delitem(sys.modules, name)
        return importlib.import_module("aviary")

    return make


def entry_point(value: str) -> EntryPoint:
    return EntryPoint("pigeon", value, registry.ENTRY_POINTS)


def test_the_channels_are_those_of_this_package_in_order() -> None:
    assert registry.channels() == ("instagram", "whatsapp")
    assert isinstance(registry.get("whatsapp"), WhatsApp)
    assert isinstance(registry.get("instagram"), Instagram)


def test_a_connector_is_made_once_and_all_share_one_client() -> None:
    assert registry.get("whatsapp") is registry.get("whatsapp")
    clients = {id(vars(registry.get(channel))["_http"]) for channel in registry.channels()}
    assert clients == {id(registry.http())}


@pytest.mark.parametrize("channel", ["telegraph", "", "WhatsApp", "__init__", "meta"])
def test_an_unknown_channel_is_the_requests_fault(channel: str) -> None:
    with pytest.raises(UnknownChannel, match=", ".join(registry.channels())) as caught:
        registry.get(channel)
    assert isinstance(caught.value, InvalidRequest)


def test_one_file_in_the_package_is_a_channel(make_package: object) -> None:
    package = make_package(pigeon=PLUGIN.format(name="pigeon"))  # type: ignore[operator]
    assert list(registry.discover(package, [])) == ["pigeon"]  # the abstract half is none


def test_a_class_that_is_merely_imported_is_not_found_twice(make_package: object) -> None:
    user = "from aviary.pigeon import Pigeon\n"
    package = make_package(pigeon=PLUGIN.format(name="pigeon"), user=user)  # type: ignore[operator]
    assert list(registry.discover(package, [])) == ["pigeon"]


def test_a_plug_in_announces_itself_by_entry_point(make_package: object) -> None:
    make_package(pigeon=PLUGIN.format(name="pigeon"))  # type: ignore[operator]
    found = registry.discover(connectors, [entry_point("aviary.pigeon:Pigeon")])
    assert set(found) == {"pigeon", *registry.channels()}


def test_the_channels_are_told_to_others_with_those_of_plug_ins(make_package: object, tmp_path: Path) -> None:
    """Installed as pip does it; whoever starts the workers asks this way."""
    make_package(pigeon=PLUGIN.format(name="pigeon"))  # type: ignore[operator]
    installed = tmp_path / "aviary-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: aviary\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\npigeon = aviary.pigeon:Pigeon\n")
    told = subprocess.run(
        [sys.executable, "-m", "connectors.registry"],
        cwd=Path(connectors.__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert told.stdout.split() == ["instagram", "pigeon", "whatsapp"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("pigeon", "aviary.nowhere:Pigeon", "cannot be loaded: ModuleNotFoundError", id="no such module"),
        pytest.param("pigeon", "aviary.pigeon:Dove", "cannot be loaded: AttributeError", id="no such class"),
        pytest.param("pigeon", "aviary.pigeon:HalfAPigeon", "is not a connector", id="not finished"),
        pytest.param("pigeon", "os:getcwd", "is not a connector", id="something else"),
        pytest.param("whatsapp", "aviary.pigeon:Pigeon", "served by connectors.whatsapp already", id="name taken"),
        pytest.param("Pi:geon", "aviary.pigeon:Pigeon", "no name for a channel", id="name that no address can have"),
    ],
)
def test_a_bad_plug_in_stops_the_start_and_is_named(make_package: object, name: str, value: str, message: str) -> None:
    make_package(pigeon=PLUGIN.format(name=name))  # type: ignore[operator]
    with pytest.raises(ImportError, match=message) as caught:
        registry.discover(connectors, [entry_point(value)])
    assert value in str(caught.value)


def test_the_feature_matrix_in_the_docs_is_what_the_connectors_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "channels.md").read_text()
    assert features.matrix() in page, "write the output of `python -m connectors.features` into docs/channels.md"
