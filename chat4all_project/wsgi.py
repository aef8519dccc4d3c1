"""The API for a WSGI server: ``granian --interface wsgi chat4all_project.wsgi:application``."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.signals import request_started
from django.core.wsgi import get_wsgi_application
from django.db import reset_queries

from core.wsgi import TextCharsetsOnly

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")

application = TextCharsetsOnly(get_wsgi_application())

if not settings.DEBUG:  # only then queries are kept
    request_started.disconnect(reset_queries)

from core.health import serve_own_health  # noqa: E402 - only now apps are loaded
from core.renewal import keep_renewing  # noqa: E402
from messaging import wiring  # noqa: E402

wiring.event_log().warm()
renewing = keep_renewing(*wiring.renewals())
hearing = wiring.hear_of_members()

if settings.API_HEALTH_PORT:
    serve_own_health(settings.API_HEALTH_PORT)
