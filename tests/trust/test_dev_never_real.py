"""Development evidence can never pass for real: the five rules, each with its tests."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest

from overspill.config import child_environment
from overspill.errors import EvidenceRejected
from overspill.trust import nkc
from overspill.trust.policy import DEV_TYPES, default_policy
from overspill.trust.verifier import REGISTRY, verify
from overspill.types.evidence import Assurance


def reason(bundle, context, policy) -> str:
    with pytest.raises(EvidenceRejected) as caught:
        verify(bundle, context, policy)
    return caught.value.reason


def test_rule_1_another_label(dev_node, at):
    assert nkc.DEV_LABEL != nkc.LABEL
    assert nkc.report_data(b"x", None, dev=True) != nkc.report_data(b"x", None, dev=False)
    assert nkc.qualifying_data(b"x", None, dev=True) != nkc.qualifying_data(b"x", None, dev=False)


def test_rule_2_another_type_and_its_own_verifier(dev_node, at):
    assert {kind for kind, verifier in REGISTRY.items() if verifier.dev} == set(DEV_TYPES)
    for kind, verifier in REGISTRY.items():
        assert verifier.evidence_type == kind
    production = dev_node.bundle(mode=nkc.PRODUCTION)
    assert reason(production, at(), dev_node.policy) == "mode_mismatch"


def test_rule_2_pinned_evidence_in_dev_mode_is_refused(pinned_node, at):
    bundle = pinned_node.bundle(mode=nkc.DEV)
    assert reason(bundle, at(), pinned_node.policy) == "mode_mismatch"


def test_rule_3_a_typed_assurance_in_the_result(dev_node, at):
    result = verify(dev_node.bundle(), at(), dev_node.policy)
    assert result.assurance is Assurance.NONE
    assert result.dev
    assert not result.satisfies_attested
    assert all(v.assurance is Assurance.NONE for v in REGISTRY.values() if v.dev)


def test_rule_3_accepting_it_is_said_aloud(dev_node, pinned_node, at, caplog):
    verify(pinned_node.bundle(), at(), pinned_node.policy)
    assert not caplog.records
    verify(dev_node.bundle(), at(), dev_node.policy)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "proves nothing" in caplog.text


def test_t59_dev_evidence_under_the_default_policy(dev_node, at):
    assert reason(dev_node.bundle(), at(), default_policy()) == "dev_evidence"


@pytest.mark.parametrize(
    "change",
    [
        {"dev_unsafe": False},
        {"accept": frozenset({"pinned-operator"})},
        {"dev_roots": frozenset()},
        {"min_assurance": Assurance.SOFTWARE},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rule_4_every_part_of_the_policys_word_counts(dev_node, at, change):
    verify(dev_node.bundle(), at(), dev_node.policy)
    reason(dev_node.bundle(), at(), replace(dev_node.policy, **change))


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("10.0.0.7:443", False),
        ("node.example:443", False),
        ("127.0.0.1:443", False),
        ("10.0.0.7:443", True),
        ("[2001:db8::1]:443", True),
        ("127.0.0.1.evil.example:443", True),
        ("localhost.evil.example:443", True),
        ("0.0.0.0:443", True),
        ("127.0.0.1", True),
        ("", True),
    ],
)
def test_t60_dev_unsafe_with_a_remote_address(dev_node, at, address, is_local):
    context = at(address=address, is_local=is_local)
    assert reason(dev_node.bundle(), context, dev_node.policy) == "dev_not_local"


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.8.9.1:65535", "[::1]:443", "localhost:7001", "unix:/run/n.sock"]
)
def test_rule_4_loopback_and_unix_sockets_pass(dev_node, at, address):
    assert verify(dev_node.bundle(), at(address=address), dev_node.policy).dev


_PLAUSIBLE = [
    f"{prefix}{name}"
    for prefix in ("OVERSPILL_", "OVERSPILL_TRUST_", "")
    for name in (
        "DEV",
        "DEBUG",
        "DEV_UNSAFE",
        "UNSAFE",
        "INSECURE",
        "ALLOW_DEV",
        "MIN_ASSURANCE",
        "TRUST_POLICY",
        "POLICY",
        "SKIP_VERIFY",
        "NO_VERIFY",
        "TEST",
        "ENV",
    )
]

_DEFAULT_POLICY_REFUSES = """
import pickle, sys
from overspill.config import load_settings
from overspill.errors import EvidenceRejected
from overspill.trust.policy import default_policy
from overspill.trust.verifier import verify
load_settings()
bundle, context = pickle.load(sys.stdin.buffer)
try:
    verify(bundle, context, default_policy())
except EvidenceRejected as error:
    print(error.reason)
"""


@pytest.mark.parametrize("value", ["1", "true", "NONE", "development"])
def test_t61_every_plausible_environment_variable_set(dev_node, at, value, tmp_path):
    """No environment variable makes development evidence acceptable."""
    import pickle

    from overspill.trust.verifier import Context

    bundle = dev_node.bundle()
    context = Context(at().now_unix, "127.0.0.1:1", True, at().nonce)
    environment = child_environment(dict.fromkeys(_PLAUSIBLE, value) | {"HOME": str(tmp_path)})
    environment["PYTHONPATH"] = ":".join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", _DEFAULT_POLICY_REFUSES],
        input=pickle.dumps((bundle, context)),
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.stdout.decode().strip() == "dev_evidence", done.stderr.decode()


def test_t61_trust_and_sealing_read_no_environment(sources):
    """Nor anything else of this machine: no os, no getenv, no network, no clock."""
    foreign = {"os", "socket", "subprocess", "time", "threading", "asyncio", "urllib", "http"}
    clock = {"now", "utcnow", "today"}
    for package in ("trust", "sealing"):
        for file in (sources / "sdk/overspill" / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                assert not (isinstance(node, ast.Attribute) and node.attr in clock), file
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not foreign & {name.split(".")[0] for name in names}, file


def test_rule_4_the_package_ships_no_dev_root(sources):
    """No certificate, no key, no policy that names one lies in what is shipped."""
    for package in ("sdk/overspill", "cloud/overspill_cloud", "edge/overspill_edge"):
        for file in (sources / package).rglob("*"):
            if file.suffix in {".pem", ".crt", ".cer", ".der", ".key", ".pub"}:
                assert "roots" in file.parts, f"{file} is shipped"
                assert "dev" not in file.name.lower(), f"{file} is shipped"
            if file.suffix == ".toml":
                assert "dev_unsafe" not in file.read_text(), f"{file} is shipped"


def test_rule_5_production_over_every_dev_artefact(dev_node, at, pinned_node):
    """Whatever a development node makes, under each policy that is for real: zero accepted."""
    production = [default_policy(), pinned_node.policy]
    artefacts = [
        dev_node.bundle(mode=mode, label_dev=label, nonce=nonce)
        for mode in (nkc.DEV, nkc.PRODUCTION)
        for label in (True, False)
        for nonce in (None, at().nonce)
    ]
    renamed = [
        replace(bundle, evidence=(replace(bundle.evidence[0], type=kind),))
        for bundle in artefacts
        for kind in ("pinned-operator", "sev-snp", "tdx", "tpm", "nvidia-gpu", "dev-tpm-software")
    ]
    accepted = 0
    for bundle in artefacts + renamed:
        for policy in production:
            for nonce in (None, at().nonce):
                try:
                    verify(bundle, at(nonce=nonce), policy)
                except EvidenceRejected:
                    continue
                accepted += 1
    assert accepted == 0


@pytest.mark.exhaustive
def test_only_the_verifier_constructs_results(sources):
    """``AttestationResult(...)`` occurs in one shipped file."""
    found = set()
    for package in ("sdk", "cloud", "edge"):
        for file in (sources / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and "AttestationResult" in ast.unparse(node.func):
                    found.add(file.relative_to(sources).as_posix())
    assert found == {"sdk/overspill/trust/verifier.py"}


@pytest.mark.exhaustive
def test_sealing_reads_keys_from_results_alone(sources):
    """``seal_secret`` takes an AttestationResult and nothing else; no other function seals."""
    tree = ast.parse((sources / "sdk/overspill/sealing/hpke.py").read_text())
    sealers = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and ".encrypt(" in ast.unparse(node)
    ]
    assert sealers == ["seal_secret"]
    function = next(n for n in ast.walk(tree) if getattr(n, "name", "") == "seal_secret")
    assert [ast.unparse(arg.annotation) for arg in function.args.args] == ["AttestationResult"]


def test_unsafe_things_carry_the_danger_in_their_names():
    for verifier in REGISTRY.values():
        assert verifier.dev == type(verifier).__name__.startswith("Unsafe")


def test_hashes_of_labels_are_the_protocols():
    binding = b"overspill/DEV-rd/v1\x00" + hashlib.sha256(b"x").digest() + bytes(32)
    assert nkc.report_data(b"x", None, dev=True) == hashlib.sha512(binding).digest()
    assert nkc.qualifying_data(b"x", None, dev=True) == hashlib.sha256(binding).digest()
