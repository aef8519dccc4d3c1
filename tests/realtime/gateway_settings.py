"""The product's settings, with an application whose acknowledgements can be read."""

from chat4all_project.settings import *  # noqa: F403

ROOT_URLCONF = "tests.realtime.gateway_settings"  # the API's addresses have no part in this
urlpatterns: list[object] = []
ASGI_APPLICATION = "tests.realtime.gateway_asgi.application"
