"""What the environment may say: production starts with a whole and safe one, and tells what is wrong with any other."""

from __future__ import annotations

import os
import runpy
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.core.exceptions import ImproperlyConfigured
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from demo.ports import HOST
from tests.stack.certificates import Certificates

SETTINGS = Path(__file__).resolve().parents[2] / "chat4all_project" / "settings.py"
KEY, OTHER_KEY = secrets.token_urlsafe(48), secrets.token_urlsafe(48)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


RSA_PEM = pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))
EC_PEM = pem(ec.generate_private_key(ec.SECP256R1()))
GOOD = {
    "CHAT4ALL_ENV": "production",
    "SECRET_KEY": KEY,
    "CHANNEL_SECRETS_KEY": OTHER_KEY,
    "JWT_PRIVATE_KEY": RSA_PEM,
    "ALLOWED_HOSTS": "chat.example.com",
    "API_URL": "https://chat.example.com",
    "GATEWAY_URL": "wss://live.example.com",
}


class Load:
    """Runs the real settings module with an environment of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
        self._monkeypatch = monkeypatch
        self._state_dir = state_dir

    def __call__(self, **environment: str) -> dict[str, Any]:
        for name in os.environ:
            if name not in {"PATH", "HOME"}:
                self._monkeypatch.delenv(name)
        for name, value in {"STATE_DIR": str(self._state_dir), **environment}.items():
            self._monkeypatch.setenv(name, value)
        return runpy.run_path(str(SETTINGS))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    return Load(monkeypatch, tmp_path)


def test_production_starts_with_a_whole_environment(load: Load) -> None:
    loaded = load(**GOOD, CHANNEL_SECRETS_OLD_KEYS=secrets.token_urlsafe(48), BEHIND_TLS_PROXY="1", TRUSTED_PROXIES="1")
    assert (loaded["PRODUCTION"], loaded["DEBUG"], loaded["API_URL"]) == (True, False, "https://chat.example.com")
    assert loaded["SECURE_HSTS_SECONDS"] > 0
    assert not loaded["SECURE_HSTS_INCLUDE_SUBDOMAINS"]
    assert not loaded["SECURE_HSTS_PRELOAD"]


def test_names_under_ours_are_bound_to_tls_on_request(load: Load) -> None:
    loaded = load(**GOOD, HSTS_INCLUDE_SUBDOMAINS="1", HSTS_PRELOAD="1")
    assert loaded["SECURE_HSTS_INCLUDE_SUBDOMAINS"]
    assert loaded["SECURE_HSTS_PRELOAD"]


def test_the_local_profile_needs_nothing(load: Load) -> None:
    loaded = load()
    assert not loaded["PRODUCTION"]
    assert loaded["SECRET_KEY"] != loaded["CHANNEL_SECRETS_KEY"]


@pytest.mark.parametrize("name", [name for name in GOOD if name != "CHAT4ALL_ENV"])
def test_production_names_what_is_missing(load: Load, name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"{name}\b.* is not set.*Hint: "):
        load(**{key: value for key, value in GOOD.items() if key != name})


WEAK = {
    "short": "kX9-2bQ",
    "few characters": "ab" * 30,
    "one phrase again and again": "abcdefghij" * 5,
    "Django's": "django-insecure-" + KEY,
    "a template's": "Change-Me-" + KEY,
    "a template's, too": "change_me_" + KEY,
    "another's": KEY + "-please-REPLACE-this",
    "a tutorial's": "example-" + KEY,
}


@pytest.mark.parametrize("value", WEAK.values(), ids=WEAK.keys())
@pytest.mark.parametrize("name", ["SECRET_KEY", "CHANNEL_SECRETS_KEY", "CHANNEL_SECRETS_OLD_KEYS"])
def test_production_refuses_a_weak_secret_and_does_not_show_it(load: Load, name: str, value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"{name} is .*Hint: ") as refusal:
        load(**{**GOOD, name: value})
    assert value not in str(refusal.value)


BAD = {
    "one key for two": ({"CHANNEL_SECRETS_KEY": KEY}, "SECRET_KEY and CHANNEL_SECRETS_KEY must differ"),
    "debugging": ({"DEBUG": "1"}, "DEBUG"),
    "failpoints": ({"FAILPOINTS": "/tmp"}, "FAILPOINTS"),
    "any host": ({"ALLOWED_HOSTS": "*"}, "ALLOWED_HOSTS"),
    "any host besides ours": ({"ALLOWED_HOSTS": "chat.example.com,*"}, "ALLOWED_HOSTS"),
    "an API without TLS": ({"API_URL": "http://chat.example.com"}, "API_URL"),
    "an API without a host": ({"API_URL": "https://"}, "API_URL"),
    "a gateway without TLS": ({"GATEWAY_URL": "ws://live.example.com"}, "GATEWAY_URL"),
    "a proxy that hides all addresses": ({"BEHIND_TLS_PROXY": "1"}, "TRUSTED_PROXIES"),
}


@pytest.mark.parametrize(("change", "named"), BAD.values(), ids=BAD.keys())
def test_production_refuses_what_is_unsafe(load: Load, change: dict[str, str], named: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"{named}.*Hint: |Hint: .*{named}"):
        load(**{**GOOD, **change})


@pytest.mark.parametrize("profile", ["Production", "prod", "", "production "])
def test_a_misspelt_profile_is_no_local_one(load: Load, profile: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"CHAT4ALL_ENV is neither local nor production\. Hint: "):
        load(CHAT4ALL_ENV=profile)


@pytest.mark.parametrize(
    "value", ["garbage", RSA_PEM[:400], EC_PEM, "\N{SNOWMAN}"], ids=["garbage", "cut off", "EC", "not ASCII"]
)
@pytest.mark.parametrize("environment", [{}, GOOD], ids=["local", "production"])
def test_a_key_that_is_none_is_told_with_a_hint(load: Load, environment: dict[str, str], value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"JWT_PRIVATE_KEY .*Hint: ") as refusal:
        load(**{**environment, "JWT_PRIVATE_KEY": value})
    assert value not in str(refusal.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not text"])
def test_a_key_file_that_cannot_be_read_is_told_with_a_hint(load: Load, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "jwt.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ImproperlyConfigured, match=r"JWT_PRIVATE_KEY_FILE .*Hint: "):
        load(JWT_PRIVATE_KEY_FILE=str(file))


def test_a_key_file_is_read(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "jwt.pem"
    file.write_text(RSA_PEM)
    assert load(JWT_PRIVATE_KEY_FILE=str(file))["SIMPLE_JWT"]["SIGNING_KEY"] == RSA_PEM


def test_signing_in_by_a_form_leads_to_the_admin(load: Load) -> None:
    assert load()["LOGIN_REDIRECT_URL"] == "admin:index"


@pytest.mark.parametrize(
    ("name", "default", "good", "bad", "told"),
    [
        ("LANES", 1, 2, ["0", "17"], "LANES is 1 to 16"),
        ("GATHER_MS", 10, 0, ["-1", "1001"], "GATHER_MS is 0 to 1000"),
    ],
)
def test_a_number_of_the_bridge_has_bounds(
    load: Load, name: str, default: int, good: int, bad: list[str], told: str
) -> None:
    assert load()[name] == default
    assert load(**{name: str(good)})[name] == good
    for each in bad:
        with pytest.raises(ImproperlyConfigured, match=told):
            load(**{name: each})


class Impostor:
    """Speaks TLS with a certificate that no authority of this machine signed, and notes what it is told."""

    def __init__(self, certificates: Certificates) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server_pem)
        self._listener = socket.create_server((HOST, 0))
        self._tls = context.wrap_socket(self._listener, server_side=True)
        self.port = self._tls.getsockname()[1]
        self.told: list[bytes] = []
        self.hung_up = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            connection, _ = self._tls.accept()  # with the handshake; ssl.SSLError is an OSError
            with connection:
                self.told.append(connection.recv(1000))
        self.hung_up.set()

    def close(self) -> None:
        self._tls.close()
        self._thread.join()


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[tuple[Impostor, Certificates]]:
    certificates = Certificates.made(tmp_path / "tls")
    server = Impostor(certificates)
    yield server, certificates
    server.close()


@pytest.mark.parametrize("knows_its_authority", [False, True])
def test_celery_tells_the_buss_password_to_nobody_whose_certificate_is_unknown(
    load: Load, impostor: tuple[Impostor, Certificates], knows_its_authority: bool
) -> None:
    server, certificates = impostor
    options = f"?ssl_ca_certs={certificates.ca}" if knows_its_authority else ""
    loaded = load(BUS_URL=f"rediss://:the-password@{HOST}:{server.port}/0{options}")
    app = Celery(broker=loaded["CELERY_BROKER_URL"])
    app.conf.update(broker_use_ssl=loaded["CELERY_BROKER_USE_SSL"], broker_transport_options={"socket_timeout": 5})
    with app.connection_for_write() as connection, suppress(OperationalError, RedisError):
        channel: Any = connection.default_channel
        channel.client.ping()
    assert server.hung_up.wait(10)
    assert any(b"the-password" in each for each in server.told) is knows_its_authority


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "unix:///run/redis.sock"])
def test_a_bus_without_tls_has_no_options_of_it(load: Load, url: str) -> None:
    assert load(BUS_URL=url)["CELERY_BROKER_USE_SSL"] is None
