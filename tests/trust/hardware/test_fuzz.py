"""Every parser of hardware evidence, fuzzed: one exception type, no hang, not much memory."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import EvidenceRejected
from overspill.trust import json_strict
from overspill.trust.ccel import parse_ccel
from overspill.trust.certificates import parse_certificate, parse_crl, read_pem
from overspill.trust.event_log import parse_event_log
from overspill.trust.materials import Role, recognise
from overspill.trust.nvidia_report import parse_report as parse_gpu
from overspill.trust.raw import KINDS, RawContext, appraise_raw
from overspill.trust.snp_report import parse_report as parse_snp
from overspill.trust.snp_vtpm import VtpmEvidence
from overspill.trust.tdx_collateral import cut_out, read_qe_identity, read_tcb_info
from overspill.trust.tdx_quote import parse_quote as parse_tdx
from overspill.trust.tpm import TpmEvidence
from overspill.trust.tpm_hardware import HEAD as TPM_HEAD
from overspill.trust.tpm_keys import is_signed, parse_public
from overspill.trust.tpm_structures import parse_quote
from overspill.trust.vtpm import parse_hcl
from overspill.trust.xml_signed import parse_signed


def good_inputs(makers) -> dict[str, tuple[object, bytes]]:
    """A parser and something good for it, by name."""
    intel, private = makers.Intel(), makers.key("k", makers.P256)
    hcl = makers.hcl_report(makers.Amd().report(), makers.runtime_data(makers.rsa_key()))
    quote = makers.attest(b"n", {7: bytes(32)})
    signature = makers.ecc_signature(private, quote)
    info, identity = intel.tcb_info(), intel.qe_identity()
    return {
        "snp": (parse_snp, makers.Amd().report()),
        "tdx": (parse_tdx, intel.quote()),
        "tdx5": (parse_tdx, intel.quote(version=5, tail=bytes(64))),
        "gpu": (parse_gpu, makers.Nvidia().report()),
        "hcl": (parse_hcl, hcl),
        "log": (parse_event_log, makers.event_log()),
        "public": (parse_public, makers.ecc_public(private)),
        "rsa": (parse_public, makers.rsa_public(makers.rsa_key())),
        "signature": (lambda data: is_signed(private.public_key(), data, quote), signature),
        "tcb-info": (lambda data: read_tcb_info(cut_out(data, "tcbInfo").body), info),
        "qe": (lambda data: read_qe_identity(cut_out(data, "enclaveIdentity").body), identity),
        "json": (lambda data: json_strict.loads(data, step="1"), b'{"a":[1,null,"x"]}'),
        "quote": (parse_quote, quote),
        "tpm": (
            lambda data: TpmEvidence.decode(data, TPM_HEAD),
            TpmEvidence(bytes(32), makers.ecc_public(private), quote, signature, b"").encode(
                TPM_HEAD
            ),
        ),
        "ccel": (parse_ccel, makers.event_log()),
        "certificate": (parse_certificate, intel.pck.der),
        "crl": (parse_crl, intel.authority.crl(7)),
        "pem": (read_pem, intel.chain),
        "rim": (parse_signed, makers.rim()),
        "vtpm": (VtpmEvidence.decode, VtpmEvidence(bytes(32), hcl, quote, signature).encode()),
    }


NAMES = (
    "snp tdx tdx5 gpu hcl log public rsa signature tcb-info qe json vtpm quote tpm ccel "
    "certificate crl pem rim"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_good_input_is_read(makers, name):
    parse, good = good_inputs(makers)[name]
    parse(good)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data())
def test_changed_anyhow_raises_one_type(makers, name, data):
    parse, good = _GOOD.get(name) or _GOOD.setdefault(name, good_inputs(makers)[name])
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 8)))
    changed = good[:start] + data.draw(st.binary(max_size=8)) + good[end:]
    with contextlib.suppress(EvidenceRejected):
        parse(changed)


_GOOD: dict[str, tuple[object, bytes]] = {}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=300))
def test_garbage_raises_one_type(makers, name, data):
    parse, good = _GOOD.get(name) or _GOOD.setdefault(name, good_inputs(makers)[name])
    for changed in (data, good[:64] + data):
        with contextlib.suppress(EvidenceRejected):
            parse(changed)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_lengths_take_no_memory(makers, name):
    parse, good = good_inputs(makers)[name]
    tracemalloc.start()
    for at in range(0, min(len(good), 256), 2):
        with contextlib.suppress(EvidenceRejected):
            parse(good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


# --- raw evidence as a whole ------------------------------------------------------------------


@settings(max_examples=150)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.binary(max_size=200), max_size=4))
def test_any_files_get_a_verdict(kind, files):
    found = appraise_raw(kind, files, RawContext(1_800_000_000, b"n"), None)
    assert found.verdict == "rejected"


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(KINDS)),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=40) | st.binary(max_size=40).map(bytes.hex),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["quote", "message", "signature", "pcrs", "report", "vcek", "evidence",
                             "tcb_info", "tcb_info_signature", "x"]),
            inner, max_size=4,
        ),
        max_leaves=12,
    ),
)  # fmt: skip
def test_any_json_gets_a_verdict(kind, value):
    import json

    found = appraise_raw(kind, [json.dumps({"quote": value}).encode()], RawContext(0), None)
    assert found.verdict == "rejected"


def test_layers_of_text_end(makers):
    import base64

    report = makers.Amd().report()
    for layers, role in ((0, Role.SNP_REPORT), (3, Role.SNP_REPORT), (6, Role.UNKNOWN)):
        data = report
        for _ in range(layers):
            data = base64.b64encode(data)
        assert list(recognise([data]).pieces) == [role]


def test_forms_of_a_report(makers):
    import base64
    import json

    report = makers.Amd().report()
    armour = b"-----BEGIN REPORT-----\n%s\n-----END REPORT-----" % base64.encodebytes(report)
    for form in (
        report.hex().encode(),
        b"0x" + report.hex().upper().encode() + b"\n",
        base64.b64encode(report),
        base64.urlsafe_b64encode(report).rstrip(b"="),
        base64.encodebytes(report),
        armour,
        json.dumps({"report": list(report)}).encode(),
        json.dumps({"evidence": base64.b64encode(report).decode()}).encode(),
    ):
        assert recognise([form]).of(Role.SNP_REPORT) == (report,)


def test_files_that_are_too_large_or_damaged(makers):
    for data, reason in (
        (bytes((1 << 20) + 1), "file_too_large"),
        (b"-----BEGIN PUBLIC KEY-----\nA\n-----END PUBLIC KEY-----", "base64_malformed"),
        (b'{"a":1,"a":2}', "json_malformed"),
    ):
        with pytest.raises(EvidenceRejected) as caught:
            recognise([data])
        assert caught.value.reason == reason


def test_one_of_each_role():
    with pytest.raises(EvidenceRejected, match="evidence_missing"):
        recognise([]).one(Role.SNP_REPORT)
    assert recognise([b"x", b"x"]).one(Role.SNP_REPORT) == b"x"
    with pytest.raises(EvidenceRejected, match="evidence_count"):
        recognise([b"x", b"y"]).one(Role.SNP_REPORT)
