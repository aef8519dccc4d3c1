"""Who writes what to whom in a benchmark."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from bench.people import Talk, User, parcels


@pytest.mark.parametrize(("conversations", "size", "each"), [(1, 4, 1), (3, 4, 1), (4, 4, 1), (10, 4, 3)])
def test_parcels_reach_every_conversation(conversations: int, size: int, each: int) -> None:
    senders = [User(f"user_{number}", f"token-{number}") for number in range(2)]
    talks = [
        Talk(f"{sender.user_id}-{number}", sender, sender, b"") for sender in senders for number in range(conversations)
    ]
    found = parcels(talks, size)
    said = [json.loads(parcel.request.partition(b"\r\n\r\n")[2])["messages"] for parcel in found]
    assert [len(messages) for messages in said] == [parcel.messages for parcel in found] == [size] * each * len(senders)
    assert Counter(message["conversation_id"] for messages in said for message in messages).keys() == {
        talk.conversation_id for talk in talks
    }
    first = {message["conversation_id"].partition("-")[0] for messages in said[: len(senders)] for message in messages}
    assert first == {sender.user_id for sender in senders}, "all senders' first ones come first"
