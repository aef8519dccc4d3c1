"""Stores so many messages at once in conversations that exist, spread over the last month, through the store's port.

    python -m bench.fill COUNT < conversations

With the environment of a system; each line has a conversation as its client named it, its sender and its recipient.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from uuid import UUID

import django

from bench.people import TEXT
from core.ids import derived_id, uuid7, uuid7_ms

BATCH: Final = 100  # of one conversation
AT_ONCE: Final = 4  # batches
TOLD_EVERY: Final = 100_000
MONTH_US: Final = 30 * 24 * 3600 * 1_000_000


def id_at_us(us: int) -> UUID:
    """As if it had been minted then."""
    ms, rest_us = divmod(us, 1000)
    return UUID(int=ms << 80 | 0x7 << 76 | (rest_us * 4096 // 1000) << 64 | uuid7().int & ((1 << 64) - 1))


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
    django.setup(set_prefix=False)
    from accounts.models import DEFAULT_WORKSPACE_ID  # noqa: PLC0415 - models need the set-up
    from messaging import wiring  # noqa: PLC0415
    from messaging.domain import Message  # noqa: PLC0415

    count, talks = int(sys.argv[1]), [line.split() for line in sys.stdin]
    store = wiring.message_store()
    first_us = time.time_ns() // 1000 - MONTH_US

    def save(start: int) -> None:
        conversation, sender, recipient = talks[start // BATCH % len(talks)]
        ids = [id_at_us(first_us + MONTH_US * number // (count + 1)) for number in range(start, start + BATCH)]
        store.save_messages(
            [
                Message(
                    message_id=each,
                    workspace_id=DEFAULT_WORKSPACE_ID,
                    conversation_id=derived_id(DEFAULT_WORKSPACE_ID, conversation),
                    conversation=conversation,
                    sender_id=sender,
                    recipient_id=None,
                    recipients=(recipient,),
                    audience=(sender, recipient),
                    content=TEXT,
                    accepted_at_ms=uuid7_ms(each),
                )
                for each in ids
            ]
        )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done, _ in enumerate(pool.map(save, range(0, count, BATCH)), start=1):
            if done * BATCH % TOLD_EVERY == 0:
                print(f"stored {done * BATCH:,} of {count:,}", flush=True)
    store.close()


if __name__ == "__main__":
    main()
