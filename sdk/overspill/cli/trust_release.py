"""`overspill trust release`: build, sign, log and check releases of what nodes run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from overspill._version import __version__
from overspill.cli.common import Json, print_json
from overspill.config import load_settings
from overspill.errors import ConfigurationError, EvidenceRejected, LogInvalid, UsageError
from overspill.releasing.build import (
    adapter_subject,
    engine_subject,
    measured_subjects,
    replaced,
    wheel_subject,
)
from overspill.releasing.cosigning import Cosigning, witness_endpoint
from overspill.releasing.files import (
    load_note_key,
    load_release_key,
    make_note_key,
    make_release_key,
    read_file,
    write_atomically,
)
from overspill.releasing.log_folder import LogFolder
from overspill.releasing.publish import append_release, proof_path, refresh_release
from overspill.releasing.sigstore_bundle import SigstoreSigner, verify_sigstore
from overspill.releasing.tuf_source import fetch_by_tuf
from overspill.terminal import Verbs
from overspill.trust.log.note import ED25519, VerifierKey
from overspill.trust.policy import load_policy
from overspill.trust.release import open_release, prove
from overspill.trust.release_envelope import Envelope
from overspill.trust.release_manifest import ReleaseManifest, Subject

ReleaseFile = Annotated[Path, typer.Argument(help="The release (DSSE); its proof lies beside it.")]
LogDir = Annotated[Path, typer.Option("--log", help="Folder of the log, to be served statically.")]
Witnesses = Annotated[
    list[str] | None,
    typer.Option("--witness", help="VKEY=URL, or a witness's folder; may be repeated."),
]
Named = Annotated[list[str], typer.Option("--model", help="NAME=FILE; may be repeated.")]


def register(trust: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(
        cls=Verbs,
        help="Build, sign, log and verify releases of what nodes run.",
        no_args_is_help=True,
    )
    for verb in (key, build, sign, append, refresh, verify):
        group.command(verb.__name__)(verb)
    trust.add_typer(group, name="release")
    trust.command("fetch")(fetch)


def key(
    file: Annotated[Path, typer.Argument(help="The new private key (mode 0600).")],
    log: Annotated[
        str | None, typer.Option(help="For a log of this origin, e.g. example.com/releases.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key that signs releases, or with --log the key of a log; print its public half."""
    if log is None:
        public = make_release_key(file).public_key().public_bytes_raw().hex()
    else:
        public = str(make_note_key(file, log, ED25519).verifier)
    if as_json:
        print_json({"file": str(file), "public": public})
    else:
        print(public)


def build(
    out: Annotated[Path, typer.Argument(help="The release to be signed (DSSE, unsigned).")],
    model: Named,
    seq: Annotated[int, typer.Option(min=1, help="Sequence: one more than the last release's.")],
    floor: Annotated[int, typer.Option(min=0, help="Oldest sequence that is still safe.")] = 0,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Valid for so long.")] = 90,
    adapter: Annotated[list[str] | None, typer.Option(help="MODEL/NAME=FILE.")] = None,
    wheel: Annotated[Path | None, typer.Option(help="Built wheel; else what is here.")] = None,
    engine: Annotated[
        Path | None, typer.Option(help="Built engine: its wheel or package folder; else the same.")
    ] = None,
    attester: Annotated[str, typer.Option(help="As the node will be started.")] = "dev",
    measurement: Annotated[
        list[str] | None, typer.Option(help="TYPE/CLAIM=HEX that hardware may report.")
    ] = None,
    version: Annotated[str, typer.Option(help="The release's name.")] = __version__,
    as_json: Json = False,
) -> None:
    """List what a node runs, with its digests, as an in-toto statement."""
    models = {name: Path(file) for name, file in map(_pair, model)}
    built: list[Subject] = [adapter_subject(n, Path(f)) for n, f in map(_pair, adapter or ())]
    built += [wheel_subject(wheel)] if wheel else []
    built += [engine_subject(engine)] if engine else []
    manifest = ReleaseManifest(
        version=version,
        release_seq=seq,
        security_floor_seq=floor,
        not_after=int(time.time()) + days * 86_400,
        subjects=replaced(measured_subjects(models, attester), built),
        measurements=_measurements(measurement or ()),
    )
    try:
        ReleaseManifest.parse(manifest.encode())
    except EvidenceRejected as error:
        raise UsageError(f"This is no release: {error.actual}.", mend="Correct it.") from error
    envelope = Envelope(manifest.encode(), ())
    write_atomically(out, envelope.encode())
    if as_json:
        print_json({"file": str(out), "release_id": envelope.release_id, "manifest": manifest})
        return
    for subject in manifest.subjects:
        print(f"{subject.measured.hex()}  {subject.role}/{subject.name}")
    print(f"Wrote {out}: to be signed by a threshold of the release keys.")


def sign(
    release: ReleaseFile,
    private_key: Annotated[list[Path], typer.Option("--key", help="Release key (PEM).")],
) -> None:
    """Sign a release with one key or more, beside those that have signed it already."""
    envelope = _envelope(release)
    for path in private_key:
        signer = load_release_key(path)
        envelope = envelope.signed(signer.public_key().public_bytes_raw(), signer.sign)
    write_atomically(release, envelope.encode())
    count = len(envelope.signatures)
    print(f"{release} has {count} signature{'s' if count != 1 else ''}.")


def append(
    release: ReleaseFile,
    log: LogDir,
    log_key: Annotated[Path, typer.Option(help="The log's private key.")],
    witness: Witnesses = None,
    origin: Annotated[str | None, typer.Option(help="The log's origin, if not its key's.")] = None,
    as_json: Json = False,
) -> int:
    """Add a signed release to the log, have it witnessed, and write the proof beside it.

    Exit 6 when a witness did not cosign; the proof is there, and `refresh` asks again.
    """
    _envelope(release)
    signer = load_note_key(log_key)
    folder = LogFolder(log, signer.verifier, origin)
    endpoints = [witness_endpoint(text) for text in witness or ()]
    return _report(append_release(release, folder, signer, endpoints), release, as_json)


def refresh(
    release: ReleaseFile,
    log: LogDir,
    log_vkey: Annotated[str, typer.Option(help="The log's public key (vkey).")],
    witness: Witnesses = None,
    origin: Annotated[str | None, typer.Option(help="The log's origin, if not its key's.")] = None,
    as_json: Json = False,
) -> int:
    """Have the log's state witnessed anew: to be run every few minutes beside a node."""
    try:
        folder = LogFolder(log, VerifierKey.parse(log_vkey), origin)
    except LogInvalid as error:
        raise UsageError(f"--log-vkey: {error.actual}.", mend="Give the log's vkey.") from error
    endpoints = [witness_endpoint(text) for text in witness or ()]
    return _report(refresh_release(release, folder, endpoints), release, as_json)


def verify(
    release: ReleaseFile,
    policy: Annotated[Path, typer.Option(help="Trust policy with [release] and [log].")],
    at: Annotated[str | None, typer.Option(help="As of this time (RFC 3339); else now.")] = None,
    sigstore: Annotated[
        Path | None, typer.Option(help="A Sigstore bundle that has to sign this release too.")
    ] = None,
    identity: Annotated[str, typer.Option(help="Whose certificate, exactly.")] = "",
    issuer: Annotated[str, typer.Option(help="Who vouched for that identity.")] = "",
    trusted_root: Annotated[
        Path | None, typer.Option(help="Sigstore's trusted root; see: overspill trust fetch")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a release and its proof offline, as a client does. Exit 0 or 6."""
    demands = load_policy(policy)
    if demands.release is None or demands.log is None:
        raise ConfigurationError(
            f"{policy} demands no release.", mend="Add the sections [release] and [log]."
        )
    now = _time(at)
    data = read_file(release, "The release")
    envelope = Envelope.parse(data)
    manifest = open_release(envelope, demands.release, now, None)
    proven = prove(data, read_file(proof_path(release), "The proof"), demands.log, now)
    if sigstore is not None:
        _check_sigstore(envelope, sigstore, SigstoreSigner(identity, issuer), trusted_root)
    if as_json:
        facts = {"release_id": envelope.release_id, "manifest": manifest, "log": str(proven)}
        print_json({"verified": True, **facts})
        return
    print(f"release    {manifest.version}, sequence {manifest.release_seq}")
    print(f"id         {envelope.release_id.hex()}")
    print(f"log        {proven}")
    print(f"valid      until {datetime.fromtimestamp(manifest.not_after, UTC):%Y-%m-%d %H:%M} UTC")


def fetch(
    name: Annotated[str, typer.Argument(help="The file, as the repository names it.")],
    tuf: Annotated[str, typer.Option(help="URL of the TUF repository.")],
    root: Annotated[Path, typer.Option(help="Its root of trust (root.json).")],
    out: Annotated[Path | None, typer.Option(help="Where to; else its own name here.")] = None,
) -> None:
    """Fetch a Sigstore trusted root or a policy through TUF, never an older one than before."""
    cache = load_settings().places.state / "tuf" / hashlib.sha256(tuf.encode()).hexdigest()[:16]
    target = out or Path(Path(name).name)
    write_atomically(target, fetch_by_tuf(name, tuf, root, cache))
    print(f"Wrote {target}.")


def _check_sigstore(
    envelope: Envelope, bundle: Path, signer: SigstoreSigner, trusted_root: Path | None
) -> None:
    if trusted_root is None or not signer.identity or not signer.issuer:
        raise UsageError(
            "--sigstore alone names nobody.", mend="Add --identity, --issuer and --trusted-root."
        )
    data = read_file(bundle, "The Sigstore bundle")
    verify_sigstore(data, envelope.payload, signer, trusted_root)


def _report(done: Cosigning, release: Path, as_json: bool) -> int:
    if as_json:
        print_json({"proof": str(proof_path(release)), **vars_of(done)})
    else:
        print(f"Wrote {proof_path(release)}; cosigned by {', '.join(done.cosigned) or 'nobody'}.")
        for name, why in done.failed:
            print(f"{name} did not cosign: {why}")
    return LogInvalid.exit_code if done.failed else 0


def vars_of(done: Cosigning) -> dict[str, object]:
    """What came of asking the witnesses, for JSON."""
    return {"cosigned": done.cosigned, "failed": dict(done.failed)}


def _envelope(release: Path) -> Envelope:
    return Envelope.parse(read_file(release, "The release"))


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise UsageError(f"'{text}' is no NAME=VALUE.", mend="Give NAME=VALUE.")
    return name, value


def _measurements(texts: Sequence[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, value in map(_pair, texts):
        kind, _, claim = name.partition("/")
        claims = found.setdefault(kind, {})
        claims[claim] = (*claims.get(claim, ()), value.lower())
    return found


def _time(text: str | None) -> int:
    if text is None:
        return int(time.time())
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is no time.", mend="Give 2026-01-31T12:00:00Z") from error
    return int(when.replace(tzinfo=when.tzinfo or UTC).timestamp())
