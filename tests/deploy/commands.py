"""Whether a container's command is one that this code has, with options that it takes: asked of the real parsers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from django.core.management import get_commands, load_command_class
from granian.cli import cli as granian


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A command that holds: its kind, the ports that its options open, the queue that it works on."""

    kind: str
    port: int | None = None
    health_port: int | None = None
    queue: str | None = None


def check(command: Sequence[str]) -> Parsed:
    """What it serves. Raises what the parser raises; AssertionError for a program that the image has not."""
    match [*command]:
        case ["python", "manage.py", name, *options]:
            return _manage(name, options)
        case ["python", "-m", "granian", *options]:
            return _granian(options)
        case ["python", "-m", "simulator", *options]:
            import_module("simulator.__main__")._parser().parse_args(options)
            return Parsed(kind="simulator")
        case _:
            raise AssertionError(f"the image has no {' '.join(command)}")


def _manage(name: str, options: list[str]) -> Parsed:
    apps = get_commands()
    assert name in apps, f"manage.py has no {name}"
    command = load_command_class(apps[name], name)
    parsed = command.create_parser("manage.py", name).parse_args(options)
    said = {key: getattr(parsed, key, None) for key in ("port", "health_port", "queue")}
    return Parsed(kind=name, **said)


def _granian(options: list[str]) -> Parsed:
    context = granian.make_context("granian", options)
    module, _, attribute = context.params["app"].partition(":")
    assert callable(getattr(import_module(module), attribute))
    assert context.params["interface"].value == "wsgi"
    return Parsed(kind="granian", port=context.params["port"])
