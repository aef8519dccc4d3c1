from django.urls import path

from web.views import console

urlpatterns = [path("console", console, name="console")]
