"""The work that peers do too."""

from __future__ import annotations

from bench.figures import Spread
from bench.peers.same_work import Done, Pair


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
