"""The policies that a guest's operator prints: what they demand is what the guest reports."""

from __future__ import annotations

import pytest

from overspill.errors import UsageError
from overspill.trust.closed import CLOSED_AT_START
from overspill.trust.policy import parse_policy
from overspill.trust.template_hardware import snp_policy_text, tdx_policy_text
from overspill.types.evidence import Assurance

MODELS = {"river": bytes([7] * 32)}
TCB = {"bootloader": 4, "tee": 0, "snp": 22, "microcode": 213}


def test_a_snp_guests_policy():
    policy = parse_policy(snp_policy_text("Milan", bytes([1] * 48), TCB, MODELS))
    assert policy.accept == {"sev-snp"}
    assert policy.min_assurance is Assurance.HARDWARE_TEE
    assert policy.snp.measurements == {bytes([1] * 48)}
    assert policy.snp.min_tcb == {"Milan": TCB}
    assert not policy.snp.vlek
    assert policy.reference.models == MODELS
    assert policy.closed == set(CLOSED_AT_START)


def test_a_tdx_guests_policy():
    values = [bytes([n] * 48) for n in (1, 2, 3)]
    policy = parse_policy(tdx_policy_text(*values, MODELS))
    assert policy.tdx.mrtd == {values[0]}
    assert policy.tdx.rtmrs == {1: {values[1]}, 2: {values[2]}}
    assert policy.closed == set(CLOSED_AT_START)


def test_a_policy_for_no_model_is_none():
    with pytest.raises(UsageError):
        tdx_policy_text(bytes(48), bytes(48), bytes(48), {})
