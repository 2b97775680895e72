"""``pinned-operator``: the operator's key vouches for a node that has no TEE."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.trust.measured import log_digest
from overspill.trust.nkc import PRODUCTION, report_data
from overspill.trust.pinned import STATEMENT, TYPE
from overspill.types.evidence import Assurance, Evidence
from overspill_cloud.attester.keyfile import load_key


class PinnedOperatorAttester:
    """Signs with the operator's key. Clients that pinned it get assurance SOFTWARE: who runs the
    node, not what it runs."""

    evidence_type = TYPE
    mode = PRODUCTION
    assurance = Assurance.SOFTWARE

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.operator = private_key.public_key().public_bytes_raw()
        """The public key (32 bytes) that clients pin in ``[pinned-operator] keys``."""

    @classmethod
    def from_file(cls, path: Path) -> PinnedOperatorAttester:
        """With the operator's key, which has to be there: a pinned key is never made in passing."""
        return cls(load_key(path))

    def evidence(
        self, nkc_bytes: bytes, nonce: bytes | None, measured_log: tuple[bytes, ...]
    ) -> Evidence:
        """See :class:`~overspill_cloud.attester.base.Attester`."""
        report = report_data(nkc_bytes, nonce, dev=False)
        log_sha256 = log_digest(measured_log)
        data = STATEMENT.make(self.operator, nonce, report, log_sha256, self._private_key.sign)
        return Evidence(TYPE, data)

    def close(self) -> None:
        """Nothing to let go of."""
