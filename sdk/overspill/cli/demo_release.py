"""The demo's release: what its node runs, signed, logged and witnessed, all on this machine.

Three witnesses under three names stand for three operators; here all of them are ourselves, as the
release keys are. What is real is the path: the node is accepted because of it, and only so.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from overspill._version import __version__
from overspill.errors import OverspillError
from overspill.releasing.build import measured_subjects
from overspill.releasing.cosigning import WitnessEndpoint, witness_endpoint
from overspill.releasing.files import make_note_key, make_release_key, write_atomically
from overspill.releasing.log_folder import LogFolder
from overspill.releasing.publish import append_release
from overspill.releasing.witness_http import serving_witness
from overspill.releasing.witness_store import WitnessStore
from overspill.trust.log.cosignature import LogPolicy, Witness
from overspill.trust.log.note import ED25519, VerifierKey
from overspill.trust.release_envelope import Envelope
from overspill.trust.release_manifest import ReleaseManifest
from overspill.trust.release_policy import ReleasePolicy
from overspill.trust.template import ReleaseDemand

_ORIGIN = "demo.invalid/releases"
_OPERATORS = ("first", "second", "third")
_SIGNERS = 2
_QUORUM = 2
_VALID_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class DemoRelease:
    """The signed release's file, its proof beside it, and what a policy has to say of it."""

    file: Path
    demand: ReleaseDemand


def release_demo(folder: Path, model_name: str, model: Path, attester: str) -> DemoRelease:
    """Builds, signs, logs and witnesses the release of a node with this model, in ``folder``.

    Raises ``MissingExtra``, ``ModelNotFound`` or what the witnesses refuse.
    """
    subjects = measured_subjects({model_name: model}, attester)
    manifest = ReleaseManifest(
        version=__version__,
        release_seq=1,
        security_floor_seq=1,
        not_after=int(time.time()) + _VALID_S,
        subjects=subjects,
    )
    envelope = Envelope(manifest.encode(), ())
    keys = [make_release_key(folder / f"release-{number}.pem") for number in range(_SIGNERS)]
    for key in keys:
        envelope = envelope.signed(key.public_key().public_bytes_raw(), key.sign)
    file = folder / "release.json"
    write_atomically(file, envelope.encode())
    signer = make_note_key(folder / "log.key", _ORIGIN, ED25519)
    log = LogFolder(folder / "log", signer.verifier)
    with ExitStack() as stack:
        witnesses = [_witness(folder / name, signer.verifier, stack) for name in _OPERATORS]
        done = append_release(file, log, signer, witnesses)
    if done.failed:
        name, why = done.failed[0]
        raise OverspillError(f"The demo's witness {name} did not cosign: {why}")
    publics = frozenset(key.public_key().public_bytes_raw() for key in keys)
    named = zip(_OPERATORS, witnesses, strict=True)
    policy = LogPolicy(
        _ORIGIN,
        signer.verifier,
        tuple(Witness(name, witness.key) for name, witness in named),
        _QUORUM,
    )
    return DemoRelease(file, ReleaseDemand(ReleasePolicy(publics, _SIGNERS), policy))


def _witness(folder: Path, log: VerifierKey, stack: ExitStack) -> WitnessEndpoint:
    store = WitnessStore.create(folder, f"{folder.name}.witness.invalid")
    store.add_log(log)
    prefix = stack.enter_context(serving_witness(store, "127.0.0.1:0"))
    return witness_endpoint(f"{store.key.verifier}={prefix}")
