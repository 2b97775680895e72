"""`overspill-cloud`: serve a node, give out enrolment codes, list and revoke devices."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overspill.errors import MissingExtra, UsageError
from overspill.terminal import Verbs, run_app
from overspill_cloud import tpm_command
from overspill_cloud.cli_db import db
from overspill_cloud.cli_options import (
    DatabaseOption,
    JsonOption,
    StateOption,
    iso,
    report,
    state_folder,
)
from overspill_cloud.fleet.commands import fleet
from overspill_cloud.ops.commands import doctor, plan

if TYPE_CHECKING:
    from overspill_cloud.app import NodeOptions
    from overspill_cloud.store import Store

app = typer.Typer(
    cls=Verbs,
    name="overspill-cloud",
    help="Host models that prove what they run on, for enrolled devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
devices = typer.Typer(
    cls=Verbs, no_args_is_help=True, help="List the enrolled devices, and revoke one."
)
app.add_typer(devices, name="devices")
app.add_typer(fleet, name="fleet")
app.command()(plan)
app.command()(doctor)
app.add_typer(tpm_command.app, name="tpm")
app.add_typer(db, name="db")


@app.callback()
def _needs_the_extra() -> None:
    if find_spec("sqlalchemy") is None:
        raise MissingExtra("The cloud service", "cloud")


AttesterOption = Annotated[
    str,
    typer.Option(
        help="auto (what the machine has), sev-snp, tdx, hardware-tpm, pinned, dev or tpm[:TCTI]."
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(help="What an upstream was started with: MODEL=PATH; may be repeated."),
]
DeviceArgument = Annotated[str, typer.Argument(help="The thumbprint, or its beginning.")]


@app.command()
def serve(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="NAME=FILE, NAME=echo, a FILE, NAME=upstream:http://127.0.0.1:PORT#MODEL or "
            "NAME=upstream:unix:/path#MODEL; may be repeated.",
        ),
    ],
    weights: WeightsOption = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="LoRA adapter: MODEL/NAME=FILE; may be repeated.")
    ] = None,
    mmproj: Annotated[
        list[str] | None,
        typer.Option(help="Projector by which a model reads images: MODEL=FILE; may be repeated."),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=PROMPT/ANSWER: per million tokens, told by its card; repeatable."),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT (port 0: a free one) or unix:/path.")
    ] = "127.0.0.1:8443",
    state: StateOption = None,
    database: DatabaseOption = None,
    attester: AttesterOption = "auto",
    release: Annotated[
        Path | None,
        typer.Option(help="Signed release (DSSE), its proof beside it in FILE.tlog-proof."),
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Add the NVIDIA GPU's evidence to the machine's.")
    ] = False,
    open_port: Annotated[
        list[int] | None,
        typer.Option(help="A port that is meant to be open beside the node's; may be repeated."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT for /metrics, /livez and /readyz, in plain HTTP: loopback, "
            "or a port that --open-port names."
        ),
    ] = None,
    traces: Annotated[
        str | None, typer.Option(help="URL of an OpenTelemetry collector (OTLP over HTTP).")
    ] = None,
    replicas: Annotated[
        Path | None,
        typer.Option(help="File with the fleet's addresses, a line each; read anew as it changes."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Sequences that a model runs at once.")] = 4,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a model.")] = None,
    max_streams: Annotated[int, typer.Option(min=1, help="Streams at a time.")] = 64,
    quota_tokens: Annotated[
        int | None, typer.Option(min=0, help="Tokens that a device may take in a period.")
    ] = None,
    quota_hours: Annotated[int, typer.Option(min=1, help="How long a period is.")] = 24,
    drain_s: Annotated[float, typer.Option(min=0, help="Time for streams to end.")] = 20.0,
    echo_delay_s: Annotated[
        float, typer.Option(min=0, help="Seconds per step of echo, to try a slow model.")
    ] = 0.0,
    stop_with_stdin: Annotated[
        bool, typer.Option(help="Stop when standard input ends: for who starts a node as a child.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve models to enrolled devices, and prove what runs here. SIGTERM drains and exits."""
    from overspill.engines.options import EngineOptions
    from overspill_cloud.app import (
        NodeOptions,
        parse_model,
        with_adapters,
        with_prices,
        with_projectors,
        with_weights,
    )
    from overspill_cloud.limits import AdmissionLimits, QuotaTerms

    models = with_weights([parse_model(text) for text in model], weights or ())
    models = with_adapters(models, adapter or ())
    options = NodeOptions(
        models=with_prices(with_projectors(models, mmproj or ()), price or ()),
        listen=listen,
        state=state_folder(state),
        attester=attester,
        release=release,
        gpu=gpu,
        open_ports=tuple(open_port or ()),
        metrics=metrics,
        traces=traces,
        replicas=replicas,
        tls_certificate=tls_cert,
        tls_key=tls_key,
        drain_timeout_s=drain_s,
        engine=EngineOptions(
            context_tokens=context,
            max_sequences=slots,
            threads=threads,
            token_delay_s=echo_delay_s,
        ),
        admission=AdmissionLimits(
            max_streams=max_streams,
            quota_tokens=quota_tokens,
            quota=QuotaTerms(period_s=quota_hours * 3600),
        ),
        database=database,
    )
    asyncio.run(_serve(options, as_json, stop_with_stdin))


async def _serve(options: NodeOptions, as_json: bool, stop_with_stdin: bool) -> None:
    from overspill_cloud.app import serve as serving_node
    from overspill_cloud.hardening import harden_process

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not loop.add_signal_handler: Windows has none.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    if stop_with_stdin:
        threading.Thread(target=_at_end_of_stdin, args=(loop, stopped.set), daemon=True).start()
    async with serving_node(options, stated=harden_process()) as node:
        facts: dict[str, Any] = {
            "listen": node.listen,
            "pid": os.getpid(),
            "nkc_sha256": node.nkc_sha256,
            "assurance": node.assurance,
        }
        if node.dev_root is not None:
            facts["dev_root"] = node.dev_root
        if node.metrics is not None:
            facts["metrics"] = node.metrics
        text = f"Serving on {node.listen}; evidence: {node.assurance}."
        report(facts, text, as_json)
        await stopped.wait()


def _at_end_of_stdin(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    with suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop)


@app.command("enroll-code")
def enroll_code(
    state: StateOption = None,
    database: DatabaseOption = None,
    ttl_hours: Annotated[float, typer.Option(min=0.01, help="Valid for so long.")] = 24.0,
    as_json: JsonOption = False,
) -> None:
    """Make a one-time code with which one device can enrol itself."""
    store = _store(state, database)
    expires = int(time.time() + ttl_hours * 3600)
    code = store.new_code(expires)
    store.close()
    report({"code": code, "expires": iso(expires)}, code, as_json)


@app.command()
def policy(
    model: Annotated[list[str], typer.Option("--model", help="NAME=FILE; may be repeated.")],
    weights: WeightsOption = None,
    state: StateOption = None,
    attester: AttesterOption = "auto",
) -> None:
    """Print the trust policy (TOML) with which clients accept this node and these models."""
    from overspill_cloud.app import parse_model, with_weights
    from overspill_cloud.client_policy import client_policy

    folder = state_folder(state)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    models = with_weights([parse_model(text) for text in model], weights or ())
    typer.echo(client_policy(attester, folder, models), nl=False)


@app.command()
def closed(
    open_port: Annotated[
        list[int] | None, typer.Option(help="A port that is meant to be open; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Say how closed this machine is: what a node on hardware demands before it serves. Exit 0
    when all is closed, else 4."""
    from overspill.trust.closed import CLOSED_AT_START
    from overspill_cloud.closed import look
    from overspill_cloud.machine import Machine

    findings = look(Machine(), open_port or ())
    rows = [
        {"name": f.name, "closed": f.is_closed, "found": f.found, "mend": f.mend} for f in findings
    ]
    lines = [
        f"{f.name:<14} closed" if f.is_closed else f"{f.name:<14} OPEN: {f.found}. Mend: {f.mend}"
        for f in findings
    ]
    is_ready = all(f.is_closed for f in findings if f.name in CLOSED_AT_START)
    report({"ready": is_ready, "findings": rows}, "\n".join(lines), as_json)
    return 0 if is_ready else 4


@devices.command("list")
def list_devices(
    state: StateOption = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """All devices that were ever enrolled."""
    store = _store(state, database)
    rows = [
        {
            "device": device.thumbprint.hex(),
            "label": device.label,
            "enrolled": iso(device.enrolled_unix),
            "expires": iso(device.not_after_unix),
            "revoked": None if device.revoked_unix is None else iso(device.revoked_unix),
            "quota_tokens": device.quota_tokens,
        }
        for device in store.devices()
    ]
    store.close()
    lines = (
        f"{row['device']}  {row['label'] or '-'}  until {row['expires']}"
        + (f"  REVOKED {row['revoked']}" if row["revoked"] else "")
        for row in rows
    )
    report({"devices": rows}, "\n".join(lines) or "No device is enrolled.", as_json)


@devices.command("revoke")
def revoke_device(
    device: DeviceArgument,
    state: StateOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a device from now on; a running node sees it at its next request."""
    store = _store(state, database)
    name = _the_device(store, device)
    store.revoke(name, int(time.time()))
    store.close()
    report({"revoked": name.hex()}, f"Revoked {name.hex()}.", as_json)


@devices.command("quota")
def device_quota(
    device: DeviceArgument,
    tokens: Annotated[
        int | None, typer.Argument(min=0, help="Tokens a period; left out: the node's default.")
    ] = None,
    state: StateOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a device a quota of its own; a running node sees it at its next request."""
    store = _store(state, database)
    name = _the_device(store, device)
    store.set_quota(name, tokens)
    store.close()
    what = "the node's default" if tokens is None else f"{tokens} tokens a period"
    report({"device": name.hex(), "quota_tokens": tokens}, f"{name.hex()}: {what}.", as_json)


def _the_device(store: Store, begins: str) -> bytes:
    """The one device whose thumbprint begins so. Raises ``UsageError``."""
    found = [d for d in store.devices() if d.thumbprint.hex().startswith(begins.lower())]
    if len(found) != 1:
        store.close()
        what = "More than one device begins" if found else "No device begins"
        raise UsageError(f"{what} with '{begins}'.", mend="See: overspill-cloud devices list")
    return found[0].thumbprint


def run() -> None:
    """Entry point: every error is one line, or one JSON document, and its exit code."""
    sys.exit(run_app(app, "overspill-cloud", sys.argv[1:]))


def _store(folder: Path | None, database: str | None) -> Store:
    from overspill_cloud.store import Store

    return Store(state_folder(folder), database)
