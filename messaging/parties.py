"""Who can be written to, and with what: users from accounts, addresses from connectors, limits from their channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast
from uuid import UUID

from django.db import InterfaceError, InternalError, OperationalError, ProgrammingError

from accounts import directory
from connectors import registry
from connectors.base import Account, Media
from core.errors import InvalidRequest, Unavailable
from files import services as files
from files.errors import StorageUnavailable
from messaging import channels
from messaging.domain import Contact, Outbound, Party
from messaging.errors import ChannelNotConfigured, RecipientNotFound, StoreUnavailable
from messaging.ports import MessageStore


class KnownParties:
    """Fulfils `services.conversations.Parties`."""

    def __init__(self, store: MessageStore) -> None:
        self._store = store

    def normalize(self, workspace_id: UUID, party: str) -> str:
        parsed = Party.parse(party)
        if parsed.channel is None:
            if not directory.exists(workspace_id, parsed.address):
                raise RecipientNotFound("there is no such user")
            return parsed.address
        connector = registry.get(parsed.channel)
        address = connector.normalize(parsed.address)
        ours = channels.accounts_of(workspace_id, parsed.channel)
        if not ours:
            raise ChannelNotConfigured(f"this workspace has no {parsed.channel} account; an operator can add one")
        if connector.is_handle(address):
            address = self._resolved(workspace_id, parsed.channel, address)
        return str(Party(parsed.channel, address))

    def _resolved(self, workspace_id: UUID, channel: str, handle: str) -> str:
        """The address behind a name such as an Instagram username: known once its owner has written."""
        for ours in channels.accounts_of(workspace_id, channel):
            contact = self._store.contact_by_handle(
                workspace_id=workspace_id, channel=channel, account_id=ours.account.account_id, handle=handle
            )
            if contact is not None:
                return contact.address
        raise RecipientNotFound(f"nobody of that name has written on {channel} yet, and there only they can start")

    def names(self, workspace_id: UUID, parties: Collection[str]) -> Mapping[str, str]:
        """Display names of users, and of contacts as their platform gave them, as far as known."""
        users = [party for party in parties if Party.parse(party).is_user]
        try:
            known = directory.users(workspace_id, users)
        except (OperationalError, InterfaceError):  # nothing fails for want of a name
            known = directory.last_known(workspace_id, users)
        named = {user_id: info.display_name or info.username for user_id, info in known.items()}
        with suppress(StoreUnavailable):
            named |= self._contact_names(workspace_id, set(parties) - set(users))
        return named

    def _contact_names(self, workspace_id: UUID, parties: Collection[str]) -> Mapping[str, str]:
        """By the first account of ours that knows a name; one look-up for each account, however many the parties."""
        addresses: dict[str, dict[str, str]] = {}
        for party in parties:
            parsed = Party.parse(party)
            addresses.setdefault(parsed.channel or "", {})[parsed.address] = party
        named: dict[str, str] = {}
        for channel, wanted in addresses.items():
            for ours in _accounts_of(workspace_id, channel):
                known = self._store.contacts(
                    workspace_id=workspace_id,
                    channel=ours.account.channel,
                    account_id=ours.account.account_id,
                    addresses=wanted,
                )
                for address, contact in known.items():
                    if contact.name:
                        named.setdefault(wanted[address], contact.name)
        return named


def _accounts_of(workspace_id: UUID, channel: str) -> Sequence[channels.ChannelConfig]:
    """None when nobody can tell."""
    try:
        return channels.accounts_of(workspace_id, channel)
    except Unavailable:
        return ()


class ConnectorLimits:
    """Fulfils `services.accept.Channels`: refuse at once what the platform would refuse later."""

    def check_content(self, channel: str, *, content: str, media_bytes: int | None) -> None:
        if fault := registry.get(channel).capabilities.fault(content, media_bytes=media_bytes):
            place = "file_id" if "media" in fault else "content"
            raise InvalidRequest.at(place, f"{channel} does not carry this: {fault.replace('_', ' ')}", code=fault)


@contextmanager
def list_of_files() -> Iterator[None]:
    """Inside the accounts' database is asked, where files are listed. Raises StorageUnavailable when it is away, takes
    no writes, or lacks a table."""
    try:
        yield
    except (OperationalError, InterfaceError, InternalError, ProgrammingError) as error:
        raise StorageUnavailable(f"The accounts' database does not answer: {type(error).__name__}") from error


class SentFiles:
    """Fulfils `services.accept.Files`, and gives connectors the bytes."""

    def size(self, file_id: str, *, workspace_id: UUID, user_id: str) -> int:
        return files.find(_Viewer(user_id, workspace_id), file_id).size

    def attach(self, file_id: str, *, conversation_id: UUID) -> None:
        files.grant(file_id, conversation_id=conversation_id)

    @staticmethod
    def media(outbound: Outbound) -> Media | None:
        """The file of a message for its connector; None when it has none. Raises StorageUnavailable."""
        message = outbound.message
        if not message.file_id:
            return None
        with list_of_files():
            info = files.get(message.file_id, workspace_id=message.workspace_id)
        if info is None:
            return None
        return Media(
            filename=info.filename,
            content_type=info.content_type,
            size=info.size,
            open=lambda: cast(BinaryIO, files.open_path(info.path)),
            url=files.download_url(info),
        )


class _Viewer:
    def __init__(self, user_id: str, workspace_id: UUID) -> None:
        self.user_id = user_id
        self.workspace_id = workspace_id


def account_for(outbound: Outbound, store: MessageStore) -> Account | None:
    """Our account that writes to this recipient: the one they were last heard on in this conversation, else anywhere
    (an Instagram id is of one account, and a WhatsApp window is open to the number they wrote to), else the default."""
    ours = channels.accounts_of(outbound.message.workspace_id, outbound.channel)
    if len(ours) > 1:
        known = [(contact, each.account) for each in ours if (contact := _contact(outbound, each, store))]
        here = [pair for pair in known if pair[0].conversation_id == outbound.message.conversation_id]
        if heard := here or known:
            return max(heard, key=lambda pair: pair[0].last_message_id)[1]
    return ours[0].account if ours else None


def _contact(outbound: Outbound, ours: channels.ChannelConfig, store: MessageStore) -> Contact | None:
    """The recipient as this account of ours knows them."""
    return store.contact(
        workspace_id=ours.workspace_id,
        channel=outbound.channel,
        account_id=ours.account.account_id,
        address=Party.parse(outbound.recipient).address,
    )


def is_agent(account: Account, user_id: str) -> bool:
    """Whether a user answers for this account of ours: one of its agents, or anybody while it has none."""
    ours = channels.account(account.channel, account.account_id)
    return ours is None or not ours.agents or user_id in ours.agents
