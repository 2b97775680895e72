"""Certificates for nodes on loopback, and an authority whose certificates follow each other."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_PEM = serialization.Encoding.PEM


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


@dataclass
class Authority:
    """Signs certificates; a device that trusts it takes each of them."""

    name: str = "an authority for tests"
    key: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        extension = x509.BasicConstraints(ca=True, path_length=None)
        return _signed(_name(self.name), self.key, self, extension)

    def write(self, certificate: Path, key_file: Path) -> None:
        """A new certificate for loopback and its key, put in place whole."""
        _write(certificate, key_file, _new_key(), self)


def write_certificate(certificate: Path, key_file: Path) -> None:
    """A self-signed certificate for loopback and its key, put in place whole."""
    key = _new_key()
    _write(certificate, key_file, key, Authority("localhost", key))


def _write(
    certificate: Path, key_file: Path, key: ec.EllipticCurvePrivateKey, authority: Authority
) -> None:
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    shown = _signed(_name("localhost"), key, authority, x509.SubjectAlternativeName(names))
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(_PEM, form, serialization.NoEncryption())
    for path, data in ((key_file, secret), (certificate, shown)):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(path)


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    authority: Authority,
    extension: x509.ExtensionType,
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_name(authority.name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(extension, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return built.public_bytes(_PEM)
