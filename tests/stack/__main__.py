"""``python -m tests.stack run -- pytest …``: a command with real servers; ``up``: the servers until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from demo.processes import StartFailed
from tests.stack.announcement import AlreadyUp, announced, announcing, default_path, export_lines
from tests.stack.downloads import DownloadFailed
from tests.stack.postgres import PostgresNotFound
from tests.stack.scratch import scratch_directory
from tests.stack.server import Server, listens
from tests.stack.stack import KINDS, Stack

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    try:
        with _on_signals(_leave):
            code: int = chosen.action(chosen)
    except (DownloadFailed, StartFailed, PostgresNotFound, AlreadyUp) as problem:
        print(problem, file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stack",
        description="Real servers of the cluster profile, on this machine, without containers.",
    )
    actions = parser.add_subparsers(required=True, metavar="run | up")
    run = actions.add_parser(
        "run",
        help="start the servers on free ports, run a command that finds them in TEST_…_URL, stop them",
        description="Servers whose TEST_…_URL is set already, or that `up` holds, are used and not started again. "
        "The exit code is that of the command.",
    )
    run.add_argument("--reuse", action="store_true", help="start nothing: only use what is up")
    run.add_argument("command", nargs="+", metavar="-- command", help="what to run")
    run.set_defaults(action=_run)
    up = actions.add_parser(
        "up",
        help="start the servers, on their usual ports where free, until Ctrl-C",
        description="Prints the `export …` lines and writes them to .cache/stack.env. Nothing is kept afterwards.",
    )
    up.set_defaults(action=_up)
    for action in (run, up):
        action.add_argument(
            "--only", type=_names, default=list(KINDS), metavar="NAMES", help=f"of {','.join(KINDS)} (default: all)"
        )
        action.add_argument(
            "--long-run",
            action="store_true",
            help="servers in Java compile as they do in production: slower for minutes, then faster (for benchmarks)",
        )
    return parser


def _names(text: str) -> list[str]:
    names = [name for name in text.replace(",", " ").split() if name]
    if unknown := [name for name in names if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return names


def _run(chosen: argparse.Namespace) -> int:
    known = {**announced(default_path()), **os.environ}
    missing = [name for name in chosen.only if not known.get(KINDS[name].variable)]
    names = [] if chosen.reuse else missing
    with scratch_directory() as directory, Stack(directory, names, long_run=chosen.long_run) as stack:
        _start(stack)
        code = _run_command(chosen.command, {**stack.environment(), **known})
        with _on_signals(_ignore):
            stack.close()
    return code


def _up(chosen: argparse.Namespace) -> int:
    with (
        announcing(default_path()) as announcement,
        scratch_directory() as directory,
        Stack(directory, chosen.only, port_of=_usual_port, long_run=chosen.long_run) as stack,
    ):
        _start(stack)
        announcement.publish(stack.environment())
        print(export_lines(stack.environment()), end="")
        print("Up until Ctrl-C.", file=sys.stderr, flush=True)
        with contextlib.suppress(SystemExit):
            signal.pause()
        with _on_signals(_ignore):
            stack.close()
    return 0


def _start(stack: Stack) -> None:
    started_s = time.monotonic()

    def tell(server: Server) -> None:
        print(f"{server.name} is ready after {time.monotonic() - started_s:.1f} s", file=sys.stderr, flush=True)

    stack.start(on_ready=tell)


def _usual_port(kind: type[Server]) -> int | None:
    return None if listens(kind.default_port) else kind.default_port


def _run_command(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run it to its end, whatever signals come: they are for the command, which ends the wait by ending."""
    running: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if not running:
            _leave(number, frame)
        elif not (number == signal.SIGINT and _typed()):
            running[0].send_signal(number)

    with _on_signals(forward):
        try:
            running.append(subprocess.Popen([*_dying_with_us(), *command], env=environment))
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            return 127
        code = running[0].wait()
    return code if code >= 0 else 128 - code


def _typed() -> bool:
    """Whether a SIGINT came from our terminal, which sends it to the command too."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _dying_with_us() -> tuple[str, ...]:
    """A prefix that makes a command end when we are killed; without setpriv it finds its servers gone."""
    return ("setpriv", "--pdeathsig", "TERM", "--") if shutil.which("setpriv") else ()


@contextlib.contextmanager
def _on_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The end is under way."""


if __name__ == "__main__":
    sys.exit(main())
