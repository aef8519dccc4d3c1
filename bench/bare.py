"""The least that a DRF view with our token check can cost, for comparison: no middleware, validation or pipeline.

``/v1/messages`` answers at once; ``/v1/produce`` first appends a record of a message's size to the topic TOPIC through
the adapter that we use, acknowledged as ours are.
"""

from __future__ import annotations

import os
from typing import Final

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
django.setup(set_prefix=False)

from django.conf import settings  # noqa: E402 - set up above
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.status import HTTP_202_ACCEPTED  # noqa: E402
from rest_framework.views import APIView  # noqa: E402

from bench.event_log import VALUE  # noqa: E402
from messaging import wiring  # noqa: E402
from messaging.ports import NewRecord  # noqa: E402

TOPIC: Final = "bench"


class BareView(APIView):
    def post(self, request: Request) -> Response:
        body: dict[str, str] = request.data  # type: ignore[assignment] # the stubs know forms only
        return Response({"conversation_id": body["conversation_id"]}, HTTP_202_ACCEPTED)


class ProducingView(APIView):
    def post(self, request: Request) -> Response:
        body: dict[str, str] = request.data  # type: ignore[assignment] # as above
        wiring.event_log().append([NewRecord(TOPIC, body["conversation_id"], VALUE)])
        return Response({"conversation_id": body["conversation_id"]}, HTTP_202_ACCEPTED)


urlpatterns = [path("v1/messages", BareView.as_view()), path("v1/produce", ProducingView.as_view())]
settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]  # adds the Content-Length
settings.ROOT_URLCONF = __name__
application = WSGIHandler()
