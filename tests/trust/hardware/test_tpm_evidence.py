"""TPM and vTPM quotes: raw ones from anywhere, and those of a bundle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from overspill.errors import EvidenceRejected
from overspill.trust.event_log import SHA384, parse_event_log
from overspill.trust.nkc import NO_NONCE, qualifying_data
from overspill.trust.raw import RawContext, appraise_raw
from overspill.trust.snp_vtpm import SevSnpVtpmVerifier, VtpmEvidence
from overspill.trust.tpm_hardware import HardwareTpmVerifier
from overspill.trust.tpm_keys import parse_public
from overspill.trust.tpm_structures import parse_quote
from overspill.trust.vtpm import parse_hcl
from overspill.types.evidence import Assurance, Evidence

VARIABLE, SEPARATOR = 0x80000001, 0x00000004
VALUES = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in range(8)}


@pytest.fixture(scope="module")
def ak(makers):
    return makers.key("attestation key", makers.P256)


def spki(private) -> bytes:
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def quote_files(makers, ak, values=VALUES, data=b"nonce", **how) -> list[bytes]:
    quote = makers.attest(data, values, **how)
    return [quote, makers.ecc_signature(ak, quote), makers.ecc_public(ak)]


# --- raw quotes -------------------------------------------------------------------------------


def test_a_good_quote_by_an_unknown_key(makers, ak, judge):
    found = judge("tpm", quote_files(makers, ak), nonce=b"nonce")
    assert found.verdict == "authentic", found.rejection
    assert found.assurance is Assurance.NONE
    assert found.claims["registers"] == "0-7"
    assert {step.n for step in found.steps if step.ok is None} == {"8.0", "8.3", "8.8", "8.9"}


@pytest.mark.parametrize("curve", ["P256", "P384"])
def test_keys_come_in_several_forms(makers, judge, curve):
    private = makers.key("k", getattr(makers, curve))
    quote = makers.attest(b"", VALUES)
    signature = makers.ecc_signature(private, quote)
    for form in (spki(private), makers.ecc_public(private)):
        assert judge("tpm", [quote, signature, form]).verdict == "authentic"
    area = makers.ecc_public(private)
    assert judge("tpm", [quote, signature, makers.sized(area)]).verdict == "authentic"
    strangers = [spki(makers.key(str(n), makers.P256)) for n in range(3)]
    assert judge("tpm", [quote, signature, *strangers, area]).verdict == "authentic"


def test_rsa_quotes(makers, judge, refused):
    private = makers.rsa_key()
    quote = makers.attest(b"", VALUES)
    bare = makers.rsa_signature(private, quote)
    typed = b"\x00\x14\x00\x0b" + makers.sized(bare)
    for signature in (bare, typed):
        parts = json.dumps({"message": quote.hex(), "signature": signature.hex()}).encode()
        evidence = [parts, makers.rsa_public(private)]
        assert judge("tpm", evidence).verdict == "authentic"
    pss = b"\x00\x16\x00\x0b" + makers.sized(bare)
    assert refused("tpm", [quote, pss, makers.rsa_public(private)]) == "evidence_signature"
    ecc = makers.ecc_public(makers.key("k", makers.P256))
    assert refused("tpm", [quote, typed, ecc]) == "signature_algorithm"


def test_wrong_nonce(makers, ak, refused):
    assert refused("tpm", quote_files(makers, ak), nonce=b"other") == "nonce_mismatch"


@pytest.mark.parametrize("pcrs", [(23,), (16,), (16, 23), ()])
def test_t41_pcr_23_alone(makers, ak, refused, pcrs):
    values = dict.fromkeys(pcrs, bytes(32))
    assert refused("tpm", quote_files(makers, ak, values)) == "pcr_selection"


@pytest.mark.parametrize(
    ("how", "reason"), [({"magic": 0xFF544346}, "tpm_magic"), ({"kind": 0x8017}, "tpm_type")]
)
def test_t42_magic_or_type_wrong(makers, ak, refused, how, reason):
    files = quote_files(makers, ak, **how)
    with pytest.raises(EvidenceRejected, match=reason):
        parse_quote(files[0])
    assert refused("tpm", files) == reason


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (0x00040072, "ak_not_restricted"),
        (0x00010072, "ak_not_restricted"),
        (0x00050070, "ak_not_fixed"),
        (0x00050062, "ak_not_fixed"),
        (0x00050052, "ak_not_fixed"),
        (0x00070072, "ak_not_fixed"),
    ],
)
def test_t43_ak_not_restricted(makers, ak, refused, attributes, reason):
    quote, signature, _ = quote_files(makers, ak)
    area = makers.ecc_public(ak, attributes)
    assert refused("tpm", [quote, signature, area]) == reason


@pytest.mark.parametrize("bank", [0x0004, 0x000C])
def test_t48_sha1_bank(makers, ak, refused, bank):
    assert refused("tpm", quote_files(makers, ak, bank=bank)) == "pcr_bank"


def json_pcrs(values) -> bytes:
    return json.dumps({"pcrs": [value.hex() for value in values]}).encode()


def test_the_registers_values(makers, ak, judge, refused):
    files = quote_files(makers, ak)
    right = json_pcrs(VALUES.values())
    found = judge("tpm", [*files, right])
    assert found.verdict == "authentic"
    assert "at the values given" in next(s.detail for s in found.steps if s.n == "8.7")
    wrong = json_pcrs([bytes(32), *list(VALUES.values())[1:]])
    assert refused("tpm", [*files, wrong]) == "pcr_values_mismatch"
    assert refused("tpm", [*files, json_pcrs(list(VALUES.values())[:3])]) == "pcr_values"
    assert refused("tpm", [*files, b'{"pcrs":["00"]}']) == "pcr_values"
    assert refused("tpm", [*files, right, wrong]) == "evidence_count"


def test_t44_event_log_does_not_replay(makers, ak, judge, refused):
    log = makers.event_log()
    values = parse_event_log(log).replay()
    good = quote_files(makers, ak, values)
    found = judge("tpm", [*good, log])
    assert found.verdict == "authentic", found.rejection
    assert found.claims["secure_boot"] == "on"
    longer = log + makers.event(7, 0xD, b"more")
    assert refused("tpm", [*good, longer]) == "log_not_replayed"
    assert refused("tpm", [*quote_files(makers, ak, {1: bytes(32)}), log]) == "log_not_replayed"
    given = json_pcrs([values.get(n, bytes(32)) for n in range(15)])
    assert judge("tpm", [*good, log, given]).verdict == "authentic"
    assert refused("tpm", [*good, longer, given]) == "log_not_replayed"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_nothing_may_be_missing(makers, ak, refused, missing):
    files = quote_files(makers, ak)
    del files[missing]
    assert refused("tpm", files) in ("evidence_missing", "ak_missing", "evidence_count")


@pytest.mark.parametrize(
    "how",
    [{"kind": 8}, {"name_alg": 4}, {"symmetric": 6}, {"scheme": 0x10}, {"hash": 4}, {"curve": 5}],
    ids=lambda how: next(iter(how)),
)
def test_other_keys_are_refused(makers, ak, how):
    with pytest.raises(EvidenceRejected, match="ak_algorithm"):
        parse_public(makers.ecc_public(ak, **how))


def test_keys_that_are_none(makers, ak):
    area = makers.ecc_public(ak)
    for broken in (
        area[:-1] + bytes([area[-1] ^ 1]),
        makers.rsa_public(makers.rsa_key(), bits=1024),
        makers.rsa_public(makers.rsa_key(), modulus=bytes(256)),
        area + b"\0",
        area[:-1],
        b"",
    ):
        with pytest.raises(EvidenceRejected):
            parse_public(broken)


# --- raw quotes under a policy ----------------------------------------------------------------


@pytest.fixture
def certified(makers, ak):
    """A quote whose key a privacy CA certified, its event log, and the CA."""
    authority = makers.Authority("Privacy CA")
    leaf = makers.Authority("AK", makers.P256, authority, "attestation key", is_authority=False)
    log = makers.event_log()
    values = parse_event_log(log).replay()
    quote, signature, _ = quote_files(makers, ak, values)
    return [quote, signature, leaf.pem, log], authority


def tpm_section(authority, *more: str) -> str:
    return "\n".join([f'ak_roots = ["""\n{authority.pem.decode()}"""]', *more])


def test_a_certified_key_is_a_tpms(certified, judge, refused, policy_of, makers):
    files, authority = certified
    accept = {"floor": "HARDWARE_TPM", "tpm": tpm_section(authority)}
    found = judge("tpm", files, policy=policy_of("tpm", **accept))
    assert found.verdict == "accepted", found.rejection
    assert found.assurance is Assurance.HARDWARE_TPM
    other = tpm_section(makers.Authority("Privacy CA", seed="somebody else"))
    policy = policy_of("tpm", floor="HARDWARE_TPM", tpm=other)
    assert refused("tpm", files, policy=policy) == "certificate_signature"


def test_a_policy_wants_a_certificate(certified, makers, ak, refused, policy_of):
    files, authority = certified
    policy = policy_of("tpm", floor="HARDWARE_TPM", tpm=tpm_section(authority))
    assert (
        refused("tpm", [*files[:2], makers.ecc_public(ak), files[3]], policy=policy) == "ak_unknown"
    )


@pytest.mark.parametrize(
    ("secure_boot", "reason"), [(b"\0", "secure_boot_off"), (None, "secure_boot_unknown")]
)
def test_t48_secure_boot_off(makers, ak, certified, judge, refused, policy_of, secure_boot, reason):
    (_, _, leaf, _), authority = certified
    log = makers.event_log(secure_boot)
    quote, signature, _ = quote_files(makers, ak, parse_event_log(log).replay())
    policy = policy_of("tpm", floor="HARDWARE_TPM", tpm=tpm_section(authority))
    assert refused("tpm", [quote, signature, leaf, log], policy=policy) == reason
    assert refused("tpm", [quote, signature, leaf], policy=policy) == "secure_boot_unknown"
    lenient = tpm_section(authority, "secure_boot = false")
    policy = policy_of("tpm", floor="HARDWARE_TPM", tpm=lenient)
    assert judge("tpm", [quote, signature, leaf, log], policy=policy).verdict == "accepted"


def test_registers_that_a_policy_lists(certified, judge, refused, policy_of):
    files, authority = certified
    value = parse_event_log(files[3]).replay()[7].hex()
    for pcrs, reason in (
        (f'pcrs = {{ 7 = ["{value}"] }}', None),
        (f'pcrs = {{ 7 = ["{"00" * 32}"] }}', "pcr_not_listed"),
        (f'pcrs = {{ 5 = ["{value}"] }}', "pcr_unknown"),
    ):
        policy = policy_of("tpm", floor="HARDWARE_TPM", tpm=tpm_section(authority, pcrs))
        if reason is None:
            assert judge("tpm", files, policy=policy).verdict == "accepted"
        else:
            assert refused("tpm", files, policy=policy) == reason


# --- the event log ----------------------------------------------------------------------------


def test_secure_boot_is_what_the_firmware_measured(makers):
    on, off = (makers.event(7, VARIABLE, makers.variable("SecureBoot", v)) for v in (b"\1", b"\0"))
    forged = makers.event(7, VARIABLE, makers.variable("SecureBoot", b"\1"), bytes(32))
    debug = makers.event(7, 0x80000007, b"UEFI Debug Mode")
    other = makers.event(7, VARIABLE, makers.variable("PK", b"\1"))
    elsewhere = makers.event(1, VARIABLE, makers.variable("SecureBoot", b"\1"))
    end = makers.event(7, SEPARATOR, bytes(4))
    for events, expected in (
        (on + end, True), (forged + end, None), (on + debug + end, False), (other + end, None),
        (end + on, None), (off + end, False), (on + off + end, False), (elsewhere + end, None),
        (on, None), (end + on + end, None), (on + end + off + debug, True),
    ):  # fmt: skip
        assert parse_event_log(makers.spec_id() + events).secure_boot is expected


@pytest.mark.parametrize("border", [bytes(4), b"\xff" * 4, b"\1\0\0\0"])
def test_other_kinds_in_the_log_do_not_move_what_the_firmware_measured(makers, border):
    """A boot loader on a machine without secure boot measures the variable as it would like it, and
    hands out a log with other kinds and data, which no register covers: nothing is believed."""
    off = hashlib.sha256(makers.variable("SecureBoot", b"\0")).digest()
    end, debug = hashlib.sha256(border).digest(), hashlib.sha256(b"UEFI Debug Mode").digest()
    wish = makers.event(7, VARIABLE, makers.variable("SecureBoot", b"\1"))
    plain = makers.event(7, VARIABLE, b"", off) + makers.event(7, SEPARATOR, border)
    for kind, shown in ((VARIABLE, b"x"), (13, b"x"), (VARIABLE, border)):
        hidden = makers.event(7, kind, shown, off) + makers.event(7, kind, shown, end)
        forged = parse_event_log(makers.spec_id() + hidden + wish)
        assert forged.replay() == parse_event_log(makers.spec_id() + plain + wish).replay()
        assert forged.secure_boot is None
    renamed = makers.event(7, 13, b"x", debug) + makers.event(7, SEPARATOR, border)
    assert parse_event_log(makers.spec_id() + wish + renamed).secure_boot is False


def test_a_startup_locality_starts_register_0(makers):
    log = parse_event_log(makers.event_log())
    expected = hashlib.sha256(bytes(31) + b"\3" + hashlib.sha256(b"firmware 1").digest()).digest()
    assert log.replay()[0] == expected


def test_logs_of_two_banks(makers):
    head = makers.spec_id(((0x000B, 32), (0x000C, 48)))
    body = struct.pack("<IIIH", 1, 8, 2, 0x000B) + bytes(32) + struct.pack("<H", 0x000C) + bytes(48)
    log = parse_event_log(head + body + struct.pack("<I", 0))
    assert log.replay(SHA384)[1] == hashlib.sha384(bytes(96)).digest()
    with pytest.raises(EvidenceRejected, match="event_log_bank"):
        parse_event_log(makers.event_log()).replay(SHA384)


def test_a_log_cut_anywhere_is_shorter_or_refused(makers):
    log = makers.event_log()
    whole = len(parse_event_log(log).events)
    for cut in range(len(log)):
        with contextlib.suppress(EvidenceRejected):
            assert len(parse_event_log(log[:cut]).events) < whole


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.spec_id(((0x000B, 20),)),
        lambda m: m.spec_id(((0x000B, 32),) * 2),
        lambda m: m.spec_id(()),
        lambda m: m.spec_id(((0x000B, 32),) * 6),
        lambda m: m.spec_id().replace(b"Event03", b"Event02"),
        lambda m: b"\1" + m.spec_id()[1:],
        lambda m: m.spec_id() + m.event(24, 8, b""),
        lambda m: m.spec_id() + m.event(1, 8, b"").replace(b"\x0b\0", b"\x0c\0", 1),
        lambda m: m.spec_id() + m.event(1, 8, b"", b"short"),
        lambda m: m.spec_id() + m.event(1, 8, b"") * 4097,
        lambda m: bytes((1 << 20) + 1),
    ],
)
def test_malformed_logs(makers, change):
    with pytest.raises(EvidenceRejected) as caught:
        parse_event_log(change(makers))
    assert caught.value.reason == "event_log_malformed"


# --- vTPM -------------------------------------------------------------------------------------


@pytest.fixture
def vtpm(makers):
    """``vtpm(quote, **how)``: an HCL report of an SNP guest that names the vTPM's key."""

    def make(amd=None, runtime=None, **how) -> bytes:
        amd = amd or makers.Amd()
        runtime = runtime or makers.runtime_data(makers.rsa_key())
        bound = how.pop("bound", hashlib.sha256(runtime).digest())
        return makers.hcl_report(amd.report(bound), runtime, **how)

    return make


def vtpm_files(makers, hcl: bytes, amd=None, quote=None) -> list[bytes]:
    amd = amd or makers.Amd()
    quote = quote or makers.attest(b"nonce", VALUES)
    signature = makers.rsa_signature(makers.rsa_key(), quote)
    parts = {"message": quote.hex(), "signature": signature.hex()}
    return [hcl, amd.endorsement.der, amd.ask.der, json.dumps(parts).encode()]


def test_a_guests_vtpm(makers, vtpm, judge):
    found = judge("tpm", vtpm_files(makers, vtpm()), nonce=b"nonce")
    assert found.verdict == "authentic", found.rejection
    assert found.assurance is Assurance.HARDWARE_TEE
    assert "confidential guest" in found.claims["tpm"]
    as_snp = judge("snp", [vtpm(), makers.Amd().endorsement.der, makers.Amd().ask.der])
    assert as_snp.verdict == "authentic"


def test_a_vtpm_of_another_guest(makers, vtpm, refused):
    assert refused("tpm", vtpm_files(makers, vtpm(bound=bytes(32)))) == "ak_not_bound"


def test_a_quote_of_another_boot(makers, vtpm, refused):
    files = vtpm_files(makers, vtpm())
    parts = json.loads(files[-1])
    parts["message"] = makers.attest(b"another", VALUES).hex()
    assert refused("tpm", [*files[:-1], json.dumps(parts).encode()]) == "evidence_signature"


@pytest.mark.parametrize(
    "how",
    [
        {"kind": 3}, {"hash": 2}, {"size": 1 << 31}, {"after": b"\1"}, {"magic": b"HCLB"},
        {"runtime": b"[]"}, {"runtime": b'{"keys":{}}'}, {"runtime": b'{"keys":[1]}'},
        {"runtime": b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","n":"AQAB","e":"AQAB"}]}'},
        {"runtime": b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB"}]}'},
        {"runtime": b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","n":"*","e":"AQAB"}]}'},
        {"after": bytes(1 << 15)},
    ],
)  # fmt: skip
def test_malformed_hcl_reports(vtpm, how):
    with pytest.raises(EvidenceRejected) as caught:
        parse_hcl(vtpm(**how))
    assert caught.value.reason == "hcl_malformed"


def test_a_key_with_an_even_exponent(makers, vtpm):
    runtime = makers.runtime_data(makers.rsa_key(), jwk={"e": "Ag"})
    with pytest.raises(EvidenceRejected, match="RSA key that is none"):
        parse_hcl(vtpm(runtime=runtime))


def test_a_tdx_guests_vtpm(makers, judge, refused):
    intel = makers.Intel()
    runtime = makers.runtime_data(makers.rsa_key())
    hcl = makers.hcl_report(bytes(1184), runtime, kind=4)
    quote = intel.quote(hashlib.sha256(runtime).digest())
    files = [*vtpm_files(makers, hcl)[:1], vtpm_files(makers, hcl)[-1], quote]
    assert judge("tpm", files).verdict == "authentic"
    assert refused("tpm", [*files[:-1], intel.quote(bytes(32))]) == "ak_not_bound"


# --- bundles ----------------------------------------------------------------------------------


def verdict(verifier, evidence, subject, policy) -> str:
    try:
        verifier.check(evidence, subject, policy)
    except EvidenceRejected as error:
        return error.reason if error.step.startswith("8.") else error.step
    return "accepted"


@pytest.mark.parametrize("grounds", ["ek", "ak"])
def test_a_bundles_tpm(tpm_node, tpm_policy, grounds):
    nonce = bytes(range(32))
    for sent in (None, nonce):
        node = tpm_node(sent)
        evidence = node.evidence(grounds=grounds, nonce=sent)
        assert verdict(HardwareTpmVerifier(), evidence, node.subject, tpm_policy) == "accepted"
    assert HardwareTpmVerifier.assurance is Assurance.HARDWARE_TPM


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"dev": True}, "report_data_label"),
        ({"nonce": bytes([7] * 32)}, "nonce_mismatch"),
        ({"attributes": 0x00040072}, "ak_not_restricted"),
        ({"ak_name": b"another"}, "ak_not_activated"),
        ({"usage": "1.3.6.1.5.5.7.3.1"}, "ek_certificate_usage"),
        ({"is_authority": True}, "ek_certificate_usage"),
        ({"grounds": "ak", "ak_seed": "another"}, "ak_certificate_mismatch"),
        ({"grounds": "ak", "activated": True}, "activation_unexpected"),
        ({"more": {"x": b""}}, "collateral_unexpected"),
        ({"quote": {"bank": 0x0004}}, "pcr_bank"),
        ({"quote": {"magic": 1}}, "tpm_magic"),
        ({"values": {23: bytes(32)}}, "pcr_selection"),
        ({"values": {12: bytes(32), 13: bytes(32), 14: bytes(32)}}, "pcr_selection"),
        ({"values": dict.fromkeys((7, 12, 13, 14, 16), bytes(32))}, "pcr_selection"),
        ({"values": dict.fromkeys((7, 12, 13, 14), bytes(32))}, "log_not_replayed"),
        ({"log": b""}, "event_log_malformed"),
    ],
)
def test_a_bundles_tpm_that_is_wrong(tpm_node, tpm_policy, how, expected):
    node = tpm_node()
    try:
        evidence = node.evidence(**how)
    except EvidenceRejected:  # the maker itself cannot replay an empty log
        evidence = node.evidence(**(how | {"values": dict.fromkeys((7, 12, 13, 14), bytes(32))}))
    assert verdict(HardwareTpmVerifier(), evidence, node.subject, tpm_policy) == expected


def test_t41_to_t48_in_a_bundle(makers, tpm_node, tpm_policy):
    """Secure boot off, a foreign key, and a log that another machine made."""
    node = tpm_node()
    check = lambda evidence: verdict(  # noqa: E731
        HardwareTpmVerifier(), evidence, node.subject, tpm_policy
    )
    assert check(node.evidence(log=makers.event_log(b"\0"))) == "secure_boot_off"
    assert check(node.evidence(signer=makers.key("s", makers.P256))) == "evidence_signature"
    good = node.evidence()
    swapped = {**good.collateral, "event_log": makers.event_log(b"\1", makers.event(9, 8, b"x"))}
    assert check(replace(good, collateral=swapped)) == "accepted"  # register 9 is not quoted
    swapped["event_log"] = makers.event_log(b"\1", makers.event(7, 8, b"x"))
    assert check(replace(good, collateral=swapped)) == "log_not_replayed"


def test_t62_a_software_ek_in_the_hardware_store(makers, tpm_node, tpm_policy):
    """The development authority's certificate is no maker's, whatever its name."""
    node = tpm_node()
    software = makers.Authority("TPM maker", seed="a development authority")
    found = verdict(HardwareTpmVerifier(), node.evidence(maker=software), node.subject, tpm_policy)
    assert found == "certificate_signature"
    other = makers.Authority("software TPM authority")
    found = verdict(HardwareTpmVerifier(), node.evidence(maker=other), node.subject, tpm_policy)
    assert found == "root_unknown"


def test_grounds_that_the_policy_does_not_name(tpm_node, tpm_policy):
    node = tpm_node()
    for grounds, change in (("ek", {"ek_roots": ()}), ("ak", {"ak_roots": ()})):
        policy = replace(tpm_policy, tpm=replace(tpm_policy.tpm, **change))
        evidence = node.evidence(grounds=grounds)
        assert verdict(HardwareTpmVerifier(), evidence, node.subject, policy) == "root_unknown"
    policy = replace(tpm_policy, tpm=None)
    found = verdict(HardwareTpmVerifier(), node.evidence(), node.subject, policy)
    assert found == "policy_section"
    forged = replace(tpm_policy.tpm, activation_keys=frozenset({bytes(31)}))
    policy = replace(tpm_policy, tpm=forged)
    found = verdict(HardwareTpmVerifier(), node.evidence(), node.subject, policy)
    assert found == "ak_not_activated"


def test_development_evidence_is_of_another_head(tpm_node, tpm_policy):
    node = tpm_node()
    good = node.evidence()
    renamed = replace(good, data=b"OVST" + good.data[4:])
    assert verdict(HardwareTpmVerifier(), renamed, node.subject, tpm_policy) == "evidence_malformed"


@pytest.fixture
def vtpm_bundle(makers, vtpm, registers, subject_of, roots, policy_of):
    """``vtpm_bundle(...)``: what step 8 says of a guest's vTPM."""

    def run(*, policy=None, dev=False, **how) -> str:
        amd, subject, log = makers.Amd(), subject_of(), makers.event_log()
        values = how.get("values") or registers(subject, log)
        quote = makers.attest(qualifying_data(subject.nkc_bytes, None, dev), values)
        signature = makers.rsa_signature(makers.rsa_key(), how.get("signed", quote))
        hcl = how.get("hcl") or vtpm(**how.get("hcl_how", {}))
        data = VtpmEvidence(NO_NONCE, hcl, quote, signature).encode()
        collateral = {"vcek": amd.endorsement.der, "ask": amd.ask.der, "event_log": log}
        evidence = Evidence("sev-snp-vtpm", how.get("data", data), collateral | how.get("more", {}))
        verifier = SevSnpVtpmVerifier(lambda: roots)
        return verdict(verifier, evidence, subject, policy or policy_of("sev-snp-vtpm"))

    return run


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, "accepted"),
        ({"dev": True}, "report_data_label"),
        ({"signed": b"another"}, "evidence_signature"),
        ({"hcl_how": {"bound": bytes(32)}}, "ak_not_bound"),
        ({"hcl_how": {"kind": 4}}, "hcl_type"),
        ({"values": dict.fromkeys((7, 12, 13, 14), bytes(32))}, "log_not_replayed"),
        ({"data": b""}, "evidence_malformed"),
        ({"data": b"OVTV\x02"}, "evidence_malformed"),
        ({"more": {"x": b""}}, "collateral_unexpected"),
    ],
)
def test_a_bundles_vtpm(vtpm_bundle, how, expected):
    assert vtpm_bundle(**how) == expected


def test_a_vtpm_in_a_guest_under_debug(makers, vtpm_bundle, vtpm, policy_of):
    runtime = makers.runtime_data(makers.rsa_key())
    report = makers.Amd().report(hashlib.sha256(runtime).digest(), policy=0x30000 | 1 << 19)
    assert vtpm_bundle(hcl=makers.hcl_report(report, runtime)) == "guest_debug"
    policy = replace(policy_of("sev-snp-vtpm"), vtpm=None)
    assert vtpm_bundle(policy=policy) == "policy_section"


def test_a_raw_vtpm_under_a_policy(makers, vtpm, judge, refused, policy_of):
    policy = policy_of("sev-snp-vtpm", sev_snp_vtpm="secure_boot = false")
    files = vtpm_files(makers, vtpm())
    assert judge("tpm", files, policy=policy).verdict == "accepted"
    assert refused("tpm", files, policy=policy_of("sev-snp")) == "evidence_type_not_accepted"
    strict = policy_of("sev-snp-vtpm")
    assert refused("tpm", files, policy=strict) == "secure_boot_unknown"


def test_the_production_verifier_refuses_the_look_alikes_vtpm(makers, vtpm):
    found = appraise_raw("tpm", vtpm_files(makers, vtpm()), RawContext(makers.NOW), None)
    assert found.rejection.reason in ("root_unknown", "certificate_signature")


def test_the_look_alikes_certificates_are_certificates(makers):
    x509.load_der_x509_certificate(makers.Amd().endorsement.der)


def test_ecdsa_by_an_rsa_key(makers, ak, refused):
    quote = makers.attest(b"", VALUES)
    signature = makers.ecc_signature(ak, quote)
    evidence = [quote, signature, makers.rsa_public(makers.rsa_key())]
    assert refused("tpm", evidence) == "signature_algorithm"


def test_values_given_beside_a_policy(certified, judge, policy_of):
    files, authority = certified
    values = parse_event_log(files[3]).replay()
    given = json_pcrs([values.get(n, bytes(32)) for n in range(15)])
    section = tpm_section(authority, f'pcrs = {{ 7 = ["{values[7].hex()}"] }}')
    policy = policy_of("tpm", floor="HARDWARE_TPM", tpm=section)
    assert judge("tpm", [*files, given], policy=policy).verdict == "accepted"


def test_an_armoured_public_key(makers, ak, judge):
    quote, signature, _ = quote_files(makers, ak)
    pem = ak.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert judge("tpm", [quote, signature, pem]).verdict == "authentic"
