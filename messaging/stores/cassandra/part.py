"""What every concern of the store stands on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, TypeVar

from cassandra.query import UNSET_VALUE

from core.clock import Clock
from messaging.stores.cassandra.session import Database

IN_AT_ONCE: Final = 100  # rows that one IN names

Thing = TypeVar("Thing")
Key = TypeVar("Key", bound=Hashable)


class Part:
    """One concern of the store."""

    _db: Database
    _clock: Clock


def grouped(things: Iterable[Thing], key: Callable[[Thing], Key]) -> dict[Key, list[Thing]]:
    """By key, both in the order in which they came."""
    groups: dict[Key, list[Thing]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def chunks(things: Sequence[Thing], size: int = IN_AT_ONCE) -> Iterable[list[Thing]]:
    iterator = iter(things)
    return iter(lambda: list(itertools.islice(iterator, size)), [])


def given(value: object) -> object:
    """None is left out: written, it would be a tombstone."""
    return UNSET_VALUE if value is None else value
