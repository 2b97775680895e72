"""Verification by a client that remembers the logs which it has seen.

The verifier is pure: what this client knows goes in with the context, and what it has to keep comes
out with the result, or with a refusal that is evidence of a split view.
"""

from __future__ import annotations

from dataclasses import replace

from overspill.errors import SplitView
from overspill.state.log_state import LogStateStore
from overspill.trust.policy import TrustPolicy
from overspill.trust.verifier import Appraisal, Context, appraise, verify
from overspill.types.evidence import AttestationResult, EvidenceBundle


def verify_remembering(
    bundle: EvidenceBundle, context: Context, policy: TrustPolicy, store: LogStateStore
) -> AttestationResult:
    """As ``verify``, against what is remembered of the policy's log, and remembering more.

    Raises ``EvidenceRejected``; ``SplitView`` once the evidence is kept; ``ConfigurationError``
    when the memory cannot be used.
    """
    try:
        result = verify(bundle, _recalling(context, policy, store), policy)
        if result.remember is not None:
            store.remember(result.remember)
    except SplitView as split:
        store.keep_evidence(split, int(context.now_unix))
        raise
    return result


def appraise_remembering(
    bundle: EvidenceBundle, context: Context, policy: TrustPolicy, store: LogStateStore
) -> Appraisal:
    """As ``appraise``, in the same way."""
    appraisal = appraise(bundle, _recalling(context, policy, store), policy)
    if isinstance(appraisal.rejection, SplitView):
        store.keep_evidence(appraisal.rejection, int(context.now_unix))
    if appraisal.result is not None and appraisal.result.remember is not None:
        store.remember(appraisal.result.remember)
    return appraisal


def _recalling(context: Context, policy: TrustPolicy, store: LogStateStore) -> Context:
    if policy.log is None:
        return context
    return replace(context, memory=store.recall(policy.log.origin))
