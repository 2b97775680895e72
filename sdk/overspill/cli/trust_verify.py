"""`overspill trust verify`: raw evidence from anywhere, its steps and its verdict."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from overspill import __version__
from overspill.cli.common import Json, print_json
from overspill.cli.steps_table import print_steps
from overspill.errors import EvidenceRejected, UsageError
from overspill.trust.ear import ear
from overspill.trust.materials import MAX_FILE_BYTES
from overspill.trust.policy import TrustPolicy, load_policy
from overspill.trust.raw import KINDS, RawAppraisal, RawContext, appraise_raw
from overspill.trust.second_opinion import tdx_opinion
from overspill.types.evidence import Assurance

_MAX_NONCE_BYTES = 64


def register(group: typer.Typer) -> None:
    """Add the verb of this file to the group `trust`."""
    group.command("verify")(verify)


def verify(
    kind: Annotated[str, typer.Argument(help="snp, tdx, tpm or nvidia.")],
    files: Annotated[
        list[Path], typer.Argument(help="Evidence and certificates; roles are seen by content.")
    ],
    collateral: Annotated[
        list[Path] | None, typer.Option(help="More of them; may be repeated.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Trust policy (TOML).")] = None,
    nonce: Annotated[str | None, typer.Option(help="What the evidence has to answer, hex.")] = None,
    at: Annotated[
        str | None, typer.Option(help="When it has to be good, RFC 3339; now if not given.")
    ] = None,
    second_opinion: Annotated[
        bool, typer.Option(help="tdx only: ask dcap-qvl too, and refuse what it refuses.")
    ] = False,
    as_ear: Annotated[
        bool, typer.Option("--ear", help="Print an EAT Attestation Result instead (unsigned).")
    ] = False,
    as_json: Json = False,
) -> int:
    """Verify raw evidence offline and say how each step went. Exit 0 or 6.

    Without a policy the signatures and chains are checked, and the verdict is authentic or
    rejected.
    """
    if kind not in KINDS:
        raise UsageError(f"'{kind}' is no kind of evidence.", mend=f"Use {', '.join(KINDS)}.")
    loaded = load_policy(policy) if policy else None
    contents = [_read(file) for file in [*files, *(collateral or ())]]
    context = RawContext(_moment(at), _nonce(nonce))
    if second_opinion and kind != "tdx":
        raise UsageError("--second-opinion is for tdx.", mend="Leave it out.")
    appraisal = appraise_raw(kind, contents, context, loaded)
    if second_opinion:
        appraisal = _with_opinion(appraisal, contents, context.now_unix)
    if as_ear:
        print_json(as_attestation_result(appraisal, context.now_unix, loaded))
    elif as_json:
        print_json(as_document(appraisal))
    else:
        _print(appraisal)
    return appraisal.rejection.exit_code if appraisal.rejection else 0


def _with_opinion(appraisal: RawAppraisal, files: list[bytes], now_unix: int) -> RawAppraisal:
    """What both verifiers say: the second can refuse, never mend a refusal."""
    if appraisal.rejection:
        return appraisal
    try:
        opinion = tdx_opinion(files, now_unix)
    except EvidenceRejected as rejection:
        return replace(
            appraisal,
            verdict="rejected",
            assurance=Assurance.NONE,
            claims={},
            rejection=rejection,
        )
    claims = {**appraisal.claims, "second_opinion": f"dcap-qvl: {opinion}"}
    return replace(appraisal, claims=claims)


def as_document(appraisal: RawAppraisal) -> dict[str, object]:
    """The JSON document that scripts rely on."""
    rejection = appraisal.rejection
    return {
        "verdict": appraisal.verdict,
        "code": rejection.reason if rejection else None,
        "step": rejection.step if rejection else None,
        "expected": rejection.expected if rejection else None,
        "actual": rejection.actual if rejection else None,
        "mend": rejection.mend if rejection else None,
        "steps": appraisal.steps,
        "claims": dict(appraisal.claims),
        "assurance": appraisal.assurance.name,
    }


def as_attestation_result(
    appraisal: RawAppraisal, now_unix: int, policy: TrustPolicy | None
) -> dict[str, object]:
    """The appraisal in the shape of an EAR."""
    return ear(
        appraisal.kind,
        verdict=appraisal.verdict,
        assurance=appraisal.assurance,
        claims=appraisal.claims,
        steps=appraisal.steps,
        rejection=appraisal.rejection,
        policy=f"sha256:{policy.sha256.hex()}" if policy else None,
        now_unix=now_unix,
        version=__version__,
    )


def _print(appraisal: RawAppraisal) -> None:
    print_steps(appraisal.steps)
    for name, value in appraisal.claims.items():
        print(f"{name}: {value}")
    if appraisal.rejection:
        print(f"rejected: {appraisal.rejection}")
    else:
        print(f"{appraisal.verdict}; assurance {appraisal.assurance.name}")


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror}.", mend="Check the path."
        ) from error


def _moment(text: str | None) -> int:
    if text is None:
        return int(time.time())
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            raise ValueError("no time zone")
        return int(when.timestamp())
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--at: '{text}' is no time of RFC 3339.", mend="Write it as 2026-01-31T12:00:00Z."
        ) from error


def _nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if not 0 < len(value) <= _MAX_NONCE_BYTES:
        raise UsageError(f"--nonce: '{text}' is not 1 to {_MAX_NONCE_BYTES} bytes in hex.")
    return value
