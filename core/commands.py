"""What our management commands have in common."""

from __future__ import annotations

from django.core.management.base import BaseCommand


class LeanCommand(BaseCommand):
    """Starts without Django's checks: they load every view of the API, whose packages no command of ours needs, and
    take longer than most of what one does. `manage.py check` runs them. Our own, of what is around us, are run nowhere
    else anyway (``--deploy``).
    """

    requires_system_checks = ()
