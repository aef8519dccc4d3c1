"""Reads message ids, a line each, and prints those that the message store of this environment does not have."""

from __future__ import annotations

import os
import sys
from uuid import UUID

import django

AT_ONCE = 500


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
    django.setup(set_prefix=False)
    from messaging import wiring  # noqa: PLC0415 - its models need the set-up

    store = wiring.message_store()
    wanted = [UUID(each) for each in sys.stdin.read().split()]
    for start in range(0, len(wanted), AT_ONCE):
        some = wanted[start : start + AT_ONCE]
        for missing in set(some) - store.messages(some).keys():
            print(missing)
    store.close()


if __name__ == "__main__":
    main()
