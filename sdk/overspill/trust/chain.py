"""From a certificate to a vendor's root that ships with the package, and nothing else.

A path is found by name and signature, upwards, among the certificates that came along; it counts
only when it ends in one of ``roots``. All refusals carry step 8.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected
from overspill.trust.certificates import (
    BASIC_CONSTRAINTS,
    KEY_USAGE,
    Certificate,
    Crl,
    is_signed_by,
)

_STEP: Final = "3"
_MAX_DEPTH: Final = 8
_MAX_POOL: Final = 64
_KNOWN_CRITICAL: Final = frozenset({BASIC_CONSTRAINTS, KEY_USAGE, "2.5.29.37", "2.5.29.32"})
"""Critical extensions that are understood: constraints, usages and (without effect) policies."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """What a path is built from: trusted ``roots``, and what came along to be checked."""

    roots: tuple[Certificate, ...]
    pool: tuple[Certificate, ...] = ()
    crls: tuple[Crl, ...] = ()


def build_path(leaf: Certificate, anchors: Anchors, now_unix: int) -> tuple[Certificate, ...]:
    """The path from ``leaf`` to its root, both included, each valid at ``now_unix``.

    Reasons: ``root_unknown``, ``certificate_signature``, ``certificate_expired``,
    ``certificate_not_yet_valid``, ``issuer_not_authority``, ``certificate_extension``,
    ``certificate_revoked``, ``crl_expired``, ``crl_signature``.
    """
    if len(anchors.pool) > _MAX_POOL:
        raise _refusal("chain_too_long", f"at most {_MAX_POOL} certificates", len(anchors.pool))
    path = [leaf]
    while not _is_root(path[-1], anchors.roots):
        if len(path) > _MAX_DEPTH:
            raise _refusal("chain_too_long", f"at most {_MAX_DEPTH} certificates", len(path))
        path.append(_issuer(path[-1], anchors))
    for depth, certificate in enumerate(path):
        _check_validity(certificate, now_unix)
        _check_extensions(certificate)
        if depth:
            _check_authority(certificate, below=depth - 1)
    _check_revocation(path, anchors.crls, now_unix)
    return tuple(path)


def has_crl_for_each(path: Iterable[Certificate], crls: Iterable[Crl]) -> bool:
    """Whether every certificate of a path but its root has a CRL of its issuer."""
    issuers = {crl.issuer for crl in crls}
    return all(one.issuer in issuers for one in path if one.issuer != one.subject)


def check_crl(crl: Crl, issuer: Certificate, now_unix: int) -> None:
    """Reasons: ``crl_signature``, ``crl_expired``, ``issuer_not_authority``."""
    if not issuer.may_sign_crls:
        raise _refusal("issuer_not_authority", "an authority that signs CRLs", issuer.name)
    if not is_signed_by(crl.signature_algorithm, issuer.public_key, crl.signature, crl.tbs):
        raise _refusal("crl_signature", f"a CRL signed by {issuer.name}", "another signature")
    if not crl.this_update <= now_unix <= crl.next_update:
        raise _refusal(
            "crl_expired",
            f"a CRL of {crl.issuer_name} that is current at {moment(now_unix)}",
            f"one from {moment(crl.this_update)} to {moment(crl.next_update)}",
            "Fetch the current CRL from the vendor.",
        )


def moment(unix: int) -> str:
    """A time for people; any integer has one."""
    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{unix} s"


def _is_root(certificate: Certificate, roots: Iterable[Certificate]) -> bool:
    """Name and key decide: a vendor re-issues a root's certificate now and then."""
    return any(
        (root.subject, root.spki) == (certificate.subject, certificate.spki) for root in roots
    )


def _issuer(certificate: Certificate, anchors: Anchors) -> Certificate:
    named = [one for one in (*anchors.roots, *anchors.pool) if one.subject == certificate.issuer]
    is_self_signed = certificate.issuer == certificate.subject
    for one in named:
        if is_self_signed and one.spki == certificate.spki:
            continue  # its own issuer, and not among the roots
        if _signed(certificate, one):
            return one
    if named and not is_self_signed:
        raise _refusal(
            "certificate_signature", f"'{certificate.name}' signed by '{named[0].name}'",
            "another signature",
        )  # fmt: skip
    raise _refusal(
        "root_unknown",
        f"a chain to {' or '.join(sorted({root.name for root in anchors.roots}))}, as shipped",
        f"one that ends in '{certificate.name}' by '{certificate.issuer_name}' "
        f"(SHA-256 {certificate.sha256[:16]}...)",
        "Add the missing intermediate certificate, if there is one.",
    )


def _signed(certificate: Certificate, issuer: Certificate) -> bool:
    return is_signed_by(
        certificate.signature_algorithm, issuer.public_key, certificate.signature, certificate.tbs
    )


def _check_validity(certificate: Certificate, now_unix: int) -> None:
    if now_unix < certificate.not_before:
        raise _refusal(
            "certificate_not_yet_valid",
            f"'{certificate.name}' valid at {moment(now_unix)}",
            f"valid from {moment(certificate.not_before)}",
        )
    if now_unix > certificate.not_after:
        raise _refusal(
            "certificate_expired",
            f"'{certificate.name}' valid at {moment(now_unix)}",
            f"expired {moment(certificate.not_after)}",
        )


def _check_extensions(certificate: Certificate) -> None:
    if unknown := certificate.critical - _KNOWN_CRITICAL:
        raise _refusal(
            "certificate_extension",
            "critical extensions that are known",
            ", ".join(sorted(unknown)),
        )


def _check_authority(certificate: Certificate, below: int) -> None:
    length = certificate.path_length
    if length is None or length < below or not certificate.may_sign_certificates:
        raise _refusal(
            "issuer_not_authority",
            f"an authority over {below} more",
            f"'{certificate.name}', which is none",
        )


def _check_revocation(path: list[Certificate], crls: Iterable[Crl], now_unix: int) -> None:
    """Every CRL of an authority in the path counts: it is checked, and so is who it names."""
    for certificate, issuer in zip(path, [*path[1:], path[-1]], strict=True):
        for crl in crls:
            if crl.issuer != certificate.issuer:
                continue
            check_crl(crl, issuer, now_unix)
            if certificate.serial in crl.revoked:
                raise _refusal(
                    "certificate_revoked",
                    f"'{certificate.name}' not revoked",
                    f"serial {certificate.serial:#x} in the CRL of {crl.issuer_name}",
                )


def _refusal(reason: str, expected: str, actual: object, mend: str = "") -> EvidenceRejected:
    return rejected(reason, _STEP, expected=expected, actual=str(actual), mend=mend)
