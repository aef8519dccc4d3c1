"""What a process remembers of what never changes."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast
from uuid import uuid4

from core.ids import uuid7
from messaging.domain import ExternalRef, Reference
from messaging.ports import MessageStore
from messaging.services.recent import RecentReferences
from tests.contracts.message_stores import CARLA
from tests.messaging.workbench import Workbench

PLACE = ("whatsapp", "1055")


def ref(external_id: str) -> ExternalRef:
    return ExternalRef(
        channel=PLACE[0],
        account_id=PLACE[1],
        external_id=external_id,
        message_id=uuid7(),
        conversation_id=uuid4(),
        party=CARLA,
    )


def test_what_an_id_means_is_read_once_and_what_is_not_recorded_again(bench: Workbench) -> None:
    one, two = ref(f"wamid.{uuid4().hex}"), ref(f"wamid.{uuid4().hex}")
    wanted = [one.reference, two.reference]
    bench.store.claim_externals([one])
    recent = RecentReferences()
    assert recent.get(wanted, bench.store) == {(*PLACE, one.external_id): one}
    bench.store.claim_externals([two])
    asked: list[list[str]] = []

    class Counting:
        def externals(self, channel: str, account_id: str, ids: list[str]) -> dict[str, ExternalRef]:
            asked.append(list(ids))
            return bench.store.externals(channel, account_id, ids)

    both = {(*PLACE, each.external_id): each for each in (one, two)}
    assert recent.get(wanted, Counting()) == both  # type: ignore[arg-type]
    assert recent.get(wanted, Counting()) == both  # type: ignore[arg-type]
    assert asked == [[two.external_id]]


def test_what_another_process_told_of_is_not_read_and_nobody_is_asked_for_it_again(bench: Workbench) -> None:
    told, stored, unknown = (ref(f"wamid.{uuid4().hex}") for _ in range(3))
    bench.store.note_externals([stored])
    asked: list[list[Reference]] = []

    def hinted(wanted: Collection[Reference]) -> list[ExternalRef]:
        asked.append(sorted(wanted))
        return [told]

    class Counting:
        def externals(self, channel: str, account_id: str, ids: list[str]) -> dict[str, ExternalRef]:
            read.append(sorted(ids))
            return bench.store.externals(channel, account_id, ids)

    read: list[list[str]] = []
    recent, store = RecentReferences(hinted), cast(MessageStore, Counting())
    wanted = [each.reference for each in (told, stored, unknown)]
    both = {each.reference: each for each in (told, stored)}
    assert recent.get(wanted, store) == both
    assert recent.get(wanted, store) == both
    assert asked == [sorted(each.reference for each in (told, stored, unknown)), [unknown.reference]]
    assert read == [sorted([stored.external_id, unknown.external_id]), [unknown.external_id]]
