"""What `overspill bench trust` measures: what proof and seal cost, beside the bare primitives.

All of it is work of one core, without a network. First contact is what a device does with a bundle
that it has fetched: read it, take the nine steps over a released, logged and witnessed node, check
the costliest hardware evidence (TDX), and seal the first request.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite

from overspill.bench.figures import FigureSpec, at_most
from overspill.bench.rounds import Samples, Side, alternate
from overspill.bench.stats import paired_ratio
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.bench.trust_evidence import Checked, kinds, load_makers
from overspill.bench.trust_node import NOW, RIVER, ReleasedNode
from overspill.exchange import Outgoing, seal_request
from overspill.identity.keys import SoftwareKey
from overspill.sealing.frames import CLIENT, SERVER, FrameOpener, FrameSealer, FrameType
from overspill.sealing.receipt import ReceiptClaims, check_receipt, commitment
from overspill.sealing.schedule import FrameKeys, derive
from overspill.sealing.signing import RequestSignature, check_request
from overspill.trust.verifier import Context, verify
from overspill.types.evidence import AttestationResult, EvidenceBundle
from overspill.wire import plaintext
from overspill.wire.convert import bundle_from_proto, bundle_to_proto

KINDS: Final = ("snp", "tdx", "tpm", "nvidia")

_BODY: Final = b"x" * 2048  # a prompt of some 500 tokens
_DELTA: Final = b"x" * 48
_FRAMES: Final = 512
_CALLS: Final = 20
_SETTLE_S: Final = 0.02
_KIB: Final = 1024

Work = Callable[[], object]


def entries(makers: Path) -> tuple[Entry, ...]:
    """The entries, in the order of the report; evidence is made by the module ``makers``."""
    return (
        *(_verify_entry(kind, makers) for kind in KINDS),
        _first_contact_entry(makers),
        _request_entry(),
        _frame_entry(),
        _bundle_entry(makers),
    )


def _verify_entry(kind: str, makers: Path) -> Entry:
    """One kind of evidence, against its signatures by the library alone."""
    name = f"trust.verify.{kind}"

    async def run(bench: Bench) -> Outcome:
        made = _made(makers, kind)
        ours, bare = await _in_turn(bench, ("ours", made.check), ("bare", made.bare))
        ratio = paired_ratio(ours.values, bare.values).value
        return Outcome({f"{name}_ms": _median(ours), f"{name}_vs_bare": ratio}, (ours, bare))

    figures = (
        FigureSpec(f"{name}_ms", "ms", "one check of a bundle's evidence, chain included"),
        FigureSpec(f"{name}_vs_bare", "x", "over the same signatures by the library alone"),
    )
    return Entry(f"verify.{kind}", figures, run)


def _first_contact_entry(makers: Path) -> Entry:
    spec = FigureSpec(
        "trust.first_contact_ms",
        "ms",
        "read the bundle, nine steps, release and log, TDX evidence, seal a request; warm",
        at_most(15),
    )

    async def run(bench: Bench) -> Outcome:
        node, device, made = ReleasedNode(), _device(), _made(makers, "tdx")
        message, policy = bundle_to_proto(node.bundle), node.policy
        data, read = message.SerializeToString(), type(message).FromString

        def contact() -> None:
            bundle = bundle_from_proto(read(data))
            result = verify(bundle, Context(NOW, "node.example:443", False), policy)
            made.check()
            seal_request(result, device, _BODY, NOW * 1000)

        (samples,) = await _in_turn(bench, ("first contact", contact))
        return Outcome({spec.name: _median(samples)}, (samples,))

    return Entry("first_contact", (spec,), run)


def _request_entry() -> Entry:
    figures = (
        FigureSpec(
            "trust.request_ms",
            "ms",
            "what seal, signature and receipt add to a request, on both sides together",
            at_most(1),
        ),
        FigureSpec("trust.request_vs_bare", "x", "over the same primitives by the library alone"),
    )

    async def run(bench: Bench) -> Outcome:
        node, device = ReleasedNode(), _device()
        result = verify(node.bundle, Context(NOW, "node.example:443", False), node.policy)

        def request() -> None:
            sent = seal_request(result, device, _BODY, NOW * 1000)
            _answer(node, result, device, sent)

        ours, bare = await _in_turn(bench, ("request", request), ("bare", _bare_request()))
        ratio = paired_ratio(ours.values, bare.values).value
        values = {"trust.request_ms": _median(ours), "trust.request_vs_bare": ratio}
        return Outcome(values, (ours, bare))

    return Entry("request", figures, run)


def _bare_request() -> Work:
    """HPKE, two signatures and the sealed body, made and opened: nothing around them."""
    pair = MLKEM768X25519PrivateKey(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())
    suite, public = (
        Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305),
        pair.public_key(),
    )
    signer, aead, nonce = Ed25519PrivateKey.generate(), ChaCha20Poly1305(os.urandom(32)), bytes(12)
    verifier = signer.public_key()

    def request() -> None:
        suite.decrypt(suite.encrypt(bytes(32), public), pair)
        for message in (bytes(200), bytes(300)):  # a request's, a receipt's
            verifier.verify(signer.sign(message), message)
        aead.decrypt(nonce, aead.encrypt(nonce, _BODY, None), None)

    return request


def _answer(
    node: ReleasedNode, result: AttestationResult, device: SoftwareKey, sent: Outgoing
) -> None:
    """What a node does with a request, and the client with its receipt."""
    secret = node.pair.open(sent.head.sealed_key, sent.head.nkc_sha256)
    keys = derive(sent.head.nkc_sha256, sent.head.sealed_key, secret)
    opener = FrameOpener(keys.request, CLIENT)
    auth = plaintext.auth_from_bytes(opener.open(sent.frames[0]).plaintext)
    body = b"".join(opener.open(frame).plaintext for frame in sent.frames[1:])
    signature = RequestSignature(
        auth.request_id, auth.unix_ms, auth.device_thumbprint, auth.flags, auth.grant,
        auth.signature,
    )  # fmt: skip
    check_request(signature, device.public_der, th=keys.th, body=body)
    answer, salt = b"an answer", keys.commitment_salt
    claims = ReceiptClaims(
        nkc_sha256=result.nkc_sha256, th=keys.th, request_id=sent.request_id,
        request_commitment=commitment(salt, body), response_commitment=commitment(salt, answer),
        model="river", model_sha256=RIVER, adapter="", prompt_tokens=500, completion_tokens=2,
        unix_s=NOW, finish_reason="stop",
    )  # fmt: skip
    check_receipt(
        node.receipt_key.sign(claims), result.receipt_public_key, nkc_sha256=result.nkc_sha256,
        th=sent.keys.th, request_id=sent.request_id, salt=sent.keys.commitment_salt,
        request=sent.body, response=answer,
    )  # fmt: skip


def _frame_entry() -> Entry:
    figures = (
        FigureSpec("trust.frame_us", "us", "what the busier end adds to a frame", at_most(10)),
        FigureSpec("trust.frame_both_us", "us", "seal and open one frame of 48 bytes"),
        FigureSpec("trust.frame_vs_bare", "x", "both, over one AEAD encryption and decryption"),
    )

    async def run(bench: Bench) -> Outcome:
        keys = FrameKeys(os.urandom(32), os.urandom(12))
        frames = _sealed(keys)
        taken = await _in_turn(
            bench,
            ("seal", lambda: _sealed(keys)),
            ("open", lambda: _opened(keys, frames)),
            ("bare", lambda: _bare_frames(keys)),
            calls=1,
            unit="us",
            scale=1e6 / _FRAMES,
        )
        seal, opened, bare = taken
        both = [one + other for one, other in zip(seal.values, opened.values, strict=True)]
        values = {
            "trust.frame_us": max(_median(seal), _median(opened)),
            "trust.frame_both_us": statistics.median(both),
            "trust.frame_vs_bare": paired_ratio(both, bare.values).value,
        }
        return Outcome(values, taken)

    return Entry("frame", figures, run)


def _sealed(keys: FrameKeys) -> list[bytes]:
    sealer = FrameSealer(keys, SERVER)
    return [sealer.seal(FrameType.EVENT, _DELTA) for _ in range(_FRAMES)]


def _opened(keys: FrameKeys, frames: list[bytes]) -> None:
    opener = FrameOpener(keys, SERVER)
    for frame in frames:
        opener.open(frame)


def _bare_frames(keys: FrameKeys) -> None:
    """The same bytes under the same cipher; a transcript's hash is part of what frames promise."""
    aead, nonce = ChaCha20Poly1305(keys.key), keys.nonce
    aad, padded = b"ovs1S" + bytes(10), _DELTA.ljust(64, b"\0")
    for _ in range(_FRAMES):
        aead.decrypt(nonce, aead.encrypt(nonce, padded, aad), aad)


def _bundle_entry(makers: Path) -> Entry:
    spec = FigureSpec(
        "trust.bundle_kib", "KiB", "a released TDX node's bundle, no event log", at_most(32)
    )

    async def run(bench: Bench) -> Outcome:
        evidence = _made(makers, "tdx").evidence
        bundle = ReleasedNode().bundle
        whole = EvidenceBundle(
            bundle.node_key_config, (evidence,), bundle.release, bundle.release_proof,
            bundle.measured_log, bundle.freshness_anchor,
        )  # fmt: skip
        return Outcome({spec.name: len(_wire(whole)) / _KIB})

    return Entry("bundle", (spec,), run)


async def _in_turn(
    bench: Bench,
    *sides: tuple[str, Work],
    calls: int = _CALLS,
    unit: str = "ms",
    scale: float = 1e3 / _CALLS,
) -> list[Samples]:
    """Each side once a round, the order turned; a sample is the mean of ``calls`` calls."""
    return await alternate(
        *(Side(name, unit, _timed(work, calls, scale)) for name, work in sides),
        rounds=bench.effort.short_rounds,
        warmups=bench.effort.warmups,
        settle_s=_SETTLE_S,
    )


def _timed(work: Work, calls: int, scale: float) -> Callable[[int], Awaitable[float]]:
    async def sample(_round: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - started) * scale

    return sample


def _median(samples: Samples) -> float:
    return statistics.median(samples.values)


def _made(makers: Path, kind: str) -> Checked:
    return kinds(load_makers(makers))[kind]()


def _device() -> SoftwareKey:
    return SoftwareKey.generate(NOW + 3600)


def _wire(bundle: EvidenceBundle) -> bytes:
    return bundle_to_proto(bundle).SerializeToString()
