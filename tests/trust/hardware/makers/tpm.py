"""What a TPM signs, a firmware's log, and the envelope around an Azure guest's report."""

from __future__ import annotations

import base64
import hashlib
import json
import struct

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from .pki import point

_GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
GOOD_AK = 0x00050072  # fixedTPM fixedParent sensitiveDataOrigin userWithAuth restricted sign


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def variable(text: str, value: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    encoded = text.encode("utf-16-le")
    return _GLOBAL + struct.pack("<QQ", len(text), len(value)) + encoded + value


def event(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> bytes:
    """TCG_PCR_EVENT2 with one SHA-256 digest."""
    digest = hashlib.sha256(data).digest() if digest is None else digest
    head = struct.pack("<IIIH", pcr, kind, 1, 0x000B)
    return head + digest + struct.pack("<I", len(data)) + data


def spec_id(banks: tuple[tuple[int, int], ...] = ((0x000B, 32),)) -> bytes:
    """The first event, which describes the log."""
    body = b"Spec ID Event03\0" + bytes(4) + b"\0\2\0\2" + struct.pack("<I", len(banks))
    body += b"".join(struct.pack("<HH", *bank) for bank in banks) + b"\0"
    return struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(body)) + body


def event_log(secure_boot: bytes | None = b"\1", *more: bytes) -> bytes:
    """A firmware's log: secure boot's state, the separator, and what a test adds."""
    said = (
        [] if secure_boot is None else [event(7, 0x80000001, variable("SecureBoot", secure_boot))]
    )
    locality = event(0, 3, b"StartupLocality\0\3", bytes(32))
    start = [spec_id(), locality, event(0, 8, b"firmware 1"), *said]
    return b"".join([*start, event(7, 4, bytes(4)), event(14, 0xD, b"a boot loader's"), *more])


def attest(data: bytes, values: dict[int, bytes], **how) -> bytes:
    """TPMS_ATTEST over registers."""
    selected = sorted(values)
    digest = hashlib.sha256(b"".join(values[pcr] for pcr in selected)).digest()
    bitmap = sum(1 << pcr for pcr in selected).to_bytes(3, "little")
    return (
        struct.pack(">IH", how.get("magic", 0xFF544347), how.get("kind", 0x8018))
        + sized(b"\0\x0b" + bytes(32))
        + sized(data)
        + struct.pack(">QIIBQ", 1, 2, 3, 1, 4)
        + struct.pack(">IHB", 1, how.get("bank", 0x000B), 3)
        + bitmap
        + sized(digest)
    )


def ecc_public(private: ec.EllipticCurvePrivateKey, attributes: int = GOOD_AK, **how) -> bytes:
    """TPMT_PUBLIC of an ECDSA key."""
    raw = point(private)
    half, curve = len(raw) // 2, 3 if len(raw) == 64 else 4
    head = struct.pack(">HHI", how.get("kind", 0x23), how.get("name_alg", 0x0B), attributes)
    scheme = struct.pack(
        ">HHHHH", how.get("symmetric", 0x10), how.get("scheme", 0x18), how.get("hash", 0x0B),
        how.get("curve", curve), 0x10,
    )  # fmt: skip
    return head + sized(b"") + scheme + sized(raw[:half]) + sized(raw[half:])


def rsa_public(private: rsa.RSAPrivateKey, attributes: int = GOOD_AK, **how) -> bytes:
    """TPMT_PUBLIC of an RSASSA key."""
    modulus = private.public_key().public_numbers().n.to_bytes(256, "big")
    head = struct.pack(">HHI", 1, 0x0B, attributes) + sized(b"")
    middle = struct.pack(">HHHHI", 0x10, how.get("scheme", 0x14), 0x0B, how.get("bits", 2048), 0)
    return head + middle + sized(how.get("modulus", modulus))


def ecc_signature(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """TPMT_SIGNATURE, ECDSA with SHA-256."""
    algorithm = ec.ECDSA(SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(private.sign(message, algorithm))
    size = (private.curve.key_size + 7) // 8
    return struct.pack(">HH", 0x18, 0x0B) + sized(r.to_bytes(size)) + sized(s.to_bytes(size))


def rsa_signature(private: rsa.RSAPrivateKey, message: bytes) -> bytes:
    """RSASSA with SHA-256, bare."""
    return private.sign(message, padding.PKCS1v15(), SHA256())


def runtime_data(private: rsa.RSAPrivateKey, **how) -> bytes:
    """The JSON inside an HCL report."""

    def b64(value: int) -> str:
        raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    numbers = private.public_key().public_numbers()
    jwk = {"kid": "HCLAkPub", "kty": "RSA", "e": b64(numbers.e), "n": b64(numbers.n)}
    value = {"keys": [jwk | how.get("jwk", {})], "vm-configuration": {"secure-boot": True}}
    return json.dumps(value | how.get("value", {})).encode()


def hcl_report(report: bytes, runtime: bytes, **how) -> bytes:
    """The HCL's envelope, with the zeros of its fixed buffer."""
    head = how.get("magic", b"HCLA") + struct.pack("<I", 2) + bytes(24)
    sizes = struct.pack(
        "<5I", len(runtime) + 20, 1, how.get("kind", 2), how.get("hash", 1),
        how.get("size", len(runtime)),
    )  # fmt: skip
    return head + report + sizes + runtime + how.get("after", bytes(64))
