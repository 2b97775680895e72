"""``dev-ed25519``: a software key says what a node runs. FOR DEVELOPMENT ONLY, proves nothing.

It has the shape of real evidence, so that the whole path can be tried without hardware, and five
things keep it from passing for real: its own label, its own type, ``Assurance.NONE``, a policy that
has to say ``dev_unsafe = true`` and name the key, and loopback addresses only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from overspill.trust.base import Subject, refuse_collateral, warn_of
from overspill.trust.statement import StatementKind, check
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from overspill.trust.policy import TrustPolicy

TYPE: Final = "dev-ed25519"
STATEMENT: Final = StatementKind(magic=b"OVSD", label=b"overspill/DEV-evidence/v1")


class UnsafeDevVerifier:
    """Accepts the word of a development key that the policy names."""

    evidence_type = TYPE
    dev = True
    assurance = Assurance.NONE

    def check(self, evidence: Evidence, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
        """See :class:`~overspill.trust.base.EvidenceVerifier`."""
        refuse_collateral(evidence)
        statement = check(
            STATEMENT,
            evidence.data,
            subject,
            dev=True,
            keys=policy.dev_roots,
            unknown_key="dev_root_unknown",
            mend="Name this node's development key in [dev-ed25519] roots, for loopback only.",
        )
        warn_of(TYPE)
        return {"dev_root": statement.public_key.hex()}
