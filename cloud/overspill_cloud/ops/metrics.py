"""Prometheus figures of a node. Names and units by the field's habit: ``_seconds``, ``_total``.

Labels hold the operator's own model names and words of the error tree, and nothing a client chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from overspill._version import __version__
from overspill_cloud import events
from overspill_cloud.ops.metered import Answered

PREFIX: Final = "overspill_"
_FIRST_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PER_TOKEN_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
_DURATION_S: Final = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model now: whether its engine moves, what it runs and what waits, and its KV cache."""

    is_up: bool
    running: int
    waiting: int
    kv_reserved: int
    kv_capacity: int | None


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """The node now. ``streams`` by lane hold a place each; there are ``streams_limit``."""

    models: Mapping[str, ModelFigures]
    streams: Mapping[str, int]
    streams_limit: int
    is_draining: bool


class NodeMetrics:
    """All figures of one node, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(PREFIX + name, text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, text, ("model",), buckets=buckets, registry=registry)

        self._build = gauge("build_info", "What runs; always 1.", "version", "assurance")
        self._engine_up = gauge("engine_up", "1 while the engine moves.", "model")
        self._running = gauge("requests_running", "Sequences in the engine.", "model")
        self._waiting = gauge("requests_waiting", "In the engine's queue.", "model")
        self._kv_reserved = gauge("kv_tokens_reserved", "KV tokens admitted.", "model")
        self._kv_capacity = gauge("kv_tokens_capacity", "KV tokens there are.", "model")
        self._kv_usage = gauge(
            "kv_usage_ratio", "Admitted of what there is; over 1 waits.", "model"
        )
        self._streams = gauge("streams", "Streams that hold a place.", "lane")
        self._streams_limit = gauge("streams_limit", "Places there are.")
        self._queue_usage = gauge("queue_usage_ratio", "Places taken, of those there are.")
        self._draining = gauge("draining", "1 while no new streams are taken.")
        self._first_token = histogram(
            "time_to_first_token_seconds", "From admission to the first piece.", _FIRST_TOKEN_S
        )
        self._per_token = histogram(
            "time_per_output_token_seconds", "Each token after the first.", _PER_TOKEN_S
        )
        self._duration = histogram(
            "request_duration_seconds", "From admission to the engine's end.", _DURATION_S
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", "model")
        self._generation_tokens = counter("generation_tokens", "Tokens of answers.", "model")
        self._requests = counter("requests", "Generations that ended.", "model", "outcome")
        self._refusals = counter("refusals", "Refused, by why.", "code", "reason")
        self._errors = counter("internal_errors", "Unexpected, by where.", "kind", "where")
        self._restarts = counter("engine_restarts", "Workers started again.", "model", "ok")
        self._renewals = counter("evidence_renewals", "New node key configurations.")
        self._certificates = counter("certificate_replacements", "TLS files read anew.", "ok")
        self._enrolments = counter("devices_enrolled", "Devices enrolled.")
        self._resumed = counter("streams_resumed", "Streams that went on after a lost connection.")

    def answered(self, answered: Answered) -> None:
        """Count a generation that ended."""
        model, usage = answered.model, answered.usage
        self._requests.labels(model, answered.outcome).inc()
        self._duration.labels(model).observe(answered.duration_s)
        if answered.first_token_s is not None:
            self._first_token.labels(model).observe(answered.first_token_s)
        if answered.per_output_token_s is not None:
            self._per_token.labels(model).observe(answered.per_output_token_s)
        self._prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self._generation_tokens.labels(model).inc(usage.completion_tokens)

    def logged(self, event: events.LogEvent) -> None:
        """Count an event of the log."""
        match event:
            case events.RequestRefused(code, reason):
                self._refusals.labels(code, reason).inc()
            case events.InternalError(kind, where):
                self._errors.labels(kind, where).inc()
            case events.NodeStarted():
                self._build.labels(__version__, event.assurance).set(1)
            case events.EngineRestarted(model, ok):
                self._restarts.labels(model, str(ok).lower()).inc()
            case events.EvidenceRenewed():
                self._renewals.inc()
            case events.CertificateReplaced(ok):
                self._certificates.labels(str(ok).lower()).inc()
            case events.DeviceEnrolled():
                self._enrolments.inc()
            case events.StreamResumed():
                self._resumed.inc()
            case _:  # what has an end of its own: the drain is a gauge, a stream is an answer
                return

    def exposition(self, now: NodeFigures) -> bytes:
        """Everything in Prometheus' text format."""
        for name, model in now.models.items():
            self._engine_up.labels(name).set(model.is_up)
            self._running.labels(name).set(model.running)
            self._waiting.labels(name).set(model.waiting)
            self._kv_reserved.labels(name).set(model.kv_reserved)
            if model.kv_capacity:
                self._kv_capacity.labels(name).set(model.kv_capacity)
                self._kv_usage.labels(name).set(model.kv_reserved / model.kv_capacity)
        for lane, streams in now.streams.items():
            self._streams.labels(lane).set(streams)
        self._streams_limit.set(now.streams_limit)
        self._queue_usage.set(sum(now.streams.values()) / now.streams_limit)
        self._draining.set(now.is_draining)
        return generate_latest(self.registry)


def metric_names() -> frozenset[str]:
    """Every name that a node's own figures may be queried by."""
    names: set[str] = set()
    for family in NodeMetrics().registry.collect():
        if family.type == "counter":
            names.add(f"{family.name}_total")
        elif family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(family.name)
    return frozenset(names)
