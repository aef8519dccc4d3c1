"""How ``make test`` finds a stack that ``make stack`` left up: a file of export lines, valid while its writer lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.stack.downloads import ROOT


def default_path() -> Path:
    """STACK_ENV, else ``.cache/stack.env`` of the checkout."""
    return Path(os.environ.get("STACK_ENV") or ROOT / ".cache" / "stack.env")


class AlreadyUp(RuntimeError):
    """Another ``make stack`` of this checkout is up."""


@contextlib.contextmanager
def announcing(path: Path) -> Iterator[Announcement]:
    """The right to announce; a kill ends it too. Raises AlreadyUp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUp(f"a stack is up already; {path} says where") from None
        file.truncate(0)
        try:
            yield Announcement(path)
        finally:
            file.truncate(0)


class Announcement:
    def __init__(self, path: Path) -> None:
        self._path = path

    def publish(self, environment: Mapping[str, str]) -> None:
        with self._path.open("a") as file:
            file.write(export_lines(environment))


def announced(path: Path) -> dict[str, str]:
    """The variables of the stack that is up and ready; none when there is none."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return {}
    except BlockingIOError:  # held, so its writer lives
        return _parse(path.read_text())
    return {}


def export_lines(environment: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())


def _parse(text: str) -> dict[str, str]:
    return dict(shlex.split(line)[1].split("=", 1) for line in text.splitlines())
