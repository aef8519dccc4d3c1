"""Calls to one redis-server with a deadline; whatever keeps it from answering is LogUnavailable."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from core.failpoints import failpoint
from messaging.errors import LogUnavailable

CONNECT_TIMEOUT_S: Final = 1.5
MAX_CONNECTIONS: Final = 4096  # one per thread inside a call: never the limit that is met first

# Answers of a server that is there and cannot serve: full, read-only, loading, its disk gone, our password refused.
# Within a script the code stands in the middle of the sentence (Redis 6.2), and the client strips some codes.
_CANNOT_SERVE: Final = re.compile(
    r"\b(OOM|READONLY|LOADING|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|BUSY|NOAUTH|NOPERM|WRONGPASS)\b"
)
_STRIPPED: Final[dict[type[Exception], str]] = {
    redis.OutOfMemoryError: "OOM",
    redis.ReadOnlyError: "READONLY",
    redis.exceptions.NoPermissionError: "NOPERM",
}

Argument = str | bytes | int


class Script:
    """A Lua script, called by its digest and sent in full only to a server that does not know it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.body = Path(__file__).with_name("lua").joinpath(f"{name}.lua").read_text()
        self.digest = hashlib.sha1(self.body.encode(), usedforsecurity=False).hexdigest()


class RedisLink:
    """Connects on first use, in whichever process that is; may be shared by threads.

    Nothing is sent twice: a call that was not answered may have been done, and only the caller knows what that means.
    An idle connection that the server closed is noticed before use, so a restart costs no error afterwards.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        connect_s = min(CONNECT_TIMEOUT_S, timeout_s / 2)
        self._pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,  # nothing of RESP3 is needed, and this saves the handshake
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=connect_s,
            socket_timeout=timeout_s - connect_s,  # sending; the answer has what is left of the deadline
            socket_keepalive=True,
            max_connections=MAX_CONNECTIONS,
        )
        where = self._pool.connection_kwargs
        self.address = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"

    def call(self, *command: Argument, timeout_s: float | None = None, point: str | None = None) -> Any:
        """The server's answer. Raises LogUnavailable within ``timeout_s`` (else the link's own). ``point``: a failpoint
        that is come by when the server has the command."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        with self._unavailable_explained(), self._connection() as connection:
            connection.send_command(*command)
            if point is not None:
                failpoint(point)
            return connection.read_response(timeout=max(0.001, deadline - time.monotonic()))

    def script(
        self,
        script: Script,
        prefix: str,
        *arguments: Argument,
        timeout_s: float | None = None,
        point: str | None = None,
    ) -> Any:
        """Run a script whose one key is the prefix of all it touches. ``point`` as for a call."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)

        def run(*command: Argument) -> Any:
            return self.call(*command, 1, prefix, *arguments, timeout_s=deadline - time.monotonic(), point=point)

        try:
            return run("EVALSHA", script.digest)
        except NoScriptError:  # a server that started since: EVAL teaches it
            return run("EVAL", script.body)

    def close(self) -> None:
        self._pool.disconnect()

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        connection = self._pool.get_connection()
        try:
            yield connection
        except ResponseError:
            raise  # answered: the connection is as good as before
        except BaseException:
            # an answer that comes late must not meet the next call
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        finally:
            self._pool.release(connection)

    @contextmanager
    def _unavailable_explained(self) -> Iterator[None]:
        try:
            yield
        except ResponseError as error:
            if code := _code(error):
                raise self._unavailable(f"cannot serve ({code})") from error
            raise
        except (RedisError, OSError) as error:
            raise self._unavailable(f"does not answer ({type(error).__name__})") from error

    def _unavailable(self, what: str) -> LogUnavailable:
        return LogUnavailable(
            f"The event log (redis-server at {self.address}) {what}: "
            f"see that it runs, has memory and disk left, and that EVENT_LOG_URL is right"
        )


def _code(error: ResponseError) -> str | None:
    """Why the server cannot serve; None: it understood, and the request was wrong."""
    found = _CANNOT_SERVE.search(str(error))
    return _STRIPPED.get(type(error)) or (found[0] if found else None)
