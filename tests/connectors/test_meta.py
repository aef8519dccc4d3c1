"""What Meta's platforms share: signatures, the challenge, the meaning of error codes."""

from __future__ import annotations

import hashlib
import hmac
import traceback
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.base import Connector, Outgoing
from connectors.errors import (
    AmbiguousDeliveryError,
    BadSignature,
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)
from connectors.http import HttpClient
from connectors.instagram import Instagram
from connectors.meta import API_VERSION, may_fetch
from connectors.whatsapp import WhatsApp
from tests.connectors.conftest import ScriptedPlatform, fixture, whatsapp_account

BODY = b'{"object":"whatsapp_business_account","entry":[]}'
# Computed with: printf '%s' "$BODY" | openssl dgst -sha256 -hmac secret-of-Alice
SIGNATURE = "sha256=d9d3536d2f21715668610c9450f302bc63df89e65f0db00e529fc973e342b206"
MESSAGE = Outgoing(correlation_id="0192f0c1", to="+5511912345678", text="Olá")


@pytest.fixture(params=[WhatsApp, Instagram], ids=lambda connector: connector.name)
def connector(request: pytest.FixtureRequest) -> Connector:
    made = request.param(HttpClient())
    assert isinstance(made, Connector)
    return made


@pytest.mark.parametrize("header", ["X-Hub-Signature-256", "x-hub-signature-256", "X-HUB-SIGNATURE-256"])
def test_a_body_signed_with_the_apps_secret_is_genuine(connector: Connector, header: str) -> None:
    connector.verify_signature(whatsapp_account(), {"Content-Type": "application/json", header: SIGNATURE}, BODY)


@pytest.mark.parametrize(
    ("headers", "body", "secret"),
    [
        pytest.param({}, BODY, "secret-of-Alice", id="no signature"),
        pytest.param({"X-Hub-Signature-256": ""}, BODY, "secret-of-Alice", id="empty signature"),
        pytest.param({"X-Hub-Signature-256": SIGNATURE}, BODY + b" ", "secret-of-Alice", id="one space more"),
        pytest.param({"X-Hub-Signature-256": SIGNATURE}, BODY, "secret-of-Mallory", id="another secret"),
        pytest.param({"X-Hub-Signature-256": SIGNATURE[7:]}, BODY, "secret-of-Alice", id="no sha256= before it"),
        pytest.param({"X-Hub-Signature-256": SIGNATURE[:-1]}, BODY, "secret-of-Alice", id="cut short"),
        pytest.param({"X-Hub-Signature-256": "sha256=ü\ud800"}, BODY, "secret-of-Alice", id="not ASCII"),
        pytest.param({"X-Hub-Signature": SIGNATURE}, BODY, "secret-of-Alice", id="the old header"),
        pytest.param(
            {"X-Hub-Signature-256": "sha256=" + hmac.new(b"", BODY, hashlib.sha256).hexdigest()},
            BODY,
            "",
            id="an account without a secret, which anybody could sign for",
        ),
    ],
)
def test_any_other_signature_is_refused(
    connector: Connector, headers: dict[str, str], body: bytes, secret: str
) -> None:
    with pytest.raises(BadSignature) as caught:
        connector.verify_signature(whatsapp_account(app_secret=secret), headers, body)
    assert "secret-of" not in "".join(traceback.format_exception_only(caught.value))


@given(body=st.binary(max_size=200), secret=st.text(min_size=1, max_size=40), flip=st.integers(0, 255))
@settings(deadline=None)
def test_signatures_of_arbitrary_bytes_hold_and_any_changed_byte_breaks_them(
    body: bytes, secret: str, flip: int
) -> None:
    whatsapp, account = WhatsApp(HttpClient()), whatsapp_account(app_secret=secret.encode(errors="replace").decode())
    key = account.credentials["app_secret"].encode()
    headers = {"X-Hub-Signature-256": "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()}
    whatsapp.verify_signature(account, headers, body)
    with pytest.raises(BadSignature):
        whatsapp.verify_signature(account, headers, body + bytes([flip]))


@given(signature=st.text(max_size=80), body=st.binary(max_size=40))
@settings(deadline=None)
def test_arbitrary_signatures_are_refused_and_never_break_the_check(signature: str, body: bytes) -> None:
    with pytest.raises(BadSignature):
        WhatsApp(HttpClient()).verify_signature(whatsapp_account(), {"X-Hub-Signature-256": signature}, body)


def test_the_subscription_challenge_is_given_back_to_who_knows_the_token(connector: Connector) -> None:
    query = {"hub.mode": "subscribe", "hub.verify_token": "verify-of-Alice", "hub.challenge": "1158201444"}
    assert connector.answer_challenge(whatsapp_account(), query) == "1158201444"


@pytest.mark.parametrize(
    ("change", "token"),
    [
        pytest.param({"hub.verify_token": "guess"}, "verify-of-Alice", id="wrong token"),
        pytest.param({"hub.verify_token": "gueß\ud800"}, "verify-of-Alice", id="token that is not ASCII"),
        pytest.param({"hub.mode": "unsubscribe"}, "verify-of-Alice", id="another mode"),
        pytest.param({"hub.verify_token": ""}, "", id="an account without a token"),
    ],
)
def test_the_challenge_is_kept_from_everybody_else(connector: Connector, change: dict[str, str], token: str) -> None:
    query = {"hub.mode": "subscribe", "hub.verify_token": "verify-of-Alice", "hub.challenge": "1", **change}
    with pytest.raises(BadSignature):
        connector.answer_challenge(whatsapp_account(verify_token=token), query)


def coded(code: object, **more: object) -> dict[str, Any]:
    return {"error": {"message": "(#1) words for people", "type": "OAuthException", "code": code, **more}}


ERRORS = fixture("graph_errors.json")
CASES = [
    # status, body, kind, reason, seconds to wait, an outage
    pytest.param(400, ERRORS["throttled"], TransientDeliveryError, "platform:130429", 1, False, id="number throttled"),
    pytest.param(400, coded(4), TransientDeliveryError, "platform:4", 60, False, id="app throttled"),
    pytest.param(400, coded(80007), TransientDeliveryError, "platform:80007", 60, False, id="account throttled"),
    pytest.param(400, coded(131048), TransientDeliveryError, "platform:131048", 60, False, id="spam throttled"),
    pytest.param(400, coded(131056), TransientDeliveryError, "platform:131056", 1, False, id="pair throttled"),
    pytest.param(400, coded(133016), TransientDeliveryError, "platform:133016", 60, False, id="registration throttled"),
    pytest.param(500, coded(130429), TransientDeliveryError, "platform:130429", 1, False, id="throttled inside a 500"),
    pytest.param(400, coded(613), TransientDeliveryError, "platform:613", 60, False, id="Instagram throttled"),
    pytest.param(400, coded(131053), TransientDeliveryError, "platform:131053", None, False, id="media not taken now"),
    pytest.param(
        400,
        coded(100, error_subcode=2018047),
        TransientDeliveryError,
        "platform:100",
        None,
        False,
        id="a file that was not taken",
    ),
    pytest.param(
        400,
        coded(100, error_subcode=2018008),
        TransientDeliveryError,
        "platform:100",
        None,
        False,
        id="a file that could not be fetched",
    ),
    pytest.param(
        400, coded(100, error_subcode=2534014), PermanentDeliveryError, "platform:100", None, False, id="nobody"
    ),
    pytest.param(400, coded(2), TransientDeliveryError, "platform:2", None, True, id="unavailable inside a 400"),
    pytest.param(400, coded(1200), TransientDeliveryError, "platform:1200", None, True, id="temporary inside a 400"),
    pytest.param(400, coded(9, is_transient=True), TransientDeliveryError, "platform:9", None, True, id="is_transient"),
    pytest.param(500, coded(131000), TransientDeliveryError, "platform:131000", None, True, id="something went wrong"),
    pytest.param(503, "<html>", TransientDeliveryError, "http_503", None, True, id="down"),
    pytest.param(500, coded(12345), TransientDeliveryError, "http_500", None, True, id="500 with a code nobody knows"),
    pytest.param(504, coded(2), AmbiguousDeliveryError, "http_504", None, True, id="gateway gave up"),
    pytest.param(400, coded(131047), PermanentDeliveryError, "platform:131047", None, False, id="24 h window closed"),
    pytest.param(400, coded(131026), PermanentDeliveryError, "platform:131026", None, False, id="undeliverable"),
    pytest.param(400, coded(131049), PermanentDeliveryError, "platform:131049", None, False, id="marketing cap"),
    pytest.param(400, coded(100), PermanentDeliveryError, "platform:100", None, False, id="invalid parameter"),
    pytest.param(404, coded(424242), PermanentDeliveryError, "platform:424242", None, False, id="refusal nobody knows"),
    pytest.param(400, coded("190"), PermanentDeliveryError, "http_400", None, False, id="code of another type"),
    pytest.param(400, coded(True), PermanentDeliveryError, "http_400", None, False, id="code that is a boolean"),
    pytest.param(400, {"error": "no"}, PermanentDeliveryError, "http_400", None, False, id="error of another type"),
    pytest.param(
        403,
        ERRORS["window closed on Instagram"],
        PermanentDeliveryError,
        "platform:10",
        None,
        False,
        id="Instagram's closed window looks like a missing permission",
    ),
    pytest.param(
        403,
        coded(10, error_subcode=2018065),
        PermanentDeliveryError,
        "platform:10",
        None,
        False,
        id="the same with another subcode",
    ),
    pytest.param(
        403,
        coded(10, error_subcode=2018108),
        PermanentDeliveryError,
        "platform:10",
        None,
        False,
        id="a person who cannot receive messages",
    ),
    pytest.param(
        403,
        coded(200, error_subcode=1545041),
        PermanentDeliveryError,
        "platform:200",
        None,
        False,
        id="a person who is not available",
    ),
    pytest.param(
        403, coded(200, error_subcode=1), PausedDeliveryError, "platform:200", None, True, id="subcode nobody knows"
    ),
    pytest.param(401, ERRORS["expired token"], PausedDeliveryError, "platform:190", None, True, id="expired token"),
    pytest.param(400, coded(190), PausedDeliveryError, "platform:190", None, True, id="expired token inside a 400"),
    pytest.param(403, coded(10), PausedDeliveryError, "platform:10", None, True, id="no permission"),
    pytest.param(400, coded(200), PausedDeliveryError, "platform:200", None, True, id="first of the 200 class"),
    pytest.param(400, coded(299), PausedDeliveryError, "platform:299", None, True, id="last of the 200 class"),
    pytest.param(400, coded(300), PermanentDeliveryError, "platform:300", None, False, id="beyond the 200 class"),
    pytest.param(400, coded(131031), PausedDeliveryError, "platform:131031", None, True, id="account locked"),
    pytest.param(401, "{}", PausedDeliveryError, "http_401", None, True, id="401 without words"),
    pytest.param(
        401, coded(77777), PausedDeliveryError, "platform:77777", None, True, id="401 with a code nobody knows"
    ),
    pytest.param(403, coded(77777), PausedDeliveryError, "platform:77777", None, True, id="403 with such a code"),
    pytest.param(
        403, coded(130497), PermanentDeliveryError, "platform:130497", None, False, id="a country that is closed to us"
    ),
    pytest.param(
        429, coded(77777), TransientDeliveryError, "throttled", None, False, id="429 with a code nobody knows"
    ),
    pytest.param(200, "{}", AmbiguousDeliveryError, "no_id", None, True, id="no id in the answer"),
    pytest.param(
        200, {"messages": [], "message_id": 7}, AmbiguousDeliveryError, "no_id", None, True, id="a strange id"
    ),
    pytest.param(200, "<html>", AmbiguousDeliveryError, "unreadable_answer", None, True, id="unreadable answer"),
]


@pytest.mark.parametrize(("status", "body", "kind", "reason", "wait_s", "outage"), CASES)
@pytest.mark.parametrize("channel", [WhatsApp, Instagram], ids=lambda channel: channel.name)
def test_what_the_platform_says_decides_what_happens_next(
    platform: ScriptedPlatform,
    channel: type[WhatsApp | Instagram],
    status: int,
    body: str | dict[str, Any],
    kind: type[DeliveryError],
    reason: str,
    wait_s: float | None,
    outage: bool,
) -> None:
    connector = channel(platform.says(status, body).client())
    message = Outgoing(correlation_id="1", to="5511912345678", text="private words")
    with pytest.raises(DeliveryError) as caught:
        connector.send(whatsapp_account(), message)
    error = caught.value
    assert (type(error), error.reason, error.retry_after_s, error.outage) == (kind, reason, wait_s, outage)
    assert len(platform.requests) == 1  # nothing is repeated on the connector's own account
    told = "".join(traceback.format_exception(error))
    assert [word for word in ("token-of-Alice", "5511912345678") if word in told] == []


@pytest.mark.parametrize(("retries", "wait_s"), [(0, 1), (1, 4), (2, 16), (3, 64), (5, 1024), (6, 1024), (10**9, 1024)])
def test_who_writes_too_much_to_one_person_waits_ever_longer(
    platform: ScriptedPlatform, retries: int, wait_s: float
) -> None:
    whatsapp = WhatsApp(platform.says(400, coded(131056)).client())
    with pytest.raises(TransientDeliveryError) as caught:
        whatsapp.send(whatsapp_account(), replace(MESSAGE, retries=retries))
    assert caught.value.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("subcode", "retries", "kind"),
    [
        pytest.param(2018047, 4, TransientDeliveryError, id="not taken, for the fifth time"),
        pytest.param(2018047, 5, PermanentDeliveryError, id="and what waits behind it goes on"),
        pytest.param(2018008, 10**9, TransientDeliveryError, id="our storage may be away for long"),
    ],
)
def test_a_file_that_the_platform_never_takes_does_not_hold_up_others_for_a_day(
    platform: ScriptedPlatform, subcode: int, retries: int, kind: type[DeliveryError]
) -> None:
    whatsapp = WhatsApp(platform.says(400, coded(100, error_subcode=subcode)).client())
    with pytest.raises(DeliveryError) as caught:
        whatsapp.send(whatsapp_account(), replace(MESSAGE, retries=retries))
    assert (type(caught.value), caught.value.reason) == (kind, "platform:100")


def test_the_platforms_own_wish_to_wait_outranks_the_table(platform: ScriptedPlatform) -> None:
    whatsapp = WhatsApp(platform.says(400, ERRORS["throttled"], {"Retry-After": "17"}).client())
    with pytest.raises(TransientDeliveryError) as caught:
        whatsapp.send(whatsapp_account(), MESSAGE)
    assert caught.value.retry_after_s == 17


def test_ids_from_outside_cannot_leave_their_place_in_the_url(platform: ScriptedPlatform) -> None:
    platform.says(200, {"messages": [{"id": "wamid.1"}]})
    account = whatsapp_account()
    object.__setattr__(account, "account_id", "../me?x=1#")
    WhatsApp(platform.client()).send(account, MESSAGE)
    assert platform.requests[0].url.raw_path == f"/{API_VERSION}/..%2Fme%3Fx%3D1%23/messages".encode()


# --- links in webhooks -------------------------------------------------------------------------------------------

INSIDE = [
    "127.0.0.1", "localhost", "2130706433", "127.1", "0", "10.0.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "224.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "[fd00::1]", "[fe80::1]", "[::]",
]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
def test_follows_no_link_into_our_own_network(host: str) -> None:
    assert not may_fetch(whatsapp_account(), f"https://{host}/latest/meta-data")
    assert not may_fetch(whatsapp_account(), f"https://{host}:8443/latest/meta-data")


@pytest.mark.parametrize(
    "url", ["https://", "http://8.8.8.8/x", "ftp://8.8.8.8/x", "https://[x/", f"https://{'a' * 64}.test/"]
)
def test_follows_no_link_that_is_none(url: str) -> None:
    assert not may_fetch(whatsapp_account(), url)


@pytest.mark.parametrize("url", ["https://8.8.8.8/x", "https://[2001:4860:4860::8888]/x", "https://gone.invalid/x"])
def test_follows_links_to_public_places(url: str) -> None:
    assert may_fetch(whatsapp_account(), url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8090/media/1", "https://127.0.0.1:9443/media/1"])
def test_follows_links_to_where_the_account_talks_to_anyway(url: str) -> None:
    account = replace(whatsapp_account(), base_url="http://127.0.0.1:8090")
    assert may_fetch(account, url)
    assert not may_fetch(account, "http://127.0.0.1:8091/other")
