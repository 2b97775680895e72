"""One release from its manifest to the proof beside it: append, cosign, prove."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from overspill.errors import UsageError
from overspill.releasing.cosigning import Cosigning, WitnessEndpoint, cosign_checkpoint
from overspill.releasing.files import read_file, write_atomically
from overspill.releasing.log_folder import LogFolder
from overspill.trust.log.note import SignerKey
from overspill.trust.release_envelope import Envelope

PROOF_SUFFIX: Final = ".tlog-proof"


def proof_path(release: Path) -> Path:
    """Where a release's proof lies."""
    return release.with_name(release.name + PROOF_SUFFIX)


def append_release(
    release: Path, log: LogFolder, signer: SignerKey, witnesses: Sequence[WitnessEndpoint]
) -> Cosigning:
    """Logs a signed release, unless it is in the log already, and writes its proof.

    Raises ``EvidenceRejected`` for a file that is no envelope, ``LogInvalid`` for a damaged log.
    """
    envelope = read_file(release, "The release")
    Envelope.parse(envelope)
    if log.find(envelope) is None:
        log.append((envelope,), signer)
    return refresh_release(release, log, witnesses)


def refresh_release(
    release: Path, log: LogFolder, witnesses: Sequence[WitnessEndpoint]
) -> Cosigning:
    """Asks the witnesses anew and writes the proof under the log's current checkpoint.

    To be run every few minutes: clients want a cosignature that is at most 15 minutes older than
    the node's keys. Raises ``UsageError`` for a release that is not in the log.
    """
    index = log.find(read_file(release, "The release"))
    if index is None:
        raise UsageError(f"{release} is not in the log.", mend="Append it first.")
    cosigning = cosign_checkpoint(log, witnesses)
    write_atomically(proof_path(release), log.prove(index).encode())
    return cosigning
