"""The console's page. It holds no data: everything it shows comes over the public API with the person's own token."""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import urlsplit

from django.conf import settings
from django.core.files.storage import default_storage
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from core.methods import read_only

# Nothing but our own files runs, and no markup of a message could: there is no inline script or style to hide behind.
_POLICY: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "font-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}

logger = logging.getLogger(__name__)


@read_only
def console(request: HttpRequest) -> HttpResponse:
    """GET /console"""
    answer = render(
        request,
        "web/console.html",
        {"gateway_url": settings.GATEWAY_URL, "max_file_bytes": settings.MAX_FILE_BYTES},
    )
    answer["Content-Security-Policy"] = _policy()
    answer["Referrer-Policy"] = "no-referrer"
    answer["Permissions-Policy"] = "camera=(), microphone=(), geolocation=()"
    answer["Cache-Control"] = "no-cache"
    return answer


def _policy() -> str:
    files = _files()
    dynamic = {
        "connect-src": f"'self' {_origin(settings.GATEWAY_URL)}",
        "img-src": f"'self' data: blob: {files}",
        "media-src": f"'self' blob: {files}",
    }
    return "; ".join(f"{name} {value}" for name, value in {**_POLICY, **dynamic}.items())


def _files() -> str:
    """Where links to files lead; nothing while none can be made: until then there are no pictures to show, either."""
    try:
        return _origin(default_storage.url("probe"))
    except Exception:  # as in files.services.download_url: signing may have to ask for credentials
        logger.exception("no link could be made: the console shows no pictures until it is loaded again")
        return ""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
