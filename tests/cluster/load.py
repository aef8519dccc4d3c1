"""A small load whose arrival is asserted by itself, without the checker."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.conftest import Harbour
from tests.town import Socket, eventually, phone

PEOPLE, EACH = 20, 6


@dataclass
class Load:
    """Messages to twenty people, written by careful clients that insist until they are accepted."""

    harbour: Harbour
    people: list[str]
    ids: dict[str, list[str]]

    @classmethod
    def of(cls, harbour: Harbour) -> Load:
        people = [phone() for _ in range(PEOPLE)]
        return cls(harbour, people, {each: [] for each in people})

    def write(self, to: str, numbers: range) -> None:
        for number in numbers:
            accepted = self.harbour.alice.insist(f"fault-{to}", f"text {number:02d}", f"whatsapp:+{to}")
            self.ids[to].append(accepted)

    def arrived(self) -> int:
        arrived = self.harbour.town.arrived(self.harbour.whatsapp)
        return sum(len({each["text"] for each in arrived.get(to, ())}) for to in self.people)

    def assert_kept(self, socket: Socket) -> None:
        """All of it arrived in order; twice only what says so; history, receipts and frames are whole."""
        town, alice, texts = self.harbour.town, self.harbour.alice, [f"text {number:02d}" for number in range(EACH)]
        everything = PEOPLE * EACH
        eventually(lambda: self.arrived() == everything, within_s=120)  # a task that hangs is ended after 60 s
        for to, received in town.arrived(self.harbour.whatsapp).items():
            if to not in self.people:
                continue  # of the load before
            assert list(dict.fromkeys(each["text"] for each in received)) == texts
            assert {each["correlation"] for each in received} == set(self.ids[to])
            for twice in {each["correlation"] for each in received if each["attempts"] > 1}:
                assert "SENT(maybe_duplicate)" in alice.statuses(twice)
        for to in self.people:
            eventually(lambda to=to: {each["status"] for each in alice.history(f"fault-{to}")} == {"READ"})  # type: ignore[misc]
            assert [each["message_id"] for each in alice.history(f"fault-{to}")] == self.ids[to]
        if not socket.resyncs:  # a flushed bus forgets frames, and says so
            eventually(lambda: all(socket.texts(f"fault-{to}") == texts for to in self.people))
        assert town.dead_letters() == 0
