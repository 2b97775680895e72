"""Refusals at the edges of small readers, and what an attestation result says in each case."""

from __future__ import annotations

import base64
import hashlib

import pytest

from overspill.errors import ConfigurationError, EvidenceRejected, UsageError
from overspill.trust import ear, json_strict, template, xml_signed
from overspill.trust.certificates import parse_certificate
from overspill.trust.nvidia_report import parse_report
from overspill.trust.nvidia_rim import compare, read_rim
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.types.evidence import Assurance, VerificationStep

RIVER = hashlib.sha256(b"river's weights").digest()


def reason(check, *arguments, **named) -> EvidenceRejected:
    with pytest.raises(EvidenceRejected) as caught:
        check(*arguments, **named)
    return caught.value


# --- JSON -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b" " * (json_strict.MAX_BYTES + 1),
        b"[" * 5000,
        b'{"a":1,"a":1}',
        b"NaN",
        b"\xff",
        b"1" * 5000,
    ],
    ids=["size", "depth", "twice", "constant", "not-utf-8", "huge-number"],
)
def test_json_that_is_not_read(data):
    error = reason(json_strict.loads, data, step="3")
    assert (error.reason, error.step) == ("json_malformed", "8.3")
    assert len(error.actual) < 200


def test_json_of_exactly_the_limit():
    assert json_strict.loads(b"1".rjust(json_strict.MAX_BYTES), step="1") == 1


# --- manifests --------------------------------------------------------------------------------


@pytest.fixture
def rim_roots(roots):
    return roots.nvidia_rim


def test_a_manifest_of_something_else(makers, rim_roots, monkeypatch):
    """Signed as it should be, and about another thing."""
    monkeypatch.setattr(makers.nvidia, "_SWID", "urn:another")
    error = reason(read_rim, makers.rim(), rim_roots, makers.NOW)
    assert (error.reason, error.actual) == ("rim_malformed", "no software identity")


def test_a_signer_of_another_curve(makers, rim_roots):
    error = reason(read_rim, makers.rim(curve=makers.P256), rim_roots, makers.NOW)
    assert error.reason == "key_unsupported"


def test_a_measurement_that_the_gpu_does_not_report(makers, rim_roots):
    report = parse_report(makers.Nvidia().report())
    value = hashlib.sha384(b"x").digest()
    missing = read_rim(makers.rim(values={40: value}), rim_roots, makers.NOW)
    error = reason(compare, report, (missing,))
    assert (error.reason, error.actual) == ("rim_measurement", "none")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no element found"),
        (b"<a", "unclosed token"),
        (b"<?x y?><a/>", "processing instruction"),
        (b"<!DOCTYPE a><a/>", "document type"),
    ],
)
def test_xml_that_is_no_manifest(data, words):
    error = reason(xml_signed.parse_signed, data)
    assert error.reason == "rim_malformed"
    assert words in error.actual


def test_a_signature_that_is_not_base64(makers):
    made = makers.rim()
    at = made.index(b"<ds:SignatureValue>") + len(b"<ds:SignatureValue>")
    error = reason(xml_signed.parse_signed, made[:at] + b"*" + made[at + 1 :])
    assert (error.reason, error.actual) == ("rim_malformed", "a value that is not base64")


# --- attestation results ----------------------------------------------------------------------


def token(verdict="accepted", assurance=Assurance.HARDWARE_TEE, claims=None, rejection=None):
    made = ear.ear(
        "node",
        verdict=verdict,
        assurance=assurance,
        claims=claims or {},
        steps=(VerificationStep("1", "first", True),),
        rejection=rejection,
        policy="urn:policy" if verdict == "accepted" else None,
        now_unix=1_800_000_000,
        version="1",
    )
    assert made["iat"] == 1_800_000_000
    return made["submods"]["node"]


def vector(submodule) -> dict[str, int]:
    """The claims that are made at all."""
    made = submodule["ear.trustworthiness-vector"]
    return {name: value for name, value in made.items() if value}


def test_an_accepted_node_affirms_what_was_checked():
    found = token()
    assert found["ear.status"] == "affirming"
    assert found["ear.appraisal-policy-id"] == "urn:policy"
    wanted = ("hardware", "runtime-opaque", "configuration", "executables")
    assert vector(found) == dict.fromkeys(wanted, 2)
    assert found["overspill.steps"] == {"1": True}


def test_a_tpm_affirms_no_opaque_runtime():
    assert "runtime-opaque" not in vector(token(assurance=Assurance.HARDWARE_TPM))
    assert "hardware" not in vector(token(assurance=Assurance.SOFTWARE))


def test_authentic_evidence_without_a_policy_affirms_no_configuration():
    found = token("authentic")
    assert found["ear.status"] == "none"
    assert set(vector(found)) == {"hardware", "runtime-opaque"}


def test_a_guest_under_debug_is_a_warning():
    found = token("authentic", claims={"debug": "true"})
    assert found["ear.status"] == "warning"
    assert vector(found)["configuration"] == 36


@pytest.mark.parametrize(
    ("why", "value"),
    [("evidence_signature", 99), ("root_unknown", 99), ("nkc_not_bound", 99), ("guest_debug", 96)],
)
def test_a_refusal_contraindicates(why, value):
    rejection = EvidenceRejected(why, "8.5", expected="this", actual="that")
    found = token("rejected", Assurance.NONE, rejection=rejection)
    assert found["ear.status"] == "contraindicated"
    assert vector(found) == {"hardware": value}
    assert found["overspill.rejection"] == {
        "code": why, "step": "8.5", "expected": "this", "actual": "that",
    }  # fmt: skip


# --- policies ---------------------------------------------------------------------------------


def test_a_model_that_a_template_cannot_name():
    for models in ({}, {"river": bytes(31)}, {'ri"ver': RIVER}, {"a\nb": RIVER}):
        with pytest.raises(UsageError):
            dev_policy(bytes(32), models)
    assert "river" in dev_policy(bytes(32), {"river": RIVER})
    assert template.DEV_TEMPLATE


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        ("no certificate", "no PEM certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "no PEM certificate"),
        ("a leaf", "no Ed25519 authority"),
        ("an authority of another curve", "no Ed25519 authority"),
    ],
)
def test_a_root_that_is_none(makers, certificate, words):
    leaf = makers.Authority("leaf", issuer=makers.Authority("root"), is_authority=False)
    made = {"a leaf": leaf, "an authority of another curve": makers.Authority("root")}
    if certificate in made:
        certificate = made[certificate].pem.decode()
    text = f"""version = 1
min_assurance = "NONE"
accept = ["dev-tpm-software"]
freshness = "nonce"
unreleased = true
dev_unsafe = true
[reference]
models = {{ river = "{RIVER.hex()}" }}
[dev-tpm-software]
ek_roots = ['''{certificate}''']
"""
    with pytest.raises(ConfigurationError, match=words):
        parse_policy(text)


def test_a_certificate_is_read_once_only(makers):
    der = makers.Amd().ark.der
    assert parse_certificate(der).der == der
    error = reason(parse_certificate, base64.b64encode(der))
    assert error.reason == "certificate_malformed"
