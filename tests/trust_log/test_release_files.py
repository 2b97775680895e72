"""Envelopes and manifests: one strict form; and the policy's sections that demand them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust.log.note import ED25519
from overspill.trust.policy import parse_policy
from overspill.trust.release_envelope import Envelope, Signature
from overspill.trust.release_manifest import (
    FILE_DIGEST,
    TREE_DIGEST,
    ReleaseManifest,
    Subject,
    tree_digest,
)
from overspill.trust.template import ReleaseDemand, dev_policy

digests = st.binary(min_size=32, max_size=32)
names = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20)
numbers = st.integers(1, 2**63 - 1)
hexes = st.binary(min_size=1, max_size=48).map(bytes.hex)


def malformed(parse, data) -> EvidenceRejected:
    with pytest.raises(EvidenceRejected) as caught:
        parse(data)
    assert caught.value.reason == "release_malformed", str(caught.value)
    assert caught.value.step == "7"
    return caught.value


# Envelopes ---------------------------------------------------------------------------------------


@given(
    st.binary(min_size=1),
    st.lists(st.tuples(names, st.binary(min_size=64, max_size=64)), max_size=4),
)
def test_envelopes_round_trip(payload, signatures):
    envelope = Envelope(payload, tuple(Signature(*one) for one in signatures))
    assert Envelope.parse(envelope.encode()) == envelope


def test_a_new_signature_by_a_key_takes_the_place_of_its_older_one(world):
    once = world.envelope(signers=2)
    key = world.keys[0]
    again = once.signed(key.public_key().public_bytes_raw(), key.sign)
    assert sorted(s.key_id for s in again.signatures) == sorted(s.key_id for s in once.signatures)
    assert again.check({k.public_key().public_bytes_raw() for k in world.keys}, 2) == 2


GOOD = '{"payload":"AAAA","payloadType":"application/vnd.in-toto+json","signatures":[]}'
SIG = '{"keyid":"a","sig":"' + "A" * 86 + '=="}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        GOOD[:-1],
        GOOD + "x",
        GOOD.replace('"signatures":[]', '"signatures":[],"more":1'),
        GOOD.replace('"signatures":[]', '"signatures":{}'),
        GOOD.replace('"signatures":[]', '"signatures":[],"signatures":[]'),
        GOOD.replace("AAAA", ""),
        GOOD.replace("AAAA", "AAA"),
        GOOD.replace("AAAA", "AAB="),
        GOOD.replace("AAAA", "AA_-"),
        GOOD.replace('"AAAA"', "1"),
        GOOD.replace('"AAAA"', "NaN"),
        GOOD.replace('"AAAA"', "1" * 5000),
        GOOD.replace("[]", "[" + ",".join([SIG] * 17) + "]"),
        GOOD.replace("[]", '["x"]'),
        GOOD.replace("[]", '[{"sig":"AAAA"}]'),
        GOOD.replace("[]", '[{"keyid":"a","sig":"AAAA"}]'),
        GOOD.replace("[]", "[" + SIG.replace('"a"', "1") + "]"),
        GOOD.replace("[]", "[" * 100_000),
        GOOD.replace("AAAA", "A" * 70_000),
    ],
)
def test_a_malformed_envelope_is_refused(text):
    malformed(Envelope.parse, text.encode())


def test_bytes_that_are_no_text_are_refused():
    malformed(Envelope.parse, b"\xff" + GOOD.encode())


def test_spacing_and_order_are_the_signers_choice(world):
    """Other tools write JSON in other ways; what is logged and named are the bytes as they are."""
    document = json.loads(world.envelope().encode())
    spaced = json.dumps(dict(reversed(document.items())), indent=4).encode()
    assert Envelope.parse(spaced) == world.envelope()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_release_or_refused(data):
    for parse in (Envelope.parse, ReleaseManifest.parse):
        with contextlib.suppress(EvidenceRejected):
            parse(data)


# Manifests ---------------------------------------------------------------------------------------

subjects = st.lists(
    st.builds(
        Subject,
        st.sampled_from(["wheel", "engine", "model", "adapter", "config"]),
        names,
        st.dictionaries(st.sampled_from([FILE_DIGEST, TREE_DIGEST]), digests, min_size=1),
    ),
    max_size=4,
    unique_by=lambda one: (one.role, one.name),
)
measurements = st.dictionaries(
    names,
    st.dictionaries(
        names, st.lists(hexes, min_size=1, max_size=3).map(tuple), min_size=1, max_size=2
    ),
    max_size=2,
)


@given(names, numbers, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), subjects, measurements)
def test_manifests_round_trip(version, seq, floor, not_after, more, measured):
    base = tuple(
        Subject(role, "\x7f", {FILE_DIGEST: bytes(32)})
        for role in ("wheel", "engine", "model", "config")
    )
    manifest = ReleaseManifest(version, seq, min(floor, seq), not_after, (*base, *more), measured)
    assert ReleaseManifest.parse(manifest.encode()) == manifest


def changed(world, change) -> bytes:
    statement = json.loads(world.manifest().encode())
    change(statement)
    return json.dumps(statement).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("predicate"),
        lambda s: s.update(more=1),
        lambda s: s["predicate"].pop("not_after"),
        lambda s: s["predicate"].update(more=1),
        lambda s: s["predicate"].update(release_seq=0),
        lambda s: s["predicate"].update(release_seq=True),
        lambda s: s["predicate"].update(release_seq=7.0),
        lambda s: s["predicate"].update(release_seq="7"),
        lambda s: s["predicate"].update(release_seq=2**63),
        lambda s: s["predicate"].update(not_after=-1),
        lambda s: s["predicate"].update(security_floor_seq=8),
        lambda s: s["predicate"].update(version=""),
        lambda s: s["predicate"].update(measurements=[]),
        lambda s: s["predicate"].update(measurements={"sev-snp": {}}),
        lambda s: s["predicate"].update(measurements={"sev-snp": []}),
        lambda s: s["predicate"].update(measurements={"sev-snp": {"m": []}}),
        lambda s: s["predicate"].update(measurements={"sev-snp": {"m": "aa"}}),
        lambda s: s["predicate"].update(measurements={"sev-snp": {"m": ["AA"]}}),
        lambda s: s["predicate"].update(measurements={"sev-snp": {"m": ["a"]}}),
        lambda s: s["predicate"].update(measurements={"sev-snp": {"m": [1]}}),
        lambda s: s.update(subject=[]),
        lambda s: s.update(subject={}),
        lambda s: s.update(subject=s["subject"] * 200),
        lambda s: s["subject"].append(s["subject"][0]),
        lambda s: s["subject"].pop(0),
        lambda s: s["subject"].pop(2),
        lambda s: s["subject"][0].update(more=1),
        lambda s: s["subject"][0].update(name="wheel"),
        lambda s: s["subject"][0].update(name="wheel/"),
        lambda s: s["subject"][0].update(name="other/x"),
        lambda s: s["subject"][0].update(name="wheel/" + "x" * 301),
        lambda s: s["subject"][0].update(digest={}),
        lambda s: s["subject"][0].update(digest=[]),
        lambda s: s["subject"][0].update(digest={"sha1": "aa"}),
        lambda s: s["subject"][0].update(digest={"sha256": "aa"}),
        lambda s: s["subject"][0].update(digest={"sha256": "G" * 64}),
        lambda s: s["subject"][0].update(digest={"sha256": 1}),
    ],
)
def test_a_malformed_manifest_is_refused(world, change):
    malformed(ReleaseManifest.parse, changed(world, change))


def test_a_tree_counts_before_its_archive():
    both = Subject("wheel", "x.whl", {FILE_DIGEST: bytes(32), TREE_DIGEST: bytes([1] * 32)})
    assert both.measured == bytes([1] * 32)
    assert Subject("model", "x", {FILE_DIGEST: bytes(32)}).measured == bytes(32)


def test_a_trees_digest_does_not_depend_on_the_order_of_its_files():
    files = [("a.py", b"1"), ("a/b.py", b"2"), ("a/a.py", b"3")]
    assert tree_digest(files) == tree_digest(reversed(files))
    assert tree_digest(files) != tree_digest(files[1:])
    assert tree_digest(files) != tree_digest([("b.py", b"1"), *files[1:]])


# The policy --------------------------------------------------------------------------------------


def complaint(text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        parse_policy(text, "my-policy.toml")
    assert "my-policy.toml" in caught.value.message
    assert caught.value.mend
    return caught.value


def test_a_policy_says_what_it_demands(world):
    policy = world.policy()
    assert policy.freshness == "witnesses"
    assert policy.release.threshold == 2
    assert policy.release.floor_seq == 6
    assert len(policy.release.keys) == 3
    assert policy.log.origin == policy.log.key.name == world.log_key.name
    assert [witness.operator for witness in policy.log.witnesses] == ["Alice", "Bob", "Carol"]
    assert policy.log.quorum == 2
    assert policy.reference.by_release


def test_two_of_three_witnesses_are_the_default(world):
    text = world.policy_text().replace("quorum = 2\n", "")
    assert parse_policy(text).log.quorum == 2
    one = world.policy_text(witnesses="").replace("quorum = 2\n", "")
    first = f'[log.witnesses]\nAlice = ["{world.witnesses["Alice"].verifier}"]\n[pinned-operator]'
    assert parse_policy(one.replace("[pinned-operator]", first)).log.quorum == 1


def test_a_log_may_have_another_origin_than_its_keys_name(world):
    text = world.policy_text().replace("quorum = 2", 'quorum = 2\norigin = "other.example/log"')
    assert parse_policy(text).log.origin == "other.example/log"


def test_witnesses_may_be_left_out_where_a_nonce_is_asked_for(world):
    log = f'[log]\nkey = "{world.log_key.verifier}"'
    text = world.policy_text(witnesses="", log=log)
    assert "freshness" in complaint(text).message
    policy = parse_policy(text.replace('"witnesses"', '"nonce"'))
    assert (policy.log.witnesses, policy.log.quorum) == ((), 0)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("threshold = 2", "threshold = 0", "threshold"),
        ("threshold = 2", "threshold = 4", "threshold"),
        ("threshold = 2\n", "", "threshold"),
        ("floor_seq = 6", "floor_seq = -1", "floor_seq"),
        ("floor_seq = 6", "floors = 6", "floors"),
        ("keys = [", 'keys = ["abc", ', "keys"),
        ("[release]", "[released]", "released"),
        ("quorum = 2", "quorum = 0", "quorum"),
        ("quorum = 2", "quorum = 4", "quorum"),
        ("quorum = 2", "quorums = 2", "quorums"),
        ("quorum = 2", 'quorum = 2\norigin = ""', "origin"),
        ("quorum = 2", "quorum = 2\norigin = 1", "origin"),
        ('key = "', 'key = "x', "key"),
        ("[log.witnesses]", "[log.witness]", "witness"),
        ("Alice = [", "Alice = [] #", "Alice"),
        ("Alice = [", 'Alice = ["nonsense"] #', "Alice"),
    ],
)
def test_every_mistake_is_named(world, old, new, named):
    text = world.policy_text()
    assert old in text
    assert named in complaint(text.replace(old, new, 1)).message


def test_a_key_that_is_listed_twice(world):
    text = world.policy_text()
    first = world.keys[0].public_key().public_bytes_raw().hex()
    assert "twice" in complaint(text.replace("keys = [", f'keys = ["{first}", ', 1)).message


def test_release_and_log_come_together(world):
    log_parts = {"log": "", "witnesses": ""}
    assert "without [log]" in complaint(world.policy_text(**log_parts)).message
    assert "without [release]" in complaint(world.policy_text(release="")).message


def test_a_production_policy_demands_a_release_or_says_that_it_does_not(world):
    """Nobody forgets it in silence; and nobody says both."""
    tpm = f'accept = ["tpm"]\n[tpm]\nactivation_keys = ["{"ab" * 32}"]\n'
    tpm += f'ak_roots = ["x"]\n[reference]\nmodels = {{ river = "{"ab" * 32}" }}\n'
    head = 'version = 1\nmin_assurance = "HARDWARE_TPM"\nfreshness = "nonce"\n'
    assert "accepts hardware evidence" in complaint(head + tpm).message
    said = complaint(head + "unreleased = true\n" + tpm).message
    assert "release" not in said  # it goes on to the next mistake
    both = "unreleased = true\n" + world.policy_text()
    assert "beside [release]" in complaint(both).message
    assert "unreleased" in complaint(both.replace("true", "1", 1)).message


def test_an_empty_list_of_witnesses_is_an_error(world):
    assert "empty" in complaint(world.policy_text(witnesses="[log.witnesses]")).message
    lone = world.policy_text(witnesses="")
    assert "quorum" in complaint(lone).message


def test_t58_the_logs_own_key_is_no_witness(world, key_of):
    from overspill.trust.log.note import COSIGNATURE_V1, SignerKey

    own = SignerKey("own", COSIGNATURE_V1, world.log_key.seed).verifier
    text = world.policy_text().replace("Alice = [", f'Alice = ["{own}", ', 1)
    assert "the log's own" in complaint(text).message


def test_one_key_under_two_operators_is_refused(world):
    alice = world.witnesses["Alice"].verifier
    text = world.policy_text().replace("Bob = [", f'Bob = ["{alice}", ', 1)
    assert "also Alice's" in complaint(text).message


def test_keys_of_the_wrong_kind_are_refused(world):
    plain = world.log_key.verifier
    witness = world.witnesses["Alice"].verifier
    swapped = world.policy_text(log=f'[log]\nkey = "{witness}"\nquorum = 2')
    assert "type 0x04" in complaint(swapped).message
    text = world.policy_text().replace("Alice = [", f'Alice = ["{plain}", ', 1)
    assert f"type {ED25519:#04x}" in complaint(text).message


@given(st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20))
def test_a_template_writes_what_it_demands(operator):
    from overspill.trust.log.cosignature import LogPolicy, Witness
    from overspill.trust.log.note import COSIGNATURE_V1, SignerKey
    from overspill.trust.release_policy import ReleasePolicy

    keys = [SignerKey(f"w{n}", COSIGNATURE_V1, bytes([n] * 32)).verifier for n in range(3)]
    log_key = SignerKey("log", ED25519, bytes([9] * 32)).verifier
    witnesses = tuple(
        Witness(name, key) for name, key in zip((operator, operator, "B"), keys, strict=True)
    )
    log = LogPolicy("origin " + operator, log_key, witnesses, 1 if operator == "B" else 2)
    release = ReleasePolicy(frozenset({bytes(32), bytes([1] * 32)}), 2)
    text = dev_policy(bytes(32), {"river": bytes(32)}, ReleaseDemand(release, log))
    policy = parse_policy(text)
    assert (policy.release, policy.log) == (release, log)
    assert policy.freshness == "witnesses"
    assert replace(policy, sha256=b"").dev_unsafe
