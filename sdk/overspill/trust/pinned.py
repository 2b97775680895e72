"""``pinned-operator``: an operator's pinned key vouches for a node that has no TEE.

For teams whose nodes are plain machines on their own network. It says who runs the node, not what
the node runs: it is called pinned, never attested, its assurance is SOFTWARE, and only a policy
that says ``min_assurance = "SOFTWARE"`` accepts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from overspill.trust.base import Subject, refuse_collateral
from overspill.trust.statement import StatementKind, check
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from overspill.trust.policy import TrustPolicy

TYPE: Final = "pinned-operator"
STATEMENT: Final = StatementKind(magic=b"OVSP", label=b"overspill/pinned-operator/v1")


class PinnedOperatorVerifier:
    """Accepts the word of an operator whose key the policy pins."""

    evidence_type = TYPE
    dev = False
    assurance = Assurance.SOFTWARE

    def check(self, evidence: Evidence, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
        """See :class:`~overspill.trust.base.EvidenceVerifier`."""
        refuse_collateral(evidence)
        statement = check(
            STATEMENT,
            evidence.data,
            subject,
            dev=False,
            keys=policy.operator_keys,
            unknown_key="operator_not_pinned",
            mend="Pin the operator's key in [pinned-operator] keys after comparing it by hand.",
        )
        return {"operator": statement.public_key.hex(), "kind": "pinned, not attested"}
