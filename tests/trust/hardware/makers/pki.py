"""Keys by name, DER by hand, and authorities: fixed keys, a fixed clock, no randomness."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

NOW = 1_800_000_000
CLOCK = datetime.fromtimestamp(NOW, UTC)
P256, P384 = ec.SECP256R1(), ec.SECP384R1()
CHIP = bytes(range(64))
TURIN_CHIP = bytes(range(1, 9)).ljust(64, b"\0")
MEASUREMENT = hashlib.sha384(b"the released image").digest()
_HASH = {"secp256r1": SHA256(), "secp384r1": SHA384()}
_RSA_P = int(
    "e1451372f5ebc438d2a3c9f9146e907f6cbcb28a650adf1800781e004f91941dd6129017d02382bf62e4412a"
    "43cd6a790233767d1f280265a1b7b1487e6181e6d2a41a3301ae530ecb40d487a2f36a951c65772b43dfca1a"
    "a6c3759275ca3b25f642c68ddba4cb96b6ef0fd7b6354a14c980f3f74a5273d4a5e98f25697e0c17",
    16,
)
_RSA_Q = int(
    "dd5fb3dd8a63c25523cf1de873ebc7db54ef39e4db74bd543202816b0df59d80e7a1dc144832b68066ac7113"
    "fd81fe39bf86d78470c80b85b02ae3eee20ddfe62f344ab6270d1e6de7400b518297bc9a6c6618763a8d1530"
    "4e4af98ddf1f236167638d7b6803fabb8383ef0c3e163e5024a98df829edb0663d6a2d1e30331fad",
    16,
)


def key(seed: str, curve: ec.EllipticCurve = P384) -> ec.EllipticCurvePrivateKey:
    """The private key of a name."""
    digest = hashlib.sha512(seed.encode()).digest()
    return ec.derive_private_key(1 + int.from_bytes(digest[:31], "big"), curve)


def rsa_key() -> rsa.RSAPrivateKey:
    """One fixed RSA key of 2,048 bits."""
    d = pow(65537, -1, (_RSA_P - 1) * (_RSA_Q - 1))
    public = rsa.RSAPublicNumbers(65537, _RSA_P * _RSA_Q)
    return rsa.RSAPrivateNumbers(
        _RSA_P, _RSA_Q, d, d % (_RSA_P - 1), d % (_RSA_Q - 1), pow(_RSA_Q, -1, _RSA_P), public
    ).private_key()


def raw_sign(private: ec.EllipticCurvePrivateKey, message: bytes) -> tuple[int, int]:
    """r and s, with the hash of the curve's size, without randomness."""
    algorithm = ec.ECDSA(_HASH[private.curve.name], deterministic_signing=True)
    return decode_dss_signature(private.sign(message, algorithm))


def point(private: ec.EllipticCurvePrivateKey) -> bytes:
    """x || y."""
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def tlv(tag: int, *parts: bytes) -> bytes:
    """A DER element."""
    body = b"".join(parts)
    if len(body) < 128:
        size = bytes((len(body),))
    else:
        digits = len(body).to_bytes(1 if len(body) < 256 else 2, "big")
        size = bytes((0x80 + len(digits),)) + digits
    return bytes((tag,)) + size + body


def oid(dotted: str) -> bytes:
    """An object identifier, with its header."""
    arcs = [int(arc) for arc in dotted.split(".")]
    out = b""
    for arc in (40 * arcs[0] + arcs[1], *arcs[2:]):
        chunk = [arc & 0x7F]
        while arc := arc >> 7:
            chunk.append(arc & 0x7F | 0x80)
        out += bytes(reversed(chunk))
    return tlv(6, out)


def number(value: int) -> bytes:
    """An INTEGER."""
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class Authority:
    """Somebody with a key who issues certificates and CRLs."""

    title: str
    curve: ec.EllipticCurve = P384
    issuer: Authority | None = None
    seed: str = ""
    serial: int = 7
    extensions: tuple[tuple[str, bytes], ...] = ()
    is_authority: bool = True
    from_days: int = -100
    to_days: int = 100

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return key(self.seed or self.title, self.curve)

    @property
    def der(self) -> bytes:
        signer = self.issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(self.title))
            .issuer_name(name(signer.title))
            .serial_number(self.serial)
            .not_valid_before(CLOCK + timedelta(days=self.from_days))
            .not_valid_after(CLOCK + timedelta(days=self.to_days))
            .public_key(self.key.public_key())
        )
        if self.is_authority:
            builder = builder.add_extension(x509.BasicConstraints(True, None), True)
        for dotted, value in self.extensions:
            found = x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), value)
            builder = builder.add_extension(found, False)
        return builder.sign(
            signer.key, _HASH[signer.curve.name], ecdsa_deterministic=True
        ).public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return x509.load_der_x509_certificate(self.der).public_bytes(Encoding.PEM)

    def crl(self, *revoked: int, days: int = 10, from_days: int = -1) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(self.title))
            .last_update(CLOCK + timedelta(days=from_days))
            .next_update(CLOCK + timedelta(days=days))
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(CLOCK)
            builder = builder.add_revoked_certificate(entry.build())
        made = builder.sign(self.key, _HASH[self.curve.name], ecdsa_deterministic=True)
        return made.public_bytes(Encoding.DER)
