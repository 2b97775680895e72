"""``nvidia-gpu``: a GPU's SPDM report under a device certificate that chains to NVIDIA's root.

Evidence data is request and response as the driver hands them out; collateral is ``certificates``
(PEM), and NVIDIA's reference manifests ``rim_driver`` and ``rim_vbios`` (signed XML), which a
policy may demand: they are NVIDIA's word, so the configuration does not name them. It all stands
beside the machine's own evidence: the node fetches it before it makes its keys, over a nonce of its
boot id and HPKE key, and digests data and certificates into the configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from overspill.errors import EvidenceRejected
from overspill.trust import der, nvidia_report
from overspill.trust.base import rejected
from overspill.trust.certificates import Certificate, Crl, read_pem
from overspill.trust.chain import Anchors, build_path
from overspill.trust.der import DerReader
from overspill.trust.nvidia_report import GpuReport, parse_report
from overspill.trust.nvidia_rim import compare, read_rim
from overspill.trust.policy_vendors import GpuPolicy
from overspill.trust.roots import VendorRoots
from overspill.trust.steps import Steps
from overspill.types.binary import prefixed
from overspill.types.evidence import Evidence

if TYPE_CHECKING:
    from overspill.trust.nkc import NodeKeyConfig

TYPE: Final = "nvidia-gpu"
CERTIFICATES: Final = "certificates"
RIMS: Final = ("rim_driver", "rim_vbios")
_COLLATERAL: Final = frozenset({CERTIFICATES, *RIMS})
STEP_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "8.1": "report: SPDM request and response, lengths",
        "8.2": "device certificate: the one that is no authority",
        "8.3": "device certificate: chain to NVIDIA's root, validity",
        "8.4": "device certificate: of the firmware that answered",
        "8.5": "signature: ECDSA P-384 over request and response",
        "8.6": "binding: the request's nonce",
        "8.7": "reference manifests: signed by NVIDIA, measurements as they list them",
        "8.8": "policy: driver and VBIOS are listed",
    }
)

_NONCE_LABEL: Final = b"overspill/gpu/v1\x00"
_DIGEST_LABEL: Final = b"overspill/gpu-claims/v1\x00"
_DICE_DEVICE_ID: Final = "2.23.133.5.4.1"


@dataclass(frozen=True, slots=True)
class GpuMaterials:
    """A report and what came along to check it."""

    report: bytes
    certificates: tuple[Certificate, ...]
    crls: tuple[Crl, ...] = ()
    rims: tuple[bytes, ...] = ()


def gpu_nonce(boot_id: bytes, hpke_public_key: bytes) -> bytes:
    """The nonce (32 bytes) that a node asks its GPU with, before it makes its configuration."""
    return hashlib.sha256(_NONCE_LABEL + boot_id + hpke_public_key).digest()


def claims_digest(evidence: Evidence) -> bytes:
    """``gpu_claims_digest`` of the configuration: what the GPU said, under which certificates."""
    parts = (evidence.data, evidence.collateral.get(CERTIFICATES, b""))
    return hashlib.sha256(_DIGEST_LABEL + b"".join(prefixed(4, p) for p in parts)).digest()


def examine(
    materials: GpuMaterials,
    now_unix: int,
    nonce: bytes | None,
    policy: GpuPolicy | None,
    steps: Steps,
    roots: VendorRoots,
) -> Mapping[str, str]:
    """Claims of a genuine report, or ``EvidenceRejected``."""
    # 8.1 Report
    report = steps.run("8.1", parse_report, materials.report)
    # 8.2 Device certificate
    leaf = steps.run("8.2", _device_certificate, materials.certificates)
    # 8.3 Chain
    steps.run("8.3", _check_chain, leaf, materials, roots, now_unix)
    # 8.4 Firmware
    steps.run("8.4", _check_firmware, leaf, report)
    # 8.5 Signature
    steps.run("8.5", _check_signature, leaf, report)
    # 8.6 Nonce
    if nonce is None:
        steps.skip("8.6", "no nonce was given")
    else:
        steps.run("8.6", _check_nonce, report, nonce)
    # 8.7 Reference manifests
    if materials.rims or (policy is not None and policy.rim_required):
        demands_all = policy is not None and policy.rim_required
        steps.run("8.7", _check_rims, report, materials.rims, roots, now_unix, demands_all)
    else:
        steps.skip("8.7", "no manifest was given")
    # 8.8 Policy
    if policy is None:
        steps.skip("8.8", "no policy was given")
    else:
        steps.run("8.8", _check_versions, report, policy)
    return _claims(report, leaf)


def check(
    evidence: Evidence,
    config: NodeKeyConfig,
    now_unix: int,
    policy: GpuPolicy,
    roots: Callable[[], VendorRoots],
) -> Mapping[str, str]:
    """Claims of a bundle's GPU, bound to its configuration. Raises ``EvidenceRejected``."""
    names = set(evidence.collateral)
    if CERTIFICATES not in names or names - _COLLATERAL:
        raise rejected(
            "collateral_unexpected",
            "1",
            expected=f"{CERTIFICATES}, and perhaps {' and '.join(RIMS)}",
            actual=", ".join(sorted(evidence.collateral)) or "none",
        )
    if claims_digest(evidence) != config.gpu_claims_digest:
        raise rejected(
            "gpu_not_bound",
            "6",
            expected="the GPU's report that the keys name",
            actual="another report, or other certificates",
        )
    certificates, _ = read_pem(evidence.collateral[CERTIFICATES])
    nonce = gpu_nonce(config.boot_id, config.hpke_public_key)
    rims = tuple(evidence.collateral[name] for name in RIMS if name in names)
    materials = GpuMaterials(evidence.data, certificates, rims=rims)
    return examine(materials, now_unix, nonce, policy, Steps(STEP_NAMES), roots())


def _device_certificate(certificates: tuple[Certificate, ...]) -> Certificate:
    found = [one for one in certificates if one.path_length is None]
    if len(found) != 1:
        raise rejected(
            "device_certificate_missing",
            "2",
            expected="one certificate of a device",
            actual=f"{len(found)} among {len(certificates)}",
        )
    return found[0]


def _check_chain(
    leaf: Certificate, materials: GpuMaterials, roots: VendorRoots, now_unix: int
) -> str:
    anchors = Anchors(roots.nvidia, materials.certificates, materials.crls)
    return " <- ".join(one.name for one in build_path(leaf, anchors, now_unix))


def _check_firmware(leaf: Certificate, report: GpuReport) -> str:
    """The leaf's key belongs to the firmware that the boot ROM measured into its certificate."""
    claimed = report.opaque.get(nvidia_report.FWID)
    raw = leaf.extensions.get(_DICE_DEVICE_ID)
    if claimed is None or raw is None:
        return "not stated by both"
    if claimed != _firmware_id(raw):
        raise rejected(
            "firmware_mismatch",
            "4",
            expected="the firmware that the certificate names",
            actual=claimed.hex()[:32],
        )
    return f"firmware {claimed.hex()[:16]}..."


def _firmware_id(raw: bytes) -> bytes:
    """The digest in a TCG DICE composite device id: ``version, key, (hash, digest)``."""
    outer = DerReader(raw, _bad_dice)
    reader = outer.children(der.SEQUENCE, "the device id")
    outer.end("the device id")
    reader.integer("the device id's version")
    reader.element(der.SEQUENCE, "the device's key")
    firmware = reader.children(der.SEQUENCE, "the firmware id")
    reader.end("the device id")
    firmware.oid("the firmware id's hash")
    digest = firmware.element(der.OCTET_STRING, "the firmware id").content
    firmware.end("the firmware id")
    return digest


def _check_signature(leaf: Certificate, report: GpuReport) -> None:
    key = leaf.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise rejected("key_unsupported", "5", expected="a P-384 key", actual="another kind")
    r, s = report.signature[:48], report.signature[48:]
    signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    try:
        key.verify(signature, report.signed, ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise rejected(
            "evidence_signature", "5", expected="a valid signature", actual="one that is not"
        ) from error


def _check_nonce(report: GpuReport, nonce: bytes) -> None:
    if report.nonce != nonce:
        raise rejected(
            "nonce_mismatch",
            "6",
            expected=f"the nonce {nonce.hex()}",
            actual=report.nonce.hex(),
        )


def _check_rims(
    report: GpuReport,
    rims: tuple[bytes, ...],
    roots: VendorRoots,
    now_unix: int,
    demands_all: bool,
) -> str:
    """Each measurement as NVIDIA published it; with ``demands_all`` driver's and VBIOS's both."""
    found = tuple(read_rim(rim, roots.nvidia_rim, now_unix) for rim in rims)
    wanted = {report.driver_version, report.vbios_version.upper()} if demands_all else set()
    missing = sorted(wanted - {rim.version for rim in found})
    if missing:
        raise rejected(
            "rim_missing",
            "7",
            expected=f"the reference manifests of {' and '.join(missing)}",
            actual=", ".join(rim.version for rim in found) or "none",
            mend="The node carries them as rim_driver and rim_vbios, as NVIDIA publishes them.",
        )
    return compare(report, found)


def _check_versions(report: GpuReport, policy: GpuPolicy) -> str:
    for name, actual, accepted in (
        ("driver", report.driver_version, policy.drivers),
        ("vbios", report.vbios_version, policy.vbioses),
    ):
        if actual not in accepted:
            raise rejected(
                f"{name}_not_listed",
                "8",
                expected=f"one of {', '.join(sorted(accepted))}",
                actual=actual or "none",
            )
    return f"driver {report.driver_version}, VBIOS {report.vbios_version}"


def _claims(report: GpuReport, leaf: Certificate) -> dict[str, str]:
    values = b"".join(bytes((i,)) + value for i, value in sorted(report.measurements.items()))
    return {
        "gpu": leaf.name,
        "device_certificate_sha256": leaf.sha256,
        "driver_version": report.driver_version,
        "vbios_version": report.vbios_version,
        "board": "-".join(
            report.text(field)
            for field in (
                nvidia_report.PROJECT,
                nvidia_report.PROJECT_SKU,
                nvidia_report.CHIP_SKU,
            )
        ),
        "nonce": report.nonce.hex(),
        "measurements": str(len(report.measurements)),
        "measurements_sha256": hashlib.sha256(values).hexdigest(),
    }


def _bad_dice(what: str) -> EvidenceRejected:
    return rejected("certificate_extension", "4", expected="a DICE device id", actual=what)
