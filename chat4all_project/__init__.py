"""Assembly: settings, URLs and the entry points of each process. Nothing imports it."""

from chat4all_project.celery import app as celery_app

__all__ = ["celery_app"]
