"""How MESSAGE_STORE_URL names a Cassandra keyspace, and how replication is written."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from messaging.stores.cassandra.address import Address
from messaging.stores.cassandra.replication import Replication, thin


def test_a_url_names_hosts_credentials_keyspace_and_data_centre() -> None:
    url = "cassandra://chat%40all:p%3Aw%2F@one,two:9142,[::1]/messages_1?dc=eu"
    assert Address.parse(url) == Address(("one", "two", "::1"), 9142, "messages_1", "chat@all", "p:w/", "eu")
    assert Address.parse("cassandra://one/k") == Address(("one",), 9042, "k")


def test_a_url_says_whether_tls_is_spoken_and_what_is_believed() -> None:
    assert Address.parse("cassandra+ssl://one/k") == Address(("one",), 9042, "k", tls=True)
    assert Address.parse("cassandra+ssl://one/k?ca=/ca.pem&verify=ca") == Address(
        ("one",), 9042, "k", tls=True, ca="/ca.pem", names_verified=False
    )


@pytest.mark.parametrize("options", ["cafile=/ca.pem", "verify=none"])
def test_an_option_that_is_not_understood_is_refused(options: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"known: dc, ca, verify|verify is full or ca"):
        Address.parse(f"cassandra+ssl://one/k?{options}")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("cassandra://one/", id="no keyspace"),
        pytest.param("cassandra://one/Mixed-Case", id="a keyspace that would need quotes"),
        pytest.param("cassandra:///k", id="no host"),
        pytest.param("cassandra://one,/k", id="an empty host"),
        pytest.param("cassandra://one:port/k", id="no number as port"),
        pytest.param("cassandra://one:1,two:2/k", id="two ports"),
    ],
)
def test_what_names_no_keyspace_is_refused_with_a_hint_and_without_its_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="Hint: cassandra://") as caught:
        Address.parse(url.replace("//", "//user:s3cret@"))
    assert "s3cret" not in str(caught.value)


def test_a_password_is_in_no_representation() -> None:
    assert "s3cret" not in repr(Address.parse("cassandra://user:s3cret@one/k"))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("SimpleStrategy:1", {"class": "SimpleStrategy", "replication_factor": "1"}),
        ("dc2:2, dc1:3", {"class": "NetworkTopologyStrategy", "dc1": "3", "dc2": "2"}),
    ],
)
def test_replication_is_simple_or_by_data_centre(text: str, options: dict[str, str]) -> None:
    assert Replication.parse(text).options() == options


@pytest.mark.parametrize(
    ("text", "nodes", "told"),
    [
        ("SimpleStrategy:1", {"dc1": 1}, []),
        ("SimpleStrategy:1", {"dc1": 3}, ["on 1 of 3 nodes"]),
        ("SimpleStrategy:2", {"dc1": 2}, []),
        ("dc1:3", {"dc1": 5, "reports": 2}, []),
        ("dc1:3,dc2:1", {"dc1": 3, "dc2": 2}, ["in dc2 on 1 of 2 nodes"]),
    ],
)
def test_fewer_copies_than_nodes_are_told_up_to_three(text: str, nodes: dict[str, int], told: list[str]) -> None:
    assert thin(Replication.parse(text).options(), nodes) == told


@pytest.mark.parametrize("text", ["", "3", "dc1", "dc1:0", "dc1:x", "SimpleStrategy:1,dc1:3", "d'c:1"])
def test_what_is_no_replication_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SimpleStrategy:1 or dc1:3,dc2:3"):
        Replication.parse(text)
