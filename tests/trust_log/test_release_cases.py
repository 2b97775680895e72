"""The named tampering cases of releases and logs, each with its reason, over whole bundles."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected, LogInvalid, SplitView, TransportError
from overspill.trust.freshness import ANCHOR_MAX_AGE_S
from overspill.trust.log.cosignature import open_cosigned
from overspill.trust.log.merkle import leaf_hash
from overspill.trust.log.note import COSIGNATURE_V1, ED25519, Note, SignerKey
from overspill.trust.log.proof import TlogProof
from overspill.trust.measured import ModelEntry, ModelsManifest
from overspill.trust.release import Released, check_measurements
from overspill.trust.release_envelope import Envelope, key_id_of, pae
from overspill.trust.verifier import verify
from overspill.types.evidence import Assurance, EvidenceBundle
from overspill.types.transparency import LogMemory, SplitEvidence

NOW = 1_800_000_000
OTHER = hashlib.sha256(b"other weights").digest()


def refused(bundle: EvidenceBundle, context, policy, reason: str, step: str) -> EvidenceRejected:
    with pytest.raises(EvidenceRejected) as caught:
        verify(bundle, context, policy)
    assert caught.value.reason == reason, str(caught.value)
    assert caught.value.step == step
    assert caught.value.expected
    assert caught.value.actual
    assert not isinstance(caught.value, TransportError)
    return caught.value


def test_a_released_logged_and_witnessed_node_is_accepted(world, at):
    bundle, policy = world.bundle(), world.policy()
    result = verify(bundle, at(), policy)
    assert result.release_id == hashlib.sha256(Envelope.parse(bundle.release).payload).digest()
    assert result.claims["release"] == "1.0"
    assert result.claims["release_seq"] == "7"
    remember = result.remember
    assert (remember.origin, remember.size) == (world.log_key.name, len(world.entries))
    assert (remember.release_seq, remember.security_floor_seq) == (7, 5)
    assert "cosigned by Alice, Bob, Carol" in result.steps[6].detail


# Freshness ---------------------------------------------------------------------------------------


def test_t3_beacon_too_old(world, at):
    policy, newest = world.policy(), NOW - 60 - ANCHOR_MAX_AGE_S
    for age, accepted in ((0, True), (1, False)):
        made = type(world)()
        anchor = made.checkpoint(made_head(made), at=newest - age)
        bundle = made.bundle(anchor=anchor, proof=None)
        if accepted:
            verify(bundle, at(), policy)
        else:
            error = refused(bundle, at(), policy, "anchor_stale", "4")
            assert error.expected == f"a checkpoint cosigned after {newest}"
            assert error.actual == f"one cosigned {ANCHOR_MAX_AGE_S + age} s before the keys"
            assert error.mend.startswith("The node has to show a newer one")


def made_head(world):
    """The log's head once its release is in it."""
    world.entries.append(world.envelope().encode())
    return world.head()


def test_t3_the_newest_cosignature_counts(world, at):
    head = made_head(world)
    old = Note.parse(world.checkpoint(head, at=NOW - 7200, witnesses=("Alice", "Bob")))
    new = Note.parse(world.checkpoint(head, at=NOW - 100, witnesses=("Carol",)))
    anchor = Note(old.text, (*old.signatures, new.signatures[1])).encode()
    verify(world.bundle(anchor=anchor), at(), world.policy())


def test_t4_beacon_not_cosigned(world, at):
    anchor = world.checkpoint(made_head(world), witnesses=())
    policy = world.policy()
    error = refused(world.bundle(anchor=anchor), at(), policy, "not_cosigned", "4")
    with pytest.raises(LogInvalid) as caught:
        open_cosigned(anchor, policy.log, NOW)
    theirs = caught.value
    assert (error.reason, error.expected, error.actual, error.mend) == (
        theirs.reason, theirs.expected, theirs.actual, theirs.mend
    )  # fmt: skip


def test_t4_no_beacon_at_all(world, at):
    bundle = world.bundle(anchor=b"")
    error = refused(bundle, at(), world.policy(), "freshness_unproven", "4")
    assert error.expected == "a checkpoint by a log and its witnesses under trust.toml"
    assert error.actual == "no checkpoint"
    assert error.mend.startswith("Name [release] and [log] with witnesses")
    nothing = world.policy(witnesses="", freshness='freshness = "nonce"', log=no_quorum(world))
    unseen = replace(nothing, freshness="witnesses")
    refused(bundle, at(), unseen, "freshness_unproven", "4")
    refused(world.bundle(), at(), unseen, "freshness_unproven", "4")  # nobody's word to go by


def no_quorum(world) -> str:
    return f'[log]\nkey = "{world.log_key.verifier}"'


def test_a_beacon_that_the_keys_do_not_name(world, at):
    bundle = world.bundle()
    other = replace(bundle, freshness_anchor=world.checkpoint(at=NOW - 60))
    refused(other, at(), world.policy(), "anchor_mismatch", "4")


def test_a_beacon_of_another_tree_than_the_release_is_in(world, at):
    earlier = world.checkpoint()  # before the release was appended
    verify(world.bundle(anchor=earlier), at(), world.policy())
    made = type(world)()
    bundle = made.bundle()
    made.entries.append(b"one more")
    ahead = made.bundle(anchor=made.checkpoint(), proof=bundle.release_proof)
    refused(ahead, at(), made.policy(), "consistency_missing", "7")


def test_a_beacon_that_contradicts_the_proof_is_a_split_view(world, at):
    proof = world.bundle().release_proof
    fork = type(world)(entries=[b"another", *world.entries[1:]])
    bundle = world.bundle(anchor=fork.checkpoint(), proof=proof)
    error = refused(bundle, at(), world.policy(), "split_view", "7")
    assert isinstance(error, SplitView)


def test_stale_is_refused_and_a_nonce_policy_asks_for_one(world, at):
    policy = world.policy(freshness='freshness = "nonce"')
    refused(world.bundle(), at(), policy, "nonce_required", "4")


# Signatures and sequence -------------------------------------------------------------------------


def test_t49_sequence_lower_than_seen(world, at):
    memory = LogMemory(world.log_key.name, release_seq=8)
    refused(world.bundle(), at(memory=memory), world.policy(), "release_rollback", "7")
    seen = LogMemory(world.log_key.name, release_seq=7)
    assert verify(world.bundle(), at(memory=seen), world.policy()).remember.release_seq == 7


def test_t50_under_the_floor(world, at):
    low = world.envelope(world.manifest(release_seq=5))
    error = refused(world.bundle(low), at(), world.policy(), "release_under_floor", "7")
    assert "6" in error.expected
    floor = LogMemory(world.log_key.name, security_floor_seq=8)
    refused(world.bundle(), at(memory=floor), world.policy(), "release_under_floor", "7")


def test_t51_one_signature_short(world, at):
    refused(world.bundle(world.envelope(signers=1)), at(), world.policy(), "release_threshold", "7")
    refused(world.bundle(world.envelope(signers=0)), at(), world.policy(), "release_threshold", "7")


def test_t51_one_key_twice_counts_once(world, at):
    once = world.envelope(signers=1)
    (only,) = once.signatures
    for twin in (only, replace(only, key_id=""), replace(only, key_id="another name")):
        twice = replace(once, signatures=(only, twin))
        refused(world.bundle(twice), at(), world.policy(), "release_threshold", "7")


def test_t51_a_strangers_signature_does_not_count(world, at):
    stranger = type(world)(keys=(world.operator,))
    made = stranger.envelope(signers=1)
    both = replace(world.envelope(signers=1), signatures=(*made.signatures, *made.signatures))
    refused(world.bundle(both), at(), world.policy(), "release_threshold", "7")


def test_a_false_signature_of_a_known_key_refuses_all(world, at):
    good = world.envelope(signers=3)
    wrong = replace(good.signatures[2], signature=bytes(64))
    changed = replace(good, signatures=(*good.signatures[:2], wrong))
    refused(world.bundle(changed), at(), world.policy(), "release_signature", "7")


def test_a_key_id_is_a_hint_only(world, at):
    """Other tools name keys in other ways, or not at all."""
    good = world.envelope()
    unnamed = replace(good, signatures=tuple(replace(s, key_id="") for s in good.signatures))
    verify(world.bundle(unnamed), at(), world.policy())


def test_t52_dsse_payload_type_confused(world, at):
    """Signed as another type, under either label."""
    other = world.envelope(payload_type="application/vnd.example+json")
    refused(world.bundle(other), at(), world.policy(), "dsse_payload_type", "7")
    relabelled = replace(other, payload_type="application/vnd.in-toto+json")
    refused(world.bundle(relabelled), at(), world.policy(), "release_signature", "7")


@pytest.mark.parametrize("field", ["_type", "predicateType"])
def test_t52_a_statement_about_something_else(world, at, field):
    statement = json.loads(world.manifest().encode())
    statement[field] = "https://slsa.dev/provenance/v1"
    other = world.envelope(payload=json.dumps(statement).encode())
    refused(world.bundle(other), at(), world.policy(), "statement_type", "7")


def test_t53_manifest_expired(world, at):
    for not_after, accepted in ((NOW + 1, True), (NOW, False)):
        made = type(world)()
        bundle = made.bundle(made.envelope(made.manifest(not_after=not_after)))
        if accepted:
            result = verify(bundle, at(), made.policy())
            assert result.accepted_until == NOW + 1
        else:
            refused(bundle, at(), made.policy(), "release_expired", "7")


def test_the_keys_have_to_name_the_release(world, at):
    bundle = world.bundle(release_id=bytes([1] * 32))
    refused(bundle, at(), world.policy(), "release_id_mismatch", "7")
    nothing = replace(world.bundle(release_id=bytes(32)), release=b"", release_proof=b"")
    refused(nothing, at(), world.policy(), "release_missing", "7")
    refused(world.bundle(release_id=bytes(32)), at(), world.policy(), "release_unbound", "7")


# The log -----------------------------------------------------------------------------------------


def test_t54_proof_for_the_neighbour_leaf(world, at):
    bundle = world.bundle()
    neighbour = world.proof(world.entries[1])
    refused(replace(bundle, release_proof=neighbour), at(), world.policy(), "inclusion_proof", "7")
    right = TlogProof.parse(bundle.release_proof)
    for index in (right.index - 1, right.index + 1):
        moved = replace(right, index=index).encode()
        refused(replace(bundle, release_proof=moved), at(), world.policy(), "inclusion_proof", "7")


def test_a_release_that_was_never_logged(world, at):
    secret = world.envelope(world.manifest(version="secret"))
    other = world.proof(world.entries[0])
    world.entries.append(b"x")
    bundle = world.bundle(secret, proof=other, anchor=world.checkpoint())
    world.entries.remove(secret.encode())
    refused(bundle, at(), world.policy(), "inclusion_proof", "7")


def test_t55_consistency_from_size_0_is_a_first_contact_and_nothing_else(world, at):
    """Nothing was seen yet: nothing is compared, and what is shown is remembered."""
    empty = LogMemory(world.log_key.name)
    bundle = world.bundle()
    assert verify(bundle, at(memory=empty), world.policy()).remember.size == 3


def seen(world, at) -> LogMemory:
    """What a client remembers after it has accepted the world's node."""
    return verify(world.bundle(), at(), world.policy()).remember


def test_t56_same_size_other_root(world, at):
    memory = seen(world, at)
    fork = type(world)(entries=[b"another first entry", b"second entry"])
    error = refused(fork.bundle(), at(memory=memory), world.policy(), "split_view", "7")
    assert isinstance(error, SplitView)
    assert error.remembered == memory.checkpoint
    assert error.shown == fork.checkpoint()
    assert error.origin == world.log_key.name


def test_t56_a_larger_tree_that_does_not_extend_the_known_one(world, at):
    memory = seen(world, at)
    fork = type(world)(entries=[b"another first entry", b"second entry", b"a third"])
    refused(fork.bundle(), at(memory=memory), world.policy(), "split_view", "7")


def test_t56_a_smaller_tree_that_is_not_the_beginning_of_the_known_one(world, at):
    memory = seen(world, at)
    fork = type(world)(entries=[b"another first entry"])
    refused(fork.bundle(), at(memory=memory), world.policy(), "split_view", "7")


def test_a_split_view_blocks_until_somebody_decides(world, at):
    memory = seen(world, at)
    evidence = SplitEvidence("id", memory.origin, b"remembered", b"shown", NOW)
    blocked = replace(memory, split=evidence)
    error = refused(world.bundle(), at(memory=blocked), world.policy(), "split_view", "7")
    assert isinstance(error, SplitView)
    assert (error.remembered, error.shown) == (b"remembered", b"shown")


def test_a_log_that_only_grew_is_accepted(world, at):
    memory = seen(world, at)
    world.entries += [b"more", b"and more"]
    grown = verify(world.bundle(), at(memory=memory), world.policy()).remember
    assert grown.size == 5
    assert grown.edge == world.edge()
    older = type(world)()
    assert verify(older.bundle(), at(memory=grown), world.policy()).remember == grown


def test_growth_that_cannot_be_seen_is_refused(world, at):
    memory = seen(world, at)
    world.entries.append(b"more")
    bundle = world.bundle()
    no_tiles = world.proof(bundle.release, extra=None)
    blind = replace(bundle, release_proof=no_tiles)
    refused(blind, at(memory=memory), world.policy(), "consistency_missing", "7")
    forgetful = replace(seen(world, at), edge=b"")
    older = type(world)().bundle()
    refused(older, at(memory=forgetful), world.policy(), "consistency_missing", "7")


def test_tiles_of_another_tree_are_refused(world, at):
    bundle = world.bundle()
    edge = world.edge()
    world.entries.append(b"more")
    for extra in (world.edge(), edge[:-1] + bytes([edge[-1] ^ 1])):
        proof = replace(TlogProof.parse(bundle.release_proof), extra=extra).encode()
        refused(replace(bundle, release_proof=proof), at(), world.policy(), "log_root", "7")


def test_t57_one_witness_short_under_the_release(world, at):
    bundle = world.bundle()
    short = world.proof(bundle.release, world.checkpoint(witnesses=("Carol",)))
    refused(replace(bundle, release_proof=short), at(), world.policy(), "witness_quorum", "7")
    anchor = world.checkpoint(witnesses=("Carol",))
    refused(world.bundle(anchor=anchor), at(), world.policy(), "witness_quorum", "4")


def test_t58_cosigned_by_the_log_or_from_the_future_under_the_release(world, at):
    bundle = world.bundle()
    late = world.proof(bundle.release, world.checkpoint(at=NOW + 91))
    refused(
        replace(bundle, release_proof=late), at(), world.policy(), "cosignature_from_future", "7"
    )
    own = SignerKey("own", COSIGNATURE_V1, world.log_key.seed)
    vain = type(world)(witnesses=world.witnesses | {"Own": own})
    proof = vain.proof(vain.bundle().release, vain.checkpoint(witnesses=("Alice", "Bob", "Own")))
    refused(replace(bundle, release_proof=proof), at(), world.policy(), "cosigned_by_log", "7")


def test_another_logs_checkpoint_is_refused(world, at, key_of):
    bundle = world.bundle()
    other = key_of("other.example/log", ED25519)
    signed = world.proof(bundle.release, world.checkpoint(key=other))
    refused(replace(bundle, release_proof=signed), at(), world.policy(), "note_unsigned", "7")


# What runs ---------------------------------------------------------------------------------------


def test_t45_a_model_that_the_release_does_not_list(world, at):
    models = ModelsManifest((ModelEntry("other", OTHER, OTHER, OTHER),))
    refused(world.bundle(models=models), at(), world.policy(), "model_not_listed", "7")


def test_t45_the_releases_model_swapped(world, at):
    models = ModelsManifest((ModelEntry("river", OTHER, OTHER, OTHER),))
    refused(world.bundle(models=models), at(), world.policy(), "model_digest", "7")


def test_t45_an_adapter_that_the_release_does_not_list(world, at, subjects_of):
    river = hashlib.sha256(b"river's weights").digest()
    models = ModelsManifest((ModelEntry("river", river, river, river, (("tuned", OTHER),)),))
    refused(world.bundle(models=models), at(), world.policy(), "adapter_not_listed", "7")
    listed = world.manifest(subjects=subjects_of(adapter__river__tuned=OTHER))
    fixed = [replace(s, name="river/tuned") for s in listed.subjects if s.role == "adapter"]
    listed = replace(listed, subjects=(*listed.subjects[:-1], *fixed))
    verify(world.bundle(world.envelope(listed), models=models), at(), world.policy())


@pytest.mark.parametrize("role", ["wheel", "engine", "config"])
def test_another_program_engine_or_configuration_than_released(world, at, subjects_of, role):
    names = {"wheel": "wheel__overspill-1.whl", "engine": "engine__echo"}
    changed = subjects_of(**{names.get(role, "config__default"): OTHER})
    made = world.envelope(world.manifest(subjects=changed))
    refused(world.bundle(made), at(), world.policy(), f"{role}_not_listed", "7")


def test_policy_and_release_have_to_agree(world, at):
    """Both lists hold where there are two."""
    text = f'[reference]\nmodels = {{ river = "{OTHER.hex()}" }}\n[pinned-operator]'
    both = world.policy_text().replace("[pinned-operator]", text)
    from overspill.trust.policy import parse_policy

    refused(world.bundle(), at(), parse_policy(both), "model_digest", "6")


def test_what_hardware_reports_is_among_the_released_measurements(world):
    manifest = world.manifest(measurements={"sev-snp": {"measurement": ("aa", "bb")}})
    released = Released("", manifest)
    tee, tpm = Assurance.HARDWARE_TEE, Assurance.HARDWARE_TPM
    check_measurements(released, "sev-snp", tee, {"measurement": "bb"})
    check_measurements(released, "tpm", tpm, {})  # its registers hold what step 7 compared
    check_measurements(Released(""), "sev-snp", tee, {})
    wrong = [("sev-snp", {"measurement": "cc"}), ("sev-snp", {}), ("tdx", {"mrtd": "aa"})]
    for kind, claims in wrong:
        with pytest.raises(EvidenceRejected) as caught:
            check_measurements(released, kind, tee, claims)
        assert caught.value.reason == "measurement_not_released"


def test_a_whole_bundles_claims_are_compared_with_its_release(world, at):
    """In step 8, once the evidence's own verifier has vouched for them."""
    policy, operator = world.policy(), world.operator.public_key().public_bytes_raw().hex()
    for listed in (operator, "ab" * 32):
        made = world.manifest(measurements={"pinned-operator": {"operator": (listed,)}})
        bundle = world.bundle(world.envelope(made))
        if listed == operator:
            verify(bundle, at(), policy)
        else:
            found = refused(bundle, at(), policy, "measurement_not_released", "8")
            assert found.actual == operator


def test_a_policy_that_demands_no_release_still_binds_it(world, at):
    river = hashlib.sha256(b"river's weights").digest().hex()
    plain = world.policy(
        freshness='freshness = "nonce"',
        release="",
        log=f'[reference]\nmodels = {{ river = "{river}" }}',
        witnesses="",
    )
    nonce = bytes(range(32))
    bundle = world.bundle(nonce=nonce)
    result = verify(bundle, at(nonce=nonce), plain)
    assert result.remember is None
    assert "release" not in result.claims
    other = replace(bundle, release=world.envelope(world.manifest(version="2")).encode())
    refused(other, at(nonce=nonce), plain, "release_id_mismatch", "7")


# Every byte --------------------------------------------------------------------------------------


def test_every_flipped_byte_of_a_whole_bundle_is_refused(world, at):
    """No byte is malleable: not even in a proof, whose checkpoint is the beacon that keys name."""
    world.entries.append(world.envelope().encode())
    anchor = world.checkpoint(witnesses=("Alice", "Bob"))
    bundle = world.bundle(anchor=anchor, proof=world.proof(world.envelope().encode(), anchor))
    policy = world.policy()
    verify(bundle, at(), policy)
    for part in ("node_key_config", "release", "release_proof", "freshness_anchor"):
        for flipped in flips(getattr(bundle, part)):
            with pytest.raises(EvidenceRejected):
                verify(replace(bundle, **{part: flipped}), at(), policy)
    (evidence,) = bundle.evidence
    for flipped in flips(evidence.data):
        with pytest.raises(EvidenceRejected):
            verify(replace(bundle, evidence=(replace(evidence, data=flipped),)), at(), policy)
    for number, entry in enumerate(bundle.measured_log):
        for flipped in flips(entry):
            log = (*bundle.measured_log[:number], flipped, *bundle.measured_log[number + 1 :])
            with pytest.raises(EvidenceRejected):
                verify(replace(bundle, measured_log=log), at(), policy)


def flips(good: bytes) -> Iterator[bytes]:
    """The same bytes with one bit of each in turn the other way."""
    for position in range(len(good)):
        yield good[:position] + bytes((good[position] ^ 1,)) + good[position + 1 :]


def test_the_pae_is_dsses():
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert key_id_of(bytes(32)) == hashlib.sha256(bytes(32)).hexdigest()


def test_the_leaf_is_the_whole_envelope(world):
    """Whoever reads the log sees what was signed, and by whom."""
    bundle = world.bundle()
    assert leaf_hash(bundle.release) in world.leaves()
    assert base64.b64encode(world.envelope().payload) in bundle.release
