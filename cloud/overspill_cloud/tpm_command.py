"""`overspill-cloud tpm`: have a TPM's attestation key activated, in four steps of two machines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overspill.config import default_places
from overspill.errors import UsageError

if TYPE_CHECKING:
    from overspill_cloud.attester.tpm_device import Tpm

app = typer.Typer(
    no_args_is_help=True,
    help="Activate the key with which a hardware TPM attests: request and answer on the node, "
    "challenge and sign where the activation key is.",
)

StateOption = Annotated[Path | None, typer.Option("--state", help="The node's state folder.")]
TctiOption = Annotated[str, typer.Option(help="The way to the TPM, e.g. device:/dev/tpmrm0.")]
KeyOption = Annotated[
    Path, typer.Option("--key", help="Activation key (Ed25519, PEM); `challenge` makes it.")
]
FileArgument = Annotated[str, typer.Argument(help="The message of the step before; - is stdin.")]


@app.command()
def request(state: StateOption = None, tcti: TctiOption = "") -> None:
    """Step 1, on the node: the TPM's endorsement key, its certificate, the attestation key."""
    from overspill_cloud.attester import tpm_activation

    folder = _folder(state)
    tpm = _tpm(tcti)
    try:
        _print(tpm_activation.request(tpm, folder))
    finally:
        tpm.close()


@app.command()
def challenge(
    file: FileArgument,
    key: KeyOption,
    root: Annotated[
        list[Path], typer.Option(help="PEM of the TPM makers' roots; may be repeated.")
    ],
) -> None:
    """Step 2, where the activation key is: check the certificate, make a credential."""
    from overspill.trust.certificates import read_pem
    from overspill_cloud.attester import tpm_activation
    from overspill_cloud.attester.keyfile import load_or_create_key

    roots = [one.der for path in root for one in read_pem(_bytes(path))[0]]
    private = load_or_create_key(key)
    message = tpm_activation.challenge(_message(file), private, roots, int(time.time()))
    _print(message)
    typer.echo(
        f"activation_keys = [{json.dumps(tpm_activation.activation_key(private))}]", err=True
    )


@app.command()
def answer(file: FileArgument, state: StateOption = None, tcti: TctiOption = "") -> None:
    """Step 3, on the node: only the TPM with both keys can open the credential."""
    from overspill_cloud.attester import tpm_activation

    tpm = _tpm(tcti)
    try:
        _print(tpm_activation.answer(tpm, _folder(state), _message(file)))
    finally:
        tpm.close()


@app.command()
def sign(
    file: FileArgument,
    key: KeyOption,
    out: Annotated[
        Path, typer.Option(help="To be put into the node's state folder: tpm/activation")
    ],
) -> None:
    """Step 4, where the activation key is: say that the key lives in that TPM."""
    from overspill_cloud.attester import tpm_activation
    from overspill_cloud.attester.keyfile import load_key

    out.write_bytes(tpm_activation.sign(_message(file), load_key(key)))
    typer.echo(f"Written: {out}", err=True)


def _tpm(tcti: str) -> Tpm:
    from overspill_cloud.attester.hardware_tpm import DEFAULT_TCTI
    from overspill_cloud.attester.tpm_device import Tpm, open_tcti

    return Tpm(open_tcti(tcti or DEFAULT_TCTI))


def _folder(state: Path | None) -> Path:
    from overspill_cloud.attester.hardware_tpm import FOLDER

    return (state or default_places().state / "cloud") / FOLDER


def _message(file: str) -> dict[str, Any]:
    text = sys.stdin.read() if file == "-" else _bytes(Path(file)).decode("utf-8", "replace")
    try:
        message = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{file} holds no JSON.", mend="Give the step before's output.") from error
    if not isinstance(message, dict):
        raise UsageError(f"{file} holds no message.", mend="Give the step before's output.")
    return message


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", mend="Check it.") from error


def _print(message: Any) -> None:
    typer.echo(json.dumps(dict(message)))
