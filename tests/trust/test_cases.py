"""The named tampering cases of the trust protocol's first phase: each with its reason."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected, TransportError
from overspill.sealing.hpke import KEM_X25519, NodeKeyPair
from overspill.trust.measured import ModelEntry, ModelsManifest
from overspill.trust.policy import default_policy
from overspill.trust.reference import check_answering_model
from overspill.trust.verifier import verify
from overspill.types.evidence import Assurance, Evidence, EvidenceBundle

NOW = 1_800_000_000
OTHER = hashlib.sha256(b"other weights").digest()
RIVER = hashlib.sha256(b"river's weights").digest()


def refused(bundle: EvidenceBundle, context, policy, reason: str) -> EvidenceRejected:
    with pytest.raises(EvidenceRejected) as caught:
        verify(bundle, context, policy)
    assert caught.value.reason == reason, str(caught.value)
    assert caught.value.step
    assert caught.value.expected
    assert caught.value.actual
    assert not isinstance(caught.value, TransportError)
    return caught.value


def test_a_good_bundle_is_accepted(node, at):
    result = verify(node.bundle(), at(), node.policy)
    assert result.hpke_public_key == node.pair.public_bytes
    assert result.receipt_public_key == node.receipt_key.public_bytes
    assert result.nkc_sha256 == hashlib.sha256(result.node_key_config).digest()
    assert result.accepted_until == NOW - 60 + 3600
    assert result.policy_sha256 == node.policy.sha256
    assert result.claims["model.river"] == RIVER.hex()
    assert [step.n for step in result.steps] == [str(n) for n in range(1, 10)]
    assert not result.satisfies_attested


# --- freshness and binding --------------------------------------------------------------------


def test_t1_wrong_nonce(node, at):
    refused(node.bundle(bytes([1] * 32)), at(), node.policy, "nonce_mismatch")


def test_t2_zero_nonce_in_challenge_mode(node, at):
    refused(node.bundle(None), at(), node.policy, "nonce_zero")
    refused(node.bundle(bytes(32)), at(), node.policy, "nonce_zero")
    refused(node.bundle(bytes(32)), at(nonce=bytes(32)), node.policy, "nonce_invalid")
    refused(node.bundle(b""), at(nonce=b""), node.policy, "nonce_invalid")
    refused(node.bundle(None), at(nonce=None), node.policy, "nonce_required")


def test_evidence_without_nonce_needs_witnesses(node, at):
    """A policy without a log: what nobody cosigned is not taken for fresh."""
    policy = replace(node.policy, freshness="witnesses")
    refused(node.bundle(None), at(nonce=None), policy, "freshness_unproven")


def test_t6_report_data_under_the_other_label(node, at):
    bundle = node.bundle(label_dev=not node.dev)
    refused(bundle, at(), node.policy, "report_data_label")


def test_t7_one_byte_of_the_nkc_changed(node, at):
    good = node.bundle()
    boot_id_at = len(good.node_key_config) - 33
    nkc = bytearray(good.node_key_config)
    nkc[boot_id_at] ^= 1
    refused(replace(good, node_key_config=bytes(nkc)), at(), node.policy, "nkc_not_bound")


def test_t8_nkc_not_canonical(node, at):
    good = node.bundle()
    longer = replace(good, node_key_config=good.node_key_config + b"\0")
    refused(longer, at(), node.policy, "nkc_not_canonical")
    shorter = replace(good, node_key_config=good.node_key_config[:-1])
    refused(shorter, at(), node.policy, "nkc_malformed")


def test_t9_bundle_stolen_for_another_key(node, at):
    thief = NodeKeyPair.generate()
    stolen = node.bundle()
    mine = node.config(hpke_public_key=thief.public_bytes).encode()
    refused(replace(stolen, node_key_config=mine), at(), node.policy, "nkc_not_bound")


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"not_after": NOW}, "nkc_expired"),
        ({"not_before": NOW - 3600, "not_after": NOW - 1}, "nkc_expired"),
        ({"not_before": NOW + 1}, "nkc_not_yet_valid"),
        ({"not_before": NOW - 60, "not_after": NOW - 60 + 24 * 3600 + 1}, "nkc_lifetime"),
        ({"not_before": NOW, "not_after": NOW}, "nkc_lifetime"),
        ({"not_before": NOW, "not_after": NOW - 1}, "nkc_lifetime"),
        ({"not_before": 0, "not_after": 2**64 - 1}, "nkc_lifetime"),
        ({"not_before": NOW - 3600, "not_after": NOW + 3600}, "nkc_too_old"),
    ],
)
def test_t10_nkc_expired_not_yet_valid_or_too_long(node, at, times, reason):
    refused(node.bundle(**times), at(), node.policy, reason)


def test_t10_a_policy_may_ask_for_younger_keys(node, at):
    policy = replace(node.policy, max_age_s=60)
    refused(node.bundle(), at(), policy, "nkc_too_old")
    assert verify(node.bundle(not_before=NOW - 59), at(), policy).accepted_until == NOW + 1


def test_a_full_day_is_not_too_long(node, at):
    verify(node.bundle(not_before=NOW, not_after=NOW + 24 * 3600), at(), node.policy)


# --- keys -------------------------------------------------------------------------------------


def test_t35_kem_downgraded(node, at):
    node.pair = NodeKeyPair.generate(KEM_X25519)
    refused(node.bundle(), at(), node.policy, "kem_not_accepted")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kdf_id": 2}, "suite_unsupported"),
        ({"aead_id": 1}, "suite_unsupported"),
        ({"hpke_public_key": bytes(32)}, "hpke_key_length"),
        ({"freshness_anchor_sha256": bytes([1] * 32)}, "anchor_mismatch"),
        ({"release_id": bytes([1] * 32)}, "release_malformed"),
        ({"gpu_claims_digest": bytes([1] * 32)}, "gpu_claims"),
    ],
)
def test_what_cannot_be_verified_is_refused(node, at, changes, reason):
    refused(node.bundle(**changes), at(), node.policy, reason)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"release": b"x"}, "release_unbound"),
        ({"release_proof": b"x"}, "release_unbound"),
        ({"gpu_claims_digest": bytes(32)}, "gpu_claims"),
        ({"freshness_anchor": b"x"}, "anchor_mismatch"),
    ],
)
def test_nothing_unbound_travels_along(node, at, part, reason):
    refused(replace(node.bundle(), **part), at(), node.policy, reason)


# --- measurements -----------------------------------------------------------------------------


def manifest(*models: ModelEntry) -> ModelsManifest:
    return ModelsManifest(models)


def test_t45_model_swapped(node, at):
    """The node says what it serves, and the policy expects something else."""
    node.models = manifest(ModelEntry("river", OTHER, OTHER, OTHER))
    error = refused(node.bundle(), at(), node.policy, "model_digest")
    assert OTHER.hex() in error.actual


@pytest.mark.parametrize("field", ["tokenizer_sha256", "template_sha256"])
def test_t45_tokenizer_or_template_swapped(node, at, field):
    node.models = manifest(replace(ModelEntry("river", RIVER, RIVER, RIVER), **{field: OTHER}))
    refused(node.bundle(), at(), node.policy, "model_digest")


def test_t45_model_swapped_behind_the_evidence(node, at, log_of):
    """The node's keys are bound to one list of models, its log shows another."""
    swapped = log_of(manifest(ModelEntry("river", OTHER, OTHER, OTHER)))
    refused(node.bundle(log=swapped), at(), node.policy, "models_digest_mismatch")


def test_t45_a_second_model(node, at):
    node.models = manifest(
        ModelEntry("river", RIVER, RIVER, RIVER), ModelEntry("other", OTHER, OTHER, OTHER)
    )
    refused(node.bundle(), at(), node.policy, "model_not_listed")


def test_t45_an_adapter_that_is_not_listed(node, at):
    node.models = manifest(ModelEntry("river", RIVER, RIVER, RIVER, (("tuned", OTHER),)))
    refused(node.bundle(), at(), node.policy, "adapter_not_listed")
    listed = replace(node.policy.reference, adapters={"river/tuned": OTHER})
    verify(node.bundle(), at(), replace(node.policy, reference=listed))


def test_t45_the_answering_model_is_another_than_the_evidence_names(node, at):
    result = verify(node.bundle(), at(), node.policy)
    check_answering_model(result, "river", RIVER)
    for name, digest in (("river", OTHER), ("other", RIVER)):
        with pytest.raises(EvidenceRejected) as caught:
            check_answering_model(result, name, digest)
        assert caught.value.reason == "model_not_attested"


def test_a_caller_may_ask_for_more_than_the_policy(node, at):
    verify(node.bundle(), at(expected_models={"river": RIVER}), node.policy)
    for wanted in ({"river": OTHER}, {"other": RIVER}):
        refused(node.bundle(), at(expected_models=wanted), node.policy, "expected_model_missing")


def test_a_node_without_models_is_refused(node, at):
    node.models = manifest()
    refused(node.bundle(), at(), node.policy, "no_models")


def test_t46_config_swapped(node, at, log_of):
    swapped = log_of(node.models, b'{"settings":2}')
    refused(node.bundle(log=swapped), at(), node.policy, "config_digest_mismatch")
    digest = hashlib.sha256(b'{"settings":2}').digest()
    listed = replace(node.policy.reference, configs=frozenset({digest}))
    refused(node.bundle(), at(), replace(node.policy, reference=listed), "config_not_listed")


@pytest.mark.parametrize("kind", ["wheels", "engines"])
def test_program_and_engine_can_be_pinned(node, at, kind):
    right = hashlib.sha256({"wheels": b"wheel", "engines": b"engine"}[kind]).digest()
    for digests, passes in ((frozenset({right, OTHER}), True), (frozenset({OTHER}), False)):
        reference = replace(node.policy.reference, **{kind: digests})
        policy = replace(node.policy, reference=reference)
        if passes:
            verify(node.bundle(), at(), policy)
        else:
            refused(node.bundle(), at(), policy, f"{kind[:-1]}_not_listed")


def test_t47_an_extra_measured_file(node, at):
    log = node.log
    for extra in (log[0], b"\x09" + log[0][1:]):
        refused(node.bundle(log=(*log, extra)), at(), node.policy, "extra_measurement")


def test_a_missing_measurement_is_refused(node, at):
    for missing in range(4):
        log = node.log[:missing] + node.log[missing + 1 :]
        refused(node.bundle(log=log), at(), node.policy, "measured_log_malformed")


def test_the_log_is_what_was_signed(node, at, log_of):
    bundle = node.bundle()
    swapped = bundle.measured_log[0].replace(b"overspill 1", b"overspill 2")
    other = replace(bundle, measured_log=(swapped, *bundle.measured_log[1:]))
    refused(other, at(), node.policy, "log_not_bound")


# --- who vouches ------------------------------------------------------------------------------


def test_another_key_does_not_vouch(node, at):
    stranger = type(node)(node.kind, node.evidence_type, node.dev)
    reason = "dev_root_unknown" if node.dev else "operator_not_pinned"
    refused(stranger.bundle(), at(), node.policy, reason)


def test_a_claimed_key_needs_its_signature(node, at):
    """Somebody else's statement under the trusted key's name."""
    stranger = type(node)(node.kind, node.evidence_type, node.dev)
    bundle = stranger.bundle()
    data = bundle.evidence[0].data
    forged = data[:5] + node.root + data[37:]
    evidence = Evidence(node.evidence_type, forged)
    refused(replace(bundle, evidence=(evidence,)), at(), node.policy, "evidence_signature")


def test_one_kind_of_statement_is_not_another(dev_node, pinned_node, at):
    """The dev key's statement, relabelled as the operator's, with the very same key pinned."""
    dev_node.key = pinned_node.key
    nkc = pinned_node.config().encode()
    statement = dev_node.evidence(nkc, at().nonce, pinned_node.log, label_dev=False)
    for data, reason in (
        (statement.data, "evidence_malformed"),
        (b"OVSP" + statement.data[4:], "evidence_signature"),
    ):
        bundle = EvidenceBundle(
            nkc, (Evidence("pinned-operator", data),), measured_log=pinned_node.log
        )
        refused(bundle, at(), pinned_node.policy, reason)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("sev-snp", "evidence_type_not_accepted"),
        ("tdx", "evidence_type_not_accepted"),
        ("tpm", "evidence_type_not_accepted"),
        ("nvidia-gpu", "evidence_count"),
        ("", "evidence_type_unknown"),
        ("DEV-ED25519", "evidence_type_unknown"),
        ("dev-ed25519 ", "evidence_type_unknown"),
        ("made-up", "evidence_type_unknown"),
    ],
)
def test_a_type_without_a_verifier_is_refused_by_name(node, at, kind, reason):
    """The bytes would verify under another type: nothing is tried in turn."""
    bundle = node.bundle()
    renamed = replace(bundle.evidence[0], type=kind)
    refused(replace(bundle, evidence=(renamed,)), at(), node.policy, reason)


@pytest.mark.parametrize("count", [0, 2])
def test_exactly_one_piece_of_evidence(node, at, count):
    bundle = node.bundle()
    refused(replace(bundle, evidence=bundle.evidence * count), at(), node.policy, "evidence_count")


def test_collateral_that_nobody_reads_is_refused(node, at):
    bundle = node.bundle()
    extra = replace(bundle.evidence[0], collateral={"x": b""})
    refused(replace(bundle, evidence=(extra,)), at(), node.policy, "collateral_unexpected")


# --- pinned is SOFTWARE, and says so ----------------------------------------------------------


def test_pinned_is_software_and_never_attested(pinned_node, at):
    result = verify(pinned_node.bundle(), at(), pinned_node.policy)
    assert result.assurance is Assurance.SOFTWARE
    assert not result.dev
    assert not result.satisfies_attested
    assert "attested" not in result.claims["kind"].replace("not attested", "")


def test_pinned_counts_from_anywhere(pinned_node, at):
    remote = at(address="node.example:443", is_local=False)
    assert verify(pinned_node.bundle(), remote, pinned_node.policy).assurance is Assurance.SOFTWARE


def test_pinned_under_the_default_policy_is_refused(pinned_node, at):
    refused(pinned_node.bundle(), at(), default_policy(), "evidence_type_not_accepted")


def test_pinned_under_a_higher_floor_is_refused(pinned_node, at):
    policy = replace(pinned_node.policy, min_assurance=Assurance.HARDWARE_TPM)
    refused(pinned_node.bundle(), at(), policy, "assurance_too_low")
