"""Builds a node from its options; the only place that constructs.

Cheap refusals come first, then the models are measured, loaded and measured again, and only then
are there keys and evidence: nothing is attested before it is so.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from overspill.engines.base import Engine
from overspill.engines.options import EngineOptions
from overspill.engines.registry import open_engine
from overspill.errors import ConfigurationError, UsageError
from overspill.transport.base import is_local_address
from overspill.transport.local.options import LocalOptions
from overspill.types.evidence import Assurance
from overspill.worker import WorkerEngine, WorkerOptions
from overspill_cloud import events
from overspill_cloud.admission import Admission, Database
from overspill_cloud.attester import choose_attester, open_attester
from overspill_cloud.attester.base import Attester
from overspill_cloud.attester.dev import UnsafeDevAttester
from overspill_cloud.attester.nvidia import MANIFESTS_FOLDER, NvidiaGpu, open_gpu
from overspill_cloud.certificates import TlsFiles
from overspill_cloud.closed import close_or_refuse
from overspill_cloud.fleet.addresses import AddressFile
from overspill_cloud.fleet.dns import DnsReplicas
from overspill_cloud.keeper import SILENCE_S, STALL_AFTER_S, Keeper
from overspill_cloud.keys import KeyRing
from overspill_cloud.limits import DRAIN_S, LEAVING_S, AdmissionLimits
from overspill_cloud.listen import check_address, check_listen
from overspill_cloud.machine import Machine
from overspill_cloud.measure import NodeMeasurements, measure_node, node_settings
from overspill_cloud.models import Measurement, ServedModel, measure
from overspill_cloud.node import Node, NodeParts
from overspill_cloud.ops.observing import Observing, observing, ops_address
from overspill_cloud.release import ReleaseFile
from overspill_cloud.server import start_server
from overspill_cloud.store import Store
from overspill_cloud.streams import StreamLimits
from overspill_cloud.upstream.address import is_upstream, parse_upstream
from overspill_cloud.upstream.engine import UpstreamEngine

ECHO = "echo"
PROJECTOR = "mmproj"
"""What a model's projector is called where it is measured."""
_WORKER = WorkerOptions(local=LocalOptions(silence_s=SILENCE_S))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's public name, its file (or ``echo``, or ``upstream:ADDRESS#MODEL``), its LoRA
    adapters by name, and the projector by which it reads images. ``prices_per_mtok``: for a million
    tokens of prompts, of answers. ``weights`` is what an upstream was started with."""

    name: str
    source: str
    adapters: tuple[tuple[str, str], ...] = ()
    mmproj: str | None = None
    prices_per_mtok: tuple[float, float] = (0.0, 0.0)
    weights: str | None = None

    @property
    def measured_path(self) -> str | None:
        """The file or folder whose digest stands in evidence; None where there is none."""
        if self.source == ECHO or is_upstream(self.source):
            return self.weights
        return self.source

    @property
    def stands_for(self) -> bytes:
        """What is hashed where no file is: an upstream's own name of its model."""
        if not is_upstream(self.source):
            return b""
        return b"overspill/v1/upstream\x00" + parse_upstream(self.source).model.encode()


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """All that an operator chooses. ``state`` keeps devices, replay window and ledger, unless
    ``database`` names a PostgreSQL for them (postgresql://USER@HOST/NAME); ``release`` is a signed
    release with its ``.tlog-proof`` beside it; ``gpu`` adds an NVIDIA GPU's evidence to the
    machine's; ``open_ports`` are those of the machine that are meant to be open beside the node's
    own; ``metrics`` is where the ops port listens (``HOST:PORT``), ``traces`` the URL of an
    OpenTelemetry collector; ``replicas`` a file with the addresses of the fleet's nodes, a line
    each, or ``replicas_dns`` a name that stands for all of them
    (:class:`~overspill_cloud.fleet.dns.DnsReplicas`)."""

    models: tuple[ModelSpec, ...]
    listen: str
    state: Path
    attester: str = "dev"
    release: Path | None = None
    gpu: bool = False
    open_ports: tuple[int, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    drain_timeout_s: float = DRAIN_S
    engine: EngineOptions = field(default_factory=EngineOptions)
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    streams: StreamLimits = field(default_factory=StreamLimits)
    metrics: str | None = None
    traces: str | None = None
    replicas: Path | None = None
    replicas_dns: str | None = None
    database: str | None = None

    @property
    def leaving_s(self) -> float:
        """How long a drain takes at least: a node that stands alone has nobody to name."""
        has_others = self.replicas is not None or self.replicas_dns is not None
        return min(LEAVING_S, self.drain_timeout_s) if has_others else 0.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A node that serves: where, under which configuration, and how strong its evidence is."""

    node: Node
    models: Mapping[str, ServedModel]
    keys: KeyRing
    listen: str
    assurance: str
    dev_root: str | None
    """The development key (hex) that a policy has to name; None for other attesters."""
    metrics: str | None = None
    """Where the ops port listens, if there is one."""

    @property
    def nkc_sha256(self) -> str:
        """The current node key configuration's digest, hex."""
        return self.keys.current().nkc_sha256.hex()


def parse_model(text: str) -> ModelSpec:
    """``NAME=FILE``, or a file alone, whose stem is then the name. Raises ``UsageError``."""
    name, sign, source = text.partition("=")
    if not sign:
        name, source = Path(text).stem, text
    if not name or not source or "/" in name:
        raise UsageError(f"'{text}' is no model.", mend="Give --model NAME=FILE")
    if is_upstream(source):
        parse_upstream(source)
    return ModelSpec(name, source)


def with_prices(models: Sequence[ModelSpec], texts: Sequence[str]) -> tuple[ModelSpec, ...]:
    """The models with what ``MODEL=PROMPT/ANSWER`` texts ask for a million tokens of each. Raises
    ``UsageError`` for another form, a model that is not served, or a price under 0."""
    found = {model.name: model.prices_per_mtok for model in models}
    for text in texts:
        name, _, prices = text.partition("=")
        try:
            prompt, answer = (float(part) for part in prices.split("/"))
        except ValueError:
            prompt = answer = -1.0
        if name not in found or not (0 <= prompt < math.inf and 0 <= answer < math.inf):
            raise UsageError(
                f"'{text}' is no price of a model that is served.",
                mend="Give --price MODEL=PROMPT/ANSWER, in currency units per million tokens.",
            )
        found[name] = (prompt, answer)
    return tuple(replace(model, prices_per_mtok=found[model.name]) for model in models)


def with_adapters(models: Sequence[ModelSpec], texts: Sequence[str]) -> tuple[ModelSpec, ...]:
    """The models with the adapters that ``MODEL/NAME=FILE`` texts add. Raises ``UsageError`` for a
    text of another form, a model that is not served, or a name that is given twice."""
    found: dict[str, dict[str, str]] = {model.name: {} for model in models}
    for text in texts:
        name, _, source = text.partition("=")
        model, _, adapter = name.partition("/")
        if not adapter or not source:
            raise UsageError(f"'{text}' is no adapter.", mend="Give --adapter MODEL/NAME=FILE")
        if model not in found:
            raise UsageError(
                f"The adapter '{name}' is for a model that is not served.",
                mend=f"Served are: {', '.join(found)}.",
            )
        if adapter in found[model]:
            raise UsageError(f"The adapter '{name}' is given twice.", mend="Rename one.")
        found[model][adapter] = source
    return tuple(replace(model, adapters=tuple(found[model.name].items())) for model in models)


def with_projectors(models: Sequence[ModelSpec], texts: Sequence[str]) -> tuple[ModelSpec, ...]:
    """The models with the projectors that ``MODEL=FILE`` texts name. Raises ``UsageError``.

    A projector is measured under the name of an adapter, ``mmproj``, which nothing else may have.
    """
    found = {model.name: model for model in models}
    for text in texts:
        name, _, source = text.partition("=")
        if not source:
            raise UsageError(f"'{text}' is no projector.", mend="Give --mmproj MODEL=FILE")
        if name not in found:
            raise UsageError(
                f"The projector '{text}' is for a model that is not served.",
                mend=f"Served are: {', '.join(found)}.",
            )
        if found[name].mmproj or PROJECTOR in dict(found[name].adapters):
            raise UsageError(
                f"'{name}/{PROJECTOR}' is given twice.", mend="Give one projector for each model."
            )
        found[name] = replace(found[name], mmproj=source)
    return tuple(found[model.name] for model in models)


def with_weights(models: Sequence[ModelSpec], texts: Sequence[str]) -> tuple[ModelSpec, ...]:
    """The upstream models with the files that ``MODEL=PATH`` texts say they were started with.
    Raises ``UsageError``."""
    found = {model.name: model for model in models}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in found or not path or not is_upstream(found[name].source):
            raise UsageError(
                f"'{text}' names no upstream's weights.",
                mend="Give --weights MODEL=PATH for a model that is served by an upstream.",
            )
        found[name] = replace(found[name], weights=path)
    return tuple(found[model.name] for model in models)


def check_options(options: NodeOptions) -> TlsFiles | None:
    """What can be refused without starting anything. Raises ``UsageError`` or
    ``ConfigurationError`` or ``BusyError``; returns certificate and key, if there are any."""
    check_models(options.models)
    check_address(options.listen)
    tls = tls_files(options)
    check_reach(options.listen, has_tls=tls is not None)
    check_listen(options.listen)
    return tls


def check_models(models: Sequence[ModelSpec]) -> None:
    """Whether they can be served together. Raises ``UsageError``."""
    names = [model.name for model in models]
    if not names:
        raise UsageError("No model to serve.", mend="Give --model NAME=FILE")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"The model name '{name}' is given twice.", mend="Rename one.")
    for model in models:
        if is_upstream(model.source) and (model.adapters or model.mmproj):
            raise UsageError(
                f"'{model.name}' is an upstream's: adapters and projectors are its own.",
                mend="Give them to the upstream.",
            )


def dns_replicas(options: NodeOptions) -> DnsReplicas | None:
    """Where the fleet's nodes are named, if it is by DNS. Raises ``UsageError``."""
    if options.replicas_dns is None:
        return None
    if options.replicas is not None:
        raise UsageError(
            "--replicas and --replicas-dns name the same thing twice.", mend="Give one of them."
        )
    return DnsReplicas(options.replicas_dns)


def check_reach(listen: str, *, has_tls: bool) -> None:
    """Nothing but loopback and Unix sockets goes without TLS. Raises ``ConfigurationError``."""
    if not has_tls and not is_local_address(listen):
        raise ConfigurationError(
            f"{listen} is not a loopback address, and there is no certificate.",
            mend="Give --tls-cert and --tls-key, or listen on 127.0.0.1 or unix:/path.",
        )


@asynccontextmanager
async def serve(
    options: NodeOptions,
    *,
    clock: Callable[[], float] = time.time,
    log_to: TextIO | None = None,
    stated: tuple[str, ...] = (),
    attesters: Callable[[str, Path], Attester] = open_attester,
    gpus: Callable[[Path], NvidiaGpu] = open_gpu,
    machine: Machine | None = None,
) -> AsyncGenerator[Serving]:
    """A node that serves within the block, and drains at its end. ``stated`` names what could
    not be hardened, for the log; ``machine`` is looked at before evidence of hardware is given.

    Raises ``UsageError``, ``ConfigurationError``, ``ModelError`` or ``DoesNotFit``.
    """
    tls = check_options(options)
    names = dns_replicas(options)
    ops = ops_address(options.metrics, options.open_ports)
    options = replace(options, attester=choose_attester(options.attester, options.state))
    async with AsyncExitStack() as stack:
        watch = await stack.enter_async_context(observing(ops is not None, options.traces))
        log = events.EventLog(clock, log_to, watch.logged)
        attester = await asyncio.to_thread(attesters, options.attester, options.state)
        stack.callback(attester.close)
        gpu = None
        if options.gpu:
            gpu = await asyncio.to_thread(gpus, options.state / MANIFESTS_FOLDER)
            stack.callback(gpu.close)
        closed = _closed(attester, machine or Machine(), options)
        check_upstreams(attester.assurance, options.models)
        models = [await _load(spec, options.engine, stack, watch, log) for spec in options.models]
        database = Database(Store(options.state, options.database), log.write)
        stack.callback(database.close)
        keys = await asyncio.to_thread(_keys, options, attester, gpu, models, clock, log, closed)
        replicas = AddressFile(options.replicas).read
        if names is not None:
            stack.enter_context(names.following())
            replicas = names.read
        named = {model.name: model for model in models}
        admission = Admission(database, clock, options.admission)
        node = Node(
            NodeParts(
                models=named,
                keys=keys,
                admission=admission,
                database=database,
                log=log,
                clock=clock,
                limits=options.streams,
                replicas=replicas,
            )
        )
        if tls is not None:
            tls.replaced = lambda ok: log.write(events.CertificateReplaced(ok))
        server, listen = await start_server(node, log, options.listen, tls)
        stack.push_async_callback(server.stop, 1.0)
        renewing = asyncio.create_task(keys.renew_forever())
        stack.callback(renewing.cancel)
        shown_at = await stack.enter_async_context(watch.showing(ops, node, admission.room))
        serving = Serving(
            node, named, keys, listen, attester.assurance.name, _dev_root(attester), shown_at
        )
        _log_start(log, serving, options.models, stated)
        try:
            yield serving
        finally:
            await node.drain(options.drain_timeout_s, options.leaving_s)
    log.write(events.NodeStopped())


async def _load(
    spec: ModelSpec,
    options: EngineOptions,
    stack: AsyncExitStack,
    watch: Observing,
    log: events.EventLog,
) -> ServedModel:
    """Measure, load, and make sure that what was loaded is what was measured."""
    file, adapters = await _files(spec)
    engine = _open(spec, settings_of(spec, options))
    stack.push_async_callback(engine.aclose)
    await engine.start()
    if isinstance(engine, WorkerEngine):
        keeping = asyncio.create_task(Keeper(spec.name, engine, log.write).keep())
        stack.callback(keeping.cancel)
    sequences = options.max_sequences
    if isinstance(engine, UpstreamEngine):
        sequences = engine.sequences or 0
    kv_tokens = engine.card.context * sequences or None
    watched = watch.metered(spec.name, engine)
    model = ServedModel(
        spec.name, watched, file, adapters, kv_tokens, spec.prices_per_mtok, spec.stands_for
    )
    await model.check_unchanged()
    return model


async def _files(spec: ModelSpec) -> tuple[Measurement | None, dict[str, Measurement]]:
    """The model's own files, read whole, and its adapters'; the projector is one of those."""
    file = None
    if spec.measured_path is not None:
        file = await asyncio.to_thread(measure, Path(spec.measured_path))
    sources = dict(spec.adapters) | ({} if spec.mmproj is None else {PROJECTOR: spec.mmproj})
    return file, {name: await asyncio.to_thread(measure, Path(at)) for name, at in sources.items()}


async def measured_unloaded(options: NodeOptions, closed: tuple[str, ...]) -> NodeMeasurements:
    """What a node of these options would measure; every file is read whole, nothing is loaded.

    Raises ``ModelNotFound``, ``ModelInvalid``, and as opening an engine does.
    """
    models = []
    for spec in options.models:
        file, adapters = await _files(spec)
        engine = _open(spec, options.engine)
        models.append(ServedModel(spec.name, engine, file, adapters, stands_for=spec.stands_for))
    return _measured(options, models, closed)


def settings_of(spec: ModelSpec, options: EngineOptions) -> EngineOptions:
    """The engine's options with what is this model's own."""
    stalls = min(options.scheduler.stall_after_s, STALL_AFTER_S)
    return replace(
        options,
        adapters=dict(spec.adapters),
        mmproj=spec.mmproj,
        scheduler=replace(options.scheduler, stall_after_s=stalls),
    )


@asynccontextmanager
async def open_model(spec: ModelSpec, options: EngineOptions) -> AsyncGenerator[Engine]:
    """A model's engine alone, without a node around it: to be measured."""
    engine = _open(spec, replace(options, adapters=dict(spec.adapters), mmproj=spec.mmproj))
    async with engine:
        yield engine


def _open(spec: ModelSpec, options: EngineOptions) -> Engine:
    """A model file in a worker process: a malformed one may abort it, but never the node."""
    if is_upstream(spec.source):
        return UpstreamEngine(parse_upstream(spec.source), name=spec.name)
    if spec.source != ECHO:
        return WorkerEngine(spec.source, name=spec.name, options=options, worker=_WORKER)
    return open_engine(spec.source, name=spec.name, options=options)


def _keys(
    options: NodeOptions,
    attester: Attester,
    gpu: NvidiaGpu | None,
    models: Sequence[ServedModel],
    clock: Callable[[], float],
    log: events.EventLog,
    closed: tuple[str, ...],
) -> KeyRing:
    measured = _measured(options, models, closed)
    release = None
    if options.release is not None:
        release = ReleaseFile(options.release, measured)
    return KeyRing(attester, measured, models, clock, log, release, gpu)


def _measured(
    options: NodeOptions, models: Sequence[ServedModel], closed: tuple[str, ...]
) -> NodeMeasurements:
    upstreams = [spec.name for spec in options.models if is_upstream(spec.source)]
    settings = node_settings(
        options.attester, options.admission, closed, options.open_ports, upstreams
    )
    return measure_node(models, settings)


def _closed(attester: Attester, machine: Machine, options: NodeOptions) -> tuple[str, ...]:
    """What is closed around a node on hardware, or its refusal; the others only state it."""
    if attester.assurance < Assurance.HARDWARE_TPM:
        return ()
    return close_or_refuse(machine, options.open_ports)


def check_upstreams(assurance: Assurance, models: Sequence[ModelSpec]) -> None:
    """On hardware nothing answers whose weights evidence cannot name.

    Raises ``ConfigurationError``.
    """
    for spec in models:
        unnamed = is_upstream(spec.source) and spec.weights is None
        if unnamed and assurance >= Assurance.HARDWARE_TPM:
            raise ConfigurationError(
                f"Evidence of hardware cannot name what '{spec.name}' is: its upstream loads it.",
                mend=f"Give --weights {spec.name}=PATH, what the upstream was started with.",
            )


def _dev_root(attester: Attester) -> str | None:
    return attester.root.hex() if isinstance(attester, UnsafeDevAttester) else None


def tls_files(options: NodeOptions) -> TlsFiles | None:
    """Certificate and key, if they are given. Raises ``UsageError`` for one without the other,
    ``ConfigurationError`` for files that cannot be used."""
    certificate, key = options.tls_certificate, options.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("A certificate needs its key.", mend="Give --tls-cert and --tls-key.")
    return TlsFiles(certificate, key)


def _log_start(
    log: events.EventLog, serving: Serving, models: Sequence[ModelSpec], stated: tuple[str, ...]
) -> None:
    log.write(
        events.NodeStarted(
            release=serving.keys.release_name,
            assurance=serving.assurance,
            nkc_sha256=serving.nkc_sha256,
            models=tuple(model.name for model in models),
            stated=stated,
        )
    )
