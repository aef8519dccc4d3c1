"""Runs the application in this process: one event loop for the API, the timers and the webhooks."""

from __future__ import annotations

import asyncio
import signal
import socket

import httpx
import msgspec
from granian.constants import Interfaces
from granian.server.embed import Server

from simulator.accounts import Accounts
from simulator.app import build_app
from simulator.logs import log
from simulator.platform import Limits, Platform
from simulator.switches import Switches

CONNECTIONS = 2_000  # calls under way at once; those left hanging on purpose count too


class PortTaken(Exception):
    """Somebody else listens there already."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int
    public_url: str
    accounts: Accounts
    switches: Switches
    limits: Limits
    grace_s: float = 2.0


async def serve(config: Config) -> None:
    """Until SIGTERM or SIGINT. Raises PortTaken before anything is started."""
    _check_port(config.host, config.port)
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
        platform = Platform(
            accounts=config.accounts,
            switches=config.switches,
            client=client,
            public_url=config.public_url,
            limits=config.limits,
        )
        server = Server(
            build_app(platform),
            address=config.host,
            port=config.port,
            interface=Interfaces.ASGINL,
            log_enabled=False,
            websockets=False,
            backlog=CONNECTIONS,
            backpressure=CONNECTIONS,
        )
        stop = asyncio.Event()
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
        serving = asyncio.create_task(server.serve())
        platform.verify_all()
        log("started", host=config.host, port=config.port, accounts=len(config.accounts.all()))
        await asyncio.wait([serving, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
        await platform.close(grace_s=config.grace_s)
        server.stop()  # type: ignore[no-untyped-call]
        await serving


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(f"cannot listen on {host}:{port} ({error.strerror})") from None
