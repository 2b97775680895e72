"""The software TPM for real: swtpm, its quotes, and what a verifier makes of them."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pytest

from overspill.errors import ConfigurationError, EvidenceRejected, MissingExtra
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NodeKeyConfig, qualifying_data
from overspill.trust.policy import parse_policy
from overspill.trust.template import tpm_dev_policy
from overspill.trust.tpm import EK_CERTIFICATE, TpmEvidence
from overspill.trust.verifier import verify
from overspill.types.evidence import Evidence


@pytest.fixture
def attester(swtpm_state):
    from overspill_cloud.attester import open_attester

    made = open_attester("tpm", swtpm_state)
    yield made
    made.close()


@pytest.fixture
def policy(attester, models):
    return parse_policy(tpm_dev_policy(attester.root_pem, models))


@pytest.fixture
def now() -> int:
    return int(time.time())


@pytest.fixture
def good(attester, bundle_of, log, now):
    return bundle_of(attester, log, now_unix=now)


def reason(bundle, context, policy) -> str:
    with pytest.raises(EvidenceRejected) as caught:
        verify(bundle, context, policy)
    return caught.value.reason


def with_quote(attester, bundle, pcrs, bank="sha256", data=None):
    """The bundle with a quote over other registers, by the same key."""
    old = bundle.evidence[0]
    parts = TpmEvidence.decode(old.data)
    data = data or qualifying_data(bundle.node_key_config, parts.nonce, dev=True)
    quote, signature = attester._tpm.quote(attester._ak, pcrs, data, bank)
    new = replace(parts, quote=quote, signature=signature).encode()
    return replace(bundle, evidence=(replace(old, data=new),))


def test_the_whole_flow(attester, good, policy, at, now):
    result = verify(good, at(now_unix=now), policy)
    assert result.claims["tpm"] == "software"
    assert result.claims["ak_name"] == attester._ak.name.hex()
    assert result.dev


@pytest.mark.parametrize("pcrs", [[23], [16], [12], [12, 13, 14, 23], [0, 12, 13, 14]])
def test_t41_pcr_23_alone_and_other_registers(attester, good, policy, at, now, pcrs):
    bundle = with_quote(attester, good, pcrs)
    assert reason(bundle, at(now_unix=now), policy) == "pcr_selection"


def test_t48_another_bank(attester, good, policy, at, now):
    bundle = with_quote(attester, good, [12, 13, 14], bank="sha384")
    assert reason(bundle, at(now_unix=now), policy) == "pcr_bank"


def test_t43_ak_not_restricted(attester, good, policy, at, now):
    """A key in the same TPM that would sign anything: also when the authority activated it."""
    tpm = attester._tpm
    loose = tpm.attestation_key(restricted=False)
    parts = TpmEvidence.decode(good.evidence[0].data)
    data = replace(parts, ak_public=loose.public_bytes).encode()
    bundle = replace(good, evidence=(replace(good.evidence[0], data=data),))
    assert reason(bundle, at(now_unix=now), policy) == "ak_not_restricted"


def test_another_ak_of_the_same_tpm_was_not_activated(attester, good, policy, at, now):
    activated = TpmEvidence.decode(good.evidence[0].data)
    other = replace(activated, activation=bytes(64))
    bundle = replace(good, evidence=(replace(good.evidence[0], data=other.encode()),))
    assert reason(bundle, at(now_unix=now), policy) == "ak_not_activated"


def test_t44_event_log_does_not_replay(good, policy, at, now, other_log):
    bundle = replace(good, measured_log=other_log)
    assert reason(bundle, at(now_unix=now), policy) == "log_not_replayed"


def test_t47_an_extra_measured_file(attester, good, policy, at, now):
    attester._tpm.extend(13, bytes([1] * 32))
    bundle = with_quote(attester, good, [12, 13, 14])
    assert reason(bundle, at(now_unix=now), policy) == "log_not_replayed"


def test_t46_t45_config_or_model_swapped_in_the_log(good, policy, at, now):
    for which, expected in ((2, "models_manifest_malformed"), (3, "measured_log_malformed")):
        log = list(good.measured_log)
        log[which] = log[which][:-1] + bytes([log[which][-1] ^ 1])
        bundle = replace(good, measured_log=tuple(log))
        assert reason(bundle, at(now_unix=now), policy) in {expected, "measured_log_malformed"}


def test_t1_t7_a_quote_over_something_else(attester, good, policy, at, now):
    bundle = with_quote(attester, good, [12, 13, 14], data=bytes(32))
    assert reason(bundle, at(now_unix=now), policy) == "nkc_not_bound"
    config = NodeKeyConfig.decode(good.node_key_config)
    stolen = replace(config, hpke_public_key=bytes(1216)).encode()
    bundle = replace(good, node_key_config=stolen)
    assert reason(bundle, at(now_unix=now), policy) == "nkc_not_bound"


def test_t6_a_quote_under_the_production_label(attester, good, policy, at, now):
    data = qualifying_data(good.node_key_config, at().nonce, dev=False)
    bundle = with_quote(attester, good, [12, 13, 14], data=data)
    assert reason(bundle, at(now_unix=now), policy) == "report_data_label"


def test_t62_software_ek_in_the_hardware_store(good, policy, at, now, models, tmp_path):
    """An authority that the policy does not name, whatever it certifies: also a vendor's name."""
    from datetime import UTC, datetime

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding

    from overspill_cloud.attester.tpm_authority import UnsafeDevAuthority

    other = UnsafeDevAuthority.generate(Ed25519PrivateKey.generate(), datetime.now(UTC))
    pem = other.root.public_bytes(Encoding.PEM).decode()
    text = tpm_dev_policy(pem, models)
    assert reason(good, at(now_unix=now), parse_policy(text)) == "ek_root_unknown"
    as_hardware = replace(good, evidence=(replace(good.evidence[0], type="tpm"),))
    assert reason(as_hardware, at(now_unix=now), policy) == "evidence_type_not_accepted"


def test_t59_t60_only_for_development(good, policy, at, now):
    from overspill.trust.policy import default_policy

    remote = at(now_unix=now, address="node.example:443", is_local=False)
    assert reason(good, remote, policy) == "dev_not_local"
    assert reason(good, at(now_unix=now), default_policy()) == "dev_evidence"


def test_each_byte_flipped_in_turn_is_refused(good, policy, at, now):
    evidence = good.evidence[0]
    accepted = []
    for at_byte in range(len(evidence.data)):
        data = bytearray(evidence.data)
        data[at_byte] ^= 1
        bundle = replace(good, evidence=(replace(evidence, data=bytes(data)),))
        try:
            verify(bundle, at(now_unix=now), policy)
        except EvidenceRejected:
            continue
        accepted.append(at_byte)
    certificate = evidence.collateral[EK_CERTIFICATE]
    for at_byte in range(len(certificate)):
        der = bytearray(certificate)
        der[at_byte] ^= 1
        changed = Evidence(evidence.type, evidence.data, {EK_CERTIFICATE: bytes(der)})
        try:
            verify(replace(good, evidence=(changed,)), at(now_unix=now), policy)
        except EvidenceRejected:
            continue
        accepted.append(-at_byte)
    assert accepted == []


def test_expired_certificates_are_refused(good, policy, at, now):
    config = NodeKeyConfig.decode(good.node_key_config)
    assert config.not_before <= now
    later = now + 400 * 24 * 3600
    moved = replace(config, not_before=later - 60, not_after=later + 60).encode()
    bundle = replace(good, node_key_config=moved)
    assert reason(bundle, at(now_unix=later), policy) == "ek_certificate_expired"


def test_collateral_is_exactly_the_certificate(good, policy, at, now):
    for collateral in ({}, {**good.evidence[0].collateral, "more": b""}):
        bundle = replace(good, evidence=(replace(good.evidence[0], collateral=collateral),))
        assert reason(bundle, at(now_unix=now), policy) == "collateral_unexpected"


# --- the attesting side -----------------------------------------------------------------------


def test_registers_only_go_forward(attester, bundle_of, log, other_log, now):
    bundle_of(attester, log, now_unix=now)
    registers = attester._tpm.registers([12, 13, 14])
    assert registers == MeasuredLog.decode(log).replay()
    bundle_of(attester, log, now_unix=now)
    assert attester._tpm.registers([12, 13, 14]) == registers
    with pytest.raises(ConfigurationError, match="other measurements"):
        bundle_of(attester, other_log, now_unix=now)


def test_a_restart_has_a_fresh_tpm_and_the_same_authority(swtpm_state, bundle_of, models, at, now):
    from overspill_cloud.attester import open_attester

    first = open_attester("tpm", swtpm_state)
    root = first.root_pem
    first.close()
    second = open_attester("tpm", swtpm_state)
    assert second.root_pem == root
    assert second._tpm.registers([12, 13, 14]) == dict.fromkeys([12, 13, 14], bytes(32))
    second.close()


def test_the_tpm_process_ends_with_its_attester(swtpm_state):
    from overspill_cloud.attester.swtpm import SwtpmProcess

    process = SwtpmProcess(swtpm_state / "tpm")
    process.close()
    assert process._process.returncode is not None
    process.close()


def test_a_tpm_that_cannot_be_reached_is_named(swtpm_state):
    from overspill_cloud.attester import open_attester

    with pytest.raises(ConfigurationError, match="cannot be reached"):
        open_attester("tpm:device:/dev/no-such-tpm", swtpm_state)


def test_a_lost_tpm_is_a_clear_error(swtpm_state, log, bundle_of):
    from overspill_cloud.attester import open_attester

    attester = open_attester("tpm", swtpm_state)
    bundle_of(attester, log)
    attester._on_close()
    with pytest.raises(ConfigurationError, match="The TPM"):
        bundle_of(attester, log)


def test_an_absent_tpm_library_names_the_extra(tmp_path, monkeypatch):
    from overspill_cloud.attester import open_attester

    for name in ("tpm", "tpm_device", "tpm_authority"):
        monkeypatch.delitem(sys.modules, f"overspill_cloud.attester.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(MissingExtra, match="'tpm'"):
        open_attester("tpm", tmp_path)


def test_an_absent_swtpm_names_its_package(tmp_path, monkeypatch):
    from overspill_cloud.attester import swtpm

    monkeypatch.setattr(swtpm.shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match="apt-get install swtpm"):
        swtpm.SwtpmProcess(tmp_path)
