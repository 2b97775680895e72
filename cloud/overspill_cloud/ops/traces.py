"""OpenTelemetry spans of generations, by the gen_ai names, and without content.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/: of its attributes only those in
``ATTRIBUTES`` are ever set. Token counts are the next power of four, as in the log; a span has an
id of its own, which no request, device or stream knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from overspill._version import __version__
from overspill.errors import MissingExtra
from overspill.types.chat import FinishReason
from overspill_cloud.events import bucket
from overspill_cloud.ops.metered import Answered

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

ATTRIBUTES: Final = frozenset(
    {
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.model",
        "gen_ai.response.finish_reasons",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "error.type",
    }
)
_ENDS: Final = frozenset(FinishReason)


class NodeTraces:
    """One span for each generation, given to ``exporter`` in batches by a thread of the SDK's."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._provider = _provider(exporter)
        self._tracer = self._provider.get_tracer("overspill_cloud", __version__)

    def answered(self, answered: Answered) -> None:
        """Make the span of a generation that ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        start_ns = int(answered.began_unix_s * 1e9)
        span = self._tracer.start_span(
            f"chat {answered.model}",
            kind=SpanKind.SERVER,
            start_time=start_ns,
            attributes=_attributes(answered),
        )
        if answered.first_token_s is not None:
            at_ns = start_ns + int(answered.first_token_s * 1e9)
            span.add_event("gen_ai.first_token", timestamp=at_ns)
        if answered.outcome not in _ENDS:
            span.set_status(Status(StatusCode.ERROR))
        span.end(start_ns + int(answered.duration_s * 1e9))

    def close(self) -> None:
        """Send what is left; waits as long as the exporter takes."""
        self._provider.shutdown()


def otlp_exporter(endpoint: str) -> SpanExporter:
    """To a collector, by OTLP over HTTP. Raises ``MissingExtra``."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise MissingExtra("Tracing", "otel") from None
    exporter: SpanExporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    return exporter


def _provider(exporter: SpanExporter) -> TracerProvider:
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingExtra("Tracing", "otel") from None
    # Not Resource.create(): that reads the environment and names host and process.
    resource = Resource({"service.name": "overspill-cloud", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _attributes(answered: Answered) -> dict[str, str | int | list[str]]:
    usage = answered.usage
    attributes: dict[str, str | int | list[str]] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "overspill",
        "gen_ai.request.model": answered.model,
        "gen_ai.response.model": answered.model,
        "gen_ai.usage.input_tokens": bucket(usage.prompt_tokens),
        "gen_ai.usage.output_tokens": bucket(usage.completion_tokens),
    }
    if answered.outcome in _ENDS:
        attributes["gen_ai.response.finish_reasons"] = [answered.outcome]
    else:
        attributes["error.type"] = answered.outcome
    return attributes
