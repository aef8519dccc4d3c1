"""Which HTTP methods an address has, told alike by every view that is no REST view."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import Resolver404, resolve
from django.views.decorators.csrf import csrf_exempt

from core.problems import Problem

READ: Final = "GET, HEAD, OPTIONS"
View = Callable[..., HttpResponseBase]


def read_only(view: View) -> View:
    """GET and HEAD reach the view, OPTIONS hears what there is, everything else is refused as a problem.

    Nothing can be changed there, so a forged request is no danger: it need not be refused as one.
    """

    @wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method in {"GET", "HEAD"}:
            return view(request, *args, **kwargs)
        if request.method == "OPTIONS":
            return options(READ)
        return not_allowed(READ).response()

    checked.allowed_methods = READ  # type: ignore[attr-defined]
    return csrf_exempt(checked)


def options(allow: str) -> HttpResponse:
    return HttpResponse(status=204, headers={"Allow": allow})


def not_allowed(allow: str) -> Problem:
    return Problem(405, "method_not_allowed", "This address has no such method", headers={"Allow": allow})


def allowed(path: str) -> str:
    """The methods of the view at a path, as they stand in ``Allow``; "" where there is none."""
    try:
        view = resolve(path).func
    except Resolver404:
        return ""
    of_class = getattr(view, "cls", None) or getattr(view, "view_class", None)
    if of_class is None:
        return str(getattr(view, "allowed_methods", "GET, HEAD, POST, OPTIONS"))
    has_head = hasattr(of_class, "get")  # Django serves it where there is a GET
    return ", ".join(
        name.upper() for name in of_class.http_method_names if hasattr(of_class, name) or (name == "head" and has_head)
    )
