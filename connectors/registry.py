"""Which connectors there are: modules of this package, and plug-ins that announce the entry point group.

``python -m connectors.registry`` prints the names of their channels.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Final

import connectors
from connectors.base import Connector
from connectors.errors import UnknownChannel
from connectors.http import HttpClient

ENTRY_POINTS: Final = "chat4all.connectors"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")  # as addresses write it: `whatsapp:+55…`


def get(channel: str) -> Connector:
    """The connector of a channel. Raises UnknownChannel."""
    try:
        return _instances()[channel]
    except KeyError:
        raise UnknownChannel(f"no connector for that channel; there are {', '.join(channels())}") from None


def channels() -> tuple[str, ...]:
    """The names of all channels, sorted."""
    return tuple(sorted(_instances()))


@functools.cache
def http() -> HttpClient:
    """The client that all connectors of this process share; connects on first use, after a fork."""
    return HttpClient()


@functools.cache
def _instances() -> Mapping[str, Connector]:
    found = discover(connectors, entry_points(group=ENTRY_POINTS))
    return {name: connector(http()) for name, connector in found.items()}


def discover(package: ModuleType, plugins: Iterable[EntryPoint]) -> dict[str, type[Connector]]:
    """Every connector class by its channel.

    A plug-in that cannot be loaded, a bad name or a name taken twice stops the start with an error that names the
    culprit: a channel that is silently missing would leave its messages lying.
    """
    found: dict[str, type[Connector]] = {}
    for origin, connector in (*_in_package(package), *_announced(plugins)):
        name = getattr(connector, "name", "")
        if not _NAME.fullmatch(name):
            raise ImportError(f"{origin}: {name!r} is no name for a channel")
        if name in found and found[name] is not connector:
            raise ImportError(f"{origin}: channel {name!r} is served by {found[name].__module__} already")
        found[name] = connector
    return found


def _in_package(package: ModuleType) -> Iterator[tuple[str, type[Connector]]]:
    for module_info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(module_info.name)
        for _, member in inspect.getmembers(module, _is_connector):
            if member.__module__ == module.__name__:  # not what it merely imports
                yield module.__name__, member


def _announced(plugins: Iterable[EntryPoint]) -> Iterator[tuple[str, type[Connector]]]:
    for plugin in plugins:
        origin = f"entry point {plugin.name} = {plugin.value}"
        try:
            connector = plugin.load()
        except Exception as error:
            raise ImportError(f"{origin} cannot be loaded: {type(error).__name__}") from error
        if not _is_connector(connector):
            raise ImportError(f"{origin} is not a connector")
        yield origin, connector


def _is_connector(member: object) -> bool:
    return inspect.isclass(member) and issubclass(member, Connector) and not inspect.isabstract(member)


if __name__ == "__main__":
    print("\n".join(channels()))
