"""The application in the tests' own process, without its thread: what that renews belongs to the tests."""

from __future__ import annotations

from chat4all_project import wsgi

wsgi.renewing.set()
application = wsgi.application
