"""On how many nodes each row is kept: what is asked for, what there is, and whether that survives a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SIMPLE: Final = "SimpleStrategy"
TOPOLOGY: Final = "NetworkTopologyStrategy"
ENOUGH: Final = 3  # a quorum is two: one node may be away, and no row with it
SELECT_KEYSPACE: Final = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = '{}'"


@dataclass(frozen=True, slots=True)
class Replication:
    """Copies of each row: ``SimpleStrategy:1`` for a single node, ``dc1:3,dc2:3`` for data centres."""

    copies: Mapping[str, int]  # by data centre; under "" when there is but one

    @classmethod
    def parse(cls, text: str) -> Replication:
        """Raises ValueError."""
        copies: dict[str, int] = {}
        for part in text.split(","):
            name, colon, number = part.strip().rpartition(":")
            if not colon or not name or not number.isdecimal() or int(number) < 1 or not _is_plain(name):
                raise ValueError(f"{part!r} is no replication: SimpleStrategy:1 or dc1:3,dc2:3")
            copies[name] = int(number)
        if SIMPLE in copies and len(copies) > 1:
            raise ValueError("SimpleStrategy knows no data centres: SimpleStrategy:1 or dc1:3,dc2:3")
        return cls(copies)

    def options(self) -> dict[str, str]:
        if SIMPLE in self.copies:
            return {"class": SIMPLE, "replication_factor": str(self.copies[SIMPLE])}
        return {"class": TOPOLOGY, **{name: str(number) for name, number in sorted(self.copies.items())}}

    def cql(self) -> str:
        return "{" + ", ".join(f"'{name}': '{value}'" for name, value in self.options().items()) + "}"


def _is_plain(name: str) -> bool:
    return all(char.isalnum() or char in "-_." for char in name)


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Of a keyspace, in the form of `Replication.options`."""
    options = dict(row["replication"])
    return {"class": options.pop("class").rpartition(".")[2], **dict(sorted(options.items()))}


def thin(options: Mapping[str, str], nodes: Mapping[str, int]) -> list[str]:
    """Where there are fewer copies than nodes that could keep them (three are enough), in words; ``nodes`` by data
    centre."""
    if options["class"] == SIMPLE:
        return _thin("on", int(options["replication_factor"]), sum(nodes.values()))
    return [
        fault
        for name, copies in options.items()
        if name != "class"
        for fault in _thin(f"in {name} on", int(copies.partition("/")[0]), nodes.get(name, 0))
    ]


def _thin(where: str, copies: int, nodes: int) -> list[str]:
    return [f"{where} {copies} of {nodes} nodes"] if copies < min(ENOUGH, nodes) else []
