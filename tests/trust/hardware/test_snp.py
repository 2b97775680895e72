"""SEV-SNP: each way to be wrong has its own reason; a look-alike vendor makes the evidence."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust import snp
from overspill.trust.certificates import parse_certificate
from overspill.trust.nkc import report_data
from overspill.trust.raw import RawContext, appraise_raw
from overspill.trust.snp_report import GuestPolicy, parse_report, tcb_components
from overspill.types.evidence import Assurance, Evidence

PRODUCTS = ["Milan", "Genoa", "Turin"]


@pytest.fixture(scope="module")
def policy(policy_of):
    return policy_of("sev-snp")


def files(amd, **how) -> list[bytes]:
    return [amd.report(**how), amd.endorsement.der, amd.ask.der]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_good_reports_of_each_product_and_version(makers, judge, policy, product, version):
    found = judge("snp", files(makers.Amd(product), version=version), policy=policy)
    assert found.verdict == "accepted", found.rejection
    assert found.assurance is Assurance.HARDWARE_TEE
    assert found.claims["product"] == product
    assert found.claims["report_version"] == str(version)
    assert found.claims["measurement"] == makers.MEASUREMENT.hex()


def test_without_a_policy_the_verdict_is_authentic(makers, judge):
    found = judge("snp", files(makers.Amd()))
    assert found.verdict == "authentic"
    assert [step.ok for step in found.steps if step.n in ("8.0", "8.7", "8.8", "8.9")] == [None] * 4
    assert [step.ok for step in found.steps if step.n in snp.SIGNATURE_STEPS] == [True] * 5


def test_the_production_verifier_refuses_the_look_alike(makers):
    found = appraise_raw("snp", files(makers.Amd()), RawContext(makers.NOW), None)
    assert found.rejection.reason in ("root_unknown", "certificate_signature")


def test_the_claims_are_what_the_report_says(makers, judge):
    amd = makers.Amd()
    where = {0xC0: bytes([7] * 32), 0xE0: bytes([8] * 48)}
    for policy, vmpl, said in (
        (1 << 17, 0, {"vmpl": "0", "debug": "false", "migration": "false", "smt": "false"}),
        (0x30000, 3, {"vmpl": "3", "debug": "false", "migration": "false", "smt": "true"}),
        (0x30000 | 1 << 18, 1, {"vmpl": "1", "debug": "false", "migration": "true", "smt": "true"}),
    ):
        guest = files(amd, policy=policy, vmpl=vmpl, patch=where, report_data=bytes([9] * 64))
        claims = judge("snp", guest).claims
        assert {name: claims[name] for name in said} == said
        assert claims["tee"] == "SEV-SNP"
        assert claims["signing_key"] == "VCEK"
        assert claims["chip_id"] == makers.CHIP.hex()
        assert claims["endorsement_key_sha256"] == parse_certificate(amd.endorsement.der).sha256
        assert claims["report_data"] == "09" * 64
        assert (claims["host_data"], claims["id_key_digest"]) == ("07" * 32, "08" * 48)
        assert claims["reported_tcb"] == ", ".join(f"{k} {v}" for k, v in amd.tcb.items())


def test_t5_debug(makers, judge, refused, policy):
    guest = files(makers.Amd(), policy=0x30000 | 1 << 19)
    assert refused("snp", guest, policy=policy) == "guest_debug"
    found = judge("snp", guest)
    assert (found.verdict, found.assurance) == ("authentic", Assurance.NONE)
    assert found.claims["debug"] == "true"


@pytest.mark.parametrize("at", [0x2A0, 0x2A0 + 72], ids=["r", "s"])
def test_t11_r_or_s_zero(makers, refused, at):
    report, *rest = files(makers.Amd())
    zero = report[:at] + bytes(72) + report[at + 72 :]
    assert refused("snp", [zero, *rest]) == "signature_zero"
    both = report[:0x2A0] + bytes(512)
    assert refused("snp", [both, *rest]) == "signature_zero"


def test_t12_big_endian_r_and_s(makers, refused):
    assert refused("snp", files(makers.Amd(), byte_order="big")) == "signature_byte_order"
    report, *rest = files(makers.Amd())
    right_aligned = report[:0x2A0] + report[0x2A0 : 0x2A0 + 72][::-1] + report[0x2A0 + 72 :]
    assert refused("snp", [right_aligned, *rest]) == "signature_range"


def test_t13_vcek_of_another_chip(makers, refused):
    report = makers.Amd().report()
    other = makers.Amd(hwid=bytes([9] * 64))
    assert refused("snp", [report, other.endorsement.der, other.ask.der]) == "chip_id_mismatch"


@pytest.mark.parametrize("hwid", [bytes(range(1, 8)), bytes(64), bytes(range(1, 9)) + b"\0"])
def test_t13_turins_chip_id_is_short(makers, refused, hwid):
    assert refused("snp", files(makers.Amd("Turin", hwid=hwid))) == "chip_id_mismatch"


def test_t14_vlek_where_not_allowed(makers, judge, refused, policy):
    amd = makers.Amd(vlek=True)
    assert refused("snp", files(amd), policy=policy) == "vlek_not_allowed"
    allowed = replace(policy, snp=replace(policy.snp, vlek=True))
    found = judge("snp", files(amd), policy=allowed)
    assert found.verdict == "accepted", found.rejection
    assert found.claims["signing_key"] == "VLEK"


def test_t14_a_vlek_does_not_sign_for_a_vcek(makers, refused):
    vlek = makers.Amd(vlek=True)
    assert refused("snp", files(vlek, flags=0)) == "vcek_missing"
    assert refused("snp", files(makers.Amd(), flags=4)) == "vlek_missing"
    assert refused("snp", files(makers.Amd(), flags=7 << 2)) == "signing_key"


@pytest.mark.parametrize("vmpl", [1, 3, 0xFFFFFFFF])
def test_t15_vmpl(makers, refused, policy, vmpl):
    assert refused("snp", files(makers.Amd(), vmpl=vmpl), policy=policy) == "vmpl"


def test_t15_migration(makers, refused, policy):
    guest = files(makers.Amd(), policy=0x30000 | 1 << 18)
    assert refused("snp", guest, policy=policy) == "guest_migration"


@pytest.mark.parametrize("product", PRODUCTS)
def test_t16_one_component_under_the_floor(makers, refused, policy, product):
    """A higher one elsewhere makes up for nothing."""
    good = makers.Amd(product).tcb
    for component, version in good.items():
        higher = {name: 255 for name in good if name != component}
        amd = makers.Amd(product, tcb=higher | {component: version - 1})
        assert refused("snp", files(amd), policy=policy) == "tcb_below_floor"


@pytest.mark.parametrize("which", ["current", "committed", "launch"])
def test_t16_every_tcb_counts(makers, refused, policy, which):
    amd = makers.Amd()
    guest = files(amd, **{which: amd.tcb_bytes(snp=1)})
    assert refused("snp", guest, policy=policy) == "tcb_below_floor"


def test_the_endorsement_key_is_for_the_reported_tcb(makers, refused):
    amd = makers.Amd()
    assert refused("snp", files(amd, reported=amd.tcb_bytes(snp=23))) == "tcb_mismatch"


@pytest.mark.parametrize("reported", ["Genoa", "Turin"])
def test_t17_product_claimed_otherwise_than_reported(makers, refused, reported):
    guest = files(makers.Amd("Milan"), cpuid=makers.CPUID[reported])
    assert refused("snp", guest) == "product_mismatch"


def test_t17_the_key_of_one_product_under_the_root_of_another(makers, refused):
    """A certificate that says Genoa, issued by Milan's authority."""
    amd = makers.Amd("Milan", named="Genoa-B0")
    reason = refused("snp", files(amd, cpuid=makers.CPUID["Genoa"]))
    assert reason == "root_unknown"


@pytest.mark.parametrize("cpuid", [(0x19, 0x20, 0), (0x17, 1, 0), (0x1A, 0x20, 0), (0, 0, 0)])
def test_t17_an_unknown_cpu(makers, refused, cpuid):
    assert refused("snp", files(makers.Amd(), cpuid=cpuid)) == "product_unknown"


def test_t17_a_product_that_is_not_accepted(makers, refused, policy):
    genoa_only = replace(policy, snp=replace(policy.snp, products=frozenset({"Genoa"})))
    assert refused("snp", files(makers.Amd()), policy=genoa_only) == "product_not_accepted"


def test_t18_chip_not_pinned(makers, judge, refused, policy):
    pinned = replace(policy, snp=replace(policy.snp, chips=frozenset({bytes(64)})))
    assert refused("snp", files(makers.Amd()), policy=pinned) == "chip_not_pinned"
    right = replace(policy, snp=replace(policy.snp, chips=frozenset({makers.CHIP})))
    assert judge("snp", files(makers.Amd()), policy=right).verdict == "accepted"


@pytest.mark.parametrize("version", [0, 1, 6, 99])
def test_t19_version_99(makers, version):
    report = makers.Amd().report(version=version)
    assert reason_of(report) == "report_version"


@pytest.mark.parametrize("size", [0, 1, 671, 1183, 1185, 2368])
def test_t19_lengths(makers, refused, size):
    report, *rest = files(makers.Amd())
    changed = (report + report)[:size]
    assert reason_of(changed) == "report_length"
    if size:
        assert refused("snp", [changed, *rest]) == "report_length"


def test_a_version_that_the_policy_does_not_take(makers, refused, policy):
    new_only = replace(policy, snp=replace(policy.snp, report_versions=frozenset({5})))
    assert refused("snp", files(makers.Amd()), policy=new_only) == "report_version_not_accepted"


def test_an_image_that_is_not_listed(makers, refused, policy):
    guest = files(makers.Amd(), measurement=bytes(48))
    assert refused("snp", guest, policy=policy) == "measurement_not_listed"


# --- layout -----------------------------------------------------------------------------------


def reason_of(report: bytes) -> str:
    with pytest.raises(EvidenceRejected) as caught:
        parse_report(report)
    return caught.value.reason


@pytest.mark.parametrize(
    ("at", "value", "version"),
    [
        (0x48, b"\x20", 3),
        (0x4C, b"\1", 3),
        (0x0A, b"\1", 3),
        (0x0F, b"\1", 3),
        (0x18B, b"\1", 3),
        (0x188, b"\1", 2),
        (0x1EB, b"\1", 3),
        (0x1EF, b"\1", 3),
        (0x1F8, b"\1", 4),
        (0x208, b"\1", 5),
        (0x29F, b"\1", 5),
    ],
)
def test_reserved_bytes_are_zero(makers, at, value, version):
    assert reason_of(makers.Amd().report(version=version, patch={at: value})) == "report_malformed"


def test_version_5_gives_two_fields_a_meaning(makers):
    assert parse_report(makers.Amd().report(version=5, patch={0x1F8: b"\1" * 16})).version == 5


def test_what_follows_the_signature_is_zero(makers):
    report = makers.Amd().report()
    assert reason_of(report[:-1] + b"\1") == "report_malformed"


def test_other_signature_algorithms_are_refused(makers):
    assert reason_of(makers.Amd().report(algorithm=2)) == "signature_algorithm"


def test_reserved_tcb_bytes_are_zero(makers, refused):
    amd = makers.Amd()
    odd = bytearray(amd.tcb_bytes())
    odd[3] = 1
    assert refused("snp", files(amd, reported=bytes(odd))) == "report_malformed"


def test_the_guest_policys_bits():
    policy = GuestPolicy(0x130000 | 0x0137)
    assert policy.abi == (1, 0x37)
    assert policy.smt
    assert policy.single_socket
    assert not policy.debug
    assert not policy.migration


def test_turin_orders_its_tcb_otherwise():
    raw = bytes((1, 2, 3, 4, 0, 0, 0, 5))
    assert tcb_components("Turin", raw) == {
        "fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 5,
    }  # fmt: skip
    with pytest.raises(EvidenceRejected):
        tcb_components("Milan", raw)


# --- keys and chains --------------------------------------------------------------------------


def test_a_changed_report_is_refused(makers, refused):
    report, *rest = files(makers.Amd())
    flipped = report[:0x50] + b"\1" + report[0x51:]
    assert refused("snp", [flipped, *rest]) == "evidence_signature"


def test_the_intermediate_is_needed(makers, refused):
    amd = makers.Amd()
    assert refused("snp", [amd.report(), amd.endorsement.der]) == "root_unknown"


def test_a_look_alike_root_is_another_root(makers, refused):
    fake = makers.Amd(seed="somebody else")
    chain = [fake.report(), fake.endorsement.der, fake.ask.der, fake.ark.der]
    assert refused("snp", chain) == "root_unknown"


def test_an_intermediate_of_another_name(makers, refused):
    """The root itself must not sign endorsement keys."""
    amd = makers.Amd()
    amd.ask = amd.ark
    assert refused("snp", [amd.report(), amd.endorsement.der]) == "issuer_unexpected"


@pytest.mark.parametrize(("days", "reason"), [(101, "certificate_expired"), (-101, "_not_yet")])
def test_expiry(makers, refused, days, reason):
    now = makers.NOW + days * 86400
    assert reason in refused("snp", files(makers.Amd()), now=now)


def test_two_different_keys_are_ambiguous(makers, refused):
    one, two = makers.Amd(), makers.Amd(hwid=bytes(64))
    assert refused("snp", [*files(one), two.endorsement.der]) == "vcek_missing"


@pytest.mark.parametrize(
    ("number", "value"),
    [("2", b"\x16\x05Milan\0"), ("2", b"\x16\x04Rome"), ("2", b"\x0c\x05Milan"), ("4", None),
     ("3.3", None), ("3.3", b"\x02\x02\x00\x16"), ("3.3", b"\x02\x01\x16\0"), ("3.3", b"\x04\x00")],
)  # fmt: skip
def test_amds_extensions_are_read_strictly(makers, refused, number, value):
    amd = makers.Amd(key_extensions={f"1.3.6.1.4.1.3704.1.{number}": value})
    assert refused("snp", files(amd)) == "certificate_extension"


def test_the_product_name_may_lack_a_stepping(makers, judge):
    assert judge("snp", files(makers.Amd(named="Milan"))).verdict == "authentic"


def test_a_certificate_without_a_product_is_no_endorsement_key(makers):
    with pytest.raises(EvidenceRejected, match="product name"):
        snp.product_of(parse_certificate(makers.Amd().ask.der))


# --- revocation -------------------------------------------------------------------------------


def test_a_revoked_intermediate(makers, judge, refused, policy):
    amd = makers.Amd()
    assert refused("snp", [*files(amd), amd.ark.crl(11)]) == "certificate_revoked"
    assert judge("snp", [*files(amd), amd.ark.crl(12)]).verdict == "authentic"
    needed = replace(policy, snp=replace(policy.snp, crl_required=True))
    assert refused("snp", files(amd), policy=needed) == "crl_missing"
    assert judge("snp", [*files(amd), amd.ark.crl()], policy=needed).verdict == "accepted"


def test_an_expired_or_forged_crl(makers, refused):
    amd = makers.Amd()
    assert refused(
        "snp", [*files(amd), amd.ark.crl(days=0, from_days=-9)[:]], now=makers.NOW + 1
    ) == ("crl_expired")
    forged = makers.Amd(seed="somebody else").ark.crl()
    assert refused("snp", [*files(amd), forged]) == "crl_signature"


# --- nonces and bundles -----------------------------------------------------------------------


def test_a_nonce_is_compared_with_the_report_data(makers, judge, refused):
    amd = makers.Amd()
    guest = files(amd, report_data=b"a nonce")
    assert judge("snp", guest, nonce=b"a nonce").verdict == "authentic"
    assert judge("snp", guest, nonce=b"a nonce".ljust(64, b"\0")).verdict == "authentic"
    for other in (b"another", b"a nonc", b"a nonce1"):
        assert refused("snp", guest, nonce=other) == "nonce_mismatch"


def test_a_type_that_the_policy_does_not_accept(makers, refused, policy_of):
    guest = files(makers.Amd())
    assert refused("snp", guest, policy=policy_of("tdx")) == "evidence_type_not_accepted"


def test_an_open_guest_never_reaches_a_floor(makers, judge, policy):
    """Were debugging no step of its own, the assurance would still refuse it."""
    found = judge("snp", files(makers.Amd(), policy=0x30000 | 1 << 19))
    assert found.assurance < policy.min_assurance


@pytest.fixture
def bundle_check(roots, policy_of, subject_of):
    """``bundle_check(amd, policy=, nonce=, ...)``: what step 8 says of a bundle."""

    def run(amd, *, policy=None, nonce=None, made_over=None, dev=False, **changes):
        subject = subject_of(nonce)
        data = amd.report(report_data(subject.nkc_bytes, made_over, dev))
        collateral = {"vlek" if amd.vlek else "vcek": amd.endorsement.der, "ask": amd.ask.der}
        evidence = Evidence(
            "sev-snp", changes.get("data", data), collateral | changes.get("more", {})
        )
        for name in changes.get("without", ()):
            del evidence.collateral[name]
        verifier = snp.SevSnpVerifier(lambda: roots)
        return verifier.check(evidence, subject, policy or policy_of("sev-snp"))

    return run


def reason(check, *args, **how) -> str:
    with pytest.raises(EvidenceRejected) as caught:
        check(*args, **how)
    assert caught.value.step.startswith("8.")
    return caught.value.reason


NONCE = bytes(range(32))


def test_a_bundles_report_binds_the_configuration(makers, bundle_check):
    assert bundle_check(makers.Amd(), nonce=NONCE, made_over=NONCE)["product"] == "Milan"
    assert bundle_check(makers.Amd())["product"] == "Milan"
    assert bundle_check(makers.Amd(), more={"crl": makers.Amd().ark.crl()})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"made_over": None}, "nonce_zero"),
        ({"made_over": bytes(32)}, "nonce_zero"),
        ({"made_over": bytes([7] * 32)}, "report_data_mismatch"),
        ({"dev": True, "made_over": NONCE}, "report_data_label"),
        ({"dev": True, "made_over": None}, "report_data_label"),
        ({"without": ["vcek"]}, "collateral_unexpected"),
        ({"more": {"vlek": b""}}, "collateral_unexpected"),
        ({"more": {"x": b""}}, "collateral_unexpected"),
        ({"more": {"vcek": b"x"}}, "certificate_malformed"),
        ({"more": {"crl": b"x"}}, "certificate_malformed"),
        ({"data": b""}, "report_length"),
    ],
)
def test_a_bundles_report_about_something_else(makers, bundle_check, how, expected):
    assert reason(bundle_check, makers.Amd(), nonce=NONCE, **how) == expected


def test_a_report_cannot_stand_for_pinned_wheels(makers, bundle_check, policy_of):
    """It binds no register: such a pin would be believed without a ground."""
    policy = policy_of("sev-snp")
    for kind in ("wheels", "engines"):
        reference = replace(policy.reference, **{kind: frozenset({bytes(32)})})
        found = reason(bundle_check, makers.Amd(), policy=replace(policy, reference=reference))
        assert found == "log_not_bound"


def test_a_policy_without_its_section(makers, bundle_check, policy_of):
    policy = replace(policy_of("sev-snp"), snp=None)
    assert reason(bundle_check, makers.Amd(), policy=policy) == "policy_section"


@pytest.mark.exhaustive
def test_each_byte_of_a_report_and_its_keys_counts(makers, roots, policy_of):
    """No byte is malleable: of the report, of the VCEK, of the intermediate."""
    amd = makers.Amd()
    good = files(amd)
    policy, accepted = policy_of("sev-snp"), []
    for which, data in enumerate(good):
        for place in range(0, len(data), 1 if which == 0 else 3):
            flipped = bytearray(data)
            flipped[place] ^= 1
            changed = [*good[:which], bytes(flipped), *good[which + 1 :]]
            found = appraise_raw("snp", changed, RawContext(makers.NOW, bytes(64)), policy, roots)
            if found.verdict != "rejected":
                accepted.append((which, place))
    assert accepted == []
    assert struct.unpack_from("<I", good[0])[0] == 3


def test_an_endorsement_key_of_another_curve(makers, refused):
    amd = makers.Amd()
    leaf = amd.endorsement
    leaf.curve = makers.P256
    assert refused("snp", [amd.report(), leaf.der, amd.ask.der]) == "key_unsupported"


def test_assurance_under_the_floor(makers, judge, policy):
    """A policy made by hand that forgets the step still has its floor."""
    from overspill.trust.raw import _check_assurance

    with pytest.raises(EvidenceRejected) as caught:
        _check_assurance(Assurance.NONE, policy)
    assert caught.value.reason == "assurance_too_low"
