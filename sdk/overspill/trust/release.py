"""Step 7: the node runs a release that its makers signed, and that is in a log for all to see.

In order: (1) the envelope is the one that the keys name; (2) enough release keys signed it;
(3) it is current and not under a floor; (4) it is in the log, whose state enough witnesses saw;
(5) that log only grew since this client last looked; (6) what was measured is what it lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from overspill.errors import EvidenceRejected, LogInvalid, SplitView
from overspill.trust import reference
from overspill.trust.log.cosignature import CosignedCheckpoint, LogPolicy, open_cosigned
from overspill.trust.log.encoding import MAX_SIZE
from overspill.trust.log.merkle import leaf_hash, verify_inclusion
from overspill.trust.log.proof import TlogProof
from overspill.trust.log.tiles import Edge
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NO_DIGEST, NodeKeyConfig
from overspill.trust.policy import TrustPolicy
from overspill.trust.release_envelope import STEP, Envelope, refused
from overspill.trust.release_manifest import ReleaseManifest
from overspill.trust.release_policy import ReleasePolicy
from overspill.types.evidence import Assurance, EvidenceBundle
from overspill.types.transparency import LogMemory


@dataclass(frozen=True, slots=True)
class Released:
    """A release that was proven, or ``manifest`` None where the policy asks for none.

    ``remember`` is what the client has to keep once everything else has verified too.
    """

    detail: str
    manifest: ReleaseManifest | None = None
    remember: LogMemory | None = None

    @property
    def not_after(self) -> int:
        """Unix seconds until which it may be used; as good as never without a release."""
        return MAX_SIZE if self.manifest is None else self.manifest.not_after

    @property
    def claims(self) -> dict[str, str]:
        """What was released, for display."""
        if self.manifest is None:
            return {}
        return {"release": self.manifest.version, "release_seq": str(self.manifest.release_seq)}


def check(
    config: NodeKeyConfig,
    bundle: EvidenceBundle,
    log: MeasuredLog,
    policy: TrustPolicy,
    now_unix: int,
    memory: LogMemory | None,
) -> Released:
    """Raises ``EvidenceRejected`` for a node that runs what was not released, or not any more."""
    # (1)
    envelope = _the_envelope(config, bundle)
    if policy.release is None or policy.log is None:
        return Released("no release demanded: reference values come from the policy")
    if envelope is None:
        raise refused("release_missing", f"a release under {policy.source}", "none")
    # (2), (3)
    manifest = open_release(envelope, policy.release, now_unix, memory)
    # (4), (5)
    anchor = bundle.freshness_anchor
    proven = prove(bundle.release, bundle.release_proof, policy.log, now_unix, anchor=anchor)
    remember = grown(memory or LogMemory(policy.log.origin), proven)
    # (6)
    reference.check(log, manifest.reference(), None, source="the release", step=STEP)
    detail = f"release {manifest.version} (sequence {manifest.release_seq}), {proven}"
    return Released(detail, manifest, _with_release(remember, manifest))


def check_measurements(
    released: Released, evidence_type: str, assurance: Assurance, claims: Mapping[str, str]
) -> None:
    """What the hardware reports is among the values that the release expects of this type.

    A TEE's report has no register for program and engine library: its launch measurement stands
    for them, so a release that does not list it says nothing about such a node. Raises
    ``EvidenceRejected("measurement_not_released")``.
    """
    if released.manifest is None:
        return
    expected = released.manifest.measurements.get(evidence_type, {})
    if not expected and assurance >= Assurance.HARDWARE_TEE:
        raise refused(
            "measurement_not_released",
            f"a release that lists the measurements of {evidence_type}",
            "one that lists none",
        )
    for claim, values in expected.items():
        if claims.get(claim) not in values:
            raise refused(
                "measurement_not_released",
                f"{claim} among {len(values)} of the release",
                claims.get(claim, f"evidence without {claim}"),
            )


def open_release(
    envelope: Envelope, policy: ReleasePolicy, now_unix: int, memory: LogMemory | None
) -> ReleaseManifest:
    """The manifest, signed by enough keys, current, and not older than one already accepted.

    Reasons: ``release_signature``, ``release_threshold``, ``release_malformed``,
    ``statement_type``, ``release_expired``, ``release_under_floor``, ``release_rollback``.
    """
    envelope.check(policy.keys, policy.threshold)
    manifest = ReleaseManifest.parse(envelope.payload)
    if now_unix >= manifest.not_after:
        raise refused(
            "release_expired", f"a release valid at {now_unix}", f"expired {manifest.not_after}"
        )
    known = memory or LogMemory("")
    floor = max(policy.floor_seq, known.security_floor_seq)
    if manifest.release_seq < floor:
        raise _too_old("release_under_floor", floor, manifest)
    if manifest.release_seq < known.release_seq:
        raise _too_old("release_rollback", known.release_seq, manifest)
    return manifest


@dataclass(frozen=True, slots=True)
class Proven:
    """A log's state in which an entry was proven to be; ``edge`` lets a smaller one be compared."""

    checkpoint: CosignedCheckpoint
    edge: Edge | None

    def __str__(self) -> str:
        names = ", ".join(operator for operator, _ in self.checkpoint.times)
        size = self.checkpoint.signed.size
        return f"in the log of {size}, " + (
            f"cosigned by {names}" if names else "without witnesses"
        )


def prove(
    entry: bytes, proof_data: bytes, policy: LogPolicy, now_unix: int, *, anchor: bytes = b""
) -> Proven:
    """That ``entry`` is in the policy's log, as its quorum of witnesses saw it.

    ``anchor`` is another cosigned checkpoint that has to agree. Raises ``EvidenceRejected`` with
    the log's reason, or ``SplitView``.
    """
    with as_evidence(STEP):
        proof = TlogProof.parse(proof_data)
        checkpoint = open_cosigned(proof.checkpoint, policy, now_unix)
        signed = checkpoint.signed
        verify_inclusion(leaf_hash(entry), proof.index, signed.size, proof.path, signed.root)
        edge = _edge(proof.extra, checkpoint)
        proven = Proven(checkpoint, edge)
        if anchor and anchor != proof.checkpoint:
            grown(_memory(proven), Proven(open_cosigned(anchor, policy, now_unix), None))
    return proven


def grown(memory: LogMemory, shown: Proven) -> LogMemory:
    """What to remember of the log now: the larger tree, which has to extend the smaller.

    Raises ``SplitView`` for another history, ``EvidenceRejected("consistency_missing")`` where
    the tiles at hand do not reach back far enough to tell.
    """
    if memory.split is not None:
        raise SplitView(
            STEP,
            origin=memory.origin,
            remembered=memory.split.remembered,
            shown=memory.split.shown,
        )
    signed = shown.checkpoint.signed
    if memory.size == 0:
        return _remembering(memory, shown)
    if signed.size > memory.size:
        smaller, found, kept = memory.size, memory.root, shown.edge
    else:
        smaller, found = signed.size, signed.root
        kept = _decoded(memory.edge)
    if signed.size == memory.size:
        root: bytes | None = memory.root
    else:
        root = kept.root_at(smaller) if kept is not None else None
    if root is None:
        raise refused(
            "consistency_missing",
            f"the log's growth between {memory.size} and {signed.size} entries shown",
            "tiles that do not reach back so far",
            "The node's operator renews the proof: overspill trust release refresh",
        )
    if root != found:
        raise SplitView(
            STEP,
            origin=memory.origin,
            remembered=memory.checkpoint,
            shown=shown.checkpoint.data,
        )
    return _remembering(memory, shown) if signed.size > memory.size else memory


@contextmanager
def as_evidence(step: str) -> Iterator[None]:
    """Refusals by a log, as refusals of the numbered step in which it was looked at."""
    try:
        yield
    except LogInvalid as error:
        raise EvidenceRejected(
            error.reason, step, expected=error.expected, actual=error.actual, mend=error.mend
        ) from error


def _the_envelope(config: NodeKeyConfig, bundle: EvidenceBundle) -> Envelope | None:
    """The envelope that the keys name; None where they name none, and none travels along."""
    if config.release_id == NO_DIGEST:
        if bundle.release or bundle.release_proof:
            raise refused("release_unbound", "no release, as the keys name none", "one")
        return None
    envelope = Envelope.parse(bundle.release)
    if envelope.release_id != config.release_id:
        raise refused("release_id_mismatch", config.release_id.hex(), envelope.release_id.hex())
    return envelope


def _edge(extra: bytes | None, checkpoint: CosignedCheckpoint) -> Edge | None:
    if extra is None:
        return None
    edge = Edge.decode(extra)
    if edge.size != checkpoint.signed.size:
        raise LogInvalid(
            "log_root",
            expected=f"the edge of {checkpoint.signed.size} entries",
            actual=str(edge.size),
        )
    edge.check(checkpoint.signed.root)
    return edge


def _memory(proven: Proven) -> LogMemory:
    return _remembering(LogMemory(proven.checkpoint.signed.checkpoint.origin), proven)


def _remembering(memory: LogMemory, shown: Proven) -> LogMemory:
    signed = shown.checkpoint.signed
    return replace(
        memory,
        size=signed.size,
        root=signed.root,
        checkpoint=shown.checkpoint.data,
        edge=shown.edge.encode() if shown.edge else b"",
    )


def _with_release(memory: LogMemory, manifest: ReleaseManifest) -> LogMemory:
    return replace(
        memory,
        release_seq=max(memory.release_seq, manifest.release_seq),
        security_floor_seq=max(memory.security_floor_seq, manifest.security_floor_seq),
    )


def _decoded(edge: bytes) -> Edge | None:
    return Edge.decode(edge) if edge else None


def _too_old(reason: str, least: int, manifest: ReleaseManifest) -> EvidenceRejected:
    return refused(
        reason,
        f"a release of sequence {least} or later",
        f"{manifest.release_seq} ({manifest.version})",
        "Do not use this node before its operator has updated it.",
    )
