"""Who is who: look-ups of users by public id, kept in the process for at most 5 s; for 5 minutes while the database is
away, for nobody who works with known people needs it. Then nobody can be deactivated there either.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import InterfaceError, OperationalError

from accounts.models import User
from core.cache import LastKnown
from core.clock import SYSTEM_CLOCK, Clock

MAX_AGE_S: Final = 5.0
MAX_AGE_AWAY_S: Final = 300.0
"""While the accounts' database is away."""
RENEWED: Final = 500  # users in one query
_PUBLIC_ID: Final = re.compile(r"user_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class UserInfo:
    """What others may know about a user."""

    user_id: str
    username: str
    display_name: str
    workspace_id: UUID
    is_active: bool = True


def new_cache(clock: Clock = SYSTEM_CLOCK) -> LastKnown[str, UserInfo]:
    return LastKnown(ttl_s=MAX_AGE_S, outage_s=MAX_AGE_AWAY_S - MAX_AGE_S, clock=clock)


cache = new_cache()
"""Only users that exist: one who registers is seen at once, one who is deactivated within MAX_AGE_S."""


def users(workspace_id: UUID, public_ids: Iterable[str]) -> dict[str, UserInfo]:
    """Those of ``public_ids`` that are users of this workspace, deactivated ones included.

    Raises OperationalError or InterfaceError when the database is away, or was within two seconds, and was not asked
    for some of them lately.
    """
    wanted = {public_id for public_id in public_ids if _PUBLIC_ID.fullmatch(public_id)}
    found = cache.known(wanted)
    if missing := wanted - found.keys():
        found |= _load(missing)
    return {public_id: info for public_id, info in found.items() if info.workspace_id == workspace_id}


def last_known(workspace_id: UUID, public_ids: Iterable[str]) -> dict[str, UserInfo]:
    """As `users`, of those that this process knows."""
    found = {public_id: info for public_id in public_ids if (info := cache.last(public_id))}
    return {public_id: info for public_id, info in found.items() if info.workspace_id == workspace_id}


def user(workspace_id: UUID, public_id: str) -> UserInfo | None:
    return users(workspace_id, (public_id,)).get(public_id)


def exists(workspace_id: UUID, public_id: str) -> bool:
    return user(workspace_id, public_id) is not None


def named(workspace_id: UUID, username: str) -> UserInfo | None:
    """The active user of that name, whatever its case."""
    found = User.objects.filter(workspace_id=workspace_id, username__lower=username.lower(), is_active=True).first()
    return _info(found) if found else None


def renew() -> None:
    """Ask again for those who are asked for all the time, see `core.cache.TtlCache.renew`."""
    try:
        cache.renew(lambda public_ids: _read(public_ids).items(), most=RENEWED)
    except (OperationalError, InterfaceError):
        cache.away()


def _read(public_ids: Collection[str]) -> dict[str, UserInfo]:
    return {row.public_id: _info(row) for row in User.objects.filter(public_id__in=public_ids)}


def _load(public_ids: set[str]) -> dict[str, UserInfo]:
    failure: Exception = OperationalError("The accounts database did not answer a moment ago")
    if not cache.rests:  # who waits for it holds up those behind: a gateway asks on one thread
        try:
            found = _read(public_ids)
        except (OperationalError, InterfaceError) as error:
            failure = error
            cache.away()
        else:
            for public_id, known in found.items():
                cache.put(public_id, known)
            return found
    last = {public_id: info for public_id in public_ids if (info := cache.last(public_id))}
    if last.keys() < public_ids:
        raise failure
    return last


def _info(row: User) -> UserInfo:
    return UserInfo(row.public_id, row.username, row.display_name or row.username, row.workspace_id, row.is_active)
