"""`overspill trust witness`: a small witness, over HTTP (tlog-witness) or on a log's folder."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from overspill.cli.common import Json, print_json
from overspill.errors import LogInvalid, UsageError
from overspill.releasing.cosigning import WitnessEndpoint, cosign_checkpoint
from overspill.releasing.log_folder import LogFolder
from overspill.releasing.witness_http import serving_witness
from overspill.releasing.witness_store import WitnessStore
from overspill.terminal import Verbs
from overspill.trust.log.note import COSIGNATURE_V1, ED25519, ML_DSA_44, VerifierKey

WitnessDir = Annotated[Path, typer.Argument(help="The witness's folder: its key and its memory.")]
LogKey = Annotated[str, typer.Argument(help="The log's public key (vkey).")]
Origin = Annotated[str | None, typer.Option(help="The log's origin, if not its key's name.")]


def register(trust: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(
        cls=Verbs, help="Cosign logs that only ever grow, as their witness.", no_args_is_help=True
    )
    group.command("init")(init)
    group.command("add-log")(add_log)
    group.command("serve")(serve)
    group.command("cosign")(cosign)
    trust.add_typer(group, name="witness")


def init(
    folder: WitnessDir,
    name: Annotated[str, typer.Option(help="The witness's name, e.g. example.com/witness.")],
    ml_dsa: Annotated[
        bool, typer.Option("--ml-dsa", help="An ML-DSA-44 key, safe from quantum computers.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a witness with a key of its own, and print what policies have to name."""
    kind = ML_DSA_44 if ml_dsa else COSIGNATURE_V1
    vkey = str(WitnessStore.create(folder, name, kind).key.verifier)
    if as_json:
        print_json({"vkey": vkey})
    else:
        print(vkey)


def add_log(folder: WitnessDir, vkey: LogKey, origin: Origin = None) -> None:
    """Cosign this log from now on."""
    key = _log_key(vkey)
    WitnessStore(folder).add_log(key, origin)
    print(f"Witnessing {origin or key.name}.")


def serve(
    folder: WitnessDir,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0: a free one.")] = "127.0.0.1:8450",
    as_json: Json = False,
) -> None:
    """Answer /add-checkpoint until SIGTERM or Ctrl-C; put a web server with TLS in front."""
    store = WitnessStore(folder)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with serving_witness(store, listen) as prefix:
        if as_json:
            print_json({"url": prefix, "vkey": str(store.key.verifier)})
        else:
            print(f"Witness {store.key.name} at {prefix}/add-checkpoint")
        while not stopped.wait(0.5):  # in steps: a signal is seen between them on every system
            pass


def cosign(
    folder: WitnessDir,
    log: Annotated[Path, typer.Argument(help="The log's folder, of which the checkpoint is.")],
    vkey: LogKey,
    origin: Origin = None,
) -> None:
    """Cosign the checkpoint in a log's folder on this machine, if it extends the last one."""
    store = WitnessStore(folder)
    endpoint = WitnessEndpoint(store.key.verifier, store.add_checkpoint)
    done = cosign_checkpoint(LogFolder(log, _log_key(vkey), origin), [endpoint])
    for name, why in done.failed:
        raise LogInvalid(
            "witness_refused", expected=f"a checkpoint that {name} can cosign", actual=why
        )
    print(f"Cosigned the checkpoint in {log} as {store.key.name}.")


def _log_key(text: str) -> VerifierKey:
    try:
        key = VerifierKey.parse(text)
    except LogInvalid as error:
        raise UsageError(f"'{text}' is no log's key: {error.actual}.", mend="Give it.") from error
    if key.kind != ED25519:
        raise UsageError(f"{key.name} is no log's key.", mend="Give one of type 0x01.")
    return key
