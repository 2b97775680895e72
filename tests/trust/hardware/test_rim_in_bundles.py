"""NVIDIA's manifests beside a node's GPU evidence: compared wherever they are, and demanded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust import nvidia
from overspill.types.evidence import Evidence


@pytest.fixture
def judged(makers, roots, policy_of, pinned_node):
    """``judged({"rim_driver": ...}, required=True)``: "accepted", or the reason."""

    def run(rims: dict[str, bytes], *, required: bool) -> str:
        gpu, config = makers.Nvidia(), pinned_node.config()
        data = gpu.report(nvidia.gpu_nonce(config.boot_id, config.hpke_public_key))
        evidence = Evidence("nvidia-gpu", data, {"certificates": gpu.chain, **rims})
        config = replace(config, gpu_claims_digest=nvidia.claims_digest(evidence))
        section = (
            f'drivers = ["{makers.DRIVER}"]\nvbioses = ["{makers.VBIOS}"]\n'
            f"rim_required = {str(required).lower()}\n"
        )
        policy = policy_of("sev-snp", "nvidia-gpu", nvidia_gpu=section)
        try:
            nvidia.check(evidence, config, makers.NOW, policy.gpu, lambda: roots)
        except EvidenceRejected as error:
            return error.reason
        return "accepted"

    return run


@pytest.fixture
def both(makers):
    return {"rim_driver": makers.rim(), "rim_vbios": makers.rim(makers.VBIOS)}


@pytest.mark.parametrize("required", [True, False])
def test_manifests_that_fit_are_accepted(judged, both, required):
    assert judged(both, required=required) == "accepted"


@pytest.mark.parametrize("missing", ["rim_driver", "rim_vbios", "both"])
def test_a_policy_demands_both(judged, both, missing):
    kept = {} if missing == "both" else {k: v for k, v in both.items() if k != missing}
    assert judged(kept, required=True) == "rim_missing"
    assert judged(kept, required=False) == "accepted"


@pytest.mark.parametrize("required", [True, False])
def test_what_is_carried_is_compared_whether_demanded_or_not(judged, both, makers, required):
    wrong = makers.rim(values={0: bytes(48)})
    assert judged({**both, "rim_driver": wrong}, required=required) == "rim_measurement"
    fake = makers.rim(seed="somebody else")
    assert judged({**both, "rim_driver": fake}, required=required) == "root_unknown"


def test_two_of_one_kind_are_not_both_kinds(judged, makers):
    assert judged({"rim_driver": makers.rim(), "rim_vbios": makers.rim()}, required=True) == (
        "rim_missing"
    )


def test_other_collateral_is_refused(judged, both):
    assert judged({**both, "rim_more": b""}, required=False) == "collateral_unexpected"


def test_the_demand_is_yes_or_no(policy_of):
    with pytest.raises(ConfigurationError, match="rim_required"):
        policy_of(
            "sev-snp", "nvidia-gpu", nvidia_gpu='drivers=["1"]\nvbioses=["1"]\nrim_required=1'
        )
