"""Which account of ours writes to somebody."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from accounts.models import DEFAULT_WORKSPACE_ID, Workspace
from core.ids import uuid7
from messaging import channels, parties, wiring
from messaging.domain import Contact, Message, Outbound

pytestmark = pytest.mark.django_db(databases=["default", "messages"])

HERE, ELSEWHERE = uuid4(), uuid4()
MARIA = "999"


@pytest.fixture(autouse=True)
def accounts() -> None:
    channels.forget()
    workspace = Workspace.objects.get(id=DEFAULT_WORKSPACE_ID)
    secrets = {"access_token": "t", "app_secret": "s", "verify_token": "v"}
    for account_id in ("default", "first", "second"):
        channels.register(
            workspace=workspace,
            channel="instagram",
            account_id=account_id,
            credentials=secrets,
            make_default=account_id == "default",
        )


def maria_writes(account_id: str, conversation_id: UUID) -> None:
    contact = Contact(
        workspace_id=DEFAULT_WORKSPACE_ID,
        channel="instagram",
        account_id=account_id,
        address=MARIA,
        conversation_id=conversation_id,
        last_message_id=uuid7(),
    )
    wiring.message_store().bind_contacts([contact])


def answering() -> str:
    """The account by which a message in ``HERE`` goes to her."""
    message = Message(
        message_id=uuid7(),
        workspace_id=DEFAULT_WORKSPACE_ID,
        conversation_id=HERE,
        conversation="here",
        sender_id="alice",
        recipient_id=None,
        recipients=(f"instagram:{MARIA}",),
        audience=("alice",),
        content="hello",
        accepted_at_ms=0,
    )
    out = Outbound(message=message, recipient=f"instagram:{MARIA}", channel="instagram", routed_at_ms=0)
    account = parties.account_for(out, wiring.message_store())
    assert account
    return account.account_id


def test_who_never_wrote_is_written_to_by_the_default() -> None:
    assert answering() == "default"


def test_who_wrote_elsewhere_is_written_to_by_the_account_that_knows_them() -> None:
    """On Instagram no other can: a person's id is one account's."""
    maria_writes("first", ELSEWHERE)
    assert answering() == "first"
    maria_writes("second", uuid4())
    assert answering() == "second"


def test_who_wrote_here_is_answered_where_they_wrote() -> None:
    maria_writes("first", HERE)
    maria_writes("second", ELSEWHERE)
    assert answering() == "first"
    maria_writes("default", HERE)
    assert answering() == "default"
