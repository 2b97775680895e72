"""What a start of a node would meet, looked at by what `serve` itself calls, and in its order.

Nothing is loaded and nothing is changed but that addresses are bound for a moment.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from overspill._version import __version__
from overspill.errors import OverspillError
from overspill_cloud.app import (
    ModelSpec,
    NodeOptions,
    check_models,
    check_reach,
    dns_replicas,
    measured_unloaded,
    parse_model,
    tls_files,
    with_adapters,
    with_prices,
    with_projectors,
    with_weights,
)
from overspill_cloud.attester import choose_attester, open_attester
from overspill_cloud.attester.nvidia import MANIFESTS_FOLDER, open_gpu
from overspill_cloud.closed import close_or_refuse
from overspill_cloud.listen import check_address, check_listen
from overspill_cloud.machine import Machine
from overspill_cloud.ops.attester_check import (
    Opener,
    is_on_hardware,
    look_at_attester,
    look_at_closed,
    look_at_unnamed,
)
from overspill_cloud.ops.database_check import look_at_database
from overspill_cloud.ops.endpoint import OpsEndpoint, parse_ops_address, serving_ops
from overspill_cloud.ops.model_check import look_at_model
from overspill_cloud.ops.traces import NodeTraces, otlp_exporter
from overspill_cloud.release import ReleaseFile

LOW_DISK_BYTES: Final = 1 << 30
_EXTRAS: Final = {
    "llama_cpp": "llama",
    "mlx_lm": "mlx",
    "httpx2": "upstream",
    "opentelemetry.sdk": "otel",
    "ray": "fleet",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``ok`` None is a fact without a judgement."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the node is to be started. The models are ``--model``'s and the others' own texts, since
    each may be wrong by itself; ``options.models`` stands empty."""

    options: NodeOptions
    models: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    projectors: tuple[str, ...] = ()
    prices: tuple[str, ...] = ()


def look(
    wanted: Wanted, *, machine: Machine | None = None, attesters: Opener = open_attester
) -> list[Check]:
    """Everything, in the order in which a start would meet it."""
    python = ".".join(map(str, sys.version_info[:3]))
    models, refused = _models(wanted)
    options = replace(wanted.options, models=models)
    return [
        Check("version", None, f"overspill {__version__}, Python {python}"),
        Check("extras", None, _extras()),
        *refused,
        *_entrances(options),
        _state(options.state),
        _disk(options.state),
        *_grounds(options, machine or Machine(), attesters),
        *(_of_model(spec, options) for spec in models),
        _tried("database", lambda: look_at_database(options.state, options.database)),
        *_released(options, machine or Machine(), is_whole=not refused),
    ]


def _tried(name: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name, True, attempt())
    except OverspillError as error:
        return Check(name, False, error.message, error.mend)


def _extras() -> str:
    def is_there(module: str) -> bool:
        try:
            return find_spec(module) is not None
        except ModuleNotFoundError:  # its parent is missing
            return False

    return ", ".join(extra for module, extra in _EXTRAS.items() if is_there(module)) or "none"


def _models(wanted: Wanted) -> tuple[tuple[ModelSpec, ...], list[Check]]:
    """The models that can be understood, and what is refused of them before anything is read."""
    refused: list[Check] = []
    models: tuple[ModelSpec, ...] = ()

    def attempt(change: Callable[[], Sequence[ModelSpec]]) -> None:
        nonlocal models
        try:
            models = tuple(change())
        except OverspillError as error:
            refused.append(Check("model", False, error.message, error.mend))

    for text in wanted.models:
        attempt(lambda text=text: (*models, parse_model(text)))  # type: ignore[misc]  # a lambda's default
    attempt(lambda: with_weights(models, wanted.weights))
    attempt(lambda: with_adapters(models, wanted.adapters))
    attempt(lambda: with_projectors(models, wanted.projectors))
    attempt(lambda: with_prices(models, wanted.prices))
    if models:
        attempt(lambda: _checked(models))
    elif not refused:
        refused.append(Check("model", None, "none is named: give --model, as for serve"))
    return models, refused


def _checked(models: tuple[ModelSpec, ...]) -> tuple[ModelSpec, ...]:
    check_models(models)
    return models


def _entrances(options: NodeOptions) -> Iterator[Check]:
    """Where it listens, by which certificate, and where it shows and sends its figures."""
    has_tls = options.tls_certificate is not None and options.tls_key is not None
    yield _tried("listen", lambda: _listen(options.listen, has_tls=has_tls))
    if options.tls_certificate is not None or options.tls_key is not None:
        yield _tried("tls", lambda: _tls(options))
    if options.metrics is not None:
        metrics = options.metrics
        yield _tried("metrics", lambda: asyncio.run(_ops_port(metrics, options.open_ports)))
    if options.traces is not None:
        traces = options.traces
        yield _tried("traces", lambda: _traces(traces))
    if options.replicas_dns is not None:
        yield _tried("replicas", lambda: _replicas(options))


def _listen(address: str, *, has_tls: bool) -> str:
    check_address(address)
    check_reach(address, has_tls=has_tls)
    check_listen(address)
    return f"{address} is free"


def _tls(options: NodeOptions) -> str:
    tls_files(options)
    return "certificate and key fit"


async def _ops_port(address: str, open_ports: tuple[int, ...]) -> str:
    async def nothing() -> bytes:
        return b""

    async def unready() -> bool:
        return False

    where = parse_ops_address(address, open_ports)
    async with serving_ops(where, OpsEndpoint(nothing, unready)):
        return f"{address} is free"


def _traces(url: str) -> str:
    NodeTraces(otlp_exporter(url)).close()
    return f"{url}, which was not asked"


def _replicas(options: NodeOptions) -> str:
    names = dns_replicas(options)
    if names is None:
        return "none"
    names.refresh()
    return ", ".join(names.read()) or f"{options.replicas_dns} stands for nobody yet"


def _state(folder: Path) -> Check:
    if not folder.exists():
        return Check("state", None, f"{folder} is made at the first start")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Check("state", False, f"{folder} cannot be written.", "Give another --state.")
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        mend = f"chmod 700 {folder}"
        return Check("state", False, f"{folder} can be read by others.", mend)
    return Check("state", True, str(folder))


def _disk(folder: Path) -> Check:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    detail = f"{free / 2**30:.1f} GiB free for state"
    if free < LOW_DISK_BYTES:
        return Check("disk", False, detail, "Make room: a ledger that cannot be written stops.")
    return Check("disk", True, detail)


def _grounds(options: NodeOptions, machine: Machine, attesters: Opener) -> Iterator[Check]:
    """What vouches for the node, and what evidence of hardware demands of the machine."""
    kind, state = options.attester, options.state
    yield _tried("attester", lambda: look_at_attester(kind, state, attesters))
    if options.gpu:
        yield _tried("gpu", lambda: _gpu(state / MANIFESTS_FOLDER))
    if is_on_hardware(kind, state):
        yield _tried("closed", lambda: look_at_closed(machine, options.open_ports))
        yield _tried("weights", lambda: look_at_unnamed(options.models))


def _gpu(folder: Path) -> str:
    open_gpu(folder).close()
    return "its driver answers"


def _of_model(spec: ModelSpec, options: NodeOptions) -> Check:
    return _tried("model", lambda: asyncio.run(look_at_model(spec, options.engine)))


def _released(options: NodeOptions, machine: Machine, *, is_whole: bool) -> Iterator[Check]:
    """Whether the release lists what this node would measure: every file is read for that."""
    if options.release is None:
        return
    if not is_whole or not options.models:
        yield Check("release", None, "not compared: the models have to be right first")
        return
    kind = choose_attester(options.attester, options.state)
    chosen, path = replace(options, attester=kind), options.release

    def compared() -> str:
        closed: tuple[str, ...] = ()
        if is_on_hardware(kind, options.state):
            closed = close_or_refuse(machine, options.open_ports)
        return ReleaseFile(path, asyncio.run(measured_unloaded(chosen, closed))).version

    yield _tried("release", compared)
