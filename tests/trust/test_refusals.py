"""What steps 3 to 6, and what all evidence shares, say when they refuse, word for word."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from overspill.errors import EvidenceRejected
from overspill.sealing.hpke import KEM_X25519, NodeKeyPair
from overspill.trust import base, freshness, reference
from overspill.trust.measured import Measured, MeasuredLog, ModelEntry, ModelsManifest
from overspill.trust.nkc import NO_NONCE, report_data
from overspill.trust.verifier import verify
from overspill.types.evidence import Evidence

NOW = 1_800_000_000
NONCE = bytes(range(32))
RIVER = hashlib.sha256(b"river's weights").digest()
OTHER = hashlib.sha256(b"other weights").digest()
SETTINGS = hashlib.sha256(b'{"settings":1}').digest()
WHEEL, ENGINE = hashlib.sha256(b"wheel").digest(), hashlib.sha256(b"engine").digest()
SOURCE = "the policy's [reference]"


def words(check, *args, **kwargs) -> tuple[str, str, str, str, str]:
    with pytest.raises(EvidenceRejected) as caught:
        check(*args, **kwargs)
    error = caught.value
    return error.reason, error.step, error.expected, error.actual, error.mend


# Step 3: place ------------------------------------------------------------------------------------


def test_a_configurations_mode_is_the_evidences(dev_node, pinned_node, at):
    for node, mode, said in ((dev_node, 0, "production"), (pinned_node, 1, "development")):
        other = {"production": "development", "development": "production"}[said]
        assert words(verify, node.bundle(mode=mode), at(), node.policy) == (
            "mode_mismatch", "3", f"a {other} configuration for {node.evidence_type}",
            f"a {said} one", "",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("address", "is_local"),
    [("127.0.0.1:7001", False), ("node.example:443", True), ("x" * 300, True)],
)
def test_development_is_on_this_machine_by_both_words(dev_node, at, address, is_local):
    context = at(address=address, is_local=is_local)
    assert words(verify, dev_node.bundle(), context, dev_node.policy) == (
        "dev_not_local",
        "3",
        "a loopback address or a Unix socket for development evidence",
        address[:256],
        "Development evidence is never accepted from another machine.",
    )


def test_where_a_node_may_be(dev_node, pinned_node, at):
    details = [
        verify(node.bundle(), at(), node.policy).steps[2].detail for node in (dev_node, pinned_node)
    ]
    assert details == ["development evidence, on this machine", "any address"]


# Step 4: keys -------------------------------------------------------------------------------------


SUITE = "HKDF-SHA256 with ChaCha20-Poly1305"
VALID = f"a configuration valid at {NOW}"
LIFETIME = "a lifetime of at most 86400 s"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kem_id": 0x21}, ("kem_not_accepted", "KEM 0x0020, 0x647a", "0x0021")),
        ({"kdf_id": 2}, ("suite_unsupported", SUITE, "kdf 0x0002, aead 0x0003")),
        ({"aead_id": 1}, ("suite_unsupported", SUITE, "kdf 0x0001, aead 0x0001")),
        ({"hpke_public_key": bytes(32)}, ("hpke_key_length", "a key of 1216 bytes", "32")),
        (
            {"kem_id": 0x20, "hpke_public_key": bytes(33)},
            ("hpke_key_length", "a key of 32 bytes", "33"),
        ),
        ({"not_after": NOW - 60 + 86401}, ("nkc_lifetime", LIFETIME, "86401")),
        ({"not_after": NOW - 60}, ("nkc_lifetime", LIFETIME, "0")),
        ({"not_after": NOW}, ("nkc_expired", VALID, f"expired {NOW}")),
        (
            {"not_before": NOW - 3600, "not_after": NOW + 1},
            ("nkc_too_old", "an age under 3600 s", "3600 s"),
        ),
        (
            {"freshness_anchor_sha256": OTHER},
            ("anchor_mismatch", "the freshness anchor that the keys name", "another"),
        ),
    ],
)
def test_keys_that_are_not_sealed_to(pinned_node, at, changes, said):
    policy = replace(pinned_node.policy, kems=frozenset({0x647A, 0x20}))
    reason, expected, actual = said
    assert words(verify, pinned_node.bundle(**changes), at(), policy) == (
        reason, "4", expected, actual, ""
    )  # fmt: skip


def test_keys_of_tomorrow(pinned_node, at):
    assert words(verify, pinned_node.bundle(not_before=NOW + 1), at(), pinned_node.policy) == (
        "nkc_not_yet_valid", "4", VALID, f"one valid from {NOW + 1}",
        "Set this machine's clock, or the node's.",
    )  # fmt: skip
    verify(pinned_node.bundle(not_before=NOW), at(), pinned_node.policy)


def test_a_second_is_a_lifetime(pinned_node, at):
    brief = pinned_node.bundle(not_before=NOW, not_after=NOW + 1)
    assert verify(brief, at(), pinned_node.policy).accepted_until == NOW + 1


@pytest.mark.parametrize("nonce", [bytes(32), bytes(range(31)), bytes(range(33)), b""])
def test_a_challenge_is_32_random_bytes(pinned_node, at, nonce):
    assert words(verify, pinned_node.bundle(), at(nonce=nonce), pinned_node.policy) == (
        "nonce_invalid", "4", "a challenge of 32 random bytes", "zeros or another length", ""
    )  # fmt: skip


def test_without_a_challenge_something_else_has_to_be_fresh(pinned_node, at):
    bundle, policy = pinned_node.bundle(None), pinned_node.policy
    assert words(verify, bundle, at(nonce=None), policy) == (
        "nonce_required", "4", "evidence over a fresh challenge", "evidence without one",
        "Ask the node by Challenge.",
    )  # fmt: skip
    witnessed = replace(policy, freshness="witnesses")
    assert words(verify, bundle, at(nonce=None), witnessed) == (
        "freshness_unproven", "4",
        "a checkpoint by a log and its witnesses under trust.toml",
        "a policy that names no log",
        'Name [release] and [log] with witnesses, or say freshness = "nonce".',
    )  # fmt: skip


def test_how_long_keys_are_good_for(pinned_node, at):
    policy = replace(pinned_node.policy, kems=frozenset({0x20, 0x647A}))
    pinned_node.pair = NodeKeyPair.generate(KEM_X25519)
    for not_after, left in ((NOW + 3600, 3540), (NOW + 90, 90)):
        result = verify(pinned_node.bundle(not_after=not_after), at(), policy)
        assert result.steps[3].detail == f"KEM 0x0020, valid for {left} s more"
        assert result.accepted_until == NOW + left


# Steps 5 and 6: what runs -------------------------------------------------------------------------


def entry(name: str, file: bytes = RIVER, **more) -> ModelEntry:
    return replace(ModelEntry(name, file, file, file), **more)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ((), ("no_models", "a node that serves a model", "an empty manifest", "")),
        (
            (entry("other", OTHER),),
            (
                "model_not_listed",
                f"a model of {SOURCE}",
                f"'other' = {OTHER.hex()}",
                "List it there if it is meant to be served.",
            ),
        ),
        (
            (entry("river", OTHER),),
            ("model_digest", f"'river' = {RIVER.hex()}", OTHER.hex(), ""),
        ),
        (
            (entry("river", tokenizer_sha256=OTHER),),
            ("model_digest", f"'river/tokenizer' = {RIVER.hex()}", OTHER.hex(), ""),
        ),
        (
            (entry("river", template_sha256=OTHER),),
            ("model_digest", f"'river/template' = {RIVER.hex()}", OTHER.hex(), ""),
        ),
        (
            (entry("river", adapters=(("tuned", OTHER),)),),
            ("adapter_not_listed", f"an adapter of {SOURCE}", f"'river/tuned' = {OTHER.hex()}", ""),
        ),
    ],
)
def test_models_that_are_not_listed(pinned_node, at, models, said):
    pinned_node.models = ModelsManifest(models)
    reason, expected, actual, mend = said
    assert words(verify, pinned_node.bundle(), at(), pinned_node.policy) == (
        reason, "6", expected, actual, mend
    )  # fmt: skip


def test_a_tokenizer_and_a_template_may_have_digests_of_their_own(pinned_node, at):
    pinned_node.models = ModelsManifest(
        (entry("river", tokenizer_sha256=OTHER, template_sha256=SETTINGS),)
    )
    listed = {"river": RIVER, "river/tokenizer": OTHER, "river/template": SETTINGS}
    policy = pinned_node.policy
    policy = replace(policy, reference=replace(policy.reference, models=listed))
    verify(pinned_node.bundle(), at(), policy)


@pytest.mark.parametrize(
    ("wanted", "found"), [({"river": OTHER}, RIVER.hex()), ({"other": RIVER}, "not served")]
)
def test_a_model_that_the_caller_expects(pinned_node, at, wanted, found):
    ((name, digest),) = wanted.items()
    context = at(expected_models=wanted)
    assert words(verify, pinned_node.bundle(), context, pinned_node.policy) == (
        "expected_model_missing", "6", f"'{name}' = {digest.hex()}", found, ""
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "name", "actual"),
    [("configs", "config", SETTINGS), ("wheels", "wheel", WHEEL), ("engines", "engine", ENGINE)],
)
def test_what_a_policy_pins_besides(pinned_node, at, field, name, actual):
    policy = pinned_node.policy
    pinned = replace(policy, reference=replace(policy.reference, **{field: frozenset({OTHER})}))
    assert words(verify, pinned_node.bundle(), at(), pinned) == (
        f"{name}_not_listed", "6", f"a {name} digest of {SOURCE}", actual.hex(), ""
    )  # fmt: skip


def test_what_is_said_of_a_log_that_passed(pinned_node, at):
    policy = pinned_node.policy
    everything = replace(
        policy.reference,
        configs=frozenset({SETTINGS}),
        wheels=frozenset({WHEEL}),
        engines=frozenset({ENGINE}),
    )
    cases = (
        (everything, "everything measured is listed"),
        (replace(everything, wheels=None), "not pinned by the policy: wheel"),
        (replace(everything, by_release=True), "left to the release"),
    )
    for listed, detail in cases:
        result = verify(pinned_node.bundle(), at(), replace(policy, reference=listed))
        assert result.steps[5].detail == detail


def test_a_log_is_the_one_that_the_keys_name(pinned_node, at, log_of):
    models = ModelsManifest((entry("river", OTHER),))
    assert words(verify, pinned_node.bundle(log=log_of(models)), at(), pinned_node.policy) == (
        "models_digest_mismatch", "5", "the models that the keys name", "others", ""
    )  # fmt: skip
    settings = log_of(pinned_node.models, b"{}")
    assert words(verify, pinned_node.bundle(log=settings), at(), pinned_node.policy) == (
        "config_digest_mismatch", "5", "the settings that the keys name", "others", ""
    )  # fmt: skip


def test_a_releases_list_is_named_as_its_own(pinned_node):
    log = MeasuredLog.decode(pinned_node.log)
    listed = replace(pinned_node.policy.reference, models={"river": OTHER})
    assert words(reference.check, log, listed, None, source="the release", step="7") == (
        "model_digest", "7", f"'river' = {OTHER.hex()}", RIVER.hex(), ""
    )  # fmt: skip
    assert log.entry(Measured.WHEEL).sha256 == WHEEL


def test_the_model_that_answers_is_one_that_was_proven(pinned_node, at):
    result = verify(pinned_node.bundle(), at(), pinned_node.policy)
    reference.check_answering_model(result, "river", RIVER)
    mend = "Do not use this node: it serves another model than its evidence says."
    assert words(reference.check_answering_model, result, "river", OTHER) == (
        "model_not_attested", "6", f"model 'river' with digest {RIVER.hex()}",
        f"model 'river' with digest {OTHER.hex()}", mend,
    )  # fmt: skip
    assert words(reference.check_answering_model, result, "other", RIVER) == (
        "model_not_attested", "6", "a model of the evidence",
        f"model 'other' with digest {RIVER.hex()}", mend,
    )  # fmt: skip


def test_a_step_names_itself(pinned_node):
    """Also where nobody runs it under its number."""
    policy, config = pinned_node.policy, pinned_node.config()
    assert words(freshness.check, config, pinned_node.bundle(None), None, NOW, policy)[:2] == (
        "nonce_required", "4"
    )  # fmt: skip
    empty, log = replace(policy.reference, models={}), MeasuredLog.decode(pinned_node.log)
    assert words(reference.check, log, empty, None)[:2] == ("model_not_listed", "6")


# Step 8: what every kind of evidence shares -------------------------------------------------------


def about(nonce: bytes | None = NONCE) -> SimpleNamespace:
    return SimpleNamespace(nkc_bytes=b"keys", nonce=nonce)


def bound(nonce: bytes | None, *, dev: bool = False, nkc: bytes = b"keys") -> bytes:
    return report_data(nkc, nonce, dev)


def test_a_report_over_these_keys_and_this_nonce():
    assert base.check_report_data(bound(NONCE), about(), step="6") == (
        "report data over this configuration and nonce"
    )
    assert base.check_report_data(bound(None), about(None), step="6") == (
        "report data over this configuration"
    )


@pytest.mark.parametrize(
    ("actual", "reason", "said"),
    [
        (bound(NONCE, dev=True), "report_data_label", "report data under the development label"),
        (bound(None, dev=True), "report_data_label", "report data under the development label"),
        (bound(None), "nonce_zero", "no nonce"),
        (bound(bytes([1] * 32)), "report_data_mismatch", "another configuration or nonce"),
        (bound(NONCE, nkc=b"other"), "report_data_mismatch", "another configuration or nonce"),
    ],
)
def test_a_report_over_something_else(actual, reason, said):
    assert words(base.check_report_data, actual, about(), step="6") == (
        reason, "8.6", "report data over this configuration and nonce", said, ""
    )  # fmt: skip


@pytest.mark.parametrize("dev", [True, False])
@pytest.mark.parametrize(
    ("made", "stated", "said"),
    [
        (
            {"dev": True},
            NONCE,
            (
                "report_data_label",
                "report data under this evidence's label",
                "report data under the other mode's",
            ),
        ),
        (
            {"nkc": b"other"},
            NONCE,
            ("nkc_not_bound", "evidence over this node key configuration", "evidence over another"),
        ),
        ({}, bytes([1] * 32), ("nonce_mismatch", f"the challenge {NONCE.hex()}", "01" * 32)),
        ({}, NO_NONCE, ("nonce_zero", f"the challenge {NONCE.hex()}", "00" * 32)),
    ],
)
def test_a_binding_that_states_its_nonce(dev, made, stated, said):
    how = {"dev": made.get("dev", False) != dev, "nkc": made.get("nkc", b"keys")}
    reason, expected, actual = said
    found = words(
        base.check_binding,
        bound(stated, **how), stated, about(), dev=dev, digest=report_data, step="5",
    )  # fmt: skip
    assert found == (reason, "8.5", expected, actual, "")
    base.check_binding(bound(NONCE, dev=dev), NONCE, about(), dev=dev, digest=report_data, step="5")


def test_a_binding_without_a_nonce_is_over_zeros():
    made = bound(NO_NONCE)
    base.check_binding(made, NO_NONCE, about(None), dev=False, digest=report_data, step="5")
    assert words(
        base.check_binding,
        bound(NONCE), NONCE, about(None), dev=False, digest=report_data, step="5",
    )[:3] == ("nonce_mismatch", "8.5", f"the challenge {'00' * 32}")  # fmt: skip


def test_collateral_is_exactly_what_a_kind_defines():
    def piece(*names: str) -> Evidence:
        return Evidence("x", b"", dict.fromkeys(names, b""))

    base.refuse_collateral(piece())
    base.refuse_collateral(piece("b", "a"), frozenset({"a", "b"}))
    assert words(base.refuse_collateral, piece("d", "c")) == (
        "collateral_unexpected", "8.1", "no collateral", "c, d", ""
    )  # fmt: skip
    assert words(base.refuse_collateral, piece(), frozenset({"b", "a"})) == (
        "collateral_unexpected", "8.1", "a, b", "none", ""
    )  # fmt: skip


def test_a_shared_check_is_refused_where_it_was_asked_for():
    def check(value: int, *, refuse: bool) -> int:
        if refuse:
            raise EvidenceRejected("why", "3", expected="this", actual="that", mend="Do so.")
        return value

    assert base.at_step("4", check, 7, refuse=False) == 7
    assert words(base.at_step, "4", check, 7, refuse=True) == (
        "why", "8.4", "this", "that", "Do so."
    )  # fmt: skip


def test_development_evidence_is_told_aloud(caplog):
    base.warn_of("dev-ed25519")
    (record,) = caplog.records
    assert (record.levelname, record.message) == (
        "WARNING", "Development evidence accepted (dev-ed25519): it proves nothing."
    )  # fmt: skip
