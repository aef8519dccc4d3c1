"""A request id for every request, and one line in the log about it."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.urls import resolve
from django.utils.deprecation import MiddlewareMixin
from django_prometheus.middleware import Metrics, PrometheusAfterMiddleware
from django_prometheus.utils import Time, TimeSince

from core.logging import SANE_REQUEST_ID, bind
from core.methods import allowed, not_allowed
from core.problems import Problem

access_log = logging.getLogger("chat4all.access")

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES: Final = frozenset({"/health", "/ready", "/metrics"})


class RequestIdMiddleware:
    """Takes over a sane X-Request-ID or mints one; it goes into the answer, the logs and the problems.

    The access line names the route, never the query string: webhooks and sockets carry tokens there.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        started = time.perf_counter()
        request_id = _request_id(request)
        with bind(request_id=request_id):
            refusal = _refusal(request)
            response = refusal.response() if refusal else self._get_response(request)
            response["X-Request-ID"] = request_id
            access_log.info(
                "request",
                extra={
                    "method": request.method if request.method in _METHODS else "other",
                    "route": _route(request),
                    "status": response.status_code,
                    "duration_ms": round((time.perf_counter() - started) * 1000, 2),
                },
            )
        return response


class ProbesMiddleware:
    """Answers probes before anything looks at the Host or redirects to HTTPS: they come by address, in plain HTTP."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info not in _PROBES:
            return self._get_response(request)
        request.resolver_match = resolve(request.path_info)
        answer: HttpResponseBase = request.resolver_match.func(request)
        return answer


class _AdminAlone(MiddlewareMixin):
    """Before a middleware of Django's that is for people who sign in with a cookie: all others pass by it."""

    def __call__(self, request: HttpRequest) -> Any:
        return super().__call__(request) if request.path_info.startswith("/admin") else self.get_response(request)


class AdminSessions(_AdminAlone, SessionMiddleware): ...


class AdminCsrf(_AdminAlone, CsrfViewMiddleware): ...


class AdminUsers(_AdminAlone, AuthenticationMiddleware): ...


class AdminMessages(_AdminAlone, MessageMiddleware): ...


class RequestMetrics(Metrics):  # type: ignore[misc] # it has no types
    """Those of django-prometheus that somebody looks at."""

    _KEPT: Final = frozenset(
        {
            "django_http_requests_latency_seconds_by_view_method",
            "django_http_responses_total_by_status_view_method",
            "django_http_exceptions_total_by_type",
            "django_http_exceptions_total_by_view",
        }
    )

    def register_metric(self, metric_cls: Any, name: str, documentation: str, labelnames: Any = (), **more: Any) -> Any:
        return (
            super().register_metric(metric_cls, name, documentation, labelnames, **more) if name in self._KEPT else None
        )


class MetricsMiddleware(PrometheusAfterMiddleware):  # type: ignore[misc] # it has no types
    """Duration and status of each request by view; exceptions are django-prometheus' own, of which all that it counts
    takes a tenth of a POST's CPU. Innermost: probes and refusals never come here."""

    metrics_cls = RequestMetrics

    def process_request(self, request: Any) -> None:
        request.prometheus_after_middleware_event = Time()

    def process_view(self, request: Any, view: Any, *_: Any, **__: Any) -> None:
        """Nothing of it is kept."""

    def process_template_response(self, _request: Any, response: Any) -> Any:
        return response

    def process_response(self, request: Any, response: Any) -> Any:
        view, method = self._get_view_name(request), self._method(request)
        status = str(response.status_code)
        self.metrics.responses_by_status_view_method.labels(status=status, view=view, method=method).inc()
        took_s = TimeSince(request.prometheus_after_middleware_event)
        self.metrics.requests_latency_by_view_method.labels(view=view, method=method).observe(took_s)
        return response


def _request_id(request: HttpRequest) -> str:
    given = request.META.get("HTTP_X_REQUEST_ID", "")  # `headers` is made of all of them
    return given if SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(request: HttpRequest) -> str:
    return request.resolver_match.route if request.resolver_match else "unmatched"


def _refusal(request: HttpRequest) -> Problem | None:
    """Requests that everything behind this would stumble over."""
    if request.method not in _METHODS:  # each would become a label of its own in the metrics: unbounded memory
        allow = allowed(request.path_info)
        return not_allowed(allow) if allow else Problem(404, "not_found", "Not found")
    if "\0" in request.path_info:  # nothing of ours has it in its name, and PostgreSQL and file systems break on it
        return Problem(404, "not_found", "Not found")
    if "HTTP_TRANSFER_ENCODING" in request.META and not request.META.get("CONTENT_LENGTH"):
        # Django reads as much as Content-Length says: a chunked body would look like none at all
        return Problem(411, "length_required", "Content-Length is required")
    charset = (request.content_params or {}).get("charset", "utf-8")
    if charset.lower() not in {"utf-8", "utf8", "us-ascii", "ascii"}:  # RFC 8259: JSON is UTF-8
        return Problem(415, "unsupported_media_type", "We cannot read that media type", "We only read UTF-8.")
    return None
