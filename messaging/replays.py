"""Which dead letters were replayed, and by whom: beside the accounts, for every message store alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from messaging.models import ReplayedLetter
from messaging.services.replay import Mark, Place, Replayed


class SqlMarks:
    """`messaging.services.replay.Marks`."""

    def known(self, marks: Collection[Mark]) -> Mapping[Mark, Replayed]:
        topics = {mark.place.topic for mark in marks}
        offsets = {mark.place.offset for mark in marks}
        rows = ReplayedLetter.objects.filter(topic__in=topics, offset__in=offsets)
        found = {
            Mark(Place(row.topic, row.partition, row.offset), row.appended_at_ms): Replayed(row.by, row.at_ms)
            for row in rows
        }
        return {mark: found[mark] for mark in marks if mark in found}

    def add(self, marks: Collection[Mark], replayed: Replayed) -> None:
        ReplayedLetter.objects.bulk_create(
            [
                ReplayedLetter(
                    topic=mark.place.topic,
                    partition=mark.place.partition,
                    offset=mark.place.offset,
                    appended_at_ms=mark.appended_at_ms,
                    by=replayed.by,
                    at_ms=replayed.at_ms,
                )
                for mark in marks
            ],
            ignore_conflicts=True,
        )

    def forget(self, *, before: Place) -> None:
        ReplayedLetter.objects.filter(topic=before.topic, partition=before.partition, offset__lt=before.offset).delete()
