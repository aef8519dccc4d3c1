"""Translators to the platforms: one provider per file. No Django, no database, no Celery."""
