"""X.509 certificates and CRLs (RFC 5280) as evidence needs them, read strictly from DER.

Own code because vendors' certificates need it: AMD's have serial number 0, which the library warns
of and will refuse, and a TPM vendor's root orders a SET as DER forbids. Signatures and keys are the
library's. What is read here is not yet believed: see ``chain.py``.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from overspill.errors import EvidenceRejected
from overspill.trust import der
from overspill.trust.base import rejected
from overspill.trust.der import DerReader

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | Ed25519PublicKey

MAX_BYTES: Final = 128 << 10
"""The largest certificate or CRL that is read."""

BASIC_CONSTRAINTS: Final = "2.5.29.19"
KEY_USAGE: Final = "2.5.29.15"
EXTENDED_KEY_USAGE: Final = "2.5.29.37"
_COMMON_NAME: Final = "2.5.4.3"
_MIN_RSA_BITS: Final = 2048
_VERSION_3: Final = 2
_PSS: Final = "1.2.840.113549.1.1.10"
_MGF1: Final = "1.2.840.113549.1.1.8"
_ED25519: Final = "1.3.101.112"
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
_RSA_PKCS1: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
}
_ECDSA: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "1.2.840.10045.4.3.2": hashes.SHA256(),
    "1.2.840.10045.4.3.3": hashes.SHA384(),
    "1.2.840.10045.4.3.4": hashes.SHA512(),
}
_PEM: Final = re.compile(
    rb"-----BEGIN (CERTIFICATE|X509 CRL)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----"
)


@dataclass(frozen=True)
class Certificate:
    """A decoded certificate. Names are DER bytes, times Unix seconds, extensions by dotted OID."""

    der: bytes
    tbs: bytes
    serial: int
    issuer: bytes
    subject: bytes
    not_before: int
    not_after: int
    spki: bytes
    signature_algorithm: bytes
    signature: bytes
    extensions: Mapping[str, bytes]
    critical: frozenset[str]

    @cached_property
    def public_key(self) -> PublicKey:
        """The subject's key. Raises ``EvidenceRejected`` for one of an unknown or weak kind."""
        return load_key(self.spki)

    @property
    def name(self) -> str:
        """The subject's common name, for display only."""
        return _common_name(self.subject)

    @property
    def issuer_name(self) -> str:
        """The issuer's common name, for display only."""
        return _common_name(self.issuer)

    @property
    def sha256(self) -> str:
        """The certificate's fingerprint, in hex."""
        return hashlib.sha256(self.der).hexdigest()

    @cached_property
    def path_length(self) -> int | None:
        """None for no authority, else how many authorities may stand below (a large number for
        any)."""
        return _path_length(self.extensions.get(BASIC_CONSTRAINTS))

    @property
    def usages(self) -> frozenset[str]:
        """The extended key usages."""
        value = self.extensions.get(EXTENDED_KEY_USAGE)
        if value is None:
            return frozenset()
        reader = DerReader(value, _malformed)
        inner = reader.children(der.SEQUENCE, "the key usages")
        reader.end("the key usages")
        return frozenset(
            der.read_oid(item.content, _malformed) for item in inner.rest(der.OID, "a usage")
        )

    @property
    def may_sign_certificates(self) -> bool:
        """False when a key usage is stated and keyCertSign is not in it."""
        return self._has_usage(5)

    @property
    def may_sign_crls(self) -> bool:
        """False when a key usage is stated and cRLSign is not in it."""
        return self._has_usage(6)

    def _has_usage(self, bit: int) -> bool:
        value = self.extensions.get(KEY_USAGE)
        if value is None:
            return True
        reader = DerReader(value, _malformed)
        content = reader.element(der.BIT_STRING, "the key usage").content
        reader.end("the key usage")
        return len(content) > 1 and bool(content[1] & 0x80 >> bit)


@dataclass(frozen=True)
class Crl:
    """A decoded revocation list; ``next_update`` in Unix seconds."""

    der: bytes
    tbs: bytes
    issuer: bytes
    this_update: int
    next_update: int
    revoked: frozenset[int]
    signature_algorithm: bytes
    signature: bytes

    @property
    def issuer_name(self) -> str:
        """The issuer's common name, for display only."""
        return _common_name(self.issuer)


def parse_certificate(data: bytes) -> Certificate:
    """Strict decoding of one certificate. Raises ``EvidenceRejected("certificate_malformed")``."""
    tbs, algorithm, signature = _signed(data)
    body = DerReader(tbs, _malformed).children(der.SEQUENCE, "the certificate's body")
    version = body.children(0xA0, "the version").integer("the version")
    if version != _VERSION_3:
        raise _malformed(f"X.509 version {version + 1}, not 3")
    serial = body.integer("the serial number")
    if body.element(der.SEQUENCE, "the algorithm").raw != algorithm:
        raise _malformed("the signed algorithm is not the one that is used")
    issuer = body.element(der.SEQUENCE, "the issuer").raw
    validity = body.children(der.SEQUENCE, "the validity")
    not_before, not_after = validity.time("not_before"), validity.time("not_after")
    validity.end("the validity")
    subject = body.element(der.SEQUENCE, "the subject").raw
    spki = body.element(der.SEQUENCE, "the key").raw
    for tag in (0x81, 0x82):
        body.optional(tag, "a unique identifier")
    extensions, critical = _extensions(body)
    body.end("the certificate's body")
    return Certificate(
        data, tbs, serial, issuer, subject, not_before, not_after, spki,
        algorithm, signature, MappingProxyType(extensions), critical,
    )  # fmt: skip


def parse_crl(data: bytes) -> Crl:
    """Strict decoding of one CRL. Raises ``EvidenceRejected("certificate_malformed")``."""
    tbs, algorithm, signature = _signed(data)
    body = DerReader(tbs, _malformed).children(der.SEQUENCE, "the list's body")
    if body.integer("the version") != 1:
        raise _malformed("a revocation list that is not of version 2")
    if body.element(der.SEQUENCE, "the algorithm").raw != algorithm:
        raise _malformed("the signed algorithm is not the one that is used")
    issuer = body.element(der.SEQUENCE, "the issuer").raw
    this_update, next_update = body.time("thisUpdate"), body.time("nextUpdate")
    entries = body.optional(der.SEQUENCE, "the revoked certificates")
    revoked = _revoked(entries.content) if entries else frozenset()
    body.optional(0xA0, "the list's extensions")
    body.end("the list's body")
    return Crl(data, tbs, issuer, this_update, next_update, revoked, algorithm, signature)


def read_pem(data: bytes) -> tuple[tuple[Certificate, ...], tuple[Crl, ...]]:
    """All certificates and CRLs of a PEM text, in its order; text around them is ignored."""
    certificates: list[Certificate] = []
    crls: list[Crl] = []
    for label, body in _PEM.findall(data):
        try:
            found = binascii.a2b_base64(b"".join(body.split()), strict_mode=True)
        except binascii.Error as error:
            raise _malformed("PEM whose inside is not base64") from error
        if label == b"CERTIFICATE":
            certificates.append(parse_certificate(found))
        else:
            crls.append(parse_crl(found))
    return tuple(certificates), tuple(crls)


def load_key(spki: bytes) -> PublicKey:
    """A SubjectPublicKeyInfo's key. Raises ``EvidenceRejected``: ``key_unsupported``."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unsupported("a public key that cannot be read") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        raise _unsupported(f"RSA of {key.key_size} bits")
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | Ed25519PublicKey):
        raise _unsupported(type(key).__name__)
    return key


def is_signed_by(algorithm: bytes, key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` over ``message`` verifies under a DER AlgorithmIdentifier."""
    reader = DerReader(algorithm, _malformed).children(der.SEQUENCE, "the algorithm")
    oid = reader.oid("the algorithm")
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and oid in _ECDSA:
            key.verify(signature, message, ec.ECDSA(_ECDSA[oid]))
        elif isinstance(key, rsa.RSAPublicKey) and oid in _RSA_PKCS1:
            key.verify(signature, message, padding.PKCS1v15(), _RSA_PKCS1[oid])
        elif isinstance(key, rsa.RSAPublicKey) and oid == _PSS:
            pss, hash_algorithm = _pss(reader)
            key.verify(signature, message, pss, hash_algorithm)
        elif isinstance(key, Ed25519PublicKey) and oid == _ED25519:
            key.verify(signature, message)
        else:
            raise _unsupported(f"signature algorithm {oid}")
    except InvalidSignature:
        return False
    return True


def _signed(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The parts of what is signed in X.509: body, algorithm, signature."""
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    outer = DerReader(data, _malformed)
    inner = outer.children(der.SEQUENCE, "the whole")
    outer.end("the whole")
    tbs = inner.element(der.SEQUENCE, "the body").raw
    algorithm = inner.element(der.SEQUENCE, "the algorithm").raw
    signature = inner.bits("the signature")
    inner.end("the signature")
    return tbs, algorithm, signature


def _extensions(body: DerReader) -> tuple[dict[str, bytes], frozenset[str]]:
    found: dict[str, bytes] = {}
    critical = set()
    if body.peek() == 0xA3:
        listed = body.children(0xA3, "the extensions").children(der.SEQUENCE, "the extensions")
        for item in listed.rest(der.SEQUENCE, "an extension"):
            reader = DerReader(item.content, _malformed)
            oid = reader.oid("an extension's name")
            flag = reader.optional(der.BOOLEAN, "an extension's criticality")
            if flag and flag.content != b"\xff":
                raise _malformed("a criticality that is not spelled as DER spells it")
            if oid in found:
                raise _malformed(f"extension {oid} twice")
            found[oid] = reader.element(der.OCTET_STRING, "an extension's value").content
            reader.end("an extension")
            critical |= {oid} if flag else set()
    return found, frozenset(critical)


def _revoked(content: bytes) -> frozenset[int]:
    serials = set()
    for entry in DerReader(content, _malformed).rest(der.SEQUENCE, "a revoked certificate"):
        reader = DerReader(entry.content, _malformed)
        serials.add(reader.integer("a revoked serial number"))
        reader.time("a revocation's date")
        reader.optional(der.SEQUENCE, "an entry's extensions")
        reader.end("a revoked certificate")
    return frozenset(serials)


_ANY_LENGTH: Final = 1 << 16


def _path_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    reader = DerReader(value, _malformed)
    inner = reader.children(der.SEQUENCE, "the basic constraints")
    reader.end("the basic constraints")
    flag = inner.optional(der.BOOLEAN, "the authority flag")
    length = inner.integer("the path length") if inner.more else _ANY_LENGTH
    inner.end("the basic constraints")
    return length if flag and flag.content == b"\xff" else None


def _pss(reader: DerReader) -> tuple[padding.PSS, hashes.HashAlgorithm]:
    """RSASSA-PSS-params (RFC 8017, A.2.3) that name one SHA-2 hash for message and mask."""
    parameters = reader.children(der.SEQUENCE, "the PSS parameters")
    message_hash = _hash(parameters.children(0xA0, "the PSS hash"))
    mask = parameters.children(0xA1, "the PSS mask").children(der.SEQUENCE, "the PSS mask")
    if mask.oid("the PSS mask") != _MGF1 or _hash(mask) is not message_hash:
        raise _unsupported("a PSS mask that is not MGF1 with the message's hash")
    salt_bytes = parameters.children(0xA2, "the PSS salt").integer("the PSS salt")
    if salt_bytes != message_hash.digest_size:
        raise _unsupported(f"a PSS salt of {salt_bytes} bytes")
    return padding.PSS(padding.MGF1(message_hash), salt_bytes), message_hash


def _hash(reader: DerReader) -> hashes.HashAlgorithm:
    oid = reader.children(der.SEQUENCE, "a hash").oid("a hash")
    if oid not in _HASHES:
        raise _unsupported(f"hash algorithm {oid}")
    return _HASHES[oid]


def _common_name(name: bytes) -> str:
    """The last common name of a DER Name, for display; never compared."""
    text = ""
    reader = DerReader(name, _malformed).children(der.SEQUENCE, "a name")
    for part in reader.rest(der.SET, "a part of a name"):
        for pair in DerReader(part.content, _malformed).rest(der.SEQUENCE, "a name's pair"):
            inner = DerReader(pair.content, _malformed)
            if inner.oid("a name's kind") == _COMMON_NAME and inner.more:
                text = inner.element(inner.peek() or 0, "a name").content.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text[:64]) or "(no common name)"


def _malformed(what: str) -> EvidenceRejected:
    return rejected(
        "certificate_malformed", "3", expected="an X.509 certificate or CRL in DER", actual=what
    )


def _unsupported(what: str) -> EvidenceRejected:
    return rejected(
        "key_unsupported", "3", expected="RSA of 2,048 bits or more, ECDSA, Ed25519", actual=what
    )
