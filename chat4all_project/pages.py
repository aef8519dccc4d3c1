"""Pages about the API itself, and where somebody lands who types its address by hand."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from drf_spectacular.views import SpectacularAPIView, SpectacularRedocView, SpectacularSwaggerView
from rest_framework.request import Request

import accounts.schema  # noqa: F401 - both register what drf-spectacular does not know
import core.schema  # noqa: F401
from core.methods import View, options, read_only


class _Described:
    """DRF answers OPTIONS with metadata, which a page's template has no place for."""

    allowed_methods: list[str]

    def options(self, _request: Request, *_args: Any, **_kwargs: Any) -> HttpResponse:
        return options(", ".join(self.allowed_methods))


class Schema(_Described, SpectacularAPIView):  # type: ignore[misc] # drf-spectacular has its own idea of options
    """GET /schema"""


class Swagger(_Described, SpectacularSwaggerView):  # type: ignore[misc]
    """GET /docs"""


class Redoc(_Described, SpectacularRedocView):  # type: ignore[misc]
    """GET /docs/redoc"""


def redirect_to(address: str) -> View:
    """A view that leads there, with the query that was given."""

    @read_only
    def lead(request: HttpRequest) -> HttpResponse:
        query = request.META.get("QUERY_STRING", "")
        return HttpResponseRedirect(f"{address}?{query}" if query else address)

    return lead
