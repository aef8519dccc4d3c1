"""Where each part of the local profile listens: fixed and movable for people, free ones for tests."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortsTaken(RuntimeError):
    """Somebody else listens on ports that we need; the text names each, by whom, and the variable that moves it."""


def _port(default: int, variable: str, part: str) -> int:
    number: int = field(default=default, metadata={"variable": variable, "part": part})
    return number


@dataclass(frozen=True, slots=True)
class Ports:
    """One port per part."""

    api: int = _port(8082, "API_PORT", "API")
    gateway: int = _port(8085, "GATEWAY_PORT", "realtime gateway")
    bridge_health: int = _port(8086, "BRIDGE_HEALTH_PORT", "bridge health")
    worker_core_health: int = _port(8087, "WORKER_CORE_HEALTH_PORT", "core worker health")
    worker_inbound_health: int = _port(8093, "WORKER_INBOUND_HEALTH_PORT", "inbound worker health")
    worker_whatsapp_health: int = _port(8088, "WORKER_WHATSAPP_HEALTH_PORT", "WhatsApp worker health")
    worker_instagram_health: int = _port(8089, "WORKER_INSTAGRAM_HEALTH_PORT", "Instagram worker health")
    simulator: int = _port(8090, "SIMULATOR_PORT", "platform simulator")
    redis_log: int = _port(8091, "REDIS_LOG_PORT", "Redis of the event log")
    redis_bus: int = _port(8092, "REDIS_BUS_PORT", "Redis of broker and channel layer")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The fixed ports, moved where a variable says so. Raises ValueError naming a variable that holds no port."""
        return cls(**{f.name: _parsed(environment, f.metadata["variable"], f.default) for f in fields(cls)})

    @classmethod
    def free(cls) -> Self:
        """Ports on which nobody listens now, and that no outgoing connection is ever given, so that they stay ours
        while a part is down between a kill and its restart."""
        names = [f.name for f in fields(cls)]
        return cls(**dict(zip(names, free_ports(len(names)), strict=True)))

    def environment(self) -> dict[str, str]:
        """Every port under its variable."""
        return {f.metadata["variable"]: str(getattr(self, f.name)) for f in fields(self)}

    def check_free(self, *, unused: Collection[str] = ()) -> None:
        """Raises PortsTaken, naming all that are taken at once; also when one number was given to two parts."""
        complaints = []
        seen: dict[int, str] = {}
        for f in (each for each in fields(self) if each.name not in unused):
            port, part, variable = getattr(self, f.name), f.metadata["part"], f.metadata["variable"]
            if port in seen:
                complaints.append(f"port {port} is wanted by {seen[port]} and {part}; set {variable}=…")
            elif not is_free(port):
                complaints.append(f"port {port} ({part}) is taken by {_owner(port)}; set {variable}=…")
            seen[port] = part
        if complaints:
            raise PortsTaken("\n".join(complaints))


def _parsed(environment: Mapping[str, str], variable: str, default: object) -> int:
    text = environment.get(variable) or str(default)
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ValueError(f"{variable}={text!r} is not a port number")
    return int(text)


def free_ports(count: int, *, besides: Collection[int] = ()) -> list[int]:
    """Ports other than ``besides`` on which nobody listens, below the range from which the kernel takes ports for
    outgoing connections (32768 on, unless configured)."""
    end = int(_EPHEMERAL_RANGE.read_text().split()[0]) if _EPHEMERAL_RANGE.exists() else 32768
    candidates = random.SystemRandom().sample(range(min(10240, end - 4096), end), 4096)
    found = list(islice((port for port in candidates if port not in besides and is_free(port)), count))
    if len(found) < count:
        raise RuntimeError(f"fewer than {count} free ports on {HOST}")
    return found


def is_free(port: int) -> bool:
    """Whether a server could listen there; connections that linger in TIME_WAIT do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _owner(port: int) -> str:
    """Who listens there, as far as we may see: ``redis-server (pid 42)``."""
    inodes = _listening_inodes(port)
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        try:
            if any(descriptor.readlink().name in inodes for descriptor in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:  # gone meanwhile, or somebody else's
            continue
    return "another process"


def _listening_inodes(port: int) -> set[str]:
    listening, found = "0A", set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == listening and int(local.rpartition(":")[2], 16) == port:
                found.add(f"socket:[{rest[5]}]")
    return found
