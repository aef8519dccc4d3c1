"""``cassandra://[user:password@]host[:port][,host…]/keyspace[?dc=name]``; ``cassandra+ssl`` speaks TLS."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

DEFAULT_PORT: Final = 9042
EXAMPLE: Final = "cassandra://user:password@host1,host2:9042/chat4all?dc=datacenter1"
SCHEMES: Final = ("cassandra", "cassandra+ssl")
_OPTIONS: Final = ("dc", "ca", "verify")
_KEYSPACE: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")  # what needs no quotes in CQL


@dataclass(frozen=True, slots=True)
class Address:
    """Where the store is, and as whom to speak to it."""

    hosts: tuple[str, ...]
    port: int
    keyspace: str
    user: str = ""
    password: str = field(default="", repr=False)
    local_dc: str = ""  # empty: that of the first host
    tls: bool = False
    ca: str = ""  # file with the authority's certificates; empty: the system's
    names_verified: bool = True  # whether a certificate must name the address that its server has

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ImproperlyConfigured, without quoting what may hold a password."""
        parts = urlsplit(url)
        keyspace = parts.path.strip("/")
        credentials, _, places = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        if parts.scheme not in SCHEMES or not places or not _KEYSPACE.fullmatch(keyspace):
            raise ImproperlyConfigured(
                f"MESSAGE_STORE_URL names no Cassandra keyspace (a-z, 0-9 and _, 48 at most). Hint: {EXAMPLE}"
            )
        options = dict(parse_qsl(parts.query))
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise ImproperlyConfigured(
                f"MESSAGE_STORE_URL: unknown option {', '.join(unknown)}; known: {', '.join(_OPTIONS)}. Hint: {EXAMPLE}"
            )
        if options.get("verify", "full") not in ("full", "ca"):
            raise ImproperlyConfigured(f"MESSAGE_STORE_URL: verify is full or ca. Hint: {EXAMPLE}")
        hosts, ports = zip(*(_place(each) for each in places.split(",")), strict=True)
        if len(set(ports) - {None}) > 1:
            raise ImproperlyConfigured(f"MESSAGE_STORE_URL: all Cassandra hosts share one port. Hint: {EXAMPLE}")
        return cls(
            hosts=hosts,
            port=next((port for port in ports if port), DEFAULT_PORT),
            keyspace=keyspace,
            user=unquote(user),
            password=unquote(password),
            local_dc=options.get("dc", ""),
            tls=parts.scheme == "cassandra+ssl",
            ca=options.get("ca", ""),
            names_verified=options.get("verify", "full") == "full",
        )

    def __str__(self) -> str:
        return f"{','.join(self.hosts)}:{self.port}"


def _place(text: str) -> tuple[str, int | None]:
    parts = urlsplit(f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise ImproperlyConfigured(f"MESSAGE_STORE_URL: a host is missing or has no valid port. Hint: {EXAMPLE}")
    return host, port
