"""NVIDIA: SPDM reports of a look-alike GPU, each wrong in its own way."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust import nvidia
from overspill.trust.nvidia_report import parse_report
from overspill.trust.raw import RawContext, appraise_raw
from overspill.trust.verifier import verify
from overspill.types.evidence import Assurance, Evidence

NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def gpu(makers):
    return makers.Nvidia()


@pytest.fixture(scope="module")
def policy(policy_of):
    return policy_of("sev-snp", "nvidia-gpu")


def files(gpu, **how) -> list[bytes]:
    return [gpu.report(NONCE, **how), gpu.chain]


def test_a_good_report(gpu, judge, policy):
    found = judge("nvidia", files(gpu), policy=policy, nonce=NONCE)
    assert found.verdict == "accepted", found.rejection
    assert found.assurance is Assurance.HARDWARE_TEE
    assert found.claims["driver_version"] == "570.00"
    assert found.claims["vbios_version"] == "96.00.9F.00.01"
    assert found.claims["board"] == "1010-0200-882"
    assert judge("nvidia", files(gpu)).verdict == "authentic"


def test_the_production_verifier_refuses_the_look_alike(gpu, makers):
    found = appraise_raw("nvidia", files(gpu), RawContext(makers.NOW), None)
    assert found.rejection.reason == "root_unknown"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"version": 0x12}, "evidence_missing"),
        ({"answer": 0x61}, "spdm_type"),
        ({"count": 3}, "spdm_malformed"),
        ({"count": 5}, "spdm_malformed"),
        ({"blocks": struct.pack("<BBHBH", 1, 2, 3, 1, 0), "count": 1}, "spdm_malformed"),
        ({"blocks": struct.pack("<BBHBH", 0, 1, 3, 1, 0), "count": 1}, "spdm_malformed"),
        ({"blocks": struct.pack("<BBHBH", 1, 1, 3, 1, 9), "count": 1}, "spdm_malformed"),
        ({"blocks": struct.pack("<BBHBH", 1, 1, 3, 1, 0) * 2, "count": 2}, "spdm_malformed"),
        ({"blocks": struct.pack("<BBHBHB", 1, 1, 4, 1, 0, 0), "count": 1}, "spdm_malformed"),
        ({"opaque_size": 0xFFFF}, "spdm_malformed"),
        ({"opaque_size": 3}, "spdm_malformed"),
        ({"fields": {20: bytes(48)}}, "firmware_mismatch"),
    ],
)
def test_malformed_reports(gpu, refused, how, reason):
    report, chain = files(gpu, **how)
    if reason == "evidence_missing":
        with pytest.raises(EvidenceRejected, match="spdm_version"):
            parse_report(report)
        return
    assert refused("nvidia", [report, chain]) == reason


def test_a_field_twice(gpu):
    report = bytearray(gpu.report(NONCE))
    at = bytes(report).index(struct.pack("<HH", 18, 5))
    report[at : at + 2] = struct.pack("<H", 17)
    with pytest.raises(EvidenceRejected, match="twice"):
        parse_report(bytes(report))


def test_cut_longer_or_huge(gpu):
    report = gpu.report(NONCE)
    for cut in range(0, len(report), 5):
        with pytest.raises(EvidenceRejected):
            parse_report(report[:cut])
    for longer in (report + b"\0", report + bytes(1 << 16)):
        with pytest.raises(EvidenceRejected):
            parse_report(longer)


def test_wrong_nonce(gpu, refused):
    assert refused("nvidia", files(gpu), nonce=bytes(32)) == "nonce_mismatch"


@pytest.mark.exhaustive
def test_each_byte_of_a_report_counts(gpu, makers, roots):
    report, chain = files(gpu)
    accepted = []
    for place in range(len(report)):
        flipped = bytearray(report)
        flipped[place] ^= 1
        found = appraise_raw("nvidia", [bytes(flipped), chain], RawContext(makers.NOW), None, roots)
        accepted += [place] if found.verdict != "rejected" else []
    assert accepted == []


def test_another_gpus_certificates(gpu, makers, refused):
    fake = makers.Nvidia("somebody else")
    assert refused("nvidia", [gpu.report(NONCE), fake.chain]) == "root_unknown"
    assert refused("nvidia", [gpu.report(NONCE), gpu.root.pem]) == "device_certificate_missing"


def test_a_signature_of_another_key(gpu, makers, refused):
    other = makers.Nvidia()
    other.leaf.seed = "another GPU"
    assert refused("nvidia", [other.report(NONCE), gpu.chain]) == "evidence_signature"
    other.leaf.curve = makers.P256
    assert refused("nvidia", [gpu.report(NONCE), other.chain]) == "key_unsupported"


@pytest.mark.parametrize("raw", [b"\x30\x00", b"\x30\x00\x00", b"\x04\x00"])
def test_the_device_id_is_read_strictly(makers, refused, raw):
    gpu = makers.Nvidia(device_id=raw)
    assert refused("nvidia", [gpu.report(NONCE), gpu.chain]) == "certificate_extension"


def test_a_report_that_states_no_firmware(gpu, judge):
    found = judge("nvidia", files(gpu, fields={20: None, 6: b"short"}))
    assert found.verdict == "authentic"
    assert found.claims["vbios_version"] == ""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"driver": "999"}, "driver_not_listed"),
        ({"vbios": bytes(8)}, "vbios_not_listed"),
        ({"vbios": b""}, "vbios_not_listed"),
    ],
)
def test_versions_that_are_not_listed(gpu, refused, policy, how, reason):
    assert refused("nvidia", files(gpu, **how), policy=policy) == reason


def test_text_fields_cannot_style_a_terminal(gpu, judge):
    found = judge("nvidia", files(gpu, driver="\x1b[2J1"))
    assert found.claims["driver_version"] == "?[2J1"


# --- beside a machine's evidence --------------------------------------------------------------


@pytest.fixture
def gpu_of(gpu, subject_of):
    """``gpu_of(boot_id)``: the GPU's evidence, and the configuration that names it."""

    def make(boot_id=bytes(16), collateral=None):
        config = subject_of().config
        data = gpu.report(nvidia.gpu_nonce(boot_id, config.hpke_public_key))
        evidence = Evidence("nvidia-gpu", data, collateral or {"certificates": gpu.chain})
        digest = nvidia.claims_digest(evidence)
        return evidence, replace(config, gpu_claims_digest=digest)

    return make


def check(evidence, config, makers, policy, roots) -> str:
    try:
        nvidia.check(evidence, config, makers.NOW, policy.gpu, lambda: roots)
    except EvidenceRejected as error:
        return error.reason
    return "accepted"


def test_a_bundles_gpu_is_bound_to_its_keys(gpu_of, makers, policy, roots):
    evidence, config = gpu_of()
    assert check(evidence, config, makers, policy, roots) == "accepted"
    elsewhere = replace(config, boot_id=b"\1" * 16)
    assert check(evidence, elsewhere, makers, policy, roots) == "nonce_mismatch"
    unnamed = replace(config, gpu_claims_digest=bytes(32))
    assert check(evidence, unnamed, makers, policy, roots) == "gpu_not_bound"
    bare, config = gpu_of(collateral={"x": b""})
    assert check(bare, config, makers, policy, roots) == "collateral_unexpected"


def test_a_bundle_says_gpu_everywhere_or_nowhere(pinned_node, at, gpu_of):
    evidence, config = gpu_of()
    plain = pinned_node.bundle()
    with_gpu = replace(plain, evidence=(*plain.evidence, evidence))
    claimed = pinned_node.bundle(gpu_claims_digest=config.gpu_claims_digest)
    beside = replace(claimed, evidence=(*claimed.evidence, evidence))
    wants = replace(pinned_node.policy, accept=frozenset({"pinned-operator", "nvidia-gpu"}))
    cases = (
        (with_gpu, pinned_node.policy, "evidence_type_not_accepted"),
        (plain, wants, "gpu_missing"),
        (with_gpu, wants, "gpu_claims"),
        (claimed, pinned_node.policy, "gpu_claims"),
        (replace(beside, gpu_claims_digest=bytes(32)), wants, "gpu_claims"),
        (replace(beside, evidence=(*beside.evidence, evidence)), wants, "evidence_count"),
        (replace(plain, evidence=(evidence,)), wants, "evidence_count"),
    )
    for bundle, policy, reason in cases:
        with pytest.raises(EvidenceRejected) as caught:
            verify(bundle, at(), policy)
        assert caught.value.reason == reason


def test_a_look_alike_gpu_does_not_pass_beside_a_real_machine(pinned_node, at, gpu_of, policy):
    evidence, config = gpu_of()
    claimed = pinned_node.bundle(gpu_claims_digest=config.gpu_claims_digest)
    beside = replace(claimed, evidence=(*claimed.evidence, evidence))
    accept = frozenset({"pinned-operator", "nvidia-gpu"})
    wants = replace(pinned_node.policy, accept=accept, gpu=policy.gpu)
    with pytest.raises(EvidenceRejected) as caught:
        verify(beside, at(), wants)
    assert caught.value.reason == "root_unknown"


def test_a_gpu_without_its_section(pinned_node, at, gpu_of):
    evidence, config = gpu_of()
    claimed = pinned_node.bundle(gpu_claims_digest=config.gpu_claims_digest)
    beside = replace(claimed, evidence=(*claimed.evidence, evidence))
    accept = frozenset({"pinned-operator", "nvidia-gpu"})
    with pytest.raises(EvidenceRejected) as caught:
        verify(beside, at(), replace(pinned_node.policy, accept=accept))
    assert caught.value.reason == "policy_section"
