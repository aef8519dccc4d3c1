"""Answers are JSON; whoever takes none is told so."""

from __future__ import annotations

import pytest
from django.test import Client


@pytest.mark.django_db
@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html, */*;q=0.1", "application/*"])
def test_whoever_takes_json_gets_it(client: Client, accept: str | None) -> None:
    answer = client.post("/auth/token", {}, "application/json", headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer["Content-Type"]) == (422, "application/problem+json")


@pytest.mark.django_db
@pytest.mark.parametrize(("query", "accept"), [("", "text/html"), ("", "application/xml"), ("?format=xml", "*/*")])
def test_whoever_does_not_is_refused(client: Client, query: str, accept: str) -> None:
    answer = client.post(f"/auth/token{query}", {}, "application/json", headers={"Accept": accept})
    assert answer.status_code in {404, 406}
