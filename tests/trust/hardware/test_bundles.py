"""Whole bundles of hardware nodes through the verifier, under a look-alike's roots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust import verifier
from overspill.trust.measured import Measured, MeasuredLog
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
def test_a_hardware_node_satisfies_attested(request, look_alikes, policy_of, at, kind):
    bundle = request.getfixturevalue(f"{kind}_bundle")
    policy = policy_of(bundle.evidence[0].type)
    remote = at(address="node.example:443", is_local=False, nonce=NONCE)
    result = verifier.verify(bundle, remote, policy)
    assert result.assurance is Assurance.HARDWARE_TEE
    assert result.satisfies_attested
    assert not result.dev
    assert [step.ok for step in result.steps] == [True] * 9


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


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_each_flipped_byte_of_a_bundle_is_refused_or_explained(
    request, look_alikes, policy_of, at, kind
):
    """The configuration, the evidence with its collateral, and the measured log."""
    bundle = request.getfixturevalue(f"{kind}_bundle")
    policy, context = policy_of(bundle.evidence[0].type), at(nonce=NONCE)
    accepted = []
    for where, place, changed in _flips(bundle):
        try:
            verifier.verify(changed, context, policy)
        except EvidenceRejected:
            continue
        accepted.append((where, place))
    assert [one for one in accepted if not _is_explained(bundle, *one)] == []


def _flips(bundle: EvidenceBundle):
    evidence = bundle.evidence[0]
    for place in range(0, len(bundle.node_key_config), 3):
        nkc = _flip(bundle.node_key_config, place)
        yield "nkc", place, replace(bundle, node_key_config=nkc)
    for place in range(0, len(evidence.data), 7):
        piece = replace(evidence, data=_flip(evidence.data, place))
        yield "evidence", place, replace(bundle, evidence=(piece,))
    for name, data in evidence.collateral.items():
        for place in range(0, len(data), 13):
            collateral = {**evidence.collateral, name: _flip(data, place)}
            piece = replace(evidence, collateral=collateral)
            yield name, place, replace(bundle, evidence=(piece,))
    for which, entry in enumerate(bundle.measured_log):
        for place in range(len(entry)):
            log = list(bundle.measured_log)
            log[which] = _flip(entry, place)
            yield f"log {which}", place, replace(bundle, measured_log=tuple(log))


def _flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _is_explained(bundle: EvidenceBundle, where: str, place: int) -> bool:
    """What may differ without a lie.

    PEM's base64 may be broken into lines by any space, and the root's copy in a quote is not what
    is trusted. A SEV-SNP report has no registers: of the measured log it binds models and settings,
    by the digests in the configuration, and neither the entries' names for people nor program and
    engine library, for which the launch measurement stands; a policy that pins those refuses.
    """
    evidence = bundle.evidence[0]
    if where == "evidence" and evidence.type == "tdx":
        start = evidence.data.rindex(b"-----BEGIN CERTIFICATE-----") - 26
        return place >= start or evidence.data[place : place + 1].isspace()
    if where == "tcb_signing_chain":
        return evidence.collateral[where][place : place + 1].isspace()
    if not where.startswith("log ") or evidence.type != "sev-snp":
        return False
    entry = bundle.measured_log[int(where.split()[1])]
    name_end = 3 + int.from_bytes(entry[1:3], "big")
    is_name = 3 <= place < name_end
    is_unbound = entry[0] in (Measured.WHEEL, Measured.ENGINE)
    return is_name or (is_unbound and name_end <= place < name_end + 32)


def test_a_bundle_is_small(tdx_bundle):
    evidence = tdx_bundle.evidence[0]
    size = len(tdx_bundle.node_key_config) + len(evidence.data)
    assert size + sum(map(len, evidence.collateral.values())) < 32 << 10
