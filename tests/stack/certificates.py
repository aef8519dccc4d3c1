"""An authority and a server's certificate, made anew for each server that speaks TLS."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from demo.ports import HOST

LIFE: Final = timedelta(days=1)
STORE_PASSWORD: Final = "of-the-store"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files: who signed, for clients; key and certificate of the server, as PEM and as PKCS#12 for Java."""

    ca: Path
    server_pem: Path
    server_p12: Path

    @classmethod
    def made(cls, folder: Path) -> Certificates:
        """The certificate names the loopback address and localhost."""
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder / "ca.pem", folder / "server.pem", folder / "server.p12")
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = _name("Chat4All tests")
        ca = (
            _begun(issuer, issuer, ca_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(ca_key, hashes.SHA256())
        )
        names = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]
        certificate = (
            _begun(_name(HOST), issuer, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        made.ca.write_bytes(ca.public_bytes(Encoding.PEM))
        made.server_pem.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
            + ca.public_bytes(Encoding.PEM)
        )
        made.server_p12.write_bytes(
            pkcs12.serialize_key_and_certificates(
                b"server", key, certificate, [ca], BestAvailableEncryption(STORE_PASSWORD.encode())
            )
        )
        return made


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LIFE)
        .not_valid_after(now + LIFE)
    )
