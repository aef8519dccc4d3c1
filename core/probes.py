"""/health, /ready and /metrics as the API's views."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache

from core.errors import NotFound
from core.health import OWN, Page, health_page, metrics_page, ready_page, service_name
from core.methods import read_only
from core.problems import problem_of


def _response(page: Page) -> HttpResponse:
    return HttpResponse(page.body, status=page.status, content_type=page.content_type)


@never_cache
@read_only
def health(_request: HttpRequest) -> HttpResponse:
    """GET /health: the process lives. It tells nothing else, so everybody may ask."""
    return _response(health_page(service_name()))


@never_cache
@read_only
def ready(_request: HttpRequest) -> HttpResponse:
    """GET /ready: all that it cannot do without answers (200; "degraded" where another part does not), or not (503)."""
    if not settings.PUBLIC_PROBES:
        return problem_of(NotFound()).response()
    return _response(ready_page(service_name(), OWN))


@never_cache
@read_only
def metrics(_request: HttpRequest) -> HttpResponse:
    """GET /metrics: for Prometheus."""
    if not settings.PUBLIC_PROBES:
        return problem_of(NotFound()).response()
    return _response(metrics_page(OWN))
