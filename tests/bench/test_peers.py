"""The work that peers do too, and what can be told of Tinode without it."""

from __future__ import annotations

import argparse
import base64
import hmac
from pathlib import Path

import pytest

from bench.figures import Spread
from bench.peers.same_work import Done, Pair
from bench.peers.tinode import api_key, opened, programs


class Noted(Pair):
    """Notes what it is to write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[int] = []

    def write(self, number: int) -> None:
        self.written.append(number)


def test_the_next_message_goes_out_when_the_last_was_answered_and_came() -> None:
    pair = Noted()
    pair.begin()
    pair.answered()
    assert pair.written == [1]
    pair.came()
    assert pair.written == [1, 2]
    pair.came()
    assert pair.written == [1, 2]
    pair.answered()
    assert pair.written == [1, 2, 3]
    assert len(pair.took_s) == 2


def test_ours_stands_beside_a_peer_in_throughput_and_latency() -> None:
    ours, peer = Done(150, Spread(10, 30, 40)), Done(100, Spread(40, 40, 40))
    assert ours.beside("Synapse", peer) == "1.50 times Synapse's throughput, 0.25 times its p50, 0.75 times its p95"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.touch(0o755)
    return path


def test_tinodes_programs_are_named_by_options_or_the_environment(program: Path) -> None:
    given = argparse.Namespace(server=str(program), init=None)
    assert programs(given, {"TINODE_SERVER": "elsewhere", "TINODE_DB": str(program)}) == (str(program), str(program))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param("", "--init (or TINODE_DB): its tinode-db is not given", id="not given"),
        pytest.param("missing", "is no program: ", id="not there"),
        pytest.param("text", "is no program: ", id="not executable"),
        pytest.param(".", "is no program: ", id="a folder"),
    ],
)
def test_what_is_none_of_tinodes_programs_is_refused_with_what_to_do(program: Path, name: str, fault: str) -> None:
    (program.parent / "text").touch(0o644)
    init = str(program.parent / name) if name else None
    with pytest.raises(ValueError, match=r"INSTALL\.md") as refused:
        programs(argparse.Namespace(server=str(program), init=init), {})
    assert fault in str(refused.value)


def test_a_client_of_tinode_has_a_key_signed_with_the_servers_salt() -> None:
    key = base64.urlsafe_b64decode(api_key(b"salt"))
    assert (len(key), key[0], key[7]) == (24, 1, 0)  # the scheme; not of root
    assert key[8:] == hmac.digest(b"salt", key[:8], "md5")


def test_a_frame_of_tinode_says_what_it_is() -> None:
    assert opened(b'{"data":{"topic":"usrA","seq":3}}') == ("data", {"topic": "usrA", "seq": 3})
    assert opened(b'{"ctrl":{"id":"1","code":202,"text":"accepted"}}')[0] == "ctrl"


def test_a_refusal_of_tinode_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="Tinode answered 403: permission denied"):
        opened(b'{"ctrl":{"id":"1","code":403,"text":"permission denied"}}')
