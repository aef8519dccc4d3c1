"""Toxiproxy: connections that break, hang or crawl, for tests of what stands behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import httpx

from demo.ports import HOST, free_ports
from tests.stack import downloads
from tests.stack.server import Server

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """One way to one server, on ``port``."""

    name: str
    port: int
    toxiproxy: Toxiproxy

    def cut(self) -> None:
        """Close its connections and refuse new ones."""
        self._call("POST", json={"enabled": False})

    def hang(self) -> None:
        """Let nothing through any more, in either direction, and keep the connections open: a black hole."""
        for stream in ("upstream", "downstream"):
            self.add("timeout", stream=stream, timeout=0)

    def slow(self, latency_ms: int) -> None:
        self.add("latency", stream="downstream", latency=latency_ms)

    def add(self, kind: str, *, stream: str, **attributes: int) -> None:
        """Any toxic that Toxiproxy knows, one of a kind per direction."""
        self._call("POST", "/toxics", json={"type": kind, "stream": stream, "attributes": attributes})

    def mend(self) -> None:
        """As if nothing had ever been wrong. What `hang` swallowed comes through no more: connections end."""
        self._call("POST", json={"enabled": False})
        for toxic in self._call("GET", "/toxics").json():
            self._call("DELETE", f"/toxics/{toxic['name']}")
        self._call("POST", json={"enabled": True})

    def _call(
        self, method: Literal["GET", "POST", "DELETE"], path: str = "", *, json: object | None = None
    ) -> httpx.Response:
        return self.toxiproxy.call(method, f"/proxies/{self.name}{path}", json=json)


class Toxiproxy(Server):
    """It keeps nothing: after a kill or a restart there are no proxies."""

    name = "toxiproxy"
    variable = "TEST_TOXIPROXY_URL"
    default_port = 8474

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def proxy(self, name: str, *, upstream_port: int, port: int | None = None) -> Proxy:
        """A new way to a port of this machine."""
        port = port or free_ports(1, besides=[upstream_port])[0]
        wanted = {"name": name, "listen": f"{HOST}:{port}", "upstream": f"{HOST}:{upstream_port}"}
        self.call("POST", "/proxies", json=wanted)
        return Proxy(name, port, self)

    def call(self, method: str, path: str, *, json: object | None = None) -> httpx.Response:
        """Its HTTP interface. Raises httpx.HTTPError."""
        return httpx.request(method, f"{self.url}{path}", json=json, timeout=TIMEOUT_S).raise_for_status()

    def fetch(self) -> None:
        downloads.toxiproxy()

    def command(self) -> Sequence[str]:
        return (str(downloads.toxiproxy()), "-host", HOST, "-port", str(self.port))

    def why_not_ready(self) -> str:
        try:
            self.call("GET", "/version")
        except httpx.HTTPError as error:
            return repr(error)
        return ""
