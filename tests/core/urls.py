"""Addresses that fail in every way there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core import exceptions as django_errors
from django.db import OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from rest_framework import exceptions as drf
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.errors import Chat4AllError, Conflict, FieldError, InvalidRequest, NotFound, Unavailable
from core.logging import redact
from core.serializers import StrictSerializer, TextField

handler400 = "core.problems.bad_request"
handler403 = "core.problems.permission_denied"
handler404 = "core.problems.not_found"
handler500 = "core.problems.server_error"


class Throttling(Chat4AllError):
    code = "slow_down"
    http_status = 429
    title = "Slow down"


FAILURES: dict[str, Callable[[], Exception]] = {
    "not-found": lambda: NotFound("No such thing."),
    "conflict": Conflict,
    "invalid": lambda: InvalidRequest("Two faults.", fields=[FieldError("a", "x", "A."), FieldError("b.0", "y", "B.")]),
    "unavailable": lambda: Unavailable("The log is away.", retry_after_s=0.2),
    "throttling": lambda: Throttling(retry_after_s=2.1, headers={"X-Extra": "1"}),
    "drf-throttled": lambda: drf.Throttled(wait=7.5),
    "drf-denied": drf.PermissionDenied,
    "drf-not-found": drf.NotFound,
    "drf-not-authenticated": drf.NotAuthenticated,
    "drf-not-acceptable": drf.NotAcceptable,
    "drf-parse": lambda: drf.ParseError("Multipart form parse error"),
    "http404": Http404,
    "denied": django_errors.PermissionDenied,
    "too-big": lambda: django_errors.RequestDataTooBig("Too big."),
    "suspicious": lambda: django_errors.SuspiciousOperation("secret detail"),
    "database": lambda: OperationalError("could not connect to postgres://user:hunter2@db"),
    "bug": lambda: KeyError("secret text of a message"),
}


class Fails(APIView):
    authentication_classes = ()
    permission_classes = ()

    def get(self, request: Request, name: str) -> Response:
        raise FAILURES[name]()


def fails_plainly(request: HttpRequest, name: str) -> HttpResponse:
    raise FAILURES[name]()


class Member(StrictSerializer):
    id = TextField(max_length=5)


class Form(StrictSerializer):
    name = TextField(max_length=5)
    members = Member(many=True, required=False)
    tags = serializers.ListField(child=TextField(max_length=3), required=False)
    extra: Any = serializers.JSONField(required=False)


class Takes(APIView):
    authentication_classes = ()
    permission_classes = ()

    def post(self, request: Request) -> Response:
        form = Form(data=request.data)
        form.is_valid(raise_exception=True)
        return Response(form.validated_data)


class Echo(APIView):
    authentication_classes = ()
    permission_classes = ()

    def get(self, request: Request) -> Response:
        return Response({"query": redact(request.query_params.get("q", ""))})


urlpatterns = [
    path("rest/<str:name>", Fails.as_view()),
    path("plain/<str:name>", fails_plainly),
    path("form", lambda _request: HttpResponse("taken")),
    path("takes", Takes.as_view()),
    path("echo", Echo.as_view(), name="echo"),
]
