"""The nine steps: what a result says, what each refusal demanded, and what was found."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust import verifier
from overspill.trust.policy import default_policy
from overspill.trust.verifier import STEP_NAMES, appraise, verify
from overspill.types.evidence import Assurance, Evidence

NOW = 1_800_000_000
RIVER = hashlib.sha256(b"river's weights").digest()
SETTINGS = hashlib.sha256(b'{"settings":1}').digest()


def said(bundle, context, policy) -> tuple[str, str, str, str, str]:
    with pytest.raises(EvidenceRejected) as caught:
        verify(bundle, context, policy)
    error = caught.value
    return error.reason, error.step, error.expected, error.actual, error.mend


def with_type(bundle, kind: str):
    return replace(bundle, evidence=(replace(bundle.evidence[0], type=kind),))


def test_a_result_is_what_the_bundle_proved(pinned_node, at):
    bundle, policy = pinned_node.bundle(), pinned_node.policy
    config = pinned_node.config()
    result = verify(bundle, at(), policy)
    proved = {name: getattr(result, name) for name in result.__dataclass_fields__}
    steps = proved.pop("steps")
    assert proved == {
        "assurance": Assurance.SOFTWARE,
        "evidence_type": "pinned-operator",
        "dev": False,
        "node_key_config": bundle.node_key_config,
        "nkc_sha256": hashlib.sha256(bundle.node_key_config).digest(),
        "kem_id": config.kem_id,
        "kdf_id": 1,
        "aead_id": 3,
        "hpke_public_key": pinned_node.pair.public_bytes,
        "receipt_public_key": pinned_node.receipt_key.public_bytes,
        "models_digest": config.models_digest,
        "config_digest": SETTINGS,
        "release_id": bytes(32),
        "boot_id": config.boot_id,
        "not_before": NOW - 60,
        "not_after": NOW + 3600,
        "accepted_until": NOW - 60 + 3600,
        "policy_sha256": policy.sha256,
        "claims": {
            "operator": pinned_node.root.hex(),
            "kind": "pinned, not attested",
            "model.river": RIVER.hex(),
            "wheel": hashlib.sha256(b"wheel").hexdigest(),
            "engine": hashlib.sha256(b"engine").hexdigest(),
            "config": SETTINGS.hex(),
        },
        "remember": None,
    }
    assert [(step.n, step.name, step.ok) for step in steps] == [
        (number, name, True) for number, name in STEP_NAMES.items()
    ]


def test_each_step_says_what_it_saw(pinned_node, at):
    steps = verify(pinned_node.bundle(), at(now_unix=NOW + 0.9), pinned_node.policy).steps
    assert {step.n: step.detail for step in steps} == {
        "1": "",
        "2": "",
        "3": "any address",
        "4": "KEM 0x647a, valid for 3540 s more",
        "5": "",
        "6": "not pinned by the policy: config, wheel, engine",
        "7": "no release demanded: reference values come from the policy",
        "8": "",
        "9": "SOFTWARE",
    }


def test_an_appraisal_has_the_result_or_the_refusal(pinned_node, at):
    bundle, policy = pinned_node.bundle(), pinned_node.policy
    good = appraise(bundle, at(), policy)
    assert good.rejection is None
    assert good.result == verify(bundle, at(), policy)
    assert good.steps == good.result.steps
    bad = appraise(bundle, at(nonce=None), policy)
    assert bad.result is None
    assert bad.rejection.reason == "nonce_required"
    assert [(step.n, step.name) for step in bad.steps] == list(STEP_NAMES.items())
    assert [step.ok for step in bad.steps] == [True, True, True, False, *[None] * 5]
    assert bad.steps[3].detail == bad.rejection.message


def test_the_clock_counts_whole_seconds(pinned_node, at):
    bundle = pinned_node.bundle(not_before=NOW)
    assert said(bundle, at(now_unix=NOW - 0.1), pinned_node.policy)[0] == "nkc_not_yet_valid"
    verify(bundle, at(now_unix=NOW + 0.1), pinned_node.policy)


@pytest.mark.parametrize(("machines", "gpus"), [(0, 0), (2, 0), (3, 1), (1, 2), (0, 1)])
def test_how_many_pieces_there_are(pinned_node, at, machines, gpus):
    bundle = pinned_node.bundle()
    gpu = Evidence("nvidia-gpu", b"report")
    pieces = (*bundle.evidence * machines, *(gpu,) * gpus)
    assert said(replace(bundle, evidence=pieces), at(), pinned_node.policy) == (
        "evidence_count",
        "2",
        "exactly one piece of the machine",
        f"{machines}, and {gpus} of a GPU",
        "",
    )


def test_a_gpu_has_to_be_asked_for(pinned_node, at):
    bundle, policy = pinned_node.bundle(), pinned_node.policy
    both = replace(bundle, evidence=(*bundle.evidence, Evidence("nvidia-gpu", b"report")))
    assert said(both, at(), policy) == (
        "evidence_type_not_accepted", "2", "no evidence of a GPU under trust.toml", "1", ""
    )  # fmt: skip
    asking = replace(policy, accept=policy.accept | {"nvidia-gpu"})
    assert said(bundle, at(), asking) == (
        "gpu_missing", "2", "evidence of a GPU under trust.toml", "0", ""
    )  # fmt: skip


def test_an_unknown_type_is_shown_in_part(pinned_node, at):
    bundle = with_type(pinned_node.bundle(), "x" * 65)
    assert said(bundle, at(), pinned_node.policy) == (
        "evidence_type_unknown", "2", "a known type", repr("x" * 64), ""
    )  # fmt: skip


def test_a_type_that_the_policy_does_not_name(pinned_node, at):
    policy = replace(pinned_node.policy, accept=frozenset({"tpm", "sev-snp"}))
    assert said(pinned_node.bundle(), at(), policy) == (
        "evidence_type_not_accepted",
        "2",
        "sev-snp or tpm under trust.toml",
        "pinned-operator",
        "Name the type in the trust policy's 'accept', with its section, if that is meant.",
    )


def test_development_evidence_needs_more_than_its_name_in_the_list(dev_node, at):
    bundle, default = dev_node.bundle(), default_policy()
    named = replace(default, accept=default.accept | {"dev-ed25519"})
    for policy in (default, named):
        assert said(bundle, at(), policy) == (
            "dev_evidence",
            "2",
            f"{policy.min_assurance.name} evidence under {policy.source}",
            "development evidence (dev-ed25519)",
            "Point to a real node; for a test on this machine, name a trust policy that says "
            "dev_unsafe = true and the node's development key.",
        )
    unnamed = replace(dev_node.policy, accept=frozenset({"pinned-operator"}))
    assert said(bundle, at(), unnamed)[0] == "evidence_type_not_accepted"


def test_what_has_to_be_closed_is_asked_in_step_6(pinned_node, at):
    demanding = replace(pinned_node.policy, closed=frozenset({"swap"}))
    assert said(pinned_node.bundle(), at(), demanding)[:4] == (
        "node_not_closed", "6", "a node that has closed swap", "one that says: nothing"
    )  # fmt: skip


def test_what_is_closed_is_claimed(pinned_node, at, log_of):
    settings = json.dumps({"closed": ["swap"]}).encode()
    bundle = pinned_node.bundle(
        log=log_of(pinned_node.models, settings), config_digest=hashlib.sha256(settings).digest()
    )
    demanding = replace(pinned_node.policy, closed=frozenset({"swap"}))
    assert verify(bundle, at(), demanding).claims["closed"] == "swap"


CLAIMS = "a GPU's claims where there is its evidence, and nowhere else"


def test_claims_of_a_gpu_without_its_evidence(pinned_node, at):
    digest = bytes([1] * 32)
    bundle = pinned_node.bundle(gpu_claims_digest=digest)
    for one in (bundle, replace(bundle, gpu_claims_digest=digest)):
        assert said(one, at(), pinned_node.policy) == (
            "gpu_claims", "7", CLAIMS, "claims without evidence", ""
        )  # fmt: skip
    loose = replace(pinned_node.bundle(), gpu_claims_digest=digest)
    assert said(loose, at(), pinned_node.policy) == (
        "gpu_claims", "7", "the digest that the keys name", "another", ""
    )  # fmt: skip


def test_the_floor_is_the_policys(pinned_node, at):
    for floor in (Assurance.HARDWARE_TPM, Assurance.HARDWARE_TEE):
        policy = replace(pinned_node.policy, min_assurance=floor)
        assert said(pinned_node.bundle(), at(), policy) == (
            "assurance_too_low", "9", f"at least {floor.name} under trust.toml", "SOFTWARE", ""
        )  # fmt: skip


def test_no_type_is_registered_under_anothers_name():
    for name, one in verifier.REGISTRY.items():
        assert one.evidence_type == name
        assert type(one).__name__.startswith("Unsafe") == one.dev
