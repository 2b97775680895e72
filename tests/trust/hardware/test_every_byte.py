"""Every byte of a whole good bundle, changed in turn: refused, or in a list that says why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest

from overspill.errors import EvidenceRejected
from overspill.trust import nvidia, verifier
from overspill.trust.certificates import read_pem
from overspill.trust.measured import Measured, MeasuredLog
from overspill.trust.nkc import report_data
from overspill.trust.nvidia_rim import read_rim
from overspill.trust.policy import TrustPolicy
from overspill.trust.snp import SevSnpVerifier
from overspill.trust.steps import Steps
from overspill.trust.tdx import TdxVerifier
from overspill.types.binary import ByteReader
from overspill.types.evidence import Evidence, EvidenceBundle

pytestmark = pytest.mark.exhaustive

NONCE = bytes(range(32))
LOWEST, CASE = 0x01, 0x20
"""Each byte's lowest bit, and for text the one between small and capital letters too."""
QUOTED = {7, 12, 13, 14}
AK_ATTRIBUTES = range(43, 47)
"""Where a key has a certificate of its own, its issuer stands for what the key is: attributes that
nobody demands may differ. An activation names them."""
_NKC_STEP = {"sev-snp": 1, "tdx": 7, "tpm": 7}
"""The configuration goes into each kind of evidence by one digest: every byte of it once."""


class Node(NamedTuple):
    bundle: EvidenceBundle
    policy: TrustPolicy


class Change(NamedTuple):
    """Which part of a bundle, which byte of it, and which bit was turned."""

    part: str
    place: int
    bit: int


@pytest.fixture
def nodes(makers, roots, policy_of, pinned_node, tpm_node, tpm_policy, monkeypatch):
    """A good node of each kind, under look-alike vendors; ``nodes["snp"]()``."""
    verifiers = (SevSnpVerifier(lambda: roots), TdxVerifier(lambda: roots))
    registry = {**verifier.REGISTRY, **{one.evidence_type: one for one in verifiers}}
    monkeypatch.setattr(verifier, "REGISTRY", registry)
    monkeypatch.setattr(verifier, "vendor_roots", lambda: roots)

    def bundle(make: Callable[[bytes], Evidence], *more: Evidence, **config) -> EvidenceBundle:
        nkc = pinned_node.config(**config).encode()
        evidence = (make(report_data(nkc, NONCE, dev=False)), *more)
        return EvidenceBundle(nkc, evidence, measured_log=pinned_node.log)

    def snp(data: bytes) -> Evidence:
        amd = makers.Amd()
        keys = {"vcek": amd.endorsement.der, "ask": amd.ask.der, "crl": amd.ark.crl()}
        return Evidence("sev-snp", amd.report(data), keys)

    def tdx(data: bytes) -> Evidence:
        rtmr3 = MeasuredLog.decode(pinned_node.log).replay_rtmr()
        rtmrs = (bytes(48), b"\1" * 48, b"\2" * 48, rtmr3)
        return Evidence("tdx", makers.Intel().quote(data, rtmrs=rtmrs), makers.Intel().collateral())

    def tpm(grounds: str) -> Node:
        node = tpm_node(NONCE)
        evidence = node.evidence(grounds=grounds, nonce=NONCE)
        nkc, log = node.subject.nkc_bytes, node.subject.raw_log
        return Node(EvidenceBundle(nkc, (evidence,), measured_log=log), tpm_policy)

    return {
        "snp": lambda: Node(bundle(snp), policy_of("sev-snp")),
        "tdx": lambda: Node(bundle(tdx), policy_of("tdx")),
        "tpm-ek": lambda: tpm("ek"),
        "tpm-ak": lambda: tpm("ak"),
    }


@pytest.mark.parametrize("kind", ["snp", "tdx", "tpm-ek", "tpm-ak"])
def test_each_flipped_byte_of_a_bundle_is_refused_or_explained(nodes, at, kind):
    """The configuration, each piece of evidence with its collateral, and the measured log."""
    node, context = nodes[kind](), at(nonce=NONCE)
    verifier.verify(node.bundle, context, node.policy)
    tried, accepted = 0, []
    for change, changed in _changes(node.bundle):
        tried += 1
        try:
            verifier.verify(changed, context, node.policy)
        except EvidenceRejected:
            continue
        accepted.append(change)
    assert tried > 1500
    assert [one for one in accepted if not _explained(node.bundle, one)] == []


def test_each_flipped_byte_of_a_gpus_evidence_is_refused(makers, roots, policy_of, pinned_node):
    """The keys name report and certificates; the report's own signature is tried beside that, and
    the manifests, which nothing names: they are NVIDIA's word."""
    draft, look_alike = pinned_node.config(), makers.Nvidia()
    nonce = nvidia.gpu_nonce(draft.boot_id, draft.hpke_public_key)
    good = Evidence("nvidia-gpu", look_alike.report(nonce), {"certificates": look_alike.chain})
    config = pinned_node.config(gpu_claims_digest=nvidia.claims_digest(good))
    policy = policy_of("sev-snp", "nvidia-gpu").gpu
    nvidia.check(good, config, makers.NOW, policy, lambda: roots)
    for _, changed in _changed_evidence(good):
        with pytest.raises(EvidenceRejected, match="gpu_not_bound"):
            nvidia.check(changed, config, makers.NOW, policy, lambda: roots)
    certificates, _ = read_pem(look_alike.chain)
    for _, data in _flips(good.data, LOWEST):
        materials, steps = nvidia.GpuMaterials(data, certificates), Steps(nvidia.STEP_NAMES)
        with pytest.raises(EvidenceRejected):
            nvidia.examine(materials, makers.NOW, nonce, policy, steps, roots)


def test_each_flipped_byte_of_a_manifest_is_refused_or_changes_nothing(makers, roots):
    """Its signature covers all but the certificates: how their base64 is broken into lines may
    differ, and the copy of the root, which stands last and is not what is trusted."""
    good = makers.rim()
    read = read_rim(good, roots.nvidia_rim, makers.NOW)
    accepted = []
    for place, data in _flips(good, LOWEST):
        try:
            assert read_rim(data, roots.nvidia_rim, makers.NOW) == read
        except EvidenceRejected:
            continue
        accepted.append(place)
    key_info, root = good.index(b"KeyInfo"), good.rindex(b"<ds:X509Certificate>")
    within = [place for place in accepted if not good[place : place + 1].isspace()]
    assert [place for place in accepted if place < key_info] == []
    assert [place for place in within if place < root] == []


def _changes(bundle: EvidenceBundle) -> Iterator[tuple[Change, EvidenceBundle]]:
    for place, data in _flips(bundle.node_key_config, LOWEST, _NKC_STEP[bundle.evidence[0].type]):
        yield Change("nkc", place, LOWEST), replace(bundle, node_key_config=data)
    for which, entry in enumerate(bundle.measured_log):
        for place, data in _flips(entry, LOWEST):
            log = (*bundle.measured_log[:which], data, *bundle.measured_log[which + 1 :])
            yield Change(f"log {which}", place, LOWEST), replace(bundle, measured_log=log)
    for change, changed in _changed_evidence(bundle.evidence[0]):
        yield change, replace(bundle, evidence=(changed,))


def _changed_evidence(piece: Evidence) -> Iterator[tuple[Change, Evidence]]:
    for place, data in _flips(piece.data, LOWEST):
        yield Change("evidence", place, LOWEST), replace(piece, data=data)
    for name, good in piece.collateral.items():
        for bit in (LOWEST, CASE) if good.isascii() else (LOWEST,):
            for place, data in _flips(good, bit, 1 if bit == LOWEST else 5):
                collateral = {**piece.collateral, name: data}
                yield Change(name, place, bit), replace(piece, collateral=collateral)


def _flips(good: bytes, bit: int, step: int = 1) -> Iterator[tuple[int, bytes]]:
    for place in range(0, len(good), step):
        yield place, good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :]


# --- what may differ without a lie -------------------------------------------------------------


def _explained(bundle: EvidenceBundle, change: Change) -> bool:
    """Each rule says of which bytes, and why."""
    (piece,) = bundle.evidence
    if change.part.startswith("log "):
        entry = bundle.measured_log[int(change.part.split()[1])]
        return piece.type == "sev-snp" and _is_not_launched(entry, change.place)
    if change.part == "event_log":
        return _is_unmeasured(piece.collateral["event_log"], change.place)
    if change.part in ("tcb_info", "qe_identity"):
        return _is_hex_of_a_signature(piece.collateral[change.part], change)
    if change.part == "evidence" and piece.type == "tpm":
        return "ak_certificate" in piece.collateral and change.place in AK_ATTRIBUTES
    data = piece.data if change.part == "evidence" else piece.collateral[change.part]
    return _is_around_base64(data, change.place)


def _is_not_launched(entry: bytes, place: int) -> bool:
    """A SEV-SNP report has no registers: of the measured log it binds models and settings, by the
    digests in the configuration, and neither the entries' names for people nor program and engine
    library, for which the launch measurement stands; a policy that pins those refuses."""
    name_end = 3 + int.from_bytes(entry[1:3], "big")
    is_unbound = entry[0] in (Measured.WHEEL, Measured.ENGINE)
    return 3 <= place < name_end or (is_unbound and name_end <= place < name_end + 32)


def _is_around_base64(data: bytes, place: int) -> bool:
    """PEM's base64 may be broken into lines by any space; and the copy of the root that stands last
    in a quote is not what is trusted, so nobody reads it."""
    if data[place : place + 1].isspace():
        return data.find(b"-----BEGIN") >= 0
    return data.count(b"-----BEGIN") == 3 and place >= data.rindex(b"-----BEGIN")


def _is_hex_of_a_signature(document: bytes, change: Change) -> bool:
    """Hexadecimal digits may be capital letters: the signature stays the same."""
    is_letter = document[change.place : change.place + 1] in b"abcdef"
    return change.bit == CASE and is_letter and change.place > document.rindex(b'"signature"')


def _is_unmeasured(log: bytes, place: int) -> bool:
    """Registers cover an event's digest, and the quote some registers. The rest of a log says
    nothing: the first event's digest and the platform it names, what was extended into registers
    that are not quoted, and kinds and data, of which only secure boot's are read, by digest."""
    reader = ByteReader(log, ValueError)
    reader.take(8, "kind")
    if place < reader.position:
        return False
    reader.take(20, "digest")
    start = reader.position
    if place < start:
        return True
    head = reader.take(int.from_bytes(reader.take(4, "size"), "little"), "first event")
    if place < reader.position:
        return start + 4 + 16 <= place < start + 4 + 24 and len(head) > 24
    while place >= reader.position:
        begin = reader.position
        pcr = int.from_bytes(reader.take(4, "register"), "little")
        reader.take(4 + 4 + 2, "kind, count, bank")
        reader.take(32, "digest")
        size_at = reader.position
        data = reader.take(int.from_bytes(reader.take(4, "size"), "little"), "data")
    if place < begin + 4 or begin + 8 <= place < begin + 14 or size_at <= place < size_at + 4:
        return False  # register, count, bank and sizes
    if place < begin + 8 or place >= size_at + 4:
        return "SecureBoot".encode("utf-16-le") not in data or place < begin + 8
    return pcr not in QUOTED
