"""ENGINE ``core.postgres``: see the package. Three things that Django's pool (5.2) leaves open are closed here.

- A thread that ends without closing its connection would keep its place in the pool for ever: it is given back.
- A child process would use its parent's sockets and wait for threads that it has not: it starts with no pool.
- A server that froze after it took a query would hang the caller for ever: ``answer_timeout_s`` in OPTIONS ends that.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final

import psycopg
from django.db import connections
from django.db.backends.postgresql import base
from psycopg.errors import _WaitTimeout

_inherited: Final[list[object]] = []  # a parent's: even to close them here would break them there


class BoundedConnection(psycopg.Connection[Any]):
    """Waits so long for each answer and then closes itself: whatever comes late must not meet the next query."""

    answer_timeout_s: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.answer_timeout_s if timeout is None else timeout)
        except _WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server did not answer within {self.answer_timeout_s:g} s") from None


class _Loan:
    """A connection out of the pool in one thread's hands; whoever forgets it gives it back."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def over(self) -> None:
        self._connection = None

    def __del__(self) -> None:
        if self._connection is not None and (pool := getattr(self._connection, "_pool", None)):
            pool.putconn(self._connection)


class _Loans(threading.local):
    """This thread's, by alias. They go with the thread, at once: nothing else refers to them."""

    def __init__(self) -> None:
        self.of: dict[str, _Loan] = {}


_loans: Final = _Loans()


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        params.pop("answer_timeout_s", None)  # ours, not libpq's
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        connection = super().get_new_connection(conn_params)
        if self.pool:
            _loans.of[self.alias] = _Loan(connection)
        return connection

    def _close(self) -> None:
        if loan := _loans.of.pop(self.alias, None):
            loan.over()
        super()._close()  # type: ignore[misc]  # the stubs know none

    def _configure_connection(self, connection: Any) -> Any:
        if isinstance(connection, BoundedConnection):
            connection.answer_timeout_s = self.settings_dict["OPTIONS"].get("answer_timeout_s")
        return super()._configure_connection(connection)  # type: ignore[misc]


def _forget_parents_connections() -> None:
    """In a child: drop what the parent opened, without a word to its server."""
    pools = DatabaseWrapper._connection_pools  # type: ignore[attr-defined]
    _inherited.extend(pools.values())
    pools.clear()
    for loan in _loans.of.values():
        loan.over()
    _loans.of.clear()
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, DatabaseWrapper):
            _inherited.append(wrapper.connection)
            wrapper.connection = None


os.register_at_fork(after_in_child=_forget_parents_connections)
