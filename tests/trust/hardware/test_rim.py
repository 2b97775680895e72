"""NVIDIA's reference manifests: signed XML, read strictly, and compared with a report."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import EvidenceRejected
from overspill.trust.nvidia_rim import read_rim
from overspill.trust.roots import vendor_roots
from overspill.trust.xml_signed import _parse, canonical, parse_signed

RESOURCE = '<Resource active="True" alternatives="1" index="0" h:Hash0="{}"></Resource>'

UNQUALIFIED = '<Resource Hash0="00" active="True" alternatives="1" index="0"></Resource>'


def judge_with(makers, judge, *rims):
    gpu = makers.Nvidia()
    return judge("nvidia", [gpu.report(bytes(32)), gpu.chain, *rims])


def test_measurements_as_listed(makers, judge):
    found = judge_with(makers, judge, makers.rim(), makers.rim(makers.VBIOS))
    assert found.verdict == "authentic", found.rejection
    assert next(s.detail for s in found.steps if s.n == "8.7") == "4 measurements as listed"
    without = judge_with(makers, judge)
    assert [s.ok for s in without.steps if s.n == "8.7"] == [None]


def reason(makers, judge, rim: bytes) -> str:
    found = judge_with(makers, judge, rim)
    assert found.rejection is not None
    assert found.rejection.step == "8.7"
    return found.rejection.reason


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"version": "1.0"}, "rim_version"),
        ({"values": {0: bytes(48)}}, "rim_measurement"),
        ({"values": {63: bytes(48)}}, "rim_measurement"),
        ({"seed": "somebody else"}, "root_unknown"),
        ({"chain": ()}, "rim_malformed"),
        ({"signatures": 2}, "rim_malformed"),
        ({"signatures": 0}, "rim_malformed"),
        ({"c14n": "http://www.w3.org/2001/10/xml-exc-c14n#"}, "rim_malformed"),
        ({"uri": "#part"}, "rim_malformed"),
        ({"body": "<Meta></Meta>"}, "rim_malformed"),
        ({"body": '<Meta colloquialVersion="1"></Meta><Payload></Payload>'}, "rim_malformed"),
        ({"resources": RESOURCE.format("00")}, "rim_malformed"),
        ({"resources": RESOURCE.format("zz" * 48)}, "rim_malformed"),
        ({"resources": RESOURCE.format("00" * 48) * 2}, "rim_malformed"),
        ({"resources": RESOURCE.replace('index="0"', 'index="x"')}, "rim_malformed"),
        ({"resources": RESOURCE.replace('"1"', '"0"', 1)}, "rim_malformed"),
        ({"resources": UNQUALIFIED}, "rim_malformed"),
    ],
)
def test_manifests_that_are_refused(makers, judge, how, expected):
    assert reason(makers, judge, makers.rim(**how)) == expected


def test_inactive_resources_are_not_compared(makers, judge):
    good = makers.rim().split(b"<Payload>")[1].split(b"</Payload>")[0].decode()
    other = '<Resource active="False" alternatives="1" index="9"></Resource>'
    assert judge_with(makers, judge, makers.rim(resources=good + other)).verdict == "authentic"


def test_a_changed_manifest(makers, judge):
    rim = makers.rim()
    assert reason(makers, judge, rim.replace(b"570.00", b"570.01", 1)) == "rim_digest"
    at = rim.index(b"<ds:SignatureValue>") + 30
    flipped = rim[:at] + (b"A" if rim[at : at + 1] != b"A" else b"B") + rim[at + 1 :]
    assert reason(makers, judge, flipped) == "rim_signature"


def test_another_spelling_is_the_same_document(makers, judge):
    """Canonical form is what is signed: the order of attributes and empty tags are free."""
    ordered, other = b'active="True" alternatives="1"', b'  alternatives="1"   active="True"'
    rim = makers.rim().replace(ordered, other).replace(b"></Resource>", b"/>")
    assert judge_with(makers, judge, rim).verdict == "authentic"
    assert judge_with(makers, judge, b'<?xml version="1.0"?>\n' + rim).verdict == "authentic"


@pytest.mark.parametrize(
    "start", [b"<!DOCTYPE x>", b'<!DOCTYPE x [<!ENTITY a "b">]>', b"<?x y?>"], ids=len
)
def test_document_types_are_refused(makers, start):
    with pytest.raises(EvidenceRejected, match="document type"):
        parse_signed(start + makers.rim())


def test_depth_and_size_are_limited():
    for data in (b"<a>" * 33 + b"</a>" * 33, bytes((1 << 20) + 1), b"", b"<a>", b"\xff"):
        with pytest.raises(EvidenceRejected, match="rim_malformed"):
            parse_signed(data)


def test_canonical_text_and_values():
    inside = "&lt;&gt;&amp;&#13;<!-- no --><![CDATA[<]]>"
    text = f'<a><b x="&quot;&amp;&lt;&#9;&#10;&#13;">{inside}</b></a>'
    assert canonical(_parse(text.encode())).decode() == (
        '<a><b x="&quot;&amp;&lt;&#x9;&#xA;&#xD;">&lt;&gt;&amp;&#xD;&lt;</b></a>'
    )


@settings(max_examples=150)
@given(data=st.data())
def test_changed_anyhow_raises_one_type(makers, data):
    rim = makers.rim()
    start = data.draw(st.integers(0, len(rim)))
    end = data.draw(st.integers(start, min(len(rim), start + 8)))
    changed = rim[:start] + data.draw(st.binary(max_size=8)) + rim[end:]
    with contextlib.suppress(EvidenceRejected):
        read_rim(changed, vendor_roots().nvidia_rim, makers.NOW)


@pytest.mark.parametrize(
    ("name", "version"),
    [("Driver_RIM", "545.00"), ("VBIOS_RIM", "96.00.5E.00.01")],
)
def test_nvidias_own_manifests(shared_data, name, version):
    """Published for tests: their signer's certificate ended in June 2025."""
    file = shared_data / f"vectors/nvidia/nvtrust/{name}_test_no_gpu.swidtag"
    rim = read_rim(file.read_bytes(), vendor_roots().nvidia_rim, 1_720_000_000)
    assert rim.version == version
    assert len(rim.values) in (12, 21)
    with pytest.raises(EvidenceRejected, match="certificate_expired"):
        read_rim(file.read_bytes(), vendor_roots().nvidia_rim, 1_800_000_000)
