"""`overspill-cloud serve`: its options, and the process around a node."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overspill_cloud.cli_options import (
    AttesterOption,
    DatabaseOption,
    JsonOption,
    StateOption,
    WeightsOption,
    report,
    state_folder,
)
from overspill_cloud.limits import DRAIN_S

if TYPE_CHECKING:
    from overspill_cloud.app import ModelSpec, NodeOptions

Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        help="NAME=FILE, NAME=echo, a FILE, NAME=upstream:http://127.0.0.1:PORT#MODEL or "
        "NAME=upstream:unix:/path#MODEL; may be repeated.",
    ),
]
AdapterFiles = Annotated[
    list[str] | None, typer.Option(help="LoRA adapter: MODEL/NAME=FILE; may be repeated.")
]
Projectors = Annotated[
    list[str] | None,
    typer.Option(help="Projector by which a model reads images: MODEL=FILE; may be repeated."),
]
Prices = Annotated[
    list[str] | None,
    typer.Option(help="MODEL=PROMPT/ANSWER: per million tokens, told by its card; repeatable."),
]
Listen = Annotated[str, typer.Option(help="HOST:PORT (port 0: a free one) or unix:/path.")]
Release = Annotated[
    Path | None,
    typer.Option(help="Signed release (DSSE), its proof beside it in FILE.tlog-proof."),
]
Gpu = Annotated[bool, typer.Option("--gpu", help="Add the NVIDIA GPU's evidence to the machine's.")]
OpenPorts = Annotated[
    list[int] | None,
    typer.Option(help="A port that is meant to be open beside the node's; may be repeated."),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT for /metrics, /livez and /readyz, in plain HTTP: loopback, "
        "or a port that --open-port names."
    ),
]
Traces = Annotated[
    str | None, typer.Option(help="URL of an OpenTelemetry collector (OTLP over HTTP).")
]
Replicas = Annotated[
    Path | None,
    typer.Option(help="File with the fleet's addresses, a line each; read anew as it changes."),
]
ReplicasDns = Annotated[
    str | None,
    typer.Option(
        help="NAME:PORT whose addresses are the fleet's, or '*.NAME:PORT' for the names that "
        "Kubernetes gives them; asked every 5 s."
    ),
]
TlsCertificate = Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")]
TlsKey = Annotated[Path | None, typer.Option(help="Private key, PEM.")]
Slots = Annotated[int, typer.Option(min=1, help="Sequences that a model runs at once.")]
Context = Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of a model.")]
MaxStreams = Annotated[int, typer.Option(min=1, help="Streams at a time.")]
QuotaTokens = Annotated[
    int | None, typer.Option(min=0, help="Tokens that a device may take in a period.")
]
QuotaHours = Annotated[int, typer.Option(min=1, help="How long a period is.")]
DrainS = Annotated[float, typer.Option(min=0, help="Time for streams to end.")]
EchoDelayS = Annotated[
    float, typer.Option(min=0, help="Seconds per step of echo, to try a slow model.")
]
StopWithStdin = Annotated[
    bool, typer.Option(help="Stop when standard input ends: for who starts a node as a child.")
]


def serve(
    model: Models,
    weights: WeightsOption = None,
    adapter: AdapterFiles = None,
    mmproj: Projectors = None,
    price: Prices = None,
    listen: Listen = "127.0.0.1:8443",
    state: StateOption = None,
    database: DatabaseOption = None,
    attester: AttesterOption = "auto",
    release: Release = None,
    gpu: Gpu = False,
    open_port: OpenPorts = None,
    metrics: Metrics = None,
    traces: Traces = None,
    replicas: Replicas = None,
    replicas_dns: ReplicasDns = None,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    slots: Slots = 4,
    context: Context = None,
    threads: Threads = None,
    max_streams: MaxStreams = 64,
    quota_tokens: QuotaTokens = None,
    quota_hours: QuotaHours = 24,
    drain_s: DrainS = DRAIN_S,
    echo_delay_s: EchoDelayS = 0.0,
    stop_with_stdin: StopWithStdin = False,
    as_json: JsonOption = False,
) -> None:
    """Serve models to enrolled devices, and prove what runs here. SIGTERM drains and exits."""
    from overspill.engines.options import EngineOptions
    from overspill_cloud.app import NodeOptions
    from overspill_cloud.limits import AdmissionLimits, QuotaTerms
    from overspill_cloud.loop import run

    options = NodeOptions(
        models=served_models(model, weights or (), adapter or (), mmproj or (), price or ()),
        listen=listen,
        state=state_folder(state),
        attester=attester,
        release=release,
        gpu=gpu,
        open_ports=tuple(open_port or ()),
        metrics=metrics,
        traces=traces,
        replicas=replicas,
        replicas_dns=replicas_dns,
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
    run(serve_until_told(options, as_json=as_json, stop_with_stdin=stop_with_stdin))


def served_models(
    models: Sequence[str],
    weights: Sequence[str],
    adapters: Sequence[str],
    projectors: Sequence[str],
    prices: Sequence[str],
) -> tuple[ModelSpec, ...]:
    """The models, each with what the other options say of it. Raises ``UsageError``."""
    from overspill_cloud.app import (
        parse_model,
        with_adapters,
        with_prices,
        with_projectors,
        with_weights,
    )

    found = with_weights([parse_model(text) for text in models], weights)
    return with_prices(with_projectors(with_adapters(found, adapters), projectors), prices)


async def serve_until_told(options: NodeOptions, *, as_json: bool, stop_with_stdin: bool) -> None:
    """Run a node until SIGTERM, Ctrl-C or, where asked, the end of standard input."""
    from overspill.garbage import keep_what_is_there
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
        keep_what_is_there()
        text = f"Serving on {node.listen}; evidence: {node.assurance}."
        report(facts, text, as_json)
        await stopped.wait()


def _at_end_of_stdin(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    with suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop)
