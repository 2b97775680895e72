"""Whole bundles of hardware nodes through the verifier, under a look-alike's roots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected
from overspill.receipt_records import Verdict
from overspill.trust import verifier
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import report_data
from overspill.trust.policy import default_policy
from overspill.trust.snp import SevSnpVerifier
from overspill.trust.tdx import TdxVerifier
from overspill.types.evidence import Assurance, Evidence, EvidenceBundle

NONCE = bytes(range(32))


@pytest.fixture
def look_alikes(monkeypatch, roots):
    """The registry with the look-alikes' roots instead of the vendors'."""
    verifiers = (SevSnpVerifier(lambda: roots), TdxVerifier(lambda: roots))
    registry = {**verifier.REGISTRY, **{one.evidence_type: one for one in verifiers}}
    monkeypatch.setattr(verifier, "REGISTRY", registry)


@pytest.fixture
def snp_bundle(makers, pinned_node) -> EvidenceBundle:
    amd = makers.Amd()
    nkc = pinned_node.config().encode()
    report = amd.report(report_data(nkc, NONCE, dev=False))
    collateral = {"vcek": amd.endorsement.der, "ask": amd.ask.der}
    evidence = Evidence("sev-snp", report, collateral)
    return EvidenceBundle(nkc, (evidence,), measured_log=pinned_node.log)


@pytest.fixture
def tdx_bundle(makers, pinned_node) -> EvidenceBundle:
    intel = makers.Intel()
    nkc = pinned_node.config().encode()
    rtmr3 = MeasuredLog.decode(pinned_node.log).replay_rtmr()
    rtmrs = (bytes(48), b"\1" * 48, b"\2" * 48, rtmr3)
    quote = intel.quote(report_data(nkc, NONCE, dev=False), rtmrs=rtmrs)
    return EvidenceBundle(
        nkc, (Evidence("tdx", quote, intel.collateral()),), measured_log=pinned_node.log
    )


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_a_hardware_node_satisfies_attested(request, look_alikes, policy_of, makers, at, kind):
    bundle = request.getfixturevalue(f"{kind}_bundle")
    policy = policy_of(bundle.evidence[0].type)
    remote = at(address="node.example:443", is_local=False, nonce=NONCE)
    result = verifier.verify(bundle, remote, policy)
    assert result.assurance is Assurance.HARDWARE_TEE
    assert result.satisfies_attested
    assert not result.dev
    assert [step.ok for step in result.steps] == [True] * 9
    assert Verdict.of(result).measurement == makers.MEASUREMENT.hex()  # what receipts name


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_without_the_look_alikes_roots_it_is_refused(request, policy_of, at, kind):
    bundle = request.getfixturevalue(f"{kind}_bundle")
    policy = policy_of(bundle.evidence[0].type)
    for some in (policy, default_policy()):
        with pytest.raises(EvidenceRejected):
            verifier.verify(bundle, at(nonce=NONCE), some)


def test_one_vendors_evidence_is_not_anothers(look_alikes, snp_bundle, policy_of, at):
    renamed = replace(snp_bundle.evidence[0], type="tdx")
    bundle = replace(snp_bundle, evidence=(renamed,))
    with pytest.raises(EvidenceRejected, match="collateral_unexpected"):
        verifier.verify(bundle, at(nonce=NONCE), policy_of("sev-snp", "tdx"))


def test_a_bundle_is_small(tdx_bundle):
    evidence = tdx_bundle.evidence[0]
    size = len(tdx_bundle.node_key_config) + len(evidence.data)
    assert size + sum(map(len, evidence.collateral.values())) < 32 << 10
