"""NVIDIA's reference integrity manifests (RIM): SWID tags (ISO/IEC 19770-2, TCG RIM binding) whose
resources list the measurements of one driver or VBIOS version.

A resource's index counts from 0, a report's measurements from 1; only active resources are
compared, each against its alternatives, without exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected
from overspill.trust.certificates import Certificate
from overspill.trust.chain import Anchors, build_path
from overspill.trust.nvidia_report import GpuReport
from overspill.trust.xml_signed import Element, SignedXml, parse_signed

_SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_HASHES: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
_DIGEST_BYTES: Final = 48
_MAX_RESOURCES: Final = 256
_STEP: Final = "7"


@dataclass(frozen=True, slots=True)
class Rim:
    """A verified manifest: the version that it is about, and accepted digests by index from 0."""

    version: str
    values: Mapping[int, frozenset[bytes]]


def read_rim(data: bytes, roots: tuple[Certificate, ...], now_unix: int) -> Rim:
    """Verifies and reads a manifest. Reasons: ``rim_malformed``, ``rim_digest``,
    ``rim_signature``, and those of a chain."""
    document = parse_signed(data)
    if not document.certificates:
        raise _malformed("no certificate")
    signer = document.certificates[0]
    build_path(signer, Anchors(roots, document.certificates[1:]), now_unix)
    _check_signature(signer, document)
    root = document.root
    if root.qualified != (_SWID, "SoftwareIdentity"):
        raise _malformed("no software identity")
    meta, payload = (_only(root, name) for name in ("Meta", "Payload"))
    version = meta.attributes.get("colloquialVersion", "")
    resources = payload.elements("Resource", _SWID)
    if not version or not 0 < len(resources) <= _MAX_RESOURCES:
        raise _malformed(f"version '{version[:32]}' with {len(resources)} resources")
    return Rim(version, _values(resources))


def compare(report: GpuReport, rims: tuple[Rim, ...]) -> str:
    """Whether each measurement is as listed. Reasons: ``rim_version``, ``rim_measurement``."""
    compared = 0
    for rim in rims:
        if rim.version not in (report.driver_version, report.vbios_version.upper()):
            raise rejected(
                "rim_version",
                _STEP,
                expected=f"manifests of {report.driver_version} or {report.vbios_version}",
                actual=f"one of {rim.version}",
            )
        for index, accepted in sorted(rim.values.items()):
            actual = report.measurements.get(index + 1)
            if actual not in accepted:
                raise rejected(
                    "rim_measurement",
                    _STEP,
                    expected=f"measurement {index + 1} as the manifest of {rim.version} lists it",
                    actual=actual.hex() if actual else "none",
                )
            compared += 1
    return f"{compared} measurements as listed"


def _check_signature(signer: Certificate, document: SignedXml) -> None:
    key, raw = signer.public_key, document.signature
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise rejected("key_unsupported", _STEP, expected="a P-384 key", actual="another kind")
    r, s = int.from_bytes(raw[:48], "big"), int.from_bytes(raw[48:], "big")
    try:
        key.verify(encode_dss_signature(r, s), document.signed_info, ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise rejected(
            "rim_signature", _STEP, expected=f"a signature by '{signer.name}'", actual="another"
        ) from error


def _values(resources: list[Element]) -> dict[int, frozenset[bytes]]:
    found: dict[int, frozenset[bytes]] = {}
    for resource in resources:
        if resource.attributes.get("active") != "True":
            continue
        index, count = (_number(resource, name) for name in ("index", "alternatives"))
        if index in found or not 0 < count <= _MAX_RESOURCES:
            raise _malformed(f"resource {index} twice, or with {count} alternatives")
        found[index] = frozenset(_digest(resource, number) for number in range(count))
    return found


def _digest(resource: Element, number: int) -> bytes:
    for name, value in resource.attributes.items():
        prefix, _, local = name.rpartition(":")
        if local == f"Hash{number}" and resource.scope.get(prefix) == _HASHES:
            try:
                digest = bytes.fromhex(value)
            except ValueError as error:
                raise _malformed("a digest that is not hexadecimal") from error
            if len(digest) == _DIGEST_BYTES:
                return digest
    raise _malformed(f"a resource without Hash{number}")


def _number(resource: Element, name: str) -> int:
    text = resource.attributes.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise _malformed(f"a resource without a number for '{name}'")
    return int(text)


def _only(root: Element, name: str) -> Element:
    found = root.elements(name, _SWID)
    if len(found) != 1:
        raise _malformed(f"{len(found)} elements {name}")
    return found[0]


def _malformed(what: str) -> EvidenceRejected:
    return rejected("rim_malformed", _STEP, expected="a reference manifest", actual=what)
