"""The application as a WSGI server calls it."""

from __future__ import annotations

import json
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from tests.wsgi import application

pytestmark = pytest.mark.django_db(databases=["default", "messages"])


def request(**environ: Any) -> tuple[int, dict[str, Any]]:
    setup_testing_defaults(environ)
    statuses: list[str] = []
    body = b"".join(application(environ, lambda status, _headers: statuses.append(status)))
    return int(statuses[0].split()[0]), json.loads(body)


@pytest.mark.parametrize("charset", ["rot13", "zlib", "hex", "idna-nothing", "\x00", "utf-16", '"'])
def test_refuses_charsets_that_would_break_it(charset: str) -> None:
    environ = {
        "PATH_INFO": "/v1/users",
        "QUERY_STRING": "username=%41",
        "CONTENT_TYPE": f"text/plain; Charset={charset}",
    }
    status, problem = request(**environ)
    assert (status, problem["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "parameter", ["x*=bogus'en'%41", "charset*=bogus'en'%41", "x*=idna'en'%ff", "x*=undefined''%41"]
)
def test_refuses_parameters_in_encodings_that_nobody_knows(parameter: str) -> None:
    status, problem = request(PATH_INFO="/health", CONTENT_TYPE=f"application/json; {parameter}")
    assert (status, problem["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["", "application/json", "application/json; charset=UTF-8", "text/plain; x=y"])
def test_serves_everybody_else(content_type: str) -> None:
    assert request(PATH_INFO="/health", CONTENT_TYPE=content_type)[0] == 200


def test_asks_for_the_length_of_a_chunked_body_instead_of_taking_it_for_empty() -> None:
    status, problem = request(PATH_INFO="/auth/token", REQUEST_METHOD="POST", HTTP_TRANSFER_ENCODING="chunked")
    assert (status, problem["code"]) == (411, "length_required")
