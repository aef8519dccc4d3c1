"""For the explorer's templates."""

from __future__ import annotations

from django import template

from core.clock import iso_utc

register = template.Library()
register.filter("iso", iso_utc)
