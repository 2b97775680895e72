"""Attestation keys and their signatures as TPMs of any make write them: RSA and ECDSA.

The quotes that overspill's own nodes make are ECDSA P-256 (``tpm_structures.py``); raw evidence
from elsewhere may be RSA, and may bring the key as a certificate or as a bare public key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from overspill.errors import EvidenceRejected
from overspill.trust import tpm_structures as tpm
from overspill.trust.base import rejected
from overspill.trust.certificates import PublicKey
from overspill.types.binary import ByteReader

ALG_RSA: Final = 0x0001
ALG_SHA384: Final = 0x000C
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016

_MAX_SIZED: Final = 1024
_MIN_RSA_BITS: Final = 2048
_DEFAULT_EXPONENT: Final = 65537
_HASHES: Final = {tpm.ALG_SHA256: hashes.SHA256(), ALG_SHA384: hashes.SHA384()}
_CURVES: Final[dict[int, tuple[int, ec.EllipticCurve]]] = {
    tpm.ECC_NIST_P256: (32, ec.SECP256R1()),
    0x0004: (48, ec.SECP384R1()),
}
_SIGNING_SCHEMES: Final = (ALG_RSASSA, ALG_RSAPSS, tpm.ALG_ECDSA)
_STEP: Final = "2"


@dataclass(frozen=True, slots=True)
class PublicArea:
    """TPMT_PUBLIC of a signing key: what may be done with it, the key itself, and its name
    (name algorithm || digest of the structure)."""

    attributes: int
    key: PublicKey
    name: bytes


def parse_public(data: bytes) -> PublicArea:
    """TPMT_PUBLIC or TPM2B_PUBLIC. Reasons: ``tpm_malformed``, ``ak_algorithm``."""
    if int.from_bytes(data[:2], "big") == len(data) - 2:
        data = data[2:]
    reader = ByteReader(data, _malformed)
    kind, name_alg = reader.uint(2, "the key type"), reader.uint(2, "the name algorithm")
    if name_alg not in _HASHES:
        raise _algorithm(f"name algorithm {name_alg:#06x}")
    attributes = reader.uint(4, "the attributes")
    reader.prefixed(2, "the policy", max_bytes=_MAX_SIZED)
    symmetric, scheme = reader.uint(2, "the symmetric scheme"), reader.uint(2, "the scheme")
    if symmetric != tpm.ALG_NULL or scheme not in _SIGNING_SCHEMES:
        raise _algorithm(f"symmetric {symmetric:#06x}, scheme {scheme:#06x}")
    hash_alg = reader.uint(2, "the scheme's hash")
    if hash_alg not in _HASHES:
        raise _algorithm(f"hash {hash_alg:#06x}")
    if kind not in (ALG_RSA, tpm.ALG_ECC):
        raise _algorithm(f"key type {kind:#06x}")
    key = _rsa_key(reader) if kind == ALG_RSA else _ecc_key(reader)
    reader.end("the attestation key")
    digest = hashlib.new(_HASHES[name_alg].name, data).digest()
    return PublicArea(attributes, key, name_alg.to_bytes(2, "big") + digest)


def is_signed(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether a TPMT_SIGNATURE, or a bare RSA signature (RSASSA with SHA-256), verifies.

    Reasons: ``tpm_malformed``, ``signature_algorithm``.
    """
    if isinstance(key, rsa.RSAPublicKey) and len(signature) == key.key_size // 8:
        return _verifies_rsa(key, ALG_RSASSA, hashes.SHA256(), signature, message)
    reader = ByteReader(signature, _malformed)
    scheme, hash_alg = reader.uint(2, "the scheme"), reader.uint(2, "the hash")
    if scheme not in _SIGNING_SCHEMES or hash_alg not in _HASHES:
        raise _signature_algorithm(f"scheme {scheme:#06x}, hash {hash_alg:#06x}")
    first = reader.prefixed(2, "the signature", max_bytes=_MAX_SIZED)
    if scheme != tpm.ALG_ECDSA:
        reader.end("the signature")
        if not isinstance(key, rsa.RSAPublicKey):
            raise _signature_algorithm("RSA by a key that is none")
        return _verifies_rsa(key, scheme, _HASHES[hash_alg], first, message)
    second = reader.prefixed(2, "the signature", max_bytes=_MAX_SIZED)
    reader.end("the signature")
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _signature_algorithm("ECDSA by a key that is none")
    numbers = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    try:
        key.verify(encode_dss_signature(*numbers), message, ec.ECDSA(_HASHES[hash_alg]))
    except InvalidSignature:
        return False
    return True


def _verifies_rsa(
    key: rsa.RSAPublicKey,
    scheme: int,
    algorithm: hashes.HashAlgorithm,
    signature: bytes,
    message: bytes,
) -> bool:
    pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
    try:
        if scheme == ALG_RSASSA:
            key.verify(signature, message, padding.PKCS1v15(), algorithm)
        else:
            key.verify(signature, message, pss, algorithm)
    except InvalidSignature:
        return False
    return True


def _rsa_key(reader: ByteReader) -> rsa.RSAPublicKey:
    bits, exponent = reader.uint(2, "the key's bits"), reader.uint(4, "the exponent")
    modulus = reader.prefixed(2, "the modulus", max_bytes=_MAX_SIZED)
    if bits < _MIN_RSA_BITS or 8 * len(modulus) != bits:
        raise _algorithm(f"RSA of {bits} bits")
    try:
        numbers = rsa.RSAPublicNumbers(
            exponent or _DEFAULT_EXPONENT, int.from_bytes(modulus, "big")
        )
        return numbers.public_key()
    except ValueError as error:
        raise _algorithm("an RSA key that is none") from error


def _ecc_key(reader: ByteReader) -> ec.EllipticCurvePublicKey:
    curve, kdf = reader.uint(2, "the curve"), reader.uint(2, "the KDF")
    if curve not in _CURVES or kdf != tpm.ALG_NULL:
        raise _algorithm(f"curve {curve:#06x}")
    size, named = _CURVES[curve]
    point = [reader.prefixed(2, name, max_bytes=size) for name in ("x", "y")]
    x, y = (int.from_bytes(number, "big") for number in point)
    try:
        return ec.EllipticCurvePublicNumbers(x, y, named).public_key()
    except ValueError as error:
        raise _algorithm("a point that is not on the curve") from error


def _malformed(what: str) -> EvidenceRejected:
    return rejected("tpm_malformed", _STEP, expected="a TPM 2.0 structure", actual=what)


def _algorithm(what: str) -> EvidenceRejected:
    return rejected("ak_algorithm", _STEP, expected="a signing key of SHA-2", actual=what)


def _signature_algorithm(what: str) -> EvidenceRejected:
    return rejected("signature_algorithm", _STEP, expected="RSA or ECDSA with SHA-2", actual=what)
