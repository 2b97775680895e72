"""`overspill-cloud plan` and `overspill-cloud doctor`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.errors import UsageError
from overspill_cloud.cli_options import (
    AttesterOption,
    DatabaseOption,
    JsonOption,
    StateOption,
    WeightsOption,
    state_folder,
)
from overspill_cloud.cli_serve import (
    AdapterFiles,
    Context,
    Gpu,
    Listen,
    Metrics,
    OpenPorts,
    Prices,
    Projectors,
    Release,
    Replicas,
    ReplicasDns,
    Slots,
    Threads,
    TlsCertificate,
    TlsKey,
    Traces,
)


def plan(
    model: Annotated[str, typer.Option(help="NAME=FILE, NAME=echo, a FILE, or an upstream.")],
    streams: Annotated[int, typer.Option(help="Streams at the busiest moment.")],
    tokens_per_s: Annotated[float, typer.Option(help="What each stream is to get.")] = 10.0,
    prompt_tokens: Annotated[int, typer.Option(help="Of a request.")] = 512,
    answer_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 256,
    use_at_most: Annotated[float, typer.Option(help="Share of a node that is planned with.")] = 0.7,
    spare: Annotated[int, typer.Option(help="Nodes that may be down.")] = 1,
    measured: Annotated[
        Path | None,
        typer.Option(help="JSON of an earlier plan, or of `overspill bench engine`."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Sequences that a node runs at once.")] = 4,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how many nodes a load needs, from what this machine does with the model now."""
    from overspill.engines.options import EngineOptions
    from overspill_cloud.app import parse_model
    from overspill_cloud.ops import capacity
    from overspill_cloud.ops.measuring import Measured, measure_levels

    load = capacity.Load(streams, tokens_per_s, prompt_tokens, answer_tokens, use_at_most, spare)
    spec = parse_model(model)
    if measured is not None:
        document = _document(measured)
        levels = capacity.levels_from(document, spec.name)
        found = Measured(levels, document.get("kv_tokens"), int(document.get("memory_bytes") or 0))
    else:
        options = EngineOptions(context_tokens=context, max_sequences=slots, threads=threads)
        found = asyncio.run(measure_levels(spec, options, load))
    made = capacity.plan(
        load, found.levels, kv_tokens=found.kv_tokens, memory_bytes=found.memory_bytes
    )
    facts = {"model": spec.name, **found.as_dict(), "plan": made.as_dict()}
    typer.echo(json.dumps(facts) if as_json else _told(spec.name, found.levels, load, made))


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON.", mend="Give the file of a plan.") from (
            error
        )
    if not isinstance(document, dict):
        raise UsageError(f"{path} is no measurement.", mend="Give the file of a plan.")
    return document


def _told(model: str, levels: Any, load: Any, made: Any) -> str:
    lines = [f"{model}, measured:"]
    lines += [
        f"  {one.streams:>4} streams  {one.aggregate_tokens_per_s:8.1f} tokens/s together, "
        f"{one.each_tokens_per_s:.1f} each"
        for one in levels
    ]
    kv = (
        "unknown"
        if made.by_kv is None
        else f"{made.by_kv} ({made.kv_tokens_per_stream} tokens each)"
    )
    lines += [
        f"one node: {made.by_speed} streams by speed, by KV cache {kv}; "
        f"planned with {made.streams_per_node} ({load.use_at_most:.0%})",
        f"{load.streams} streams: {made.nodes - load.spare} nodes and {load.spare} spare = "
        f"{made.nodes}; {made.requests_per_s:.1f} requests/s, {made.tokens_per_s:.0f} tokens/s",
    ]
    return "\n".join(lines)


def doctor(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="As for serve; may be repeated.")
    ] = None,
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
    as_json: JsonOption = False,
) -> int:
    """Look at what a node needs before it is started. Exit 0, or 1 when something fails.

    Takes every option by which serve can refuse to start, and asks what serve would: an upstream is
    asked what it serves, and with --release each model's file is read whole, as at a start. Not
    looked at: weights behind a file's header, models that fit the memory alone and not together,
    and whether a collector answers behind --traces.
    """
    from overspill.engines.options import EngineOptions
    from overspill_cloud.app import NodeOptions
    from overspill_cloud.ops.checks import Wanted, look

    options = NodeOptions(
        models=(),
        listen=listen,
        state=state_folder(state),
        attester=attester,
        release=release,
        gpu=gpu,
        open_ports=tuple(open_port or ()),
        tls_certificate=tls_cert,
        tls_key=tls_key,
        engine=EngineOptions(context_tokens=context, max_sequences=slots, threads=threads),
        metrics=metrics,
        traces=traces,
        replicas=replicas,
        replicas_dns=replicas_dns,
        database=database,
    )
    texts = (tuple(one or ()) for one in (model, weights, adapter, mmproj, price))
    checks = look(Wanted(options, *texts))
    rows = [
        {"name": one.name, "ok": one.ok, "detail": one.detail, "mend": one.mend} for one in checks
    ]
    marks = {True: "ok  ", False: "FAIL", None: "    "}
    lines = [f"{marks[one.ok]} {one.name:<14} {one.detail} {one.mend}".rstrip() for one in checks]
    is_well = all(one.ok is not False for one in checks)
    typer.echo(json.dumps({"ok": is_well, "checks": rows}) if as_json else "\n".join(lines))
    return 0 if is_well else 1
