"""Ports: fixed ones that move by variables, free ones that stay free, and plain words about taken ones."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import pytest

from demo.ports import Ports, PortsTaken


def test_every_port_moves_by_its_variable() -> None:
    fixed = Ports()
    moved = Ports.from_environment({variable: str(int(port) + 1000) for variable, port in fixed.environment().items()})
    assert dataclasses.astuple(moved) == tuple(port + 1000 for port in dataclasses.astuple(fixed))


def test_an_empty_variable_moves_nothing() -> None:
    assert Ports.from_environment({"API_PORT": ""}) == Ports()


@pytest.mark.parametrize("text", ["eighty", "0", "65536", "-1", "80 ", "²"])
def test_a_variable_that_holds_no_port_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="GATEWAY_PORT"):
        Ports.from_environment({"GATEWAY_PORT": text})


def test_free_ports_differ_and_are_not_those_of_outgoing_connections() -> None:
    ports = dataclasses.astuple(Ports.free())
    assert len(set(ports)) == len(ports)
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < lowest
    Ports(*ports).check_free()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_taken_ports_are_told_all_at_once_with_their_owner_and_the_way_out(address: str) -> None:
    ports = Ports.free()
    with (
        socket.create_server((address, ports.api)),
        socket.create_server((address, ports.redis_bus)),
        pytest.raises(PortsTaken) as refusal,
    ):
        ports.check_free()
    first, second = str(refusal.value).splitlines()
    assert first.startswith(f"port {ports.api} (API) is taken by ")
    assert f"(pid {os.getpid()})" in first
    assert first.endswith("set API_PORT=…")
    assert "REDIS_BUS_PORT" in second


def test_a_server_on_all_addresses_of_ipv6_is_seen_too() -> None:
    ports = Ports.free()
    try:
        server = socket.create_server(("::", ports.api), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with server, pytest.raises(PortsTaken, match=rf"\(pid {os.getpid()}\)"):
        ports.check_free()


def test_one_number_for_two_parts_is_refused() -> None:
    port = Ports.free().api
    with pytest.raises(PortsTaken, match=f"port {port} is wanted by API and realtime gateway; set GATEWAY_PORT"):
        dataclasses.replace(Ports.free(), api=port, gateway=port).check_free()
