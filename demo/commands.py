"""Several management commands in one process, because each start of Django costs a second:
``python -m demo.commands "migrate --database default" setup_topics``."""

from __future__ import annotations

import os
import shlex
import sys

import django
from django.core.management import CommandError, call_command


def main(commands: list[str]) -> int:
    """Run them in order up to the first that fails."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
    django.setup()
    for command in commands:
        try:
            call_command(*shlex.split(command))
        except CommandError as error:
            print(f"{command}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
