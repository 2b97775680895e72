"""Every parser: what it accepts it gives back byte for byte; what it refuses, by one type."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import EvidenceRejected, UsageError
from overspill.trust import tpm_structures as tpm
from overspill.trust.measured import (
    Measured,
    MeasuredEntry,
    MeasuredLog,
    ModelEntry,
    ModelsManifest,
)
from overspill.trust.nkc import NodeKeyConfig
from overspill.trust.place import is_loopback
from overspill.trust.tpm import TpmEvidence
from overspill.trust.verifier import appraise, verify
from overspill.types.evidence import Evidence, EvidenceBundle

digests = st.binary(min_size=32, max_size=32)
names = st.text(min_size=1, max_size=30)
u16, u64 = st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1)
configs = st.builds(
    NodeKeyConfig,
    mode=st.integers(0, 1),
    kem_id=u16,
    kdf_id=u16,
    aead_id=u16,
    hpke_public_key=st.binary(min_size=1, max_size=1300),
    receipt_public_key=digests,
    not_before=u64,
    not_after=u64,
    models_digest=digests,
    config_digest=digests,
    boot_id=st.binary(min_size=16, max_size=16),
    release_id=digests,
    gpu_claims_digest=digests,
    freshness_anchor_sha256=digests,
)
adapters = st.dictionaries(names, digests, max_size=2).map(lambda d: tuple(d.items()))
models = st.builds(ModelEntry, names, digests, digests, digests, adapters)
manifests = st.lists(models, max_size=4, unique_by=lambda m: m.name).map(
    lambda found: ModelsManifest(tuple(found))
)


# --- node key configuration -------------------------------------------------------------------


@given(configs)
def test_nkc_survives(config):
    assert NodeKeyConfig.decode(config.encode()) == config


@given(configs, st.data())
def test_nkc_has_one_encoding(config, data):
    """Whatever decodes is exactly its own encoding: no two byte strings mean the same."""
    encoded = bytearray(config.encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        other = NodeKeyConfig.decode(bytes(encoded))
    except EvidenceRejected:
        return
    assert other.encode() == bytes(encoded)
    assert other != config


@given(configs, st.data())
def test_nkc_cut_anywhere_is_refused(config, data):
    encoded = config.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(EvidenceRejected):
        NodeKeyConfig.decode(encoded[:cut])


@given(st.binary(max_size=400))
def test_garbage_is_no_nkc(data):
    with pytest.raises(EvidenceRejected):
        NodeKeyConfig.decode(data)
    with pytest.raises(EvidenceRejected):
        NodeKeyConfig.decode(b"OVSN\x01\x00" + data)


@pytest.mark.parametrize(
    "change",
    [{"boot_id": b""}, {"release_id": bytes(31)}, {"hpke_public_key": bytes(2049)}],
    ids=lambda change: next(iter(change)),
)
def test_fields_that_do_not_fit_are_not_encoded(dev_node, change):
    with pytest.raises(UsageError):
        dev_node.config(**change).encode()


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"X"), (4, b"\x02"), (4, b"\x00"), (5, b"\x02"), (5, b"\xff")],
    ids=["magic", "version-2", "version-0", "mode-2", "mode-255"],
)
def test_other_magics_versions_and_modes_are_refused(dev_node, at, value):
    good = dev_node.config().encode()
    with pytest.raises(EvidenceRejected) as caught:
        NodeKeyConfig.decode(good[:at] + value + good[at + 1 :])
    assert caught.value.reason == "nkc_malformed"


@pytest.mark.parametrize(
    ("hpke_key", "receipt_key"), [(b"", bytes(32)), (b"k", bytes(31)), (b"k", bytes(33))]
)
def test_keys_of_no_length_are_refused(dev_node, hpke_key, receipt_key):
    good = dev_node.config(hpke_public_key=b"k").encode()
    head, tail = good[:12], good[12 + 3 + 34 :]
    with pytest.raises(EvidenceRejected) as caught:
        NodeKeyConfig.decode(head + sized(hpke_key) + sized(receipt_key) + tail)
    assert caught.value.reason == "nkc_malformed"


# --- measured log and manifest ----------------------------------------------------------------


@given(manifests)
def test_manifest_survives_in_any_order(manifest):
    encoded = manifest.encode()
    assert ModelsManifest.decode(encoded).encode() == encoded
    assert ModelsManifest(tuple(reversed(manifest.models))).encode() == encoded
    assert ModelsManifest.decode(encoded).digest == manifest.digest


@given(manifests, manifests)
def test_manifest_digests_differ_when_manifests_do(one, two):
    assert (one.digest == two.digest) == (one.encode() == two.encode())


def test_unsorted_and_doubled_manifests_are_refused():
    a, b = ModelEntry("a", *[bytes(32)] * 3), ModelEntry("b", *[bytes(32)] * 3)
    head = b"OVSM\x01\x00\x02"
    assert ModelsManifest.decode(head + a.encode() + b.encode()).models == (a, b)
    for parts in (b.encode() + a.encode(), a.encode() + a.encode()):
        with pytest.raises(EvidenceRejected):
            ModelsManifest.decode(head + parts)
    twice = replace(a, adapters=(("x", bytes(32)), ("x", bytes(32))))
    with pytest.raises(EvidenceRejected):
        ModelsManifest.decode(b"OVSM\x01\x00\x01" + twice.encode())


@given(manifests, st.binary(max_size=200), st.data())
def test_one_flipped_byte_in_a_log_changes_it_or_is_refused(manifest, config, data):
    encoded = manifest.encode()
    entries = [
        MeasuredEntry(Measured.WHEEL, "w", bytes(32)),
        MeasuredEntry(Measured.ENGINE, "e", bytes(32)),
        MeasuredEntry(Measured.MODELS, "m", hashlib.sha256(encoded).digest(), encoded),
        MeasuredEntry(Measured.CONFIG, "c", hashlib.sha256(config).digest(), config),
    ]
    log = [entry.encode() for entry in entries]
    good = MeasuredLog.decode(log)
    assert good.models.digest == manifest.digest
    which = data.draw(st.integers(0, 3))
    at = data.draw(st.integers(0, len(log[which]) - 1))
    flipped = bytearray(log[which])
    flipped[at] ^= data.draw(st.integers(1, 255))
    log[which] = bytes(flipped)
    try:
        other = MeasuredLog.decode(log)
        _ = other.models
    except EvidenceRejected:
        return
    assert other.replay() != good.replay()


def test_nothing_goes_without_a_name():
    nameless = ModelEntry("a", *[bytes(32)] * 3).encode().replace(b"\x00\x01a", b"\x00\x00", 1)
    with pytest.raises(EvidenceRejected, match="empty name"):
        ModelsManifest.decode(b"OVSM\x01\x00\x01" + nameless)
    with pytest.raises(EvidenceRejected, match="empty name"):
        MeasuredLog.decode([b"\x01\x00\x00" + bytes(36)])


@pytest.mark.parametrize(
    "entry",
    [
        ModelEntry("", *[bytes(32)] * 3),
        ModelEntry("x" * 257, *[bytes(32)] * 3),
        ModelEntry("x", bytes(31), bytes(32), bytes(32)),
        ModelEntry("x", *[bytes(32)] * 3, (("tuned", b""),)),
        MeasuredEntry(Measured.WHEEL, "x", bytes(33)),
        MeasuredEntry(Measured.CONFIG, "x", bytes(32), bytes(131_073)),
    ],
)
def test_what_does_not_fit_is_not_measured(entry):
    with pytest.raises(UsageError):
        entry.encode()


@pytest.mark.parametrize("kind", list(Measured))
def test_content_is_what_its_digest_says_and_only_where_it_belongs(log_of, kind):
    log = [
        MeasuredEntry(kind, "x", bytes(32), b"unmeasured").encode() if entry[0] == kind else entry
        for entry in log_of(ModelsManifest(()))
    ]
    with pytest.raises(EvidenceRejected) as caught:
        MeasuredLog.decode(log)
    assert caught.value.reason == "measured_log_malformed"


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_garbage_is_no_log(entries):
    with pytest.raises(EvidenceRejected):
        MeasuredLog.decode(entries)


@given(st.binary(max_size=200))
def test_garbage_is_no_manifest(data):
    for manifest in (data, b"OVSM\x01\x00\x01" + data):
        with pytest.raises(EvidenceRejected):
            ModelsManifest.decode(manifest)


def test_a_hostile_count_does_not_take_memory():
    with pytest.raises(EvidenceRejected):
        ModelsManifest.decode(b"OVSM\x01\xff\xff")
    with pytest.raises(EvidenceRejected):
        MeasuredLog.decode([b""] * 100_000)
    with pytest.raises(EvidenceRejected, match="at most 131072"):
        MeasuredLog.decode([bytes(65_537)] * 2)


# --- TPM structures ---------------------------------------------------------------------------


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def attest(
    magic=tpm.GENERATED, kind=tpm.ST_ATTEST_QUOTE, extra=bytes(32), bank=0x000B, bitmap=b"\0\x70\0"
) -> bytes:
    selection = struct.pack(">IHB", 1, bank, len(bitmap)) + bitmap
    return (
        struct.pack(">IH", magic, kind)
        + sized(b"\x00\x0b" + bytes(32))
        + sized(extra)
        + struct.pack(">QIIBQ", 1, 2, 3, 1, 4)
        + selection
        + sized(bytes(32))
    )


def test_a_quote_is_read_in_full():
    quote = tpm.parse_quote(attest())
    assert quote.qualifying_data == bytes(32)
    assert quote.selections == (tpm.PcrSelection(0x000B, frozenset({12, 13, 14})),)
    assert (quote.reset_count, quote.restart_count) == (2, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"magic": 0xFF544348}, "tpm_magic"), ({"kind": 0x8017}, "tpm_type")],
)
def test_t42_magic_or_type_wrong(change, reason):
    with pytest.raises(EvidenceRejected) as caught:
        tpm.parse_quote(attest(**change))
    assert caught.value.reason == reason


def test_a_quote_cut_anywhere_or_longer_is_refused():
    data = attest()
    for cut in range(len(data)):
        with pytest.raises(EvidenceRejected):
            tpm.parse_quote(data[:cut])
    with pytest.raises(EvidenceRejected):
        tpm.parse_quote(data + b"\0")


@pytest.mark.parametrize("length", [33, 1025, 0xFFFF])
def test_a_length_past_the_end_is_refused(length):
    data = attest()
    at = 6 + 2 + 34
    with pytest.raises(EvidenceRejected) as caught:
        tpm.parse_quote(data[:at] + struct.pack(">H", length) + data[at + 2 :])
    assert caught.value.reason == "tpm_malformed"


_PARSERS = [
    tpm.parse_quote,
    tpm.parse_ecc_key,
    tpm.parse_signature,
    TpmEvidence.decode,
]


@settings(max_examples=200)
@given(st.binary(max_size=300), st.sampled_from(_PARSERS), st.data())
def test_garbage_raises_one_type(data, parser, draw):
    heads = [b"", struct.pack(">IH", tpm.GENERATED, tpm.ST_ATTEST_QUOTE), b"OVST\x01"]
    heads += [struct.pack(">HH", tpm.ALG_ECC, tpm.ALG_SHA256)]
    with contextlib.suppress(EvidenceRejected):
        parser(draw.draw(st.sampled_from(heads)) + data)


def test_others_quotes_are_read(shared_data):
    """Quotes of real and virtual TPMs, by others' tools."""
    quote = (shared_data / "vectors/az_snp_vtpm/tpm-quote.msg").read_bytes()
    read = tpm.parse_quote(quote)
    assert read.selections
    assert all(selection.pcrs for selection in read.selections)
    assert len(read.pcr_digest) == 32
    for at in range(6):
        flipped = quote[:at] + bytes([quote[at] ^ 1]) + quote[at + 1 :]
        with pytest.raises(EvidenceRejected):
            tpm.parse_quote(flipped)


# --- whole bundles ----------------------------------------------------------------------------


def _flips(bundle: EvidenceBundle):
    """The bundle with each byte flipped in turn, and where that was."""
    evidence = bundle.evidence[0]
    for at in range(len(bundle.node_key_config)):
        yield f"nkc {at}", replace(bundle, node_key_config=_flip(bundle.node_key_config, at))
    for at in range(len(evidence.data)):
        flipped = replace(evidence, data=_flip(evidence.data, at))
        yield f"evidence {at}", replace(bundle, evidence=(flipped,))
    for which, entry in enumerate(bundle.measured_log):
        for at in range(len(entry)):
            log = list(bundle.measured_log)
            log[which] = _flip(entry, at)
            yield f"log {which} {at}", replace(bundle, measured_log=tuple(log))


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.exhaustive
def test_a_good_bundle_with_each_byte_flipped_is_refused(node, at):
    """No byte is malleable: the list of exceptions is empty."""
    good = node.bundle()
    verify(good, at(), node.policy)
    accepted = []
    for where, bundle in _flips(good):
        try:
            verify(bundle, at(), node.policy)
        except EvidenceRejected:
            continue
        accepted.append(where)
    assert accepted == []


@given(
    st.binary(max_size=100),
    st.sampled_from(["dev-ed25519", "pinned-operator", "dev-tpm-software", "sev-snp", "x"]),
    st.binary(max_size=300),
    st.lists(st.binary(max_size=50), max_size=3),
)
def test_garbage_bundles_raise_one_type(nkc, kind, data, log):
    from overspill.trust.policy import default_policy
    from overspill.trust.verifier import Context

    bundle = EvidenceBundle(nkc, (Evidence(kind, data),), measured_log=tuple(log))
    with pytest.raises(EvidenceRejected):
        verify(bundle, Context(0, "127.0.0.1:1", True, bytes(32)), default_policy())


def test_appraisal_tells_every_step(node, at):
    good = appraise(node.bundle(), at(), node.policy)
    assert good.rejection is None
    assert good.result == verify(node.bundle(), at(), node.policy) or good.result is not None
    assert all(step.ok for step in good.steps)
    bad = appraise(node.bundle(kdf_id=2), at(), node.policy)
    assert bad.result is None
    assert bad.rejection is not None
    assert bad.rejection.step == "4"
    assert [step.n for step in bad.steps] == [str(n) for n in range(1, 10)]
    assert [step.ok for step in bad.steps] == [True] * 3 + [False] + [None] * 5
    assert "0x0002" in bad.steps[3].detail


@given(st.text(max_size=40))
def test_no_address_is_loopback_by_accident(address):
    if is_loopback(address):
        assert address.startswith(("unix:", "memory:", "localhost:", "127.", "[::1]", "::1"))


def test_a_bundle_is_small(node):
    bundle = node.bundle()
    size = len(bundle.node_key_config) + len(bundle.evidence[0].data)
    assert size < 32 << 10
