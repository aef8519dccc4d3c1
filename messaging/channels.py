"""Channel accounts as the pipeline sees them: looked up by what a webhook's URL or a recipient's channel names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from django.db import DataError, Error, connections, transaction
from django.db.models import Prefetch, QuerySet

from accounts.models import User, Workspace
from connectors import registry
from connectors.base import Account
from core.cache import LastKnown, TtlCache
from core.errors import Conflict, Unavailable
from messaging.errors import SecretsUnreadable
from messaging.models import ChannelAccount

UNATTENDED: Final = "It has no active agent: what unknown people write to it reaches nobody until it gets one."
CACHED_S: Final = 5.0
CACHED_AWAY_S: Final = 300.0
"""While the accounts' database is away."""
RENEWED: Final = 20  # each is a query
LEARNED: Final = 300  # accounts, each under three keys
LEARNED_EVERY_S: Final = 60.0
MAX_ACCOUNT_ID: Final = 128  # the column's


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """An active account, whose it is, and who gets the conversations that unknown senders open."""

    account: Account
    workspace_id: UUID
    agents: tuple[str, ...]  # public ids of active users


Known = frozenset[tuple[str, object]]
_recent: Final[LastKnown[Known, tuple[ChannelConfig, ...]]] = LastKnown(
    ttl_s=CACHED_S, outage_s=CACHED_AWAY_S - CACHED_S, size=1024
)
# By itself: anybody can ask for account ids that do not exist, and must not drive out those that do.
_absent: Final[TtlCache[Known, tuple[ChannelConfig, ...]]] = TtlCache(ttl_s=CACHED_S, size=1024)


def forget() -> None:
    """Forget what this process knows; others learn of a change within CACHED_S."""
    _recent.clear()
    _absent.clear()


def account(channel: str, account_id: str) -> ChannelConfig | None:
    """The active account of that id on a channel, up to 5 s old (5 minutes while the database is away).

    Raises Unavailable."""
    if len(account_id) > MAX_ACCOUNT_ID:  # whoever asks for that must not have it kept
        return None
    return next(iter(_active(channel=channel, account_id=account_id)), None)


def accounts_of(workspace_id: UUID, channel: str) -> tuple[ChannelConfig, ...]:
    """All active accounts of a workspace on a channel, the default one first, up to 5 s old. Raises Unavailable."""
    return _active(workspace_id=workspace_id, channel=channel)


def default_account(workspace_id: UUID, channel: str) -> ChannelConfig | None:
    """The active account that a workspace sends through unless told otherwise, up to 5 s old. Raises Unavailable."""
    return next(iter(_active(workspace_id=workspace_id, channel=channel, is_default=True)), None)


def _active(**known: object) -> tuple[ChannelConfig, ...]:
    key = _key(**known)
    if (found := _recent.get(key)) is not None or (found := _absent.get(key)) is not None:
        return found
    failure = Unavailable("The accounts database did not answer a moment ago")
    if not _recent.rests:
        try:
            found = _read(known)
        except SecretsUnreadable:  # the database answers
            raise
        except Unavailable as error:
            failure = error
            _recent.away()
        else:
            _keep(key, found)
            return found
    if last := _recent.last(key):
        return last
    raise failure


def _keep(key: Known, found: tuple[ChannelConfig, ...]) -> None:
    if found:
        _recent.put(key, found)
    else:
        _recent.forget(key)
        _absent.put(key, found)


def renew() -> None:
    """Ask again for those that are asked for all the time, see `core.cache.TtlCache.renew`."""
    try:
        _recent.renew(_read_again, most=RENEWED)
    except Unavailable:
        _recent.away()


def _read_again(keys: Collection[Known]) -> Iterator[tuple[Known, tuple[ChannelConfig, ...]]]:
    for key in keys:
        try:
            found = _read(dict(key))
        except SecretsUnreadable:  # who asks for it is told
            continue
        yield key, found


def learn() -> None:
    """Know every active account, should the accounts' database go away before this process needed one of them, and for
    that alone: as long as it answers, it is asked.

    Nothing when there are more than LEARNED. One whose secrets nobody can read costs its workspace's others on that
    channel, no more. Raises Unavailable."""
    served = {"channel__in": registry.channels()}
    try:
        _learn(served)
    except SecretsUnreadable:
        active = ChannelAccount.objects.filter(is_active=True, **served)
        for workspace_id, channel in active.order_by().values_list("workspace_id", "channel").distinct()[:LEARNED]:
            with suppress(SecretsUnreadable):
                _learn({"workspace_id": workspace_id, "channel": channel})


def _learn(known: Mapping[str, object]) -> None:
    found = list(_rows(known, most=LEARNED + 1))
    if len(found) > LEARNED:
        return
    groups: defaultdict[tuple[UUID, str], list[tuple[ChannelConfig, bool]]] = defaultdict(list)
    for config, is_default in found:
        channel, account_id = config.account.channel, config.account.account_id
        _recent.learn(_key(channel=channel, account_id=account_id), (config,))
        groups[config.workspace_id, channel].append((config, is_default))
    for (workspace_id, channel), ours in groups.items():
        of_workspace: dict[str, object] = {"workspace_id": workspace_id, "channel": channel}
        _recent.learn(_key(**of_workspace), tuple(config for config, _ in ours))
        if default := tuple(config for config, is_default in ours if is_default):
            _recent.learn(_key(**of_workspace, is_default=True), default)


def _key(**known: object) -> Known:
    return frozenset(known.items())


def _read(known: Mapping[str, object]) -> tuple[ChannelConfig, ...]:
    return tuple(config for config, _ in _rows(known))


def _rows(known: Mapping[str, object], *, most: int | None = None) -> Iterator[tuple[ChannelConfig, bool]]:
    """The active accounts of which this is true, the default ones first, and whether each is one."""
    agents = Prefetch("agents", User.objects.filter(is_active=True).order_by("pk"), to_attr="active_agents")
    try:
        if not connections["default"].in_atomic_block:
            connections["default"].close_if_unusable_or_obsolete()  # workers have no requests around which Django does
        rows = ChannelAccount.objects.filter(is_active=True, **known).order_by("-is_default", "pk")
        for row in rows.prefetch_related(agents)[:most]:
            yield _config(row), row.is_default
    except DataError:  # it answers, only not to that: nobody may make it look away
        raise
    except Error as error:
        raise Unavailable(f"The accounts database does not answer: {type(error).__name__}") from error


def _config(row: Any) -> ChannelConfig:
    """Of a row with its ``active_agents``."""
    base_url = row.base_url or registry.get(row.channel).default_base_url
    agents = tuple(each.public_id for each in row.active_agents)
    return ChannelConfig(Account(row.channel, row.account_id, base_url, row.credentials), row.workspace_id, agents)


def unattended() -> QuerySet[ChannelAccount]:
    """Active accounts without an agent who may sign in: what unknown people write to these reaches nobody."""
    return ChannelAccount.objects.filter(is_active=True).exclude(agents__is_active=True).defer("credentials")


def checked_base_url(url: str) -> str:
    """Where a platform's API is, "" for its own place. Raises ValueError with a sentence for a person."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if url and not valid:
        raise ValueError("It must be like https://graph.facebook.com")
    return url.rstrip("/")


def register(
    *,
    workspace: Workspace,
    channel: str,
    account_id: str,
    credentials: Mapping[str, str],
    base_url: str = "",
    display_name: str = "",
    agents: Sequence[User] = (),
    make_default: bool = False,
) -> bool:
    """Add an account, or bring the one with that id to these values; True when it is new.

    ``make_default`` takes the place of the workspace's default on that channel; without it a default stays one.
    Raises Conflict when another workspace has that account: a platform's webhook names no workspace.
    """
    with transaction.atomic():
        row = ChannelAccount.objects.select_for_update().filter(channel=channel, account_id=account_id).first()
        is_new = row is None
        if row is None:
            row = ChannelAccount(workspace=workspace, channel=channel, account_id=account_id)
        elif row.workspace_id != workspace.pk:
            raise Conflict(f"The {channel} account {account_id} belongs to another workspace.")
        row.credentials = dict(credentials)
        row.base_url, row.display_name, row.is_active = base_url, display_name, True
        if make_default:
            others = ChannelAccount.objects.filter(workspace=workspace, channel=channel, is_default=True)
            others.exclude(pk=row.pk).update(is_default=False)
            row.is_default = True
        row.save()
        row.agents.set(agents)
    forget()
    return is_new
