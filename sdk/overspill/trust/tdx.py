"""``tdx``: an Intel TDX quote whose keys chain to Intel's root, on a platform with a known TCB.

Evidence data is the quote, without a byte after it. Collateral: ``tcb_info`` and ``qe_identity``
(Intel's signed JSON), ``root_crl`` and ``pck_crl`` (DER), and, where wanted, ``tcb_signing_chain``
(PEM; Intel's current certificate ships with the package).

From root to report: Intel's root certifies the platform's PCK; the PCK signed the quoting enclave's
report; that report names the attestation key; the attestation key signed the quote. The measured
log replays into RTMR3: each entry's SHA-384 is extended there, from zero.
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
from cryptography.hazmat.primitives.hashes import SHA256

from overspill.trust import tdx_collateral as intel
from overspill.trust.base import Subject, at_step, check_report_data, rejected
from overspill.trust.certificates import Certificate, Crl, PublicKey, parse_crl, read_pem
from overspill.trust.chain import Anchors, build_path, has_crl_for_each
from overspill.trust.measured import MeasuredLog
from overspill.trust.policy_vendors import TdxPolicy
from overspill.trust.roots import VendorRoots, vendor_roots
from overspill.trust.steps import Steps
from overspill.trust.tdx_collateral import QeIdentity, TcbInfo, TcbLevel
from overspill.trust.tdx_pck import SGX_EXTENSION, Platform, platform_of
from overspill.trust.tdx_quote import Quote, TdReport, parse_quote
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from overspill.trust.policy import TrustPolicy

TYPE: Final = "tdx"
STEP_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "8.1": "quote: versions, kinds, lengths",
        "8.2": "quote: nothing follows it",
        "8.3": "PCK: chain to Intel's root, validity, revocation",
        "8.4": "quoting enclave: report signed by the PCK, names the attestation key",
        "8.5": "signature: ECDSA P-256 by the attestation key",
        "8.6": "collateral: signed by Intel, current",
        "8.7": "quoting enclave: as Intel publishes it",
        "8.8": "TCB: the platform's and the module's status",
        "8.9": "binding: report data",
        "8.10": "policy: debugging and migration off",
        "8.11": "policy: TCB status is accepted",
        "8.12": "policy: measurements and platform are listed; RTMR3 replays",
    }
)

_TCB_SIGNER: Final = "Intel SGX TCB Signing"
_COLLATERAL: Final = frozenset({"tcb_info", "qe_identity", "root_crl", "pck_crl"})
_SIGNING_CHAIN: Final = "tcb_signing_chain"
_NO_COLLATERAL: Final = "no collateral was given"


@dataclass(frozen=True, slots=True)
class TdxMaterials:
    """A quote and what came along to check it; documents as Intel's service sends them."""

    quote: bytes
    tcb_info: bytes | None = None
    qe_identity: bytes | None = None
    certificates: tuple[Certificate, ...] = ()
    crls: tuple[Crl, ...] = ()


@dataclass(frozen=True, slots=True)
class TdxDemands:
    """What the caller wants beyond a genuine quote. ``is_strict`` refuses missing collateral, and
    bytes after the quote other than the zeros of a fixed buffer; ``is_exact`` those too."""

    policy: TdxPolicy | None = None
    bind: Callable[[TdReport], str] | None = None
    log: MeasuredLog | None = None
    is_strict: bool = True
    is_exact: bool = True


@dataclass(slots=True)
class _Status:
    """What the collateral said, as far as it was there."""

    platform: Platform
    level: TcbLevel | None = None
    qe_level: TcbLevel | None = None
    evaluation: int | None = None

    @property
    def status(self) -> str | None:
        """The platform's status with module and enclave merged in; None without collateral."""
        if self.level is None or self.qe_level is None:
            return None
        return intel.merged(self.level.status, self.qe_level.status)


def examine(
    materials: TdxMaterials,
    now_unix: int,
    demands: TdxDemands,
    steps: Steps,
    roots: VendorRoots,
) -> Mapping[str, str]:
    """Claims of a genuine quote, or ``EvidenceRejected``; later steps run where they can."""
    # 8.1 and 8.2 Quote
    quote = steps.run("8.1", parse_quote, materials.quote)
    steps.run("8.2", _check_trailing, quote.trailing, demands)
    # 8.3 PCK
    pool = (*_certificates(quote), *materials.certificates, *roots.intermediates)
    anchors = Anchors(roots.intel, pool, materials.crls)
    pck = _pck(quote)
    steps.run("8.3", _check_chain, pck, anchors, now_unix, demands.is_strict)
    status = _Status(platform_of(pck))
    # 8.4 Quoting enclave
    steps.run("8.4", _check_qe_report, quote, pck)
    # 8.5 Signature
    steps.run("8.5", _check_signature, quote)
    # 8.6 to 8.8 Collateral
    _examine_collateral(quote, materials, anchors, now_unix, demands, steps, status)
    # 8.9 Binding
    report = quote.report
    if demands.bind is None:
        steps.skip("8.9", "no nonce was given")
    else:
        steps.run("8.9", demands.bind, report)
    # 8.10 to 8.12 Policy
    if demands.policy is None:
        for number in ("8.10", "8.11", "8.12"):
            steps.skip(number, "no policy was given")
    else:
        steps.run("8.10", _check_attributes, report)
        steps.run("8.11", _check_status, status, demands.policy)
        steps.run("8.12", _check_listed, report, status.platform, demands.policy, demands.log)
    return _claims(quote, status)


class TdxVerifier:
    """Accepts guests on Intel's hardware whose measurements the policy lists."""

    evidence_type = TYPE
    dev = False
    assurance = Assurance.HARDWARE_TEE

    def __init__(self, roots: Callable[[], VendorRoots] = vendor_roots) -> None:
        self._roots = roots

    def check(self, evidence: Evidence, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
        """See :class:`~overspill.trust.base.EvidenceVerifier`."""
        if policy.tdx is None:
            raise rejected("policy_section", "10", expected="a [tdx] section", actual="none")
        demands = TdxDemands(
            policy=policy.tdx,
            bind=lambda report: check_report_data(report.report_data, subject, step="9"),
            log=subject.log,
        )
        return examine(
            materials_of(evidence), subject.now_unix, demands, Steps(STEP_NAMES), self._roots()
        )


def materials_of(evidence: Evidence) -> TdxMaterials:
    """Reads a bundle's piece of evidence. Reasons: ``collateral_unexpected``,
    ``certificate_malformed``."""
    given = evidence.collateral
    if set(given) - {_SIGNING_CHAIN} != _COLLATERAL:
        raise rejected(
            "collateral_unexpected",
            "1",
            expected=", ".join(sorted(_COLLATERAL)),
            actual=", ".join(sorted(given)) or "none",
        )
    certificates, _ = at_step("6", read_pem, given.get(_SIGNING_CHAIN, b""))
    crls = tuple(parse_crl(given[name]) for name in ("root_crl", "pck_crl"))
    return TdxMaterials(evidence.data, given["tcb_info"], given["qe_identity"], certificates, crls)


def _check_trailing(trailing: bytes, demands: TdxDemands) -> str:
    """Hosts hand out quotes in buffers of a fixed size; what follows is signed by nobody."""
    is_refused = demands.is_exact or (demands.is_strict and any(trailing))
    if trailing and is_refused:
        raise rejected(
            "quote_trailing", "2", expected="the end of the quote", actual=f"{len(trailing)} bytes"
        )
    return f"{len(trailing)} unsigned bytes after it are ignored" if trailing else ""


def _certificates(quote: Quote) -> tuple[Certificate, ...]:
    found, _ = read_pem(quote.pck_chain)
    return found


def _pck(quote: Quote) -> Certificate:
    """The one certificate in the quote that carries a platform."""
    found = [one for one in _certificates(quote) if SGX_EXTENSION in one.extensions]
    if len(found) != 1:
        raise rejected(
            "pck_missing", "3", expected="one PCK certificate in the quote", actual=str(len(found))
        )
    return found[0]


def _check_chain(pck: Certificate, anchors: Anchors, now_unix: int, is_strict: bool) -> str:
    path = build_path(pck, anchors, now_unix)
    has_crls = has_crl_for_each(path, anchors.crls)
    if is_strict and not has_crls:
        raise rejected(
            "crl_missing",
            "3",
            expected="the CRLs of Intel's root and PCK authority",
            actual="not both",
        )
    names = " <- ".join(one.name for one in path)
    return f"{names}; {'not revoked' if has_crls else 'CRLs are missing'}"


def _check_qe_report(quote: Quote, pck: Certificate) -> None:
    if not _verifies(pck.public_key, quote.qe_signature, quote.qe_report.raw):
        raise rejected(
            "qe_report_signature", "4", expected="a report signed by the PCK", actual="another"
        )
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    if quote.qe_report.report_data != bound.ljust(64, b"\0"):
        raise rejected(
            "ak_not_bound",
            "4",
            expected="the attestation key that the quoting enclave reports",
            actual="another key",
        )


def _check_signature(quote: Quote) -> None:
    raw = quote.attestation_key
    x, y = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError as error:
        raise rejected(
            "key_unsupported", "5", expected="a point of P-256", actual="none"
        ) from error
    if not _verifies(key, quote.signature, quote.signed):
        raise rejected(
            "evidence_signature", "5", expected="a valid signature", actual="one that is not"
        )


def _examine_collateral(
    quote: Quote,
    materials: TdxMaterials,
    anchors: Anchors,
    now_unix: int,
    demands: TdxDemands,
    steps: Steps,
    status: _Status,
) -> None:
    """Steps 8.6 to 8.8, each as far as its document is there."""
    has_none = materials.tcb_info is None and materials.qe_identity is None
    if has_none and not demands.is_strict:
        for number in ("8.6", "8.7", "8.8"):
            steps.skip(number, _NO_COLLATERAL)
        return
    info, identity = steps.run(
        "8.6", _open_collateral, materials, anchors, now_unix, demands.is_strict
    )
    if identity is None:
        steps.skip("8.7", _NO_COLLATERAL)
    else:
        status.qe_level = steps.run("8.7", intel.check_qe, quote.qe_report, identity)
    if info is None:
        steps.skip("8.8", _NO_COLLATERAL)
    else:
        status.evaluation = info.evaluation
        status.level = steps.run("8.8", _platform_level, info, status, quote.report)


def _platform_level(info: TcbInfo, status: _Status, report: TdReport) -> TcbLevel:
    """A revoked platform's keys are no longer its own: that needs no policy."""
    level = intel.platform_status(info, status.platform, report)
    merged = intel.merged(level.status, status.qe_level.status if status.qe_level else "UpToDate")
    if merged == "Revoked":
        raise rejected("tcb_revoked", "8", expected="a TCB that is not revoked", actual=merged)
    return level


def _open_collateral(
    materials: TdxMaterials, anchors: Anchors, now_unix: int, is_strict: bool
) -> tuple[TcbInfo | None, QeIdentity | None]:
    """Verifies and reads the documents that are there."""
    for name in ("tcb_info", "qe_identity"):
        if is_strict and getattr(materials, name) is None:
            raise rejected(
                f"{name}_missing",
                "6",
                expected="Intel's TCB info and QE identity",
                actual="not both",
                mend="Give them as collateral, as Intel's service sends them.",
            )
    info, identity = None, None
    if materials.tcb_info is not None:
        signed = intel.cut_out(materials.tcb_info, "tcbInfo")
        _check_signed("tcb_info", signed, anchors, now_unix)
        info = intel.read_tcb_info(signed.body)
        intel.check_current(info, "tcb_info", now_unix)
    if materials.qe_identity is not None:
        signed = intel.cut_out(materials.qe_identity, "enclaveIdentity")
        _check_signed("qe_identity", signed, anchors, now_unix)
        identity = intel.read_qe_identity(signed.body)
        intel.check_current(identity, "qe_identity", now_unix)
    return info, identity


def _check_signed(
    name: str, document: intel.SignedDocument, anchors: Anchors, now_unix: int
) -> None:
    """One of Intel's signing certificates signed these bytes, and it chains to the root."""
    signers = [one for one in anchors.pool if one.name == _TCB_SIGNER]
    signed = [s for s in signers if _verifies(s.public_key, document.signature, document.body)]
    if not signed:
        raise rejected(
            f"{name}_signature",
            "6",
            expected=f"a signature by '{_TCB_SIGNER}'",
            actual=f"none by {len(signers)} certificates of that name",
        )
    # Re-issued certificates share their key: any that is good now will do.
    current = [one for one in signed if one.not_before <= now_unix <= one.not_after]
    at_step("6", build_path, (current or signed)[0], anchors, now_unix)


def _verifies(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """ECDSA P-256 with SHA-256 over r || s."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _check_attributes(report: TdReport) -> None:
    if report.debug:
        raise rejected(
            "td_debug", "10", expected="a guest that nobody debugs", actual="a TUD bit is set"
        )
    if report.migratable or any(report.mr_service_td):
        raise rejected(
            "td_migration", "10", expected="a guest that stays", actual="one that may migrate"
        )


def _check_status(status: _Status, policy: TdxPolicy) -> str:
    actual = status.status or "unknown"
    if actual not in policy.statuses:
        advisories = ", ".join(status.level.advisories) if status.level else ""
        raise rejected(
            "tcb_status",
            "11",
            expected=" or ".join(sorted(policy.statuses)),
            actual=f"{actual} ({advisories})" if advisories else actual,
            mend="The platform's firmware has to be updated.",
        )
    return actual


def _check_listed(
    report: TdReport, platform: Platform, policy: TdxPolicy, log: MeasuredLog | None
) -> str:
    if policy.fmspcs is not None and platform.fmspc not in policy.fmspcs:
        raise rejected(
            "platform_not_pinned",
            "12",
            expected="a platform of [tdx] fmspcs",
            actual=platform.fmspc.hex(),
        )
    listed = [("mrtd", report.mr_td, policy.mrtd), ("mr_seam", report.mr_seam, policy.mr_seam)]
    listed += [
        (f"rtmr{index}", report.rtmrs[index], values)
        for index, values in sorted(policy.rtmrs.items())
    ]
    for name, actual, accepted in listed:
        if accepted is not None and actual not in accepted:
            raise rejected(
                "measurement_not_listed",
                "12",
                expected=f"a value of [tdx] {name}",
                actual=actual.hex(),
            )
    if log is not None and report.rtmrs[3] != log.replay_rtmr():
        raise rejected(
            "log_not_replayed",
            "12",
            expected="the RTMR3 that this log leads to",
            actual=report.rtmrs[3].hex(),
        )
    return "RTMR3 replays" if log is not None else "no measured log was given"


def _claims(quote: Quote, status: _Status) -> dict[str, str]:
    report = quote.report
    claims = {
        "tee": "TDX",
        "quote_version": str(quote.version),
        "td_report": "1.5" if report.mr_service_td else "1.0",
        "fmspc": status.platform.fmspc.hex(),
        "mrtd": report.mr_td.hex(),
        "mr_seam": report.mr_seam.hex(),
        "report_data": report.report_data.hex(),
        "debug": str(report.debug).lower(),
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
        "tcb_status": status.status or "unknown: collateral is missing",
    }
    claims |= {f"rtmr{index}": value.hex() for index, value in enumerate(report.rtmrs)}
    if status.level:
        claims["tcb_date"] = status.level.date
        claims["advisories"] = ", ".join(status.level.advisories)
        claims["tcb_evaluation"] = str(status.evaluation)
    return claims
