"""The trust policy with which clients accept this node: for its operator to hand out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from overspill.errors import UsageError
from overspill.trust.template import dev_policy, pinned_policy, tpm_dev_policy
from overspill_cloud.app import ECHO, ModelSpec
from overspill_cloud.attester import open_attester
from overspill_cloud.attester.dev import UnsafeDevAttester
from overspill_cloud.attester.pinned import PinnedOperatorAttester
from overspill_cloud.models import measure


def client_policy(attester_kind: str, state: Path, models: Sequence[ModelSpec]) -> str:
    """TOML that names what vouches for the node, and the SHA-256 of each model file.

    Raises ``UsageError``, ``ConfigurationError`` or ``ModelNotFound``.
    """
    digests = {model.name: _digest(model) for model in models}
    if attester_kind.partition(":")[0] == "tpm":
        return tpm_dev_policy(_tpm_root(state), digests)
    attester = open_attester(attester_kind, state)
    if isinstance(attester, UnsafeDevAttester):
        return dev_policy(attester.root, digests)
    if isinstance(attester, PinnedOperatorAttester):
        return pinned_policy(attester.operator, digests)
    raise UsageError(f"There is no policy template for {attester.evidence_type} evidence.")


def _tpm_root(state: Path) -> str:
    """The authority alone: the TPM itself may be in use by a running node."""
    from overspill_cloud.attester.tpm import AUTHORITY_FILE, AUTHORITY_KEY_FILE
    from overspill_cloud.attester.tpm_authority import UnsafeDevAuthority

    authority = UnsafeDevAuthority.from_files(state / AUTHORITY_KEY_FILE, state / AUTHORITY_FILE)
    return authority.root.public_bytes(Encoding.PEM).decode("ascii")


def _digest(model: ModelSpec) -> bytes:
    return hashlib.sha256().digest() if model.source == ECHO else measure(Path(model.source)).sha256
