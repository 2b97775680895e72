"""``sev-snp``: an AMD SEV-SNP report under a VCEK or VLEK that chains to AMD's root.

Evidence data is the report, 1,184 bytes. Collateral: ``vcek`` or ``vlek`` (DER), and, where wanted,
``ask`` (DER; shipped for Milan, Genoa and Turin) and ``crl`` (DER).

The report's product decides which root counts; version 2 reports name none, so there the
endorsement key's own certificate does, which AMD signed. The caller is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from overspill.errors import EvidenceRejected
from overspill.trust import der
from overspill.trust.base import Subject, check_report_data, rejected
from overspill.trust.certificates import Certificate, Crl, parse_certificate, parse_crl
from overspill.trust.chain import Anchors, build_path, has_crl_for_each
from overspill.trust.der import DerReader
from overspill.trust.policy_vendors import SnpPolicy
from overspill.trust.roots import VendorRoots, vendor_roots
from overspill.trust.snp_report import (
    PRODUCTS,
    VCEK,
    VLEK,
    SnpReport,
    component_names,
    parse_report,
    tcb_components,
)
from overspill.trust.steps import Steps
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from overspill.trust.policy import TrustPolicy

TYPE: Final = "sev-snp"
STEP_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "8.1": "report: length, version, reserved fields, signature's numbers",
        "8.2": "product: from the report, else from the endorsement key",
        "8.3": "endorsement key: chain to AMD's root, validity, revocation",
        "8.4": "endorsement key: of this chip and this TCB",
        "8.5": "signature: ECDSA P-384 over the report",
        "8.6": "binding: report data",
        "8.7": "policy: debugging and migration off, VMPL 0, kind of report and key",
        "8.8": "policy: each TCB component at its floor or above",
        "8.9": "policy: measurement and chip are listed",
    }
)
SIGNATURE_STEPS: Final = ("8.1", "8.2", "8.3", "8.4", "8.5")

_AMD: Final = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME: Final = _AMD + "2"
_HWID: Final = _AMD + "4"
_CSP_ID: Final = _AMD + "5"
_TCB_OIDS: Final[Mapping[str, str]] = {
    "bootloader": _AMD + "3.1",
    "tee": _AMD + "3.2",
    "snp": _AMD + "3.3",
    "microcode": _AMD + "3.8",
    "fmc": _AMD + "3.9",
}
_TURIN_HWID_BYTES: Final = 8  # Turin's chip id is short; the report pads it with zeros
_KEY_NAMES: Final = {VCEK: "VCEK", VLEK: "VLEK"}


@dataclass(frozen=True, slots=True)
class SnpMaterials:
    """A report and what came along to check it."""

    report: bytes
    certificates: tuple[Certificate, ...]
    crls: tuple[Crl, ...] = ()


def examine(
    materials: SnpMaterials,
    now_unix: int,
    bind: Callable[[SnpReport], str] | None,
    policy: SnpPolicy | None,
    steps: Steps,
    roots: VendorRoots,
) -> Mapping[str, str]:
    """Claims of genuine evidence, or ``EvidenceRejected``; steps 8.6 to 8.9 run where they can."""
    # 8.1 Report
    report = steps.run("8.1", parse_report, materials.report)
    # 8.2 Product
    key = steps.run("8.2", _endorsement_key, report, materials.certificates)
    product = _product(report, key)
    # 8.3 Chain
    steps.run("8.3", _check_chain, key, product, materials, roots, now_unix, policy)
    # 8.4 Chip and TCB
    steps.run("8.4", _check_belongs, report, key, product)
    # 8.5 Signature
    steps.run("8.5", _check_signature, report, key)
    # 8.6 Binding
    if bind is None:
        steps.skip("8.6", "no nonce was given")
    else:
        steps.run("8.6", bind, report)
    # 8.7 to 8.9 Policy
    if policy is None:
        for number in ("8.7", "8.8", "8.9"):
            steps.skip(number, "no policy was given")
    else:
        steps.run("8.7", _check_guest, report, product, policy)
        steps.run("8.8", _check_floor, report, product, policy.min_tcb[product])
        steps.run("8.9", _check_listed, report, policy)
    return _claims(report, key, product)


class SevSnpVerifier:
    """Accepts guests on AMD's hardware whose measurement the policy lists."""

    evidence_type = TYPE
    dev = False
    assurance = Assurance.HARDWARE_TEE

    def __init__(self, roots: Callable[[], VendorRoots] = vendor_roots) -> None:
        self._roots = roots

    def check(self, evidence: Evidence, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
        """See :class:`~overspill.trust.base.EvidenceVerifier`."""
        if policy.snp is None:
            raise rejected("policy_section", "7", expected="a [sev-snp] section", actual="none")
        _check_unbound(policy)
        return examine(
            materials_of(evidence),
            subject.now_unix,
            lambda report: check_report_data(report.report_data, subject, step="6"),
            policy.snp,
            Steps(STEP_NAMES),
            self._roots(),
        )


def materials_of(evidence: Evidence) -> SnpMaterials:
    """Reads a bundle's piece of evidence. Reasons: ``collateral_unexpected``,
    ``certificate_malformed``."""
    names = frozenset(evidence.collateral)
    if not names <= {"vcek", "vlek", "ask", "crl"} or len(names & {"vcek", "vlek"}) != 1:
        raise rejected(
            "collateral_unexpected",
            "1",
            expected="vcek or vlek, and perhaps ask and crl",
            actual=", ".join(sorted(names)) or "none",
        )
    certificates = tuple(
        parse_certificate(evidence.collateral[name])
        for name in ("vcek", "vlek", "ask")
        if name in names
    )
    crls = (parse_crl(evidence.collateral["crl"]),) if "crl" in names else ()
    return SnpMaterials(evidence.data, certificates, crls)


def product_of(certificate: Certificate) -> str:
    """The product that AMD's certificate names. Reasons: ``certificate_extension``."""
    raw = certificate.extensions.get(_PRODUCT_NAME)
    if raw is None:
        raise _bad_extension("product name", "none")
    reader = DerReader(raw, lambda what: _bad_extension("product name", what))
    text = reader.element(der.IA5_STRING, "the product name").content.decode("latin-1")
    reader.end("the product name")
    product = text.partition("-")[0]  # a stepping may follow: "Milan-B0"
    if product not in PRODUCTS:
        raise _bad_extension("product name", text[:32])
    return product


def is_endorsement_key(certificate: Certificate) -> bool:
    """True for a VCEK or a VLEK: both carry AMD's extensions."""
    return _PRODUCT_NAME in certificate.extensions


def is_vlek(certificate: Certificate) -> bool:
    """True for an endorsement key that a cloud's provider loads: it names the provider."""
    return _CSP_ID in certificate.extensions


def _endorsement_key(report: SnpReport, certificates: tuple[Certificate, ...]) -> Certificate:
    """The one certificate of the kind of key that signed the report."""
    kind = _KEY_NAMES.get(report.signing_key)
    if kind is None:
        raise rejected(
            "signing_key", "2", expected="VCEK (0) or VLEK (1)", actual=str(report.signing_key)
        )
    keys = [one for one in certificates if is_endorsement_key(one)]
    of_kind = [one for one in keys if is_vlek(one) == (kind == "VLEK")]
    if len({one.der for one in of_kind}) != 1:
        raise rejected(
            f"{kind.lower()}_missing",
            "2",
            expected=f"one {kind}, which signed this report",
            actual=f"{len(of_kind)} among {len(certificates)} certificates",
            mend=f"Add the {kind} certificate that AMD's key service gives for this chip and TCB.",
        )
    return of_kind[0]


def _product(report: SnpReport, key: Certificate) -> str:
    endorsed, reported = product_of(key), report.product
    if reported is not None and reported != endorsed:
        raise rejected(
            "product_mismatch",
            "2",
            expected=f"a key for {reported}, which the report's CPUID fields name",
            actual=f"one for {endorsed}",
        )
    return endorsed


def _check_chain(
    key: Certificate,
    product: str,
    materials: SnpMaterials,
    roots: VendorRoots,
    now_unix: int,
    policy: SnpPolicy | None,
) -> str:
    """The path ends in the root of this very product."""
    ours = tuple(root for root in roots.amd if root.name == f"ARK-{product}")
    pool = (*materials.certificates, *roots.intermediates)
    path = build_path(key, Anchors(ours, pool, materials.crls), now_unix)
    if path[1].name not in (f"SEV-{product}", f"SEV-VLEK-{product}"):
        raise rejected("issuer_unexpected", "3", expected=f"SEV-{product}", actual=path[1].name)
    is_current = has_crl_for_each(path[1:], materials.crls)
    if policy is not None and not is_current:
        _check_crl_missing(path[-1], materials.crls, policy)
    names = " <- ".join(one.name for one in path)
    return f"{names}; {'not revoked' if is_current else f'no CRL of {path[-1].name} was given'}"


def _check_crl_missing(root: Certificate, others: tuple[Crl, ...], policy: SnpPolicy) -> None:
    """Whether a path may do without its CRL; another's in its place is never passed over."""
    if others:
        raise rejected(
            "crl_issuer", "3", expected=f"a CRL of {root.name}", actual=others[0].issuer_name
        )
    if policy.crl_required:
        raise rejected(
            "crl_missing", "3", expected="AMD's CRL ([sev-snp] crl_required)", actual="none"
        )


def _check_belongs(report: SnpReport, key: Certificate, product: str) -> str:
    """AMD derives a VCEK from chip and REPORTED_TCB; a VLEK knows the TCB alone."""
    if report.signing_key == VCEK:
        _check_chip(report, _hwid(key), product)
    reported = tcb_components(product, report.reported_tcb)
    for name in component_names(product):
        endorsed = _small_integer(key, _TCB_OIDS[name], name)
        if endorsed != reported[name]:
            raise rejected(
                "tcb_mismatch",
                "4",
                expected=f"a key for {name} {reported[name]}, as reported",
                actual=f"one for {name} {endorsed}",
            )
    chip = f"chip {report.chip_id.hex()[:16]}..."
    return chip if report.signing_key == VCEK else "a VLEK: the chip stays unnamed"


def _check_chip(report: SnpReport, hwid: bytes, product: str) -> None:
    size = _TURIN_HWID_BYTES if product == "Turin" else 64
    if len(hwid) != size or report.chip_id != hwid.ljust(64, b"\0"):
        raise rejected(
            "chip_id_mismatch",
            "4",
            expected=f"the key of chip {report.chip_id.hex()[:16]}...",
            actual=f"the key of chip {hwid.hex()[:16]}...",
        )


def _check_signature(report: SnpReport, key: Certificate) -> str:
    public = key.public_key
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp384r1":
        raise rejected("key_unsupported", "5", expected="a P-384 key", actual="another kind")
    if not _verifies(public, report.r, report.s, report.signed):
        if _verifies(public, report.r[::-1], report.s[::-1], report.signed):
            raise rejected(
                "signature_byte_order", "5", expected="r and s little-endian", actual="big-endian"
            )
        raise rejected(
            "evidence_signature", "5", expected="a valid signature", actual="one that is not"
        )
    return f"by the {_KEY_NAMES[report.signing_key]}"


def _verifies(key: ec.EllipticCurvePublicKey, r: bytes, s: bytes, message: bytes) -> bool:
    signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    try:
        key.verify(signature, message, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


def _check_guest(report: SnpReport, product: str, policy: SnpPolicy) -> str:
    kind = _KEY_NAMES[report.signing_key]
    demands = (
        ("guest_debug", not report.policy.debug, "a guest that nobody debugs", "DEBUG is set"),
        ("guest_migration", not report.policy.migration, "no migration agent", "MIGRATE_MA is set"),
        ("vmpl", report.vmpl == 0, "VMPL 0", f"VMPL {report.vmpl}"),
        (
            "product_not_accepted",
            product in policy.products,
            " or ".join(sorted(policy.products)),
            product,
        ),
        (
            "report_version_not_accepted",
            report.version in policy.report_versions,
            f"version {', '.join(map(str, sorted(policy.report_versions)))}",
            str(report.version),
        ),
        ("vlek_not_allowed", kind == "VCEK" or policy.vlek, "a report signed by a VCEK", kind),
    )
    for reason, holds, expected, actual in demands:
        if not holds:
            raise rejected(reason, "7", expected=expected, actual=actual)
    return f"{product}, report version {report.version}, {kind}"


def _check_floor(report: SnpReport, product: str, floor: Mapping[str, int]) -> str:
    """Component by component: a higher one makes up for nothing. What the guest was launched with
    and what the platform is committed to count as well as what is reported."""
    for what, raw in (
        ("reported", report.reported_tcb),
        ("current", report.current_tcb),
        ("committed", report.committed_tcb),
        ("launch", report.launch_tcb),
    ):
        for name, version in tcb_components(product, raw).items():
            if version < floor[name]:
                raise rejected(
                    "tcb_below_floor",
                    "8",
                    expected=f"{what} {name} at least {floor[name]}",
                    actual=str(version),
                    mend="The platform's firmware has to be updated.",
                )
    return ", ".join(f"{name} >= {least}" for name, least in floor.items())


def _check_listed(report: SnpReport, policy: SnpPolicy) -> str:
    if report.measurement not in policy.measurements:
        raise rejected(
            "measurement_not_listed",
            "9",
            expected="a measurement of [sev-snp] measurements",
            actual=report.measurement.hex(),
        )
    if policy.chips is not None and report.chip_id not in policy.chips:
        raise rejected(
            "chip_not_pinned",
            "9",
            expected="a chip of [sev-snp] chips",
            actual=report.chip_id.hex(),
        )
    return "any chip" if policy.chips is None else "a pinned chip"


def _check_unbound(policy: TrustPolicy) -> None:
    """A report has no registers: it binds settings and models, by the keys, but the entries for
    program and engine library not. A policy that pins those has to ask for a vTPM as well."""
    if policy.reference.wheels is not None or policy.reference.engines is not None:
        raise rejected(
            "log_not_bound",
            "9",
            expected="evidence with registers, for pinned wheels and engines",
            actual="a report, whose launch measurement stands for both",
            mend="List the launch measurement, and leave out [reference] wheels and engines.",
        )


def _claims(report: SnpReport, key: Certificate, product: str) -> dict[str, str]:
    tcb = tcb_components(product, report.reported_tcb)
    return {
        "tee": "SEV-SNP",
        "product": product,
        "report_version": str(report.version),
        "signing_key": _KEY_NAMES[report.signing_key],
        "endorsement_key_sha256": key.sha256,
        "chip_id": report.chip_id.hex(),
        "measurement": report.measurement.hex(),
        "report_data": report.report_data.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "vmpl": str(report.vmpl),
        "debug": str(report.policy.debug).lower(),
        "migration": str(report.policy.migration).lower(),
        "smt": str(report.policy.smt).lower(),
        "reported_tcb": ", ".join(f"{name} {version}" for name, version in tcb.items()),
    }


def _small_integer(certificate: Certificate, oid: str, name: str) -> int:
    raw = certificate.extensions.get(oid)
    if raw is None:
        raise _bad_extension(name, "none")
    reader = DerReader(raw, lambda what: _bad_extension(name, what))
    value = reader.integer(name)
    reader.end(name)
    return value


def _hwid(certificate: Certificate) -> bytes:
    """The chip's id: AMD writes it into the extension as it is, without a DER header."""
    raw = certificate.extensions.get(_HWID)
    if raw is None:
        raise _bad_extension("hwID", "none")
    return raw


def _bad_extension(name: str, what: str) -> EvidenceRejected:
    return rejected(
        "certificate_extension", "4", expected=f"AMD's extension for {name}", actual=what
    )
