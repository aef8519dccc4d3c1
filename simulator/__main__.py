"""python -m simulator: run the platform simulator. Every option has an environment variable."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from simulator.accounts import Account, Accounts, parse_accounts
from simulator.platform import Limits
from simulator.server import Config, PortTaken, serve
from simulator.switches import Switches

DEFAULT_PORT = 8090


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        config = _config(options)
    except (msgspec.MsgspecError, ValueError, OSError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(serve(config))
    except PortTaken as error:
        print(f"simulator: {error}. Hint: choose another with --port or SIMULATOR_PORT", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    def env(name: str, default: str = "") -> str:
        return os.environ.get(f"SIMULATOR_{name}", default)

    parser = argparse.ArgumentParser(
        prog="python -m simulator",
        description="Answers like Meta's Graph API (WhatsApp Cloud API, Instagram) and calls your webhook back.",
        epilog="Each option may come from the environment as SIMULATOR_<NAME>, such as SIMULATOR_PORT. "
        "See docs/simulator.md for the control API.",
    )
    parser.add_argument("--host", default=env("HOST", "127.0.0.1"), help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=int(env("PORT", str(DEFAULT_PORT))), help="(default: %(default)s)")
    parser.add_argument("--public-url", default=env("PUBLIC_URL"), help="how the hub reaches this service; for media")
    parser.add_argument(
        "--webhook-url",
        default=env("WEBHOOK_URL"),
        help="where accounts without a webhook_url get theirs; may hold {channel} and {account_id}",
    )
    parser.add_argument(
        "--accounts",
        default=env("ACCOUNTS"),
        help="the accounts as a JSON list (it has secrets: prefer the file or the environment)",
    )
    parser.add_argument("--accounts-file", default=env("ACCOUNTS_FILE"), help="a file with that JSON list")
    parser.add_argument("--switches", default=env("SWITCHES", "{}"), help="switches to start with, as a JSON object")
    limits = Limits()
    parser.add_argument(
        "--max-messages",
        type=int,
        default=int(env("MAX_MESSAGES", str(limits.max_messages))),
        help="how many messages are remembered each way (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pending",
        type=int,
        default=int(env("MAX_PENDING", str(limits.max_pending))),
        help="webhook items that may wait; beyond it sends are refused with 503 (default: %(default)s)",
    )
    return parser


def _config(options: argparse.Namespace) -> Config:
    if not 1 <= options.port <= 65_535:
        raise ValueError(f"port {options.port} is not from 1 to 65535")
    if options.max_messages < 1 or options.max_pending < 1:
        raise ValueError("max-messages and max-pending must be at least 1")
    return Config(
        host=options.host,
        port=options.port,
        public_url=(options.public_url or f"http://{options.host}:{options.port}").rstrip("/"),
        accounts=Accounts(_accounts(options), webhook_url=options.webhook_url),
        switches=Switches().changed(msgspec.json.decode(options.switches, type=dict)),
        limits=Limits(max_messages=options.max_messages, max_pending=options.max_pending),
    )


def _accounts(options: argparse.Namespace) -> list[Account]:
    text = Path(options.accounts_file).read_text() if options.accounts_file else options.accounts
    return parse_accounts(text) if text else []


def _end(code: int) -> NoReturn:
    """At once: a thread of the server's (Rust) that wakes up while the interpreter goes down aborts the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())
