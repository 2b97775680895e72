"""TDX: each way to be wrong has its own reason; a look-alike Intel makes quotes and collateral."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust import tdx
from overspill.trust.nkc import report_data
from overspill.trust.raw import RawContext, appraise_raw
from overspill.trust.tdx_collateral import merged
from overspill.trust.tdx_quote import parse_quote
from overspill.types.evidence import Assurance, Evidence


@pytest.fixture(scope="module")
def policy(policy_of):
    return policy_of("tdx")


@pytest.fixture(scope="module")
def intel(makers):
    return makers.Intel()


def files(intel, *, collateral=None, **how) -> list[bytes]:
    return [intel.quote(**how), *intel.collateral(**(collateral or {})).values()]


@pytest.mark.parametrize(
    ("version", "tail"), [(4, b""), (5, b""), (5, bytes(64))], ids=["v4", "v5-1.0", "v5-1.5"]
)
def test_good_quotes(intel, judge, policy, version, tail):
    found = judge("tdx", files(intel, version=version, tail=tail), policy=policy)
    assert found.verdict == "accepted", found.rejection
    assert found.assurance is Assurance.HARDWARE_TEE
    assert found.claims["quote_version"] == str(version)
    assert found.claims["tcb_status"] == "UpToDate"
    assert found.claims["tcb_evaluation"] == "17"
    assert all(step.ok for step in found.steps if step.n not in ("8.9", "8.13"))


def test_without_collateral_the_signatures_are_checked(intel, judge):
    found = judge("tdx", [intel.quote()])
    assert found.verdict == "authentic"
    assert "unknown" in found.claims["tcb_status"]
    not_run = {step.n for step in found.steps if step.ok is None}
    assert not_run == {"8.0", "8.6", "8.7", "8.8", "8.9", "8.10", "8.11", "8.12", "8.13"}


@pytest.mark.parametrize("missing", ["tcb_info", "qe_identity"])
def test_a_policy_needs_all_collateral(intel, judge, refused, policy, missing):
    some = [v for k, v in intel.collateral().items() if k != missing]
    assert refused("tdx", [intel.quote(), *some], policy=policy) == f"{missing}_missing"
    assert judge("tdx", [intel.quote(), *some]).verdict == "authentic"


@pytest.mark.parametrize("missing", ["root_crl", "pck_crl"])
def test_a_policy_needs_both_crls(intel, judge, refused, policy, missing):
    some = [v for k, v in intel.collateral().items() if k != missing]
    assert refused("tdx", [intel.quote(), *some], policy=policy) == "crl_missing"
    assert judge("tdx", [intel.quote(), *some]).verdict == "authentic"


def test_the_production_verifier_refuses_the_look_alike(intel, makers):
    found = appraise_raw("tdx", files(intel), RawContext(makers.NOW), None)
    assert found.rejection.reason == "root_unknown"


# --- the guest --------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 1, 7])
def test_t5_debug(intel, judge, refused, policy, bit):
    guest = files(intel, attributes=1 << 28 | 1 << bit)
    assert refused("tdx", guest, policy=policy) == "td_debug"
    found = judge("tdx", guest)
    assert (found.verdict, found.assurance) == ("authentic", Assurance.NONE)


def test_a_guest_that_may_migrate(intel, refused, policy):
    assert refused("tdx", files(intel, attributes=1 << 29), policy=policy) == "td_migration"
    moved = files(intel, version=5, tail=bytes(16) + b"\1" * 48)
    assert refused("tdx", moved, policy=policy) == "td_migration"


@pytest.mark.parametrize(
    "how", [{"mrtd": bytes(48)}, {"rtmrs": (bytes(48),) * 4}], ids=["mrtd", "rtmr"]
)
def test_measurements_that_are_not_listed(intel, refused, policy, how):
    assert refused("tdx", files(intel, **how), policy=policy) == "measurement_not_listed"


def test_a_pinned_platform_and_module(intel, makers, judge, refused, policy):
    for changes, expected in (
        ({"fmspcs": frozenset({bytes(6)})}, "platform_not_pinned"),
        ({"mr_seam": frozenset({bytes(48)})}, "measurement_not_listed"),
    ):
        pinned = replace(policy, tdx=replace(policy.tdx, **changes))
        assert refused("tdx", files(intel), policy=pinned) == expected
    right = replace(policy.tdx, fmspcs=frozenset({makers.FMSPC}))
    assert judge("tdx", files(intel), policy=replace(policy, tdx=right)).verdict == "accepted"


# --- the platform's TCB -----------------------------------------------------------------------


def with_info(intel, **changes) -> list[bytes]:
    return files(intel, collateral={"tcb_info": intel.tcb_info(**changes)})


def test_t20_outdated_tcb(intel, makers, judge, refused, policy):
    old = makers.Intel(extension=makers.sgx_extension(pce_svn=5))
    assert refused("tdx", files(old), policy=policy) == "tcb_status"
    found = judge("tdx", files(old))
    assert found.claims["tcb_status"] == "OutOfDate"
    assert found.claims["advisories"] == "INTEL-SA-00106"
    lenient = replace(policy.tdx, statuses=frozenset({"UpToDate", "OutOfDate"}))
    assert judge("tdx", files(old), policy=replace(policy, tdx=lenient)).verdict == "accepted"


@pytest.mark.parametrize("component", range(16))
def test_t20_each_component_counts(makers, judge, refused, policy, component):
    """One SVN lower than Intel's lowest level: in no list, whatever the others are."""
    svns = tuple(9 if n != component else max(0, makers.SGX_SVNS[n] - 1) for n in range(16))
    if svns[component] == makers.SGX_SVNS[component]:
        return
    old = makers.Intel(extension=makers.sgx_extension(svns=svns))
    assert refused("tdx", files(old), policy=policy) == "tcb_status"
    assert judge("tdx", files(old)).claims["tcb_status"] == "Unsupported"


def test_t20_the_guests_own_tcb_counts(intel, makers, judge):
    old = files(intel, tee_tcb=bytes((5, 1, 1)) + bytes(13))
    assert judge("tdx", old).claims["tcb_status"] == "Unsupported"


def test_a_revoked_platform_needs_no_policy(intel, makers, refused):
    assert refused("tdx", with_info(intel, levels=[makers.tcb_level("Revoked")])) == "tcb_revoked"


def test_an_outdated_module_makes_the_platform_outdated(intel, refused, policy):
    assert (
        refused("tdx", with_info(intel, module_status="OutOfDate"), policy=policy) == "tcb_status"
    )
    older = files(intel, tee_tcb=bytes((3, 1, 2)) + bytes(13))
    assert refused("tdx", older, policy=policy) == "tcb_status"


def test_an_outdated_quoting_enclave(intel, judge, refused, policy):
    assert refused("tdx", files(intel, qe_svn=4), policy=policy) == "tcb_status"
    assert judge("tdx", files(intel, qe_svn=4)).claims["tcb_status"] == "OutOfDate"
    assert refused("tdx", files(intel, qe_svn=3)) == "qe_level_unknown"


@pytest.mark.parametrize(
    ("platform", "part", "expected"),
    [
        ("UpToDate", "UpToDate", "UpToDate"),
        ("SWHardeningNeeded", "UpToDate", "SWHardeningNeeded"),
        ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDateConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("UpToDate", "Revoked", "Revoked"),
        ("Revoked", "UpToDate", "Revoked"),
        ("Unsupported", "OutOfDate", "Unsupported"),
    ],
)
def test_statuses_merge(platform, part, expected):
    assert merged(platform, part) == expected


def test_the_module_is_the_one_that_intel_lists(intel, refused):
    unknown = files(intel, tee_tcb=bytes((5, 2, 2)) + bytes(13))
    assert refused("tdx", unknown) == "tdx_module_unknown"
    oldest = files(intel, tee_tcb=bytes((1, 1, 2)) + bytes(13))
    assert refused("tdx", oldest) == "tdx_module_unknown"
    assert refused("tdx", files(intel, mr_signer_seam=b"\1" * 48)) == "tdx_module_mismatch"
    assert refused("tdx", files(intel, seam_attributes=b"\1" * 8)) == "tdx_module_mismatch"


def test_a_module_of_version_0_is_judged_with_the_platform(intel, makers, judge):
    level = makers.tcb_level("UpToDate", tdx=(3, 0, 2))
    info = {"tcb_info": intel.tcb_info([level])}
    for tee, expected in (((3, 0, 2), "UpToDate"), ((2, 0, 2), "Unsupported")):
        quote = files(intel, collateral=info, tee_tcb=bytes(tee) + bytes(13))
        assert judge("tdx", quote).claims["tcb_status"] == expected


def test_tcb_info_of_another_platform(intel, refused):
    assert refused("tdx", with_info(intel, fmspc="00" * 6)) == "fmspc_mismatch"
    assert refused("tdx", with_info(intel, pceId="0001")) == "fmspc_mismatch"


@pytest.mark.parametrize(
    "how",
    [
        {"qe_signer": bytes(32)},
        {"qe_product": 1},
        {"misc": b"\1" * 4},
        {"qe_attributes": bytes(16)},
    ],
    ids=lambda how: next(iter(how)),
)
def test_another_quoting_enclave(intel, refused, how):
    assert refused("tdx", files(intel, **how)) == "qe_identity_mismatch"


# --- collateral -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [("tcb_info", "tcb_info_expired"), ("qe_identity", "qe_identity_expired")],
)
def test_t21_expired_or_future_documents(intel, makers, refused, name, reason):
    make = getattr(intel, name)
    old = {name: make(issueDate=makers.stamp(-40), nextUpdate=makers.stamp(-10))}
    assert refused("tdx", files(intel, collateral=old)) == reason
    new = {name: make(issueDate=makers.stamp(1))}
    assert refused("tdx", files(intel, collateral=new)) == f"{name}_not_yet_valid"


@pytest.mark.parametrize("which", ["root", "authority"])
def test_t21_expired_crl(intel, refused, which):
    name = {"root": "root_crl", "authority": "pck_crl"}[which]
    old = {name: getattr(intel, which).crl(days=-1, from_days=-30)}
    assert refused("tdx", files(intel, collateral=old)) == "crl_expired"


@pytest.mark.parametrize(
    ("name", "issuer", "serial"),
    [("pck_crl", "authority", 21), ("root_crl", "root", 12), ("root_crl", "root", 13)],
    ids=["pck", "authority", "tcb-signer"],
)
def test_a_revoked_certificate(intel, refused, name, issuer, serial):
    revoked = {name: getattr(intel, issuer).crl(serial)}
    assert refused("tdx", files(intel, collateral=revoked)) == "certificate_revoked"


def test_documents_signed_by_somebody_else(intel, makers, refused):
    fake = makers.Intel("somebody else")
    for name in ("tcb_info", "qe_identity"):
        made = {name: getattr(fake, name)()}
        assert refused("tdx", files(intel, collateral=made)) == f"{name}_signature"
        with_signer = {**made, "tcb_signing_chain": fake.signer.pem + fake.root.pem}
        found = refused("tdx", [*files(intel, collateral=made), with_signer["tcb_signing_chain"]])
        assert found == "root_unknown"


def test_documents_are_verified_over_their_very_bytes(intel, refused):
    """The same JSON with another space is another document."""
    info = intel.tcb_info()
    respaced = info.replace(b'"id": "TDX"', b'"id":  "TDX"')
    assert refused("tdx", files(intel, collateral={"tcb_info": respaced})) == "tcb_info_signature"
    changed = info.replace(b'"OutOfDate"', b'"UpToDate" ')
    assert refused("tdx", files(intel, collateral={"tcb_info": changed})) == "tcb_info_signature"


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "SGX"}, {"version": 2}, {"version": True}, {"tcbType": 1}, {"fmspc": "00"},
        {"fmspc": "g" * 12}, {"pceId": 0}, {"issueDate": "yesterday"},
        {"nextUpdate": "2026-13-01T00:00:00Z"},
        {"tcbEvaluationDataNumber": -1}, {"tcbEvaluationDataNumber": 1.0}, {"tdxModule": []},
        {"tdxModuleIdentities": {}}, {"tcbLevels": None}, {"tcbLevels": [{}]}, {"tcbLevels": [1]},
        {"tcbLevels": [{}] * 257},
    ],
)  # fmt: skip
def test_malformed_tcb_info(intel, refused, changes):
    assert refused("tdx", with_info(intel, **changes)) == "collateral_malformed"


def test_levels_are_read_strictly(intel, makers, refused):
    for broken in (
        makers.tcb_level("Fine"),
        makers.tcb_level("UpToDate", sgx=(1,) * 15),
        makers.tcb_level("UpToDate", advisoryIDs="INTEL"),
        makers.tcb_level("UpToDate", sgx=(70_000,) * 16),
    ):
        assert refused("tdx", with_info(intel, levels=[broken])) == "collateral_malformed"


@pytest.mark.parametrize("changes", [{"id": "QE"}, {"version": 1}, {"mrsigner": "00"}])
def test_malformed_qe_identity(intel, refused, changes):
    made = {"qe_identity": intel.qe_identity(**changes)}
    assert refused("tdx", files(intel, collateral=made)) == "collateral_malformed"


@pytest.mark.parametrize(
    "body", [b'{"a":1,"a":2}', b"[NaN]", b"[" * 50_000, b'{"a":' + b"9" * 30 + b"}", b'"\xff"']
)
def test_strict_json(intel, refused, body):
    made = {"tcb_info": intel.signed("tcbInfo", body)}
    assert refused("tdx", files(intel, collateral=made)) == "json_malformed"


@pytest.mark.parametrize(
    "document",
    [
        b'{"tcbInfo":{}}',
        b'{"tcbInfo":{},"signature":"00"}',
        b'{"tcbInfo":,"signature":"' + b"0" * 128,
    ],
)
def test_documents_without_a_signature(intel, refused, document):
    made = {"tcb_info": document}
    assert refused("tdx", files(intel, collateral=made)) == "collateral_malformed"


# --- the quote --------------------------------------------------------------------------------


def test_t22_ak_not_bound(intel, makers, refused):
    stranger = makers.key("a stranger", makers.P256)
    forged = intel.quote(
        ak=makers.point(stranger),
        signing_key=stranger,
        bound=hashlib.sha256(makers.point(intel.ak) + bytes(32)).digest(),
    )
    assert refused("tdx", [forged]) == "ak_not_bound"
    assert refused("tdx", [intel.quote(auth=b"x" * 32, bound=bytes(32))]) == "ak_not_bound"


def test_a_quoting_enclave_that_the_pck_did_not_sign(intel, makers, refused):
    stranger = makers.key("a stranger", makers.P256)
    assert refused("tdx", [intel.quote(pck_key=stranger)]) == "qe_report_signature"


def test_a_quote_signed_by_another_key(intel, makers, refused):
    stranger = makers.key("a stranger", makers.P256)
    assert refused("tdx", [intel.quote(signing_key=stranger)]) == "evidence_signature"
    assert refused("tdx", [intel.quote(ak=bytes(64))]) == "key_unsupported"


def test_t23_look_alike_root(makers, refused):
    fake = makers.Intel("somebody else")
    assert refused("tdx", [fake.quote(), *fake.collateral().values()]) == "root_unknown"


def test_t23_without_the_fake_root_the_signature_is_wrong(makers, refused):
    fake = makers.Intel("somebody else")
    chain = fake.pck.pem + fake.authority.pem
    assert refused("tdx", [fake.quote(chain=chain)]) == "certificate_signature"


@pytest.mark.parametrize("chain", [b"", b"no PEM"])
def test_a_quote_without_a_pck(intel, refused, chain):
    assert refused("tdx", [intel.quote(chain=chain)]) == "pck_missing"


def test_two_pcks(intel, refused):
    assert refused("tdx", [intel.quote(chain=intel.chain + intel.chain)]) == "pck_missing"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"auth_size": 65535}, "quote_malformed"),
        ({"auth_size": 33}, "certification_type"),
        ({"cert_type": 1}, "certification_type"),
        ({"chain_type": 1}, "certification_type"),
        ({"size": 2**32 - 1}, "quote_malformed"),
        ({"size": 0}, "quote_malformed"),
        ({"version": 3}, "quote_version"),
        ({"version": 6}, "quote_version"),
        ({"key_type": 3}, "attestation_key_type"),
        ({"tee": 0}, "quote_type"),
        ({"vendor": bytes(16)}, "quote_type"),
        ({"version": 5, "body_type": 1}, "quote_type"),
        ({"version": 5, "body_type": 3}, "quote_type"),
    ],
)
def test_t24_lengths_past_the_end_and_other_kinds(intel, how, reason):
    with pytest.raises(EvidenceRejected) as caught:
        parse_quote(intel.quote(**how))
    assert caught.value.reason == reason


def test_t24_a_quote_cut_anywhere(intel):
    quote = intel.quote()
    for cut in range(0, len(quote), 7):
        with pytest.raises(EvidenceRejected):
            parse_quote(quote[:cut])
    with pytest.raises(EvidenceRejected, match="at most"):
        parse_quote(quote + bytes(1 << 16))


def test_what_follows_a_quote(intel, judge, refused, policy):
    """Zeros of a fixed buffer are let pass; other bytes only where nothing is decided."""
    quote, *rest = files(intel)
    assert judge("tdx", [quote + bytes(70), *rest], policy=policy).verdict == "accepted"
    assert judge("tdx", [quote + b"more", *rest]).verdict == "authentic"
    assert refused("tdx", [quote + b"more", *rest], policy=policy) == "quote_trailing"


@pytest.mark.parametrize(
    "extension",
    [
        b"", b"\x30\x00", b"\x30\x00\x00", b"\x30\x04\x30\x02\x06\x00",
    ],
)  # fmt: skip
def test_intels_extension_is_read_strictly(makers, refused, extension):
    intel = makers.Intel(extension=extension)
    assert refused("tdx", [intel.quote()]) == "certificate_extension"


def test_intels_extension_has_its_sizes(makers, refused):
    for extension in (
        makers.sgx_extension(fmspc=bytes(5)),
        makers.sgx_extension(pce_svn=70_000),
        makers.sgx_extension(svns=makers.SGX_SVNS[:15]),
        makers.sgx_extension() + b"\0",
        makers.tlv(0x30, *[makers.tlv(0x30, makers.oid("1.2.3"), makers.number(1))] * 2),
    ):
        assert (
            refused("tdx", [makers.Intel(extension=extension).quote()]) == "certificate_extension"
        )


# --- nonces and bundles -----------------------------------------------------------------------


def test_a_nonce_is_compared_with_the_report_data(intel, judge, refused):
    quote = [intel.quote(b"a nonce")]
    assert judge("tdx", quote, nonce=b"a nonce").verdict == "authentic"
    assert refused("tdx", quote, nonce=b"another") == "nonce_mismatch"


@pytest.fixture
def bundle_check(intel, roots, policy, subject_of):
    """``bundle_check(nonce=, made_over=, ...)``: what step 8 says of a bundle."""

    def run(*, nonce=None, made_over=None, dev=False, policy=policy, data=None, **changes):
        subject = subject_of(nonce)
        rtmrs = (bytes(48), b"\1" * 48, b"\2" * 48, changes.pop("rtmr3", subject.log.replay_rtmr()))
        bound = report_data(subject.nkc_bytes, made_over, dev)
        quote = intel.quote(bound, rtmrs=rtmrs) + changes.pop("after", b"")
        collateral = {k: v for k, v in intel.collateral(**changes).items() if v is not None}
        evidence = Evidence("tdx", quote if data is None else data, collateral)
        return tdx.TdxVerifier(lambda: roots).check(evidence, subject, policy)

    return run


def test_a_bundles_quote_binds_configuration_and_log(bundle_check):
    nonce = bytes(range(32))
    assert bundle_check(nonce=nonce, made_over=nonce)["tcb_status"] == "UpToDate"
    assert bundle_check()["tee"] == "TDX"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"rtmr3": bytes(48)}, "log_not_replayed"),
        ({"made_over": bytes([7] * 32)}, "report_data_mismatch"),
        ({"dev": True}, "report_data_label"),
        ({"after": b"\0"}, "quote_trailing"),
        ({"tcb_info": None}, "collateral_unexpected"),
        ({"more": b""}, "collateral_unexpected"),
        ({"tcb_signing_chain": None}, "tcb_info_signature"),
        ({"pck_crl": b"x"}, "certificate_malformed"),
        ({"data": b""}, "quote_malformed"),
    ],
)
def test_a_bundles_quote_about_something_else(bundle_check, how, expected):
    with pytest.raises(EvidenceRejected) as caught:
        bundle_check(**how)
    assert caught.value.reason == expected
    assert caught.value.step.startswith("8.")


def test_a_policy_without_its_section(bundle_check, policy):
    with pytest.raises(EvidenceRejected) as caught:
        bundle_check(policy=replace(policy, tdx=None))
    assert caught.value.reason == "policy_section"


@pytest.mark.exhaustive
def test_each_byte_of_a_quote_and_its_collateral_counts(intel, makers, roots, policy):
    """Malleable is what nobody signs and nobody reads: line breaks and the text around PEM."""
    good = files(intel)
    accepted = []
    for which, data in enumerate(good):
        for place in range(0, len(data), 1 if which == 0 else 11):
            flipped = bytearray(data)
            flipped[place] ^= 1
            changed = [*good[:which], bytes(flipped), *good[which + 1 :]]
            found = appraise_raw("tdx", changed, RawContext(makers.NOW, bytes(64)), policy, roots)
            if found.verdict != "rejected":
                accepted.append((which, place, data[max(0, place - 12) : place + 1]))
    assert [where for where in accepted if not _is_explained(good, *where[:2])] == []


def _is_explained(good: list[bytes], which: int, place: int) -> bool:
    """PEM's base64 may be broken into lines by any space; the root's copy in the quote is not what
    is trusted, and not read."""
    data = good[which]
    if which == 0 and place >= data.rindex(b"-----BEGIN CERTIFICATE-----") - 26:
        return True
    return b"-----BEGIN" in data and data[place : place + 1].isspace()


def test_intels_documents_survive_their_own_parser(intel):
    body = json.loads(intel.tcb_info())
    assert body["tcbInfo"]["id"] == "TDX"


def test_a_pck_of_another_curve(makers, refused):
    intel = makers.Intel()
    intel.pck.curve = makers.P384
    assert refused("tdx", [intel.quote(pck_key=makers.key("x", makers.P256))]) == (
        "qe_report_signature"
    )


def test_a_pck_is_who_carries_a_platform(intel):
    from overspill.trust.certificates import parse_certificate
    from overspill.trust.tdx_pck import platform_of

    with pytest.raises(EvidenceRejected, match="SGX extension"):
        platform_of(parse_certificate(intel.root.der))
