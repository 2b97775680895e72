"""What a policy demands of hardware holds for bundles too: genuine evidence, refused at step 8."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust import nvidia, verifier
from overspill.trust.base import Subject
from overspill.trust.certificates import parse_certificate
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NO_NONCE, report_data
from overspill.trust.raw import RawContext, appraise_raw
from overspill.trust.roots import VendorRoots
from overspill.trust.snp import SevSnpVerifier
from overspill.trust.tdx import TdxVerifier
from overspill.types.evidence import Evidence, EvidenceBundle

NONCE = bytes(range(32))


@pytest.fixture(autouse=True)
def look_alikes(monkeypatch, roots):
    """The registry with the look-alikes' roots instead of the vendors'."""
    verifiers = (SevSnpVerifier(lambda: roots), TdxVerifier(lambda: roots))
    registry = {**verifier.REGISTRY, **{one.evidence_type: one for one in verifiers}}
    monkeypatch.setattr(verifier, "REGISTRY", registry)


@pytest.fixture
def judged(pinned_node, at):
    """``judged(make, policy)``: the reason, step and detail for evidence over a node's keys."""

    def judge(make, policy, nonce=NONCE, sent=NONCE) -> tuple[str, str, str]:
        nkc = pinned_node.config().encode()
        piece = make(report_data(nkc, nonce, dev=False))
        bundle = EvidenceBundle(nkc, (piece,), measured_log=pinned_node.log)
        found = verifier.appraise(bundle, at(nonce=sent), policy)
        last = [step for step in found.steps if step.ok is not None][-1]
        if found.rejection is None:
            return "accepted", last.n, last.detail
        return found.rejection.reason, found.rejection.step, last.detail

    return judge


@pytest.fixture
def snp(makers):
    """``snp(amd, collateral, **how)``: what makes a piece of SEV-SNP evidence."""

    def piece(amd=None, more=None, **how):
        amd = amd or makers.Amd()
        keys = {"vlek" if amd.vlek else "vcek": amd.endorsement.der, "ask": amd.ask.der}
        collateral = {**keys, **(more or {})}
        return lambda data: Evidence("sev-snp", amd.report(data, **how), collateral)

    return piece


@pytest.mark.parametrize(
    ("how", "reason", "step"),
    [
        ({}, "accepted", "9"),
        ({"policy": 0x30000 | 1 << 19}, "guest_debug", "8.7"),
        ({"policy": 0x30000 | 1 << 18}, "guest_migration", "8.7"),
        ({"vmpl": 1}, "vmpl", "8.7"),
        ({"measurement": bytes(48)}, "measurement_not_listed", "8.9"),
        ({"byte_order": "big"}, "signature_byte_order", "8.5"),
        ({"chip": bytes([9] * 64)}, "chip_id_mismatch", "8.4"),
    ],
)
def test_a_policys_word_about_a_guest(judged, snp, policy_of, how, reason, step):
    assert judged(snp(**how), policy_of("sev-snp"))[:2] == (reason, step)


def test_firmware_under_the_floor(judged, snp, makers, policy_of):
    old = makers.Amd(tcb={"snp": 21})
    assert judged(snp(old), policy_of("sev-snp"))[:2] == ("tcb_below_floor", "8.8")


def test_a_vlek_in_a_bundle(judged, snp, makers, policy_of):
    policy, vlek = policy_of("sev-snp"), makers.Amd(vlek=True)
    assert judged(snp(vlek), policy)[:2] == ("vlek_not_allowed", "8.7")
    allowed = replace(policy, snp=replace(policy.snp, vlek=True))
    assert judged(snp(vlek), allowed)[0] == "accepted"


def test_a_crl_in_a_bundle_counts(judged, snp, makers, policy_of):
    amd, policy = makers.Amd(), policy_of("sev-snp")
    strict = replace(policy, snp=replace(policy.snp, crl_required=True))
    assert judged(snp(amd), strict)[:2] == ("crl_missing", "8.3")
    current = {"crl": amd.ark.crl()}
    assert judged(snp(amd, current), strict)[0] == "accepted"
    revoked = {"crl": amd.ark.crl(amd.ask.serial)}
    assert judged(snp(amd, revoked), policy)[:2] == ("certificate_revoked", "8.3")
    anothers = {"crl": makers.Amd("Genoa").ark.crl()}
    for some in (policy, strict):  # demanded or not, it is not passed over
        assert judged(snp(amd, anothers), some)[:2] == ("crl_issuer", "8.3")


def test_all_that_a_bundle_may_bring_at_once(judged, snp, makers, policy_of):
    """Every known name together is still one endorsement key too many."""
    amd = makers.Amd()
    more = {"vlek": amd.endorsement.der, "crl": amd.ark.crl()}
    assert judged(snp(amd, more), policy_of("sev-snp"))[:2] == ("collateral_unexpected", "8.1")


@pytest.mark.parametrize(
    ("nonce", "sent", "reason"),
    [
        (None, NONCE, "nonce_zero"),
        (NO_NONCE, NONCE, "nonce_zero"),
        (bytes([1] * 32), NONCE, "report_data_mismatch"),
    ],
)
def test_the_nonce_of_a_hardware_report(judged, snp, policy_of, nonce, sent, reason):
    assert judged(snp(), policy_of("sev-snp"), nonce, sent)[:2] == (reason, "8.6")


@pytest.fixture
def tdx(makers, pinned_node):
    """``tdx(intel, collateral, **how)``: what makes a piece of TDX evidence."""

    def piece(intel=None, more=None, **how):
        intel = intel or makers.Intel()
        rtmr3 = MeasuredLog.decode(pinned_node.log).replay_rtmr()
        how = {"rtmrs": (bytes(48), b"\1" * 48, b"\2" * 48, rtmr3)} | how
        collateral = {**intel.collateral(), **(more(intel) if more else {})}
        return lambda data: Evidence("tdx", intel.quote(data, **how), collateral)

    return piece


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({}, "accepted"),
        ({"attributes": 1 << 28 | 1}, "td_debug"),
        ({"attributes": 1 << 29 | 1 << 28}, "td_migration"),
        ({"mrtd": bytes(48)}, "measurement_not_listed"),
        ({"rtmrs": (bytes(48), b"\1" * 48, b"\2" * 48, bytes(48))}, "log_not_replayed"),
        ({"rtmrs": (bytes(48), b"\3" * 48, b"\2" * 48, bytes(48))}, "measurement_not_listed"),
    ],
)
def test_a_policys_word_about_a_trust_domain(judged, tdx, policy_of, how, reason):
    found, step, detail = judged(tdx(**how), policy_of("tdx"))
    assert found == reason, detail
    assert step.startswith("8." if how else "9")


def test_collateral_of_a_bundle_counts(judged, tdx, makers, policy_of):
    policy = policy_of("tdx")
    revoked = lambda intel: {"pck_crl": intel.authority.crl(intel.pck.serial)}  # noqa: E731
    old = lambda intel: {  # noqa: E731
        "tcb_info": intel.tcb_info(issueDate=makers.stamp(-40), nextUpdate=makers.stamp(-10))
    }
    assert judged(tdx(more=revoked), policy)[0] == "certificate_revoked"
    assert judged(tdx(more=old), policy)[0] == "tcb_info_expired"
    outdated = makers.Intel(extension=makers.sgx_extension(pce_svn=5))
    assert judged(tdx(outdated), policy)[0] == "tcb_status"


@pytest.mark.parametrize("kind", ["sev-snp", "tdx"])
def test_a_policy_without_the_section_accepts_nothing(judged, snp, tdx, policy_of, kind):
    policy = policy_of(kind)
    empty = replace(policy, snp=None, tdx=None)
    make = snp() if kind == "sev-snp" else tdx()
    assert judged(make, empty)[0] == "policy_section"


def test_a_bundle_with_a_gpu_and_no_section(makers, snp, policy_of, pinned_node):
    """A policy object that names the GPU's type without its section is refused, not passed."""
    policy = replace(policy_of("sev-snp", "nvidia-gpu"), gpu=None)
    gpu = Evidence("nvidia-gpu", b"x", {"certificates": b""})
    bundle = EvidenceBundle(b"", (gpu,))
    with pytest.raises(EvidenceRejected, match="policy_section"):
        verifier._check_gpu(bundle, None, policy)
    assert verifier._check_gpu(EvidenceBundle(b"", ()), None, policy) == {}


def test_the_details_that_steps_show(judged, snp, makers, policy_of):
    """What an operator reads of a step that passed."""
    policy, vlek = policy_of("sev-snp"), makers.Amd(vlek=True)
    steps = lambda files, how: {  # noqa: E731
        step.n: step.detail for step in appraise_raw("snp", files, *how).steps
    }
    context = RawContext(makers.NOW)
    roots = VendorRoots(
        amd=(parse_certificate(makers.Amd().ark.der),), intel=(), nvidia=(), nvidia_rim=()
    )
    amd = makers.Amd()
    found = steps([amd.report(), amd.endorsement.der, amd.ask.der], (context, policy, roots))
    assert found["8.3"] == "SEV-VCEK <- SEV-Milan <- ARK-Milan; no CRL of ARK-Milan was given"
    assert found["8.4"] == f"chip {makers.CHIP.hex()[:16]}..."
    assert found["8.6"] == "no nonce was given"
    assert found["8.9"] == "any chip"
    pinned = replace(policy, snp=replace(policy.snp, chips=frozenset({makers.CHIP})))
    found = steps(
        [amd.report(), amd.endorsement.der, amd.ask.der, amd.ark.crl()], (context, pinned, roots)
    )
    assert found["8.3"].endswith("; not revoked")
    assert found["8.9"] == "a pinned chip"
    found = steps([vlek.report(), vlek.endorsement.der, vlek.ask.der], (context, None, roots))
    assert found["8.4"] == "a VLEK: the chip stays unnamed"
    assert found["8.7"] == found["8.9"] == "no policy was given"


def test_a_gpus_claims_stand_beside_the_machines(
    makers, roots, policy_of, pinned_node, monkeypatch
):
    """Bound to the keys by digest and nonce; its claims carry their origin in their names."""
    monkeypatch.setattr(verifier, "vendor_roots", lambda: roots)
    policy, draft, gpu = policy_of("sev-snp", "nvidia-gpu"), pinned_node.config(), makers.Nvidia()
    nonce = nvidia.gpu_nonce(draft.boot_id, draft.hpke_public_key)
    piece = Evidence("nvidia-gpu", gpu.report(nonce), {"certificates": gpu.chain})
    config = pinned_node.config(gpu_claims_digest=nvidia.claims_digest(piece))
    log = MeasuredLog.decode(pinned_node.log)
    subject = Subject(config.encode(), config, pinned_node.log, log, None, makers.NOW)
    claims = verifier._check_gpu(EvidenceBundle(b"", (piece,)), subject, policy)
    assert claims["gpu.driver_version"] == makers.DRIVER
    assert all(name.startswith("gpu.") for name in claims)
