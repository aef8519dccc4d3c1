"""The Cassandra statements that our store issues for a piece of work, recorded, and run again about other messages.

So the floor does what the product does, whatever that is today, with nothing but the driver around it, and the few
lines of the store's by which small requests travel together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from messaging.stores.cassandra import session as sessions
from messaging.stores.cassandra.session import (
    Call,
    Conditional,
    Database,
    Lookup,
    Mutation,
    Query,
    SamePartition,
    Statement,
    Values,
    Write,
    bounded,
    is_lookup,
    packed,
)

Step = Sequence[Write]
"""Statements that are under way together; a step begins when the one before it is answered."""


@dataclass(slots=True)
class Recorder:
    """What the store asks Cassandra for, call by call, while it is recording."""

    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def recording(self) -> Iterator[None]:
        at_once, conditionally = Call.at_once, Call.conditionally

        def recorded_at_once(call: Call, queries: Sequence[Query | Lookup], writes: Iterable[Write] = ()) -> list[Any]:
            listed = list(writes)
            self.steps.append([*(Statement(query.cql, values) for query in queries for values in query.many), *listed])
            return at_once(call, queries, listed)

        def recorded_conditionally(call: Call, writes: Sequence[Conditional]) -> list[bool | None]:
            self.steps.append([each.write for each in writes])
            return conditionally(call, writes)

        Call.at_once = recorded_at_once  # type: ignore[assignment, method-assign]
        Call.conditionally = recorded_conditionally  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            Call.at_once, Call.conditionally = at_once, conditionally  # type: ignore[method-assign]


class BareDriver:
    """A loop around the driver that does nothing else."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._prepared: dict[str, Any] = {}

    def run(self, steps: Sequence[Step]) -> None:
        with self.database.call(60) as call:
            for step in steps:
                self._step(call, step)

    def _step(self, call: Call, step: Step) -> None:
        session, flight = call._session, deque[Any]()
        for statement in self._sent(call, step):
            if len(flight) >= sessions.WINDOW:
                list(flight.popleft().result())
            flight.append(session.execute_async(statement))
        for future in flight:
            list(future.result())

    def _sent(self, call: Call, step: Step) -> Iterator[Any]:
        """Writes and look-ups travel together as the store's do; what else is asked, or has a condition, by itself."""
        writes: list[Mutation] = []
        lookups: dict[str, list[Values]] = {}
        for write in step:
            if isinstance(write, Statement) and is_lookup(write.cql):
                lookups.setdefault(write.cql, []).append(write.values)
                continue
            bound = [self._prepare(call._session, each.cql).bind(each.values) for each in write]
            if any(each.cql.startswith("SELECT") or " IF " in each.cql for each in write):
                yield from bound
            else:
                writes += bounded(bound)
        for cql, many in lookups.items():
            yield from call._asked(Lookup(cql, many))
        yield from packed(writes, call._replicas)

    def _prepare(self, session: Any, cql: str) -> Any:
        if cql not in self._prepared:
            self._prepared[cql] = session.prepare(self.database.qualified(cql))
        return self._prepared[cql]


class Template:
    """Recorded statements, to be run about other things: what is in ``variables`` is replaced wherever it stands.

    Where it stands is found once, so that filling in costs next to nothing.
    """

    def __init__(self, steps: Sequence[Step], variables: Collection[Any]) -> None:
        def varies(value: Any) -> bool:
            return any(map(varies, value)) if isinstance(value, list | tuple) else value in variables

        def places(statement: Statement) -> tuple[int, ...]:
            return tuple(place for place, value in enumerate(statement.values) if varies(value))

        self._steps = [
            [(isinstance(write, SamePartition), [(each, places(each)) for each in write]) for write in step]
            for step in steps
        ]

    def filled(self, names: Mapping[Any, Any]) -> list[Step]:
        """``names``: what stands for each of the variables now."""

        def value(old: Any) -> Any:
            return type(old)(map(value, old)) if isinstance(old, list | tuple) else names.get(old, old)

        def statement(old: Statement, places: Sequence[int]) -> Statement:
            values = list(old.values)
            for place in places:
                values[place] = value(values[place])
            return Statement(old.cql, values)

        return [
            [
                SamePartition([statement(*each) for each in statements]) if together else statement(*statements[0])
                for together, statements in step
            ]
            for step in self._steps
        ]


def together(many: Sequence[Sequence[Step]]) -> list[Step]:
    """Several pieces of the same work as one: their first steps at once, then their second ones, …"""
    return [[write for step in steps for write in step] for steps in zip(*many, strict=True)]
