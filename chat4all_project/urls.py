"""Every address of the API server. Each package brings its own; here they are only put together."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from chat4all_project.pages import Redoc, Schema, Swagger, redirect_to
from core import probes

handler400 = "core.problems.bad_request"
handler403 = "core.problems.permission_denied"
handler404 = "core.problems.not_found"
handler500 = "core.problems.server_error"

urlpatterns = [
    path("", include("messaging.api.urls")),  # first: tried in order, and asked for most
    path("", redirect_to("/console")),
    path("admin", redirect_to("/admin/")),
    path("admin/", admin.site.urls),
    *(path(f"{page}/", redirect_to(f"/{page}")) for page in ("console", "docs", "docs/redoc", "schema")),
    path("health", probes.health, name="health"),
    path("ready", probes.ready, name="ready"),
    path("metrics", probes.metrics, name="metrics"),
    path("schema", Schema.as_view(), name="schema"),
    path("docs", Swagger.as_view(url_name="schema"), name="docs"),
    path("docs/redoc", Redoc.as_view(url_name="schema"), name="redoc"),
    path("", include("accounts.urls")),
    path("", include("files.urls")),
    path("", include("web.urls")),
]
