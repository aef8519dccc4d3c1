"""What REQUIRE promises: a server that must be there is there, and its tests cannot be skipped."""

from __future__ import annotations

import pytest

from tests.stack import servers


def test_every_required_server_is_there() -> None:
    for name in servers.required():
        assert name in servers.SERVERS, f"REQUIRE names {name!r}; known are {', '.join(servers.SERVERS)}"
        assert servers.needed(name)


def test_a_missing_server_skips_the_test_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.SERVERS, "kafka", lambda: None)
    monkeypatch.setenv("REQUIRE", "redis,chromium")
    with pytest.raises(pytest.skip.Exception, match="there is no kafka"):
        servers.needed("kafka")


def test_a_missing_server_that_is_required_fails_the_test_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.SERVERS, "kafka", lambda: None)
    monkeypatch.setenv("REQUIRE", "redis, kafka")
    with pytest.raises(pytest.fail.Exception, match="REQUIRE names kafka"):
        servers.needed("kafka")


def test_a_server_that_is_there_is_named() -> None:
    assert servers.needed("redis-6.2").endswith("redis-server")
