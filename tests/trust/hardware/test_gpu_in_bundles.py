"""A machine's evidence and its GPU's in one bundle, through all nine steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust import nvidia, verifier
from overspill.trust.nkc import report_data
from overspill.trust.snp import SevSnpVerifier
from overspill.types.evidence import Assurance, Evidence, EvidenceBundle

NONCE = bytes(range(32))


@dataclass(frozen=True)
class Machine:
    """A bundle of a SEV-SNP guest with a GPU, and the policy that accepts both."""

    bundle: EvidenceBundle
    policy: verifier.TrustPolicy
    digest: bytes


@pytest.fixture
def machine(makers, roots, pinned_node, policy_of, monkeypatch) -> Machine:
    registry = {**verifier.REGISTRY, "sev-snp": SevSnpVerifier(lambda: roots)}
    monkeypatch.setattr(verifier, "REGISTRY", MappingProxyType(registry))
    monkeypatch.setattr(verifier, "vendor_roots", lambda: roots)
    amd, gpu, draft = makers.Amd(), makers.Nvidia(), pinned_node.config()
    report = gpu.report(nvidia.gpu_nonce(draft.boot_id, draft.hpke_public_key))
    beside = Evidence("nvidia-gpu", report, {"certificates": gpu.chain})
    digest = nvidia.claims_digest(beside)
    nkc = pinned_node.config(gpu_claims_digest=digest).encode()
    own = Evidence(
        "sev-snp",
        amd.report(report_data(nkc, NONCE, dev=False)),
        {"vcek": amd.endorsement.der, "ask": amd.ask.der},
    )
    bundle = EvidenceBundle(nkc, (own, beside), measured_log=pinned_node.log)
    return Machine(bundle, policy_of("sev-snp", "nvidia-gpu"), digest)


def refusal(bundle, context, policy) -> EvidenceRejected:
    with pytest.raises(EvidenceRejected) as caught:
        verifier.verify(bundle, context, policy)
    return caught.value


def test_both_are_checked_and_claimed(machine, makers, at):
    result = verifier.verify(machine.bundle, at(nonce=NONCE), machine.policy)
    assert result.assurance is Assurance.HARDWARE_TEE
    assert result.evidence_type == "sev-snp"
    assert result.claims["gpu.driver_version"] == makers.DRIVER
    assert result.claims["measurement"] == makers.MEASUREMENT.hex()


def test_their_order_is_nothing(machine, at):
    turned = replace(machine.bundle, evidence=machine.bundle.evidence[::-1])
    first, second = (
        verifier.verify(bundle, at(nonce=NONCE), machine.policy)
        for bundle in (machine.bundle, turned)
    )
    assert first.claims == second.claims


def test_the_digest_beside_the_keys_is_theirs(machine, at):
    """A bundle may repeat the digest that its keys name, and no other."""
    repeated = replace(machine.bundle, gpu_claims_digest=machine.digest)
    verifier.verify(repeated, at(nonce=NONCE), machine.policy)
    error = refusal(
        replace(machine.bundle, gpu_claims_digest=bytes(32)), at(nonce=NONCE), machine.policy
    )
    assert (error.reason, error.step) == ("gpu_claims", "7")
    assert (error.expected, error.actual) == ("the digest that the keys name", "another")


def test_a_gpu_that_the_keys_do_not_name(machine, at, pinned_node, policy_of):
    nkc = pinned_node.config().encode()
    error = refusal(replace(machine.bundle, node_key_config=nkc), at(nonce=NONCE), machine.policy)
    assert (error.reason, error.step, error.actual) == (
        "gpu_claims",
        "7",
        "evidence without claims",
    )
    assert error.expected == "a GPU's claims where there is its evidence, and nowhere else"


def test_a_gpus_refusal_is_one_of_step_8(machine, at):
    own, beside = machine.bundle.evidence
    damaged = replace(beside, data=beside.data[:-1] + bytes([beside.data[-1] ^ 1]))
    error = refusal(
        replace(machine.bundle, evidence=(own, damaged)), at(nonce=NONCE), machine.policy
    )
    assert (error.reason, error.step) == ("gpu_not_bound", "8.6")


def test_a_policy_without_the_gpus_section(machine, at):
    error = refusal(machine.bundle, at(nonce=NONCE), replace(machine.policy, gpu=None))
    assert (error.reason, error.step) == ("policy_section", "8")
    assert (error.expected, error.actual) == ("a section [nvidia-gpu]", "none")
