"""Which request a record comes from: a header that goes on from record to record, and names it in the lines about them.

It is nobody's decision: what a record leads to is the same with and without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Final

from core.logging import SANE_REQUEST_ID, bind, request_id
from messaging.ports import Record

REQUEST_ID: Final = "request-id"


def headers(request_id: str | None) -> Mapping[str, str]:
    """Those of a record that comes from this request; none where there is no request."""
    return {REQUEST_ID: request_id} if request_id else {}


def of_request() -> Mapping[str, str]:
    """The headers of what the request being served appends."""
    return headers(request_id())


def origin(record: Record) -> str | None:
    """The request that a record comes from. What another producer wrote there, and no id is, does not travel."""
    found = record.headers.get(REQUEST_ID)
    return found if found and SANE_REQUEST_ID.fullmatch(found) else None


def onward(record: Record) -> Mapping[str, str]:
    """The headers of what follows from a record."""
    return headers(origin(record))


def about(record: Record, message_id: object = None) -> AbstractContextManager[None]:
    """Around the log lines about one record: they name its request, and its message where the caller knows it."""
    return bind(request_id=origin(record), message_id=message_id)
