"""The TPM verifier against a TPM written out here: each of its checks, without any TPM installed.

What a real one makes is tested in ``tests/attester/test_tpm.py``.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust import tpm_structures as tpm
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NO_NONCE, qualifying_data
from overspill.trust.policy import parse_policy
from overspill.trust.template import tpm_dev_policy
from overspill.trust.tpm import (
    EK_CERTIFICATE,
    EK_USAGE,
    TYPE,
    TpmEvidence,
    UnsafeSoftwareTpmVerifier,
    activation_message,
)
from overspill.trust.verifier import verify
from overspill.types.evidence import Evidence, EvidenceBundle

NOW = datetime.fromtimestamp(1_800_000_000, UTC)
RIVER = hashlib.sha256(b"river's weights").digest()
GOOD_AK = 0x00050072  # fixedTPM fixedParent sensitiveDataOrigin userWithAuth restricted sign


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def certificate(key, subject, issuer_key, issuer, *, ca=False, usage=EK_USAGE, days=1):
    def name(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=days))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
    )
    if usage is not None and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
    return builder.sign(issuer_key, None)


@dataclass
class FakeTpm:
    """A TPM of a few lines: it quotes and signs whatever a test wants it to."""

    authority: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    ek: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    ak: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    attributes: int = GOOD_AK
    key_type: int = tpm.ALG_ECC
    scheme: int = tpm.ALG_ECDSA
    bank: int = tpm.ALG_SHA256
    pcrs: tuple[int, ...] = (12, 13, 14)
    magic: int = tpm.GENERATED
    kind: int = tpm.ST_ATTEST_QUOTE
    ek_usage: x509.ObjectIdentifier | None = EK_USAGE
    ek_is_authority: bool = False
    ek_days: int = 1
    registers: dict[int, bytes] | None = None

    @property
    def root_pem(self) -> str:
        root = certificate(
            self.authority, "authority", self.authority, "authority", ca=True, days=2
        )
        return root.public_bytes(Encoding.PEM).decode()

    def ek_certificate(self) -> bytes:
        made = certificate(
            self.ek,
            "ek",
            self.authority,
            "authority",
            ca=self.ek_is_authority,
            usage=self.ek_usage,
            days=self.ek_days,
        )
        return made.public_bytes(Encoding.DER)

    def ak_public(self) -> bytes:
        numbers = self.ak.public_key().public_numbers()
        head = struct.pack(">HHI", self.key_type, tpm.ALG_SHA256, self.attributes)
        scheme = struct.pack(
            ">HHHHH", tpm.ALG_NULL, self.scheme, tpm.ALG_SHA256, tpm.ECC_NIST_P256, tpm.ALG_NULL
        )
        point = sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))
        return head + sized(b"") + scheme + point

    def quote(self, data: bytes, log: MeasuredLog) -> bytes:
        values = self.registers or log.replay()
        digest = hashlib.sha256(b"".join(values.get(pcr, bytes(32)) for pcr in self.pcrs)).digest()
        bitmap = sum(1 << pcr for pcr in self.pcrs).to_bytes(3, "little")
        return (
            struct.pack(">IH", self.magic, self.kind)
            + sized(b"\0\x0b" + bytes(32))
            + sized(data)
            + struct.pack(">QIIBQ", 1, 0, 0, 1, 1)
            + struct.pack(">IHB", 1, self.bank, 3)
            + bitmap
            + sized(digest)
        )

    def sign(self, quote: bytes) -> bytes:
        r, s = decode_dss_signature(self.ak.sign(quote, ec.ECDSA(SHA256())))
        numbers = sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
        return struct.pack(">HH", tpm.ALG_ECDSA, tpm.ALG_SHA256) + numbers

    def evidence(self, nkc: bytes, nonce: bytes | None, log: tuple[bytes, ...]) -> Evidence:
        quote = self.quote(qualifying_data(nkc, nonce, dev=True), MeasuredLog.decode(log))
        ek_certificate, ak_public = self.ek_certificate(), self.ak_public()
        name = b"\x00\x0b" + hashlib.sha256(ak_public).digest()
        activation = self.authority.sign(activation_message(ek_certificate, name))
        parts = TpmEvidence(nonce or NO_NONCE, ak_public, quote, self.sign(quote), activation)
        return Evidence(TYPE, parts.encode(), {EK_CERTIFICATE: ek_certificate})


@pytest.fixture
def bundle_of(dev_node, at):
    """``bundle_of(tpm)``: a bundle of that TPM."""

    def make(fake: FakeTpm, log=None) -> EvidenceBundle:
        log = log or dev_node.log
        nkc = dev_node.config().encode()
        return EvidenceBundle(nkc, (fake.evidence(nkc, at().nonce, log),), measured_log=log)

    return make


def policy_for(fake: FakeTpm):
    return parse_policy(tpm_dev_policy(fake.root_pem, {"river": RIVER}))


def reason(bundle, context, policy) -> str:
    with pytest.raises(EvidenceRejected) as caught:
        verify(bundle, context, policy)
    return caught.value.reason


def test_a_good_quote_is_accepted(bundle_of, at):
    fake = FakeTpm()
    result = verify(bundle_of(fake), at(), policy_for(fake))
    assert result.dev
    assert result.assurance == 0
    assert not UnsafeSoftwareTpmVerifier.assurance


@pytest.mark.parametrize("pcrs", [(23,), (16,), (16, 23), (12, 13), (12, 13, 14, 23)])
def test_t41_pcr_23_alone(bundle_of, at, pcrs):
    fake = FakeTpm(pcrs=pcrs)
    assert reason(bundle_of(fake), at(), policy_for(fake)) == "pcr_selection"


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"magic": 0}, "tpm_magic"), ({"kind": 0x8017}, "tpm_type"), ({"kind": 0}, "tpm_type")],
)
def test_t42_magic_or_type_wrong(bundle_of, at, change, expected):
    fake = FakeTpm(**change)
    assert reason(bundle_of(fake), at(), policy_for(fake)) == expected


@pytest.mark.parametrize(
    ("cleared", "expected"),
    [
        (tpm.RESTRICTED, "ak_not_restricted"),
        (tpm.SIGN, "ak_not_restricted"),
        (tpm.FIXED_TPM, "ak_not_fixed"),
        (tpm.FIXED_PARENT, "ak_not_fixed"),
        (tpm.SENSITIVE_DATA_ORIGIN, "ak_not_fixed"),
    ],
)
def test_t43_ak_not_restricted(bundle_of, at, cleared, expected):
    fake = FakeTpm(attributes=GOOD_AK & ~cleared)
    assert reason(bundle_of(fake), at(), policy_for(fake)) == expected


def test_t43_a_key_that_also_decrypts_is_refused(bundle_of, at):
    fake = FakeTpm(attributes=GOOD_AK | tpm.DECRYPT)
    assert reason(bundle_of(fake), at(), policy_for(fake)) == "ak_not_fixed"


def test_t44_event_log_does_not_replay(bundle_of, at):
    fake = FakeTpm(registers={12: bytes(32), 13: bytes(32), 14: bytes(32)})
    assert reason(bundle_of(fake), at(), policy_for(fake)) == "log_not_replayed"


@pytest.mark.parametrize("bank", [0x0004, 0x000C, 0x0000])
def test_t48_sha1_bank(bundle_of, at, bank):
    fake = FakeTpm(bank=bank)
    assert reason(bundle_of(fake), at(), policy_for(fake)) == "pcr_bank"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"key_type": 1}, "ak_algorithm"),
        ({"scheme": 0x14}, "ak_algorithm"),
        ({"ek_usage": None}, "ek_certificate_usage"),
        ({"ek_usage": x509.oid.ExtendedKeyUsageOID.SERVER_AUTH}, "ek_certificate_usage"),
        ({"ek_is_authority": True}, "ek_certificate_usage"),
        ({"ek_days": 0}, "ek_certificate_expired"),
    ],
)
def test_other_keys_and_certificates_are_refused(bundle_of, at, change, expected):
    fake = FakeTpm(**change)
    a_second_later = at(now_unix=NOW.timestamp() + 1)
    assert reason(bundle_of(fake), a_second_later, policy_for(fake)) == expected


def test_t62_software_ek_under_a_root_that_is_not_named(bundle_of, at):
    assert reason(bundle_of(FakeTpm()), at(), policy_for(FakeTpm())) == "ek_root_unknown"


def test_a_look_alike_root_is_another_root(bundle_of, at):
    """The same names, another key."""
    fake, look_alike = FakeTpm(), FakeTpm()
    assert fake.root_pem != look_alike.root_pem
    assert reason(bundle_of(look_alike), at(), policy_for(fake)) == "ek_root_unknown"


def test_an_ak_activated_beside_another_ek_is_refused(bundle_of, at):
    """Two TPMs of one authority: one's EK certificate with the other's AK."""
    one = FakeTpm()
    two = FakeTpm(authority=one.authority)
    bundle, other = bundle_of(one), bundle_of(two)
    mixed = replace(bundle.evidence[0], collateral=other.evidence[0].collateral)
    swapped = replace(bundle, evidence=(mixed,))
    assert reason(swapped, at(), policy_for(one)) == "ak_not_activated"


def test_a_quote_signed_by_another_key_is_refused(bundle_of, at):
    fake = FakeTpm()
    bundle = bundle_of(fake)
    parts = TpmEvidence.decode(bundle.evidence[0].data)
    stranger = FakeTpm()
    forged = replace(parts, signature=stranger.sign(parts.quote)).encode()
    changed = replace(bundle, evidence=(replace(bundle.evidence[0], data=forged),))
    assert reason(changed, at(), policy_for(fake)) == "evidence_signature"


@pytest.mark.parametrize("part", ["ak_public", "quote", "signature", "activation"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_parts_changed_anyhow_are_refused(part, data):
    """Bytes replaced, inserted or removed anywhere: one exception type, never accepted."""
    bundle, context, policy = _good()
    parts = TpmEvidence.decode(bundle.evidence[0].data)
    value = getattr(parts, part)
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, min(len(value), start + 4)))
    changed = value[:start] + data.draw(st.binary(max_size=4)) + value[end:]
    if changed == value:
        return
    forged = replace(parts, **{part: changed}).encode()
    other = replace(bundle, evidence=(replace(bundle.evidence[0], data=forged),))
    with pytest.raises(EvidenceRejected):
        verify(other, context, policy)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_certificates_changed_anyhow_are_refused(data):
    bundle, context, policy = _good()
    der = bundle.evidence[0].collateral[EK_CERTIFICATE]
    start = data.draw(st.integers(0, len(der)))
    end = data.draw(st.integers(start, min(len(der), start + 6)))
    changed = der[:start] + data.draw(st.binary(max_size=6)) + der[end:]
    if changed == der:
        return
    evidence = replace(bundle.evidence[0], collateral={EK_CERTIFICATE: changed})
    with pytest.raises(EvidenceRejected):
        verify(replace(bundle, evidence=(evidence,)), context, policy)


_made = []


def _good():
    return _made[0]


@pytest.fixture(autouse=True)
def _one_good_bundle(bundle_of, at):
    """Hypothesis draws many changes of one bundle."""
    if not _made:
        fake = FakeTpm()
        _made.append((bundle_of(fake), at(), policy_for(fake)))


# --- the policy's side ------------------------------------------------------------------------


def test_a_policy_names_authorities_only():
    fake = FakeTpm()
    leaf = x509.load_der_x509_certificate(fake.ek_certificate())
    pem = leaf.public_bytes(Encoding.PEM).decode()
    with pytest.raises(ConfigurationError, match="no Ed25519 authority"):
        parse_policy(tpm_dev_policy(pem, {"river": RIVER}))
    with pytest.raises(ConfigurationError, match="no PEM certificate"):
        parse_policy(tpm_dev_policy("-----BEGIN CERTIFICATE-----", {"river": RIVER}))
