"""The release that a node runs: read from its files, and refused where the node runs another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overspill.errors import ConfigurationError, EvidenceRejected, LogInvalid
from overspill.trust import reference
from overspill.trust.log.note import Note
from overspill.trust.log.proof import TlogProof
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NO_DIGEST
from overspill.trust.release_envelope import Envelope
from overspill.trust.release_manifest import ReleaseManifest
from overspill_cloud.measure import NodeMeasurements

PROOF_SUFFIX: Final = ".tlog-proof"


@dataclass(frozen=True, slots=True)
class NodeRelease:
    """What goes into a bundle: the DSSE envelope, its tlog-proof, and the proof's checkpoint."""

    envelope: bytes = b""
    proof: bytes = b""
    anchor: bytes = b""
    release_id: bytes = NO_DIGEST

    @property
    def anchor_sha256(self) -> bytes:
        """What the node key configuration says of the checkpoint."""
        return hashlib.sha256(self.anchor).digest() if self.anchor else NO_DIGEST


UNRELEASED: Final = NodeRelease()


class ReleaseFile:
    """A release in ``path``, and its proof in the file of that name with ``.tlog-proof`` behind.

    The proof is renewed in place while the node runs; each new node key configuration takes the
    one that is there. Raises ``ConfigurationError`` when either cannot be read, or this node runs
    something that the release does not list: clients would refuse it anyway.
    """

    def __init__(self, path: Path, measured: NodeMeasurements) -> None:
        self._path = path
        self._log = MeasuredLog.decode(measured.log)
        self._version = self._manifest(self._read(path)).version
        self.read()

    @property
    def version(self) -> str:
        """The release's own name for itself."""
        return self._version

    def read(self) -> NodeRelease:
        """The release as it is on disk now."""
        envelope = self._read(self._path)
        proof_path = self._path.with_name(self._path.name + PROOF_SUFFIX)
        proof = self._read(proof_path)
        try:
            anchor = TlogProof.parse(proof).checkpoint
            Note.parse(anchor)
        except LogInvalid as error:
            raise _unusable(proof_path, error.message) from error
        manifest = self._manifest(envelope)
        try:
            reference.check(self._log, manifest.reference(), None, source="the release")
        except EvidenceRejected as error:
            raise ConfigurationError(
                f"This node is not what {self._path} releases ({error.reason}): expected "
                f"{error.expected}, found {error.actual}.",
                mend="Serve what was released, or release what is served.",
            ) from error
        return NodeRelease(envelope, proof, anchor, Envelope.parse(envelope).release_id)

    def _manifest(self, envelope: bytes) -> ReleaseManifest:
        try:
            return ReleaseManifest.parse(Envelope.parse(envelope).payload)
        except EvidenceRejected as error:
            raise _unusable(self._path, error.message) from error

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise _unusable(path, f"{error.strerror}.") from error


def _unusable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The release file {path} cannot be used: {why}",
        mend="Give --release FILE, with FILE.tlog-proof beside it.",
    )
