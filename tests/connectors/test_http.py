"""The HTTP client, over real sockets: what each answer and each silence means."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import (
    AmbiguousDeliveryError,
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)
from connectors.http import MAX_RETRY_AFTER_S, HttpClient, Limits, parse_retry_after, retry_delay_s
from tests.connectors.conftest import IMPATIENT, SMALL, RealServer, ScriptedPlatform

MB = 1024 * 1024
SECRET = "Bearer token-of-Alice"


Page = Callable[[BaseHTTPRequestHandler], None]


def reply(status: int, body: bytes, **headers: str) -> Page:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang(server: RealServer) -> Page:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        server.release.wait(20)
        handler.close_connection = True

    return answer


def test_a_2xx_with_a_json_object_is_the_answer(server: RealServer, client: HttpClient) -> None:
    server.pages["/m"] = reply(200, b'{"id": "1"}')
    assert client.request("POST", server.url + "/m", json={"text": "hi"}) == {"id": "1"}


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason", "outage"),
    [
        pytest.param(200, b"<html>", AmbiguousDeliveryError, "unreadable_answer", True, id="2xx without JSON"),
        pytest.param(200, b"[1]", AmbiguousDeliveryError, "unreadable_answer", True, id="2xx with an array"),
        pytest.param(204, b"", AmbiguousDeliveryError, "unreadable_answer", True, id="2xx without a body"),
        pytest.param(200, b"\xff\xfe{", AmbiguousDeliveryError, "unreadable_answer", True, id="2xx in no encoding"),
        pytest.param(200, b"[" * 4000, AmbiguousDeliveryError, "unreadable_answer", True, id="2xx nested too deep"),
        pytest.param(302, b"", PausedDeliveryError, "http_302", True, id="redirect"),
        pytest.param(400, b"{}", PermanentDeliveryError, "http_400", False, id="refused"),
        pytest.param(400, b"<html>", PermanentDeliveryError, "http_400", False, id="refused without JSON"),
        pytest.param(401, b"{}", PausedDeliveryError, "http_401", True, id="not authenticated"),
        pytest.param(403, b"{}", PausedDeliveryError, "http_403", True, id="not allowed"),
        pytest.param(404, b"{}", PermanentDeliveryError, "http_404", False, id="not found"),
        pytest.param(408, b"{}", TransientDeliveryError, "http_408", True, id="request took too long"),
        pytest.param(425, b"{}", TransientDeliveryError, "http_425", True, id="too early"),
        pytest.param(429, b"{}", TransientDeliveryError, "throttled", False, id="throttled"),
        pytest.param(500, b"<html>", TransientDeliveryError, "http_500", True, id="broken"),
        pytest.param(503, b"{}", TransientDeliveryError, "http_503", True, id="down"),
        pytest.param(504, b"{}", AmbiguousDeliveryError, "http_504", True, id="gateway gave up waiting"),
    ],
)
def test_each_answer_has_one_meaning(
    server: RealServer, client: HttpClient, status: int, body: bytes, kind: type, reason: str, outage: bool
) -> None:
    server.pages["/m"] = reply(status, body, Location="/elsewhere")
    with pytest.raises(DeliveryError) as caught:
        client.request("POST", server.url + "/m", json={})
    assert (type(caught.value), caught.value.reason, caught.value.outage) == (kind, reason, outage)
    assert server.seen == ["/m"]  # neither followed nor repeated


def test_nobody_listening_is_surely_not_delivered_and_tried_twice_within_two_seconds(refused_url: str) -> None:
    attempts: list[str] = []
    client = HttpClient(transport=_Counting(attempts))
    for _ in range(5):  # a busy machine leaves no time for the second
        attempts.clear()
        begun = time.monotonic()
        with pytest.raises(TransientDeliveryError) as caught:
            client.request("POST", refused_url, json={})
        took_s = time.monotonic() - begun
        assert caught.value.reason == "unreachable"
        assert len(attempts) <= 2
        if len(attempts) == 2 and took_s < 2:
            break
    else:
        pytest.fail("never twice within two seconds")
    client.close()


class _Counting(httpx.HTTPTransport):
    def __init__(self, attempts: list[str]) -> None:
        super().__init__()
        self._attempts = attempts

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._attempts.append(request.method)
        return super().handle_request(request)


def test_a_connect_that_takes_long_is_not_tried_again() -> None:
    with socket.socket() as listener, ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # a full queue: the kernel drops every further SYN
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        attempts: list[str] = []
        client = HttpClient(SMALL, transport=_Counting(attempts))
        with pytest.raises(TransientDeliveryError) as caught:
            client.request("POST", f"http://127.0.0.1:{listener.getsockname()[1]}/", json={})
    assert (caught.value.reason, len(attempts)) == ("unreachable", 1)
    client.close()


def test_silence_after_sending_is_ambiguous_and_never_repeated(server: RealServer, impatient: HttpClient) -> None:
    server.pages["/m"] = hang(server)
    with pytest.raises(AmbiguousDeliveryError) as caught:
        impatient.request("POST", server.url + "/m", json={})
    assert caught.value.reason == "timeout"
    assert server.seen == ["/m"]


def test_an_answer_that_takes_long_to_begin_is_waited_for_where_that_is_asked_for(
    server: RealServer, impatient: HttpClient
) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        server.release.wait(IMPATIENT.read_s * 2)
        reply(200, b'{"id": "1"}')(handler)

    server.pages["/m"] = answer
    assert impatient.request("POST", server.url + "/m", json={}, read_s=5) == {"id": "1"}
    with pytest.raises(AmbiguousDeliveryError):
        impatient.request("POST", server.url + "/m", json={})


def test_an_answer_that_has_begun_is_not_waited_for_any_longer_than_others(
    server: RealServer, impatient: HttpClient
) -> None:
    def stop(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        hang(server)(handler)

    server.pages["/m"] = stop
    begun = time.monotonic()
    with pytest.raises(AmbiguousDeliveryError):
        impatient.request("POST", server.url + "/m", json={}, read_s=15)
    assert time.monotonic() - begun < 5


def test_a_late_answer_in_pieces_is_read_to_its_end(server: RealServer) -> None:
    def late(handler: BaseHTTPRequestHandler) -> None:
        server.release.wait(0.5)
        handler.send_response(200)
        handler.send_header("Content-Length", "11")
        handler.end_headers()
        handler.wfile.write(b'{"id"')
        server.release.wait(0.1)
        handler.wfile.write(b': "1"}')

    server.pages["/m"] = late
    client = HttpClient(Limits(read_s=2, total_s=0.3))
    assert client.request("POST", server.url + "/m", json={}, read_s=5) == {"id": "1"}
    client.close()


@pytest.mark.parametrize(("method", "kind"), [("POST", AmbiguousDeliveryError), ("GET", TransientDeliveryError)])
@pytest.mark.parametrize(("slept_s", "outage"), [(1.0, True), (60.0, False)])
def test_a_platform_is_not_blamed_for_what_ended_while_we_slept(
    monkeypatch: pytest.MonkeyPatch, method: str, kind: type[DeliveryError], slept_s: float, outage: bool
) -> None:
    """It closes connections of which it hears nothing: as many as a worker has would open its breaker."""
    now_s = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def closes(_: httpx.Request) -> httpx.Response:
        now_s[0] += slept_s
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")

    with pytest.raises(kind) as caught:
        HttpClient(transport=httpx.MockTransport(closes)).request(method, "https://graph.test/messages")
    assert (caught.value.reason, caught.value.outage) == ("connection_lost", outage)


def test_silence_to_something_repeatable_is_transient(server: RealServer, impatient: HttpClient) -> None:
    server.pages["/m"] = hang(server)
    with pytest.raises(TransientDeliveryError):
        impatient.request("POST", server.url + "/m", json={}, repeatable=True)
    with pytest.raises(TransientDeliveryError):
        impatient.request("GET", server.url + "/m")


def test_a_connection_cut_before_the_answer_is_ambiguous(server: RealServer, client: HttpClient) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()  # a reset, not a goodbye
        handler.close_connection = True
        handler.wfile = handler.rfile = open(os.devnull, "r+b")  # noqa: SIM115

    server.pages["/m"] = cut
    with pytest.raises(AmbiguousDeliveryError) as caught:
        client.request("POST", server.url + "/m", json={})
    assert caught.value.reason == "connection_lost"


def test_a_truncated_2xx_is_ambiguous_and_a_truncated_refusal_is_not_final(
    server: RealServer, client: HttpClient
) -> None:
    def truncated(status: int) -> Page:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"id"')
            handler.close_connection = True

        return answer

    server.pages["/ok"] = truncated(200)
    server.pages["/refused"] = truncated(400)
    with pytest.raises(AmbiguousDeliveryError, match="HTTP 200"):
        client.request("POST", server.url + "/ok", json={})
    with pytest.raises(TransientDeliveryError, match="cut short"):
        client.request("POST", server.url + "/refused", json={})


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "streamed"])
def test_an_oversized_answer_is_not_swallowed(server: RealServer, client: HttpClient, declared: bool) -> None:
    huge = json.dumps({"id": "x" * SMALL.answer_bytes}).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if declared:
            handler.send_header("Content-Length", str(len(huge)))
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(huge)

    server.pages["/m"] = answer
    with pytest.raises(AmbiguousDeliveryError, match="without readable JSON"):
        client.request("POST", server.url + "/m", json={})


def test_a_dripping_answer_ends_at_the_total_limit(server: RealServer) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not server.release.wait(0.02):
            handler.wfile.write(b" ")

    server.pages["/m"] = drip
    client = HttpClient(Limits(read_s=5, total_s=0.3))
    begun = time.monotonic()
    with pytest.raises(AmbiguousDeliveryError, match="without readable JSON"):
        client.request("POST", server.url + "/m", json={})
    assert time.monotonic() - begun < 4
    client.close()


def test_an_upload_to_a_platform_that_reads_slowly_ends_at_its_limit() -> None:
    """Each write is in time, the whole never would be: at 16 KiB in 5 ms this file takes 16 s."""
    client = HttpClient(Limits(upload_s=0.5))
    with _slow_reader() as url:
        begun = time.monotonic()
        with pytest.raises(TransientDeliveryError) as caught:
            client.request(
                "POST", url, files={"file": ("a.bin", io.BytesIO(b"x" * 50 * MB), "image/png")}, repeatable=True
            )
        assert time.monotonic() - begun < 5
    assert (caught.value.reason, caught.value.outage) == ("too_slow", False)
    client.close()


@contextmanager
def _slow_reader() -> Iterator[str]:
    """A server that takes what is sent in sips, until its client is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def sip() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                while connection.recv(16 * 1024) and not done.wait(0.005):
                    pass

        thread = threading.Thread(target=sip)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/media"
        done.set()
        thread.join()


def test_an_upload_in_time_arrives_whole(server: RealServer) -> None:
    got: list[int] = []

    def count(handler: BaseHTTPRequestHandler) -> None:
        got.append(int(handler.headers["Content-Length"]))
        reply(200, b'{"id": "1"}')(handler)

    server.pages["/media"] = count
    client = HttpClient(Limits(upload_s=20))
    content = io.BytesIO(b"x" * MB)
    answer = client.request("POST", server.url + "/media", files={"file": ("a.bin", content, "image/png")})
    assert answer == {"id": "1"}
    assert MB < got[0] < MB + 1000
    client.close()


def test_a_dripping_file_ends_at_the_limit_for_files_however_large_it_may_be(server: RealServer) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(MB))
        handler.end_headers()
        while not server.release.wait(0.02):
            handler.wfile.write(b"x" * 100)

    server.pages["/file"] = drip
    client = HttpClient(Limits(download_s=0.5))
    begun = time.monotonic()
    with pytest.raises(TransientDeliveryError) as caught:
        client.download(server.url + "/file", max_bytes=100 * MB)
    assert time.monotonic() - begun < 5
    assert (caught.value.reason, caught.value.outage) == ("unreadable_answer", False)
    client.close()


def test_a_compressed_answer_is_not_unpacked(server: RealServer, client: HttpClient) -> None:
    bomb = gzip.compress(b'{"id": "' + b"0" * 10_000_000 + b'"}')[:4000]
    asked: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Accept-Encoding"])
        reply(200, bomb, Content_Encoding="gzip")(handler)

    server.pages["/m"] = answer
    with pytest.raises(AmbiguousDeliveryError, match="without readable JSON"):
        client.request("POST", server.url + "/m", json={})
    assert asked == ["identity"]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(" 0 ", 0.0, id="at once"),
        pytest.param("999999999999", MAX_RETRY_AFTER_S, id="far too long"),
        pytest.param(formatdate(1_000_030, usegmt=True), 30.0, id="date"),
        pytest.param(formatdate(999_000, usegmt=True), 0.0, id="date that has passed"),
        pytest.param("soon", None, id="words"),
        pytest.param("-5", None, id="negative"),
        pytest.param("", None, id="empty"),
        pytest.param("Mon, 99 Foo 2024 00:00:00 GMT", None, id="broken date"),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, now_s=1_000_000) == seconds


@given(st.text(max_size=60))
@settings(deadline=None)
def test_retry_after_never_breaks(value: str) -> None:
    seconds = parse_retry_after(value, now_s=1_000_000)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


def test_the_platforms_wish_outranks_the_connectors_default(platform: ScriptedPlatform) -> None:
    client = platform.says(400, "{}", {"Retry-After": "12"}).client()
    with pytest.raises(TransientDeliveryError) as caught:
        client.request(
            "POST", "https://graph.test/", json={}, explain=lambda *_: TransientDeliveryError("x", retry_after_s=3)
        )
    assert caught.value.retry_after_s == 12


def test_the_connectors_default_stands_where_the_platform_wishes_nothing(platform: ScriptedPlatform) -> None:
    client = platform.says(400, "{}").client()
    with pytest.raises(TransientDeliveryError) as caught:
        client.request(
            "POST", "https://graph.test/", json={}, explain=lambda *_: TransientDeliveryError("x", retry_after_s=3)
        )
    assert caught.value.retry_after_s == 3


def test_throttling_says_when_to_come_back(platform: ScriptedPlatform) -> None:
    with pytest.raises(TransientDeliveryError) as caught:
        platform.says(429, "{}", {"Retry-After": "42"}).client().request("POST", "https://graph.test/", json={})
    assert caught.value.retry_after_s == 42


@pytest.mark.parametrize(
    ("url", "authorization"),
    [
        pytest.param("{server}/m", SECRET + "\n", id="line break in a header"),
        pytest.param("{server}/m", SECRET + "ü", id="header beyond ASCII"),
        pytest.param("ftp://graph.test/", SECRET, id="no http"),
        pytest.param("//", SECRET, id="no scheme"),
        pytest.param("http://[::1", SECRET, id="broken host"),
    ],
)
def test_what_cannot_be_sent_pauses_the_account_without_telling_the_token(
    server: RealServer, client: HttpClient, url: str, authorization: str
) -> None:
    server.pages["/m"] = reply(200, b"{}")
    with pytest.raises(PausedDeliveryError) as caught:
        client.request("POST", url.format(server=server.url), headers={"Authorization": authorization}, json={})
    assert caught.value.reason == "misconfigured"
    assert "token-of-Alice" not in "".join(traceback.format_exception(caught.value))
    assert server.seen == []


def test_errors_and_logs_hold_neither_query_nor_body_nor_token(
    server: RealServer, client: HttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.pages["/bot123:secret/send"] = reply(500, b"{}")
    private = {"text": "private words"}
    url = server.url + "/bot123:secret/send?access_token=secret-in-query"
    with pytest.raises(TransientDeliveryError) as caught:
        client.request("POST", url, headers={"Authorization": SECRET}, json=private)
    told = caplog.text + "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert [word for word in ("secret", "token-of-Alice", "private words") if word in told] == []


def test_half_a_surrogate_pair_in_a_text_stops_nobody(platform: ScriptedPlatform) -> None:
    platform.says(200, {"ok": True}).client().request("POST", "https://graph.test/", json={"text": "a\ud800b"})
    assert platform.body() == {"text": "a?b"}


def test_a_download_gives_the_bytes_up_to_its_limit(server: RealServer, client: HttpClient) -> None:
    server.pages["/f"] = reply(200, b"\x00\xff" * 50)
    assert client.download(server.url + "/f", max_bytes=100) == b"\x00\xff" * 50
    with pytest.raises(PermanentDeliveryError) as caught:
        client.download(server.url + "/f", max_bytes=99)
    assert caught.value.reason == "media_too_large"


@pytest.mark.parametrize(
    ("status", "kind"), [(404, PermanentDeliveryError), (401, PausedDeliveryError), (504, TransientDeliveryError)]
)
def test_a_download_that_fails_says_how(platform: ScriptedPlatform, status: int, kind: type[DeliveryError]) -> None:
    with pytest.raises(kind):
        platform.says(status, "").client().download("https://cdn.test/f", max_bytes=9)


def test_a_download_of_nobody_is_transient(refused_url: str, client: HttpClient) -> None:
    with pytest.raises(TransientDeliveryError):
        client.download(refused_url + "/f", max_bytes=9)


def test_many_threads_share_a_client_and_its_connections_and_each_gets_its_own_answer(server: RealServer) -> None:
    ports: set[int] = set()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        ports.add(handler.client_address[1])
        reply(200, json.dumps({"path": handler.path}).encode())(handler)

    client = HttpClient(Limits(idle_clients=4))
    paths = [f"/{number}" for number in range(300)]
    server.pages.update(dict.fromkeys(paths, answer))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: client.request("POST", server.url + path, json={}), paths))
    assert answers == [{"path": path} for path in paths]
    assert len(ports) < 150  # kept and used again: otherwise 300
    client.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_process_opens_connections_of_its_own(server: RealServer, client: HttpClient) -> None:
    ports: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        ports.append(handler.client_address[1])
        reply(200, b"{}")(handler)

    server.pages["/m"] = answer
    client.request("POST", server.url + "/m", json={})
    child = os.fork()
    if child == 0:
        try:
            client.request("POST", server.url + "/m", json={})
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    client.request("POST", server.url + "/m", json={})
    first, in_child, last = ports
    assert in_child != first
    assert last == first  # the child did not disturb its parent's connection


def test_a_proxy_for_the_world_outside_is_not_asked_for_this_machine(
    server: RealServer, refused_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", refused_url)
    monkeypatch.setenv("NO_PROXY", "")
    server.pages["/m"] = reply(200, b"{}")
    client = HttpClient(SMALL)
    assert client.request("POST", server.url + "/m", json={}) == {}
    client.close()


def test_retries_in_the_lane_grow_from_a_fifth_of_a_second_to_five_and_take_about_30_s() -> None:
    for attempt in range(1, 40):
        full = min(0.2 * 2 ** (attempt - 1), 5.0)
        assert all(full / 2 <= retry_delay_s(attempt) <= full for _ in range(20))
    assert len({retry_delay_s(3) for _ in range(20)}) > 1  # jittered
    totals = [sum(retry_delay_s(attempt) for attempt in range(1, 13)) for _ in range(50)]
    assert 20 < min(totals) < max(totals) < 40
    assert 0 < retry_delay_s(0) <= 0.2
    assert retry_delay_s(10**6) <= 5
