"""The trust policy with which clients accept this node: for its operator to hand out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from overspill.errors import UsageError
from overspill.trust.snp_report import tcb_components
from overspill.trust.template import dev_policy, pinned_policy, tpm_dev_policy
from overspill.trust.template_hardware import snp_policy_text, tdx_policy_text
from overspill_cloud.app import ModelSpec
from overspill_cloud.attester import open_attester
from overspill_cloud.attester.base import Attester
from overspill_cloud.attester.dev import UnsafeDevAttester
from overspill_cloud.attester.pinned import PinnedOperatorAttester
from overspill_cloud.attester.sev_snp import SevSnpAttester
from overspill_cloud.attester.tdx import TdxAttester
from overspill_cloud.models import measure


def client_policy(attester_kind: str, state: Path, models: Sequence[ModelSpec]) -> str:
    """TOML that names what vouches for the node, and the SHA-256 of each model file.

    Raises ``UsageError``, ``ConfigurationError`` or ``ModelNotFound``.
    """
    digests = {model.name: _digest(model) for model in models}
    if attester_kind.partition(":")[0] == "tpm":
        return tpm_dev_policy(_tpm_root(state), digests)
    attester = open_attester(attester_kind, state)
    try:
        return _policy_of(attester, digests)
    finally:
        attester.close()


def _policy_of(attester: Attester, digests: dict[str, bytes]) -> str:
    if isinstance(attester, SevSnpAttester):
        return _snp_policy(attester, digests)
    if isinstance(attester, TdxAttester):
        report = attester.quote().report
        return tdx_policy_text(report.mr_td, report.rtmrs[1], report.rtmrs[2], digests)
    if isinstance(attester, UnsafeDevAttester):
        return dev_policy(attester.root, digests)
    if isinstance(attester, PinnedOperatorAttester):
        return pinned_policy(attester.operator, digests)
    raise UsageError(
        f"A policy for {attester.evidence_type} evidence names who vouches: a node cannot know.",
        mend=f"Start from: overspill trust init --kind {attester.evidence_type} trust.toml",
    )


def _snp_policy(attester: SevSnpAttester, digests: dict[str, bytes]) -> str:
    """This very image and firmware: to be compared with what was released, before it is handed
    out."""
    report = attester.report()
    product = attester.product()
    tcb = tcb_components(product, report.reported_tcb)
    return snp_policy_text(product, report.measurement, tcb, digests)


def _tpm_root(state: Path) -> str:
    """The authority alone: the TPM itself may be in use by a running node."""
    from overspill_cloud.attester.tpm import AUTHORITY_FILE, AUTHORITY_KEY_FILE
    from overspill_cloud.attester.tpm_authority import UnsafeDevAuthority

    authority = UnsafeDevAuthority.from_files(state / AUTHORITY_KEY_FILE, state / AUTHORITY_FILE)
    return authority.root.public_bytes(Encoding.PEM).decode("ascii")


def _digest(model: ModelSpec) -> bytes:
    if model.measured_path is None:
        return hashlib.sha256(model.stands_for).digest()
    return measure(Path(model.measured_path)).sha256
