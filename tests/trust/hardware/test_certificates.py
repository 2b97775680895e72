"""Certificates, CRLs and DER: read strictly, agreeing with the library, never with two meanings."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import EvidenceRejected
from overspill.trust import der
from overspill.trust.certificates import (
    is_signed_by,
    load_key,
    parse_certificate,
    parse_crl,
    read_pem,
)
from overspill.trust.chain import Anchors, build_path, moment


class Wrong(Exception):
    """What the readers under test raise."""


def reader(data: bytes) -> der.DerReader:
    return der.DerReader(data, Wrong)


# --- DER --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x02", b"\x02\x01", b"\x02\x80\x00\x00", b"\x02\x81\x01\x00", b"\x02\x82\x00\x81",
        b"\x02\x85\0\0\0\0\1\0", b"\x1f\x81\x01\x00", b"\x02\x84\xff\xff\xff\xff",
        b"\x02\x82\x01",
    ],
)  # fmt: skip
def test_other_encodings_are_refused(data):
    with pytest.raises(Wrong):
        reader(data).element(der.INTEGER, "a number")


@pytest.mark.parametrize(
    ("content", "value"), [(b"\x00", 0), (b"\x7f", 127), (b"\x00\x80", 128), (b"\xff", -1)]
)
def test_integers(content, value):
    assert der.read_integer(content, Wrong) == value


@pytest.mark.parametrize("content", [b"", b"\x00\x7f", b"\xff\x80", b"\x00\x00"])
def test_padded_integers_are_refused(content):
    with pytest.raises(Wrong):
        der.read_integer(content, Wrong)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6), st.integers(0, 2))
def test_object_identifiers(arcs, top):
    dotted = f"{top}.{arcs[0] % 40}." + ".".join(map(str, arcs))
    body = b""
    for arc in (40 * top + arcs[0] % 40, *arcs):
        chunk = [arc & 0x7F]
        while arc := arc >> 7:
            chunk.insert(0, arc & 0x7F | 0x80)
        body += bytes(chunk)
    assert der.read_oid(body, Wrong) == dotted


@pytest.mark.parametrize("content", [b"", b"\x80\x01", b"\x2a\x80", b"\x2a\x80\x01"])
def test_padded_or_cut_identifiers_are_refused(content):
    with pytest.raises(Wrong):
        der.read_oid(content, Wrong)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x17\x0d491231235959Z", 2524607999),
        (b"\x17\x0d500101000000Z", -631152000),
        (b"\x17\x0d700101000000Z", 0),
        (b"\x18\x0f99991231235959Z", 253402300799),
    ],
)
def test_times(data, expected):
    assert reader(data).time("a time") == expected


@pytest.mark.parametrize(
    "data",
    [
        b"\x17\x0d4912312359 9Z", b"\x17\x0b4912312359Z", b"\x17\x0d491331235959Z",
        b"\x18\x0d491231235959Z", b"\x02\x0d491231235959Z", b"\x17\x0d49123123595\xffZ",
        b"\x18\x0f2026010112 000Z", b"\x17\x0d491231235959z", b"\x17\x0d491231235960Z",
        b"\x18\x0f00000101000000Z",
    ],
)  # fmt: skip
def test_other_times_are_refused(data):
    with pytest.raises(Wrong):
        reader(data).time("a time")


def test_bits_and_ends():
    assert reader(b"\x03\x02\x00\x01").bits("bits") == b"\x01"
    for data in (b"\x03\x00", b"\x03\x02\x01\x80"):
        with pytest.raises(Wrong):
            reader(data).bits("bits")
    with pytest.raises(Wrong):
        reader(b"\0").end("it")
    with pytest.raises(Wrong, match="tag"):
        reader(b"\x05\x00").element(der.INTEGER, "a number")


# --- certificates -----------------------------------------------------------------------------


def test_what_is_read_is_what_the_library_reads(makers):
    for authority in (makers.Amd().ark, makers.Amd().endorsement, makers.Intel().pck):
        theirs = x509.load_der_x509_certificate(authority.der)
        ours = parse_certificate(authority.der)
        assert ours.serial == theirs.serial_number
        assert ours.tbs == theirs.tbs_certificate_bytes
        assert ours.signature == theirs.signature
        assert ours.not_before == int(theirs.not_valid_before_utc.timestamp())
        assert ours.not_after == int(theirs.not_valid_after_utc.timestamp())
        assert ours.name == authority.title
        assert set(ours.extensions) == {e.oid.dotted_string for e in theirs.extensions}
        assert ours.critical == {e.oid.dotted_string for e in theirs.extensions if e.critical}
        assert ours.public_key == theirs.public_key()


@settings(max_examples=300)
@given(data=st.data())
def test_certificates_changed_anyhow_raise_one_type(makers, data):
    der_bytes = makers.Intel().pck.der
    start = data.draw(st.integers(0, len(der_bytes)))
    end = data.draw(st.integers(start, min(len(der_bytes), start + 4)))
    changed = der_bytes[:start] + data.draw(st.binary(max_size=4)) + der_bytes[end:]
    for parse in (parse_certificate, parse_crl):
        with contextlib.suppress(EvidenceRejected):
            found = parse(changed)
            _ = found.issuer_name
            if hasattr(found, "public_key"):
                _ = (found.public_key, found.path_length, found.usages, found.name)
                _ = (found.may_sign_certificates, found.may_sign_crls)


@given(st.binary(max_size=300))
def test_garbage_is_no_certificate(data):
    for start in (b"", b"\x30\x82\x01\x00\x30"):
        for parse in (parse_certificate, parse_crl):
            with pytest.raises(EvidenceRejected):
                parse(start + data)


def test_too_large_and_trailing(makers):
    good = makers.Amd().ark.der
    for wrong in (good + b"\0", good[:-1], bytes(1 << 18)):
        with pytest.raises(EvidenceRejected):
            parse_certificate(wrong)


def resigned(makers, der_bytes: bytes, old: bytes, new: bytes, signer) -> bytes:
    """A certificate or CRL with other bytes of the same length in its body, signed again."""
    parts = der.DerReader(der_bytes, Wrong).children(der.SEQUENCE, "all")
    tbs, algorithm = (parts.element(der.SEQUENCE, "a part").raw for _ in range(2))
    assert old in tbs
    tbs = tbs.replace(old, new, 1)
    r, s = makers.raw_sign(signer.key, tbs)
    signature = makers.tlv(3, b"\0" + makers.tlv(0x30, makers.number(r), makers.number(s)))
    return makers.tlv(0x30, tbs, algorithm, signature)


def test_serial_number_0_is_read_without_a_warning(makers, recwarn):
    amd = makers.Amd()
    changed = resigned(makers, amd.endorsement.der, b"\x02\x01\x07", b"\x02\x01\x00", amd.ask)
    found = parse_certificate(changed)
    assert found.serial == 0
    path = build_path(
        found,
        Anchors((parse_certificate(amd.ark.der),), (parse_certificate(amd.ask.der),)),
        makers.NOW,
    )
    assert len(path) == 3
    assert not recwarn.list


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),
        (b"\x01\x01\xff", b"\x01\x01\x01"),
        (b"\x06\x08*\x86H\xce=\x04\x03\x03", b"\x06\x08*\x86H\xce=\x04\x03\x02"),
    ],
    ids=["version-2", "criticality", "another-algorithm-inside"],
)
def test_bodies_are_read_strictly(makers, old, new):
    amd = makers.Amd()
    with pytest.raises(EvidenceRejected, match="certificate_malformed"):
        parse_certificate(resigned(makers, amd.ask.der, old, new, amd.ark))


def test_an_extension_twice(makers):
    amd = makers.Amd()
    one, two = makers.oid("1.3.6.1.4.1.3704.1.3.1"), makers.oid("1.3.6.1.4.1.3704.1.3.2")
    with pytest.raises(EvidenceRejected, match="twice"):
        parse_certificate(resigned(makers, amd.endorsement.der, one, two, amd.ask))


def test_crls_are_read_strictly(makers):
    root = makers.Intel().root
    good = root.crl(5, 6)
    assert parse_crl(good).revoked == {5, 6}
    with pytest.raises(EvidenceRejected, match="version 2"):
        parse_crl(resigned(makers, good, b"\x02\x01\x01", b"\x02\x01\x00", root))
    old, new = b"*\x86H\xce=\x04\x03\x02", b"*\x86H\xce=\x04\x03\x03"
    other = resigned(makers, good, old, new, root)
    with pytest.raises(EvidenceRejected, match="signed algorithm"):
        parse_crl(other)


def test_pem(makers):
    amd = makers.Amd()
    text = b"header\n" + amd.ark.pem + b"\n" + amd.ask.pem
    found, crls = read_pem(text)
    assert [one.name for one in found] == ["ARK-Milan", "SEV-Milan"]
    assert crls == ()
    crl = x509.load_der_x509_crl(amd.ark.crl(3)).public_bytes(Encoding.PEM)
    assert read_pem(crl)[1][0].revoked == {3}
    with pytest.raises(EvidenceRejected, match="base64"):
        read_pem(b"-----BEGIN CERTIFICATE-----\nQUJ\n-----END CERTIFICATE-----")


# --- keys and signatures ----------------------------------------------------------------------


def spki(private) -> bytes:
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_weak_and_foreign_keys_are_refused():
    weak = rsa.generate_private_key(65537, 1024)
    for key in (weak, x25519.X25519PrivateKey.generate()):
        with pytest.raises(EvidenceRejected, match="key_unsupported"):
            load_key(spki(key))
    with pytest.raises(EvidenceRejected, match="key_unsupported"):
        load_key(b"\x30\x00")


@pytest.mark.parametrize("kind", ["pkcs1", "ed25519"])
def test_other_algorithms(makers, kind):
    """A TPM maker's chain is RSA with PKCS #1, a development authority's Ed25519."""
    key = makers.rsa_key() if kind == "pkcs1" else ed25519.Ed25519PrivateKey.generate()
    made = (
        x509.CertificateBuilder()
        .subject_name(makers.name("a maker"))
        .issuer_name(makers.name("a maker"))
        .serial_number(1)
        .not_valid_before(makers.CLOCK)
        .not_valid_after(makers.CLOCK + timedelta(days=1))
        .public_key(key.public_key())
        .sign(key, SHA256() if kind == "pkcs1" else None)
    )
    one = parse_certificate(made.public_bytes(Encoding.DER))
    assert is_signed_by(one.signature_algorithm, one.public_key, one.signature, one.tbs)
    assert not is_signed_by(one.signature_algorithm, one.public_key, one.signature, b"other")
    with pytest.raises(EvidenceRejected, match="signature algorithm"):
        is_signed_by(makers.tlv(0x30, makers.oid("1.2.3")), one.public_key, one.signature, b"")


def pss(makers, message="2.16.840.1.101.3.4.2.2", mask=None, salt=48, mgf="1.2.840.113549.1.1.8"):
    def named(dotted):
        return makers.tlv(0x30, makers.oid(dotted))

    return makers.tlv(
        0x30,
        makers.oid("1.2.840.113549.1.1.10"),
        makers.tlv(
            0x30,
            makers.tlv(0xA0, named(message)),
            makers.tlv(0xA1, makers.tlv(0x30, makers.oid(mgf), named(mask or message))),
            makers.tlv(0xA2, makers.number(salt)),
        ),
    )


@pytest.mark.parametrize(
    "how",
    [
        {"salt": 20},
        {"mgf": "1.2.3"},
        {"mask": "2.16.840.1.101.3.4.2.1"},
        {"message": "1.3.14.3.2.26"},
    ],
)
def test_pss_parameters_are_read_strictly(makers, how):
    with pytest.raises(EvidenceRejected, match="key_unsupported"):
        is_signed_by(pss(makers, **how), makers.rsa_key().public_key(), bytes(256), b"")
    assert not is_signed_by(pss(makers), makers.rsa_key().public_key(), bytes(256), b"")


# --- chains -----------------------------------------------------------------------------------


def path_reason(leaf, roots, pool, now) -> str:
    def parse(some):
        return tuple(parse_certificate(one.der) for one in some)

    with pytest.raises(EvidenceRejected) as caught:
        build_path(parse([leaf])[0], Anchors(parse(roots), parse(pool)), now)
    return caught.value.reason


def test_who_may_issue(makers):
    root = makers.Authority("root")
    for middle in (
        makers.Authority("middle", issuer=root, is_authority=False),
        makers.Authority("middle", issuer=root, is_authority=False,
                         extensions=(("2.5.29.19", b"\x30\x00"),)),
        makers.Authority("middle", issuer=root, extensions=(("2.5.29.15", b"\x03\x02\x07\x80"),)),
        makers.Authority("middle", issuer=root, extensions=(("2.5.29.15", b"\x03\x01\x00"),)),
    ):  # fmt: skip
        leaf = makers.Authority("leaf", issuer=middle, is_authority=False)
        assert path_reason(leaf, [root], [middle], makers.NOW) == "issuer_not_authority"


def test_path_lengths_hold(makers):
    root = makers.Authority("root")
    short = (("2.5.29.19", b"\x30\x06\x01\x01\xff\x02\x01\x00"),)
    outer = makers.Authority("outer", issuer=root, is_authority=False, extensions=short)
    inner = makers.Authority("inner", issuer=outer)
    leaf = makers.Authority("leaf", issuer=inner, is_authority=False)
    assert path_reason(leaf, [root], [outer, inner], makers.NOW) == "issuer_not_authority"
    direct = makers.Authority("leaf", issuer=outer, is_authority=False)
    found = [parse_certificate(one.der) for one in (direct, outer, root)]
    assert len(build_path(found[0], Anchors((found[2],), (found[1],)), makers.NOW)) == 3


def test_a_chain_without_end(makers):
    one, two = makers.Authority("one"), makers.Authority("two")
    one.issuer, two.issuer = two, one
    leaf = makers.Authority("leaf", issuer=one, is_authority=False)
    root = makers.Authority("root")
    loop = [makers.Authority("one", issuer=makers.Authority("two")),
            makers.Authority("two", issuer=makers.Authority("one"))]  # fmt: skip
    assert path_reason(leaf, [root], loop, makers.NOW) == "chain_too_long"
    assert path_reason(leaf, [root], loop * 33, makers.NOW) == "chain_too_long"


def test_critical_extensions_have_to_be_known(makers):
    root = makers.Authority("root")
    built = (
        x509.CertificateBuilder()
        .subject_name(makers.name("leaf"))
        .issuer_name(makers.name("root"))
        .serial_number(1)
        .not_valid_before(makers.CLOCK)
        .not_valid_after(makers.CLOCK + timedelta(days=1))
        .public_key(root.key.public_key())
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""), True)
        .sign(root.key, SHA384())
    )
    leaf = parse_certificate(built.public_bytes(Encoding.DER))
    with pytest.raises(EvidenceRejected, match="certificate_extension"):
        build_path(leaf, Anchors((parse_certificate(root.der),)), makers.NOW)


def test_who_may_sign_crls(makers):
    root = makers.Authority("root", extensions=(("2.5.29.15", b"\x03\x02\x02\x04"),))
    leaf = makers.Authority("leaf", issuer=root, is_authority=False)
    anchors = Anchors((parse_certificate(root.der),), (), (parse_crl(root.crl()),))
    with pytest.raises(EvidenceRejected, match="signs CRLs"):
        build_path(parse_certificate(leaf.der), anchors, makers.NOW)


def test_any_integer_is_a_moment():
    assert moment(0) == "1970-01-01T00:00:00Z"
    assert moment(10**20) == f"{10**20} s"
