"""Spans of generations: gen_ai's names, sizes in steps, and no content."""

from __future__ import annotations

import pytest

from overspill.engines.registry import open_engine
from overspill.types.chat import Message, Request
from overspill.types.usage import Usage
from overspill_cloud.ops.metered import Answered, MeteredEngine
from overspill_cloud.ops.traces import ATTRIBUTES, NodeTraces

pytestmark = pytest.mark.anyio


@pytest.fixture
def exporter():
    pytest.importorskip("opentelemetry.sdk", reason="pip install 'overspill[otel]'")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    return InMemorySpanExporter()


async def test_a_generation_is_a_span_without_content(exporter) -> None:
    traces = NodeTraces(exporter)
    async with open_engine("echo") as echo:
        engine = MeteredEngine(echo, "river", (traces,))
        request = Request((Message("user", "canary-7f3a"),), id="request-5151", max_tokens=64)
        _ = [chunk async for chunk in engine.generate(request)]
    traces.close()
    (span,) = exporter.get_finished_spans()
    said = span.to_json()
    assert "canary" not in said
    assert "5151" not in said
    assert span.name == "chat river"
    assert set(span.attributes) <= ATTRIBUTES
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert span.attributes["gen_ai.usage.output_tokens"] in {4**n for n in range(10)}
    assert set(span.resource.attributes) == {"service.name", "service.version"}


def test_times_and_errors_are_the_generations_own(exporter) -> None:
    traces = NodeTraces(exporter)
    traces.answered(Answered("m", "batch", "busy", 100.0, 2.0, 0.5, Usage(17, 3)))
    traces.close()
    (span,) = exporter.get_finished_spans()
    assert (span.start_time, span.end_time) == (100 * 10**9, 102 * 10**9)
    (first,) = span.events
    assert (first.name, first.timestamp) == ("gen_ai.first_token", 100_500_000_000)
    assert span.attributes["error.type"] == "busy"
    assert not span.status.is_ok
    assert span.attributes["gen_ai.usage.input_tokens"] == 64
