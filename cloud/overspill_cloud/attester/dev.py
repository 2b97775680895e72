"""``dev-ed25519``: a development key says what runs here. Proves nothing to anybody."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.trust.dev import STATEMENT, TYPE
from overspill.trust.measured import log_digest
from overspill.trust.nkc import DEV, report_data
from overspill.types.evidence import Assurance, Evidence
from overspill_cloud.attester.keyfile import load_or_create_key


class UnsafeDevAttester:
    """Signs with a development key. Only a client on this machine whose policy names the key, and
    says ``dev_unsafe = true``, accepts that."""

    evidence_type = TYPE
    mode = DEV
    assurance = Assurance.NONE

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.root = private_key.public_key().public_bytes_raw()
        """The public key (32 bytes) that a policy has to name in ``[dev-ed25519] roots``."""

    @classmethod
    def from_file(cls, path: Path) -> UnsafeDevAttester:
        """With the key in ``path``, made there at first start."""
        return cls(load_or_create_key(path))

    def evidence(
        self, nkc_bytes: bytes, nonce: bytes | None, measured_log: tuple[bytes, ...]
    ) -> Evidence:
        """See :class:`~overspill_cloud.attester.base.Attester`."""
        report = report_data(nkc_bytes, nonce, dev=True)
        log_sha256 = log_digest(measured_log)
        data = STATEMENT.make(self.root, nonce, report, log_sha256, self._private_key.sign)
        return Evidence(TYPE, data)

    def close(self) -> None:
        """Nothing to let go of."""
