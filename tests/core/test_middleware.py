"""Request ids, and whose address a request comes from."""

from __future__ import annotations

import threading

import pytest
from django.core import checks
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from pytest_django import Settings

from core.addresses import client_address
from core.logging import request_id
from core.middleware import AdminSessions, RequestIdMiddleware


@pytest.mark.parametrize("given", ["a", "0192-f0c1_a.b", "x" * 128])
def test_takes_over_a_sane_request_id(client: Client, given: str) -> None:
    assert client.get("/health", headers={"X-Request-ID": given})["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "é", '"><script>', "a;b"])
def test_mints_a_request_id_where_there_is_no_sane_one(client: Client, given: str) -> None:
    minted = client.get("/health", headers={"X-Request-ID": given})["X-Request-ID"]
    assert len(minted) == 32
    assert minted != client.get("/health", headers={"X-Request-ID": given})["X-Request-ID"]


def test_knows_the_request_id_only_while_it_serves_the_request(rf: RequestFactory) -> None:
    seen: list[str | None] = []

    def view(_request: HttpRequest) -> HttpResponse:
        seen.append(request_id())
        return HttpResponse()

    RequestIdMiddleware(view)(rf.get("/", headers={"X-Request-ID": "one"}))
    assert (seen, request_id()) == (["one"], None)


def test_keeps_the_ids_of_requests_at_the_same_time_apart(rf: RequestFactory) -> None:
    both_inside = threading.Barrier(2)
    seen: dict[str, str | None] = {}

    def view(request: HttpRequest) -> HttpResponse:
        both_inside.wait(10)
        seen[request.path] = request_id()
        return HttpResponse()

    middleware = RequestIdMiddleware(view)
    requests = [rf.get(f"/{name}", headers={"X-Request-ID": name}) for name in ("one", "two")]
    threads = [threading.Thread(target=middleware, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"/one": "one", "/two": "two"}


@pytest.mark.parametrize(
    ("proxies", "forwarded", "remote", "counted"),
    [
        pytest.param(0, "10.0.0.1", "192.0.2.7", "192.0.2.7", id="no proxy: the header is the client's word"),
        pytest.param(1, "10.0.0.1", "127.0.0.1", "10.0.0.1", id="one proxy"),
        pytest.param(1, "6.6.6.6, 10.0.0.1", "127.0.0.1", "10.0.0.1", id="one proxy, and a lie before it"),
        pytest.param(2, "6.6.6.6, 10.0.0.1, 10.9.9.9", "127.0.0.1", "10.0.0.1", id="two proxies"),
        pytest.param(2, "10.0.0.1", "192.0.2.7", "192.0.2.7", id="shorter than it should be"),
        pytest.param(1, "rubbish", "192.0.2.7", "unknown", id="rubbish"),
        pytest.param(0, "", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", id="an IPv6 client has a /64"),
        pytest.param(0, "", "::ffff:192.0.2.7", "192.0.2.7", id="IPv4 in IPv6"),
        pytest.param(0, "", "", "unknown", id="a Unix socket"),
    ],
)
def test_counts_by_the_address_that_can_be_believed(
    rf: RequestFactory, settings: Settings, proxies: int, forwarded: str, remote: str, counted: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    request = rf.get("/", headers={"X-Forwarded-For": forwarded}, REMOTE_ADDR=remote)
    assert client_address(request) == counted


def test_only_the_admins_pages_have_a_session(rf: RequestFactory) -> None:
    seen: list[bool] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(hasattr(request, "session"))
        return HttpResponse()

    for path in ("/v1/messages", "/console", "/admin/login/"):
        AdminSessions(view)(rf.get(path))
    assert seen == [False, False, True]


def test_django_s_checks_know_our_middleware() -> None:
    told = checks.run_checks(tags=[checks.Tags.admin, checks.Tags.security], include_deployment_checks=True)
    assert {each.id for each in told if not each.is_silenced()}.isdisjoint({"security.W003"})
    assert [each.id for each in told if str(each.id).startswith("admin.")] == []
